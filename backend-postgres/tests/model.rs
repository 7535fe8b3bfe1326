//! Random operations on one name, on the server and on core's `Ledger`: the answers must agree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Store, claim, lease, name, owner};
use database_locks_core::ledger::{Ledger, Until};
use database_locks_core::{Claim, LeaseId, LockBackend, Owner, Renewal, Share, Ttl, Verdict};
use tokio_postgres::Client;

/// Both sides of the comparison, and what they were asked.
struct Pair {
    ledger: Ledger,
    backend: database_locks_postgres::PostgresBackend,
    admin: Client,
    lock: String,
    /// Model time: only its order counts, since every TTL is long.
    now: Duration,
    /// Each claim that was granted, with the tokens of the two sides.
    granted: Vec<(Claim, LeaseId, LeaseId)>,
    trace: Vec<String>,
}

#[tokio::test]
async fn random_operations_agree_with_the_ledger() {
    let (store, _) = Store::migrated().await;
    let seed = std::env::var("DATABASE_LOCKS_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("DATABASE_LOCKS_TEST_SEED={seed} repeats this run");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..60 {
        let mut pair = Pair {
            ledger: Ledger::default(),
            backend: store.backend().await,
            admin: store.client().await,
            lock: format!("model {round}"),
            now: Duration::from_secs(1_000_000),
            granted: Vec::new(),
            trace: Vec::new(),
        };
        for _ in 0..40 {
            pair.step(&mut random).await;
        }
    }
}

impl Pair {
    async fn step(&mut self, random: &mut fastrand::Rng) {
        self.now += Duration::from_millis(10);
        match random.u8(..10) {
            0..=3 => self.acquire(new_claim(&self.lock, random)).await,
            4 => {
                if let Some((claim, ..)) = random.choice(&self.granted).cloned() {
                    self.acquire(claim).await;
                }
            }
            5 | 6 => {
                if let Some((_, here, there)) = random.choice(&self.granted).cloned() {
                    self.release(here, there).await;
                }
            }
            7 => {
                if let Some((_, here, there)) = random.choice(&self.granted).cloned() {
                    self.renew(here, there).await;
                }
            }
            8 => {
                if let Some((_, here, there)) = random.choice(&self.granted).cloned() {
                    self.expire(here, there).await;
                }
            }
            _ => self.compare_lists().await,
        }
    }

    async fn acquire(&mut self, claim: Claim) {
        let known = self.ledger.entries.iter().any(|e| e.attempt == claim.attempt);
        let there = common::ask(&self.backend, &claim).await;
        self.trace.push(format!("acquire {claim:?} -> {there:?}"));
        let micros = u64::try_from(self.now.as_micros()).unwrap();
        let here = self.ledger.acquire(&claim, self.now, micros);
        match (&here, &there) {
            (Verdict::Granted(here), Verdict::Granted(there)) => {
                if let Some((_, old_here, old_there)) =
                    self.granted.iter().rev().find(|(c, ..)| c.attempt == claim.attempt)
                    && known
                {
                    assert_eq!(
                        (old_here.token == *here, old_there.token == *there),
                        (true, true),
                        "a replay changed its token: {:#?}",
                        self.trace
                    );
                    return;
                }
                for (_, _, older) in &self.granted {
                    assert!(older.token < *there, "a token fell: {:#?}", self.trace);
                }
                let (here, there) = (lease(&claim, *here), lease(&claim, *there));
                self.granted.push((claim, here, there));
            }
            (Verdict::Busy(here_busy), Verdict::Busy(there_busy)) => {
                assert_eq!(
                    here_busy.holder.as_ref().map(|h| &h.owner),
                    there_busy.holder.as_ref().map(|h| &h.owner),
                    "{:#?}",
                    self.trace
                );
                assert_eq!(
                    here_busy.retry_after.is_some(),
                    there_busy.retry_after.is_some(),
                    "{:#?}",
                    self.trace
                );
            }
            _ => assert_eq!(here, there, "{:#?}", self.trace),
        }
    }

