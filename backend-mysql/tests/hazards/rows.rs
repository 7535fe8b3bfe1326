//! Row locks and time, what changes in between, and what is written when.

use std::time::{Duration, Instant};

use database_locks_core::{
    Busy, LockBackend, LossReason, Owner, Release, Released, Renewal, Renewed, Share, Ttl, Verdict,
};
use database_locks_mysql::{MysqlBackend, MysqlConfig};
use database_locks_test_servers::{Access, MariaDb, MySql, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};

use crate::common::packets::Packets;
use crate::common::{Kind, Store, ask, claim, connect, hold, on_each_server};
use crate::{Said, django_takes, list, outlive, reader, release, renew, short};

on_each_server!(
    row_locked_past_the_ttl_renews_and_grants_nothing_dead,
    locked_row_does_not_stall_the_other_names_of_a_batch,
    locked_share_does_not_stall_the_other_names_of_a_batch,
    name_that_somebody_is_making_does_not_starve_the_others,
    batch_with_one_name_twice_grants_it_once,
    what_one_client_did_the_next_one_knows,
    busy_poll_writes_nothing_but_a_mark_that_is_due,
    what_changed_since_it_was_read_is_decided_again,
    verbs_take_the_round_trips_that_they_are_said_to_take,
    after_one_has_waited_in_vain_no_statement_waits_for_a_row,
    explicit_owner_supersedes_its_own_shares_and_no_others,
    owner_may_be_called_as_the_mark_of_shares,
    tokens_grow_though_the_clock_was_ahead,
);

/// All that the two tables hold.
async fn stored(client: &mut Conn) -> [Vec<Vec<Value>>; 2] {
    let mut tables = [Vec::new(), Vec::new()];
    for (rows, table) in tables.iter_mut().zip(["lock", "lock_share"]) {
        let sql = format!("SELECT * FROM database_locks_{table} ORDER BY name");
        let read: Vec<Row> = client.query(sql).await.unwrap();
        *rows = read.into_iter().map(Row::unwrap).collect();
    }
    tables
}

async fn row_locked_past_the_ttl_renews_and_grants_nothing_dead(kind: Kind) {
    row_locked_past_the_ttl(&Store::migrated(kind).await.0).await;
}

async fn row_locked_past_the_ttl(store: &Store) {
    let backend = store.backend_at_client().await;
    for (end, share) in [
        ("ROLLBACK", Share::ALL),
        ("COMMIT", Share::ALL),
        ("ROLLBACK", Share::ONE),
        ("COMMIT", Share::ONE),
    ] {
        let asked = short(&format!("{end} {share}")).with_share(share);
        let held = hold(&backend, &asked).await;
        let mut blocker = store.client().await;
        blocker.query_drop("START TRANSACTION").await.unwrap();
        let sql = "SELECT id FROM database_locks_lock WHERE name = ? FOR UPDATE";
        blocker.exec_drop(sql, (asked.name.as_str().as_bytes(),)).await.unwrap();

        // The row is locked while the lease is alive: nobody waits, and nothing is decided.
        let started = Instant::now();
        let kind = ask(&backend, &claim(asked.name.as_str())).await.kind();
        // It may have expired by now, and then nobody can tell.
        assert!(["busy", "skipped"].contains(&kind), "{kind}");
        let free = hold(&backend, &claim(&format!("beside {end} {share}"))).await;
        let renewed = renew(&backend, &held).await;
        assert!(
            matches!(renewed, Renewed::Skipped | Renewed::Lost(LossReason::Expired)),
            "{renewed:?}"
        );
        assert!(started.elapsed() < PATIENCE, "a try waited for a row lock");
        outlive().await;
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));
        assert_eq!(ask(&backend, &claim(asked.name.as_str())).await.kind(), "skipped");
        blocker.query_drop(end).await.unwrap();
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));

        let next = hold(&backend, &claim(asked.name.as_str())).await;
        assert!(next.token > held.token);
        assert_eq!(release(&backend, &next).await, Released::Done);
        assert_eq!(release(&backend, &free).await, Released::Done);
    }
}

/// Longer than a request takes on a busy machine that waits for nobody, or once or twice for a
/// gap, which servers let wait up to two seconds. One that waited in each round took nine.
const PATIENCE: Duration = Duration::from_secs(7);

