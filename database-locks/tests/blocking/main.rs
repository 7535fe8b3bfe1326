//! Locks without async: what they do, and where they refuse to wait.

mod contexts;
#[cfg(all(feature = "mysql", feature = "postgres"))]
mod servers;
mod twins;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use database_locks::blocking::Locks;
use database_locks_memory::MemoryBackend;

/// Longer than anything here takes on a busy machine, so that a deadlock fails instead of hanging.
const LONG: Duration = Duration::from_secs(30);

fn locks() -> Locks {
    Locks::new(MemoryBackend::new())
}

/// What `work` gives on a thread of its own, which no runtime knows of.
#[track_caller]
fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = done.send(work());
    });
    match answer.recv_timeout(LONG) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the thread hangs"),
    }
}
