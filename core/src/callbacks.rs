//! Where callbacks of users run: on threads of their own, since they may block, and whoever has something to tell may be
//! the engine.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};

/// How many threads there are at most: more callbacks than that at once wait for each other.
const MOST_THREADS: usize = 32;
/// How long a thread waits for another callback before it ends.
const IDLE: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;
type Body = Box<dyn FnOnce() + Send>;

/// Calls a callback soon. Where the system has no thread for it, it stays until there is one, which an engine that runs
/// looks for: see [`retry`].
pub(crate) fn call(job: impl FnOnce() + Send + 'static) {
    let threads = THREADS.get_or_init(|| {
        Threads::new(|body| {
            thread::Builder::new().name("database-locks-callbacks".to_owned()).spawn(body).map(drop)
        })
    });
    threads.call(Box::new(job));
}

/// Tries once more to find a thread for what could not be called. Says whether anything is left.
pub(crate) fn retry() -> bool {
    THREADS.get().is_some_and(Threads::retry)
}

static THREADS: OnceLock<Threads> = OnceLock::new();

struct Threads {
    shared: Arc<Shared>,
    /// The last thread that was wanted could not be had.
    is_short: AtomicBool,
    spawn: Box<dyn Fn(Body) -> io::Result<()> + Send + Sync>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    called: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Threads {
    fn new(spawn: impl Fn(Body) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { shared: Arc::default(), is_short: AtomicBool::new(false), spawn: Box::new(spawn) }
    }

    fn call(&self, job: Job) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        self.provide(queue);
    }

    fn retry(&self) -> bool {
        if !self.is_short.load(Ordering::Relaxed) {
            return false;
        }
        let queue = self.shared.lock();
        if queue.jobs.len() <= queue.idle {
            self.is_short.store(false, Ordering::Relaxed);
        } else {
            self.provide(queue);
        }
        self.is_short.load(Ordering::Relaxed)
    }

    /// Sees to it that somebody takes the next job.
    fn provide(&self, mut queue: MutexGuard<'_, Queue>) {
        if queue.jobs.len() <= queue.idle {
            self.shared.called.notify_one();
            return;
        }
        if queue.threads == MOST_THREADS {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.shared);
        let spawned = (self.spawn)(Box::new(move || shared.work()));
        self.is_short.store(spawned.is_err(), Ordering::Relaxed);
        if let Err(error) = spawned {
            self.shared.lock().threads -= 1;
            tracing::error!(%error, "no thread for the on_lost callbacks, will try again");
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                // One that panics must not keep the others from being called, nor what it panics with.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                    std::mem::forget(panic);
                }
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let (next, waited) = self
                .called
                .wait_timeout_while(queue, IDLE, |queue| queue.jobs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            queue = next;
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_is_lost_while_the_system_has_no_threads() {
        let left = Arc::new(AtomicUsize::new(3));
        let threads = Threads::new({
            let left = Arc::clone(&left);
            move |body| match left.load(Ordering::SeqCst) {
                0 => thread::Builder::new().spawn(body).map(drop),
                failures => {
                    left.store(failures - 1, Ordering::SeqCst);
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        });
        let (sender, called) = mpsc::channel();
        for i in 0..2 {
            let sender = sender.clone();
            threads.call(Box::new(move || sender.send(i).expect("somebody listens")));
        }
        assert!(threads.retry(), "there is no thread yet");
        threads.retry();
        for i in 0..2 {
            assert_eq!(called.recv_timeout(PATIENCE), Ok(i));
        }
    }

    #[test]
    fn callbacks_that_block_or_panic_keep_no_others_waiting() {
        let threads = Threads::new(|body| thread::Builder::new().spawn(body).map(drop));
        let (hold, held) = mpsc::channel::<()>();
        threads.call(Box::new(move || held.recv().unwrap_or_default()));
        threads.call(Box::new(|| panic!("the user's")));
        let (sender, called) = mpsc::channel();
        threads.call(Box::new(move || sender.send(()).expect("somebody listens")));
        assert_eq!(called.recv_timeout(PATIENCE), Ok(()));
        drop(hold);
    }

    #[test]
    fn thousands_need_a_few_threads() {
        let spawned = Arc::new(AtomicUsize::new(0));
        let threads = Threads::new({
            let spawned = Arc::clone(&spawned);
            move |body| {
                spawned.fetch_add(1, Ordering::SeqCst);
                thread::Builder::new().spawn(body).map(drop)
            }
        });
        let (sender, called) = mpsc::channel();
        for _ in 0..5_000 {
            let sender = sender.clone();
            threads.call(Box::new(move || sender.send(()).expect("somebody listens")));
        }
        for _ in 0..5_000 {
            called.recv_timeout(PATIENCE).unwrap();
        }
        assert!(spawned.load(Ordering::SeqCst) <= MOST_THREADS);
    }
}
