//! The functions that decide: who may call them, what they are found by, versions side by side, and the
//! fence for a user's own transaction.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Store, ask, claim, hold};
use database_locks_core::{
    Attempt, Error, ErrorKind, LeaseId, ListQuery, LockBackend, Release, Released, Renewal,
    Renewed, Share, Ttl, Verdict,
};
use database_locks_postgres::deadpool_postgres::Connect;
use database_locks_postgres::{PostgresBackend, PostgresConfig, Prepare, schema_sql};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

async fn renew(backend: &PostgresBackend, lease: &LeaseId) -> Renewed {
    let renewal = Renewal::new(lease.clone(), Ttl::DEFAULT);
    backend.renew(&[renewal]).await.unwrap()[0]
}

async fn release(backend: &PostgresBackend, lease: &LeaseId) -> Released {
    backend.release(&[Release::free(lease.clone())]).await.unwrap()[0]
}

#[tokio::test]
async fn programs_of_two_versions_exclude_each_other() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    // Of another version, which stays when ours is made.
    let older = schema_sql(&store.config()).replace("_1\"", "_0\"");
    client.batch_execute(&older).await.unwrap();
    backend.migrate().await.unwrap();
    let older = async |verb: &str, lock: &str, token: i64| -> String {
        let sql = match verb {
            "acquire" => {
                "select verdict from database_locks_lock_acquire_0(array[$1], array[$2]::text[]::uuid[],
                   array['old'], array[false], array[2147483647], array[2147483647],
                   array[60000000], array[0], array[null]::bigint[], array[null]::text[],
                   array[null]::uuid[], array[null]::bigint[], array[null]::text[], array[null]::boolean[], false)
                 where $3::bigint = 0"
            }
            _ => {
                "select outcome from database_locks_lock_change_0(array[$1], array[$2]::text[]::uuid[],
                   array[$3::bigint], array['old'], array[false], array[2147483647], array[2147483647],
                   array['free'], array[null]::bigint[], 'channel', 'old', false)"
            }
        };
        let attempt = "019ac4d0-0000-7000-8000-000000000000";
        client.query_one(sql, &[&lock, &attempt, &token]).await.unwrap().get(0)
    };

    let ours = hold(&backend, &claim("x")).await;
    assert_eq!(older("acquire", "x", 0).await, "busy");
    assert_eq!(release(&backend, &ours).await, Released::Done);
    assert_eq!(older("acquire", "x", 0).await, "granted");
    assert!(matches!(ask(&backend, &claim("x")).await, Verdict::Busy(_)));
    let theirs = backend.list(&ListQuery::default()).await.unwrap()[0].lease.clone();
    assert!(theirs.token > ours.token);
    let token = i64::try_from(theirs.token.get()).unwrap();
    assert_eq!(older("release", "x", token).await, "ok");
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn missing_function_is_not_migrated_and_works_once_made() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    let functions = client
        .query("select oid::regprocedure::text from pg_proc where pronamespace = $1::text::regnamespace",
            &[&store.schema])
        .await
        .unwrap();
    assert_eq!(functions.len(), 4);
    for function in functions {
        let function: &str = function.get(0);
        client.batch_execute(&format!("drop function {function}")).await.unwrap();
    }
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
    assert!(error.to_string().contains("dblock migrate"), "{error}");
    backend.migrate().await.unwrap();
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn function_of_another_signature_is_none_of_ours() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    client
        .batch_execute(
            "drop function database_locks_lock_acquire_1;
             create function database_locks_lock_acquire_1(text) returns bigint language sql as 'select 1'",
        )
        .await
        .unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
    backend.migrate().await.unwrap();
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn function_waits_for_no_row_of_a_share_and_has_nothing_compiled() {
    let (store, backend) = Store::migrated().await;
    let held = hold(&backend, &claim("a").with_share(Share::ONE)).await;
    assert_eq!(release(&backend, &held).await, Released::Done);
    let blocker = store.client().await;
    blocker.batch_execute("begin; select from database_locks_lock_share for update").await.unwrap();
    // An error of one claim would be one of the whole batch, which then had to be asked for one by one.
    let asked = "
        select verdict, current_setting('jit')
        from database_locks_lock_acquire_1(
          array['a', 'b'], array[md5('a')::uuid, md5('b')::uuid], array_fill('host.1'::text, array[2]),
          array_fill(false, array[2]), array_fill(2147483647, array[2]), array_fill(2147483647, array[2]),
          array_fill(60000000::bigint, array[2]), array_fill(0::bigint, array[2]),
          array_fill(null::bigint, array[2]), array_fill(null::text, array[2]), array_fill(null::uuid, array[2]),
          array_fill(null::bigint, array[2]), array_fill(null::text, array[2]),
          array_fill(null::boolean, array[2]), false)
        order by item";
    let rows = store.client().await.query(asked, &[]).await.unwrap();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("contended", "off"), ("granted", "off")]);
}

