//! Random operations on the server and on core's `Ledger`: the answers must agree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Kind, Store, claim, name, on_each_server, owner};
use database_locks_core::ledger::{Ledger, Until};
use database_locks_core::{
    Busy, Claim, Holder, LeaseId, LeaseInfo, ListQuery, LockBackend, Owner, Release, Released,
    Renewal, Renewed, Share, Token, Ttl, Verdict,
};
use database_locks_mysql::MysqlBackend;
use fastrand::Rng;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

on_each_server!(random_operations_agree_with_the_ledger);

/// Two times of the two sides count as the same, since only the server's goes by a clock.
const ALIKE: Duration = Duration::from_mins(5);

async fn random_operations_agree_with_the_ledger(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let seed = std::env::var("DATABASE_LOCKS_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("DATABASE_LOCKS_TEST_SEED={seed} repeats this run");
    let mut random = Rng::with_seed(seed);
    let mut backends = Vec::new();
    for _ in &store.nodes {
        backends.push(store.backend().await);
    }
    for round in 0..50 {
        let names = (0..3).map(|i| Known::new(format!("model {round} {i}"))).collect();
        let mut pair = Pair {
            backends: &backends,
            admin: store.client().await,
            // Model time: only its order counts, since every TTL is long.
            now: Duration::from_secs(1_000_000),
            names,
            trace: Vec::new(),
        };
        for _ in 0..60 {
            pair.step(&mut random).await;
        }
    }
}

/// Both sides of the comparison, and what they were asked.
struct Pair<'b> {
    /// One for each node.
    backends: &'b [MysqlBackend],
    admin: Conn,
    now: Duration,
    names: Vec<Known>,
    trace: Vec<String>,
}

/// A name, as it should be.
struct Known {
    lock: String,
    ledger: Ledger,
    /// Each claim that was granted, with the leases of the two sides.
    granted: Vec<(Claim, LeaseId, LeaseId)>,
}

impl Known {
    fn new(lock: String) -> Self {
        Self { lock, ledger: Ledger::default(), granted: Vec::new() }
    }
}

