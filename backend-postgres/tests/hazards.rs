//! What only this backend can get wrong: row locks and time, hostile sessions, connections,
//! rights, and what is written when.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Store, ask, claim, hold, name};
use database_locks_core::{
    Attempt, Busy, Claim, Data, ErrorKind, LeaseId, ListQuery, LockBackend, LossReason, Owner,
    Release, Released, Releaser, Renewal, Renewed, Share, Standing, Ttl, Verdict, Wakeup,
};
use database_locks_postgres::{PostgresBackend, PostgresConfig, schema_sql};
use database_locks_test_servers::PgBouncer;
use futures_util::StreamExt;

fn short(lock: &str) -> Claim {
    claim(lock).with_ttl(Ttl::new(Ttl::MIN).unwrap())
}

fn reader(lock: &str) -> Claim {
    claim(lock).with_share(Share::ONE)
}

async fn renew(backend: &PostgresBackend, lease: &LeaseId) -> Renewed {
    let renewal = Renewal::new(lease.clone(), Ttl::DEFAULT);
    backend.renew(&[renewal]).await.unwrap()[0]
}

async fn release(backend: &PostgresBackend, lease: &LeaseId) -> Released {
    backend.release(&[Release::free(lease.clone())]).await.unwrap()[0]
}

/// Longer than the shortest TTL by far, so that only a wrong clock can still see it alive.
async fn outlive() {
    tokio::time::sleep(Ttl::MIN * 3).await;
}

#[tokio::test]
async fn row_locked_past_the_ttl_renews_and_grants_nothing_dead() {
    let (store, backend) = Store::migrated().await;
    for (end, share) in [
        ("rollback", Share::ALL),
        ("commit", Share::ALL),
        ("rollback", Share::ONE),
        ("commit", Share::ONE),
    ] {
        let asked = short(&format!("{end} {share}")).with_share(share);
        let held = hold(&backend, &asked).await;
        let blocker = store.client().await;
        blocker.batch_execute("begin").await.unwrap();
        blocker
            .query(
                "select from database_locks_lock where name = $1 for update",
                &[&asked.name.as_str()],
            )
            .await
            .unwrap();

        // The row is locked while the lease is alive: nobody waits, and nothing is decided.
        let started = Instant::now();
        let kind = ask(&backend, &claim(asked.name.as_str())).await.kind();
        assert!(["busy", "skipped"].contains(&kind), "{kind}");
        let free = hold(&backend, &claim(&format!("beside {end} {share}"))).await;
        assert!(started.elapsed() < Duration::from_secs(5), "a try waited for a row lock");
        assert!(matches!(
            renew(&backend, &held).await,
            Renewed::Skipped | Renewed::Lost(LossReason::Expired)
        ));
        outlive().await;
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));
        blocker.batch_execute(end).await.unwrap();
        assert_eq!(renew(&backend, &held).await, Renewed::Lost(LossReason::Expired));

        let next = hold(&backend, &claim(asked.name.as_str())).await;
        assert!(next.token > held.token);
        assert_eq!(release(&backend, &next).await, Released::Done);
        assert_eq!(release(&backend, &free).await, Released::Done);
    }
}

#[tokio::test]
async fn locked_row_does_not_stall_the_other_names_of_a_batch() {
    let (store, backend) = Store::migrated().await;
    let leases = [hold(&backend, &claim("a")).await, hold(&backend, &claim("b")).await];
    let mut blocker = store.client().await;
    let transaction = blocker.transaction().await.unwrap();
    transaction
        .execute("update database_locks_lock set waiting_weight = 0 where name = 'a'", &[])
        .await
        .unwrap();
    transaction
        .execute("insert into database_locks_lock (name) values ('uncommitted')", &[])
        .await
        .unwrap();

    let renewals = leases.clone().map(|lease| Renewal::new(lease, Ttl::DEFAULT));
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Skipped, Renewed::Alive]);
    assert_eq!(
        backend.release(&Release::free_all(&leases)).await.unwrap(),
        [Released::Skipped, Released::Done]
    );
    let verdicts =
        backend.acquire(&[claim("a"), claim("b"), claim("uncommitted"), claim("c")]).await.unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Kind::kind).collect();
    assert_eq!(kinds, ["busy", "granted", "skipped", "granted"]);

    transaction.rollback().await.unwrap();
    assert_eq!(release(&backend, &leases[0]).await, Released::Done);
}

