//! What could let a fence pass that protects nothing, and how it fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{
    Driver, MysqlAsync, Of, PATIENCE, Place, Server, SqlxMysql, SqlxSqlite, TokioPostgres,
    is_granted, soon,
};
use database_locks::fence::{Dialect, FenceParam};
use database_locks::{Connect as _, Error, ErrorKind, Lease, Locks};
use database_locks_fence::FenceIn as _;
use database_locks_test_servers::Galera;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, Value};
use sqlx::Connection as _;

const WORK: &str = "INSERT INTO work VALUES (1)";

fn is_retryable(error: &Error) {
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("roll back, and run the transaction again"), "{error}");
}

#[tokio::test]
async fn lease_and_transaction_are_of_one_kind_of_database() {
    let places = [Place::migrated(Server::Postgres).await, Place::migrated(Server::Sqlite).await];
    let [postgres, sqlite] = &places;
    let mut client: TokioPostgres = postgres.work().await;
    let mut transaction = client.begin().await;

    let guard = is_granted(sqlite.locks().await.lock("x")).await;
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(
        error.to_string().contains("Postgres") && error.to_string().contains("SQLite"),
        "{error}"
    );

    let memory = is_granted(Locks::connect("memory:").await.unwrap().lock("x")).await;
    let error = memory.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("HighWaterMark"), "{error}");

    // Neither has asked the database, and the transaction is as it was. Locks that are switched off do not, either.
    let off = Locks::builder().disabled(true);
    let off = Locks::connect_with("postgres://nowhere/x", off).await.unwrap();
    let off = is_granted(off.lock("x")).await;
    off.fence_in(&mut transaction).await.unwrap();
    assert_eq!(off.fence_sql().unwrap(), None);
    TokioPostgres::write(&mut transaction, WORK).await.unwrap();
    TokioPostgres::commit(transaction).await.unwrap();
}

#[tokio::test]
async fn future_can_be_sent_to_another_thread() {
    fn can_be_sent<T: Send>(future: T) -> T {
        future
    }
    let place = Place::migrated(Server::Sqlite).await;
    let mut client: SqlxSqlite = place.work().await;
    let guard = is_granted(place.locks().await.lock("x")).await;
    let mut transaction = client.begin().await;
    can_be_sent(guard.fence_in(&mut transaction)).await.unwrap();
}

#[tokio::test]
async fn postgres_without_the_function_is_not_migrated() {
    let place = Place::migrated(Server::Postgres).await;
    let mut client: TokioPostgres = place.work().await;
    client.run("drop function database_locks_lock_fence_1").await;
    let guard = is_granted(place.locks().await.lock("x")).await;
    let mut transaction = client.begin().await;
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated);
    assert!(error.to_string().contains("dblock migrate"), "{error}");
}

#[tokio::test]
async fn transaction_that_may_not_write_is_told_so() {
    let place = Place::migrated(Server::Postgres).await;
    let mut client: TokioPostgres = place.work().await;
    let guard = is_granted(place.locks().await.lock("x")).await;
    let mut transaction = client.0.build_transaction().read_only(true).start().await.unwrap();
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("may write"), "{error}");
    transaction.rollback().await.unwrap();

    let place = Place::migrated(Server::MySql).await;
    let mut client: SqlxMysql = place.work().await;
    let guard = is_granted(place.locks().await.lock("x")).await;
    let mut transaction = client.0.begin_with("START TRANSACTION READ ONLY").await.unwrap();
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("may write"), "{error}");
}

#[tokio::test]
async fn snapshot_of_before_a_successors_grant_passes_nowhere() {
    snapshot_of_before_passes_not::<TokioPostgres>(Server::Postgres, None).await;
    snapshot_of_before_passes_not::<MysqlAsync>(Server::MySql, None).await;
    snapshot_of_before_passes_not::<MysqlAsync>(Server::MariaDb, None).await;
    let strict = Some("SET SESSION innodb_snapshot_isolation = ON");
    snapshot_of_before_passes_not::<MysqlAsync>(Server::MariaDb, strict).await;
    snapshot_of_before_passes_not::<SqlxSqlite>(Server::Sqlite, None).await;
}

