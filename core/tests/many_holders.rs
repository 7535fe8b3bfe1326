//! Many of one process on one name: they go together, and in the order in which they came.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, Locks, Release, Released, Renewal,
    Renewed, Result, Verdict, Wakeups, async_trait,
};
use database_locks_memory::MemoryBackend;
use tokio::task::JoinSet;
use tokio::time::sleep;

const ROUND_TRIP: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_hours(1);

/// A store that is far away, and counts what it is asked.
#[derive(Debug)]
struct Far {
    store: MemoryBackend,
    calls: AtomicUsize,
    claims: AtomicUsize,
    hints: bool,
}

impl Far {
    fn new(hints: bool) -> Arc<Self> {
        let (calls, claims) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { store: MemoryBackend::new(), calls, claims, hints })
    }

    fn locks(self: &Arc<Self>) -> Locks {
        let builder = Locks::builder().default_ttl(HOUR).on_current_runtime();
        builder.build(Arc::clone(self) as Arc<dyn LockBackend>).expect("a runtime")
    }

    /// How many calls there were since the last time, and of how many claims.
    fn asked(&self) -> (usize, usize) {
        (self.calls.swap(0, Ordering::Relaxed), self.claims.swap(0, Ordering::Relaxed))
    }
}

#[async_trait]
impl LockBackend for Far {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities().with_max_in_flight(4)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.claims.fetch_add(claims.len(), Ordering::Relaxed);
        sleep(ROUND_TRIP).await;
        self.store.acquire(claims).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.store.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        sleep(ROUND_TRIP).await;
        self.store.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        if self.hints { self.store.wakeups().await } else { Ok(None) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_of_a_free_name_need_a_handful_of_calls() {
    let store = Far::new(true);
    let locks = store.locks();
    let mut readers = JoinSet::new();
    for _ in 0..1_000 {
        readers.spawn(locks.rwlock("x").read().acquire());
    }
    let held = readers.join_all().await;
    assert!(held.iter().all(Result::is_ok));
    let (calls, claims) = store.asked();
    assert!(calls <= 6, "{calls} calls");
    assert_eq!(claims, 1_000);
}

#[tokio::test(start_paused = true)]
async fn readers_that_wait_for_a_writer_ask_for_one_and_then_all_come_at_once() {
    for hints in [true, false] {
        let store = Far::new(hints);
        let locks = store.locks();
        let writer = locks.rwlock("x").write().acquire().await.unwrap();
        let mut readers = JoinSet::new();
        for _ in 0..500 {
            readers.spawn(locks.rwlock("x").read().acquire());
        }
        sleep(Duration::from_secs(60)).await;
        store.asked();
        sleep(Duration::from_secs(60)).await;
        let (calls, claims) = store.asked();
        assert!(claims <= calls && calls > 0, "{claims} claims in {calls} calls while they wait");
        writer.release().await.unwrap();
        assert!(readers.join_all().await.iter().all(Result::is_ok));
        let (calls, claims) = store.asked();
        assert!(calls <= 6 && claims <= 502, "{claims} claims in {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn permits_go_to_those_who_came_first() {
    let store = Far::new(true);
    let locks = store.locks();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut workers = JoinSet::new();
    for i in 0..40 {
        let (locks, order) = (locks.clone(), Arc::clone(&order));
        // Some want two, which fit beside fewer others.
        let permits = if i % 5 == 3 { 2 } else { 1 };
        workers.spawn(async move {
            let guard = locks.semaphore("x", 4).permits(permits).acquire().await.unwrap();
            order.lock().expect("nobody panics").push((guard.token(), i));
            sleep(Duration::from_millis(500)).await;
            guard.release().await.unwrap();
        });
        tokio::task::yield_now().await;
    }
    workers.join_all().await;
    let mut order = order.lock().expect("nobody panics").clone();
    order.sort_unstable();
    let order: Vec<_> = order.into_iter().map(|(_, i)| i).collect();
    assert_eq!(order, (0..40).collect::<Vec<_>>());
    assert!(store.asked().1 < 40 * 12, "they ask all the time");
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_the_queue_to_the_others() {
    let store = Far::new(true);
    let locks = store.locks();
    let writer = locks.rwlock("x").write().acquire().await.unwrap();
    let mut readers = JoinSet::new();
    for i in 0..20_u64 {
        let mut read = locks.rwlock("x").read();
        if i % 2 == 0 {
            read = read.timeout(Duration::from_millis(100 + 37 * i));
        }
        readers.spawn(read.acquire());
    }
    sleep(Duration::from_secs(5)).await;
    writer.release().await.unwrap();
    let readers = readers.join_all().await;
    assert_eq!(readers.iter().filter(|read| read.is_ok()).count(), 10);
}
