//! Durations as people write them, in settings and on command lines.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A duration from text: seconds (`10`, `0.5`) or numbers with units (`250ms`, `1m30s`, `2h`).
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`] for anything else. The message does not repeat the text.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use database_locks_core::parse_duration;
/// assert_eq!(parse_duration("0.5").unwrap(), Duration::from_millis(500));
/// assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration> {
    let text = text.trim();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let parsed = if is_too_long(text) {
        None
    } else if text.chars().all(is_number) {
        humantime::parse_duration(&format!("{text}s")).ok()
    } else {
        humantime::parse_duration(text).ok()
    };
    parsed.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOption,
            "not a duration: write seconds, such as 10 or 0.5, or units, such as 250ms or 1m30s",
        )
    })
}

/// Keeps what is parsed so far from the end of the range that no sum can overflow, since the parser
/// panics where one does so by carrying a second.
fn is_too_long(text: &str) -> bool {
    const TEXT: usize = 64;
    const NUMBER: usize = 9;
    let longest_number = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    text.len() > TEXT || longest_number.is_some_and(|digits| digits > NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_units() {
        for (text, millis) in [
            ("10", 10_000),
            ("0", 0),
            ("0.5", 500),
            (" 2 ", 2_000),
            ("250ms", 250),
            ("1m30s", 90_000),
            ("1h 30m", 5_400_000),
            ("1.5s", 1_500),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text:?}");
        }
        assert_eq!(parse_duration("0.000000001").unwrap(), Duration::from_nanos(1));
    }

    #[test]
    fn what_is_no_duration_is_refused_without_repeating_it() {
        for text in [
            "",
            " ",
            ".",
            "-1",
            "-1s",
            "+1",
            "1e3",
            "inf",
            "NaN",
            "1..5",
            "1.",
            "10 20",
            "ten",
            "1m30",
            "10 fortnights",
            "0.0000000001",
            "99999999999999999999h",
            "18446744073709551615s 1000ms",
            "postgres://user:geheim@host/db",
        ] {
            let error = parse_duration(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{text:?}");
            assert!(error.to_string().starts_with("not a duration: write"), "{text:?}");
        }
    }
}
