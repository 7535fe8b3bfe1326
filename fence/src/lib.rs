//! What is written under a lease of `database-locks` is committed only while nobody else can have the lock.
//!
//! To check a lease and then to write leaves a gap: the process may be paused in between for longer than the lease lives. A
//! fence closes it, where the work writes to the database that keeps the locks:
//!
//! ```no_run
//! # #[cfg(feature = "tokio-postgres")]
//! # async fn example(guard: database_locks_core::Guard, client: &mut tokio_postgres::Client)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! use database_locks_fence::FenceIn as _;
//!
//! let mut transaction = client.transaction().await?;
//! guard.fence_in(&mut transaction).await?;
//! transaction.execute("update report set day = day + 1", &[]).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```
//!
//! - [`fence_in`](FenceIn::fence_in) fails, with [`ErrorKind::Lost`], for a lease that is dead by the database's clock. Then
//!   drop the transaction, or roll it back.
//! - After it nobody else is granted the lock until the transaction is committed or rolled back, however long that takes,
//!   and even if the lease ends meanwhile. (On Postgres other clients that share the table, such as a Django app, are held back
//!   where they lock the row before they write it, as django-database-locks does.)
//!
//! So the writes of one holder are all in the database, or will never be, when the next one is granted the lock.
//!
//! # Which transactions
//!
//! Those of `tokio-postgres`, `deadpool-postgres`, `sqlx` and `mysql_async`, each with a feature of this crate: see
//! [`Transaction`]. For all other drivers, and other languages, there is
//! [`fence_sql`](database_locks_core::Lease::fence_sql): a text and its parameters. On Postgres that is a function, which may
//! be called by whoever has been given the token: `select database_locks_lock_fence_1('nightly', 1795689941854652)`.
//!
//! For what is no SQL there is [`HighWaterMark`].
//!
//! # How to use it
//!
//! - **Fence first**, before the transaction reads or writes anything: what it reads then is of after the last holder's
//!   commit, and the snapshot that it may have is not too old.
//! - **In the transaction itself, not in a savepoint**, which gives the fence back where it is rolled back.
//! - **In the same database.** A transaction of another one is an error that says so.
//! - **A retryable error** ([`is_retryable`](database_locks_core::Error::is_retryable)) is a deadlock, a lock that was waited
//!   for in vain, or a snapshot that is too old: roll back, and run the whole transaction again.
//! - **Keep it short.** All others wait for its end: those who want the lock, and other holders' new shares of it, such as
//!   another reader's.
//!
//! # What it costs the lease
//!
//! On **Postgres** the lease is renewed while the transaction is open (the fence locks the name's row `for key share`, which
//! renewals pass), and several transactions of its holder, or of several readers, are open at once.
//!
//! On **MySQL, MariaDB, Galera and SQLite** the fence writes: one fenced transaction of a lock is open at a time, and
//! others wait. The lease is not renewed meanwhile, so that a fenced transaction that is open for longer than the TTL
//! costs the lease: its holder is told of the loss, and the transaction may be committed all the same, since nobody is
//! granted the lock before. On SQLite, whose file has one writer at a time, that goes for all locks of the file, and whatever
//! else is asked of them fails once it has waited for the busy timeout.
//!
//! On a **Galera** cluster a transaction is judged when it is committed: of a fenced one at one node and a grant at another
//! only one is. Send nothing with the fence in one packet of several statements: a node may roll the transaction back in the
//! middle of one, without a word, and run the rest outside of any.
//!
//! Locks that are [switched off](database_locks_core::LocksBuilder::disabled) are fenced by nothing, at once.
//!
//! # The drivers
//!
//! deadpool-postgres (feature `deadpool-postgres`):
//!
//! ```no_run
//! # #[cfg(feature = "deadpool-postgres")]
//! # async fn example(guard: database_locks_core::Guard, pool: deadpool_postgres::Pool)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! # use database_locks_fence::FenceIn as _;
//! let mut client = pool.get().await?;
//! let mut transaction = client.transaction().await?;
//! guard.fence_in(&mut transaction).await?;
//! transaction.execute("update report set day = day + 1", &[]).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```
//!
//! sqlx (features `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite`). On SQLite begin with the write lock, so that no other writer
//! can come between:
//!
//! ```no_run
//! # #[cfg(feature = "sqlx-mysql")]
//! # async fn on_a_server(guard: database_locks_core::Guard, pool: sqlx::MySqlPool)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! # use database_locks_fence::FenceIn as _;
//! let mut transaction = pool.begin().await?;
//! guard.fence_in(&mut transaction).await?;
//! sqlx::query("UPDATE report SET day = day + 1").execute(&mut *transaction).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//!
//! # #[cfg(feature = "sqlx-sqlite")]
//! # async fn in_a_file(guard: database_locks_core::Guard, pool: sqlx::SqlitePool)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! # use database_locks_fence::FenceIn as _;
//! let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
//! guard.fence_in(&mut transaction).await?;
//! sqlx::query("UPDATE report SET day = day + 1").execute(&mut *transaction).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```
//!
//! `mysql_async` (feature `mysql_async`):
//!
//! ```no_run
//! # #[cfg(feature = "mysql_async")]
//! # async fn example(guard: database_locks_core::Guard, pool: mysql_async::Pool)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! # use database_locks_fence::FenceIn as _;
//! use mysql_async::prelude::Queryable as _;
//!
//! let mut transaction = pool.start_transaction(mysql_async::TxOpts::default()).await?;
//! guard.fence_in(&mut transaction).await?;
//! transaction.query_drop("UPDATE report SET day = day + 1").await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```
//!
//! Any other:
//!
//! ```
//! # fn example(guard: database_locks_core::Guard) -> database_locks_core::Result<()> {
//! // `None`: locks are switched off, and there is nothing to run.
//! if let Some(fence) = guard.fence_sql()? {
//!     println!("execute {:?} with {:?}", fence.sql(), fence.params());
//!     // Roll back unless it returns (on Postgres) or changes (elsewhere) exactly one row.
//! }
//! # Ok(()) }
//! ```

