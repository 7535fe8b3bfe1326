//! A database that goes away in the middle of a wait.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Deref;
use std::time::Duration;

use database_locks::{Connect, ErrorKind, Locks, Ttl, migrate};
use database_locks_test_servers::{Access, MariaDb, MySql, Postgres, Server};

/// Generous: it only has to end on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn holder_and_waiter(server: &Access) -> (Locks, Locks) {
    migrate(server.url()).await.unwrap();
    let here = Locks::connect(server.url()).await.unwrap();
    (here, Locks::connect(server.url()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_returns_is_waited_for() {
    return_of(&Postgres::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stays_away_is_an_error_within_the_timeout() {
    absence_of(&Postgres::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_that_returns_is_waited_for() {
    return_of(&MySql::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_that_stays_away_is_an_error_within_the_timeout() {
    absence_of(&MySql::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_returns_is_waited_for() {
    return_of(&MariaDb::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_stays_away_is_an_error_within_the_timeout() {
    absence_of(&MariaDb::start().unwrap()).await;
}

async fn return_of(server: &(impl Server + Deref<Target = Access>)) {
    let (here, there) = holder_and_waiter(server).await;
    // Longer than the outage, so that the lease outlives it.
    let ttl = Ttl::new(PATIENCE * 2).unwrap();
    let guard = here.lock("x").ttl(ttl).acquire().await.unwrap();
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let request = there.lock("x").timeout(PATIENCE).on_wait(move |_| {
        let _ = told.send(());
    });
    let waiting = tokio::spawn(async move { request.acquire().await });
    waits.recv().await.unwrap();

    server.stop_hard().unwrap();
    let is_away = async {
        while there.health().is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_away).await.expect("some asks fail");
    assert_eq!(there.health().waiting, 1);
    server.start_again().unwrap();

    guard.check().unwrap();
    let first = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap().unwrap();
    assert!(next.token() > first);
    let health = there.health();
    assert!(health.is_ready() && health.held == 1 && health.waiting == 0, "{health:?}");
    next.release().await.unwrap();
}

async fn absence_of(server: &(impl Server + Deref<Target = Access>)) {
    let (here, there) = holder_and_waiter(server).await;
    let guard = here.lock("x").acquire().await.unwrap();
    server.stop_hard().unwrap();
    let asked = there.lock("x").timeout(Duration::from_secs(2)).acquire();
    let error = tokio::time::timeout(PATIENCE, asked).await.expect("in time").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(r#"lock "x""#), "{error}");
    // The holder cannot renew, and gives up.
    let lost = tokio::time::timeout(PATIENCE, guard.lost()).await;
    assert!(lost.is_ok(), "the loss must be signalled without the database");
    let health = here.health();
    assert!(health.outage.is_some() && health.held == 0, "{health:?}");
}
