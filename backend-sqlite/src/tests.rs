//! What takes a clock or a boot of one's own to test.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use database_locks_core::fence::{FenceParam, FenceSql};
use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Claim, LeaseId, ListQuery, LockBackend, LockName, LossReason, Owner, Release, Released,
    Renewal, Renewed, Share, Ttl, Verdict,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection};
use uuid::Uuid;

use crate::backend::SqliteBackend;
use crate::config::SqliteConfig;
use crate::host::{Host, Moment};

const SECOND: u64 = 1_000_000;

/// Clocks in microseconds that stand until they are set.
#[derive(Clone, Default)]
struct Clocks {
    boot: Arc<AtomicU64>,
    wall: Arc<AtomicU64>,
}

impl Clocks {
    fn at(boot: u64, wall: u64) -> Self {
        let clocks = Self::default();
        clocks.boot.store(boot, Ordering::SeqCst);
        clocks.wall.store(wall, Ordering::SeqCst);
        clocks
    }

    fn now(&self) -> Moment {
        Moment {
            since_boot: Duration::from_micros(self.boot.load(Ordering::SeqCst)),
            wall_micros: self.wall.load(Ordering::SeqCst),
        }
    }

    async fn backend(&self, folder: &Path, boot: Uuid) -> SqliteBackend {
        let clocks = self.clone();
        let host = Host::new(boot, move || clocks.now());
        SqliteBackend::connect_on(SqliteConfig::new(folder.join("locks.db")), host).await.unwrap()
    }
}

fn claim(name: &str, share: Share) -> Claim {
    Claim::new(LockName::new(name).unwrap())
        .with_share(share)
        .with_ttl(Ttl::new(Duration::from_secs(10)).unwrap())
}

async fn acquire(backend: &SqliteBackend, claim: &Claim) -> Verdict {
    backend.acquire(std::slice::from_ref(claim)).await.unwrap().remove(0)
}

async fn grant(backend: &SqliteBackend, claim: &Claim) -> LeaseId {
    match acquire(backend, claim).await {
        Verdict::Granted(token) => claim.lease(token),
        other => panic!("not granted: {other:?}"),
    }
}

/// `PRAGMA data_version` changes with each commit of another connection.
async fn data_version(observer: &mut SqliteConnection) -> i64 {
    sqlx::query("PRAGMA data_version").fetch_one(observer).await.unwrap().get(0)
}

async fn observer(folder: &Path) -> SqliteConnection {
    let path = folder.join("locks.db");
    SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap()
}

/// How many rows the statement of a fence changes.
async fn fence(client: &mut SqliteConnection, fence: &FenceSql) -> u64 {
    let mut query = sqlx::query(AssertSqlSafe(fence.sql()));
    for param in fence.params() {
        query = match param {
            FenceParam::Text(text) => query.bind(text.clone()),
            FenceParam::Integer(number) => query.bind(*number),
            FenceParam::Bytes(bytes) => query.bind(bytes.clone()),
        };
    }
    query.execute(client).await.unwrap().rows_affected()
}

#[tokio::test]
async fn fence_goes_by_the_boot_and_an_older_time_passes_no_successor() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(SECOND, SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let rebooted = clocks.backend(folder.path(), Uuid::from_u128(2)).await;
    let mut client = observer(folder.path()).await;
    for share in [Share::ALL, Share::new(1, 2).unwrap()] {
        let name = format!("{share}");
        let lease = grant(&backend, &claim(&name, share)).await;
        let early = backend.fence().unwrap().sql(&lease);
        assert_eq!(fence(&mut client, &early).await, 1);
        assert_eq!(fence(&mut client, &rebooted.fence().unwrap().sql(&lease)).await, 0);

        clocks.boot.fetch_add(11 * SECOND, Ordering::SeqCst);
        assert_eq!(fence(&mut client, &backend.fence().unwrap().sql(&lease)).await, 0);
        // Made in time and late to be executed: nobody has followed yet, and then somebody has.
        assert_eq!(fence(&mut client, &early).await, 1);
        grant(&backend, &claim(&name, share)).await;
        assert_eq!(fence(&mut client, &early).await, 0);
    }
}

