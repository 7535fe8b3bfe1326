//! Beside the real django-database-locks, on one table.
//!
//! The Python side is in `python/`; `cargo xtask test --only install` makes an interpreter for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adoption;
mod clocks;
mod exclusion;
mod faults;
mod fence;
mod fleet;
mod project;

use database_locks_test_servers::{Access, MariaDb, MySql, Postgres, Result};

/// The servers that both sides run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
    MySql,
}

impl Kind {
    /// The server that all tests of this process share.
    pub(crate) fn shared(self) -> Result<&'static Access> {
        match self {
            Self::Postgres => Postgres::shared(),
            Self::MariaDb => MariaDb::shared(),
            Self::MySql => MySql::shared(),
        }
    }
}

/// Runs each test on each server.
macro_rules! on_each_server {
    ($($test:ident),* $(,)?) => {
        mod postgres { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::Kind::Postgres).await })* }
        mod mariadb { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::Kind::MariaDb).await })* }
        mod mysql { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::Kind::MySql).await })* }
    };
}
pub(crate) use on_each_server;
