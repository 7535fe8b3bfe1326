//! What a function under `#[locked]` does that one without it does not.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use database_locks::memory::MemoryBackend;
use database_locks::{ErrorKind, Lease, LeaseId, Locks, LossReason, Retry, Ttl, blocking, locked};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Far more than any test takes, so that one that hangs fails.
const LONG: Duration = Duration::from_secs(60);

fn locks() -> Locks {
    Locks::new(MemoryBackend::new())
}

#[derive(Default)]
struct Counter {
    inside: AtomicBool,
    count: AtomicU32,
}

impl Counter {
    fn enter(&self) {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two are inside");
    }

    fn leave(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        assert!(self.inside.swap(false, Ordering::SeqCst));
    }
}

#[locked("counter", with = locks)]
async fn count(locks: &Locks, counter: &Counter) -> Result<(), Error> {
    counter.enter();
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    counter.leave();
    Ok(())
}

#[locked("counter", with = locks)]
fn count_plainly(locks: &blocking::Locks, counter: &Counter) -> Result<(), Error> {
    counter.enter();
    std::thread::yield_now();
    counter.leave();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_runs_at_a_time() {
    let (locks, counter) = (locks(), Arc::new(Counter::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (locks, counter) = (locks.clone(), Arc::clone(&counter));
        let (plain_locks, plain_counter) =
            (blocking::Locks::from(locks.clone()), Arc::clone(&counter));
        tasks.spawn(async move {
            for _ in 0..25 {
                count(&locks, &counter).await.unwrap();
            }
        });
        tasks.spawn_blocking(move || {
            for _ in 0..25 {
                count_plainly(&plain_locks, &plain_counter).unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(counter.count.load(Ordering::SeqCst), 200);
}

#[derive(Debug)]
enum Failure {
    Lock(database_locks::Error),
    Own,
}

impl From<database_locks::Error> for Failure {
    fn from(error: database_locks::Error) -> Self {
        Self::Lock(error)
    }
}

impl Failure {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Lock(error) => error.kind(),
            Self::Own => panic!("the function itself failed"),
        }
    }
}

#[locked("busy", with = locks, timeout = "20ms", on_wait = move |_| waited.store(true, Ordering::SeqCst))]
async fn with_timeout(locks: &Locks, waited: Arc<AtomicBool>) -> Result<(), Failure> {
    unreachable!("somebody else holds the lock")
}

#[locked("busy", with = locks, retry = "never", timeout = LONG)]
fn asking_once(locks: &Locks) -> Result<(), Failure> {
    unreachable!("somebody else holds the lock")
}

#[test]
fn who_does_not_get_the_lock_returns_an_error_of_its_own_type() {
    let locks = locks();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.block_on(locks.lock("busy").acquire()).unwrap();
    let waited = Arc::new(AtomicBool::new(false));
    let error = runtime.block_on(with_timeout(&locks, Arc::clone(&waited))).unwrap_err();
    assert!(waited.load(Ordering::SeqCst));
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(asking_once(&locks).unwrap_err().kind(), ErrorKind::Timeout);
    runtime.block_on(guard.release()).unwrap();
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[locked(
    "lost",
    with = locks,
    ttl = "1s",
    lease = lease,
    on_lost = move |reason| told.send(reason).expect("somebody listens"),
)]
async fn lose(
    locks: &Locks,
    told: mpsc::Sender<LossReason>,
    dropped: &AtomicBool,
) -> Result<(), Error> {
    let _set = SetWhenDropped(dropped);
    assert!(locks.force_release(lease.id()).await?);
    std::future::pending().await
}

#[tokio::test]
async fn a_lost_lease_stops_the_work() {
    let (told, reason) = mpsc::channel();
    let dropped = AtomicBool::new(false);
    let lost = tokio::time::timeout(LONG, lose(&locks(), told, &dropped)).await.unwrap();
    let error = lost.unwrap_err().downcast::<database_locks::Error>().unwrap();
    assert_eq!((error.kind(), error.lock()), (ErrorKind::Lost, Some("lost")));
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(Some(reason.recv_timeout(LONG).unwrap()), error.loss());
}

#[locked("lost", with = locks, ttl = "100ms", auto_renew = false, lease = lease)]
fn outlive(locks: &blocking::Locks) -> Result<bool, Failure> {
    while lease.check().is_ok() {
        // What is waited for is the clock.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

#[test]
fn a_plain_function_learns_of_the_loss_by_its_lease() {
    assert_eq!(outlive(&locks().into()).unwrap_err().kind(), ErrorKind::Lost);
}

enum Exit {
    Panic,
    Return,
    QuestionMark,
    End,
}

fn fail() -> Result<(), Failure> {
    Err(Failure::Own)
}

#[locked("exits", with = locks)]
async fn leave(locks: &Locks, how: &Exit) -> Result<u32, Failure> {
    match how {
        Exit::Panic => panic!("as asked"),
        Exit::Return => return Ok(1),
        Exit::QuestionMark => fail()?,
        Exit::End => {}
    }
    Ok(2)
}

#[locked("exits", with = locks)]
fn leave_plainly(locks: &Locks, how: &Exit) -> Result<u32, Failure> {
    match how {
        Exit::Panic => panic!("as asked"),
        Exit::Return => return Ok(1),
        Exit::QuestionMark => fail()?,
        Exit::End => {}
    }
    Ok(2)
}

#[test]
fn every_way_out_keeps_its_meaning_and_releases_the_lock() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let locks = locks();
    let free = || runtime.block_on(locks.lock("exits").timeout(LONG).acquire()).is_ok();
    for plain in [false, true] {
        let call = |how| {
            if plain { leave_plainly(&locks, &how) } else { runtime.block_on(leave(&locks, &how)) }
        };
        assert!(matches!(call(Exit::Return), Ok(1)));
        assert!(free());
        assert!(matches!(call(Exit::QuestionMark), Err(Failure::Own)));
        assert!(free());
        assert!(matches!(call(Exit::End), Ok(2)));
        assert!(free());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(Exit::Panic)));
        assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "as asked");
        assert!(free());
    }
}

#[tokio::test]
async fn a_dropped_future_releases_the_lock() {
    #[locked("dropped", with = locks)]
    async fn hang(locks: &Locks, inside: &AtomicBool) -> Result<(), Error> {
        inside.store(true, Ordering::SeqCst);
        std::future::pending().await
    }

    let (locks, inside) = (locks(), AtomicBool::new(false));
    let entered = async {
        while !inside.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = hang(&locks, &inside) => unreachable!("it hangs"),
        () = entered => {}
    }
    let _guard = locks.lock("dropped").timeout(LONG).acquire().await.unwrap();
}

/// What the work mentions of the arguments is moved into it.
#[tokio::test]
async fn arguments_end_before_the_lock_is_released() {
    struct Probe {
        lease: Option<Lease>,
        held: Arc<AtomicBool>,
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            let held = self.lease.as_ref().is_some_and(|lease| lease.check().is_ok());
            self.held.store(held, Ordering::SeqCst);
        }
    }

    #[locked("arguments", with = locks, lease = lease)]
    async fn asynchronous(locks: &Locks, mut probe: Probe) -> Result<(), Error> {
        probe.lease = Some(lease);
        probe.lease.as_ref().map_or(Ok(()), |lease| Ok(lease.check()?))
    }

    #[locked("arguments", with = locks, lease = lease)]
    fn plain(locks: Locks, mut probe: Probe) -> Result<(), Error> {
        probe.lease = Some(lease);
        probe.lease.as_ref().map_or(Ok(()), |lease| Ok(lease.check()?))
    }

    let (locks, held) = (locks(), Arc::new(AtomicBool::new(false)));
    asynchronous(&locks, Probe { lease: None, held: Arc::clone(&held) }).await.unwrap();
    assert!(held.swap(false, Ordering::SeqCst));
    let probe = Probe { lease: None, held: Arc::clone(&held) };
    tokio::task::spawn_blocking(|| plain(locks, probe)).await.unwrap().unwrap();
    assert!(held.load(Ordering::SeqCst));
}

/// The locks live for as long as somebody holds one of them.
#[tokio::test]
async fn locks_may_be_made_for_one_call() {
    async fn connect() -> Result<Locks, Error> {
        Ok(locks())
    }

    #[locked("once", with = connect().await?, ttl = "1s", lease = lease)]
    async fn once() -> Result<(), Error> {
        // Twice the TTL, so that only a lease that is renewed outlives it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(lease.check()?)
    }

    once().await.unwrap();
}

#[tokio::test]
async fn options_reach_the_request() {
    #[locked(
        format!("options-{number}"),
        with = locks,
        ttl = "1m 30s",
        owner = format!("owner-{number}"),
        renew_before = "10s",
        margin = "1s",
        grace = "0s",
        retry = Retry::Every(Duration::from_millis(5)),
        lease = lease,
    )]
    async fn shown(locks: &Locks, number: u32) -> Result<(LeaseId, Option<Duration>), Error> {
        let listed = locks.list("options-").await?;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].lease.owner.to_string(), "owner-7");
        Ok((lease.id().clone(), lease.remaining()))
    }

    let (id, remaining) = shown(&locks(), 7).await.unwrap();
    assert_eq!(id.name.as_str(), "options-7");
    let remaining = remaining.unwrap();
    assert!(remaining > Duration::from_secs(30) && remaining < Duration::from_secs(90));

    #[locked("for ever", with = locks, ttl = "infinite", lease = lease)]
    async fn for_ever(locks: &Locks) -> Result<Option<Duration>, Error> {
        Ok(lease.remaining())
    }
    assert_eq!(for_ever(&locks()).await.unwrap(), None);

    #[locked("an expression", with = locks, ttl = ttl, lease = lease)]
    async fn expression(locks: &Locks, ttl: Ttl) -> Result<Option<Duration>, Error> {
        Ok(lease.remaining())
    }
    assert_eq!(expression(&locks(), Ttl::Infinite).await.unwrap(), None);
}