#[tokio::test]
async fn reboot_frees_everything_and_tokens_outlast_it() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let before = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let mut forever = claim("forever", Share::ALL);
    forever.ttl = Ttl::Infinite;
    let readers = [claim("readers", Share::ONE), claim("readers", Share::ONE)];
    let old = grant(&before, &forever).await;
    for reader in &readers {
        grant(&before, reader).await;
    }

    // The boot clock starts anew, and the wall clock has lost an hour for want of a battery.
    let clocks = Clocks::at(SECOND, 5_400 * SECOND);
    let after = clocks.backend(folder.path(), Uuid::from_u128(2)).await;
    assert!(after.list(&ListQuery::default()).await.unwrap().is_empty());
    let new = grant(&after, &claim("forever", Share::ALL)).await;
    assert!(new.token > old.token);
    grant(&after, &claim("readers", Share::ALL)).await;

    let renewal = Renewal::new(old, Ttl::DEFAULT);
    let renewed = after.renew(&[renewal]).await.unwrap();
    assert_eq!(renewed, [Renewed::Lost(LossReason::Taken)]);
    let mut observer = observer(folder.path()).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM database_locks_lock_lease")
        .fetch_one(&mut observer)
        .await
        .unwrap();
    assert_eq!(rows, 2, "leases of the boot before stay in the file");
}

#[tokio::test]
async fn stepped_wall_clock_changes_nothing_but_the_next_token() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let lease = grant(&backend, &claim("a", Share::ALL)).await;
    for wall in [0, 9_000 * SECOND + 3_600 * SECOND] {
        clocks.wall.store(wall, Ordering::SeqCst);
        let Verdict::Busy(busy) = acquire(&backend, &claim("a", Share::ALL)).await else {
            panic!("granted because the wall clock was stepped");
        };
        assert_eq!(busy.retry_after, Some(Duration::from_secs(10)));
    }
    clocks.boot.store(510 * SECOND, Ordering::SeqCst);
    clocks.wall.store(0, Ordering::SeqCst);
    let next = grant(&backend, &claim("a", Share::ALL)).await;
    assert_eq!(next.token.get(), lease.token.get() + 1);
}

#[tokio::test]
async fn busy_poll_writes_nothing_but_the_mark_that_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let held = grant(&backend, &claim("a", Share::ALL)).await;
    let mut observer = observer(folder.path()).await;
    let version = data_version(&mut observer).await;

    // Somebody else has the write lock all the while: a poll does not wait for it.
    let writer = observer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    for _ in 0..20 {
        assert!(matches!(acquire(&backend, &claim("a", Share::ALL)).await, Verdict::Busy(_)));
    }
    writer.rollback().await.unwrap();
    assert_eq!(data_version(&mut observer).await, version);

    let mut waiter = claim("a", Share::ALL);
    waiter.mark = Some(Duration::from_secs(5));
    assert!(matches!(acquire(&backend, &waiter).await, Verdict::Busy(_)));
    assert_ne!(data_version(&mut observer).await, version);
    assert!(backend.list(&ListQuery::default()).await.unwrap()[0].waited_for);
    assert_eq!(backend.release(&[Release::free(held)]).await.unwrap(), [Released::Done]);
    let version = data_version(&mut observer).await;
    assert!(matches!(backend.renew(&[]).await, Ok(answers) if answers.is_empty()));
    assert_eq!(data_version(&mut observer).await, version);
}

/// A future that gives up after its inner one was polled `left` times.
struct Polls<F> {
    inner: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let left = self.left;
        match self.inner.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[tokio::test]
async fn only_the_grant_that_reserves_tokens_is_synchronized_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(SECOND, 9_000 * SECOND);
    let boot = Uuid::from_u128(1);
    let backends =
        [clocks.backend(folder.path(), boot).await, clocks.backend(folder.path(), boot).await];
    for minute in 0..3 {
        clocks.wall.store((9_000 + 61 * minute) * SECOND, Ordering::SeqCst);
        for (i, backend) in backends.iter().cycle().take(4).enumerate() {
            let lease = grant(backend, &claim(&format!("{i}"), Share::ALL)).await;
            assert_eq!(backend.is_durable().await, i == 0, "the first grant is for all");
            let renewal = Renewal::new(lease.clone(), Ttl::DEFAULT);
            assert_eq!(backend.renew(&[renewal]).await.unwrap(), [Renewed::Alive]);
            assert!(!backend.is_durable().await);
            assert_eq!(backend.release(&[Release::free(lease)]).await.unwrap(), [Released::Done]);
            assert!(!backend.is_durable().await);
        }
    }
}