#[tokio::test]
async fn schema_that_is_run_by_hand_gives_up_soon_and_leaves_the_session_as_it_was() {
    let (store, _) = Store::migrated().await;
    let (user, migration) = (store.client().await, store.client().await);
    user.batch_execute("begin; select from database_locks_lock").await.unwrap();
    let schema = schema_sql(&store.config());
    // Only so that it ends.
    migration.batch_execute("set statement_timeout = '1min'").await.unwrap();
    let error = migration.batch_execute(&schema).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE), "{error}");
    user.batch_execute("commit").await.unwrap();
    migration.batch_execute(&format!("begin; set lock_timeout = '7s'; {schema}")).await.unwrap();
    let timeout = migration.query_one("show lock_timeout", &[]).await.unwrap();
    assert_eq!(timeout.get::<_, &str>(0), "7s");
}

/// As the crate's documentation says.
const STRICT: &str = "
alter function {schema}.database_locks_lock_acquire_1 security definer set search_path = pg_catalog, pg_temp;
alter function {schema}.database_locks_lock_change_1 security definer set search_path = pg_catalog, pg_temp;
alter function {schema}.database_locks_lock_fence_1 security definer set search_path = pg_catalog, pg_temp;
revoke all on all functions in schema {schema} from public;
grant usage on schema {schema} to {role};
grant execute on function {schema}.database_locks_lock_acquire_1 to {role};
grant execute on function {schema}.database_locks_lock_change_1 to {role};
grant execute on function {schema}.database_locks_lock_fence_1 to {role};
";

