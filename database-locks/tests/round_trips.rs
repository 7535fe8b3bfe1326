//! An exclusive lock costs one statement to acquire and one to release.

use database_locks::{Connect, Locks, migrate};
use database_locks_test_servers::{Postgres, Server as _};

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