impl Pair<'_> {
    async fn step(&mut self, random: &mut Rng) {
        self.now += Duration::from_millis(10);
        let backend = random.choice(self.backends).unwrap();
        match random.u8(..16) {
            0..=4 => {
                let claims = vec![self.some_claim(random)];
                self.acquire(backend, claims).await;
            }
            5 | 6 => {
                let claims = (0..random.usize(2..6)).map(|_| self.some_claim(random)).collect();
                self.acquire(backend, claims).await;
            }
            7..=9 => {
                let leases = self.some_leases(random);
                self.release(backend, leases).await;
            }
            10 | 11 => {
                let leases = self.some_leases(random);
                self.renew(backend, leases).await;
            }
            12 | 13 => self.expire(random).await,
            _ => self.compare_lists(backend).await,
        }
    }

    /// A claim to any of the names: a new one, or one that was granted before.
    fn some_claim(&self, random: &mut Rng) -> Claim {
        let known = random.choice(&self.names).unwrap();
        match random.choice(&known.granted) {
            Some((claim, ..)) if random.u8(..5) == 0 => claim.clone(),
            _ => new_claim(&known.lock, random),
        }
    }

    /// One lease that was granted or a few, each with its name's place, as they are or nearly so.
    fn some_leases(&self, random: &mut Rng) -> Vec<(usize, LeaseId, LeaseId)> {
        let few = if random.bool() { 1 } else { random.usize(2..6) };
        let all: Vec<_> = self
            .names
            .iter()
            .enumerate()
            .flat_map(|(at, known)| known.granted.iter().map(move |lease| (at, lease)))
            .collect();
        (0..few)
            .filter_map(|_| {
                let &(at, (_, here, there)) = random.choice(&all)?;
                let (mut here, mut there) = (here.clone(), there.clone());
                match random.u8(..10) {
                    0 => {
                        for lease in [&mut here, &mut there] {
                            lease.token = Token::new(lease.token.get() - 1);
                        }
                    }
                    1 => {
                        here.owner = some_owner(random);
                        there.owner = here.owner.clone();
                    }
                    _ => {}
                }
                Some((at, here, there))
            })
            .collect()
    }

    async fn acquire(&mut self, backend: &MysqlBackend, claims: Vec<Claim>) {
        let answers = backend.acquire(&claims).await.unwrap();
        assert_eq!(answers.len(), claims.len());
        let micros = u64::try_from(self.now.as_micros()).unwrap();
        for (claim, there) in claims.into_iter().zip(answers) {
            self.trace.push(format!("acquire {claim:?} -> {there:?}"));
            let known = self.names.iter_mut().find(|k| k.lock == claim.name.as_str()).unwrap();
            let is_replay = known.ledger.entries.iter().any(|e| e.attempt == claim.attempt);
            let here = known.ledger.acquire(&claim, self.now, micros);
            match (here, there) {
                (Verdict::Granted(here), Verdict::Granted(there)) => {
                    let (here, there) = (claim.lease(here), claim.lease(there));
                    if is_replay {
                        let old = known.granted.iter().rfind(|(c, ..)| c.attempt == claim.attempt);
                        let (_, old_here, old_there) = old.unwrap();
                        assert_eq!((old_here, old_there), (&here, &there), "{:#?}", self.trace);
                        continue;
                    }
                    for (_, _, older) in &known.granted {
                        assert!(older.token < there.token, "a token fell: {:#?}", self.trace);
                    }
                    known.granted.push((claim, here, there));
                }
                (Verdict::Busy(here), Verdict::Busy(there)) => {
                    let said = |busy: &Busy| {
                        let holder = busy.holder.as_ref();
                        let owner = holder.map(|Holder { owner, .. }| owner.clone());
                        (owner, [holder.and_then(|h| h.remaining), busy.retry_after])
                    };
                    let (here, there) = (said(&here), said(&there));
                    assert_eq!(here.0, there.0, "{:#?}", self.trace);
                    for (here, there) in here.1.into_iter().zip(there.1) {
                        assert!(are_alike(here, there), "{here:?} {there:?}: {:#?}", self.trace);
                    }
                }
                (here, there) => assert_eq!(here, there, "{:#?}", self.trace),
            }
        }
    }

    async fn release(&mut self, backend: &MysqlBackend, leases: Vec<(usize, LeaseId, LeaseId)>) {
        let asked: Vec<_> = leases.iter().map(|(.., there)| there.clone()).collect();
        let answers: Vec<Released> = backend.release(&Release::free_all(&asked)).await.unwrap();
        let expected: Vec<_> = leases
            .into_iter()
            .map(|(at, lease, _)| self.names[at].ledger.release(&Release::free(lease), self.now).0)
            .collect();
        self.trace.push(format!("release {asked:?} -> {answers:?}"));
        assert_eq!(expected, answers, "{:#?}", self.trace);
    }

    async fn renew(&mut self, backend: &MysqlBackend, leases: Vec<(usize, LeaseId, LeaseId)>) {
        let ttl = Ttl::new(Duration::from_hours(2)).unwrap();
        let asked: Vec<_> =
            leases.iter().map(|(.., there)| Renewal::new(there.clone(), ttl)).collect();
        let answers: Vec<Renewed> = backend.renew(&asked).await.unwrap();
        let expected: Vec<_> = leases
            .into_iter()
            .map(|(at, lease, _)| self.names[at].ledger.renew(&Renewal::new(lease, ttl), self.now))
            .collect();
        self.trace.push(format!("renew {asked:?} -> {answers:?}"));
        assert_eq!(expected, answers, "{:#?}", self.trace);
    }

    /// Lets a live lease have expired a moment ago, on both sides.
    async fn expire(&mut self, random: &mut Rng) {
        let Some(at) = random.choice(0..self.names.len()) else { return };
        let known = &mut self.names[at];
        let entries = known.ledger.entries.iter_mut();
        let alive: Vec<_> =
            entries.filter(|entry| counts(entry.until, self.now, Duration::ZERO)).collect();
        let Some(entry) = random.choice(alive) else { return };
        entry.until = Until::Expiry(self.now - Duration::from_millis(1));
        self.trace.push(format!("expire {entry:?}"));
        let key = (known.lock.as_bytes(), entry.attempt.as_uuid().as_bytes().to_vec());
        let statements: &[&str] = if entry.share.is_exclusive() {
            &["UPDATE database_locks_lock SET expires_at = UTC_TIMESTAMP(6), \
               lease_expires_at = expires_at WHERE name = ? AND attempt = ?"]
        } else {
            // The row is held until the last of its shares ends.
            &[
                "UPDATE database_locks_lock_share SET expires_at = UTC_TIMESTAMP(6) \
                 WHERE name = ? AND attempt = ?",
                "UPDATE database_locks_lock l JOIN \
                 (SELECT name, MAX(expires_at) AS last FROM database_locks_lock_share \
                  GROUP BY name) s ON s.name = l.name \
                 SET l.expires_at = s.last, l.lease_expires_at = s.last \
                 WHERE l.name = ? AND ? IS NOT NULL",
            ]
        };
        for (i, statement) in statements.iter().enumerate() {
            self.admin.exec_drop(*statement, &key).await.unwrap();
            let changed = self.admin.affected_rows();
            assert!(i > 0 || changed == 1, "nothing to expire: {:#?}", self.trace);
        }
    }

    async fn compare_lists(&mut self, backend: &MysqlBackend) {
        for known in &self.names {
            let query = ListQuery::new(known.lock.clone());
            let there = backend.list(&query).await.unwrap();
            let here = known.ledger.list(&name(&known.lock), self.now);
            let said = |leases: &[LeaseInfo]| -> Vec<_> {
                leases
                    .iter()
                    .map(|LeaseInfo { lease, waited_for, .. }| {
                        (lease.attempt, lease.owner.clone(), lease.share, *waited_for)
                    })
                    .collect()
            };
            assert_eq!(said(&here), said(&there), "{:#?}", self.trace);
            for (here, there) in here.iter().zip(&there) {
                assert!(are_alike(here.remaining, there.remaining), "{:#?}", self.trace);
            }
        }
    }
}