#[tokio::test]
async fn lock_user_may_have_the_right_to_execute_alone() {
    let (store, _) = Store::migrated().await;
    let role = format!("r_{}", store.schema);
    let client = store.client().await;
    client.batch_execute(&format!("create role {role} login password 'secret'")).await.unwrap();
    let grants = STRICT.replace("{schema}", &store.schema).replace("{role}", &role);
    client.batch_execute(&grants).await.unwrap();
    let backend = PostgresBackend::connect(store.config_as(&role)).await.unwrap();
    // Rights on the table that are taken away from a program that runs.
    let tables = format!("all tables in schema {}", store.schema);
    client.batch_execute(&format!("grant all on {tables} to {role}")).await.unwrap();
    let running = PostgresBackend::connect(store.config_as(&role)).await.unwrap();
    let held = hold(&running, &claim("running")).await;
    client.batch_execute(&format!("revoke all on {tables} from {role}")).await.unwrap();
    assert_eq!(renew(&running, &held).await, Renewed::Alive);
    assert_eq!(release(&running, &held).await, Released::Done);
    let user = store.client().await;
    user.batch_execute(&format!("set role {role}")).await.unwrap();
    for share in [Share::ALL, Share::ONE] {
        let asked = claim(&format!("{share}")).with_share(share);
        let held = hold(&backend, &asked).await;
        assert!(matches!(ask(&backend, &claim(asked.name.as_str())).await, Verdict::Busy(_)));
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        fence(&user, &held).await.unwrap();
        user.batch_execute("commit").await.unwrap();
        assert_eq!(release(&backend, &held).await, Released::Done);
        assert!(matches!(renew(&backend, &held).await, Renewed::Lost(_)));
    }
    let error = backend.list(&ListQuery::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    client.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
}

#[tokio::test]
async fn plain_statement_does_without_a_function_what_nothing_is_in_the_way_of() {
    let (store, backend) = Store::migrated().await;
    let first = hold(&backend, &claim("x")).await;
    assert_eq!(release(&backend, &first).await, Released::Done);
    let many = || ["x", "y", "z"].map(claim);
    for claim in &many()[1..] {
        let held = hold(&backend, claim).await;
        assert_eq!(release(&backend, &held).await, Released::Done);
    }
    let client = store.client().await;
    for verb in ["acquire", "change"] {
        let broken = "select format(
            'alter function %1$s rename to real_%2$s;
             create function %1$s(%3$s) returns %4$s language plpgsql as $$begin raise exception ''called''; end$$',
            oid::regproc, $1::text, pg_get_function_arguments(oid), pg_get_function_result(oid))
          from pg_proc
          where proname = 'database_locks_lock_' || $1 || '_1' and pronamespace = $2::text::regnamespace";
        let broken = client.query_one(broken, &[&verb, &store.schema]).await.unwrap();
        client.batch_execute(broken.get(0)).await.unwrap();
    }
    let called = |error: Error| assert!(error.to_string().contains("called"), "{error}");

    let held = hold(&backend, &claim("x")).await;
    assert!(held.token > first.token);
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    called(backend.acquire(&[claim("x")]).await.unwrap_err());
    called(backend.release(&[Release::revoke(held.clone())]).await.unwrap_err());
    assert_eq!(release(&backend, &held).await, Released::Done);
    called(backend.release(&[Release::free(held)]).await.unwrap_err());
    let given_back = hold(&backend, &claim("x")).await;
    let held = hold(&backend, &claim("x").with_replaces(given_back.clone())).await;
    assert!(held.token > given_back.token);
    called(backend.acquire(&[claim("x").with_replaces(given_back)]).await.unwrap_err());
    assert_eq!(release(&backend, &held).await, Released::Done);
    // Many of them likewise.
    let asked = many();
    let granted = backend.acquire(&asked).await.unwrap();
    let leases: Vec<LeaseId> = asked
        .iter()
        .zip(granted)
        .map(|(claim, verdict)| match verdict {
            Verdict::Granted(token) => claim.lease(token),
            other => panic!("{other:?}"),
        })
        .collect();
    let renewals: Vec<Renewal> =
        leases.iter().map(|lease| Renewal::new(lease.clone(), Ttl::DEFAULT)).collect();
    assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Alive; 3]);
    called(backend.acquire(&many()).await.unwrap_err());
    let releases = Release::free_all(&leases);
    assert_eq!(backend.release(&releases).await.unwrap(), [Released::Done; 3]);
    called(backend.release(&releases).await.unwrap_err());
    // What is not prepared would be planned each time.
    let config = store.config().prepare(Prepare::Never);
    let unprepared = PostgresBackend::connect(config).await.unwrap();
    called(unprepared.acquire(&[claim("x")]).await.unwrap_err());
}

