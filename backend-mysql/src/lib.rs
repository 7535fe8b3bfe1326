//! Leases that hold on MySQL, MariaDB and Galera clusters of either: a
//! [`LockBackend`](database_locks_core::LockBackend) on `mysql_async` and deadpool. MySQL 8.0 or
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
//! same. Several hosts, `host1:port1,host2:port2`, are tried in turn until one takes writes: first
//! the one that worked last, and last the one that broke a connection or did not answer. The port is
//! 3306 unless another is given; IPv6 addresses stand in brackets. Special characters are encoded as
//! `%XX`, also those of the password: `@` as `%40`, `/` as `%2F`.
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
//! `verify_ca` leans on how the driver tells a wrong name from a bad chain: it sends `NotValidForName` in place of the host's name,
//! also to whoever routes by that (SNI), so that such servers need `verify_identity`. Unless the application has chosen a
//! cryptography of rustls for its process, the first connection with TLS chooses `ring`: one that chooses another calls
//! `install_default` before it connects.
//!
//! A password that changes, such as a token of a cloud, comes from
//! [`password_from`](MysqlConfig::password_from); what else the driver knows is set by
//! [`driver_options`](MysqlConfig::driver_options).
//!
//! Users log in by `caching_sha2_password`, `mysql_native_password`, `ed25519` or `parsec`. Without
//! TLS, the first of these sends a password encrypted by a key that the server names: only TLS that
//! verifies protects it from a false server.
//!
//! # Connections
//!
//! `pool_size` for claims, releases and lists, and one that only renewals use: 5 in all by default,
//! however many leases or waiters there are. The shared ones are closed once they have been idle for a minute, but for
//! one, while anything is asked for or renewed. A connection with a request that nobody waits for any
//! more is closed, not reused; so are then, if the host had at least a second to answer, the other
//! connections to it, when they are next needed. One that the server closed while it was idle is replaced.
//!
//! # Sessions
//!
//! Whatever the server's defaults and its `init_connect` are, each session sets for itself what its
//! statements rely on, and reads it back: `autocommit`, `completion_type`, the time zone and clock,
//! `READ COMMITTED` and `READ WRITE`, a strict `sql_mode` without the modes that change what
//! statements mean, the character set, the timeouts of row locks (1 s), of table locks (2 s) and of
//! statements (10 s), `sql_select_limit`, `sql_safe_updates` and the like; on a Galera cluster,
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
//! and `create` to make these tables, or `alter` to adopt one that a Django app has made: besides
//! our columns, `name` gets a collation that compares bytes (`utf8mb4_0900_bin`, on MariaDB
//! `utf8mb4_nopad_bin`), `locked_by` all of UTF-8, and `expires_at` its fractions, where they lack
//! them. The app goes on using the table, and both exclude each other.
//!
//! # Who holds what
//!
//! `dblock list` tells, and so does SQL. Leases of whole locks, those of a Django app included, and then shares:
//!
//! ```sql
//! select convert(name using utf8mb4), convert(locked_by using utf8mb4),
//!        timestampdiff(second, utc_timestamp(), expires_at) as remaining
//!   from app.database_locks_lock
//!   where expires_at > utc_timestamp(6) and (attempt is not null or not expires_at <=> lease_expires_at);
//! select convert(s.name using utf8mb4), convert(s.locked_by using utf8mb4), s.weight, s.capacity,
//!        timestampdiff(second, utc_timestamp(), s.expires_at) as remaining
//!   from app.database_locks_lock_share s join app.database_locks_lock l on l.name = s.name
//!   where s.expires_at > utc_timestamp(6) and l.expires_at > utc_timestamp(6)
//!     and l.attempt is null and l.expires_at = l.lease_expires_at;
//! ```
//!
//! Names and owners are bytes, which clients show in hexadecimal digits unless they are converted. `locked_by` stays after a
//! release, and is `(shared)` where shares are or were held: only `expires_at` says whether the lock is held.
//!
//! # What is written when
//!
//! - All of a lock that is free, or is given back to the claim, is granted by one prepared statement, if its row is there, and
//!   released by one. These wait for a row that somebody has locked, for a second at most, and are left alone for
//!   ten once one of them has waited in vain; other verbs skip such rows.
//! - Leases of whole locks are renewed by one packet, however many they are, that locks their rows and writes those that it
//!   has got. Many are granted and released so too, unless few of those that were asked for last were free.
//! - What else is decided takes a plain read and then, if there is anything to write, one
//!   packet that writes each name whose row is still as it was read. A whole batch shares both. On
//!   Galera the commit of such a packet is a round trip of its own, sent once the node is seen not
//!   to have rolled it back.
//! - A busy claim writes nothing. A waiter's mark is one update, when half of the last mark is over.
//! - Rows stay until [`clean_up`](database_locks_core::LockBackend::clean_up). It reads the whole table, at most once for 1,000 names
//!   that it forgets: an index on `touched_at` or `expires_at` would be written to by each renewal. A name that many
//!   hold shares of is read with all of its shares.
//! - A grant is as durable as the server makes a commit: with
//!   `innodb_flush_log_at_trx_commit` other than 1 a crash of the machine may forget the last ones.
//!
//! There is nothing to listen to: waiters poll, all those of a process in one query, quick at first
//! and the longer they have waited the less often, up to every quarter of a second.
//!
//! # Clusters
//!
//! Name all hosts in the URL. A replica, which has `read_only` on, is passed over, as is a node of
//! a Galera cluster that is not in the primary component or not ready; a connection that is told so
//! later is closed, as are the others to that host, and the other hosts are tried first from then
//! on, as after a request or a login that a host did not answer in time. If all fail, the error
//! says what each of them said. What all of them refuse, such as a password, is told as such.
//!
//! **Galera**, tested as MariaDB's and not as Percona's: clients may use different nodes. A grant is
//! a write to the name's row, and of two that nodes make at once one fails certification and is decided
//! again. Reads wait for what other nodes have committed (`wsrep_sync_wait`), so that no stale one
//! decides. Two things have to be chosen:
//!
//! - *A TTL of 30 s or more.* A node that dies without a word is suspected for
//!   `evs.suspect_timeout` (5 s) and given up after `evs.inactive_timeout` (15 s) at the latest; until
//!   then no node can commit. A renewal is first tried after a third of the TTL, and needs up to
//!   5 s for a request that hangs and 5 s for a host that does not answer before it is with the next
//!   one: with 30 s there are 20 s left for all of it. A lease with a shorter TTL may be lost in such
//!   a moment; it is never held twice. Where the node that a process talked to was stopped, with
//!   Galera's defaults, nobody could commit for 5.3 to 6.4 s; leases of 5 s were lost, those of 10,
//!   15 and 30 s were renewed in time, with 1, 4 and 13 s left.
//! - *A grace of at least what the nodes' clocks differ*, since each node judges expiry by its own.
//!
//! Without a quorum every request fails as retryable, and goes on when the nodes see each other
//! again. A failover to an asynchronous replica can lose the last grants, as it loses all other
//! commits. Group replication with several primaries is not tested.

mod backend;
mod config;
mod error;
mod lists;
mod literal;
mod packet;
mod pool;
mod schema;
mod session;
mod sql;
mod state;
mod tls;

pub use backend::MysqlBackend;
pub use config::{MysqlConfig, SslMode};
pub use mysql_async;

/// The backend's name in errors and logs.
const NAME: &str = "mysql";

/// Makes the tables, or mends them: as [`MysqlBackend::migrate`], but also where
/// [`MysqlBackend::connect`] refuses the tables that are there.
///
/// # Errors
///
/// As of [`MysqlBackend::migrate`].
pub async fn migrate(config: MysqlConfig) -> database_locks_core::Result<()> {
    MysqlBackend::new(config)?.migrate().await
}

/// The schema as SQL, for people who run their own migrations. Each statement may be repeated.
///
/// It makes the tables. Only [`MysqlBackend::migrate`] can adopt one that a Django app has made.
#[must_use]
pub fn schema_sql(config: &MysqlConfig) -> String {
    schema::create(config).into_iter().map(|statement| statement + ";\n").collect()
}

#[cfg(test)]
mod tests;
