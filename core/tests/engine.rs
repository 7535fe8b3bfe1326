//! What the engine does when, on paused time, so that the moments are exact: above all the holder
//! gives up first, at its deadline, counted from before it asked, whatever the network does.

#![expect(clippy::disallowed_methods, reason = "the runtime's paused clock is what is tested on")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Capabilities, Claim, ErrorKind, LeaseInfo, ListQuery, LockBackend, LockName, Locks,
    LocksBuilder, LossReason, Release, Released, Renewal, Renewed, Result, Ttl, Verdict,
    async_trait,
};
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(10);
const MARGIN: Duration = Duration::from_secs(1);
/// What the runtime's timers are rounded up to.
const TICK: Duration = Duration::from_millis(2);

/// One name, on the runtime's clock. Claims take a while, and renewals never end.
#[derive(Debug)]
struct Hanging {
    start: Instant,
    claims_take: Duration,
    claims: AtomicU32,
    renewals: AtomicU32,
    ledger: Mutex<Ledger>,
}

impl Hanging {
    fn new(claims_take: Duration) -> Self {
        let start = Instant::now();
        Self {
            start,
            claims_take,
            claims: AtomicU32::new(0),
            renewals: AtomicU32::new(0),
            ledger: Mutex::default(),
        }
    }

    /// How many claims have arrived.
    fn asked(&self) -> u32 {
        self.claims.load(Ordering::Relaxed)
    }

    /// How many leases live.
    fn held(&self) -> usize {
        let name = LockName::new("x").expect("a name");
        let ledger = self.ledger.lock().expect("nobody panics");
        ledger.list(&name, self.start.elapsed()).len()
    }
}

#[async_trait]
impl LockBackend for Hanging {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("hanging")
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.claims.fetch_add(1, Ordering::Relaxed);
        let verdicts = {
            let mut ledger = self.ledger.lock().expect("nobody panics");
            claims.iter().map(|claim| ledger.acquire(claim, self.start.elapsed(), 1)).collect()
        };
        sleep(self.claims_take).await;
        Ok(verdicts)
    }

    async fn renew(&self, _: &[Renewal]) -> Result<Vec<Renewed>> {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let mut ledger = self.ledger.lock().expect("nobody panics");
        Ok(releases.iter().map(|one| ledger.release(one, self.start.elapsed()).0).collect())
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
        Ok(Vec::new())
    }

    async fn clean_up(&self, _: Duration) -> Result<u64> {
        Ok(0)
    }
}

fn locks(claims_take: Duration) -> (Arc<Hanging>, Locks) {
    let backend = Arc::new(Hanging::new(claims_take));
    let locks = Locks::builder().on_current_runtime().build(backend.clone()).expect("a runtime");
    (backend, locks)
}