#[tokio::test]
async fn plain_batch_leaves_to_the_function_what_is_not_free_and_tells_each_its_own() {
    let (_store, backend) = Store::migrated().await;
    let names = ["f", "b", "e", "a", "d", "c"];
    for name in names {
        let made = hold(&backend, &claim(name)).await;
        assert_eq!(release(&backend, &made).await, Released::Done);
    }
    let busy = hold(&backend, &claim("b")).await;
    let given_back = hold(&backend, &claim("c")).await;
    let again = claim("d");
    let replayed = hold(&backend, &again).await;
    // Free, busy, new, free, a replay, handed over.
    let asked = [
        claim("f"),
        claim("b"),
        claim("new"),
        claim("a"),
        again,
        claim("c").with_replaces(given_back.clone()),
    ];
    let verdicts = backend.acquire(&asked).await.unwrap();
    let lease = |i: usize| match &verdicts[i] {
        Verdict::Granted(token) => asked[i].lease(*token),
        other => panic!("{}: {other:?}", asked[i].name),
    };
    match &verdicts[1] {
        Verdict::Busy(by) => assert_eq!(by.holder.as_ref().unwrap().token, busy.token),
        other => panic!("{other:?}"),
    }
    assert_eq!(lease(4).token, replayed.token);
    assert!(lease(5).token > given_back.token);
    let held = [lease(0), busy, lease(2), lease(3), lease(4), lease(5)];
    for held in &held {
        assert_eq!(renew(&backend, held).await, Renewed::Alive, "{}", held.name);
    }

    assert_eq!(release(&backend, &held[0]).await, Released::Done);
    let renewals: Vec<Renewal> =
        held.iter().map(|lease| Renewal::new(lease.clone(), Ttl::DEFAULT)).collect();
    let renewed = backend.renew(&renewals).await.unwrap();
    let released = backend.release(&Release::free_all(&held)).await.unwrap();
    for i in 0..held.len() {
        assert_eq!(matches!(renewed[i], Renewed::Lost(_)), i == 0, "{:?}", renewed[i]);
        assert_eq!(matches!(released[i], Released::Lost(_)), i == 0, "{:?}", released[i]);
    }
}

/// Begins a transaction, and calls the fence in it.
async fn fence(client: &Client, lease: &LeaseId) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("begin").await?;
    call_fence(client, lease).await
}

async fn call_fence(client: &Client, lease: &LeaseId) -> Result<(), tokio_postgres::Error> {
    let token = i64::try_from(lease.token.get()).unwrap();
    let sql = "select database_locks_lock_fence_1($1, $2)";
    client.query(sql, &[&lease.name.as_str(), &token]).await?;
    Ok(())
}

#[tokio::test]
async fn fenced_transaction_holds_back_successors_and_lets_its_renewal_pass() {
    let (store, backend) = Store::migrated().await;
    let (work, other) = (store.client().await, store.client().await);
    for share in [Share::ALL, Share::ONE] {
        let asked = claim(&format!("{share}")).with_share(share);
        let held = hold(&backend, &asked).await;
        let next = claim(asked.name.as_str()).with_share(Share::ALL);

        fence(&work, &held).await.unwrap();
        fence(&other, &held).await.unwrap();
        other.batch_execute("commit").await.unwrap();
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        assert_eq!(release(&backend, &held).await, Released::Done);
        // It is free, and nobody gets it before the work is committed.
        assert_eq!(ask(&backend, &next).await, Verdict::Skipped);
        work.batch_execute("commit").await.unwrap();
        let taken = hold(&backend, &next).await;

        // Whoever comes too late can write nothing.
        let error = fence(&work, &held).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE));
        work.batch_execute("rollback").await.unwrap();
        assert_eq!(release(&backend, &taken).await, Released::Done);
    }
    for share in [Share::ALL, Share::ONE] {
        let held = hold(&backend, &claim(&format!("revoked {share}")).with_share(share)).await;
        backend.release(&[Release::revoke(held.clone())]).await.unwrap();
        fence(&work, &held).await.unwrap_err();
        work.batch_execute("rollback").await.unwrap();
    }
    let brief = claim("expired").with_ttl(Ttl::new(Ttl::MIN).unwrap());
    let dead = hold(&backend, &brief).await;
    tokio::time::sleep(Ttl::MIN * 3).await;
    fence(&work, &dead).await.unwrap_err();
}

