//! Many clients on few names, over-holding and asking again: weights must never exceed the
//! capacity, and tokens only grow.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Kind, Store, ask, claim, lease, on_each_server};
use database_locks_core::{
    Attempt, Claim, LockBackend, Released, Renewal, Renewed, Share, Token, Ttl, Verdict,
};
use database_locks_mysql::MysqlBackend;

on_each_server!(clients_that_overhold_and_repeat_never_overlap);

/// What the holders believe: who holds how much of each name, and until when at the latest.
#[derive(Default)]
struct Beliefs {
    holders: HashMap<(String, Attempt), (Share, Instant)>,
    last_token: HashMap<String, Token>,
    grants: u32,
}

impl Beliefs {
    fn granted(&mut self, claim: &Claim, token: Token, deadline: Instant) {
        let name = claim.name.as_str().to_owned();
        let now = Instant::now();
        let others: u64 = self
            .holders
            .iter()
            .filter(|((n, a), (_, until))| *n == name && *a != claim.attempt && *until > now)
            .map(|(_, (share, _))| u64::from(share.weight()))
            .sum();
        assert!(
            others + u64::from(claim.share.weight()) <= u64::from(claim.share.capacity())
                || deadline <= now,
            "{name} is held twice: {:?} under {token} beside {:?}",
            claim,
            self.holders
        );
        let last = self.last_token.entry(name.clone()).or_insert(Token::new(0));
        // Answers of shares may arrive out of order; exclusive ones cannot while they are of use.
        assert!(
            *last < token || !claim.share.is_exclusive() || deadline <= now,
            "{name}: {token} after {last}"
        );
        *last = token.max(*last);
        self.holders.insert((name, claim.attempt), (claim.share, deadline));
        self.grants += 1;
    }

    fn ended(&mut self, claim: &Claim) {
        self.holders.remove(&(claim.name.as_str().to_owned(), claim.attempt));
    }
}

async fn clients_that_overhold_and_repeat_never_overlap(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let beliefs = Arc::new(Mutex::new(Beliefs::default()));
    let end = Instant::now() + Duration::from_secs(8);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let backend = Arc::new(store.backend().await);
        for _ in 0..2 {
            let (backend, beliefs) = (Arc::clone(&backend), Arc::clone(&beliefs));
            clients.push(tokio::spawn(async move {
                while Instant::now() < end {
                    once(&backend, &beliefs).await;
                }
            }));
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let grants = beliefs.lock().unwrap().grants;
    println!("{grants} grants");
    assert!(grants > 100, "only {grants} grants: contention starved everybody");
}

async fn once(backend: &MysqlBackend, beliefs: &Mutex<Beliefs>) {
    let ttl = Duration::from_millis(100);
    let (lock, share) = match fastrand::u8(..6) {
        0 | 1 => ("exclusive", Share::ALL),
        2 => ("readers", Share::ALL),
        3 => ("readers", Share::ONE),
        _ => ("permits", Share::new(fastrand::u32(1..=3), 4).unwrap()),
    };
    let claim = Claim { share, ttl: Ttl::new(ttl).unwrap(), ..claim(lock) };
    let sent = Instant::now();
    let Verdict::Granted(mut token) = ask(backend, &claim).await else {
        return;
    };
    beliefs.lock().unwrap().granted(&claim, token, sent + ttl);

    match fastrand::u8(..6) {
        // The answer was lost: the same attempt asks again.
        0 => {
            let (deadline, sent) = (sent + ttl, Instant::now());
            match ask(backend, &claim).await {
                Verdict::Granted(again) if again == token => {}
                // Others may have had the lock since the lease expired, and then it is forgotten.
                Verdict::Granted(again) => {
                    assert!(
                        again > token && deadline < Instant::now(),
                        "a replay got another token"
                    );
                    beliefs.lock().unwrap().granted(&claim, again, sent + ttl);
                    token = again;
                }
                Verdict::Ended | Verdict::Busy(_) | Verdict::Skipped => {}
                other => panic!("a replay got {other:?}"),
            }
        }
        1 => {
            let renewal = Renewal { lease: lease(&claim, token), ttl: claim.ttl };
            let sent = Instant::now();
            let renewed = backend.renew(&[renewal]).await.unwrap();
            if renewed == [Renewed::Alive] {
                let mut beliefs = beliefs.lock().unwrap();
                let key = (claim.name.as_str().to_owned(), claim.attempt);
                beliefs.holders.insert(key, (share, sent + ttl));
            }
        }
        // It holds for too long, and releases what it has lost.
        2 => tokio::time::sleep(ttl + Duration::from_millis(fastrand::u64(..30))).await,
        _ => {}
    }
    beliefs.lock().unwrap().ended(&claim);
    let released = backend.release(&[lease(&claim, token)]).await.unwrap();
    assert!(
        matches!(released[..], [Released::Freed | Released::Lost(_) | Released::Skipped]),
        "{released:?}"
    );
}