#[cfg_attr(
    not(any(
        feature = "mysql_async",
        feature = "sqlx-mysql",
        feature = "sqlx-postgres",
        feature = "sqlx-sqlite",
        feature = "tokio-postgres"
    )),
    allow(dead_code, reason = "no driver, no failure")
)]
mod error;
mod high_water_mark;
mod transaction;

use database_locks_core::{ErrorKind, Guard, Lease, Result};

pub use high_water_mark::HighWaterMark;
pub use transaction::Transaction;

/// Fences a transaction: for [`Lease`] and [`Guard`].
pub trait FenceIn: sealed::Sealed {
    /// Lets `transaction` be committed only if the lease is alive now, and lets nobody else be granted the lock before the
    /// transaction has ended. See the [crate].
    ///
    /// Whatever the error, roll back: the transaction is not fenced.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves the transaction fenced or not. Roll it back.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] for a lease that has ended, by what its holder knows (without asking the database) or by the
    /// database's clock; [`ErrorKind::InvalidOption`] for a transaction of another database, of another kind of database, or
    /// that may not write; [`ErrorKind::Unsupported`] for leases that are in no database with transactions, such as those in
    /// memory; [`ErrorKind::NotMigrated`] where the function of Postgres, or a table, is not there;
    /// [`ErrorKind::Unavailable`] for what the same transaction may not meet the next time; [`ErrorKind::Permission`] for a
    /// user who may not lock the row.
    fn fence_in<T: Transaction>(
        &self,
        transaction: &mut T,
    ) -> impl Future<Output = Result<()>> + Send;
}

impl FenceIn for Lease {
    async fn fence_in<T: Transaction>(&self, transaction: &mut T) -> Result<()> {
        let fenced = fence(self, transaction).await;
        fenced.map_err(|error| error.with_lock(self.name()).with_operation("fence"))
    }
}

impl FenceIn for Guard {
    async fn fence_in<T: Transaction>(&self, transaction: &mut T) -> Result<()> {
        self.lease().fence_in(transaction).await
    }
}

async fn fence<T: Transaction>(lease: &Lease, transaction: &mut T) -> Result<()> {
    let Some(fence) = lease.fence_sql()? else { return Ok(()) };
    if fence.dialect() != T::DIALECT {
        return Err(error::of_another_kind(fence.dialect(), T::DIALECT));
    }
    let answer = match transaction.execute(fence.statement()).await {
        Ok(1) => return Ok(()),
        Ok(_) => match fence.lookup() {
            Some(lookup) if !transaction.finds(lookup).await? => error::elsewhere(),
            _ => error::lost(),
        },
        Err(error) => error,
    };
    match answer.kind() {
        // A name may have been forgotten, once its lease had ended.
        ErrorKind::InvalidOption => lease.check().and(Err(answer)),
        _ => Err(answer),
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Lease {}
    impl Sealed for super::Guard {}
}