    async fn release(&mut self, here: LeaseId, there: LeaseId) {
        let answer = self.backend.release(std::slice::from_ref(&there)).await.unwrap()[0];
        self.trace.push(format!("release {there:?} -> {answer:?}"));
        let (expected, _) = self.ledger.release(&here, self.now);
        assert_eq!(expected, answer, "{:#?}", self.trace);
    }

    async fn renew(&mut self, here: LeaseId, there: LeaseId) {
        let ttl = Ttl::new(Duration::from_hours(2)).unwrap();
        let renewal = Renewal { lease: there, ttl };
        let answer = self.backend.renew(std::slice::from_ref(&renewal)).await.unwrap()[0];
        self.trace.push(format!("renew {renewal:?} -> {answer:?}"));
        let expected = self.ledger.renew(&Renewal { lease: here.clone(), ttl }, self.now);
        assert_eq!(expected, answer, "{:#?}", self.trace);
    }

    /// Lets a live lease have expired a moment ago, on both sides.
    async fn expire(&mut self, here: LeaseId, there: LeaseId) {
        let Some(entry) = self.ledger.entries.iter_mut().find(|e| {
            e.attempt == here.attempt
                && matches!(e.until, Until::Forever | Until::Expiry(_))
                && e.token == here.token
        }) else {
            return;
        };
        if matches!(entry.until, Until::Expiry(at) if at <= self.now) || entry.until == Until::ENDED
        {
            return;
        }
        entry.until = Until::Expiry(self.now - Duration::from_millis(1));
        self.trace.push(format!("expire {there:?}"));
        let attempt = there.attempt.as_uuid();
        let rows = if there.share.is_exclusive() {
            self.admin
                .execute(
                    "update database_locks_lock
                     set expires_at = statement_timestamp(), lease_expires_at = statement_timestamp()
                     where name = $1 and attempt = $2",
                    &[&self.lock, &attempt],
                )
                .await
                .unwrap()
        } else {
            self.admin
                .execute(
                    "update database_locks_lock_share set expires_at = clock_timestamp()
                     where name = $1 and attempt = $2",
                    &[&self.lock, &attempt],
                )
                .await
                .unwrap()
        };
        assert_eq!(rows, 1, "nothing to expire: {:#?}", self.trace);
    }

    async fn compare_lists(&mut self) {
        let query =
            database_locks_core::ListQuery { prefix: self.lock.clone(), ..Default::default() };
        let there = self.backend.list(&query).await.unwrap();
        let here = self.ledger.list(&name(&self.lock), self.now);
        let strip = |lists: &[database_locks_core::LeaseInfo]| -> Vec<_> {
            lists
                .iter()
                .filter(|l| l.lease.name == name(&self.lock))
                .map(|l| {
                    let LeaseId { attempt, ref owner, share, .. } = l.lease;
                    (attempt, owner.clone(), share, l.remaining.is_some(), l.waited_for)
                })
                .collect()
        };
        assert_eq!(strip(&here), strip(&there), "{:#?}", self.trace);
    }
}

fn new_claim(lock: &str, random: &mut fastrand::Rng) -> Claim {
    let shares = [
        Share::ALL,
        Share::ALL,
        Share::ONE,
        Share::ONE,
        Share::ONE,
        Share::new(2, 5).unwrap(),
        Share::new(3, 5).unwrap(),
        Share::new(5, 5).unwrap(),
    ];
    let owners = [
        owner("host.1"),
        owner("alice"),
        Owner::explicit("alice").unwrap(),
        Owner::explicit("bob").unwrap(),
    ];
    let ttls = [Ttl::Infinite, Ttl::new(Duration::from_hours(1)).unwrap()];
    let graces = [Duration::ZERO, Duration::ZERO, Duration::from_mins(10)];
    let marks = [None, None, Some(Duration::from_mins(10))];
    Claim {
        share: *random.choice(&shares).unwrap(),
        owner: random.choice(&owners).unwrap().clone(),
        ttl: *random.choice(&ttls).unwrap(),
        grace: *random.choice(&graces).unwrap(),
        mark: *random.choice(&marks).unwrap(),
        ..claim(lock)
    }
}
