//! The twins do what the originals do.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use database_locks::blocking::{self, Guard, LockRequest};
use database_locks::{
    Capabilities, Claim, Error, ErrorKind, LeaseInfo, ListQuery, LockBackend, LossReason, Release,
    Released, Renewal, Renewed, Result, Retry, Ttl, Verdict, async_trait,
};
use database_locks_memory::MemoryBackend;

use super::{LONG, locks, on_a_thread};

/// The shortest TTL, so that a loss is learned of soon.
const SHORT: Duration = Ttl::MIN;

#[track_caller]
fn refused(request: LockRequest) {
    assert!(request.try_acquire().expect("an answer").is_none());
}

#[test]
fn a_lock_excludes_and_comes_back_by_release() {
    let locks = locks();
    let first = locks.lock("nightly").acquire().unwrap();
    assert_eq!(first.name().as_str(), "nightly");
    first.check().unwrap();
    assert!(first.remaining().unwrap() > Duration::ZERO);
    refused(locks.lock("nightly"));

    let (token, lease) = (first.token(), first.lease());
    first.release().unwrap();
    assert_eq!(lease.check().unwrap_err().loss(), Some(LossReason::Released));
    let second = locks.lock("nightly").try_acquire().unwrap().expect("it is free");
    assert!(second.token() > token);
}

#[test]
fn readers_share_and_permits_are_counted() {
    let locks = locks();
    let index = locks.rwlock("index");
    let read = || index.read().timeout(LONG).acquire().unwrap();
    let readers = [read(), read()];
    refused(index.write());
    for reader in readers {
        reader.release().unwrap();
    }
    let writer = index.write().acquire().unwrap();
    refused(index.read());
    drop(writer);

    let api = locks.semaphore("api", 3);
    let two = api.permits(2).acquire().unwrap();
    refused(api.permits(2));
    let one = api.permits(1).acquire().unwrap();
    drop((two, one));
}

#[test]
fn a_thread_waits_for_another() {
    let locks = locks();
    let held = locks.lock("x").acquire().unwrap();
    let waiter = locks.clone();
    let (waits, waiting) = mpsc::channel();
    let thread = thread::spawn(move || {
        let request = waiter.lock("x").on_wait(move |_| {
            let _ = waits.send(());
        });
        request.acquire().unwrap().release().unwrap();
    });
    waiting.recv_timeout(LONG).expect("the waiter says that it waits");
    held.release().unwrap();
    on_a_thread(move || thread.join().unwrap());
}

#[test]
fn threads_never_overlap() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 25;
    let (locks, count) = (locks(), Arc::new(AtomicU64::new(0)));
    let threads = (0..THREADS).map(|_| {
        let (locks, count) = (locks.clone(), Arc::clone(&count));
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                let step = |_| {
                    let seen = count.load(Ordering::Relaxed);
                    thread::yield_now();
                    count.store(seen + 1, Ordering::Relaxed);
                };
                locks.lock("count").run(step).unwrap();
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    assert_eq!(count.load(Ordering::Relaxed), THREADS * ROUNDS);
}

#[test]
fn run_works_under_the_lock_and_has_released_it_afterwards() {
    let locks = locks();
    let token = locks
        .lock("x")
        .run(|lease| {
            lease.check().unwrap();
            refused(locks.lock("x"));
            // Locks nest: the thread is not an async worker while it works.
            locks.lock("inner").run(|_| ()).unwrap();
            lease.token()
        })
        .unwrap();
    let next = locks.lock("x").try_acquire().unwrap().expect("the release was waited for");
    assert!(next.token() > token);
}

#[test]
fn run_reports_a_loss_once_the_work_is_done() {
    let locks = locks();
    let mut done = false;
    let error = locks
        .lock("x")
        .ttl(SHORT)
        .run(|lease| {
            assert!(locks.force_release(lease.id()).unwrap());
            assert_eq!(lease.wait_lost(LONG).unwrap(), Some(LossReason::Forced));
            done = true;
        })
        .unwrap_err();
    assert!(done, "nothing interrupts the work");
    assert_eq!((error.kind(), error.loss()), (ErrorKind::Lost, Some(LossReason::Forced)));
}

#[test]
fn a_panic_in_the_work_releases() {
    let locks = locks();
    let work = || locks.lock("x").ttl(Ttl::Infinite).run(|_| resume_unwind(Box::new("planned")));
    assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
    locks.lock("x").timeout(LONG).acquire().unwrap().release().unwrap();
}

#[test]
fn a_wait_for_a_loss_ends_with_it_or_without_one() {
    let locks = locks();
    let guard = locks.lock("x").acquire().unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        let lease = guard.lease();
        assert_eq!(on_a_thread(move || lease.wait_lost(timeout).unwrap()), None);
    }

    let waiter = guard.lease();
    let thread = thread::spawn(move || waiter.wait_lost(Duration::MAX).unwrap());
    locks.shutdown().unwrap();
    assert_eq!(on_a_thread(|| thread.join().unwrap()), Some(LossReason::Shutdown));
    // Who asks late is told at once.
    assert_eq!(guard.wait_lost(Duration::ZERO).unwrap(), Some(LossReason::Shutdown));
}

#[test]
fn callbacks_hear_of_a_loss() {
    let locks = locks();
    let (heard, reasons) = mpsc::channel();
    let (first, second) = (heard.clone(), heard);
    let request = locks.lock("x").ttl(SHORT).on_lost(move |reason| first.send(reason).unwrap());
    let guard = request.acquire().unwrap();
    guard.on_lost(move |reason| second.send(reason).unwrap());
    assert!(locks.force_release(guard.lease().id()).unwrap());
    for _ in 0..2 {
        assert_eq!(reasons.recv_timeout(LONG).unwrap(), LossReason::Forced);
    }
    assert_eq!(guard.release().unwrap_err().loss(), Some(LossReason::Forced));
}

