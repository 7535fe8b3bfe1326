//! How a thread waits for a future, and where it must not.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::task::coop;

use crate::clock::time_since_boot;
use crate::error::{Error, ErrorKind, Result};

/// Waits on this thread until `future`, which needs no runtime, is done.
pub(super) fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    may_wait()?;
    match poll_until(None, future) {
        Some(done) => done,
        None => unreachable!("without a deadline it is waited for"),
    }
}

/// Waits likewise, but gives up after `timeout`, with `None`.
pub(super) fn wait_at_most<T>(
    timeout: Duration,
    future: impl Future<Output = T>,
) -> Result<Option<T>> {
    may_wait()?;
    Ok(poll_until(Some(time_since_boot().saturating_add(timeout)), future))
}

/// Refuses to let a thread wait that runs async tasks.
fn may_wait() -> Result<()> {
    if is_async_worker() {
        return Err(Error::new(
            ErrorKind::InvalidOption,
            "a blocking call would hold up the async tasks of this thread: use the async API here, \
             or put the call into tokio::task::spawn_blocking",
        ));
    }
    Ok(())
}

/// Whether tokio is polling a task on this thread.
///
/// Only then does tokio's budget run out, which makes busy tasks yield. `spawn_blocking` and
/// `block_in_place` lift it, and a mere `Handle::enter` sets none. Tokio has no question for this
/// that is answered without a panic.
fn is_async_worker() -> bool {
    /// More than any budget: tokio's is 128.
    const PLENTY: u32 = 1_000;
    let mut context = Context::from_waker(Waker::noop());
    // Dropped last, this gives back what is spent below.
    let Poll::Ready(_restore) = coop::poll_proceed(&mut context) else {
        return true;
    };
    for _ in 0..PLENTY {
        match coop::poll_proceed(&mut context) {
            Poll::Ready(spent) => spent.made_progress(),
            Poll::Pending => return true,
        }
    }
    false
}

fn poll_until<T>(deadline: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return Some(done);
        }
        if !alarm.wait(deadline) {
            return None;
        }
    }
}

/// Not `thread::park`: whatever else runs on this thread while the future is polled, such as a
/// subscriber of `tracing`, could use up the one token that a thread has.
#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Alarm {
    /// Waits until it has rung since the last time, or until the deadline: false.
    fn wait(&self, deadline: Option<Duration>) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rung = match deadline {
            None => {
                self.bell.wait_while(rung, |rung| !*rung).unwrap_or_else(PoisonError::into_inner)
            }
            Some(deadline) => {
                let left = deadline.saturating_sub(time_since_boot());
                self.bell
                    .wait_timeout_while(rung, left, |rung| !*rung)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        std::mem::take(&mut rung)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often tokio lets the caller go on before it has to yield.
    fn budget() -> usize {
        let mut context = Context::from_waker(Waker::noop());
        let mut count = 0;
        while let Poll::Ready(spent) = coop::poll_proceed(&mut context) {
            spent.made_progress();
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn looking_spends_nothing() {
        let untouched = tokio::spawn(async { budget() }).await.unwrap();
        let looked = tokio::spawn(async {
            assert!(is_async_worker());
            budget()
        });
        assert_eq!(looked.await.unwrap(), untouched);
        let spent = tokio::spawn(async {
            budget();
            is_async_worker()
        });
        assert!(spent.await.unwrap(), "also where nothing is left");
    }

    #[test]
    fn a_wake_up_before_the_wait_counts_and_counts_once() {
        let alarm = Arc::new(Alarm::default());
        alarm.wake_by_ref();
        alarm.wake_by_ref();
        assert!(alarm.wait(None));
        assert!(!alarm.wait(Some(Duration::ZERO)));
    }

    #[test]
    fn other_users_of_the_threads_token_take_no_wake_up_away() {
        let mut polls = 0;
        let done = poll_until(
            None,
            std::future::poll_fn(|context| {
                polls += 1;
                if polls == 2 {
                    return Poll::Ready(7);
                }
                context.waker().wake_by_ref();
                std::thread::current().unpark();
                std::thread::park();
                Poll::Pending
            }),
        );
        assert_eq!(done, Some(7));
    }
}
