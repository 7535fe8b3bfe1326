//! What only this backend can get wrong: row locks and time, hostile sessions, connections,
//! rights, foreign tables, and what is written when.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::packets::Packets;
use common::{Kind, Store, ask, claim, connect, hold, lease, name, on_each_server};
use database_locks_core::{
    Busy, Claim, ErrorKind, LeaseId, LeaseInfo, ListQuery, LockBackend, LossReason, Owner,
    Released, Renewal, Renewed, Share, Ttl, Verdict,
};
use database_locks_mysql::{MysqlBackend, MysqlConfig, schema_sql};
use database_locks_test_servers::{Access, MariaDb, MySql, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};
use uuid::Uuid;

on_each_server!(
    row_locked_past_the_ttl_renews_and_grants_nothing_dead,
    locked_row_does_not_stall_the_other_names_of_a_batch,
    locked_share_does_not_stall_the_other_names_of_a_batch,
    name_that_somebody_is_making_does_not_starve_the_others,
    batch_with_one_name_twice_grants_it_once,
    what_one_client_did_the_next_one_knows,
    hostile_defaults_of_the_session_change_nothing,
    ten_clients_migrate_at_once,
    missing_tables_are_not_migrated_and_work_once_made,
    table_of_an_engine_without_row_locks_is_refused,
    table_of_a_django_app_is_adopted_and_shared,
    table_of_a_django_app_is_made_exact,
    lock_user_needs_four_rights_on_two_tables,
    busy_poll_writes_nothing_but_a_mark_that_is_due,
    what_changed_since_it_was_read_is_decided_again,
    what_is_free_is_granted_and_released_in_one_packet_each,
    killed_connections_are_replaced,
    dropped_request_takes_its_connection_with_it,
    bad_credentials_and_databases_say_what_to_do,
    explicit_owner_supersedes_its_own_shares_and_no_others,
    owner_may_be_called_as_the_mark_of_shares,
    clean_up_forgets_what_is_idle_and_nothing_else,
    names_are_bytes_whatever_the_database_compares,
    tokens_grow_though_the_clock_was_ahead,
    first_creation_race_has_one_winner_a_name,
);

fn short(lock: &str) -> Claim {
    Claim { ttl: Ttl::new(Ttl::MIN).unwrap(), ..claim(lock) }
}

fn reader(lock: &str) -> Claim {
    Claim { share: Share::ONE, ..claim(lock) }
}

async fn renew(backend: &MysqlBackend, lease: &LeaseId) -> Renewed {
    let renewal = Renewal { lease: lease.clone(), ttl: Ttl::DEFAULT };
    backend.renew(&[renewal]).await.unwrap()[0]
}

async fn release(backend: &MysqlBackend, lease: &LeaseId) -> Released {
    backend.release(std::slice::from_ref(lease)).await.unwrap()[0]
}

async fn list(backend: &MysqlBackend, prefix: &str) -> Vec<LeaseInfo> {
    let query = ListQuery { prefix: prefix.to_owned(), ..ListQuery::default() };
    backend.list(&query).await.unwrap()
}

