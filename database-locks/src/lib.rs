//! Distributed locks on the database that you already run.
//!
//! Copies of a service, a cron job or a script run on many machines, and some work must be done by
//! one at a time. This crate gives **leases**: a lock with a time to live on the database's clock,
//! renewed while its holder lives, and lost, with a signal that stops the work, when it cannot be.
//! Each comes with a **fencing token**, a number that grows with every grant.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> database_locks::Result<()> {
//! use std::time::Duration;
//! use database_locks::{Connect, Locks};
//!
//! # let url = "memory:";
//! let locks = Locks::connect(url).await?; // postgres://..., mysql://..., sqlite:PATH
//!
//! let guard = locks.lock("nightly").timeout(Duration::from_secs(5)).acquire().await?;
//! println!("one of us works, under token {}", guard.token());
//! guard.release().await?;
//!
//! // The work is dropped when the lease is lost.
//! let lines = locks.lock("nightly").run(async |lease| count(lease.token().get()).await).await?;
//! # async fn count(_: u64) -> u32 { 7 }
//! # assert_eq!(lines, 7);
//!
//! let readers = locks.rwlock("index").read().acquire().await?; // and .write()
//! let permits = locks.semaphore("api", 10).permits(2).acquire().await?;
//! # drop((readers, permits));
//! locks.shutdown().await;
//! # Ok(()) }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! # Which backend should you use?
//!
//! | feature | URL | for |
//! |---|---|---|
//! | `sqlite` (default) | `sqlite:PATH` | many processes on one host, nothing to run |
//! | `postgres` | `postgres://...` | many hosts with a Postgres at hand |
//! | `mysql` | `mysql://...`, `mariadb://...` | many hosts with a MySQL, a MariaDB or a Galera cluster |
//! | `memory` | `memory:` | unit tests, in one process |
//!
//! The feature `macros` (default) is `#[locked]`, which runs a whole function under a lock, and `metrics` is
//! the observer `Metrics`. Each other feature only adds a backend: none changes how another behaves. [`Locks::new`] takes any
//! [`LockBackend`] of your own.
//!
//! # Without async
//!
//! [`blocking`] has the same requests and guards for plain threads. They need no runtime, and refuse
//! to wait where that would hold up async tasks.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # fn main() -> database_locks::Result<()> {
//! use database_locks::blocking::{Connect, Locks};
//!
//! # let url = "memory:";
//! let locks = Locks::connect(url)?;
//! locks.lock("nightly").run(|lease| println!("under token {}", lease.token()))?;
//! locks.shutdown()?;
//! # Ok(()) }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! # Settings
//!
//! [`Settings::from_env`] reads what whoever runs the process has chosen: the URL, the table, the
//! default TTL and when to renew, a status file, and whether there are locks at all. [`init`] makes
//! locks the ones of the process, and [`locks()`] gives them wherever they are needed.
//!
//! # Operation
//!
//! - **Metrics**: the observer `Metrics` (feature `metrics`) records them by the crate `metrics`.
//! - **Traces**: spans of `tracing` of the level INFO and the target `database_locks`. They cost nothing that can be measured
//!   where nobody subscribes to that level.
//!
//!   | span | from | to | fields |
//!   |---|---|---|---|
//!   | `lock.acquire` | a request | its outcome | `lock`, `backend`, `outcome` (`acquired`, `busy`, `timeout`, `unavailable`, `abandoned` or `error`), `waited` (seconds) |
//!   | `lock.hold` | the grant of a lease | its release or loss | `lock`, `token`, `backend`, `ended` (`released`, or the [`LossReason`] in lower case) |
//!
//!   Both are children of the caller's span. Callbacks of `on_wait` are called in `lock.acquire`; the work under a lock is
//!   not in `lock.hold`, which nobody enters.
//! - **Readiness**: [`Locks::health`] says whether the database has answered, what is held and who waits, without asking.
//! - **Logs**, by `tracing`: one warning when the database does not answer, and one once it has answered everything for 5 s,
//!   however many requests fail; one for each lease that is lost. The failures themselves are at DEBUG.
//! - [`Observer`] hears of everything of which these are made.
//!
//! # What a lease promises, and what it cannot
//!
//! While a [`Guard`] passes [`check`](Guard::check), nobody else was granted the lock, as long as
//! clocks run at nearly the same rate, and are not set forward by more than the [`grace`](LockRequest::grace), on the server
//! or by a failover to one that is ahead. A release [by force](Locks::force_release), or a takeover by the same explicit owner,
//! is heard of by the next renewal: within a third of the TTL, 30 s at most. No lock service can stop a process that was suspended
//! between that check and a write: where that matters, send the [`Token`] along with the write,
//! and let the resource refuse a token lower than one that it has seen.

mod connect;
#[cfg(feature = "macros")]
mod locked;
#[cfg(feature = "metrics")]
mod metrics;
mod process;
mod settings;
mod status;

pub mod blocking;
#[doc = include_str!("../docs/coming-from-django-database-locks.md")]
pub mod coming_from_django_database_locks {}

#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
pub use connect::{Connect, migrate, schema_sql};
pub use database_locks_core::*;
#[cfg(feature = "macros")]
pub use locked::locked;
pub use process::{init, locks};
pub use settings::Settings;
pub use status::StatusFile;

#[cfg(feature = "memory")]
pub use database_locks_memory as memory;
#[cfg(feature = "mysql")]
pub use database_locks_mysql as mysql;
#[cfg(feature = "postgres")]
pub use database_locks_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use database_locks_sqlite as sqlite;
