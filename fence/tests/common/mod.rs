//! What the tests share: each driver on each server, as one trait.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses its own part"
)]

use std::any::Any;
use std::time::Duration;

use database_locks::{Connect as _, Guard, LockRequest, Locks, migrate};
use database_locks_fence::Transaction;
use database_locks_test_servers::{MariaDb, MySql, Postgres};

mod drivers;

#[allow(unused_imports, reason = "each test binary uses its own part")]
pub use drivers::{Deadpool, MysqlAsync, SqlxMysql, SqlxPostgres, SqlxSqlite, TokioPostgres};

/// How long anything may take on the slowest machine.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A driver, with one connection.
pub trait Driver: Sized {
    type Tx<'a>: Transaction
    where
        Self: 'a;

    async fn connect(url: &str) -> Self;

    /// Runs a statement outside of any transaction.
    async fn run(&mut self, sql: &str);

    /// The one number that a query gives.
    async fn number(&mut self, sql: &str) -> i64;

    async fn begin(&mut self) -> Self::Tx<'_>;

    async fn write(tx: &mut Self::Tx<'_>, sql: &str) -> Result<(), String>;

    async fn commit(tx: Self::Tx<'_>) -> Result<(), String>;

    async fn rollback(tx: Self::Tx<'_>);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Postgres,
    MySql,
    MariaDb,
    Sqlite,
}

/// Runs each test by each driver on each of its servers.
#[allow(unused_macros, reason = "each test binary uses its own part")]
macro_rules! on_each_driver {
    ($($test:ident),* $(,)?) => {
        mod tokio_postgres { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::TokioPostgres>($crate::common::Server::Postgres).await
        })* }
        mod deadpool_postgres { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::Deadpool>($crate::common::Server::Postgres).await
        })* }
        mod sqlx_postgres { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::SqlxPostgres>($crate::common::Server::Postgres).await
        })* }
        mod mysql_async_mysql { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::MysqlAsync>($crate::common::Server::MySql).await
        })* }
        mod mysql_async_mariadb { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::MysqlAsync>($crate::common::Server::MariaDb).await
        })* }
        mod sqlx_mysql { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::SqlxMysql>($crate::common::Server::MySql).await
        })* }
        mod sqlx_mariadb { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::SqlxMysql>($crate::common::Server::MariaDb).await
        })* }
        mod sqlx_sqlite { $(#[tokio::test] async fn $test() {
            super::$test::<$crate::common::SqlxSqlite>($crate::common::Server::Sqlite).await
        })* }
    };
}
#[allow(unused_imports, reason = "each test binary uses its own part")]
pub(crate) use on_each_driver;

/// A database of the test's own.
pub struct Place {
    pub url: String,
    server: Server,
    _kept: Box<dyn Any>,
}

impl Place {
    /// With the tables of the locks, and one of the user's own.
    pub async fn migrated(server: Server) -> Self {
        let place = Self::empty(server);
        migrate(&place.url).await.unwrap();
        place
    }

    pub fn empty(server: Server) -> Self {
        let database = match server {
            Server::Postgres => Postgres::shared().unwrap().database().unwrap(),
            Server::MySql => MySql::shared().unwrap().database().unwrap(),
            Server::MariaDb => MariaDb::shared().unwrap().database().unwrap(),
            Server::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("locks.db");
                std::fs::File::create(&file).unwrap();
                let url = format!("sqlite:{}", file.display());
                return Self { url, server, _kept: Box::new(folder) };
            }
        };
        Self { url: database.url().to_owned(), server, _kept: Box::new(database) }
    }

    pub async fn locks(&self) -> Locks {
        Locks::connect(&self.url).await.unwrap()
    }

    /// A connection to a database in which there is a table `work`.
    pub async fn work<D: Driver>(&self) -> D {
        let mut driver = D::connect(&self.url).await;
        driver.run("CREATE TABLE work (n BIGINT)").await;
        driver
    }

    /// Lets a lease have expired, as the database sees it.
    pub fn expire(&self, of: Of) -> String {
        let past = match self.server {
            Server::Postgres => "now() - interval '1 second'",
            Server::MySql | Server::MariaDb => "UTC_TIMESTAMP(6) - INTERVAL 1 SECOND",
            Server::Sqlite => "1",
        };
        let (table, more) = match (self.server, of) {
            (Server::Sqlite, _) => ("_lease", String::new()),
            (_, Of::Whole) => ("", format!(", lease_expires_at = {past}")),
            _ => ("_share", String::new()),
        };
        let name = match self.server {
            Server::Sqlite => "CAST(name AS TEXT)",
            _ => "name",
        };
        format!(
            "UPDATE database_locks_lock{table} SET expires_at = {past}{more} WHERE {name} = '{}'",
            of.name()
        )
    }
}

/// What a lease takes of its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Whole,
    Permit,
    Reader,
}

impl Of {
    pub const ALL: [Self; 3] = [Self::Whole, Self::Permit, Self::Reader];

    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Permit => "permit",
            Self::Reader => "reader",
        }
    }

    pub fn request(self, locks: &Locks) -> LockRequest {
        let ttl = Duration::from_mins(1);
        match self {
            Self::Whole => locks.lock(self.name()),
            Self::Permit => locks.semaphore(self.name(), 2).permits(1),
            Self::Reader => locks.rwlock(self.name()).read(),
        }
        .ttl(ttl)
    }

    /// What does not fit beside it.
    pub fn successor(self, locks: &Locks) -> LockRequest {
        match self {
            Self::Whole => locks.lock(self.name()),
            Self::Permit => locks.semaphore(self.name(), 2).permits(2),
            Self::Reader => locks.rwlock(self.name()).write(),
        }
    }
}

/// Waits for what has to come.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Asks for a lock that nobody must get, for long enough to be told so.
pub async fn is_refused(request: LockRequest) {
    let asked = request.timeout(Duration::from_secs(1)).acquire().await;
    asked.expect_err("it was granted beside a fenced transaction");
}

/// Asks for a lock that has to be granted soon.
pub async fn is_granted(request: LockRequest) -> Guard {
    request.timeout(PATIENCE).acquire().await.unwrap()
}