/// Longer than the shortest TTL by far, so that only a wrong clock can still see it alive.
async fn outlive() {
    tokio::time::sleep(Ttl::MIN * 3).await;
}

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
        let asked = Claim { share, ..short(&format!("{end} {share}")) };
        let held = hold(&backend, &asked).await;
        let mut blocker = store.client().await;
        blocker.query_drop("START TRANSACTION").await.unwrap();
        let sql = "SELECT id FROM database_locks_lock WHERE name = ? FOR UPDATE";
        blocker.exec_drop(sql, (asked.name.as_str().as_bytes(),)).await.unwrap();

        // The row is locked while the lease is alive: nobody waits, and nothing is decided.
        let started = Instant::now();
        assert_eq!(ask(&backend, &claim(asked.name.as_str())).await.kind(), "busy");
        let free = hold(&backend, &claim(&format!("beside {end} {share}"))).await;
        let renewed = renew(&backend, &held).await;
        assert!(
            matches!(renewed, Renewed::Skipped | Renewed::Lost(LossReason::Expired)),
            "{renewed:?}"
        );
        assert!(started.elapsed() < PATIENCE, "a try waited for a row lock");
        outlive().await;
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));
        assert_eq!(ask(&backend, &claim(asked.name.as_str())).await.kind(), "busy");
        blocker.query_drop(end).await.unwrap();
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));

        let next = hold(&backend, &claim(asked.name.as_str())).await;
        assert!(next.token > held.token);
        assert_eq!(release(&backend, &next).await, Released::Freed);
        assert_eq!(release(&backend, &free).await, Released::Freed);
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
    let renewals = leases.clone().map(|lease| Renewal { lease, ttl: Ttl::DEFAULT });
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Skipped, Renewed::Alive]);
    assert_eq!(backend.release(&leases).await.unwrap(), [Released::Skipped, Released::Freed]);
    let verdicts = backend.acquire(&[claim("a"), claim("b"), claim("c")]).await.unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Said::kind).collect();
    assert_eq!(kinds, ["busy", "granted", "granted"]);
    assert!(started.elapsed() < PATIENCE, "a batch waited for a row lock");

    blocker.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(release(&backend, &leases[0]).await, Released::Freed);
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

    let renewals = leases.clone().map(|lease| Renewal { lease, ttl: Ttl::DEFAULT });
    let started = Instant::now();
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Skipped, Renewed::Alive]);
    assert!(started.elapsed() < PATIENCE, "a renewal waited for a row lock");
    let started = Instant::now();
    let verdicts = backend.acquire(&[reader("a"), claim("c"), claim("d")]).await.unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Said::kind).collect();
    assert_eq!(kinds, ["busy", "granted", "granted"]);
    assert!(started.elapsed() < PATIENCE, "a batch waited for a gap");

    blocker.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(release(&backend, &leases[0]).await, Released::Freed);
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
        assert_eq!(ask(&backend, &blocked).await.kind(), "busy");
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
        let twice = Claim { share, ..claim(&lock) };
        for _ in 0..2 {
            let verdicts = backend
                .acquire(&[
                    Claim { attempt: claim("x").attempt, ..twice.clone() },
                    Claim { attempt: claim("x").attempt, ..twice.clone() },
                ])
                .await
                .unwrap();
            let granted = verdicts.iter().filter(|v| v.kind() == "granted").count();
            assert!(granted >= 1 && granted <= if share.is_exclusive() { 1 } else { 2 });
            let held = list(&backend, &lock).await;
            assert_eq!(held.len(), granted, "{verdicts:?}");
            let leases: Vec<_> = held.into_iter().map(|info| info.lease).collect();
            let released = backend.release(&leases).await.unwrap();
            assert_eq!(released, vec![Released::Freed; granted]);
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
            assert_eq!(release(other, &held).await, Released::Freed);
            assert_eq!(renew(one, &held).await, Renewed::Lost(LossReason::Forced));
        }
    }
}

async fn hostile_defaults_of_the_session_change_nothing(kind: Kind) {
    let (store, admin) = Store::migrated(kind).await;
    // Only users that are called like this one, so that no other test meets it.
    let prefix = "hostile_";
    let user = format!("{prefix}{}", &Uuid::new_v4().simple().to_string()[..20]);
    let if_hostile = |name: &str, value: &str| {
        format!("@@session.{name} = IF(USER() LIKE '{prefix}%', {value}, @@session.{name})")
    };
    let init = format!(
        "SET {}, {}, {}",
        if_hostile("autocommit", "0"),
        if_hostile("time_zone", "'+09:00'"),
        if_hostile("sql_mode", "''"),
    );
    for node in &store.nodes {
        connect(node).await.exec_drop("SET GLOBAL init_connect = ?", (&init,)).await.unwrap();
    }
    make_user(&store, &user).await;
    let database = store.database.database_name();
    grant(&store, &format!("GRANT ALL ON {database}.* TO {user}")).await;
    let access = store.node().as_user(&user, "secret");
    let hostile =
        MysqlBackend::connect(MysqlConfig::from_url(access.url()).unwrap()).await.unwrap();

    // What this user's sessions are like without us.
    let mut plain = connect(&access).await;
    let found: Option<(i64, String)> =
        plain.query_first("SELECT @@autocommit, @@time_zone").await.unwrap();
    assert_eq!(found, Some((0, "+09:00".to_owned())));

    for asked in [claim("x"), reader("y")] {
        let lock = asked.name.as_str();
        let held = hold(&hostile, &asked).await;
        let seen = list(&admin, lock).await;
        assert_eq!(seen[0].lease, held);
        let remaining = seen[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_mins(1));
        assert_eq!(ask(&hostile, &claim(lock)).await.kind(), "busy");
        assert_eq!(ask(&admin, &claim(lock)).await.kind(), "busy");
        let remaining = list(&hostile, lock).await[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_mins(1));

        assert_eq!(renew(&hostile, &held).await, Renewed::Alive);
        let remaining = list(&admin, lock).await[0].remaining.unwrap();
        assert!(remaining <= Duration::from_secs(10), "the renewal is not seen");
        assert_eq!(release(&hostile, &held).await, Released::Freed);
        let held = hold(&admin, &Claim { attempt: claim(lock).attempt, ..asked }).await;
        assert_eq!(renew(&hostile, &held).await, Renewed::Alive);
        assert_eq!(release(&hostile, &held).await, Released::Freed);
        outlive().await;
        let idle = Duration::from_micros(1);
        assert_eq!(hostile.clean_up(idle).await.unwrap(), 1);
        assert_eq!(admin.clean_up(idle).await.unwrap(), 0);
    }
    grant(&store, &format!("DROP USER {user}")).await;
}

