//! The status file: one digit that tells what the locks of this process are at.
//!
//! Marks count who waits and what is held. A thread of the file's own writes the furthest of it, so
//! that a file system that hangs stalls nobody. Whoever names the same file shares it.

mod file;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, path, thread};

use crate::error::{Error, ErrorKind, Result};

/// How long a file is left as it is once it was written: who locks a thousand times a second is not
/// to write as often.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a shutdown waits for a file system that hangs.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

/// The status file of some [`Locks`](crate::Locks), if they have one. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Status(Option<Arc<User>>);

impl Status {
    /// Begins to use the file at `path`, and makes it show the state of now.
    pub(crate) fn open(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        // From the root, lest a later change of the working folder should matter.
        let path = path::absolute(&path).map_err(|error| {
            Error::new(ErrorKind::InvalidOption, format!("the status_file is no path: {error}"))
                .with_source(error)
        })?;
        let key = file::real(&path);
        let mut files = files();
        if let Some(board) = files.get(&key) {
            return Ok(Self(Some(User::of(board))));
        }
        let board = Arc::new(Board::default());
        let user = User::of(&board);
        let (write_to, retire_as) = (path.clone(), key.clone());
        serve(
            Arc::clone(&board),
            path,
            move |text| file::replace(&write_to, text),
            move |board| board.retire(&retire_as),
        )
        .map_err(|error| {
            Error::new(ErrorKind::Backend, "no thread for the status file could be had")
                .with_source(error)
        })?;
        files.insert(key, board);
        Ok(Self(Some(user)))
    }

    /// Somebody waits for a lock, for as long as the mark lives.
    pub(crate) fn waiting(&self) -> Mark {
        Mark::new(self.clone(), Kind::Waiting)
    }

    #[cfg(test)]
    pub(crate) fn digit(&self) -> &'static str {
        self.0.as_ref().map_or("none", |user| user.0.state().digit())
    }

    /// Waits until the file shows the state of now, or cannot be written.
    pub(crate) async fn flush(&self) {
        if let Some(user) = self.0.clone() {
            let flushed = tokio::task::spawn_blocking(move || user.0.flush(LONGEST_FLUSH)).await;
            if !flushed.unwrap_or(true) {
                tracing::warn!("the status file could not be brought up to date in time");
            }
        }
    }
}

/// Counts as long as it lives.
#[derive(Debug)]
pub(crate) struct Mark {
    status: Status,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Waiting,
    Held,
}

impl Mark {
    fn new(status: Status, kind: Kind) -> Self {
        if let Some(user) = &status.0 {
            user.0.update(|state| *state.count(kind) += 1);
        }
        Self { status, kind }
    }

    /// A lock is held, for as long as the new mark lives.
    pub(crate) fn held(&self) -> Self {
        Self::new(self.status.clone(), Kind::Held)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(user) = &self.status.0 {
            user.0.update(|state| *state.count(self.kind) -= 1);
        }
    }
}

/// The files in use, each by its one true path.
fn files() -> MutexGuard<'static, HashMap<PathBuf, Arc<Board>>> {
    static FILES: LazyLock<Mutex<HashMap<PathBuf, Arc<Board>>>> = LazyLock::new(Mutex::default);
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a file in use.
#[derive(Debug)]
struct User(Arc<Board>);

impl User {
    fn of(board: &Arc<Board>) -> Arc<Self> {
        board.update(|state| {
            state.users += 1;
            // Somebody else may have written to the file, such as a process that crashed.
            state.changes += 1;
        });
        Arc::new(Self(Arc::clone(board)))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.update(|state| state.users -= 1);
    }
}

/// What a file is to show.
#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    /// For the thread that writes: something changed.
    news: Condvar,
    /// By the thread that writes: a write has ended.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    users: usize,
    waiting: usize,
    held: usize,
    /// How often what the file is to show has changed, and which of these changes it has seen.
    changes: u64,
    seen: u64,
    /// How many wait for the file.
    flushing: usize,
}

