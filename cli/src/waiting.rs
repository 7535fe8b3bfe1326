//! What a waiting `dblock run` shows: one line that is kept up to date on a terminal, and a line
//! in the log for each holder elsewhere, or in the background.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use database_locks::{Busy, LockName, Token};

use crate::exit::say;
use crate::terminal::columns_of_stderr;

/// Tells who holds the lock that is waited for.
pub(crate) struct Waiting {
    name: LockName,
    since: Instant,
    last: Option<(Busy, Instant)>,
    said: Option<Option<Token>>,
    line_is_shown: bool,
}

impl Waiting {
    pub(crate) fn new(name: LockName) -> Self {
        Self { name, since: Instant::now(), last: None, said: None, line_is_shown: false }
    }

    /// Takes the news that the lock is busy, as of now.
    pub(crate) fn update(&mut self, busy: Busy) {
        self.last = Some((busy, Instant::now()));
        self.show();
    }

    /// Brings the times in the line up to date.
    pub(crate) fn show(&mut self) {
        let Some((busy, seen)) = &self.last else { return };
        let who = describe(busy, seen.elapsed());
        if let Some(columns) = columns_of_stderr() {
            let waited = whole_seconds(self.since.elapsed());
            let line = format!("dblock: waiting {waited} for {:?}: {who}", self.name.as_str());
            // One column stays free, since some terminals wrap once the last one is filled.
            let line = cut_to_columns(&line, columns.saturating_sub(1));
            let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
            self.line_is_shown = true;
        } else {
            let holder = busy.holder.as_ref().map(|holder| holder.token);
            if self.said.is_none_or(|said| holder.is_some() && said != holder) {
                say(&format!("waiting for {:?}: {who}", self.name.as_str()));
                self.said = Some(holder);
            }
        }
    }

    /// Removes the line, so that the command starts on a clean one.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.line_is_shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A duration for people: whole seconds.
pub(crate) fn whole_seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Text without anything that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn describe(busy: &Busy, age: Duration) -> String {
    let Some(holder) = &busy.holder else {
        return "somebody else is ahead".to_owned();
    };
    let mut text = format!(
        "held by {} for {}",
        printable(holder.owner.label()),
        whole_seconds(holder.held_for + age)
    );
    let _ = match holder.remaining {
        None => write!(text, ", never expires"),
        Some(left) => {
            let left = whole_seconds(left.saturating_sub(age));
            write!(text, ", expires in {left} unless renewed")
        }
    };
    text
}

/// Counts what is not ASCII as two columns, which is enough for all but a few.
fn cut_to_columns(line: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = line.char_indices().find(|(_, c)| {
        used += if c.is_ascii() { 1 } else { 2 };
        used > columns
    });
    end.map_or(line, |(end, _)| &line[..end])
}

#[cfg(test)]
mod tests {
    use database_locks::{Holder, Owner};

    use super::*;

    #[test]
    fn a_line_says_who_for_how_long_and_what_is_left() {
        let holder = Holder::new(Owner::label_only("web1.7").unwrap(), Token::new(5))
            .with_held_for(Duration::from_millis(61_900))
            .with_remaining(Duration::from_millis(8_000));
        let busy = Busy::by(holder);
        assert_eq!(
            describe(&busy, Duration::from_secs(2)),
            "held by web1.7 for 1m 3s, expires in 6s unless renewed"
        );
    }

    #[test]
    fn lines_fit_their_terminal() {
        assert_eq!(cut_to_columns("abcdef", 3), "abc");
        assert_eq!(cut_to_columns("aéb", 3), "aé");
        assert_eq!(cut_to_columns("aéb", 2), "a");
        assert_eq!(cut_to_columns("ab", 80), "ab");
        assert_eq!(cut_to_columns("ab", 0), "");
    }
}