async fn ten_clients_migrate_at_once(kind: Kind) {
    let store = Store::empty(kind);
    let mut tasks = Vec::new();
    for i in 0..10 {
        let config = store.config();
        tasks.push(tokio::spawn(async move {
            let backend = MysqlBackend::connect(config).await.unwrap();
            backend.migrate().await.unwrap();
            hold(&backend, &reader(&format!("x {i}"))).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let printed = schema_sql(&store.config());
    store.client().await.query_drop(printed).await.unwrap();
    assert_eq!(list(&store.backend().await, "x ").await.len(), 10);
}

async fn missing_tables_are_not_migrated_and_work_once_made(kind: Kind) {
    let store = Store::empty(kind);
    let backend = store.backend().await;
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
    assert!(error.to_string().contains("dblock migrate"), "{error}");
    backend.migrate().await.unwrap();
    hold(&backend, &claim("x")).await;
}

async fn table_of_an_engine_without_row_locks_is_refused(kind: Kind) {
    let engines: &[&str] = if kind == Kind::MySql { &["MyISAM"] } else { &["MyISAM", "Aria"] };
    for engine in engines {
        for table in ["database_locks_lock", "database_locks_lock_share"] {
            let store = Store::empty(kind);
            let before = store.backend_at_client().await;
            let sql = format!("CREATE TABLE {table} (id INT PRIMARY KEY) ENGINE = {engine}");
            store.client().await.query_drop(sql).await.unwrap();
            let config = MysqlConfig::from_url(store.nodes[0].url()).unwrap();
            let at_connect = MysqlBackend::connect(config).await.unwrap_err();
            let at_migrate = before.migrate().await.unwrap_err();
            for error in [at_connect, at_migrate] {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                let said = error.to_string();
                assert!(said.contains(&format!("the table {table} ")), "{said}");
                assert!(said.contains(engine) && said.contains("ENGINE=InnoDB"), "{said}");
            }
        }
    }
}

async fn table_of_a_django_app_is_made_exact(kind: Kind) {
    let store = Store::with(&kind.shared().unwrap(), "CHARACTER SET latin1").unwrap();
    let mut django = store.client().await;
    // As Django made it for servers that knew no fractions.
    let table = "CREATE TABLE database_locks_lock (
        id int AUTO_INCREMENT NOT NULL PRIMARY KEY, name varchar(255) NOT NULL UNIQUE,
        locked_by longtext NULL, expires_at datetime NULL)";
    django.query_drop(table).await.unwrap();
    let insert = "INSERT INTO database_locks_lock (name) VALUES (?), (?)";
    django.exec_drop(insert, ("Job", "caf\u{e9}")).await.unwrap();
    let backend = store.backend_at_client().await;
    backend.migrate().await.unwrap();

    let names = ["Job", "job", "job ", "j\u{f3}b", "caf\u{e9}", "cafe\u{301}"];
    let mut held = Vec::new();
    for name in names {
        let owner = Owner::label_only(name).unwrap();
        held.push(hold(&backend, &Claim { owner, ..claim(name) }).await);
    }
    for lease in &held {
        assert_eq!(ask(&backend, &claim(lease.name.as_str())).await.kind(), "busy");
        assert_eq!(renew(&backend, lease).await, Renewed::Alive);
    }
    let mut sorted = held.clone();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut listed: Vec<LeaseId> = Vec::new();
    loop {
        let after = listed.last().map(|lease| (lease.name.clone(), lease.attempt));
        let query = ListQuery { after, limit: 1, ..ListQuery::default() };
        match backend.list(&query).await.unwrap().pop() {
            Some(info) => listed.push(info.lease),
            None => break,
        }
    }
    assert_eq!(listed, sorted);
    assert_eq!(list(&backend, "caf\u{e9}").await.len(), 1);
    let names_there: Vec<String> =
        django.query("SELECT name FROM database_locks_lock ORDER BY id").await.unwrap();
    assert_eq!(names_there[..2], ["Job", "caf\u{e9}"], "the app still reads text");
    for lease in &held {
        assert_eq!(release(&backend, lease).await, Released::Freed);
    }

    // Somebody puts it back as the app would make it.
    let back = "ALTER TABLE database_locks_lock MODIFY expires_at datetime NULL";
    django.query_drop(back).await.unwrap();
    let error = MysqlBackend::connect(store.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("MODIFY expires_at DATETIME(6)"), "{error}");
}

async fn table_of_a_django_app_is_adopted_and_shared(kind: Kind) {
    let store = Store::with(&kind.shared().unwrap(), "CHARACTER SET utf8mb4").unwrap();
    let mut django = store.client().await;
    django
        .query_drop(
            "CREATE TABLE database_locks_lock (
               id int AUTO_INCREMENT NOT NULL PRIMARY KEY, name varchar(255) NOT NULL UNIQUE,
               locked_by longtext NULL, expires_at datetime(6) NULL);
             INSERT INTO database_locks_lock (name, locked_by, expires_at)
             VALUES ('held', 'web.1', UTC_TIMESTAMP(6) + INTERVAL 1 HOUR), ('free', 'web.1', NULL)",
        )
        .await
        .unwrap();
    let backend = store.backend_at_client().await;
    backend.migrate().await.unwrap();
    backend.migrate().await.unwrap();

    match ask(&backend, &claim("held")).await {
        Verdict::Busy(Busy { holder: Some(holder), .. }) => {
            assert_eq!(holder.owner.label(), "web.1");
            let remaining = holder.remaining.unwrap();
            assert!(remaining > Duration::from_mins(50) && remaining <= Duration::from_hours(1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ask(&backend, &reader("held")).await.kind(), "busy");
    let ours = hold(&backend, &claim("free")).await;
    assert!(is_live(&mut django, "free").await);
    let shown: Option<String> = django
        .query_first("SELECT locked_by FROM database_locks_lock WHERE name = 'free'")
        .await
        .unwrap();
    assert_eq!(shown.as_deref(), Some("host.1"));

    // Django takes over a dead row and writes only its own columns.
    let take_over = "UPDATE database_locks_lock SET locked_by = 'web.2',
                     expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE name = 'free'";
    django.query_drop(take_over).await.unwrap();
    assert_eq!(renew(&backend, &ours).await, Renewed::Lost(LossReason::Taken));
    assert_eq!(release(&backend, &ours).await, Released::Lost(LossReason::Taken));
    assert!(is_live(&mut django, "free").await);
    assert_eq!(ask(&backend, &claim("free")).await.kind(), "busy");

    // It may be called as our owner is.
    let ours_too = hold(&backend, &claim("namesake")).await;
    let take_over = take_over.replace("web.2", "host.1").replace("'free'", "'namesake'");
    django.query_drop(take_over).await.unwrap();
    assert_eq!(release(&backend, &ours_too).await, Released::Lost(LossReason::Taken));
    assert!(is_live(&mut django, "namesake").await);

    // What Django holds can be listed, and released by force, and then be had: by a higher token.
    for lock in ["held", "free"] {
        let listed = list(&backend, lock).await;
        assert!(listed[0].lease.owner.label().starts_with("web."));
        assert_eq!(release(&backend, &listed[0].lease).await, Released::Freed);
        assert!(!is_live(&mut django, lock).await);
    }
    assert!(hold(&backend, &claim("free")).await.token > ours.token);

    // Django ends our lease, and renews one of its own.
    let ended = hold(&backend, &claim("ended")).await;
    django_ends(&mut django, "ended").await;
    assert_eq!(renew(&backend, &ended).await, Renewed::Lost(LossReason::Forced));
    django_takes(&mut django, "ended").await;
    django_takes(&mut django, "ended").await;
    assert_eq!(ask(&backend, &claim("ended")).await.kind(), "busy");
    django_ends(&mut django, "ended").await;
    hold(&backend, &claim("ended")).await;

    // A shared name is held for Django until the last share ends, whichever that is.
    let one = hold(&backend, &reader("r")).await;
    hold(&backend, &Claim { ttl: Ttl::new(Ttl::MIN).unwrap(), ..reader("r") }).await;
    outlive().await;
    assert!(is_live(&mut django, "r").await);
    let two = hold(&backend, &reader("r")).await;
    assert_eq!(release(&backend, &one).await, Released::Freed);
    assert!(is_live(&mut django, "r").await);
    assert_eq!(release(&backend, &two).await, Released::Freed);
    assert!(!is_live(&mut django, "r").await);

    // Django releases by force what it sees as held by "(shared)".
    let shares = [hold(&backend, &reader("s")).await, hold(&backend, &reader("s")).await];
    django_ends(&mut django, "s").await;
    for share in &shares {
        assert_eq!(renew(&backend, share).await, Renewed::Lost(LossReason::Forced));
    }
    assert!(list(&backend, "s").await.is_empty());
    hold(&backend, &reader("s")).await;
    assert_eq!(list(&backend, "s").await.len(), 1);
    for share in &shares {
        assert_eq!(renew(&backend, share).await, Renewed::Lost(LossReason::Forced));
    }

    // Once Django took the name, shares of before are dead and stay so.
    let share = hold(&backend, &reader("taken")).await;
    django_takes(&mut django, "taken").await;
    assert_eq!(renew(&backend, &share).await, Renewed::Lost(LossReason::Taken));
    assert_eq!(list(&backend, "taken").await.len(), 1);
    django_ends(&mut django, "taken").await;
    hold(&backend, &reader("taken")).await;
    assert!(matches!(renew(&backend, &share).await, Renewed::Lost(_)), "a dead share rose");
    assert_eq!(list(&backend, "taken").await.len(), 1);
}

async fn is_live(django: &mut Conn, lock: &str) -> bool {
    let sql = "SELECT COUNT(*) FROM database_locks_lock
               WHERE name = ? AND expires_at > UTC_TIMESTAMP(6)";
    django.exec_first::<i64, _, _>(sql, (lock,)).await.unwrap() == Some(1)
}

async fn django_takes(django: &mut Conn, lock: &str) {
    let sql = "UPDATE database_locks_lock SET locked_by = 'web.3',
               expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE name = ?";
    django.exec_drop(sql, (lock,)).await.unwrap();
}

async fn django_ends(django: &mut Conn, lock: &str) {
    let sql = "UPDATE database_locks_lock SET expires_at = NULL WHERE name = ?";
    django.exec_drop(sql, (lock,)).await.unwrap();
}

async fn lock_user_needs_four_rights_on_two_tables(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let user = format!("u_{}", &Uuid::new_v4().simple().to_string()[..20]);
    let database = store.database.database_name().to_owned();
    make_user(&store, &user).await;
    let access = store.node().as_user(&user, "secret");
    let config = || MysqlConfig::from_url(access.url()).unwrap();
    let error = MysqlBackend::connect(config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    let tables = ["database_locks_lock", "database_locks_lock_share"];
    for table in tables {
        grant(&store, &format!("GRANT SELECT ON {database}.{table} TO {user}")).await;
    }
    let backend = MysqlBackend::connect(config()).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    for table in tables {
        let rights = "INSERT, UPDATE, DELETE";
        grant(&store, &format!("GRANT {rights} ON {database}.{table} TO {user}")).await;
    }
    let backend = MysqlBackend::connect(config()).await.unwrap();
    backend.migrate().await.unwrap();
    for asked in [claim("x"), reader("y"), reader("y")] {
        let held = hold(&backend, &asked).await;
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        assert_eq!(ask(&backend, &claim(asked.name.as_str())).await.kind(), "busy");
        assert_eq!(release(&backend, &held).await, Released::Freed);
    }
    // Exclusive over shares that have ended: their rows go.
    hold(&backend, &claim("y")).await;
    backend.list(&ListQuery::default()).await.unwrap();
    outlive().await;
    assert_eq!(backend.clean_up(Duration::from_micros(1)).await.unwrap(), 1);
    grant(&store, &format!("DROP USER {user}")).await;
}

async fn make_user(store: &Store, user: &str) {
    grant(store, &format!("CREATE USER {user} IDENTIFIED BY 'secret'")).await;
}

/// Runs what changes users, and waits until all nodes know of it.
async fn grant(store: &Store, sql: &str) {
    store.client().await.query_drop(sql).await.unwrap();
    for node in &store.nodes {
        let mut node = connect(node).await;
        // Only nodes of a cluster know of this.
        node.query_drop("SET SESSION wsrep_sync_wait = 1").await.ok();
        node.query_drop("SELECT COUNT(*) FROM mysql.user").await.unwrap();
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
                Verdict::Busy(Busy { holder: Some(_), retry_after: Some(_) }) => {}
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

    let marked = Claim { mark: Some(Duration::from_mins(1)), ..claim("x") };
    assert_eq!(ask(&backend, &marked).await.kind(), "busy");
    let after = stored(&mut client).await;
    assert_ne!(after[0], before[0], "the mark was not written");
    for mark in [Duration::from_mins(1), Duration::from_secs(70)] {
        let marked = Claim { mark: Some(mark), ..marked.clone() };
        assert_eq!(ask(&backend, &marked).await.kind(), "busy");
        assert_eq!(stored(&mut client).await, after, "the mark was written though it was not due");
    }
    let longer = Claim { mark: Some(Duration::from_mins(5)), ..marked };
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
    let permit = |seconds| Claim {
        share: Share::new(1, 2).unwrap(),
        ttl: Ttl::new(Duration::from_secs(seconds)).unwrap(),
        ..claim("version")
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
    for share in [Share::ALL, Share::ONE] {
        let asked = Claim { share, ..short(&format!("time {share}")) };
        let held = hold(&slow, &asked).await;
        packets.shut();
        let (renewed, ()) = tokio::join!(renew(&slow, &held), async {
            packets.held().await;
            outlive().await;
            packets.open();
        });
        assert_eq!(renewed, Renewed::Lost(LossReason::Expired));
    }
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

async fn what_is_free_is_granted_and_released_in_one_packet_each(kind: Kind) {
    let (store, other) = Store::migrated(kind).await;
    let node = store.node();
    let packets = Packets::start(node).await;
    let config = MysqlConfig::from_url(&packets.url(node)).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();
    let held = hold(&backend, &claim("x")).await;
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    assert_eq!(release(&backend, &held).await, Released::Freed);
    assert!(!packets.take().is_empty(), "the proxy counts nothing");

    for _ in 0..3 {
        let held = hold(&backend, &claim("x")).await;
        assert_eq!(packets.take().len(), 1);
        assert_eq!(release(&backend, &held).await, Released::Freed);
        assert_eq!(packets.take().len(), 1);
    }
    // A node of a cluster is told to commit once it is seen that the transaction is whole.
    let commit = usize::from(kind == Kind::Galera);
    let leases = [hold(&backend, &claim("x")).await, hold(&backend, &claim("y")).await];
    packets.take();
    assert_eq!(backend.release(&leases).await.unwrap(), [Released::Freed; 2]);
    assert_eq!(packets.take().len(), 1 + commit);

    hold(&other, &claim("x")).await;
    hold(&other, &reader("y")).await;
    for asked in [claim("x"), reader("x"), claim("y")] {
        assert_eq!(ask(&backend, &asked).await.kind(), "busy");
        assert_eq!(packets.take().len(), 1);
    }
    // A renewal is read, and written.
    let share = hold(&backend, &reader("y")).await;
    packets.take();
    assert_eq!(renew(&backend, &share).await, Renewed::Alive);
    assert_eq!(packets.take().len(), 2 + commit);
}

async fn killed_connections_are_replaced(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let held = hold(&backend, &claim("x")).await;
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    let mut killed = 0;
    for node in &store.nodes {
        let mut admin = connect(&node.in_database("mysql")).await;
        let sql = "SELECT id FROM information_schema.processlist WHERE db = ?";
        let database = store.database.database_name();
        let ids: Vec<u64> = admin.exec(sql, (database,)).await.unwrap();
        for id in ids {
            admin.query_drop(format!("KILL {id}")).await.unwrap();
            killed += 1;
        }
    }
    assert!(killed >= 2, "only {killed} were killed");
    // The word of the server may still be on its way: then the request fails as retryable.
    for attempts in 0.. {
        let renewal = Renewal { lease: held.clone(), ttl: Ttl::DEFAULT };
        match backend.renew(&[renewal]).await {
            Ok(renewed) => {
                assert_eq!(renewed, [Renewed::Alive]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
    for attempts in 0.. {
        match backend.release(std::slice::from_ref(&held)).await {
            Ok(released) => {
                assert_eq!(released, [Released::Freed]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
}

async fn dropped_request_takes_its_connection_with_it(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let config = MysqlConfig::from_url(store.nodes[0].url()).unwrap().pool_size(1).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();
    let mut blocker = store.client().await;
    blocker.query_drop("LOCK TABLES database_locks_lock WRITE").await.unwrap();
    let stuck = [claim("x")];
    tokio::time::timeout(Duration::from_millis(200), backend.acquire(&stuck)).await.unwrap_err();
    // The pool of one has to have a fresh connection for this, which needs no lock.
    let fresh = tokio::time::timeout(Duration::from_secs(20), backend.migrate());
    fresh.await.expect("the stuck connection was used again").unwrap();
    blocker.query_drop("UNLOCK TABLES").await.unwrap();
    // The server may have finished the dropped request: its own attempt finds out.
    let token = loop {
        match ask(&backend, &stuck[0]).await {
            Verdict::Granted(token) => break token,
            Verdict::Busy(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(release(&backend, &lease(&stuck[0], token)).await, Released::Freed);
}

async fn bad_credentials_and_databases_say_what_to_do(kind: Kind) {
    let store = Store::empty(kind);
    let nowhere = MysqlConfig::from_url("mysql://u:hunter2@127.0.0.1:1/d").unwrap();
    let error = MysqlBackend::connect(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("hunter2"));

    let missing = store.node().in_database("no_such_database");
    let missing = MysqlConfig::from_url(missing.url()).unwrap();
    let error = MysqlBackend::connect(missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");

    for user in ["no_such_user", "root"] {
        let unknown = store.node().as_user(user, "hunter2");
        let unknown = MysqlConfig::from_url(unknown.url()).unwrap();
        let error = MysqlBackend::connect(unknown).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

async fn explicit_owner_supersedes_its_own_shares_and_no_others(kind: Kind) {
    let (_store, backend) = Store::migrated(kind).await;
    let alice = Owner::explicit("alice").unwrap();
    let mine = Claim { owner: alice.clone(), ..reader("x") };
    let old = hold(&backend, &mine).await;
    let writer = Claim { owner: alice.clone(), ..claim("x") };
    let new = hold(&backend, &writer).await;
    assert!(new.token > old.token);
    assert_eq!(renew(&backend, &old).await, Renewed::Lost(LossReason::Superseded));
    release(&backend, &new).await;
    // The share that was superseded must not count, or live, beside the new one.
    hold(&backend, &reader("x")).await;
    assert!(matches!(renew(&backend, &old).await, Renewed::Lost(_)));
    assert_eq!(ask(&backend, &Claim { owner: alice, ..claim("x") }).await.kind(), "busy");
}

async fn owner_may_be_called_as_the_mark_of_shares(kind: Kind) {
    let (_store, backend) = Store::migrated(kind).await;
    let owner = Owner::label_only("(shared)").unwrap();
    let held = hold(&backend, &Claim { owner, ..claim("x") }).await;
    assert_eq!(ask(&backend, &claim("x")).await.kind(), "busy");
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    assert_eq!(list(&backend, "x").await[0].lease, held);
    assert_eq!(release(&backend, &held).await, Released::Freed);
}

async fn clean_up_forgets_what_is_idle_and_nothing_else(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let mut client = store.client().await;
    for lock in ["idle", "held", "recent", "high token", "waited for"] {
        let held = hold(&backend, &claim(lock)).await;
        if lock == "waited for" {
            ask(&backend, &Claim { mark: Some(Duration::from_mins(9)), ..claim(lock) }).await;
        }
        if lock != "held" {
            release(&backend, &held).await;
        }
    }
    hold(&backend, &reader("held shared")).await;
    let idle = hold(&backend, &reader("idle shared")).await;
    release(&backend, &idle).await;
    client
        .query_drop(
            "UPDATE database_locks_lock SET touched_at = touched_at - INTERVAL 2 DAY,
             token = token - IF(name = 'high token', 0, 172800000000) WHERE name <> 'recent';
             INSERT INTO database_locks_lock (name) VALUES ('of somebody else')",
        )
        .await
        .unwrap();
    assert_eq!(backend.clean_up(Duration::from_hours(24)).await.unwrap(), 2);
    let left: Vec<String> =
        client.query("SELECT name FROM database_locks_lock ORDER BY name").await.unwrap();
    let kept = ["held", "held shared", "high token", "of somebody else", "recent", "waited for"];
    assert_eq!(left, kept);
    let shares: Vec<String> =
        client.query("SELECT name FROM database_locks_lock_share").await.unwrap();
    assert_eq!(shares, ["held shared"]);
}

async fn names_are_bytes_whatever_the_database_compares(kind: Kind) {
    let nodes = kind.shared().unwrap();
    let mut charsets = vec!["CHARACTER SET latin1".to_owned()];
    for collation in ["utf8mb4_0900_ai_ci", "utf8mb4_general_ci", "uca1400_ai_ci"] {
        // MariaDB has the last one for each character set.
        let sql = format!("SHOW COLLATION LIKE '%{collation}'");
        if connect(&nodes[0]).await.query_first::<Row, _>(sql).await.unwrap().is_some() {
            charsets.push(format!("CHARACTER SET utf8mb4 COLLATE {collation}"));
        }
    }
    assert!(charsets.len() >= 3, "{charsets:?}");
    for charset in charsets {
        let store = Store::with(&nodes, &charset).unwrap();
        let backend = store.backend().await;
        backend.migrate().await.unwrap();
        // In the order of their bytes: 4a, 6a6f62, 6a6f6220, 6a6fcc81, 6ac3b3.
        let locks = ["Job", "job", "job ", "jo\u{301}b", "j\u{f3}b"];
        for share in [Share::ALL, Share::ONE] {
            let mut held = Vec::new();
            for lock in locks {
                let asked = Claim { share, ..claim(lock) };
                held.push(hold(&backend, &asked).await);
                let all = Claim { share: Share::ALL, ..claim(lock) };
                assert_eq!(ask(&backend, &all).await.kind(), "busy", "{charset}");
            }
            let names = async |prefix: &str| -> Vec<_> {
                let listed = list(&backend, prefix).await;
                listed.into_iter().map(|info| info.lease.name.as_str().to_owned()).collect()
            };
            assert_eq!(names("").await, locks, "{charset}");
            assert_eq!(names("j").await, locks[1..], "{charset}");
            assert_eq!(names("job").await, locks[1..3], "{charset}");
            assert_eq!(names("job ").await, locks[2..3], "{charset}");
            assert_eq!(names("j\u{f3}").await, locks[4..], "{charset}");
            let mut after = None;
            for lock in locks {
                let query = ListQuery { after, limit: 1, ..ListQuery::default() };
                let page = backend.list(&query).await.unwrap();
                assert_eq!(page[0].lease.name, name(lock), "{charset}");
                after = Some((page[0].lease.name.clone(), page[0].lease.attempt));
            }
            for lease in held.into_iter().rev() {
                assert_eq!(release(&backend, &lease).await, Released::Freed, "{charset}");
                assert_eq!(release(&backend, &lease).await, Released::Lost(LossReason::Forced));
            }
        }
    }
}

async fn tokens_grow_though_the_clock_was_ahead(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    for asked in [claim("x"), reader("y")] {
        let held = hold(&backend, &asked).await;
        assert_eq!(release(&backend, &held).await, Released::Freed);
        let sql = "UPDATE database_locks_lock SET token = token + 1000000000000000 WHERE name = ?";
        let lock = asked.name.as_str();
        store.client().await.exec_drop(sql, (lock.as_bytes(),)).await.unwrap();
        let next = hold(&backend, &Claim { attempt: claim(lock).attempt, ..asked.clone() }).await;
        assert_eq!(next.token.get(), held.token.get() + 1_000_000_000_000_001);
    }
}

async fn first_creation_race_has_one_winner_a_name(kind: Kind) {
    const CLIENTS: usize = 12;
    const NAMES: usize = 1_000;
    let (store, _) = Store::migrated(kind).await;
    let default = if kind == Kind::MySql { "transaction_isolation" } else { "tx_isolation" };
    let default: Option<String> =
        store.client().await.query_first(format!("SELECT @@global.{default}")).await.unwrap();
    assert_eq!(default.as_deref(), Some("REPEATABLE-READ"));

    let winners = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (backend, winners) = (store.backend().await, Arc::clone(&winners));
        clients.push(tokio::spawn(async move {
            let claims: Vec<_> = (0..NAMES).map(|i| claim(&format!("fresh {i}"))).collect();
            // Some ask for one name after the other, some for several at once.
            for claims in claims.chunks(if client % 3 == 0 { 25 } else { 1 }) {
                let mut open = claims.to_vec();
                while !open.is_empty() {
                    let verdicts = backend.acquire(&open).await.unwrap();
                    let mut verdicts = verdicts.into_iter();
                    open.retain(|claim| match verdicts.next() {
                        Some(Verdict::Granted(_)) => {
                            let mut winners = winners.lock().unwrap();
                            *winners.entry(claim.name.as_str().to_owned()).or_default() += 1;
                            false
                        }
                        Some(Verdict::Busy(Busy { holder, .. })) => holder.is_none(),
                        verdict => panic!("{verdict:?}"),
                    });
                }
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let winners = std::mem::take(&mut *winners.lock().unwrap());
    assert_eq!(winners.len(), NAMES);
    assert!(winners.values().all(|&count| count == 1), "{winners:?}");
    assert_eq!(list(&store.backend().await, "fresh ").await.len(), NAMES);
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

trait Said {
    fn kind(&self) -> &'static str;
}

impl Said for Verdict {
    fn kind(&self) -> &'static str {
        match self {
            Verdict::Granted(_) => "granted",
            Verdict::Busy(_) => "busy",
            Verdict::CapacityMismatch(_) => "mismatch",
            Verdict::Ended => "ended",
        }
    }
}