impl State {
    fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Waiting => &mut self.waiting,
            Kind::Held => &mut self.held,
        }
    }

    /// The furthest that anybody is.
    fn digit(&self) -> &'static str {
        match (self.held, self.waiting) {
            (0, 0) => "0",
            (0, _) => "1",
            _ => "2",
        }
    }

    fn is_over(&self) -> bool {
        self.users == 0 && self.changes == self.seen
    }
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = state.digit();
        change(&mut state);
        if state.digit() != before {
            state.changes += 1;
        }
        if state.changes != state.seen || state.users == 0 {
            self.news.notify_all();
        }
    }

    /// Waits until all changes up to now are seen. Answers whether that came to pass in time.
    fn flush(&self, limit: Duration) -> bool {
        let mut state = self.state();
        let changes = state.changes;
        state.flushing += 1;
        self.news.notify_all();
        let unseen = |state: &mut State| state.seen < changes;
        let (mut state, timeout) = self
            .written
            .wait_timeout_while(state, limit, unseen)
            .unwrap_or_else(PoisonError::into_inner);
        state.flushing -= 1;
        !timeout.timed_out()
    }

    /// Waits for something to write, or for the last user to go.
    fn next(&self) -> Option<(&'static str, u64)> {
        let nothing = |state: &mut State| state.seen == state.changes && state.users > 0;
        let state = self.news.wait_while(self.state(), nothing);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        (!state.is_over()).then(|| (state.digit(), state.changes))
    }

    /// Takes note that all changes up to `change` were seen, and lets a moment pass.
    fn rest(&self, change: u64) {
        let mut state = self.state();
        state.seen = change;
        self.written.notify_all();
        let nobody_hurries = |state: &mut State| state.flushing == 0;
        drop(self.news.wait_timeout_while(state, PAUSE, nobody_hurries));
    }

    fn is_over(&self) -> bool {
        self.state().is_over()
    }

    /// Gives the file up, unless somebody has come to use it.
    fn retire(&self, key: &PathBuf) -> bool {
        let mut files = files();
        let is_over = self.is_over();
        if is_over {
            files.remove(key);
        }
        is_over
    }
}

