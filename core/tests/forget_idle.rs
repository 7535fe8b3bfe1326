//! Idle names are forgotten in the background, where that was asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    Capabilities, Claim, Error, ErrorKind, LeaseInfo, ListQuery, LockBackend, Locks, Release,
    Released, Renewal, Renewed, Result, Verdict, async_trait,
};
use tokio::time::sleep;

const DAY: Duration = Duration::from_hours(24);

/// A store that has some thousands of idle names from the start, and nothing else.
#[derive(Debug, Default)]
struct Idle {
    asked: Mutex<Vec<Duration>>,
    failures: AtomicUsize,
}

impl Idle {
    fn asked(&self) -> usize {
        self.asked.lock().expect("nobody panics").len()
    }
}

#[async_trait]
impl LockBackend for Idle {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("idle")
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        Ok(vec![Verdict::Skipped; claims.len()])
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        Ok(vec![Renewed::Skipped; renewals.len()])
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        Ok(vec![Released::Skipped; releases.len()])
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
        Ok(Vec::new())
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let asked = {
            let mut asked = self.asked.lock().expect("nobody panics");
            asked.push(idle);
            asked.len()
        };
        match asked {
            1 | 2 => Ok(1_000),
            4 => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(Error::new(ErrorKind::Unavailable, "away"))
            }
            5 => panic!("a panic that the test asks for"),
            _ => Ok(0),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_names_are_forgotten_again_and_again_until_the_locks_end() {
    let store = Arc::new(Idle::default());
    let builder = Locks::builder().on_current_runtime().forget_idle(DAY);
    let locks = builder.build(Arc::clone(&store) as Arc<dyn LockBackend>).unwrap();
    sleep(Duration::from_mins(29)).await;
    assert_eq!(store.asked(), 0, "not as soon as it starts, as all processes of a host might");
    // A round goes on until nothing is left.
    sleep(Duration::from_mins(62)).await;
    assert!(store.asked() >= 3, "{}", store.asked());
    // A failure or a panic ends a round, and not those that come after it.
    sleep(Duration::from_hours(5)).await;
    assert_eq!(store.failures.load(Ordering::Relaxed), 1);
    let asked = store.asked();
    assert!((6..=15).contains(&asked), "{asked} in six and a half hours");
    assert!(store.asked.lock().unwrap().iter().all(|idle| *idle == DAY));
    locks.shutdown().await;
    let asked = store.asked();
    sleep(DAY).await;
    assert_eq!(store.asked(), asked, "the locks have ended");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_unless_that_was_asked_for() {
    let store = Arc::new(Idle::default());
    let builder = Locks::builder().on_current_runtime();
    let locks = builder.build(Arc::clone(&store) as Arc<dyn LockBackend>).unwrap();
    sleep(DAY * 7).await;
    assert_eq!(store.asked(), 0);
    drop(locks);
    let builder = Locks::builder().on_current_runtime().forget_idle(Duration::ZERO);
    let error = builder.build(store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
}
