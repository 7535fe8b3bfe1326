//! Somebody wants a lock, and how they are told.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::backend::{Busy, Claim};
use crate::engine::hold::Hold;
use crate::engine::pace::Retry;
use crate::error::Result;
use crate::lease::OnLost;
use crate::lease::state::Terms;

/// Tells requests of one engine apart. Stays the same when a request begins a new attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// What a caller is told: a lease, or none because the lock was busy.
pub(crate) type Reply = oneshot::Sender<Result<Option<Hold>>>;

/// What is called when a waiter is told that its lock is busy.
pub(crate) type OnWait = Box<dyn FnMut(&Busy) + Send>;

/// Somebody wants a lock.
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) claim: Claim,
    pub(crate) terms: Terms,
    pub(crate) retry: Retry,
    /// For how long the caller waits.
    pub(crate) timeout: Option<Duration>,
    pub(crate) on_wait: Option<OnWait>,
    pub(crate) on_lost: Option<OnLost>,
    /// `None` once the caller has gone or been told, while the outcome still has to be settled.
    pub(crate) reply: Option<Reply>,
}

impl Request {
    /// Gives the lease to whoever asked for it. If they have gone, it is released.
    pub(crate) fn fulfil(self, hold: Hold) {
        let Some(reply) = self.reply else { return };
        if let Some(on_lost) = self.on_lost {
            hold.lease().on_lost(on_lost);
        }
        let _ = reply.send(Ok(Some(hold)));
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.id).field("claim", &self.claim).finish()
    }
}