async fn locked_row_does_not_stall_the_other_names_of_a_batch(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let backend = store.backend_at_client().await;
    let leases = [hold(&backend, &claim("a")).await, hold(&backend, &claim("b")).await];
    let mut blocker = store.client().await;
    blocker.query_drop("START TRANSACTION").await.unwrap();
    let sql = "UPDATE database_locks_lock SET waiting_weight = 0 WHERE name = 'a'";
    blocker.query_drop(sql).await.unwrap();

    let started = Instant::now();
    let renewals = leases.clone().map(|lease| Renewal::new(lease, Ttl::DEFAULT));
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Skipped, Renewed::Alive]);
    assert_eq!(
        backend.release(&Release::free_all(&leases)).await.unwrap(),
        [Released::Skipped, Released::Done]
    );
    let verdicts = backend.acquire(&[claim("a"), claim("b"), claim("c")]).await.unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Said::kind).collect();
    assert_eq!(kinds, ["busy", "granted", "granted"]);
    assert!(started.elapsed() < PATIENCE, "a batch waited for a row lock");

    blocker.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(release(&backend, &leases[0]).await, Released::Done);
}

async fn locked_share_does_not_stall_the_other_names_of_a_batch(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let backend = store.backend_at_client().await;
    let leases = [hold(&backend, &reader("a")).await, hold(&backend, &claim("b")).await];
    let mut blocker = store.client().await;
    blocker.query_drop("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    blocker.query_drop("START TRANSACTION").await.unwrap();
    // The gaps around the row as well.
    let sql = "SELECT * FROM database_locks_lock_share WHERE name = 'a' FOR UPDATE";
    blocker.query_drop(sql).await.unwrap();

    let renewals = leases.clone().map(|lease| Renewal::new(lease, Ttl::DEFAULT));
    let started = Instant::now();
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Skipped, Renewed::Alive]);
    assert!(started.elapsed() < PATIENCE, "a renewal waited for a row lock");
    let started = Instant::now();
    let verdicts = backend.acquire(&[reader("a"), claim("c"), claim("d")]).await.unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Said::kind).collect();
    assert_eq!(kinds, ["skipped", "granted", "granted"]);
    assert!(started.elapsed() < PATIENCE, "a batch waited for a gap");

    blocker.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(release(&backend, &leases[0]).await, Released::Done);
}

