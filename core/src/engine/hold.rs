//! A share in a live lease: when the last one goes, the lease is released.

use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot};

use crate::error::Result;
use crate::identity::Attempt;
use crate::lease::Lease;

/// Keeps a lease. Clones share it, as guards of one explicit owner do.
#[derive(Debug, Clone)]
pub(crate) struct Hold(Arc<Last>);

#[derive(Debug)]
struct Last {
    lease: Lease,
    releases: mpsc::UnboundedSender<Ended>,
}

/// The last share in a lease is gone.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) attempt: Attempt,
    /// Who waits for the release.
    pub(crate) reply: Option<oneshot::Sender<Result<()>>>,
}

impl Hold {
    pub(crate) fn new(lease: Lease, releases: mpsc::UnboundedSender<Ended>) -> Self {
        Self(Arc::new(Last { lease, releases }))
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// Gives up this share. If it was the last, the answer comes once the lease is released.
    pub(crate) fn release(self) -> Option<oneshot::Receiver<Result<()>>> {
        let last = Arc::into_inner(self.0)?;
        let (reply, released) = oneshot::channel();
        let attempt = last.lease.id().attempt;
        let _ = last.releases.send(Ended { attempt, reply: Some(reply) });
        Some(released)
    }

    pub(crate) fn downgrade(&self) -> WeakHold {
        WeakHold(Arc::downgrade(&self.0))
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        // After an explicit release this is the second word on the lease, which the engine, having
        // forgotten it, ignores.
        let _ = self.releases.send(Ended { attempt: self.lease.id().attempt, reply: None });
    }
}

/// Finds a lease that somebody holds.
#[derive(Debug)]
pub(crate) struct WeakHold(Weak<Last>);

impl WeakHold {
    pub(crate) fn upgrade(&self) -> Option<Hold> {
        self.0.upgrade().map(Hold)
    }
}