async fn snapshot_of_before_passes_not<D: Driver>(server: Server, set: Option<&str>) {
    let place = Place::migrated(server).await;
    let (locks, others) = (place.locks().await, place.locks().await);
    let mut client: D = place.work().await;
    match server {
        Server::Postgres => {
            client.run("set default_transaction_isolation = 'repeatable read'").await;
        }
        Server::MySql | Server::MariaDb => {
            client.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
        }
        Server::Sqlite => {}
    }
    if let Some(set) = set {
        client.run(set).await;
    }
    for of in Of::ALL {
        let guard = is_granted(of.request(&locks)).await;
        let mut transaction = client.begin().await;
        // The snapshot.
        D::write(&mut transaction, "SELECT name FROM database_locks_lock").await.unwrap();
        assert!(others.force_release(guard.lease().id()).await.unwrap());
        let successor = is_granted(of.successor(&others)).await;
        let error = guard.fence_in(&mut transaction).await.unwrap_err();
        if server == Server::Postgres || server == Server::Sqlite || set.is_some() {
            is_retryable(&error);
        } else {
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        }
        D::rollback(transaction).await;
        successor.release().await.unwrap();
    }
}

#[tokio::test]
async fn row_that_stays_locked_is_waited_for_in_vain() {
    let place = Place::migrated(Server::MySql).await;
    let guard = is_granted(place.locks().await.lock("x")).await;
    let (mut first, mut second): (SqlxMysql, SqlxMysql) =
        (place.work().await, SqlxMysql::connect(&place.url).await);
    let mut fenced = first.begin().await;
    guard.fence_in(&mut fenced).await.unwrap();
    second.run("SET SESSION innodb_lock_wait_timeout = 1").await;
    let mut waiting = second.begin().await;
    is_retryable(&guard.fence_in(&mut waiting).await.unwrap_err());
    SqlxMysql::rollback(waiting).await;
    SqlxMysql::commit(fenced).await.unwrap();
    let mut fenced = second.begin().await;
    guard.fence_in(&mut fenced).await.unwrap();
}

#[tokio::test]
async fn what_became_of_a_row_that_was_waited_for_is_seen_on_mysql() {
    what_became_of_a_row_is_seen(Server::MySql).await;
}

#[tokio::test]
async fn what_became_of_a_row_that_was_waited_for_is_seen_on_mariadb() {
    what_became_of_a_row_is_seen(Server::MariaDb).await;
}

/// A successor's grant that the fence waits for changes the name's row last, and the share's before.
async fn what_became_of_a_row_is_seen(server: Server) {
    let place = Place::migrated(server).await;
    let locks = place.locks().await;
    let (mut holder, mut successor): (MysqlAsync, MysqlAsync) =
        (place.work().await, MysqlAsync::connect(&place.url).await);
    let mut watcher = MysqlAsync::connect(&place.url).await;
    for isolation in ["READ COMMITTED", "REPEATABLE READ"] {
        let set = format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}");
        holder.run(&set).await;
        for of in Of::ALL {
            let guard = is_granted(of.request(&locks)).await;
            let waiter = holder.number("SELECT CAST(CONNECTION_ID() AS SIGNED)").await;
            let mut grant = successor.begin().await;
            let name = of.name();
            let ends = match of {
                Of::Whole => format!(
                    "UPDATE database_locks_lock SET token = token + 1, attempt = REPEAT('x', 16) \
                     WHERE name = '{name}'"
                ),
                _ => format!(
                    "UPDATE database_locks_lock l JOIN database_locks_lock_share s ON s.name = l.name \
                     SET s.expires_at = NULL, l.version = l.version + 1 WHERE l.name = '{name}'"
                ),
            };
            MysqlAsync::write(&mut grant, &ends).await.unwrap();

            let mut transaction = holder.begin().await;
            let waits = format!(
                "SELECT COUNT(*) FROM information_schema.innodb_trx \
                 WHERE trx_state = 'LOCK WAIT' AND trx_mysql_thread_id = {waiter}"
            );
            let (fenced, ()) = tokio::join!(guard.fence_in(&mut transaction), async {
                soon(async {
                    while watcher.number(&waits).await == 0 {
                        // The server looks anew only once nobody has asked for a tenth of a second.
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                })
                .await;
                MysqlAsync::commit(grant).await.unwrap();
            });
            let error = fenced.expect_err(&format!("{isolation} {of:?}"));
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            MysqlAsync::rollback(transaction).await;
        }
        holder.run("DELETE FROM database_locks_lock").await;
        holder.run("DELETE FROM database_locks_lock_share").await;
    }
}