/// Successors write the row with a lock that a fence's is in conflict with, however old the fence's snapshot is.
#[tokio::test]
async fn fence_of_an_older_snapshot_does_not_pass_a_successors_grant() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    for isolation in ["repeatable read", "serializable"] {
        for share in [Share::ALL, Share::ONE, Share::new(1, 2).unwrap()] {
            let name = format!("{isolation} {share}");
            let asked = claim(&name).with_share(share);
            let begin = async || {
                let snapshot =
                    format!("begin isolation level {isolation}; select from database_locks_lock");
                client.batch_execute(&snapshot).await.unwrap();
            };

            // What has happened to the lease since is not seen, and lets nobody in.
            let held = hold(&backend, &asked).await;
            begin().await;
            assert_eq!(renew(&backend, &held).await, Renewed::Alive);
            call_fence(&client, &held).await.unwrap();
            assert_eq!(release(&backend, &held).await, Released::Done);
            assert_eq!(ask(&backend, &claim(&name)).await, Verdict::Skipped);
            client.batch_execute("rollback").await.unwrap();

            for successor in [claim(&name), claim(&name).with_share(share)] {
                let held = hold(&backend, &asked.clone().with_attempt(Attempt::new())).await;
                begin().await;
                assert_eq!(release(&backend, &held).await, Released::Done);
                let next = hold(&backend, &successor).await;
                let error = call_fence(&client, &held).await.unwrap_err();
                assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{name}");
                client.batch_execute("rollback").await.unwrap();
                assert_eq!(release(&backend, &next).await, Released::Done);
            }
        }
    }
}

#[tokio::test]
async fn fence_that_protects_nothing_is_refused() {
    let (store, backend) = Store::migrated().await;
    let client = store.client().await;
    let held = hold(&backend, &claim("x")).await;
    let error = call_fence(&client, &held).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION), "{error}");
    let token = held.token;
    let sql = format!("select database_locks_lock_fence_1('x', {token})");
    let error = client.batch_execute(&sql).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION), "{error}");
    // Also where the function cannot tell that it is in one: better than the other way around.
    let sql = format!("begin; select database_locks_lock_fence_1('x', {token}); commit");
    let error = client.batch_execute(&sql).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION), "{error}");
    client.batch_execute("rollback").await.unwrap();

    client.batch_execute("begin").await.unwrap();
    let elsewhere = claim("elsewhere").lease(token);
    let error = call_fence(&client, &elsewhere).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::NO_DATA_FOUND), "{error}");
    client.batch_execute("rollback").await.unwrap();
}

