//! Locks that are switched off: nothing is asked of a database, and nothing else is different.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    Capabilities, Claim, ErrorKind, LeaseInfo, ListQuery, LockBackend, Locks, LossReason, Release,
    Released, Renewal, Renewed, Result, Verdict, async_trait,
};
use tokio::time::sleep;

/// A database that must not be asked.
#[derive(Debug)]
struct Forbidden;

#[async_trait]
impl LockBackend for Forbidden {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("forbidden")
    }

    async fn acquire(&self, _: &[Claim]) -> Result<Vec<Verdict>> {
        panic!("asked for a lock")
    }

    async fn renew(&self, _: &[Renewal]) -> Result<Vec<Renewed>> {
        panic!("asked for a renewal")
    }

    async fn release(&self, _: &[Release]) -> Result<Vec<Released>> {
        panic!("asked for a release")
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
        panic!("asked for a list")
    }

    async fn clean_up(&self, _: Duration) -> Result<u64> {
        panic!("asked to clean up")
    }
}

fn disabled() -> Locks {
    Locks::builder()
        .disabled(true)
        .on_current_runtime()
        .build(Arc::new(Forbidden))
        .expect("a runtime")
}

#[tokio::test]
async fn everything_is_granted_at_once_under_tokens_that_grow() {
    let locks = disabled();
    assert!(!locks.is_enabled());
    let first = locks.lock("x").acquire().await.unwrap();
    let second = locks.lock("x").try_acquire().await.unwrap().expect("granted as well");
    let third = locks.semaphore("x", 3).permits(2).acquire().await.unwrap();
    assert!(first.token() < second.token() && second.token() < third.token());
    let done = locks.lock("x").run(async |lease| lease.token()).await.unwrap();
    assert!(done > third.token());
    first.release().await.unwrap();
    assert_eq!(locks.clean_up(Duration::ZERO).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_connected() {
    let connect = async { panic!("connected") };
    let locks = Locks::builder().disabled(true).open(connect).await.unwrap();
    locks.lock("x").acquire().await.unwrap().release().await.unwrap();
    locks.shutdown().await;
}

#[tokio::test]
async fn the_switch_can_be_on() {
    let connect = async { Ok(Arc::new(Forbidden) as Arc<dyn LockBackend>) };
    let locks = Locks::builder().disabled(false).open(connect).await.unwrap();
    assert!(locks.is_enabled());
    assert_eq!(locks.capabilities().backend, "forbidden");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_lost_by_shutdown_alone() {
    let locks = disabled();
    let second = Duration::from_secs(1);
    let held = locks.lock("x").ttl(second).auto_renew(false).acquire().await.unwrap();
    let other = locks.rwlock("y").read().owner("me").acquire().await.unwrap();
    let _superseding = locks.lock("y").owner("me").acquire().await.unwrap();
    sleep(Duration::from_hours(48)).await;
    assert_eq!(held.remaining(), None);
    held.check().unwrap();
    other.check().unwrap();
    assert!(!locks.force_release(held.lease().id()).await.unwrap());
    held.check().unwrap();
    assert!(locks.list("").await.unwrap().is_empty());
    locks.shutdown().await;
    assert_eq!(held.lost().await, LossReason::Shutdown);
    assert_eq!(held.check().unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn an_explicit_owner_joins_all_the_same() {
    let locks = disabled();
    let outer = locks.lock("x").owner("me").acquire().await.unwrap();
    let inner = locks.lock("x").owner("me").acquire().await.unwrap();
    assert_eq!(inner.token(), outer.token());
    inner.release().await.unwrap();
    outer.check().unwrap();
}

#[tokio::test]
async fn options_are_checked_all_the_same() {
    let locks = disabled();
    let bad_name = locks.lock("").acquire().await.unwrap_err();
    assert_eq!(bad_name.kind(), ErrorKind::InvalidName);
    let bad_ttl = locks.lock("x").ttl(Duration::ZERO).acquire().await.unwrap_err();
    assert_eq!(bad_ttl.kind(), ErrorKind::InvalidOption);
}

#[tokio::test]
async fn it_warns_once() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    // The engine runs on this thread too, so that this sees all that it says.
    let _listening = tracing::subscriber::set_default(subscriber);
    // Where another test's thread says its first word at this very moment, tracing may take it that nobody listens.
    for _ in 0..10 {
        let locks = disabled();
        for _ in 0..3 {
            locks.lock("x").acquire().await.unwrap().release().await.unwrap();
        }
        locks.shutdown().await;
        if !log.0.lock().unwrap().is_empty() {
            break;
        }
        tracing::callsite::rebuild_interest_cache();
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("locks are switched off"), "{log}");
}