async fn name_that_somebody_is_making_does_not_starve_the_others(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let backend = store.backend_at_client().await;
    for (round, blocking) in [
        "INSERT INTO database_locks_lock (name) VALUES ('blocked 0')",
        // As Django does it before it inserts: this locks the gap where the name would be.
        "SELECT * FROM database_locks_lock WHERE name = 'blocked 1' FOR UPDATE",
    ]
    .into_iter()
    .enumerate()
    {
        // They keep the gap apart from where the others would be.
        for beside in [format!("blocked {round} "), format!("blocke{round}")] {
            hold(&backend, &claim(&beside)).await;
        }
        let mut blocker = store.client().await;
        blocker.query_drop("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        blocker.query_drop("START TRANSACTION").await.unwrap();
        blocker.query_drop(blocking).await.unwrap();

        let started = Instant::now();
        let blocked = claim(&format!("blocked {round}"));
        assert_eq!(ask(&backend, &blocked).await.kind(), "skipped");
        assert!(started.elapsed() < PATIENCE, "a try waited for {blocking}");
        let mut open = vec![
            blocked.clone(),
            claim(&format!("fresh {round}")),
            reader(&format!("fresh {round} too")),
            claim(&format!("a fresh {round}")),
        ];
        // The engine asks again for what was busy; all but one come through.
        let mut asked = 0;
        while open.len() > 1 {
            let started = Instant::now();
            let verdicts = backend.acquire(&open).await.unwrap();
            assert!(started.elapsed() < PATIENCE, "a batch waited for {blocking}");
            let mut verdicts = verdicts.into_iter();
            open.retain(|_| !matches!(verdicts.next(), Some(Verdict::Granted(_))));
            asked += 1;
            assert!(asked < 50 && open.contains(&blocked), "{open:?} starve");
        }
        // What is just being inserted is known, and left alone.
        assert!(asked == 1 || round == 1, "the others came through one by one only");
        blocker.query_drop("ROLLBACK").await.unwrap();
        hold(&backend, &blocked).await;
    }
}

async fn batch_with_one_name_twice_grants_it_once(kind: Kind) {
    let (_store, backend) = Store::migrated(kind).await;
    for share in [Share::ALL, Share::ONE] {
        let lock = format!("twice {share}");
        let twice = claim(&lock).with_share(share);
        for _ in 0..2 {
            let verdicts = backend
                .acquire(&[
                    twice.clone().with_attempt(claim("x").attempt),
                    twice.clone().with_attempt(claim("x").attempt),
                ])
                .await
                .unwrap();
            let granted = verdicts.iter().filter(|v| v.kind() == "granted").count();
            assert!(granted >= 1 && granted <= if share.is_exclusive() { 1 } else { 2 });
            let held = list(&backend, &lock).await;
            assert_eq!(held.len(), granted, "{verdicts:?}");
            let leases: Vec<_> = held.into_iter().map(|info| info.lease).collect();
            let released = backend.release(&Release::free_all(&leases)).await.unwrap();
            assert_eq!(released, vec![Released::Done; granted]);
        }
    }
    assert!(backend.acquire(&[]).await.unwrap().is_empty());
}

async fn what_one_client_did_the_next_one_knows(kind: Kind) {
    let (store, one) = Store::migrated(kind).await;
    let other = store.backend().await;
    for round in 0..150 {
        let (one, other) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        for asked in [claim("all"), reader("share")] {
            let held = hold(one, &asked).await;
            match ask(other, &claim(asked.name.as_str())).await {
                Verdict::Busy(Busy { holder: Some(holder), .. }) => {
                    assert_eq!(holder.token, held.token);
                }
                verdict => panic!("{verdict:?} in round {round}"),
            }
            assert_eq!(list(other, asked.name.as_str()).await[0].lease, held);
            assert_eq!(release(other, &held).await, Released::Done);
            assert_eq!(renew(one, &held).await, Renewed::Lost(LossReason::Forced));
        }
    }
}

async fn busy_poll_writes_nothing_but_a_mark_that_is_due(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let backend = store.backend_at_client().await;
    let mut client = store.client().await;
    hold(&backend, &claim("x")).await;
    hold(&backend, &reader("y")).await;
    let before = stored(&mut client).await;
    let busy = async || {
        for lock in ["x", "y"] {
            match ask(&backend, &claim(lock)).await {
                Verdict::Busy(Busy { holder: Some(_), retry_after: Some(_), .. }) => {}
                verdict => panic!("{verdict:?}"),
            }
        }
        assert_eq!(ask(&backend, &reader("x")).await.kind(), "busy");
        let both = backend.acquire(&[claim("x"), claim("y")]).await.unwrap();
        assert!(both.iter().all(|verdict| verdict.kind() == "busy"));
    };
    for _ in 0..20 {
        busy().await;
    }
    assert_eq!(stored(&mut client).await, before, "a busy poll wrote");

    let mut blocker = store.client().await;
    blocker.query_drop("START TRANSACTION").await.unwrap();
    blocker.query_drop("SELECT * FROM database_locks_lock FOR UPDATE").await.unwrap();
    busy().await;
    blocker.query_drop("ROLLBACK").await.unwrap();

    let marked = claim("x").with_mark(Duration::from_mins(1));
    assert_eq!(ask(&backend, &marked).await.kind(), "busy");
    let after = stored(&mut client).await;
    assert_ne!(after[0], before[0], "the mark was not written");
    for mark in [Duration::from_mins(1), Duration::from_secs(70)] {
        let marked = marked.clone().with_mark(mark);
        assert_eq!(ask(&backend, &marked).await.kind(), "busy");
        assert_eq!(stored(&mut client).await, after, "the mark was written though it was not due");
    }
    let longer = marked.with_mark(Duration::from_mins(5));
    assert_eq!(ask(&backend, &longer).await.kind(), "busy");
    assert_ne!(stored(&mut client).await, after, "the mark was due");
}

async fn what_changed_since_it_was_read_is_decided_again(kind: Kind) {
    let (store, other) = Store::migrated(kind).await;
    let node = store.node();
    let packets = Packets::start(node).await;
    let config = MysqlConfig::from_url(&packets.url(node)).unwrap();
    let slow = MysqlBackend::connect(config).await.unwrap();
    let mut django = store.client().await;

    // Somebody who knows of no versions takes the name.
    release(&other, &hold(&other, &claim("expiry")).await).await;
    let asked = reader("expiry");
    packets.shut();
    let (verdict, ()) = tokio::join!(ask(&slow, &asked), async {
        packets.held().await;
        django_takes(&mut django, "expiry").await;
        packets.open();
    });
    match verdict {
        Verdict::Busy(Busy { holder: Some(holder), .. }) => {
            assert_eq!(holder.owner.label(), "web.3");
        }
        verdict => panic!("{verdict:?}"),
    }

    // Somebody takes a permit for a shorter time, so that the row expires when it did.
    let permit = |seconds| {
        claim("version")
            .with_share(Share::new(1, 2).unwrap())
            .with_ttl(Ttl::new(Duration::from_secs(seconds)).unwrap())
    };
    hold(&other, &permit(60)).await;
    let asked = permit(60);
    packets.shut();
    let (verdict, _) = tokio::join!(ask(&slow, &asked), async {
        packets.held().await;
        let held = hold(&other, &permit(30)).await;
        packets.open();
        held
    });
    assert_eq!(verdict.kind(), "busy");
    assert_eq!(list(&other, "version").await.len(), 2);

    // The lease ends before its renewal comes.
    let held = hold(&slow, &short("time").with_share(Share::ONE)).await;
    packets.shut();
    let (renewed, ()) = tokio::join!(renew(&slow, &held), async {
        packets.held().await;
        outlive().await;
        packets.open();
    });
    assert_eq!(renewed, Renewed::Lost(LossReason::Expired));
    // Somebody takes a name that is about to be forgotten.
    let idle = hold(&other, &claim("idle")).await;
    release(&other, &idle).await;
    outlive().await;
    packets.shut();
    let (forgotten, held) = tokio::join!(slow.clean_up(Duration::from_micros(1)), async {
        packets.held().await;
        let held = hold(&other, &claim("idle")).await;
        packets.open();
        held
    });
    forgotten.unwrap();
    assert_eq!(renew(&other, &held).await, Renewed::Alive, "a held name was forgotten");
}

async fn verbs_take_the_round_trips_that_they_are_said_to_take(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let node = store.node();
    // On the same node: one that applies what another node wrote takes the locks of our statements away.
    let other = MysqlBackend::connect(MysqlConfig::from_url(node.url()).unwrap()).await.unwrap();
    let packets = Packets::start(node).await;
    let config = MysqlConfig::from_url(&packets.url(node)).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();
    let held = hold(&backend, &claim("x")).await;
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    assert_eq!(release(&backend, &held).await, Released::Done);
    assert!(!packets.take().is_empty(), "the proxy counts nothing");

    for _ in 0..3 {
        let held = hold(&backend, &claim("x")).await;
        assert_eq!(packets.take().len(), 1);
        assert_eq!(release(&backend, &held).await, Released::Done);
        assert_eq!(packets.take().len(), 1);
    }
    // A node of a cluster is told to commit once it is seen that the transaction is whole.
    let commit = usize::from(kind == Kind::Galera);
    let leases = [hold(&backend, &claim("x")).await, hold(&backend, &claim("y")).await];
    packets.take();
    assert_eq!(backend.release(&Release::free_all(&leases)).await.unwrap(), [Released::Done; 2]);
    assert_eq!(packets.take().len(), 1 + commit);
    let claims = [claim("x"), claim("y")];
    let verdicts = backend.acquire(&claims).await.unwrap();
    assert_eq!(packets.take().len(), 1 + commit);
    let leases = [0, 1].map(|i| match verdicts[i] {
        Verdict::Granted(token) => claims[i].lease(token),
        ref other => panic!("{other:?}"),
    });
    assert_eq!(backend.release(&Release::free_all(&leases)).await.unwrap(), [Released::Done; 2]);
    packets.take();

    hold(&other, &claim("x")).await;
    hold(&other, &reader("y")).await;
    // What is not free is read after it was tried to take it.
    for (asked, sent) in [(claim("x"), 2), (reader("x"), 1), (claim("y"), 2)] {
        assert_eq!(ask(&backend, &asked).await.kind(), "busy");
        let seen = packets.take();
        assert_eq!(seen.len(), sent, "{seen:#?}");
    }
    // A renewal is read, and written.
    let share = hold(&backend, &reader("y")).await;
    packets.take();
    assert_eq!(renew(&backend, &share).await, Renewed::Alive);
    assert_eq!(packets.take().len(), 2 + commit);
}

/// A single claim or release waits for a row that somebody has locked. Whoever locks one for that long must not
/// hold up what comes next.
async fn after_one_has_waited_in_vain_no_statement_waits_for_a_row(kind: Kind) {
    let (store, other) = Store::migrated(kind).await;
    let node = store.node();
    let held = hold(&other, &claim("held")).await;
    let free = hold(&other, &claim("free")).await;
    release(&other, &free).await;
    let mut blocker = connect(node).await;
    // What another node writes later would take its locks away.
    blocker.query_drop("SET SESSION wsrep_sync_wait = 7").await.ok();
    blocker.query_drop("START TRANSACTION").await.unwrap();
    blocker.query_drop("SELECT * FROM database_locks_lock FOR UPDATE").await.unwrap();
    let packets = Packets::start(node).await;
    let config = MysqlConfig::from_url(&packets.url(node)).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();

    let has = |sent: &[String], what| sent.iter().any(|text| text.contains(what));
    packets.take();
    assert_eq!(ask(&backend, &claim("free")).await.kind(), "skipped");
    let sent = packets.take();
    assert!(has(&sent, "WHERE name = ?"), "a single claim is no single statement");
    assert!(!has(&sent, "SET NAMES"), "a connection was given up for what somebody has locked");
    assert_eq!(release(&backend, &held).await, Released::Skipped);
    assert_eq!(ask(&backend, &claim("free")).await.kind(), "skipped");
    let sent = packets.take();
    assert!(!has(&sent, "WHERE name = ?"), "a statement waits though another has waited in vain");

    blocker.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(release(&backend, &held).await, Released::Done);
    assert_eq!(ask(&backend, &claim("free")).await.kind(), "granted");
}

async fn explicit_owner_supersedes_its_own_shares_and_no_others(kind: Kind) {
    let (_store, backend) = Store::migrated(kind).await;
    let alice = Owner::explicit("alice").unwrap();
    let mine = reader("x").with_owner(alice.clone());
    let old = hold(&backend, &mine).await;
    let writer = claim("x").with_owner(alice.clone());
    let new = hold(&backend, &writer).await;
    assert!(new.token > old.token);
    assert_eq!(renew(&backend, &old).await, Renewed::Lost(LossReason::Superseded));
    release(&backend, &new).await;
    // The share that was superseded must not count, or live, beside the new one.
    hold(&backend, &reader("x")).await;
    assert!(matches!(renew(&backend, &old).await, Renewed::Lost(_)));
    assert_eq!(ask(&backend, &claim("x").with_owner(alice)).await.kind(), "busy");
}

async fn owner_may_be_called_as_the_mark_of_shares(kind: Kind) {
    let (_store, backend) = Store::migrated(kind).await;
    let owner = Owner::label_only("(shared)").unwrap();
    let held = hold(&backend, &claim("x").with_owner(owner)).await;
    assert_eq!(ask(&backend, &claim("x")).await.kind(), "busy");
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    assert_eq!(list(&backend, "x").await[0].lease, held);
    assert_eq!(release(&backend, &held).await, Released::Done);
}

async fn tokens_grow_though_the_clock_was_ahead(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    for asked in [claim("x"), reader("y")] {
        let held = hold(&backend, &asked).await;
        assert_eq!(release(&backend, &held).await, Released::Done);
        let sql = "UPDATE database_locks_lock SET token = token + 1000000000000000 WHERE name = ?";
        let lock = asked.name.as_str();
        store.client().await.exec_drop(sql, (lock.as_bytes(),)).await.unwrap();
        let next = hold(&backend, &asked.clone().with_attempt(claim(lock).attempt)).await;
        assert_eq!(next.token.get(), held.token.get() + 1_000_000_000_000_001);
    }
}

/// A server whose `SYSDATE` is `NOW` reads its clock once a statement, before any wait.
#[tokio::test]
async fn clock_that_stands_still_within_a_statement_changes_nothing_on_mysql() {
    let server = MySql::builder().setting("sysdate_is_now", "ON").start().unwrap();
    clock_that_stands_still(&server).await.unwrap();
}

#[tokio::test]
async fn clock_that_stands_still_within_a_statement_changes_nothing_on_mariadb() {
    let server = MariaDb::builder().setting("sysdate_is_now", "ON").start().unwrap();
    clock_that_stands_still(&server).await.unwrap();
}

async fn clock_that_stands_still(server: &Access) -> Result<()> {
    let store = Store::on(std::slice::from_ref(server))?;
    store.backend().await.migrate().await?;
    row_locked_past_the_ttl(&store).await;
    Ok(())
}
