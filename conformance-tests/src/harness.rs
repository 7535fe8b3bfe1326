//! What the suite asks of whoever brings a backend: a store, a client, and as many faculties as
//! there are.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use database_locks_core::async_trait;
use database_locks_core::{LeaseId, LockBackend, LockName};

/// A store of a case's own, and what the case can do to it.
///
/// [`fresh`](Self::fresh) and [`client`](Self::client) are required and serve most cases. Every
/// other method is a *faculty*: its default lets the cases that need it be skipped, each with a
/// line that says so. Override what your store can do; the documentation of each method names the
/// cases that it enables.
///
/// Time passes by itself in the store, at the pace of the machine's clock:
/// [`pass`](Self::pass) may only make it pass faster.
///
/// # Errors
///
/// Every method answers with [`Stop::Failed`] when something is wrong with the store; any error
/// type turns into that by `?`. A server that is not there is a failure that says how to get it,
/// not a reason to skip.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Makes a store for one case: tables of its own, created and empty.
    ///
    /// Cases run at once on several threads, so that nothing which a case does to its store
    /// (connections cut, idle names forgotten) may reach the store of another.
    async fn fresh() -> Outcome<Self>
    where
        Self: Sized;

    /// Opens a client of this store: one that shares no connection, no cache and no memory with
    /// any other, as if it were in a process of its own. Cases open up to ten at once.
    async fn client(&self) -> Outcome<Client>;

    /// Clears away what the case leaves behind, after it has ended, also when it has failed.
    async fn close(&self) {}

    /// Lets this much time pass on the store's clock. The default sleeps. A store whose clock can
    /// be stepped does so here, which makes the suite quick.
    async fn pass(&self, time: Duration) -> Outcome {
        tokio::time::sleep(time).await;
        Ok(())
    }

    /// Locks and changes nothing but the row of this name in a transaction of somebody else's,
    /// and leaves it open. Cases ask for names that were claimed before.
    ///
    /// Leave it out where a transaction locks more than rows.
    ///
    /// Enables `exclusive::try_never_waits_behind_a_row_lock`,
    /// `exclusive::row_lock_stalls_no_other_name_of_a_batch`,
    /// `time::row_locked_past_the_ttl_then_rolled_back` and
    /// `time::row_locked_past_the_ttl_then_committed`.
    async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
        let _ = name;
        Err(Stop::lacks("lock_row"))
    }

    /// Locks the row of this share, and not that of its name, in a transaction of somebody else's, and leaves
    /// it open. A store that keeps a name in one row has none.
    ///
    /// Enables `shared_and_permits::locked_row_of_a_share_stalls_no_other_name`.
    async fn lock_share(&self, lease: &LeaseId) -> Outcome<Box<dyn RowLock>> {
        let _ = lease;
        Err(Stop::lacks("lock_share"))
    }

    /// Deletes all rows of this name, behind the back of every client.
    ///
    /// Enables `lease::holder_learns_that_its_row_was_deleted` and
    /// `loss::deleted_row_raises_the_signal`.
    async fn delete_row(&self, name: &LockName) -> Outcome {
        let _ = name;
        Err(Stop::lacks("delete_row"))
    }

    /// Opens a client as [`client`](Self::client) does, with one thing about it that is unusual.
    /// Answer [`Stop::lacks`]`("client_with")` to those that the store does not know.
    ///
    /// Enables the cases named at [`ClientOption`].
    async fn client_with(&self, option: &ClientOption) -> Outcome<Client> {
        let _ = option;
        Err(Stop::lacks("client_with"))
    }

    /// Cuts the connections of all clients of this store, on the server's side.
    ///
    /// Enables `connections::killed_connection_is_replaced` and `connections::hints_end_with_their_connection`.
    async fn break_connections(&self) -> Outcome {
        Err(Stop::lacks("break_connections"))
    }

    /// Counts the connections that clients of this store have open, as the server sees them.
    ///
    /// Enables `connections::hundred_cycles_leak_no_connection`.
    async fn connection_count(&self) -> Outcome<usize> {
        Err(Stop::lacks("connection_count"))
    }

    /// Reads the settings that somebody else finds on a connection that a client has used and
    /// given back: to the pool that they share, or to a pooler between them and the server.
    ///
    /// Enables `connections::session_settings_do_not_leak_to_the_next_user`.
    async fn session_settings(&self) -> Outcome<BTreeMap<String, String>> {
        Err(Stop::lacks("session_settings"))
    }

    /// Makes another store of this kind, under the given names, whose tables do not exist yet. Its
    /// [`migrate`](Self::migrate) creates them. The default stores of two cases never meet, but
    /// one with [`TableNames::Custom`] lies beside this one, in the same database.
    ///
    /// Enables `store::migrate_is_idempotent`, `store::ten_clients_migrate_at_once`,
    /// `store::custom_table_and_schema_work` and
    /// `store::missing_table_is_not_migrated_and_works_once_created`.
    async fn without_tables(&self, names: TableNames) -> Outcome<Arc<dyn Harness>> {
        let _ = names;
        Err(Stop::lacks("without_tables"))
    }

    /// Creates this store's tables, by a client of its own, in the way that users are told to.
    ///
    /// Asked for wherever [`without_tables`](Self::without_tables) is.
    async fn migrate(&self) -> Outcome {
        Err(Stop::lacks("migrate"))
    }

    /// Makes another store of this kind on a server that nobody else uses, so that it can be
    /// [restarted](Self::restart).
    ///
    /// Enables `fencing::tokens_grow_over_a_restart`,
    /// `connections::leases_survive_a_server_restart`,
    /// `connections::grants_survive_a_crash_of_the_server`,
    /// `connections::renewals_survive_a_crash_of_the_server` and
    /// `connections::shares_survive_a_crash_of_the_server`.
    async fn restartable(&self) -> Outcome<Arc<dyn Harness>> {
        Err(Stop::lacks("restartable"))
    }

    /// Ends this store's server in this way and starts it again, which ends every connection.
    ///
    /// Asked for wherever [`restartable`](Self::restartable) is.
    async fn restart(&self, end: ServerEnd) -> Outcome {
        let _ = end;
        Err(Stop::lacks("restart"))
    }

    /// Makes another store of this kind that nobody else uses, whose clock can be
    /// [set](Self::step_clock).
    ///
    /// Enables `time::clock_set_back_raises_no_lease_whose_place_was_given_away` and
    /// `time::clock_set_forward_ends_leases_and_tokens_go_on_growing`.
    async fn steppable(&self) -> Outcome<Arc<dyn Harness>> {
        Err(Stop::lacks("steppable"))
    }

    /// Sets this store's clock, the one by which leases live and die.
    ///
    /// Asked for wherever [`steppable`](Self::steppable) is.
    async fn step_clock(&self, step: ClockStep) -> Outcome {
        let _ = step;
        Err(Stop::lacks("step_clock"))
    }

    /// Says where this store is, for [`client_at`](Self::client_at) in other processes of this host. Of use in tests
    /// that [`suite!`](crate::suite!) has written, which start themselves again for that.
    ///
    /// Lets `stress::clients_that_overhold_and_repeat_never_overlap` run in several processes, and enables
    /// `time::clients_whose_clocks_are_off_agree` where there is [`shift_clock`](Self::shift_clock) too.
    async fn address(&self) -> Outcome<String> {
        Err(Stop::lacks("address"))
    }

    /// Opens a client, as [`client`](Self::client) does, of a store that another process has made.
    ///
    /// Asked for wherever [`address`](Self::address) is.
    async fn client_at(address: &str) -> Outcome<Client>
    where
        Self: Sized,
    {
        let _ = address;
        Err(Stop::lacks("client_at"))
    }

    /// Gives a program that will be started a wall clock that is off by this, for as long as the answer is kept: for
    /// example by a library such as `libfaketime`.
    ///
    /// Enables `time::clients_whose_clocks_are_off_agree`.
    async fn shift_clock(&self, program: &mut Command, by: ClockStep) -> Outcome<ShiftedBy> {
        let _ = (program, by);
        Err(Stop::lacks("shift_clock"))
    }
}