#[tokio::test]
async fn locked_share_does_not_stall_the_other_leases_of_a_batch() {
    let (store, backend) = Store::migrated().await;
    let leases = [
        hold(&backend, &reader("a")).await,
        hold(&backend, &reader("a")).await,
        hold(&backend, &claim("b")).await,
    ];
    let blocker = store.client().await;
    blocker.batch_execute("begin").await.unwrap();
    blocker
        .query(
            "select from database_locks_lock_share where attempt = $1 for update",
            &[&leases[0].attempt.as_uuid()],
        )
        .await
        .unwrap();
    let renewals = leases.clone().map(|lease| Renewal::new(lease, Ttl::DEFAULT));
    let renewed = tokio::time::timeout(Duration::from_secs(20), backend.renew(&renewals));
    let renewed = renewed.await.expect("the batch waited for a share's row").unwrap();
    assert_eq!(renewed, [Renewed::Skipped, Renewed::Alive, Renewed::Alive]);
    let releases = Release::free_all(&leases);
    let released = tokio::time::timeout(Duration::from_secs(20), backend.release(&releases));
    let released = released.await.expect("the batch waited for a share's row").unwrap();
    assert_eq!(released, [Released::Skipped, Released::Done, Released::Done]);

    // A grant of all of a lock has to remove the rows of shares that have ended.
    expire(&store, "a").await;
    let claims = [claim("a"), claim("b"), claim("c")];
    let verdicts = tokio::time::timeout(Duration::from_secs(20), backend.acquire(&claims));
    let verdicts = verdicts.await.expect("the batch waited for a share's row").unwrap();
    let kinds: Vec<_> = verdicts.iter().map(Kind::kind).collect();
    assert_eq!(kinds, ["skipped", "granted", "granted"]);
    blocker.batch_execute("rollback").await.unwrap();
    hold(&backend, &claim("a")).await;
}

/// Lets all leases of a name have expired.
async fn expire(store: &Store, lock: &str) {
    let sql = "update database_locks_lock
               set expires_at = now() - interval '1 s', lease_expires_at = now() - interval '1 s'
               where name = $1";
    store.client().await.execute(sql, &[&lock]).await.unwrap();
}