#[tokio::test]
async fn table_is_the_one_that_was_found_first_whatever_a_session_says_later() {
    let (store, _) = Store::migrated().await;
    let decoy = Store { schema: format!("{}_decoy", store.schema), database: store.database };
    let real = decoy.schema.trim_end_matches("_decoy").to_owned();
    let role = format!("r_{real}");
    let client = decoy.client().await;
    client
        .batch_execute(&format!(
            "create role {role} superuser login password 'secret';
             alter role {role} set search_path = {real}"
        ))
        .await
        .unwrap();
    let decoy_backend = decoy.backend().await;
    decoy_backend.migrate().await.unwrap();

    let url = decoy.database.as_user(&role, "secret");
    let config = PostgresConfig::from_url(url.url()).unwrap();
    let backend = PostgresBackend::connect(config).await.unwrap();
    let held = hold(&backend, &claim("x")).await;
    // As if the session of a pooler had been another client's.
    client
        .batch_execute(&format!(
            "alter role {role} set search_path = {}_decoy;
             select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'",
            real
        ))
        .await
        .unwrap();
    let verdict = loop {
        match backend.acquire(&[claim("x")]).await {
            Ok(verdicts) => break verdicts,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    };
    assert!(matches!(verdict[..], [Verdict::Busy(_)]), "it asked another table: {verdict:?}");
    assert_eq!(release(&backend, &held).await, Released::Done);
    assert!(decoy_backend.list(&ListQuery::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn owner_of_a_schema_migrates_without_the_right_to_make_one() {
    let store = Store::empty();
    let role = format!("r_{}", store.schema);
    store
        .client()
        .await
        .batch_execute(&format!(
            "create role {role} login password 'secret'; create schema {} authorization {role}",
            store.schema
        ))
        .await
        .unwrap();
    let backend = PostgresBackend::connect(store.config_as(&role)).await.unwrap();
    backend.migrate().await.unwrap();
    hold(&backend, &claim("x")).await;
}

#[tokio::test]
async fn password_is_asked_for_whenever_a_connection_is_made() {
    let (store, _) = Store::migrated().await;
    let role = format!("r_{}", store.schema);
    let client = store.client().await;
    let set = async |password: &str| {
        let sql = format!("alter role {role} password '{password}'");
        client.batch_execute(&sql).await.unwrap();
    };
    client.batch_execute(&format!("create role {role} superuser login")).await.unwrap();
    set("first").await;
    let current = Arc::new(Mutex::new("first"));
    let source = Arc::clone(&current);
    let config = store.config_as(&role).pool_size(1).unwrap().password_from(move || {
        let password = source.lock().unwrap().to_owned();
        async move { Ok(password) }
    });
    let backend = PostgresBackend::connect(config).await.unwrap();
    let held = hold(&backend, &claim("x")).await;

    set("second").await;
    let ended =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'");
    let after = async || loop {
        match backend.acquire(&[claim("y")]).await {
            Err(error) if error.is_retryable() => {}
            result => break result,
        }
    };
    client.batch_execute(&ended).await.unwrap();
    assert_eq!(after().await.unwrap_err().kind(), ErrorKind::Permission);
    *current.lock().unwrap() = "second";
    assert!(matches!(after().await.unwrap()[..], [Verdict::Granted(_)]));
    assert_eq!(release(&backend, &held).await, Released::Done);
}

/// Connects as the driver does, and counts.
#[derive(Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl Connect for Counting {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>>
                + Send
                + '_,
        >,
    > {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = config.connect(NoTls).await?;
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok((client, tokio::spawn(async { drop(connection.await) })))
        })
    }
}

#[tokio::test]
async fn connections_may_be_made_by_the_user() {
    let (store, _) = Store::migrated().await;
    let connect = Counting::default();
    let made = Arc::clone(&connect.0);
    let backend = PostgresBackend::connect_by(store.config(), connect).await.unwrap();
    for share in [Share::ALL, Share::ONE] {
        let held = hold(&backend, &claim(&format!("{share}")).with_share(share)).await;
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        assert_eq!(release(&backend, &held).await, Released::Done);
    }
    assert!(backend.wakeups().await.unwrap().is_none());
    assert_eq!(made.load(Ordering::SeqCst), 2, "one is shared, and one for renewals");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_ended_on_the_server() {
    let (store, backend) = Store::migrated().await;
    let blocker = store.client().await;
    blocker
        .batch_execute("begin; lock table database_locks_lock in access exclusive mode")
        .await
        .unwrap();
    for _ in 0..5 {
        let stuck = [claim("x")];
        let asked = tokio::time::timeout(Duration::from_millis(200), backend.acquire(&stuck));
        asked.await.unwrap_err();
    }
    let at_work = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
        blocker.query_one(sql, &[]).await.unwrap().get(0)
    };
    // They would wait for as long as the table is locked. A bound of the server's own ends them after
    // 10 s: less than that says that they were cancelled.
    let ended = tokio::time::timeout(Duration::from_secs(8), async {
        // To cancel comes to nothing where the server has not begun with the request, on a busy machine.
        while at_work().await > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ended.await.expect("abandoned requests are still at work on the server");
    blocker.batch_execute("rollback").await.unwrap();
}
