//! Who hears what becomes of requests and leases.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::Busy;
use crate::error::{Error, ErrorKind};
use crate::health::Vitals;
use crate::words::identity::LeaseId;
use crate::words::loss::LossReason;
use crate::words::name::LockName;

/// Hears what becomes of the requests and leases of a [`Locks`](crate::Locks): see
/// [`LocksBuilder::observer`](crate::LocksBuilder::observer).
#[async_trait]
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    ///
    /// Called on the engine's thread, and on those of callers and holders, before these hear of it themselves. It must not
    /// block. A panic in it is dropped.
    fn on(&self, event: Event<'_>);

    /// Everything has ended that this observer was told of, or connecting has failed: completes once it has dealt with what it
    /// was told. [`Locks::shutdown`](crate::Locks::shutdown) waits for it.
    async fn flush(&self) {}
}

/// What an [`Observer`] is told.
///
/// [`Started`](Self::Started) comes first, and after [`Stopped`](Self::Stopped) only waits end. Each [`Waiting`](Self::Waiting) is followed by one [`Granted`](Self::Granted) or [`NotGranted`](Self::NotGranted), and
/// each `Granted` of a lease that was not joined by one [`Lost`](Self::Lost) or [`Released`](Self::Released).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'e> {
    /// The locks are there: nothing was asked before.
    Started {
        /// What the backend calls itself, such as `postgres`.
        backend: &'static str,
    },
    /// Somebody asks for a lock.
    Waiting {
        /// The lock.
        lock: &'e LockName,
    },
    /// The database says that the lock is busy.
    Busy {
        /// The lock.
        lock: &'e LockName,
        /// Who holds it.
        busy: &'e Busy,
    },
    /// Somebody has the lock.
    Granted {
        /// The lease.
        lease: &'e LeaseId,
        /// How long after they asked.
        after: Duration,
        /// Whether others of their owner have had the lease already.
        joined: bool,
    },
    /// Somebody goes without the lock.
    NotGranted {
        /// The lock.
        lock: &'e LockName,
        /// How long after they asked.
        after: Duration,
        /// Why.
        why: NotGranted<'e>,
    },
    /// The server has extended a lease.
    Renewed {
        /// The lease.
        lease: &'e LeaseId,
    },
    /// A renewal had no answer, or was not decided. It is tried again.
    RenewalFailed {
        /// The lease.
        lease: &'e LeaseId,
    },
    /// A lease was lost.
    Lost {
        /// The lease.
        lease: &'e LeaseId,
        /// Why.
        reason: LossReason,
        /// How long after its first holder was given it.
        after: Duration,
    },
    /// The last holder of a lease gives it back.
    Released {
        /// The lease.
        lease: &'e LeaseId,
        /// How long after its first holder was given it.
        after: Duration,
    },
    /// The database does not answer, or answers with errors that pass.
    Away {
        /// What a request failed with.
        error: &'e Error,
    },
    /// The database answers again.
    Back,
    /// The locks have ended, by a shutdown or with their last user, and all their leases with them. If the database was away
    /// nobody asks any more whether it is back.
    Stopped,
}

/// Why somebody goes without a lock.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum NotGranted<'e> {
    /// Others hold it, and the request asks once.
    Busy,
    /// Whoever asked has gone.
    Abandoned,
    /// It timed out, or failed.
    Failed(&'e Error),
}

impl NotGranted<'_> {
    /// In one word, for labels and fields: `busy`, `abandoned`, `timeout`, `unavailable`, or `error` for all else.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Abandoned => "abandoned",
            Self::Failed(error) => match error.kind() {
                ErrorKind::Timeout => "timeout",
                ErrorKind::Unavailable => "unavailable",
                _ => "error",
            },
        }
    }
}

/// All observers of a [`Locks`](crate::Locks), and what is known of its health whoever observes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    observers: Vec<Arc<dyn Observer>>,
    vitals: Vitals,
}

impl Observers {
    pub(crate) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self(Arc::new(Inner { observers, vitals: Vitals::default() }))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.observers.is_empty()
    }

    pub(crate) fn vitals(&self) -> &Vitals {
        &self.0.vitals
    }

    pub(crate) fn tell(&self, event: Event<'_>) {
        for observer in &self.0.observers {
            // What is the user's must not end the engine.
            let _ = catch_unwind(AssertUnwindSafe(|| observer.on(event)));
        }
    }

    pub(crate) async fn flush(&self) {
        for observer in &self.0.observers {
            observer.flush().await;
        }
    }
}