#[tokio::test]
async fn tokens_grow_over_a_power_failure_that_loses_grants_and_a_clock_that_is_reset() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(SECOND, 9_000 * SECOND);
    let mut tokens = Vec::new();
    for boot in 1..4 {
        let backend = clocks.backend(folder.path(), Uuid::from_u128(boot)).await;
        for lock in ["a", "b", "a"] {
            let lease = grant(&backend, &claim(lock, Share::ALL)).await;
            tokens.push(lease.token);
            backend.release(&[Release::free(lease)]).await.unwrap();
            clocks.wall.fetch_add(SECOND, Ordering::SeqCst);
        }
        drop(backend);
        // What was written after the reserve is lost, and the clock has no battery.
        let file = SqliteConnectOptions::new().filename(folder.path().join("locks.db"));
        let mut file = file.connect().await.unwrap();
        let lost = "DELETE FROM database_locks_lock; DELETE FROM database_locks_lock_lease";
        sqlx::raw_sql(lost).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
        clocks.wall.store(SECOND, Ordering::SeqCst);
    }
    let of_a: Vec<_> =
        tokens.iter().enumerate().filter(|(i, _)| i % 3 != 1).map(|(_, t)| t).collect();
    assert!(of_a.is_sorted_by(|a, b| a < b), "{of_a:?}");
}

#[tokio::test]
async fn future_that_is_dropped_anywhere_leaves_no_transaction_behind() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let other = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let (mut given_up, mut done) = (0, 0);
    // How often a call is polled depends on how fast the connection's thread answers.
    for left in 1..40 {
        let claim = claim(&format!("lock {left}"), Share::ALL);
        let inner = Box::pin(backend.acquire(std::slice::from_ref(&claim)));
        match (Polls { inner, left }.await) {
            Some(_) => done += 1,
            None => given_up += 1,
        }

        // Neither this backend nor another one is held up by what was given up, and whatever
        // became of the attempt, asking again grants it, and only it.
        grant(&other, &self::claim(&format!("other {left}"), Share::ALL)).await;
        let lease = grant(&backend, &claim).await;
        assert!(matches!(
            acquire(&other, &self::claim(&format!("lock {left}"), Share::ALL)).await,
            Verdict::Busy(_)
        ));
        assert_eq!(grant(&other, &claim).await, lease);
    }
    assert!(given_up > 0 && done > 0, "{given_up} given up, {done} done");
}

#[tokio::test]
async fn file_that_was_deleted_is_made_anew_and_its_leases_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let old = grant(&backend, &claim("a", Share::ALL)).await;
    for file in ["locks.db", "locks.db-wal", "locks.db-shm"] {
        std::fs::remove_file(folder.path().join(file)).unwrap();
    }
    let other = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    grant(&other, &claim("a", Share::ALL)).await;
    assert!(matches!(acquire(&backend, &claim("a", Share::ALL)).await, Verdict::Busy(_)));
    let renewed = backend.renew(&[Renewal::new(old, Ttl::DEFAULT)]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Lost(_)]), "{renewed:?}");
}

#[tokio::test]
async fn clean_up_forgets_only_what_has_been_idle() {
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let backend = clocks.backend(folder.path(), Uuid::from_u128(1)).await;
    let mut held = claim("held", Share::ALL);
    held.ttl = Ttl::Infinite;
    grant(&backend, &held).await;
    let idle = grant(&backend, &claim("idle", Share::ONE)).await;
    backend.release(&[Release::free(idle.clone())]).await.unwrap();
    let hour = Duration::from_hours(1);
    assert_eq!(backend.clean_up(hour).await.unwrap(), 0);

    clocks.boot.fetch_add(3_601 * SECOND, Ordering::SeqCst);
    // The wall clock was set back meanwhile, below the token.
    clocks.wall.store(SECOND, Ordering::SeqCst);
    assert_eq!(backend.clean_up(hour).await.unwrap(), 1);
    assert_eq!(backend.clean_up(hour).await.unwrap(), 0);
    assert_eq!(
        backend.release(&[Release::free(idle.clone())]).await.unwrap(),
        [Released::Lost(LossReason::Deleted)]
    );
    let again = grant(&backend, &claim("idle", Share::ALL)).await;
    assert!(again.token > idle.token, "a name that was forgotten has no lower tokens");
    backend.release(&[Release::free(again)]).await.unwrap();
    assert_eq!(backend.list(&ListQuery::default()).await.unwrap().len(), 1);
}