#[test]
fn options_are_handed_on() {
    let locks = locks();
    let held = locks.lock("x").owner("me").ttl(Ttl::Infinite).acquire().unwrap();
    assert_eq!(locks.list("x").unwrap()[0].remaining, None, "ttl");
    let joined = locks.lock("x").owner("me").acquire().unwrap();
    assert_eq!(joined.token(), held.token(), "owner");

    let busy = |request: LockRequest| request.acquire().unwrap_err().kind();
    assert_eq!(busy(locks.lock("x").timeout(Duration::from_millis(20))), ErrorKind::Timeout);
    assert_eq!(busy(locks.lock("x").retry(Retry::Never)), ErrorKind::Timeout);

    let refused = |request: LockRequest| {
        let error = request.acquire().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        error.to_string()
    };
    assert!(refused(locks.lock("y").margin(LONG)).contains("the margin"));
    assert!(refused(locks.lock("y").renew_before(LONG)).contains("renew_before"));
}

#[test]
fn an_expired_lease_is_respected_for_the_grace() {
    let locks = locks();
    let guard = locks.lock("x").ttl(SHORT).auto_renew(false).acquire().unwrap();
    assert_eq!(guard.wait_lost(LONG).unwrap(), Some(LossReason::Expired), "auto_renew");
    while !locks.list("").unwrap().is_empty() {
        thread::yield_now();
    }
    refused(locks.lock("x").grace(Duration::from_hours(1)));
    let taken = locks.lock("x").try_acquire().unwrap();
    assert!(taken.is_some(), "by default there is no grace");
}

#[test]
fn leases_are_listed_ended_and_forgotten() {
    let locks = locks();
    assert_eq!(locks.capabilities().backend, "memory");
    let guards = ["a1", "a2", "b"].map(|name| locks.lock(name).acquire().unwrap());
    let names = |leases: Vec<LeaseInfo>| {
        leases.iter().map(|info| info.lease.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(locks.list("a").unwrap()), ["a1", "a2"]);
    let page = ListQuery::default().with_limit(1);
    assert_eq!(names(locks.list_page(page).unwrap()), ["a1"]);

    let lease = guards[0].lease();
    assert!(locks.force_release(lease.id()).unwrap());
    assert!(!locks.force_release(lease.id()).unwrap(), "it hits nobody else");
    assert_eq!(locks.clean_up(Duration::ZERO).unwrap(), 1);

    locks.shutdown().unwrap();
    assert_eq!(guards[2].check().unwrap_err().loss(), Some(LossReason::Shutdown));
    assert_eq!(locks.lock("a1").acquire().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn dropping_a_guard_waits_for_nothing() {
    let locks = blocking::Locks::new(Silent(MemoryBackend::new()));
    let guard = locks.lock("x").ttl(Ttl::Infinite).acquire().unwrap();
    // A release of this lease would be waited for longer than this thread is.
    on_a_thread(move || drop(guard));
}

#[test]
fn both_apis_share_an_engine() {
    let locks = database_locks::Locks::new(MemoryBackend::new());
    let blocking = blocking::Locks::from(locks.clone());
    let held: Guard = LockRequest::from(locks.lock("x")).acquire().unwrap();
    refused(blocking.lock("x"));
    let back = database_locks::Locks::from(blocking);
    refused(back.lock("x").into());
    held.release().unwrap();
}

#[test]
fn what_a_backend_does_async_needs_no_runtime_here() {
    let pause = || tokio::time::sleep(Duration::from_millis(1));
    let locks = blocking::Locks::open(database_locks::Locks::builder(), async move {
        pause().await;
        Ok(Arc::new(MemoryBackend::new()) as _)
    });
    locks.unwrap().lock("x").acquire().unwrap().release().unwrap();

    let paused = blocking::block_on(async move {
        pause().await;
        Ok(7)
    });
    assert_eq!(paused.unwrap(), 7);
    let error = blocking::block_on::<()>(async { Err(Error::new(ErrorKind::Permission, "no")) });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Permission);
}

#[cfg(feature = "sqlite")]
#[test]
fn a_url_leads_to_locks() {
    use database_locks::blocking::{Connect, Locks, migrate};

    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("locks.db").display());
    migrate(&url).unwrap();
    let locks = Locks::connect(&url).unwrap();
    let options = database_locks::Locks::builder().default_ttl(Ttl::Infinite);
    let endless = Locks::connect_with(&url, options).unwrap();
    let guard = endless.lock("x").acquire().unwrap();
    assert_eq!(locks.list("").unwrap()[0].remaining, None);
    refused(locks.lock("x"));
    guard.release().unwrap();
    for error in [Locks::connect("nowhere").unwrap_err(), migrate("nowhere").unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }
}

/// Never answers a release.
#[derive(Debug)]
struct Silent(MemoryBackend);

#[async_trait]
impl LockBackend for Silent {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.0.acquire(claims).await
    }

    async fn renew(&self, leases: &[Renewal]) -> Result<Vec<Renewed>> {
        self.0.renew(leases).await
    }

    async fn release(&self, _: &[Release]) -> Result<Vec<Released>> {
        std::future::pending().await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.0.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.0.clean_up(idle).await
    }
}
