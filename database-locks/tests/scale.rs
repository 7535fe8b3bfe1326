//! Connections do not grow with the number of leases or waiters.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use database_locks::{Connect, Locks, Ttl, migrate};
use database_locks_test_servers::{Access, MariaDb, MySql, Postgres};
use tokio::task::JoinSet;

const LOCKS: usize = 5_000;
const CONNECTIONS: usize = 8;
/// Generous: it only has to end on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(300);

const ON_POSTGRES: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND pid <> pg_backend_pid()";
const ON_MYSQL: &str = "SELECT count(*) FROM information_schema.processlist \
     WHERE db = DATABASE() AND id <> CONNECTION_ID()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_leases_and_as_many_waiters_need_eight_connections_on_postgres() {
    hold_and_wait(Postgres::shared().unwrap(), ON_POSTGRES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_leases_and_as_many_waiters_need_eight_connections_on_mysql() {
    hold_and_wait(MySql::shared().unwrap(), ON_MYSQL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_leases_and_as_many_waiters_need_eight_connections_on_mariadb() {
    hold_and_wait(MariaDb::shared().unwrap(), ON_MYSQL).await;
}

async fn hold_and_wait(server: &Access, connections: &str) {
    let database = server.database().unwrap();
    migrate(database.url()).await.unwrap();
    let locks = Locks::connect(database.url()).await.unwrap();
    // Long enough that a busy machine loses none of them.
    let ttl = Ttl::new(Duration::from_secs(60)).unwrap();
    let count = || database.sql(connections).unwrap().trim().parse::<usize>().unwrap();

    let mut holding = JoinSet::new();
    for i in 0..LOCKS {
        let request = locks.lock(format!("lock {i}")).ttl(ttl);
        holding.spawn(async move { request.acquire().await.unwrap() });
    }
    let guards = holding.join_all().await;
    let while_held = count();
    assert!((1..=CONNECTIONS).contains(&while_held), "{while_held} connections");

    let (waits, mut waited) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for i in 0..LOCKS {
        let waits = waits.clone();
        let mut first = true;
        let request =
            locks.lock(format!("lock {i}")).ttl(ttl).timeout(PATIENCE).on_wait(move |_| {
                if std::mem::take(&mut first) {
                    let _ = waits.send(());
                }
            });
        waiting.spawn(async move { request.acquire().await.unwrap().release().await.unwrap() });
    }
    for _ in 0..LOCKS {
        waited.recv().await.unwrap();
    }
    let while_waiting = count();
    assert!((1..=CONNECTIONS).contains(&while_waiting), "{while_waiting} connections");

    for guard in &guards {
        guard.check().unwrap();
    }
    let mut releasing = JoinSet::new();
    for guard in guards {
        releasing.spawn(async move { guard.release().await.unwrap() });
    }
    releasing.join_all().await;
    waiting.join_all().await;
    let at_the_end = count();
    assert!((1..=CONNECTIONS).contains(&at_the_end), "{at_the_end} connections");
    println!("connections: {while_held} holding, {while_waiting} waiting, {at_the_end} at the end");
    locks.shutdown().await;
}