/// Writes what a board shows on a thread of its own, until it `retires`.
fn serve(
    board: Arc<Board>,
    path: PathBuf,
    mut write: impl FnMut(&'static str) -> io::Result<()> + Send + 'static,
    retires: impl Fn(&Board) -> bool + Send + 'static,
) -> io::Result<()> {
    let name = "database-locks-status".to_owned();
    let work = move || {
        let mut is_known_to_fail = false;
        loop {
            let Some((digit, change)) = board.next() else {
                if retires(&board) {
                    return;
                }
                continue;
            };
            let written = write(digit);
            if let Err(error) = &written
                && !is_known_to_fail
            {
                tracing::warn!(
                    path = %path.display(), %error,
                    "the status file cannot be written, will try again when the status changes"
                );
            }
            is_known_to_fail = written.is_err();
            board.rest(change);
        }
    };
    thread::Builder::new().name(name).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A file whose writes are seen, and end when the test says so.
    struct Hanging {
        user: Option<Arc<User>>,
        begun: mpsc::Receiver<&'static str>,
        end: mpsc::Sender<io::Result<()>>,
    }

    const LONG: Duration = Duration::from_secs(60);

    fn hanging() -> Hanging {
        let board = Arc::new(Board::default());
        let user = User::of(&board);
        let (beginning, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let write = move |digit| {
            beginning.send(digit).unwrap();
            ended.recv_timeout(LONG).unwrap()
        };
        serve(board, "status".into(), write, |board| board.is_over()).unwrap();
        Hanging { user: Some(user), begun, end }
    }

    impl Hanging {
        fn mark(&self, kind: Kind) -> Mark {
            Mark::new(Status(self.user.clone()), kind)
        }

        fn flushes(&self, limit: Duration) -> bool {
            self.user.as_ref().unwrap().0.flush(limit)
        }

        /// What is being written, once that has begun.
        fn writes(&self) -> &'static str {
            self.begun.recv_timeout(LONG).unwrap()
        }
    }

    #[test]
    fn the_furthest_state_is_shown() {
        let file = hanging();
        assert_eq!(file.writes(), "0");
        file.end.send(Ok(())).unwrap();
        let waiting = file.mark(Kind::Waiting);
        assert_eq!(file.writes(), "1");
        file.end.send(Ok(())).unwrap();
        let (held, also_held) = (waiting.held(), file.mark(Kind::Held));
        assert_eq!(file.writes(), "2");
        file.end.send(Ok(())).unwrap();
        drop((held, waiting));
        assert!(file.flushes(LONG), "nothing has changed");
        drop(also_held);
        assert_eq!(file.writes(), "0");
        file.end.send(Ok(())).unwrap();
        assert!(file.begun.try_recv().is_err());
    }

    #[test]
    fn a_file_system_that_hangs_stalls_nobody_and_only_the_last_state_matters() {
        let file = hanging();
        assert_eq!(file.writes(), "0");
        // This hangs now.
        let held = file.mark(Kind::Held);
        let waiting = file.mark(Kind::Waiting);
        drop(held);
        assert!(!file.flushes(Duration::from_millis(1)));
        file.end.send(Ok(())).unwrap();
        assert_eq!(file.writes(), "1", "held was over before it could be written");
        file.end.send(Ok(())).unwrap();
        assert!(file.flushes(LONG));
        drop(waiting);
    }

    #[test]
    fn what_failed_is_tried_again_at_the_next_change() {
        let file = hanging();
        assert_eq!(file.writes(), "0");
        file.end.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(file.flushes(LONG), "a failure is not waited for");
        let _held = file.mark(Kind::Held);
        assert_eq!(file.writes(), "2");
        file.end.send(Ok(())).unwrap();
    }

    #[test]
    fn many_changes_are_few_writes() {
        let board = Arc::new(Board::default());
        let user = User::of(&board);
        let writes = Arc::new(Mutex::new(0_u32));
        let count = Arc::clone(&writes);
        let write = move |_| {
            *count.lock().unwrap() += 1;
            Ok(())
        };
        let started = crate::clock::time_since_boot();
        serve(Arc::clone(&board), "status".into(), write, |board| board.is_over()).unwrap();
        while crate::clock::time_since_boot() < started + PAUSE * 5 {
            drop(Mark::new(Status(Some(Arc::clone(&user))), Kind::Held));
        }
        // Before the clock: what is written in between has no pause to account for it.
        let written = *writes.lock().unwrap();
        let passed = crate::clock::time_since_boot() - started;
        let pauses = passed.as_nanos() / PAUSE.as_nanos();
        assert!(u128::from(written) <= pauses + 1);
    }

    #[test]
    fn the_thread_ends_with_the_last_user_once_all_is_written() {
        let mut file = hanging();
        assert_eq!(file.writes(), "0");
        let held = file.mark(Kind::Held);
        file.user = None;
        drop(held);
        file.end.send(Ok(())).unwrap();
        assert_eq!(file.writes(), "0");
        file.end.send(Ok(())).unwrap();
        // Its end ends the channel.
        let ended = file.begun.recv_timeout(LONG);
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_file_that_is_given_up_and_taken_again_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        for _ in 0..50 {
            let status = Status::open(Some(path.clone())).unwrap();
            let _held = Mark::new(status.clone(), Kind::Held);
            assert!(status.0.as_ref().unwrap().0.flush(LONG));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
        }
        let given_up_at = crate::clock::time_since_boot() + LONG;
        while files().contains_key(&file::real(&path)) {
            assert!(crate::clock::time_since_boot() < given_up_at, "its thread never ends");
            thread::yield_now();
        }
    }
}
