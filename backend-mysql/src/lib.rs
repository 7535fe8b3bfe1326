//! Leases that hold on MySQL, MariaDB and Galera clusters of either: a
//! [`LockBackend`](database_locks_core::LockBackend) on `mysql_async` and deadpool. MySQL 8.0.1 or
//! MariaDB 10.6, or newer.
//!
//! ```no_run
//! # async fn example() -> database_locks_core::Result<()> {
//! use database_locks_mysql::{MysqlBackend, MysqlConfig};
//!
//! let config = MysqlConfig::from_url("mysql://app@db.internal/app?ssl-mode=verify_identity")?;
//! let backend = MysqlBackend::connect(config).await?;
//! backend.migrate().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Most people never see this crate: they give the URL to `Locks::connect` of `database-locks`.
//!
//! # The URL
//!
//! `mysql://user:password@host:port/database?parameter=value&…`, or `mariadb://`, which means the
//! same. Several hosts, `host1:port1,host2:port2`, are tried in turn, the one that worked last
//! first, until one takes writes. The port is 3306 unless another is given; IPv6 addresses stand in
//! brackets. Special characters are encoded as `%XX`.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `table` | the lock table; shares are in the table with `_share` appended | `database_locks_lock` |
//! | `pool_size` | connections for claims, releases and lists, 1 to 64 | 4 |
//! | `ssl-mode` | `disabled`, `preferred`, `required`, `verify_ca` or `verify_identity`, as of MySQL's own client | `preferred` |
//! | `ssl-ca` | a PEM file of trusted authorities, for `verify_ca` and `verify_identity` | those of the system |
//! | `ssl-cert`, `ssl-key` | PEM files of the client's certificate and key | none |
//! | `socket` | a Unix socket to connect to, instead of a host | none |
//! | `connect_timeout` | seconds for each host, login included | 5 |
//! | `tcp_keepalive` | seconds of silence before keepalives are sent | 15 |
//!
//! `preferred` and `required` protect against listeners only: they take any certificate. Use
//! `verify_identity` across a network. It looks for the host's name among the certificate's
//! alternative names, and not in its common name; the certificates that MySQL makes by itself have
//! none, and pass `verify_ca` only. `localhost` is a host like any other: a socket is used where
//! `socket` names it, and never encrypted.
//!
//! Users log in by `caching_sha2_password`, `mysql_native_password`, `ed25519` or `parsec`. Without
//! TLS, the first of these sends a password encrypted by a key that the server names: only TLS that
//! verifies protects it from a false server.
//!
//! # Connections
//!
//! `pool_size` for claims, releases and lists, and one that only renewals use: 5 by default, however
//! many leases or waiters there are. A connection with a request that nobody waits for any more is
//! closed, not reused. One that the server closed while it was idle is replaced.
//!
//! # Sessions
//!
//! Whatever the server's defaults and its `init_connect` are, each session sets for itself what its
//! statements rely on, and reads it back: `autocommit`, `completion_type`, the time zone and clock,
//! `READ COMMITTED` and `READ WRITE`, a strict `sql_mode` without the modes that change what
//! statements mean, the character set, the timeouts of row locks (1 s), of table locks (5 s) and of
//! statements (none), `sql_select_limit`, `sql_safe_updates` and the like; on a Galera cluster,
//! `wsrep_sync_wait=1` and `wsrep_dirty_reads=OFF`. What cannot be made safe is refused with an
//! error that names the setting: a server that is too old, and `binlog_format=STATEMENT`, with which
//! `READ COMMITTED` cannot write.
//!
//! Poolers that share sessions among clients by statement or transaction undo this, and cannot be
//! used.
//!
//! # Tables and rights
//!
//! A user that only locks needs:
//!
//! ```sql
//! grant select, insert, update, delete on app.database_locks_lock to app;
//! grant select, insert, update, delete on app.database_locks_lock_share to app;
//! ```
//!
//! and `create` to make these tables, or `alter` to adopt one that a Django app has made.
//!
//! # Clusters
//!
//! Name all hosts in the URL. A replica, which has `read_only` on, is passed over, as is a node of a
//! Galera cluster that is not in the primary component or not ready; a connection that is told so
//! later is closed, and the other hosts are tried. If all fail, the error says what each of them
//! said. A refused password or a wrong setting is told at once.

mod backend;
mod config;
mod error;
mod packet;
mod pool;
mod session;
mod sql;
mod state;
mod tls;

pub use backend::MysqlBackend;
pub use config::{MysqlConfig, SslMode};

/// The backend's name in errors and logs.
const NAME: &str = "mysql";

/// The schema as SQL, for people who run their own migrations. Each statement may be repeated.
///
/// It makes the tables. Only [`MysqlBackend::migrate`] can adopt one that a Django app has made.
#[must_use]
pub fn schema_sql(config: &MysqlConfig) -> String {
    sql::Tables::new(config).create().into_iter().map(|statement| statement + ";\n").collect()
}

#[cfg(test)]
mod tests;