#[test]
fn an_option_that_cannot_be_is_an_error_and_the_body_does_not_run() {
    #[locked("x".repeat(256), with = locks)]
    fn long_name(locks: &Locks) -> Result<(), Failure> {
        unreachable!("no lock has that name")
    }
    assert_eq!(long_name(&locks()).unwrap_err().kind(), ErrorKind::InvalidName);

    #[locked("nightly", with = locks, ttl = "99ms")]
    fn short_ttl(locks: &Locks) -> Result<(), Failure> {
        unreachable!("no lease is that short")
    }
    assert_eq!(short_ttl(&locks()).unwrap_err().kind(), ErrorKind::InvalidOption);
}

#[tokio::test]
async fn a_plain_function_does_not_block_an_async_worker() {
    let error = count_plainly(&locks().into(), &Counter::default()).unwrap_err();
    let error = error.downcast::<database_locks::Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
}

/// The attribute is expanded from the outside in, and each puts its lock around what is there.
#[tokio::test]
async fn of_two_locks_the_lower_one_is_taken_first() {
    #[locked("upper", with = locks)]
    #[locked("lower", with = locks)]
    async fn both(locks: &Locks) -> Result<usize, Error> {
        Ok(locks.list("").await?.len())
    }

    let locks = locks();
    let guard = locks.lock("upper").acquire().await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { both(&locks).await }
    });
    while locks.list("lower").await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    guard.release().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 2);
}