/// How a clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockStep {
    /// It is later at once.
    Forward(Duration),
    /// It is earlier at once.
    Back(Duration),
}

/// What makes a clock be off, for as long as it is kept.
pub type ShiftedBy = Box<dyn Any + Send + Sync>;

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerEnd {
    /// It is told to stop.
    Orderly,
    /// It is killed, and writes nothing more.
    Crash,
}

/// A client of a store.
pub type Client = Arc<dyn LockBackend>;

/// A transaction of somebody else's that has locked and changed a row.
#[async_trait]
pub trait RowLock: Send {
    /// Undoes the change and lets go of the row.
    async fn roll_back(self: Box<Self>) -> Outcome;

    /// Commits the change, one that alters nothing of what the row says about leases, and lets go
    /// of the row.
    async fn commit(self: Box<Self>) -> Outcome;
}

/// What is unusual about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientOption {
    /// Its user's, role's or server's default isolation level is this one.
    ///
    /// Enables `store::default_isolation_read_committed_changes_nothing`,
    /// `store::default_isolation_repeatable_read_changes_nothing` and
    /// `store::default_isolation_serializable_changes_nothing`.
    Isolation(Isolation),
    /// The server's default is that nothing is committed unless a client says so.
    ///
    /// Enables `store::autocommit_off_by_default_changes_nothing`.
    AutocommitOff,
    /// Its sessions start in this time zone: an IANA name such as `Asia/Kathmandu`, or a POSIX
    /// rule such as `AAA0BBB,J70/2,J300/3`.
    ///
    /// Enables `time::session_time_zone_changes_nothing` and
    /// `time::daylight_saving_changes_nothing`.
    TimeZone(String),
    /// It has one connection for everything that can share one.
    ///
    /// Enables `connections::sixty_four_waiters_share_a_pool_of_one`.
    PoolOfOne,
}

/// An isolation level of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// `READ COMMITTED`.
    ReadCommitted,
    /// `REPEATABLE READ`.
    RepeatableRead,
    /// `SERIALIZABLE`.
    Serializable,
}

impl fmt::Display for Isolation {
    /// The level as SQL spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        })
    }
}

/// How a store's tables are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableNames {
    /// As they are when nobody says anything.
    Default,
    /// As a user chose: a table, and a schema where the database has them, that must be quoted to
    /// be right, such as one with capital letters or one called `order`.
    Custom,
}

/// What a harness, or a case, answers.
pub type Outcome<T = ()> = Result<T, Stop>;

/// Why a case went no further.
#[derive(Debug)]
pub enum Stop {
    /// It does not apply; the text says why.
    Skipped(String),
    /// Something went wrong. Cases panic where a backend breaks its contract, and fail in this
    /// way where a call that should have worked did not.
    Failed(Box<dyn Error + Send + Sync>),
}

impl Stop {
    /// The case does not apply, because the harness has no such faculty.
    #[must_use]
    pub fn lacks(faculty: &str) -> Self {
        Self::Skipped(format!("the harness does not offer `{faculty}`"))
    }

    /// Something went wrong, in words.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into().into())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}
