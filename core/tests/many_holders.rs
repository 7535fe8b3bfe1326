//! Many on one name. Those of one process go together, and in the order in which they came; processes take turns.

#![expect(clippy::disallowed_methods, reason = "the runtime's paused clock is what is tested on")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, Locks, Release, Released, Renewal,
    Renewed, Result, Verdict, Wakeups, async_trait,
};
use database_locks_memory::MemoryBackend;
use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const ROUND_TRIP: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_hours(1);

/// A store that is far away, and counts what it is asked.
#[derive(Debug)]
struct Far {
    store: MemoryBackend,
    calls: AtomicUsize,
    claims: AtomicUsize,
    releases: AtomicUsize,
    /// Calls that renew, and that release.
    renew_calls: AtomicUsize,
    release_calls: AtomicUsize,
    can: Capabilities,
    round_trip: Duration,
    hints: bool,
    /// How long a hint is on its way.
    late: Duration,
    /// Each round trip takes up to so much longer.
    jitter: Duration,
}

impl Far {
    fn new(hints: bool) -> Arc<Self> {
        Self::on(MemoryBackend::new(), hints, Duration::ZERO, Duration::ZERO)
    }

    fn on(store: MemoryBackend, hints: bool, late: Duration, jitter: Duration) -> Arc<Self> {
        let [calls, claims, releases, renew_calls, release_calls] = [0; 5].map(AtomicUsize::new);
        let (can, round_trip) = (store.capabilities().with_max_in_flight(4), ROUND_TRIP);
        Arc::new(Self {
            store,
            calls,
            claims,
            releases,
            renew_calls,
            release_calls,
            can,
            round_trip,
            hints,
            late,
            jitter,
        })
    }

    /// One that is further away, and wants batches of other sizes.
    fn very(round_trip: Duration, can: impl FnOnce(Capabilities) -> Capabilities) -> Arc<Self> {
        let mut far = Arc::into_inner(Self::new(true)).expect("nobody else has it");
        (far.round_trip, far.can) = (round_trip, can(far.can));
        Arc::new(far)
    }

