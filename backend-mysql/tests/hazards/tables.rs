//! How the tables are made, adopted from others, and what may be in them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    Busy, Data, ErrorKind, LeaseId, ListQuery, LockBackend, LossReason, Owner, Release, Released,
    Renewed, Share, Standing, Ttl, Verdict,
};
use database_locks_mysql::{MysqlBackend, MysqlConfig, schema_sql};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use crate::common::{Kind, Store, ask, claim, connect, hold, name, on_each_server};
use crate::{Said, django_takes, list, outlive, reader, release, renew};

on_each_server!(
    ten_clients_migrate_at_once,
    missing_tables_are_not_migrated_and_work_once_made,
    table_of_an_engine_without_row_locks_is_refused,
    table_of_a_django_app_is_adopted_and_shared,
    table_of_a_django_app_is_made_exact,
    clean_up_forgets_what_is_idle_and_nothing_else,
    queries_of_the_docs_tell_who_holds_what,
    clean_up_looks_beyond_what_it_may_not_forget,
    lease_of_a_client_with_any_name_is_released_by_force_and_only_that_one,
    names_are_bytes_whatever_the_database_compares,
    first_creation_race_has_one_winner_a_name,
);

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
    // As Django made it for servers that knew no fractions, but for a name that is too short.
    let table = "CREATE TABLE database_locks_lock (
        id int AUTO_INCREMENT NOT NULL PRIMARY KEY, name varchar(100) NOT NULL UNIQUE,
        locked_by longtext NULL, expires_at datetime NULL)";
    django.query_drop(table).await.unwrap();
    let insert = "INSERT INTO database_locks_lock (name) VALUES (?), (?)";
    django.exec_drop(insert, ("Job", "caf\u{e9}")).await.unwrap();
    let backend = store.backend_at_client().await;
    backend.migrate().await.unwrap();

    let long = "x".repeat(255);
    let names = [long.as_str(), "Job", "job", "job ", "j\u{f3}b", "caf\u{e9}", "cafe\u{301}"];
    let mut held = Vec::new();
    for name in names {
        let owner = Owner::label_only(name).unwrap();
        held.push(hold(&backend, &claim(name).with_owner(owner)).await);
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
        let query = ListQuery::default().with_after(after).with_limit(1);
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
        assert_eq!(release(&backend, lease).await, Released::Done);
    }

    // Somebody spoils it: that is refused, and can be mended.
    django.query_drop("DELETE FROM database_locks_lock WHERE LENGTH(name) > 100").await.unwrap();
    for (spoil, mend) in [
        ("MODIFY expires_at datetime NULL", "MODIFY expires_at DATETIME(6)"),
        ("MODIFY name varbinary(100) NOT NULL", "MODIFY name VARCHAR(255)"),
    ] {
        django.query_drop(format!("ALTER TABLE database_locks_lock {spoil}")).await.unwrap();
        let error = MysqlBackend::connect(store.config()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(mend), "{error}");
        database_locks_mysql::migrate(store.config()).await.unwrap();
        MysqlBackend::connect(store.config()).await.unwrap();
    }
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
    django.query_drop(&take_over).await.unwrap();
    assert_eq!(release(&backend, &ours_too).await, Released::Lost(LossReason::Taken));
    assert!(is_live(&mut django, "namesake").await);

    // What Django holds can be listed, and released by force, and then be had: by a higher token.
    // Nothing is left in it of the lease before, which was ours and kept.
    let data = Data::new("ours").unwrap();
    let kept = hold(&backend, &claim("kept").with_data(data)).await;
    backend.release(&[Release::keep(kept, Duration::from_micros(1))]).await.unwrap();
    django
        .query_drop(take_over.replace("host.1", "web.2").replace("'namesake'", "'kept'"))
        .await
        .unwrap();
    for lock in ["held", "free", "kept"] {
        let listed = list(&backend, lock).await;
        assert!(listed[0].lease.owner.label().starts_with("web."));
        assert_eq!((listed[0].standing, &listed[0].data), (Standing::Held, &None));
        let Verdict::Busy(busy) = ask(&backend, &claim(lock)).await else { panic!("{lock}") };
        let holder = busy.holder.unwrap();
        assert_eq!((holder.standing, holder.data), (Standing::Held, None));
        for end in [Release::revoke, |lease| Release::keep(lease, Duration::from_mins(1))] {
            let refused = backend.release(&[end(listed[0].lease.clone())]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        }
        assert_eq!(release(&backend, &listed[0].lease).await, Released::Done);
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
    hold(&backend, &reader("r").with_ttl(Ttl::new(Ttl::MIN).unwrap())).await;
    outlive().await;
    assert!(is_live(&mut django, "r").await);
    let two = hold(&backend, &reader("r")).await;
    assert_eq!(release(&backend, &one).await, Released::Done);
    assert!(is_live(&mut django, "r").await);
    assert_eq!(release(&backend, &two).await, Released::Done);
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

async fn django_ends(django: &mut Conn, lock: &str) {
    let sql = "UPDATE database_locks_lock SET expires_at = NULL WHERE name = ?";
    django.exec_drop(sql, (lock,)).await.unwrap();
}

async fn clean_up_forgets_what_is_idle_and_nothing_else(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let mut client = store.client().await;
    for lock in ["idle", "held", "recent", "high token", "waited for"] {
        let held = hold(&backend, &claim(lock)).await;
        if lock == "waited for" {
            ask(&backend, &claim(lock).with_mark(Duration::from_mins(9))).await;
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
                let asked = claim(lock).with_share(share);
                held.push(hold(&backend, &asked).await);
                let all = claim(lock).with_share(Share::ALL);
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
                let query = ListQuery::default().with_after(after).with_limit(1);
                let page = backend.list(&query).await.unwrap();
                assert_eq!(page[0].lease.name, name(lock), "{charset}");
                after = Some((page[0].lease.name.clone(), page[0].lease.attempt));
            }
            for lease in held.into_iter().rev() {
                assert_eq!(release(&backend, &lease).await, Released::Done, "{charset}");
                assert_eq!(release(&backend, &lease).await, Released::Lost(LossReason::Forced));
            }
        }
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
                        Some(Verdict::Skipped) => true,
                        Some(Verdict::Busy(_)) => false,
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

async fn clean_up_looks_beyond_what_it_may_not_forget(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let mut client = store.client().await;
    // As a clock leaves them that was ahead by a day, and more than one call forgets.
    let ahead: String =
        (0..1_001).map(|i| format!("('ahead {i}', 1 << 62, '2020-01-01'), ")).collect();
    let sql = format!(
        "INSERT INTO database_locks_lock (name, token, touched_at) VALUES {ahead} ('idle', 1, '2020-01-01')"
    );
    client.query_drop(sql).await.unwrap();
    assert_eq!(backend.clean_up(Duration::from_hours(24)).await.unwrap(), 1);
    assert_eq!(backend.clean_up(Duration::from_hours(24)).await.unwrap(), 0);
}

async fn lease_of_a_client_with_any_name_is_released_by_force_and_only_that_one(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let mut django = store.client().await;
    django
        .query_drop(
            "ALTER TABLE database_locks_lock MODIFY locked_by VARCHAR(255) CHARACTER SET utf8mb4;
             INSERT INTO database_locks_lock (name) VALUES ('x')",
        )
        .await
        .unwrap();
    let mut take = async |owner: Option<&str>| {
        let sql = "UPDATE database_locks_lock SET locked_by = ?,
                   expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE name = 'x'";
        django.exec_drop(sql, (owner,)).await.unwrap();
    };
    let listed = async || list(&backend, "x").await.pop().unwrap().lease;
    let long = format!("{}x", "é".repeat(200));
    for owner in [None, Some(""), Some("django"), Some("\u{1}\u{9f}"), Some("a\tb"), Some(&long)] {
        take(owner).await;
        assert_eq!(release(&backend, &listed().await).await, Released::Done, "{owner:?}");
    }
    for (owner, next) in [("alice", Some("bob")), (&*long, Some("é")), (&*long, None)] {
        take(Some(owner)).await;
        let lease = listed().await;
        take(next).await;
        assert!(matches!(release(&backend, &lease).await, Released::Lost(_)), "{next:?}");
        assert_ne!(listed().await.owner, lease.owner);
    }
}

async fn queries_of_the_docs_tell_who_holds_what(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let mut client = store.client().await;
    hold(&backend, &claim("whole")).await;
    let shared = [hold(&backend, &reader("some")).await, hold(&backend, &reader("some")).await];
    release(&backend, &shared[0]).await;
    for lock in [claim("was whole"), reader("was shared"), claim("django")] {
        let held = hold(&backend, &lock).await;
        release(&backend, &held).await;
    }
    django_takes(&mut client, "django").await;
    let docs = include_str!("../../src/lib.rs").replace("//!", "").replace("app.", "");
    let queries = docs.split_once("# Who holds what").unwrap().1.split("```").nth(1).unwrap();
    let mut found = Vec::new();
    for query in queries.strip_prefix("sql").unwrap().trim().split_terminator(';') {
        let rows: Vec<Row> = client.query(query).await.unwrap();
        let mut names: Vec<String> = rows.iter().map(|row| row.get(0).unwrap()).collect();
        names.sort();
        found.push(names);
    }
    assert_eq!(found, [vec!["django", "whole"], vec!["some"]]);
}