fn counts(until: Until, now: Duration, grace: Duration) -> bool {
    match until {
        Until::Forever => true,
        Until::Expiry(at) => at + grace > now,
        Until::Released(_) => false,
    }
}

fn are_alike(here: Option<Duration>, there: Option<Duration>) -> bool {
    match (here, there) {
        (Some(here), Some(there)) => here.abs_diff(there) < ALIKE,
        (None, None) => true,
        _ => false,
    }
}

fn some_owner(random: &mut Rng) -> Owner {
    let owners = [
        owner("host.1"),
        owner("alice"),
        Owner::explicit("alice").unwrap(),
        Owner::explicit("bob").unwrap(),
        // What the lock's row says of a name that is held by shares.
        owner("(shared)"),
    ];
    random.choice(owners).unwrap()
}

fn new_claim(lock: &str, random: &mut Rng) -> Claim {
    let shares = [
        Share::ALL,
        Share::ALL,
        Share::ALL,
        Share::ONE,
        Share::ONE,
        Share::ONE,
        Share::new(2, 5).unwrap(),
        Share::new(3, 5).unwrap(),
        Share::new(5, 5).unwrap(),
    ];
    let ttls = [Ttl::Infinite, Ttl::new(Duration::from_hours(1)).unwrap()];
    let graces = [Duration::ZERO, Duration::ZERO, Duration::from_mins(10)];
    let marks = [None, None, Some(Duration::from_mins(10))];
    claim(lock)
        .with_share(random.choice(shares).unwrap())
        .with_owner(some_owner(random))
        .with_ttl(random.choice(ttls).unwrap())
        .with_grace(random.choice(graces).unwrap())
        .with_mark(random.choice(marks).unwrap())
}
