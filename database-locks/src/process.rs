//! The locks that a process has by default, so that not every function has to be handed them.

use std::sync::OnceLock;

use database_locks_core::{Error, ErrorKind, Locks, Result};

static LOCKS: OnceLock<Locks> = OnceLock::new();

/// Sets the locks of this process, which [`locks`] gives from then on: [`Locks`], or those of
/// [`blocking`](crate::blocking::Locks). Call it once, early in `main`.
///
/// They are never dropped: before the process exits, await [`shutdown`](Locks::shutdown) for
/// releases that are still queued.
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`] if they are set already; the first ones stay.
pub fn init(locks: impl Into<Locks>) -> Result<()> {
    LOCKS.set(locks.into()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOption,
            "the locks of this process are set already: call database_locks::init only once",
        )
    })
}

/// The locks that [`init`] has set for this process.
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`] if none are set.
pub fn locks() -> Result<Locks> {
    LOCKS.get().cloned().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOption,
            "no locks are set: call database_locks::init(locks) first, or give #[locked(with = ...)]",
        )
    })
}
