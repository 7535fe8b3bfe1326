//! Drivers that need a runtime work on threads that have none.

use database_locks::blocking::{Connect, Locks, migrate};
use database_locks::{ErrorKind, Settings};
use database_locks_test_servers::{MySql, Postgres};

fn works_without_a_runtime(url: &str) {
    let settings = Settings::new().url(url).table("mine");
    settings.migrate_blocking().expect("the tables");
    let mine = settings.connect_blocking().expect("locks");
    let guard = mine.lock("x").acquire().expect("the lock");
    assert!(mine.lock("x").try_acquire().expect("an answer").is_none());

    // The table of the URL is another, and not there yet.
    let theirs = || Locks::connect(url)?.lock("x").acquire()?.release();
    assert_eq!(theirs().expect_err("no table").kind(), ErrorKind::NotMigrated);
    migrate(url).expect("the tables");
    theirs().expect("the lock");

    guard.release().expect("a release");
    mine.shutdown().expect("a shutdown");
}

#[test]
fn postgres_works_without_a_runtime() {
    let server = Postgres::start().unwrap();
    works_without_a_runtime(server.url());
}

#[test]
fn mysql_works_without_a_runtime() {
    let server = MySql::start().unwrap();
    works_without_a_runtime(server.url());
}
