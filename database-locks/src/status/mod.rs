//! The status file: one digit that tells what the locks of this process are at.
//!
//! It counts who waits and what is held. A thread of the file's own writes the furthest of it, so
//! that a file system that hangs stalls nobody. Whoever names the same file shares it.

mod file;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, path, thread};

use database_locks_core::observer::{Event, Observer};
use database_locks_core::{Error, ErrorKind, Result, async_trait};

/// How long a file is left as it is once it was written: who locks a thousand times a second is not
/// to write as often.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a shutdown waits for a file system that hangs.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

/// A file that shows, as one digit, what the locks of this process are at: `0` idle, `1` waiting
/// for a lock, `2` holding one. For supervisors and load balancers.
///
/// ```
/// # fn example(folder: &std::path::Path) -> database_locks::Result<()> {
/// use database_locks::{Locks, StatusFile};
///
/// let options = Locks::builder().observer(StatusFile::open(folder.join("status"))?);
/// # Ok(()) }
/// ```
///
/// It shows the furthest state of all locks of all [`Locks`](crate::Locks) of the process that name this file,
/// from `0` at the start to `0` at the end; a lease that is lost is not held. Each state replaces
/// the file as a whole, so that a reader finds exactly one digit; of states that follow each
/// other within some milliseconds only the last may be seen. [`shutdown`](crate::Locks::shutdown) waits
/// until the file shows the end, though no longer than 5 s for a file system that hangs.
///
/// A reader can rely on the digit while the process lives. One that ends without a shutdown, or
/// is killed, leaves its last digit behind until another one starts: look also whether the
/// process is there, and never take `2` for the lock.
///
/// A file that is there keeps its permissions (and its owner, as far as the system lets us); a
/// new one gets those that the umask leaves of `rw-rw-rw-`. Symbolic links are followed. The
/// process must be allowed to make files in that folder. What cannot be written breaks nothing:
/// it is logged, and tried again when the state changes.
#[derive(Debug, Clone)]
pub struct StatusFile(Arc<User>);

impl StatusFile {
    /// Begins to use the file at `path`, and makes it show the state of now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for what is no path, and [`ErrorKind::Backend`] where the system gives no thread.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        // From the root, so that a later change of the working folder does not matter.
        let path = path::absolute(path.into()).map_err(|error| {
            Error::new(ErrorKind::InvalidOption, format!("the status_file is no path: {error}"))
                .with_source(error)
        })?;
        let key = file::real(&path);
        let mut files = files();
        if let Some(board) = files.get(&key) {
            return Ok(Self(User::of(board)));
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
        Ok(Self(user))
    }
}

#[async_trait]
impl Observer for StatusFile {
    fn on(&self, event: Event<'_>) {
        self.0.0.update(|state| match event {
            Event::Waiting { .. } => state.waiting += 1,
            Event::NotGranted { .. } => state.waiting -= 1,
            Event::Granted { joined, .. } => {
                state.waiting -= 1;
                state.held += usize::from(!joined);
            }
            Event::Lost { .. } | Event::Released { .. } => state.held -= 1,
            _ => {}
        });
    }

    /// Waits until the file shows the state of now, or cannot be written.
    async fn flush(&self) {
        let user = Arc::clone(&self.0);
        let flushed = tokio::task::spawn_blocking(move || user.0.flush(LONGEST_FLUSH)).await;
        if !flushed.unwrap_or(true) {
            tracing::warn!("the status file could not be brought up to date in time");
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
        fn count(&self, change: impl FnOnce(&mut State)) {
            self.user.as_ref().unwrap().0.update(change);
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
        file.count(|state| state.waiting += 1);
        assert_eq!(file.writes(), "1");
        file.end.send(Ok(())).unwrap();
        file.count(|state| state.held += 2);
        assert_eq!(file.writes(), "2");
        file.end.send(Ok(())).unwrap();
        file.count(|state| {
            state.held -= 1;
            state.waiting -= 1;
        });
        assert!(file.flushes(LONG), "nothing has changed");
        file.count(|state| state.held -= 1);
        assert_eq!(file.writes(), "0");
        file.end.send(Ok(())).unwrap();
        assert!(file.begun.try_recv().is_err());
    }

    #[test]
    fn a_file_system_that_hangs_stalls_nobody_and_only_the_last_state_matters() {
        let file = hanging();
        assert_eq!(file.writes(), "0");
        // This hangs now.
        file.count(|state| state.held += 1);
        file.count(|state| state.waiting += 1);
        file.count(|state| state.held -= 1);
        assert!(!file.flushes(Duration::from_millis(1)));
        file.end.send(Ok(())).unwrap();
        assert_eq!(file.writes(), "1", "held was over before it could be written");
        file.end.send(Ok(())).unwrap();
        assert!(file.flushes(LONG));
    }

    #[test]
    fn what_failed_is_tried_again_at_the_next_change() {
        let file = hanging();
        assert_eq!(file.writes(), "0");
        file.end.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(file.flushes(LONG), "a failure is not waited for");
        file.count(|state| state.held += 1);
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
        let started = database_locks_core::clock::time_since_boot();
        serve(Arc::clone(&board), "status".into(), write, |board| board.is_over()).unwrap();
        while database_locks_core::clock::time_since_boot() < started + PAUSE * 5 {
            user.0.update(|state| state.held += 1);
            user.0.update(|state| state.held -= 1);
        }
        // Before the clock: what is written in between has no pause to account for it.
        let written = *writes.lock().unwrap();
        let passed = database_locks_core::clock::time_since_boot() - started;
        let pauses = passed.as_nanos() / PAUSE.as_nanos();
        assert!(u128::from(written) <= pauses + 1);
    }

    #[test]
    fn the_thread_ends_with_the_last_user_once_all_is_written() {
        let mut file = hanging();
        assert_eq!(file.writes(), "0");
        file.count(|state| state.held += 1);
        file.count(|state| state.held -= 1);
        file.user = None;
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
            let status = StatusFile::open(&path).unwrap();
            status.0.0.update(|state| state.held += 1);
            assert!(status.0.0.flush(LONG));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
            status.0.0.update(|state| state.held -= 1);
        }
        let given_up_at = database_locks_core::clock::time_since_boot() + LONG;
        while files().contains_key(&file::real(&path)) {
            assert!(
                database_locks_core::clock::time_since_boot() < given_up_at,
                "its thread never ends"
            );
            thread::yield_now();
        }
    }
}
