//! What a readiness endpoint is told, without a word to the database.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_core::{ErrorKind, Locks, LossReason, blocking};
use database_locks_memory::MemoryBackend;
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

fn locks() -> (Arc<FaultyBackend>, Locks, Locks) {
    let store = Arc::new(MemoryBackend::new());
    let faulty = FaultyBackend::new(store.clone());
    let here = Locks::builder().on_current_runtime().build(faulty.clone()).unwrap();
    let there = Locks::builder().on_current_runtime().build(store).unwrap();
    (faulty, here, there)
}

/// How many are held and how many wait, once the engine has heard of all that was dropped.
async fn counts(locks: &Locks) -> (usize, usize) {
    sleep(Duration::from_millis(1)).await;
    let health = locks.health();
    (health.held, health.waiting)
}

#[tokio::test(start_paused = true)]
async fn leases_are_held_from_their_grant_to_whatever_ends_them() {
    let (faulty, here, there) = locks();
    assert_eq!(counts(&here).await, (0, 0));
    let released = here.lock("a").acquire().await.unwrap();
    let dropped = here.lock("b").acquire().await.unwrap();
    assert_eq!(here.health().held, 2);
    released.release().await.unwrap();
    assert_eq!(here.health().held, 1);
    drop(dropped);
    assert_eq!(here.health().held, 0);

    let joined = || async { here.lock("c").owner("w").acquire().await.unwrap() };
    let (first, second) = (joined().await, joined().await);
    assert_eq!(here.health().held, 1, "they share a lease");
    drop(first);
    assert_eq!(here.health().held, 1);
    // Another share of the same owner supersedes it.
    let reader = here.rwlock("c").read().owner("w").acquire().await.unwrap();
    assert_eq!(second.check().unwrap_err().loss(), Some(LossReason::Superseded));
    assert_eq!(here.health().held, 1);
    drop((second, reader));
    assert_eq!(here.health().held, 0);

    let forced = here.lock("d").acquire().await.unwrap();
    assert!(there.force_release(forced.lease().id()).await.unwrap());
    forced.lost().await;
    assert_eq!(here.health().held, 0, "its guard is still there");
    drop(forced);

    faulty.always(Verb::Renew, Fault::Refuse);
    let expired = here.lock("e").acquire().await.unwrap();
    assert_eq!(expired.lost().await, LossReason::Expired);
    drop(expired);
    assert_eq!(counts(&here).await, (0, 0));

    let handed_over = here.lock("f").acquire().await.unwrap();
    let next = tokio::spawn(here.lock("f").acquire());
    assert_eq!(counts(&here).await, (1, 1));
    handed_over.release().await.unwrap();
    let next = next.await.unwrap().unwrap();
    assert_eq!(counts(&here).await, (1, 0));
    here.shutdown().await;
    assert_eq!(counts(&here).await, (0, 0));
    drop(next);
    assert_eq!(counts(&here).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_until_they_are_told_or_have_gone() {
    let (faulty, here, there) = locks();
    let held = there.lock("x").ttl(HOUR).acquire().await.unwrap();
    let waiting = tokio::spawn(here.lock("x").acquire());
    let abandoned = tokio::spawn(here.lock("x").acquire());
    let timed_out = tokio::spawn(here.lock("x").timeout(10 * SECOND).acquire());
    assert_eq!(counts(&here).await, (0, 3));
    assert!(here.lock("x").try_acquire().await.unwrap().is_none());
    assert_eq!(here.health().waiting, 3);
    abandoned.abort();
    assert_eq!(counts(&here).await, (0, 2));
    assert_eq!(timed_out.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(here.health().waiting, 1);
    held.release().await.unwrap();
    let guard = waiting.await.unwrap().unwrap();
    assert_eq!((here.health().held, here.health().waiting), (1, 0));

    faulty.always(Verb::Acquire, Fault::Hang);
    let shut_out = tokio::spawn(here.lock("y").acquire());
    assert_eq!(counts(&here).await, (1, 1));
    here.shutdown().await;
    shut_out.await.unwrap().unwrap_err();
    here.lock("z").acquire().await.unwrap_err();
    assert_eq!(counts(&here).await, (0, 0));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_of_until_the_database_is_back() {
    let (faulty, here, _) = locks();
    let health = here.health();
    assert!(health.is_ready() && health.outage.is_none() && health.answered.is_none());
    let guard = here.lock("x").ttl(HOUR).acquire().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(here.health().answered, Some(SECOND));

    faulty.always(Verb::Acquire, Fault::Hang);
    let asking = tokio::spawn(here.lock("y").acquire());
    sleep(6 * SECOND).await;
    let first = here.health().outage.expect("the first request had no answer in time");
    assert!(first.lasted <= SECOND && first.error.to_string().contains("5s"), "{first:?}");
    for verb in [Verb::Acquire, Verb::Renew] {
        faulty.always(verb, Fault::Refuse);
    }
    sleep(60 * SECOND).await;
    let health = here.health();
    assert!(!health.is_ready() && health.running);
    assert_eq!(health.answered, Some(67 * SECOND));
    let later = health.outage.unwrap();
    assert_eq!(later.lasted, first.lasted + 60 * SECOND);
    assert!(later.error.to_string().contains("refused"), "{later:?}");
    assert_eq!(health.held, 1);

    faulty.heal(Verb::Acquire);
    asking.await.unwrap().unwrap().release().await.unwrap();
    let health = here.health();
    assert!(health.is_ready() && health.outage.is_none());
    assert_eq!(health.answered, Some(Duration::ZERO));
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_says_whether_hints_arrive() {
    let (faulty, here, there) = locks();
    faulty.always(Verb::Wakeups, Fault::Refuse);
    let held = there.lock("x").acquire().await.unwrap();
    assert!(!here.health().listening);
    let waiting = tokio::spawn(here.lock("x").acquire());
    sleep(SECOND).await;
    assert!(!here.health().listening, "it cannot");
    faulty.heal(Verb::Wakeups);
    sleep(20 * SECOND).await;
    assert!(here.health().listening);
    held.release().await.unwrap();
    drop(waiting.await.unwrap().unwrap());
    here.shutdown().await;
    assert!(!here.health().listening);
}

#[tokio::test(start_paused = true)]
async fn locks_that_have_ended_are_not_ready() {
    let (_, here, _) = locks();
    let twin = blocking::Locks::from(here.clone());
    assert!(twin.health().is_ready());
    timeout(SECOND, here.shutdown()).await.unwrap();
    let health = twin.health();
    assert!(!health.running && !health.is_ready() && health.outage.is_none());
}
