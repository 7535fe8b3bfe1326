//! The SQLite backend of [database-locks](https://docs.rs/database-locks): leases in one file, for
//! all processes of one host.
//!
//! ```no_run
//! # async fn example() -> Result<(), database_locks_core::Error> {
//! use database_locks_sqlite::{SqliteBackend, SqliteConfig};
//!
//! let config = SqliteConfig::from_url("sqlite:/var/lib/app/locks.db")?;
//! let backend = SqliteBackend::connect(config).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it needs
//!
//! - **A local disk.** The write-ahead log keeps its index in shared memory, which does not hold
//!   over a network. File systems that are known to be shared are refused
//!   ([`ErrorKind::Unsupported`](database_locks_core::ErrorKind::Unsupported)).
//! - **A folder that it may write to.** SQLite keeps a `-wal` and a `-shm` file beside the
//!   database. Containers must mount the folder, not the file.
//! - **One kernel.** Processes must read the same boot clock and the same boot id. Containers of
//!   one host do, except in a time namespace of their own, and where the container manager makes
//!   up a boot id (LXC, systemd-nspawn): such containers must not share a file.
//! - **Linux, macOS or FreeBSD.** Elsewhere processes have no clock in common that runs through
//!   suspend, or no boot id.
//!
//! # How it keeps the contract
//!
//! A decision takes the write lock of the file (`BEGIN IMMEDIATE`), then reads the clock, loads
//! the state of the names, asks [`Ledger`](database_locks_core::ledger::Ledger), and stores what
//! changed. A claim is first looked at by a plain read, so that waiters who poll write nothing and
//! do not queue for the write lock.
//!
//! Leases live by the host's boot clock, and each name says of which boot its times are. A stepped
//! wall clock therefore changes nothing, and a reboot, which no holder survives, frees everything.
//! So does it free what was [kept](database_locks_core::How::Keep). Tokens grow by the wall clock, never fall if it
//! does, and outlast a reboot.
//!
//! A lease that a power failure loses has lost its holder too, so that what is written need not be synced to the disk at
//! once. But a token that was lost could be granted again. So tokens are reserved a minute ahead: the grant that needs more
//! is synced (`synchronous = FULL`), and those of the next boot begin above the reserve. (A volume that is lost and comes
//! back without a reboot may have lost leases whose holders live: keep the file on a disk of the host.)
//!
//! There is no hint on a release: waiters poll.
//!
//! # Who holds what
//!
//! `dblock list` tells. SQL cannot tell which leases have expired, since the boot clock is none of SQLite's; what was granted, not
//! released, and of which boot it is:
//!
//! ```sql
//! select cast(l.name as text), l.owner, l.weight, l.capacity, hex(n.boot)
//!   from database_locks_lock_lease l join database_locks_lock n on n.name = l.name
//!   where l.released_at is null;
//! ```

mod backend;
mod config;
mod error;
mod host;
mod sql;
#[cfg(test)]
mod tests;

pub use backend::SqliteBackend;
pub use config::SqliteConfig;

/// The statements that create the tables, for people who want to see them.
/// [`SqliteBackend::connect`] runs them.
#[must_use]
pub fn schema_sql(config: &SqliteConfig) -> String {
    sql::Sql::new(config.table()).schema()
}
