//! An exclusive lock costs one statement to acquire and one to release, and waiters poll together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use database_locks::{Connect, Locks, Ttl, migrate};
use database_locks_test_servers::{MySql, Postgres, Server as _};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquire_and_release_are_one_statement_each() {
    let server = Postgres::builder().setting("log_statement", "all").start().unwrap();
    migrate(server.url()).await.unwrap();
    let locks = Locks::connect(server.url()).await.unwrap();
    // The row is there and the connections are open from here on.
    for _ in 0..8 {
        locks.lock("x").acquire().await.unwrap().release().await.unwrap();
    }
    let before = statements(&server);
    let guard = locks.lock("x").acquire().await.unwrap();
    let acquired = statements(&server);
    guard.release().await.unwrap();
    let released = statements(&server);
    assert_eq!((acquired - before, released - acquired), (1, 1), "{}", server.log().unwrap());
}

/// Statements are logged before they run, so that the log is complete once they have answered.
fn statements(server: &Postgres) -> usize {
    let log = server.log().expect("the server's log");
    log.lines().filter(|l| l.contains("LOG:  execute ") || l.contains("LOG:  statement:")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_a_process_poll_in_one_query() {
    const WAITERS: usize = 200;
    let server = MySql::start().unwrap();
    migrate(server.url()).await.unwrap();
    let (here, there) =
        (Locks::connect(server.url()).await.unwrap(), Locks::connect(server.url()).await.unwrap());
    let ttl = Ttl::new(Duration::from_mins(5)).unwrap();
    let mut guards = Vec::new();
    for i in 0..WAITERS {
        guards.push(here.lock(format!("lock {i}")).ttl(ttl).acquire().await.unwrap());
    }
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for i in 0..WAITERS {
        let (told, mut first) = (told.clone(), true);
        let request =
            there.lock(format!("lock {i}")).timeout(Duration::from_mins(5)).on_wait(move |_| {
                if std::mem::take(&mut first) {
                    let _ = told.send(());
                }
            });
        waiting.spawn(async move { request.acquire().await.unwrap() });
    }
    for _ in 0..WAITERS {
        waits.recv().await.unwrap();
    }
    let selects = || -> usize {
        let status = server.sql("SHOW GLOBAL STATUS LIKE 'Com_select'").unwrap();
        status.split_once('|').unwrap().1.parse().unwrap()
    };
    let before = selects();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let polls = selects() - before;
    // Each of them asks at least four times in 2 s, by two SELECTs: one by one that were 1,600.
    assert!(polls < 2 * WAITERS, "{polls} queries for {WAITERS} waiters in 2 s");
    println!("{polls} queries for {WAITERS} waiters in 2 s");
    drop(guards);
    waiting.join_all().await;
}