/// A future keeps room for what was borrowed from its own variables: here `locks`, a pointer.
#[test]
fn a_future_is_no_larger_than_the_one_written_by_hand() {
    struct State(Locks);

    async fn work(day: u32) -> Result<u32, Error> {
        tokio::task::yield_now().await;
        Ok(day)
    }

    #[locked("nightly")]
    async fn by_default(day: u32) -> Result<u32, Error> {
        let today = work(day).await?;
        Ok(today + work(day).await?)
    }

    async fn by_default_by_hand(day: u32) -> Result<u32, Error> {
        let request = database_locks::locks()?.lock("nightly");
        request
            .run(async move |_| {
                let today = work(day).await?;
                Ok(today + work(day).await?)
            })
            .await?
    }

    #[locked("nightly", with = state.0)]
    async fn by_field(state: &State, day: u32) -> Result<u32, Error> {
        let today = work(day).await?;
        Ok(today + work(day).await?)
    }

    #[locked("nightly", with = locks)]
    async fn by_argument(locks: &Locks, day: u32) -> Result<u32, Error> {
        let today = work(day).await?;
        Ok(today + work(day).await?)
    }

    async fn by_hand(locks: &Locks, day: u32) -> Result<u32, Error> {
        locks
            .lock("nightly")
            .run(async move |_| {
                let today = work(day).await?;
                Ok(today + work(day).await?)
            })
            .await?
    }

    assert_eq!(size_of_val(&by_default(1)), size_of_val(&by_default_by_hand(1)));
    let state = State(locks());
    let by_hand = size_of_val(&by_hand(&state.0, 1));
    assert_eq!(size_of_val(&by_field(&state, 1)), by_hand);
    assert_eq!(size_of_val(&by_argument(&state.0, 1)), by_hand + size_of::<&Locks>());
}
