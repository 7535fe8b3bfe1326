//! Throwaway database servers for tests, benches and `cargo xtask with`.
//!
//! Servers are started from installed binaries, run as an ordinary user also when the caller is root, listen on
//! 127.0.0.1 and a free port only, and keep everything in a temporary folder of their own. A binary that is missing
//! is an error that says how to get it; nothing is ever skipped.
//!
//! # A database for a test
//!
//! One server serves all tests of a process, and each test takes a database of its own from it:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use database_locks_test_servers::Postgres;
//!
//! let database = Postgres::shared()?.database()?;
//! database.sql("CREATE TABLE t (n int)")?;
//! println!("{}", database.url()); // postgres://postgres:…@127.0.0.1:23456/dblocks_test_…
//! # Ok(()) }
//! ```
//!
//! The database is dropped with its value, so keep the value for as long as the URL is in use.
//! [`PgBouncer::shared`] gives the same through a pooler in transaction mode.
//!
//! Where `DATABASE_LOCKS_TEST_POSTGRES_URL` is set, [`Postgres::shared`] starts nothing and uses that server, which
//! has to let the URL's user create databases; `DATABASE_LOCKS_TEST_MARIADB_URL` and `DATABASE_LOCKS_TEST_MYSQL_URL` do so
//! for [`MariaDb::shared`] and [`MySql::shared`].
//! Databases left there by a killed test are named `dblocks_test_…`.
//!
//! # A server that a test may break
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use database_locks_test_servers::{Postgres, Proxy, Server};
//!
//! let server = Postgres::builder().setting("default_transaction_isolation", "serializable").start()?;
//! server.pause()?; // SIGSTOP, the server's children included
//! server.resume()?;
//! server.stop_hard()?; // kill -9
//! server.start_again()?; // same port, same data
//! // With `builder().steppable()`: server.step_clock(ClockStep::Back(Duration::from_secs(3600)))?;
//!
//! let proxy = Proxy::start(server.port())?;
//! let url = server.at_port(proxy.port()).url().to_owned();
//! proxy.black_hole();
//! # Ok(()) }
//! ```
//!
//! # A cluster with a writer on every node
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use database_locks_test_servers::{Galera, Server};
//!
//! let database = Galera::shared()?.database()?;
//! println!("{}", database.urls()); // mysql://root:…@127.0.0.1:23456,127.0.0.1:23457,127.0.0.1:23458/dblocks_test_…
//! database.node(1).sql("CREATE TABLE t (n int)")?;
//!
//! let cluster = Galera::start()?; // takes some ten seconds
//! cluster.node(0).stop_hard()?;
//! cluster.node(0).start_again()?; // has rejoined and is synced
//! cluster.isolate(2)?; // runs, and refuses what it is asked
//! cluster.rejoin(2)?;
//! # Ok(()) }
//! ```
//!
//! # What others lock with
//!
//! [`Redis`] and [`Etcd`] are there for benchmarks. They have no databases: each test starts a server of its own.
//!
//! # TLS
//!
//! With the feature `tls`, `Postgres::builder().tls(Tls::Required)` makes a throwaway certificate authority and
//! accepts encrypted connections only; `Postgres::tls_files` says where the certificates are. MariaDB and MySQL have the
//! same.
//!
//! # Nothing is left behind
//!
//! Every server has a watchdog, a small shell script in a process group of its own, that holds the read end of a pipe
//! whose write end only this process has. When this process ends, be it by a panic, Ctrl-C or `kill -9`, the pipe
//! ends; the watchdog then stops the server and removes its folder. Dropping a server does the same and waits for it.
//!
//! # Adding a server
//!
//! A server is a file of its own (`postgres.rs`, `mariadb.rs`): it finds its binaries with `install`, prepares a
//! `Folder`, describes itself as a `Launch`, and implements [`Server`] by handing out the [`Process`]. Stopping,
//! pausing, the watchdog and the retry on a port that was just taken come with that.

mod access;
mod cache;
mod clock;
mod etcd;
mod folder;
mod galera;
mod install;
mod mariadb;
mod mysql;
mod mysql_program;
mod mysqld;
mod pgbouncer;
mod postgres;
mod postgres_version;
mod process;
mod proxy;
mod python;
mod redis;
mod shared;
#[cfg(feature = "tls")]
mod tls;

pub use access::{Access, Database};
pub use anyhow::Result;
pub use cache::cache;
pub use clock::{ClockStep, ShiftedClock};
pub use etcd::Etcd;
pub use galera::{FailureDetection, Galera, GaleraBuilder, GaleraDatabase, GaleraNode};
pub use install::{
    Binaries, ETCD, GALERA, MARIADB, MARIADB_TOOLS, PGBOUNCER, POSTGRES, REDIS, RSYNC,
};
pub use mariadb::{MariaDb, MariaDbProduct};
pub use mysql::{MySql, MySqlProduct};
pub use mysql_program::MySqlProgram;
pub use mysqld::{Mysqld, MysqldBuilder, Product};
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::{Postgres, PostgresBuilder};
pub use postgres_version::{POSTGRES_VERSIONS, postgres_binaries};
pub use process::{Process, Server};
pub use proxy::{Proxy, Traffic};
pub use python::{PYTHON_REQUIREMENTS, python, python_environment};
pub use redis::{Redis, RedisBuilder, RedisDurability};
#[cfg(feature = "tls")]
pub use tls::{Tls, TlsFiles};