#[tokio::test]
async fn of_a_fenced_transaction_and_a_grant_at_two_nodes_of_galera_one_is_committed() {
    let database = Galera::shared().unwrap().database().unwrap();
    let urls = [database.node(0).url(), database.node(1).url()];
    database_locks::migrate(urls[0]).await.unwrap();
    let mut client = MysqlAsync::connect(urls[0]).await;
    client.run("CREATE TABLE work (n INT)").await;
    database.node(1).sql("SET SESSION wsrep_sync_wait = 1; SELECT 1").unwrap();
    let locks = Locks::connect(urls[0]).await.unwrap();
    let others = Locks::connect(urls[1]).await.unwrap();
    for of in Of::ALL {
        let guard = is_granted(of.request(&locks)).await;
        let mut transaction = client.begin().await;
        guard.fence_in(&mut transaction).await.unwrap();
        MysqlAsync::write(&mut transaction, WORK).await.unwrap();
        // It is seen at the other node, and comes through there, since the row is locked here alone.
        assert!(force_release(&others, &guard.lease()).await);
        let successor = is_granted(of.successor(&others)).await;
        MysqlAsync::commit(transaction).await.expect_err("both were committed");
        assert_eq!(client.number("SELECT COUNT(*) FROM work").await, 0);
        successor.release().await.unwrap();

        // The other way around.
        let guard = is_granted(of.request(&locks)).await;
        let mut transaction = client.begin().await;
        guard.fence_in(&mut transaction).await.unwrap();
        MysqlAsync::write(&mut transaction, WORK).await.unwrap();
        MysqlAsync::commit(transaction).await.unwrap();
        drop(guard);
        is_granted(of.successor(&others)).await.release().await.unwrap();
        client.run("DELETE FROM work").await;
    }
}

/// A lease that was granted at another node, which this one hears of in a moment.
async fn force_release(locks: &Locks, lease: &Lease) -> bool {
    soon(async {
        while locks.list(lease.name().as_str()).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    locks.force_release(lease.id()).await.unwrap()
}

/// By hand, as on a driver that the crate does not know.
#[tokio::test]
async fn text_and_parameters_fence_by_any_driver() {
    for server in [Server::MySql, Server::MariaDb] {
        let place = Place::migrated(server).await;
        let (locks, others) = (place.locks().await, place.locks().await);
        // As Django does, and sqlx, where rows count that were found.
        for counts_found in [false, true] {
            let opts = mysql_async::OptsBuilder::from_opts(Opts::from_url(&place.url).unwrap());
            let mut client = Conn::new(opts.client_found_rows(counts_found)).await.unwrap();
            for of in Of::ALL {
                let guard = is_granted(of.request(&locks)).await;
                let fence = guard.fence_sql().unwrap().unwrap();
                assert_eq!(fence.dialect(), Dialect::MySql);
                let params: Vec<Value> = fence
                    .params()
                    .iter()
                    .map(|param| match param {
                        FenceParam::Text(text) => text.into(),
                        FenceParam::Integer(number) => number.into(),
                        FenceParam::Bytes(bytes) => bytes.into(),
                    })
                    .collect();
                client.query_drop("START TRANSACTION").await.unwrap();
                client.exec_drop(fence.sql(), params.clone()).await.unwrap();
                assert_eq!(client.affected_rows(), 1, "{of:?}");
                client.query_drop("COMMIT").await.unwrap();
                assert!(others.force_release(guard.lease().id()).await.unwrap());
                client.exec_drop(fence.sql(), params).await.unwrap();
                assert_eq!(client.affected_rows(), 0, "{of:?}");
            }
            client.disconnect().await.unwrap();
        }
    }
    // What Diesel and others are given on Postgres.
    let place = Place::migrated(Server::Postgres).await;
    let guard = is_granted(place.locks().await.lock("x").timeout(PATIENCE)).await;
    let fence = guard.fence_sql().unwrap().unwrap();
    let token = i64::try_from(guard.token().get()).unwrap();
    assert_eq!(fence.params(), [FenceParam::Text("x".to_owned()), FenceParam::Integer(token)]);
    assert!(fence.sql().starts_with("select ") && fence.sql().ends_with("_fence_1\"($1, $2)"));
}