#[tokio::test(start_paused = true)]
async fn a_hung_renewal_does_not_delay_the_loss() {
    for auto_renew in [true, false] {
        let (_, locks) = locks(Duration::ZERO);
        let asked = Instant::now();
        let request = locks.lock("x").ttl(TTL).margin(MARGIN).auto_renew(auto_renew);
        let guard = request.acquire().await.unwrap();
        assert_eq!(guard.lost().await, LossReason::Expired);
        let after = asked.elapsed();
        assert!(after >= TTL - MARGIN && after <= TTL - MARGIN + TICK, "{auto_renew}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_counted_from_before_the_request() {
    let (_, locks) = locks(Duration::from_secs(3));
    let asked = Instant::now();
    let guard = locks.lock("x").ttl(TTL).margin(MARGIN).acquire().await.unwrap();
    assert_eq!(asked.elapsed().as_secs(), 3);
    guard.lost().await;
    let after = asked.elapsed();
    assert!(after <= TTL - MARGIN + TICK, "{after:?}");
    assert_eq!(guard.check().unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_default_says_when_renewals_are_due() {
    let second = Duration::from_secs(1);
    for (options, due) in [
        (Locks::builder(), false),
        (Locks::builder().default_renew_before(second * 9), true),
        (Locks::builder().default_ttl(second * 30).default_renew_before(second * 9), false),
        (Locks::builder().default_ttl(second * 30).default_renew_before(second * 29), true),
    ] {
        let backend = Arc::new(Hanging::new(Duration::ZERO));
        let locks = options.on_current_runtime().build(backend.clone()).unwrap();
        let _guard = locks.lock("x").acquire().await.unwrap();
        sleep(second + TICK).await;
        assert_eq!(backend.renewals.load(Ordering::Relaxed) > 0, due);
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_gives_way_to_a_shorter_ttl_and_to_a_choice() {
    let second = Duration::from_secs(1);
    let options = Locks::builder().default_renew_before(second * 9).on_current_runtime();
    let locks = options.build(Arc::new(Hanging::new(Duration::ZERO))).unwrap();
    locks.lock("x").ttl(second).acquire().await.unwrap().release().await.unwrap();
    let chosen = locks.lock("x").renew_before(second * 10).acquire().await.unwrap_err();
    assert_eq!(chosen.kind(), ErrorKind::InvalidOption);
}

#[test]
fn a_default_that_does_not_fit_the_default_ttl_is_refused() {
    let build = |options: LocksBuilder| options.build(Arc::new(Hanging::new(Duration::ZERO)));
    let second = Duration::from_secs(1);
    for options in [
        Locks::builder().default_renew_before(second * 10),
        Locks::builder().default_renew_before(second).default_ttl(second),
    ] {
        assert_eq!(build(options).unwrap_err().kind(), ErrorKind::InvalidOption);
    }
    let endless = Locks::builder().default_ttl(Ttl::Infinite).default_renew_before(second * 99);
    build(endless).unwrap();
}

#[tokio::test(start_paused = true)]
async fn work_is_dropped_at_the_deadline() {
    let (_, locks) = locks(Duration::ZERO);
    let work = locks.lock("x").ttl(TTL).run(async |_| std::future::pending::<()>().await);
    let error = timeout(TTL, work).await.expect("dropped before the server's expiry").unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_has_gone_asks_no_more() {
    let (backend, locks) = locks(Duration::ZERO);
    let minutes = Duration::from_mins(10);
    let _held = locks.lock("x").ttl(minutes * 2).acquire().await.unwrap();
    let waiting = timeout(Duration::from_secs(60), locks.lock("x").acquire());
    assert!(waiting.await.is_err());
    let asked = backend.asked();
    assert!(asked > 2, "it did ask while it waited");
    // It may have left at the very moment at which it was to ask: that one claim is on its way.
    sleep(TICK).await;
    let landed = backend.asked();
    assert!(landed <= asked + 1, "{landed} after {asked}");
    sleep(minutes).await;
    assert_eq!(backend.asked(), landed);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_before_it_is_answered_asks_no_more() {
    let (backend, locks) = locks(Duration::from_secs(3));
    let minutes = Duration::from_mins(10);
    let _held = locks.lock("x").ttl(minutes * 2).acquire().await.unwrap();
    let waiting = timeout(Duration::from_secs(1), locks.lock("x").acquire());
    assert!(waiting.await.is_err());
    assert_eq!(backend.asked(), 2, "the holder's claim, and one that is on its way");
    sleep(minutes).await;
    assert_eq!(backend.asked(), 2);
    assert_eq!(backend.held(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_after_the_timeout_is_released() {
    let (backend, locks) = locks(Duration::from_secs(3));
    let request = locks.lock("x").ttl(Ttl::Infinite).timeout(Duration::from_secs(2));
    let error = request.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "it was not answered: {error}");
    assert_eq!(backend.held(), 1, "the server has granted it");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(backend.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_twice_leaves_no_lease_behind() {
    let (backend, locks) = locks(Duration::from_secs(3));
    let request = locks.lock("x").ttl(Ttl::Infinite);
    let asking = tokio::spawn(request.acquire());
    sleep(Duration::from_secs(1)).await;
    tokio::join!(locks.shutdown(), locks.shutdown());
    assert!(asking.await.unwrap().is_err());
    assert_eq!(backend.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_users_is_the_callers_alone() {
    let (_, locks) = locks(Duration::ZERO);
    let held = locks.lock("x").acquire().await.unwrap();
    let request = locks.lock("x").on_wait(|_| panic!("the user's"));
    let waiting = tokio::spawn(request.acquire());
    sleep(Duration::from_secs(1)).await;
    assert!(waiting.await.unwrap_err().is_panic());
    held.check().unwrap();
    held.release().await.unwrap();
    locks.lock("x").acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_view_that_outlives_its_guard_is_no_lock() {
    let (_, locks) = locks(Duration::ZERO);
    let guard = locks.lock("x").acquire().await.unwrap();
    let lease = guard.lease();
    lease.check().unwrap();
    guard.release().await.unwrap();
    assert_eq!(lease.check().unwrap_err().loss(), Some(LossReason::Released));
}

#[test]
fn futures_of_the_interface_are_send() {
    fn send<T: Send>(_: T) {}
    let locks = Locks::new(Hanging::new(Duration::ZERO));
    send(locks.lock("x").acquire());
    send(locks.lock("x").try_acquire());
    send(locks.lock("x").run(async |lease| sleep(lease.remaining().unwrap_or_default()).await));
    send(locks.list(""));
    send(locks.clean_up(TTL));
    send(locks.shutdown());
}