/// Random operations agree with a bare ledger a name, over three backends on one file.
#[tokio::test]
async fn random_operations_agree_with_the_ledger() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let clocks = Clocks::at(500 * SECOND, 9_000 * SECOND);
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(clocks.backend(folder.path(), Uuid::from_u128(1)).await);
    }
    let names = ["a", "A", "a ", "é"].map(|name| LockName::new(name).unwrap());
    let owners = [
        Owner::of_this_process(),
        Owner::label_only("x").unwrap(),
        Owner::explicit("x").unwrap(),
        Owner::explicit("y").unwrap(),
    ];
    let mut model: BTreeMap<LockName, Ledger> = BTreeMap::new();
    let mut claims: Vec<Claim> = Vec::new();
    let mut leases: Vec<LeaseId> = Vec::new();
    for step in 0..1_500 {
        let backend = random.choice(&backends).unwrap();
        clocks.boot.fetch_add(random.u64(0..4) * SECOND / 2, Ordering::SeqCst);
        clocks.wall.store(random.u64(8_000..9_500) * SECOND, Ordering::SeqCst);
        let now = clocks.now();
        let count = random.usize(1..4);
        match random.u32(0..10) {
            0..5 => {
                let batch: Vec<Claim> = (0..count)
                    .map(|_| match random.choice(&claims) {
                        Some(old) if random.u32(0..5) == 0 => old.clone(),
                        _ => Claim::new(random.choice(&names).unwrap().clone())
                            .with_share(match random.u32(0..6) {
                                0..2 => Share::ALL,
                                2..5 => Share::ONE,
                                _ => Share::new(random.u32(1..4), 3).unwrap(),
                            })
                            .with_owner(random.choice(&owners).unwrap().clone())
                            .with_ttl(match random.u64(0..8) {
                                0 => Ttl::Infinite,
                                seconds => Ttl::new(Duration::from_secs(seconds)).unwrap(),
                            })
                            .with_grace(Duration::from_secs(random.u64(0..2)))
                            .with_mark(
                                random.bool().then(|| Duration::from_secs(random.u64(0..3))),
                            ),
                    })
                    .collect();
                let expected: Vec<Verdict> = batch
                    .iter()
                    .map(|claim| {
                        let ledger = model.entry(claim.name.clone()).or_default();
                        ledger.acquire(claim, now.since_boot, now.wall_micros)
                    })
                    .collect();
                assert_eq!(backend.acquire(&batch).await.unwrap(), expected, "step {step}");
                for (claim, verdict) in batch.iter().zip(&expected) {
                    if let Verdict::Granted(token) = verdict {
                        leases.push(claim.lease(*token));
                    }
                }
                claims.extend(batch);
            }
            5..7 if !leases.is_empty() => {
                let batch: Vec<Renewal> = (0..count)
                    .map(|_| {
                        Renewal::new(
                            random.choice(&leases).unwrap().clone(),
                            Ttl::new(Duration::from_secs(random.u64(1..5))).unwrap(),
                        )
                    })
                    .collect();
                let expected: Vec<Renewed> = batch
                    .iter()
                    .map(|renewal| {
                        let ledger = model.entry(renewal.lease.name.clone()).or_default();
                        ledger.renew(renewal, now.since_boot)
                    })
                    .collect();
                assert_eq!(backend.renew(&batch).await.unwrap(), expected, "step {step}");
            }
            7..9 if !leases.is_empty() => {
                let batch: Vec<Release> = (0..count)
                    .map(|_| {
                        let lease = random.choice(&leases).unwrap().clone();
                        match random.u8(0..6) {
                            0 => Release::revoke(lease),
                            1 => Release::keep(lease, Duration::from_secs(random.u64(0..5))),
                            _ => Release::free(lease),
                        }
                    })
                    .collect();
                let expected: Vec<Released> = batch
                    .iter()
                    .map(|release| {
                        let ledger = model.entry(release.lease.name.clone()).or_default();
                        ledger.release(release, now.since_boot).0
                    })
                    .collect();
                assert_eq!(backend.release(&batch).await.unwrap(), expected, "step {step}");
            }
            _ => {
                let expected: Vec<_> = model
                    .iter()
                    .flat_map(|(name, ledger)| ledger.list(name, now.since_boot))
                    .collect();
                let mut listed = Vec::new();
                let mut query = ListQuery::default().with_limit(random.u32(1..4));
                loop {
                    let page = backend.list(&query).await.unwrap();
                    let Some(last) = page.last() else { break };
                    query.after = Some((last.lease.name.clone(), last.lease.attempt));
                    listed.extend(page);
                }
                assert_eq!(listed, expected, "step {step}");
                let prefix = ListQuery::new("a".to_owned());
                let with_prefix = backend.list(&prefix).await.unwrap();
                assert!(with_prefix.iter().all(|info| info.lease.name.as_str().starts_with('a')));
                let expected = expected.iter().filter(|i| i.lease.name.as_str().starts_with('a'));
                assert_eq!(with_prefix.len(), expected.count(), "step {step}");
            }
        }
    }
}