    async fn round_trip(&self) {
        sleep(self.round_trip + self.jitter.mul_f64(fastrand::f64())).await;
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
        self.can.clone()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.claims.fetch_add(claims.len(), Ordering::Relaxed);
        self.round_trip().await;
        self.store.acquire(claims).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.renew_calls.fetch_add(1, Ordering::Relaxed);
        self.round_trip().await;
        self.store.renew(renewals).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.release_calls.fetch_add(1, Ordering::Relaxed);
        self.releases.fetch_add(releases.len(), Ordering::Relaxed);
        self.round_trip().await;
        self.store.release(releases).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.store.list(query).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.store.clean_up(idle).await
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        if !self.hints {
            return Ok(None);
        }
        let (late, hints) = (self.late, self.store.wakeups().await?);
        Ok(hints.map(|hints| {
            Wakeups::new(hints.then(move |hint| async move {
                sleep(late).await;
                hint
            }))
        }))
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
async fn a_thousand_readers_are_renewed_and_released_in_a_handful_of_calls() {
    let (store, ttl) = (Far::new(true), Duration::from_secs(12));
    let locks = store.locks();
    let mut readers = JoinSet::new();
    for _ in 0..1_000 {
        readers.spawn(locks.rwlock("x").read().ttl(ttl).acquire());
    }
    let held: Vec<_> = readers.join_all().await.into_iter().map(Result::unwrap).collect();
    sleep(ttl * 3).await;
    // Each is renewed every three and a half seconds or four, and four batches hold a thousand.
    let calls = store.renew_calls.load(Ordering::Relaxed);
    assert!(calls <= 60, "{calls} calls");
    for guard in &held {
        guard.check().unwrap();
    }
    let mut released: JoinSet<_> = held.into_iter().map(|guard| guard.release()).collect();
    while let Some(released) = released.join_next().await {
        released.expect("a release").unwrap();
    }
    assert_eq!(store.releases.load(Ordering::Relaxed), 1_000);
    let calls = store.release_calls.load(Ordering::Relaxed);
    assert!(calls <= 6, "{calls} calls");
}

/// As 100,000 leases are with batches of 256 and of 2,048: one batch after the other would not come round in a TTL.
#[tokio::test(start_paused = true)]
async fn more_leases_than_small_batches_could_renew_over_a_slow_network_are_all_kept() {
    let ttl = Duration::from_secs(30);
    let can = |can: Capabilities| can.with_max_batch(10).with_max_renewals(80);
    let store = Far::very(Duration::from_millis(100), |far| can(far).with_max_in_flight(32));
    let locks = store.locks();
    let mut holders = JoinSet::new();
    for i in 0..4_000 {
        holders.spawn(locks.lock(format!("lock {i}")).ttl(ttl).acquire());
    }
    let held: Vec<_> = holders.join_all().await.into_iter().map(Result::unwrap).collect();
    sleep(ttl * 3).await;
    let lost = held.iter().filter(|guard| guard.check().is_err()).count();
    assert_eq!(lost, 0, "of {} in {} calls", held.len(), store.renew_calls.load(Ordering::Relaxed));
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

#[tokio::test(start_paused = true)]
async fn tasks_of_one_process_hand_over_in_one_round_trip() {
    let store = Far::new(true);
    let locks = store.locks();
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let locks = locks.clone();
        tasks.spawn(async move {
            for _ in 0..5 {
                locks.lock("x").acquire().await.unwrap().release().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let round_trips = began.elapsed().as_millis() / ROUND_TRIP.as_millis();
    assert!(round_trips <= 40 + 6, "{round_trips} round trips for 40 sections");
    assert!(store.asked().1 <= 48);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_hands_over_to_itself_lets_others_have_a_turn() {
    for hints in [true, false] {
        let store = Far::new(hints);
        let (hot, cold) = (store.locks(), store.locks());
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let hot = hot.clone();
            tasks.spawn(async move {
                loop {
                    hot.lock("x").acquire().await.unwrap().release().await.unwrap();
                }
            });
        }
        for _ in 0..5 {
            let turn = timeout(Duration::from_secs(5), cold.lock("x").acquire()).await;
            let turn = turn.unwrap_or_else(|_| panic!("it starves, with hints: {hints}"));
            turn.unwrap().release().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_next_holder_has_gone_is_released_all_the_same() {
    let store = Far::new(true);
    let locks = store.locks();
    for leaves_after in [0, 5, 15, 25] {
        let held = locks.lock("x").acquire().await.unwrap();
        let waiting = tokio::spawn(locks.lock("x").acquire());
        sleep(Duration::from_secs(1)).await;
        let release = tokio::spawn(held.release());
        sleep(Duration::from_millis(leaves_after)).await;
        waiting.abort();
        release.await.unwrap().unwrap();
        drop(waiting.await);
        sleep(Duration::from_secs(1)).await;
        let left = store.list(&ListQuery::new("")).await.unwrap();
        assert!(left.is_empty(), "{leaves_after}: {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_tasks_that_take_turns_let_others_have_one() {
    for hints in [true, false] {
        let store = Far::new(hints);
        let (hot, cold) = (store.locks(), store.locks());
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let hot = hot.clone();
            tasks.spawn(async move {
                loop {
                    let guard = hot.lock("x").acquire().await.unwrap();
                    sleep(Duration::from_millis(30)).await;
                    guard.release().await.unwrap();
                }
            });
        }
        for _ in 0..5 {
            let turn = timeout(Duration::from_secs(5), cold.lock("x").acquire()).await;
            let turn = turn.unwrap_or_else(|_| panic!("it starves, with hints: {hints}"));
            turn.unwrap().release().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_while_the_lock_is_dropped_waits_for_one_round_trip() {
    for owner in [None, Some("w")] {
        let store = Far::new(true);
        let locks = store.locks();
        let request = || match owner {
            Some(owner) => locks.lock("x").owner(owner),
            None => locks.lock("x"),
        };
        let mut held = request().acquire().await.unwrap();
        store.asked();
        for _ in 0..5 {
            drop(held);
            let began = Instant::now();
            held = request().acquire().await.unwrap();
            assert!(began.elapsed() < ROUND_TRIP * 3 / 2, "{owner:?}: {:?}", began.elapsed());
        }
        assert_eq!(store.asked(), (5, 5), "{owner:?}");
        assert_eq!(store.releases.load(Ordering::Relaxed), 0, "all were handed over: {owner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_permits_that_end_one_by_one_are_taken_up_at_once() {
    for hints in [true, false] {
        let store = Far::new(hints);
        let locks = store.locks();
        let mut jobs = JoinSet::new();
        for i in 0..400 {
            let locks = locks.clone();
            jobs.spawn(async move {
                let guard = locks.semaphore("x", 100).permits(1).acquire().await.unwrap();
                // Some 20 ms from one end to the next.
                sleep(Duration::from_secs(2) + Duration::from_millis(20) * (i % 100)).await;
                guard.release().await.unwrap();
            });
        }
        let began = Instant::now();
        jobs.join_all().await;
        // Four rounds of two to four seconds, and some waiting in between.
        assert!(began.elapsed() < Duration::from_secs(20), "{hints}: {:?}", began.elapsed());
    }
}

/// Each of them wants the lock again as soon as it has given it back, and would often have it before others hear of that.
#[tokio::test(start_paused = true)]
async fn processes_take_turns() {
    const PROCESSES: usize = 6;
    for (late, work) in [(0, 3), (5, 3)] {
        let [late, work] = [late, work].map(Duration::from_millis);
        let store = MemoryBackend::new();
        let locks = || Far::on(store.clone(), true, late, ROUND_TRIP / 2).locks();
        let turns = Arc::new(Mutex::new(Vec::new()));
        let mut processes = JoinSet::new();
        // All of them have to wait, and hear of the others.
        let held = locks().lock("hot").acquire().await.expect("the lock");
        for process in 0..PROCESSES {
            let locks = locks();
            let turns = Arc::clone(&turns);
            processes.spawn(async move {
                while turns.lock().expect("the turns").len() < PROCESSES * 50 {
                    let guard = locks.lock("hot").acquire().await.expect("the lock");
                    turns.lock().expect("the turns").push(process);
                    sleep(work).await;
                    guard.release().await.expect("released");
                }
            });
        }
        sleep(Duration::from_secs(1)).await;
        held.release().await.expect("released");
        while let Some(done) = processes.join_next().await {
            done.expect("a process");
        }
        let turns = turns.lock().expect("the turns");
        // At first nobody knows of the others.
        for round in turns[PROCESSES * 4..].windows(PROCESSES * 4) {
            for process in 0..PROCESSES {
                assert!(round.contains(&process), "{process} had no turn in {round:?}, {late:?}");
            }
        }
    }
}