#[tokio::test]
async fn batch_with_one_name_twice_grants_it_once() {
    let (_store, backend) = Store::migrated().await;
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
            assert!(granted <= if share.is_exclusive() { 1 } else { 2 }, "{verdicts:?}");
            let held = backend.list(&ListQuery::new(lock.clone())).await.unwrap();
            assert_eq!(held.len(), granted);
            let leases: Vec<_> = held.into_iter().map(|info| info.lease).collect();
            let released = backend.release(&Release::free_all(&leases)).await.unwrap();
            assert_eq!(released, vec![Released::Done; granted]);
        }
    }
    assert!(backend.acquire(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn hostile_defaults_of_the_session_change_nothing() {
    let (store, admin) = Store::migrated().await;
    let role = format!("r_{}", store.schema);
    let client = store.client().await;
    for isolation in ["repeatable read", "serializable"] {
        client
            .batch_execute(&format!(
                "drop role if exists {role};
                 create role {role} superuser login password 'secret';
                 alter role {role} set default_transaction_isolation = '{isolation}';
                 alter role {role} set timezone = 'Pacific/Apia';
                 alter role {role} set synchronous_commit = off;
                 alter role {role} set statement_timeout = '900ms';
                 alter role {role} set lock_timeout = '1ms';
                 alter role {role} set datestyle = 'SQL, DMY';
                 alter role {role} set intervalstyle = 'sql_standard'"
            ))
            .await
            .unwrap();
        let config = store.config_as(&role);
        let hostile = PostgresBackend::connect(config).await.unwrap();

        let mut tasks = Vec::new();
        let hostile = std::sync::Arc::new(hostile);
        for _ in 0..8 {
            let hostile = std::sync::Arc::clone(&hostile);
            tasks.push(tokio::spawn(async move {
                let mut granted = 0;
                for _ in 0..20 {
                    let asked = claim("contested");
                    if let Verdict::Granted(token) = ask(&hostile, &asked).await {
                        granted += 1;
                        let held = asked.lease(token);
                        let renewed = renew(&hostile, &held).await;
                        assert!(matches!(renewed, Renewed::Alive | Renewed::Skipped));
                        while release(&hostile, &held).await == Released::Skipped {}
                    }
                    hold(&hostile, &reader("read")).await;
                }
                granted
            }));
        }
        let mut granted = 0;
        for task in tasks {
            granted += task.await.unwrap();
        }
        assert!(granted > 0);
        let held = hold(&hostile, &claim(isolation)).await;
        let seen = admin.list(&ListQuery::new(isolation.to_owned())).await.unwrap();
        assert_eq!(seen[0].lease, held);
        let remaining = seen[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_mins(1));
        drop(hostile);
    }
}

#[tokio::test]
async fn ten_clients_migrate_at_once() {
    let store = Store::empty();
    let mut tasks = Vec::new();
    for _ in 0..10 {
        let config = store.config();
        tasks.push(tokio::spawn(async move {
            let backend = PostgresBackend::connect(config).await.unwrap();
            backend.migrate().await.unwrap();
            hold(&backend, &reader("x")).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let printed = schema_sql(&store.config());
    store.client().await.batch_execute(&printed).await.unwrap();
}

#[tokio::test]
async fn missing_tables_are_not_migrated_and_work_once_made() {
    let store = Store::empty();
    let backend = store.backend().await;
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
    assert!(error.to_string().contains("dblock migrate"), "{error}");
    backend.migrate().await.unwrap();
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn table_of_a_django_app_is_adopted_and_shared() {
    let store = Store::empty();
    let backend = store.backend().await;
    let django = {
        let (client, connection) =
            tokio_postgres::connect(store.database.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(&format!(
                "create schema {0}; set search_path = {0};
                 create table database_locks_lock (
                   id serial primary key, name varchar(255) not null unique,
                   locked_by text null, expires_at timestamptz null);
                 insert into database_locks_lock (name, locked_by, expires_at)
                 values ('held', 'web.1', now() + interval '1 hour'), ('free', 'web.1', null)",
                store.schema
            ))
            .await
            .unwrap();
        client
    };
    backend.migrate().await.unwrap();

    match ask(&backend, &claim("held")).await {
        Verdict::Busy(Busy { holder: Some(holder), .. }) => {
            assert_eq!(holder.owner.label(), "web.1");
        }
        other => panic!("{other:?}"),
    }
    let ours = hold(&backend, &claim("free")).await;
    let live = "select count(*) from database_locks_lock where name = $1 and expires_at > now()";
    let is_live = async |lock: &str| -> bool {
        django.query_one(live, &[&lock]).await.unwrap().get::<_, i64>(0) == 1
    };
    assert!(is_live("free").await);

    // Django takes over a dead row and writes only its own columns.
    let take_over = "update database_locks_lock
                     set locked_by = 'web.2', expires_at = now() + interval '1 hour'
                     where name = 'free'";
    django.batch_execute(take_over).await.unwrap();
    assert_eq!(renew(&backend, &ours).await, Renewed::Lost(LossReason::Taken));
    assert_eq!(release(&backend, &ours).await, Released::Lost(LossReason::Taken));
    assert!(is_live("free").await);

    // It may be called as our owner is, also one that was named explicitly.
    let namesake = claim("namesake").with_owner(Owner::explicit("alice").unwrap());
    let ours_too = hold(&backend, &namesake).await;
    django
        .batch_execute(
            "update database_locks_lock set expires_at = now() + interval '1 hour'
             where name = 'namesake'",
        )
        .await
        .unwrap();
    assert_eq!(renew(&backend, &ours_too).await, Renewed::Lost(LossReason::Taken));
    assert_eq!(release(&backend, &ours_too).await, Released::Lost(LossReason::Taken));
    assert_eq!(ask(&backend, &namesake).await.kind(), "ended");
    assert_eq!(ask(&backend, &namesake.with_attempt(Attempt::new())).await.kind(), "busy");
    assert!(is_live("namesake").await);

    // What Django holds can be listed, and released by force. Nothing is left in it of the lease before, which was
    // ours and kept.
    let data = Data::new("ours").unwrap();
    let kept = hold(&backend, &short("kept").with_data(data)).await;
    let keep = Release::keep(kept, Duration::from_millis(1));
    backend.release(&[keep]).await.unwrap();
    django.batch_execute(&take_over.replace("'free'", "'kept'")).await.unwrap();
    let listed = backend.list(&ListQuery::default()).await.unwrap();
    assert_eq!(listed.len(), 4);
    for (info, lock) in listed.iter().zip(["free", "held", "kept", "namesake"]) {
        assert_eq!((info.standing, &info.data), (Standing::Held, &None));
        let Verdict::Busy(busy) = ask(&backend, &claim(lock)).await else { panic!("{lock}") };
        let holder = busy.holder.unwrap();
        assert_eq!((holder.standing, holder.data), (Standing::Held, None));
        for end in [Release::revoke, |lease| Release::keep(lease, Duration::from_mins(1))] {
            let refused = backend.release(&[end(info.lease.clone())]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        }
        assert_eq!((info.lease.name.as_str(), info.lease.share), (lock, Share::ALL));
        assert_eq!(release(&backend, &info.lease).await, Released::Done);
        assert!(!is_live(lock).await);
    }
    assert!(hold(&backend, &claim("free")).await.token > ours.token);

    // A shared name is held for Django until the last share ends, whichever that is.
    let one = hold(&backend, &reader("r")).await;
    hold(&backend, &reader("r").with_ttl(Ttl::new(Ttl::MIN).unwrap())).await;
    outlive().await;
    assert!(is_live("r").await);
    let two = hold(&backend, &reader("r").with_attempt(claim("r").attempt)).await;
    release(&backend, &one).await;
    assert!(is_live("r").await);
    release(&backend, &two).await;
    assert!(!is_live("r").await);

    // Once Django took the name, shares of before are dead and stay so.
    let share = hold(&backend, &reader("taken")).await;
    django
        .batch_execute("update database_locks_lock set locked_by = 'web.3' where name = 'taken'")
        .await
        .unwrap();
    assert_eq!(renew(&backend, &share).await, Renewed::Lost(LossReason::Taken));
    django
        .batch_execute("update database_locks_lock set expires_at = null where name = 'taken'")
        .await
        .unwrap();
    hold(&backend, &reader("taken")).await;
    assert!(matches!(renew(&backend, &share).await, Renewed::Lost(_)), "a dead share rose");
}

#[tokio::test]
async fn lock_user_needs_the_sequence_of_an_old_django_too() {
    let store = Store::empty();
    let client = store.client().await;
    let role = format!("r_{}", store.schema);
    client
        .batch_execute(&format!(
            "create schema {0}; set search_path = {0};
             create table database_locks_lock (
               id serial primary key, name varchar(255) not null unique,
               locked_by text null, expires_at timestamptz null)",
            store.schema
        ))
        .await
        .unwrap();
    store.backend().await.migrate().await.unwrap();
    client
        .batch_execute(&format!(
            "create role {role} login password 'secret'; grant usage on schema {0} to {role};
             grant select, insert, update, delete
             on database_locks_lock, database_locks_lock_share to {role}",
            store.schema
        ))
        .await
        .unwrap();
    let backend = PostgresBackend::connect(store.config_as(&role)).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(error.to_string().contains("usage on the sequence"), "{error}");
    client
        .batch_execute(&format!("grant usage on sequence database_locks_lock_id_seq to {role}"))
        .await
        .unwrap();
    hold(&backend, &claim("x")).await;
    client.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
}

#[tokio::test]
async fn lock_user_needs_four_rights_on_two_tables() {
    let (store, _) = Store::migrated().await;
    let role = format!("r_{}", store.schema);
    let client = store.client().await;
    client.batch_execute(&format!("create role {role} login password 'secret'")).await.unwrap();
    let config = store.config_as(&role);
    let backend = PostgresBackend::connect(config).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    client
        .batch_execute(&format!(
            "grant usage on schema {0} to {role};
             grant select, insert, update, delete
             on database_locks_lock, database_locks_lock_share to {role}",
            store.schema
        ))
        .await
        .unwrap();
    backend.migrate().await.unwrap();
    for asked in [claim("x"), reader("y"), reader("y")] {
        let held = hold(&backend, &asked).await;
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        assert_eq!(release(&backend, &held).await, Released::Done);
    }
    backend.list(&ListQuery::default()).await.unwrap();
    backend.clean_up(Duration::ZERO).await.unwrap();
    backend.wakeups().await.unwrap().unwrap();
}

#[tokio::test]
async fn lease_of_a_client_with_any_name_is_released_by_force_and_only_that_one() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    let take = async |lock: &str, owner: Option<&str>| {
        client
            .execute(
                "insert into database_locks_lock (name, locked_by, expires_at)
                 values ($1, $2, now() + interval '1 min')
                 on conflict (name) do update set locked_by = $2, expires_at = now() + interval '1 min'",
                &[&lock, &owner],
            )
            .await
            .unwrap();
    };
    let listed = async || backend.list(&ListQuery::default()).await.unwrap().pop().unwrap().lease;
    let long = format!("{}x", "é".repeat(200));
    for owner in [None, Some(""), Some("django"), Some("\u{1}\u{9f}"), Some("a\tb"), Some(&long)] {
        take("x", owner).await;
        let lease = listed().await;
        assert_eq!(release(&backend, &lease).await, Released::Done, "{owner:?}");
    }
    for (owner, next) in [("alice", Some("bob")), (&*long, Some("é")), (&*long, None)] {
        take("x", Some(owner)).await;
        let lease = listed().await;
        take("x", next).await;
        assert!(matches!(release(&backend, &lease).await, Released::Lost(_)), "{next:?}");
        assert_ne!(listed().await.owner, lease.owner);
    }
}

#[tokio::test]
async fn queries_of_the_docs_tell_who_holds_what() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    hold(&backend, &claim("whole")).await;
    let shared = [hold(&backend, &reader("some")).await, hold(&backend, &reader("some")).await];
    release(&backend, &shared[0]).await;
    for lock in [claim("was whole"), reader("was shared")] {
        let held = hold(&backend, &lock).await;
        release(&backend, &held).await;
    }
    client
        .batch_execute(
            "insert into database_locks_lock (name, locked_by, expires_at)
             values ('django', 'web.3', now() + interval '1 min')",
        )
        .await
        .unwrap();
    let docs = include_str!("../src/lib.rs").replace("//!", "").replace("locks.", "");
    let queries = docs.split_once("# Who holds what").unwrap().1.split("```").nth(1).unwrap();
    let mut found = Vec::new();
    for query in queries.strip_prefix("sql").unwrap().trim().split_terminator(';') {
        let rows = client.query(query, &[]).await.unwrap();
        let mut names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        names.sort();
        found.push(names);
    }
    assert_eq!(found, [vec!["django", "whole"], vec!["some"]]);
}

#[tokio::test]
async fn renewals_of_shares_write_no_index() {
    const RENEWALS: i64 = 50;
    let (store, backend) = Store::migrated().await;
    let held = hold(&backend, &reader("x")).await;
    for _ in 0..RENEWALS {
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    }
    let client = store.client().await;
    // What a session has counted is told when it is idle, a second late and more. Generous: it only has to end.
    let deadline = Instant::now() + Duration::from_mins(2);
    for table in ["database_locks_lock", "database_locks_lock_share"] {
        loop {
            let sql = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
                       where schemaname = $1 and relname = $2";
            let row = client.query_one(sql, &[&store.schema, &table]).await.unwrap();
            let (updated, hot): (i64, i64) = (row.get(0), row.get(1));
            if updated >= RENEWALS {
                // An analysis that runs meanwhile keeps old versions, and a page may be full of these.
                assert!(hot * 2 > updated, "{hot} of {updated} updates of {table} are heap-only");
                break;
            }
            assert!(Instant::now() < deadline, "{updated} updates of {table} were counted");
            // A session tells at the end of a transaction.
            renew(&backend, &held).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn busy_poll_writes_nothing_but_a_mark_that_is_due() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    hold(&backend, &claim("x")).await;
    hold(&backend, &reader("y")).await;
    // xmin tells which transaction wrote the row version, xmax which one locked it.
    let state = async || -> Vec<(String, String, String)> {
        let sql =
            "select ctid::text, xmin::text, xmax::text from database_locks_lock order by name";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let before = state().await;
    for _ in 0..20 {
        for lock in ["x", "y"] {
            assert_eq!(ask(&backend, &claim(lock)).await.kind(), "busy");
        }
        assert_eq!(ask(&backend, &reader("x")).await.kind(), "busy");
        let both = backend.acquire(&[claim("x"), claim("y")]).await.unwrap();
        assert!(both.iter().all(|verdict| verdict.kind() == "busy"));
    }
    assert_eq!(state().await, before, "a busy poll wrote or locked a row");

    let marked = claim("x").with_mark(Duration::from_mins(1));
    ask(&backend, &marked).await;
    let after = state().await;
    assert_ne!(after[0], before[0], "the mark was not written");
    ask(&backend, &marked).await;
    assert_eq!(state().await, after, "the mark was written though it was not due");
    client
        .batch_execute(
            "update database_locks_lock set waiting_until = waiting_until - interval '31 s'",
        )
        .await
        .unwrap();
    let half_over = state().await;
    ask(&backend, &marked).await;
    assert_ne!(
        state().await[0],
        half_over[0],
        "the mark was not renewed though half of it was over"
    );
}

#[tokio::test]
async fn killed_connections_are_replaced() {
    let (store, backend) = Store::migrated().await;
    let held = hold(&backend, &claim("x")).await;
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    let client = store.client().await;
    let killed: i64 = client
        .query_one(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where application_name = 'database-locks' and datname = current_database()",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(killed >= 2, "only {killed} were killed");
    // The word of the server may still be on its way: then the request fails as retryable.
    for attempts in 0.. {
        let renewal = Renewal::new(held.clone(), Ttl::DEFAULT);
        match backend.renew(&[renewal]).await {
            Ok(renewed) => {
                assert_eq!(renewed, [Renewed::Alive]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
    for attempts in 0.. {
        match backend.release(&[Release::free(held.clone())]).await {
            Ok(released) => {
                assert_eq!(released, [Released::Done]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
}

#[tokio::test]
async fn dropped_request_takes_its_connection_with_it() {
    let store = Store::empty();
    store.backend().await.migrate().await.unwrap();
    let backend = PostgresBackend::connect(store.config().pool_size(1).unwrap()).await.unwrap();
    let blocker = store.client().await;
    blocker
        .batch_execute("begin; lock table database_locks_lock in access exclusive mode")
        .await
        .unwrap();
    let stuck = [claim("x")];
    tokio::time::timeout(Duration::from_millis(200), backend.acquire(&stuck)).await.unwrap_err();
    // The pool of one has to have a fresh connection for this, which needs no lock.
    let fresh = tokio::time::timeout(Duration::from_secs(20), backend.migrate());
    fresh.await.expect("the stuck connection was used again").unwrap();
    blocker.batch_execute("rollback").await.unwrap();
    // The server may have finished the dropped request: its own attempt finds out.
    let token = loop {
        match ask(&backend, &stuck[0]).await {
            Verdict::Granted(token) => break token,
            Verdict::Skipped => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(release(&backend, &stuck[0].lease(token)).await, Released::Done);
}

#[tokio::test]
async fn read_only_server_is_unavailable_and_its_connection_dropped() {
    let (store, _) = Store::migrated().await;
    let role = format!("r_{}", store.schema);
    let client = store.client().await;
    client
        .batch_execute(&format!(
            "create role {role} superuser login password 'secret';
             alter role {role} set default_transaction_read_only = on"
        ))
        .await
        .unwrap();
    let config = store.config_as(&role);
    let error = PostgresBackend::connect(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("does not take writes"), "{error}");

    let any = store.database.as_user(&role, "secret");
    let any = format!("{}?target_session_attrs=any", any.url());
    let config = PostgresConfig::from_url(&any).unwrap().schema(&store.schema).unwrap();
    let backend = PostgresBackend::connect(config.pool_size(1).unwrap()).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("does not take writes"), "{error}");
    // Only a new session has the new default.
    client
        .batch_execute(&format!("alter role {role} set default_transaction_read_only = off"))
        .await
        .unwrap();
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn bad_credentials_and_databases_say_what_to_do() {
    let store = Store::empty();
    let nowhere = PostgresConfig::from_url("postgres://u:hunter2@127.0.0.1:1/d").unwrap();
    let error = PostgresBackend::connect(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("hunter2"));

    let missing = store.database.in_database("no_such_database");
    let missing = PostgresConfig::from_url(missing.url()).unwrap();
    let error = PostgresBackend::connect(missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");

    let unknown = store.config_as("no_such_role");
    let error = PostgresBackend::connect(unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
}

#[tokio::test]
async fn protocol_that_is_not_spoken_is_no_reason_to_ask_again() {
    // pgbouncer of any version refuses this, and says that the protocol was violated.
    let pooler = PgBouncer::shared().unwrap();
    let refused = PostgresConfig::from_url(&format!("{}?options=-c%20geqo%3Doff", pooler.url()));
    let error = PostgresBackend::connect(refused.unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    assert!(error.to_string().contains("remove it from the URL"), "{error}");

    let (store, backend) = Store::migrated().await;
    let broken = "select format(
        'create or replace function %s(%s) returns %s language plpgsql as
           $$begin raise exception using errcode = ''08P01''; end$$',
        oid::regproc, pg_get_function_arguments(oid), pg_get_function_result(oid))
      from pg_proc
      where proname = 'database_locks_lock_acquire_1' and pronamespace = $1::text::regnamespace";
    let client = store.client().await;
    let broken = client.query_one(broken, &[&store.schema]).await.unwrap();
    client.batch_execute(broken.get(0)).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
}

#[tokio::test]
async fn waiter_is_told_of_a_release_and_nobody_else_is() {
    let (store, backend) = Store::migrated().await;
    let mut wakeups = backend.wakeups().await.unwrap().unwrap();
    assert_eq!(wakeups.next().await, Some(Wakeup::Listening));

    let quiet = hold(&backend, &claim("nobody waits")).await;
    let held = hold(&backend, &claim("x")).await;
    let waiter = claim("x").with_mark(Duration::from_mins(1));
    ask(&backend, &waiter).await;
    assert_eq!(release(&backend, &quiet).await, Released::Done);
    assert_eq!(release(&backend, &held).await, Released::Done);
    let told = Wakeup::Released { name: name("x"), by: Releaser::Own };
    assert_eq!(wakeups.next().await, Some(told));

    let client = store.client().await;
    client
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query = $1",
            &[&format!("listen \"{}.database_locks_lock\"", store.schema)],
        )
        .await
        .unwrap();
    assert_eq!(wakeups.next().await, None);
}

#[tokio::test]
async fn explicit_owner_supersedes_its_own_shares_and_no_others() {
    let (_store, backend) = Store::migrated().await;
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

#[tokio::test]
async fn clean_up_forgets_what_is_idle_and_nothing_else() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    for lock in ["idle", "held", "recent"] {
        let held = hold(&backend, &claim(lock)).await;
        if lock != "held" {
            release(&backend, &held).await;
        }
    }
    hold(&backend, &reader("held shared")).await;
    client
        .batch_execute(
            "update database_locks_lock
             set touched_at = touched_at - interval '2 days', token = token - 172800000000
             where name in ('idle', 'held', 'held shared');
             insert into database_locks_lock (name) values ('of somebody else')",
        )
        .await
        .unwrap();
    assert_eq!(backend.clean_up(Duration::from_hours(24)).await.unwrap(), 1);
    let left = client.query("select from database_locks_lock", &[]).await.unwrap();
    assert_eq!(left.len(), 4);
}

trait Kind {
    fn kind(&self) -> &'static str;
}

impl Kind for Verdict {
    fn kind(&self) -> &'static str {
        match self {
            Verdict::Granted(_) => "granted",
            Verdict::Busy(_) => "busy",
            Verdict::CapacityMismatch(_) => "mismatch",
            Verdict::Ended => "ended",
            Verdict::Skipped => "skipped",
            other => panic!("{other:?} is unknown"),
        }
    }
}
