//! What goes wrong once stays small: an answer that is lost or late, a head that is slow, a panic, a long outage.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "paused clocks and blocked threads are what is tested on"
)]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_core::observer::Event;
use database_locks_core::{
    Capabilities, Claim, Ended, Error, ErrorKind, LeaseInfo, ListQuery, LockBackend, Locks,
    LossReason, Observer, Release, Released, Renewal, Renewed, Result, Retry, Ttl, Verdict, Wakeup,
    Wakeups, async_trait,
};
use database_locks_memory::MemoryBackend;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
/// For what happens on a real clock, on a machine of any slowness.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store, two engines on it, and what spoils the calls of the first.
struct Scene {
    store: Arc<MemoryBackend>,
    faulty: Arc<FaultyBackend>,
    here: Locks,
    there: Locks,
}

impl Scene {
    fn new() -> Self {
        let store = Arc::new(MemoryBackend::new());
        let faulty = FaultyBackend::new(Arc::clone(&store) as Arc<dyn LockBackend>);
        let locks = |backend: Arc<dyn LockBackend>| {
            Locks::builder().on_current_runtime().build(backend).unwrap()
        };
        let (here, there) = (locks(faulty.clone()), locks(store.clone()));
        Self { store, faulty, here, there }
    }

    async fn held(&self) -> usize {
        self.store.list(&ListQuery::new("")).await.unwrap().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_does_not_starve_those_behind_it() {
    let scene = Scene::new();
    scene.faulty.always(Verb::Wakeups, Fault::Refuse);
    let held = scene.there.lock("x").acquire().await.unwrap();
    let slow = scene.here.lock("x").retry(Retry::Every(HOUR));
    let slow = tokio::spawn(slow.run(async |_| ()));
    sleep(SECOND).await;
    let quick = tokio::spawn(scene.here.lock("x").timeout(5 * SECOND).acquire());
    sleep(SECOND).await;
    held.release().await.unwrap();
    quick.await.unwrap().unwrap().release().await.unwrap();
    slow.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_behind_others_is_told_who_holds_it() {
    let scene = Scene::new();
    let held = scene.there.lock("x").acquire().await.unwrap();
    let _head = tokio::spawn(scene.here.lock("x").acquire());
    sleep(SECOND).await;
    let error = scene.here.lock("x").timeout(SECOND).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains(&held.token().to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_dead_on_arrival_is_not_handed_out() {
    for late in [2_500, 1_900] {
        let scene = Scene::new();
        let late = Duration::from_millis(late);
        scene.faulty.once(Verb::Acquire, Fault::DelayAnswer(late));
        let asked = Instant::now();
        let guard = scene.here.lock("x").ttl(2 * SECOND).acquire().await.unwrap();
        assert!(asked.elapsed() >= late);
        guard.check().unwrap();
        assert!(guard.remaining().unwrap() > SECOND, "{:?}", guard.remaining());
        guard.release().await.unwrap();
        assert_eq!(scene.held().await, 0);
    }
}

/// On a real clock, with the engine on a thread that is blocked, so that only a look at the clock can tell.
#[tokio::test]
async fn work_under_a_lost_lease_is_not_begun() {
    let store = Arc::new(MemoryBackend::new());
    let locks = Locks::builder().on_current_runtime().build(store).unwrap();
    let guard = locks.lock("x").ttl(Ttl::MIN).acquire().await.unwrap();
    thread::sleep(Ttl::MIN);
    let begun = AtomicBool::new(false);
    let error = guard.run(async { begun.store(true, Ordering::Relaxed) }).await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Expired));
    assert!(!begun.into_inner());
}

#[tokio::test(start_paused = true)]
async fn a_share_in_a_lost_lease_is_not_released_as_if_nothing_had_happened() {
    let scene = Scene::new();
    let first = scene.here.lock("x").owner("w").acquire().await.unwrap();
    let second = scene.here.lock("x").owner("w").acquire().await.unwrap();
    let third = scene.here.lock("x").owner("w").acquire().await.unwrap();
    first.release().await.unwrap();
    scene.faulty.always(Verb::Renew, Fault::Refuse);
    second.lost().await;
    for guard in [second, third] {
        assert_eq!(guard.release().await.unwrap_err().loss(), Some(LossReason::Expired));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_superseded_by_a_request_that_has_gone_is_lost_at_once() {
    let scene = Scene::new();
    let held = scene.here.lock("x").ttl(HOUR).owner("w").acquire().await.unwrap();
    scene.faulty.once(Verb::Acquire, Fault::DelayAnswer(SECOND));
    let other = scene.here.rwlock("x").read().owner("w");
    assert!(timeout(SECOND / 2, other.acquire()).await.is_err());
    sleep(2 * SECOND).await;
    assert_eq!(held.check().unwrap_err().loss(), Some(LossReason::Superseded));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_a_shutdown_overtakes_is_no_loss() {
    for _ in 0..20 {
        let scene = Scene::new();
        let guard = scene.here.lock("x").acquire().await.unwrap();
        let (released, ()) = tokio::join!(guard.release(), scene.here.shutdown());
        released.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_tells_of_its_release_too() {
    let scene = Scene::new();
    let guard = scene.here.lock("x").acquire().await.unwrap();
    let lease = guard.lease();
    let ended = tokio::spawn(async move { lease.ended().await });
    sleep(SECOND).await;
    guard.release().await.unwrap();
    assert_eq!(ended.await.unwrap(), Ended::Released);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_not_heard_of_is_given_back_after_a_long_outage() {
    for ttl in [Ttl::new(HOUR).unwrap(), Ttl::Infinite] {
        let scene = Scene::new();
        scene.faulty.once(Verb::Acquire, Fault::LoseAnswer);
        scene.faulty.always(Verb::Acquire, Fault::Refuse);
        let request = scene.here.lock("x").ttl(ttl).timeout(5 * SECOND);
        assert_eq!(request.acquire().await.unwrap_err().kind(), ErrorKind::Unavailable);
        sleep(300 * SECOND).await;
        assert_eq!(scene.held().await, 1);
        scene.faulty.heal(Verb::Acquire);
        sleep(10 * SECOND).await;
        assert_eq!(scene.held().await, 0, "{ttl:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_gets_through_after_a_long_outage() {
    let scene = Scene::new();
    let guard = scene.here.lock("x").ttl(HOUR).acquire().await.unwrap();
    scene.faulty.always(Verb::Release, Fault::Refuse);
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    sleep(300 * SECOND).await;
    assert_eq!(scene.held().await, 1);
    scene.faulty.heal(Verb::Release);
    sleep(10 * SECOND).await;
    assert_eq!(scene.held().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_during_an_outage_ends() {
    let scene = Scene::new();
    let guard = scene.here.lock("x").ttl(Ttl::Infinite).acquire().await.unwrap();
    scene.faulty.always(Verb::Release, Fault::Refuse);
    drop(guard);
    let began = Instant::now();
    scene.here.shutdown().await;
    assert!(began.elapsed() < 90 * SECOND, "{:?}", began.elapsed());
}

/// What an observer was told, without repetitions.
#[derive(Debug, Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Observer for Told {
    fn on(&self, event: Event<'_>) {
        let event = format!("{event:?}").split(' ').next().unwrap().to_owned();
        let mut told = self.0.lock().unwrap();
        if told.last() != Some(&event) {
            told.push(event);
        }
    }
}

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn observers_hear_of_an_outage_its_end_and_of_renewals() {
    let (scene, told) = (Scene::new(), Told::default());
    let builder = Locks::builder().on_current_runtime().observer(told.clone());
    let locks = builder.build(scene.faulty.clone()).unwrap();
    let guard = locks.lock("x").ttl(60 * SECOND).acquire().await.unwrap();
    assert_eq!(told.take(), ["Started", "Waiting", "Granted"]);
    scene.faulty.always(Verb::Renew, Fault::Refuse);
    sleep(40 * SECOND).await;
    assert_eq!(told.take(), ["Away", "RenewalFailed"]);
    scene.faulty.heal(Verb::Renew);
    sleep(10 * SECOND).await;
    assert_eq!(told.take(), ["Back", "Renewed"]);

    assert!(locks.lock("x").try_acquire().await.unwrap().is_none());
    assert_eq!(told.take(), ["Waiting", "Busy", "NotGranted"]);
    locks.lock("x").timeout(SECOND).acquire().await.unwrap_err();
    assert_eq!(told.take(), ["Waiting", "Busy", "NotGranted"]);
    guard.release().await.unwrap();
    assert_eq!(told.take(), ["Released"]);
}

/// A store that has few connections, and claims to some names of which hang on them.
#[derive(Debug)]
struct Pooled {
    store: MemoryBackend,
    connections: Semaphore,
}

const CONNECTIONS: usize = 4;

#[async_trait]
impl LockBackend for Pooled {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities().with_max_in_flight(CONNECTIONS)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        let _connection = self.connections.acquire().await.unwrap();
        if claims.iter().any(|claim| claim.name.as_str().starts_with("stuck")) {
            std::future::pending::<()>().await;
        }
        self.store.acquire(claims).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let _connection = self.connections.acquire().await.unwrap();
        self.store.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_hang_leave_releases_a_connection() {
    let store = MemoryBackend::new();
    let pooled = Pooled { store, connections: Semaphore::new(CONNECTIONS) };
    let locks = Locks::builder().on_current_runtime().build(Arc::new(pooled)).unwrap();
    let guard = locks.lock("x").acquire().await.unwrap();
    for i in 0..CONNECTIONS * 2 {
        tokio::spawn(locks.lock(format!("stuck {i}")).acquire());
        sleep(Duration::from_millis(1)).await;
    }
    timeout(Duration::from_millis(1), guard.release()).await.expect("there is one").unwrap();
}

/// A store that does what the first call of a verb asks, and then says that it failed for good.
#[derive(Debug)]
struct Refusing {
    store: Arc<MemoryBackend>,
    refused: AtomicBool,
}

#[async_trait]
impl LockBackend for Refusing {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        let verdicts = self.store.acquire(claims).await?;
        if self.refused.swap(true, Ordering::Relaxed) {
            return Ok(verdicts);
        }
        Err(Error::new(ErrorKind::Backend, "the reply cannot be read"))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.store.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_of_a_claim_that_failed_for_good_is_found_out() {
    let store = Arc::new(MemoryBackend::new());
    let refusing = Refusing { store: Arc::clone(&store), refused: AtomicBool::new(false) };
    let locks = Locks::builder().on_current_runtime().build(Arc::new(refusing)).unwrap();
    let error = locks.lock("x").ttl(Ttl::Infinite).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    sleep(10 * SECOND).await;
    assert!(store.list(&ListQuery::new("")).await.unwrap().is_empty());
}

/// Panics where it is dropped: when the engine waits no longer.
struct Landmine;

impl Future for Landmine {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Drop for Landmine {
    fn drop(&mut self) {
        panic!("a panic that the test asks for");
    }
}

#[derive(Debug)]
struct Mined(MemoryBackend);

#[async_trait]
impl LockBackend for Mined {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.0.acquire(claims).await
    }

    async fn renew(&self, _: &[Renewal]) -> Result<Vec<Renewed>> {
        Landmine.await;
        Ok(Vec::new())
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.0.release(releases).await
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
        panic!("a panic that the test asks for");
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.0.clean_up(idle).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_backend_is_told_to_the_holders_and_hangs_nobody() {
    let builder = Locks::builder().on_current_runtime();
    let locks = builder.build(Arc::new(Mined(MemoryBackend::new()))).unwrap();
    let error = locks.list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    let guard = locks.lock("x").ttl(10 * SECOND).acquire().await.unwrap();
    assert_eq!(timeout(9 * SECOND, guard.lost()).await, Ok(LossReason::Shutdown));
    timeout(SECOND, locks.shutdown()).await.unwrap();
    locks.lock("y").acquire().await.unwrap_err();
}

/// A store whose hints end in a panic: first those of a stream, then what would make one.
#[derive(Debug, Default)]
struct Startling {
    store: MemoryBackend,
    listened: AtomicUsize,
}

#[async_trait]
impl LockBackend for Startling {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.store.acquire(claims).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.store.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        if self.listened.fetch_add(1, Ordering::Relaxed) > 0 {
            startle().await;
        }
        let listening = stream::iter([Wakeup::Listening]);
        Ok(Some(Wakeups::new(listening.chain(stream::once(startle())))))
    }
}

async fn startle() -> Wakeup {
    sleep(60 * SECOND).await;
    panic!("a panic that the test asks for")
}

#[tokio::test(start_paused = true)]
async fn a_panic_among_the_hints_ends_these_and_polls_are_quick_again() {
    let startling = Arc::new(Startling::default());
    let there = Locks::builder().on_current_runtime().build(Arc::new(startling.store.clone()));
    let held = there.unwrap().lock("x").ttl(HOUR).acquire().await.unwrap();
    let builder = Locks::builder().on_current_runtime();
    let here = builder.build(Arc::clone(&startling) as Arc<dyn LockBackend>).unwrap();
    let waiting = tokio::spawn(here.lock("x").acquire());
    sleep(150 * SECOND).await;
    let listened = startling.listened.load(Ordering::Relaxed);
    assert!(listened >= 3, "it was asked for hints {listened} times");
    let asked = Instant::now();
    held.release().await.unwrap();
    let _guard = waiting.await.unwrap().unwrap();
    assert!(asked.elapsed() < SECOND / 2, "{:?}", asked.elapsed());
}

/// Tells on which thread it is dropped.
struct Dropped(mpsc::Sender<Option<String>>);

impl Dropped {
    fn nothing(&self) {}
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().name().map(str::to_owned));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_the_users_is_not_dropped_by_the_engine() {
    let store = Arc::new(MemoryBackend::new());
    let locks = Locks::builder().build(store).unwrap();
    let (sender, dropped) = mpsc::channel();
    let told = |what: &str| {
        let thread: Option<String> =
            dropped.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}"));
        assert_ne!(thread.as_deref(), Some("database-locks"), "{what}");
    };
    let request = |name: &str| {
        let (on_wait, on_lost) = (Dropped(sender.clone()), Dropped(sender.clone()));
        locks.lock(name).on_wait(move |_| on_wait.nothing()).on_lost(move |_| drop(on_lost))
    };
    let guard = request("x").acquire().await.unwrap();
    told("on_wait, once it is acquired");
    let waiting = timeout(Duration::from_millis(50), request("x").acquire());
    assert!(waiting.await.is_err());
    told("on_wait, once it has gone");
    told("on_lost, once it has gone");
    guard.release().await.unwrap();
    told("on_lost, after the release");
}
