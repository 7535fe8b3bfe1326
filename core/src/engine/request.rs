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
use crate::status::Mark;

/// Tells requests of one engine apart. Stays the same when a request begins a new attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// How a caller is told. As long as this lives, somebody waits.
#[derive(Debug)]
pub(crate) struct Reply {
    caller: oneshot::Sender<Result<Option<Hold>>>,
    waiting: Mark,
}

impl Reply {
    pub(crate) fn new(caller: oneshot::Sender<Result<Option<Hold>>>, waiting: Mark) -> Self {
        Self { caller, waiting }
    }

    /// Tells the caller: a lease, or none because the lock was busy. If they have gone, the lease is
    /// released.
    pub(crate) fn send(self, answer: Result<Option<Hold>>) {
        let Self { caller, waiting } = self;
        if let Ok(Some(hold)) = &answer
            && !caller.is_closed()
        {
            hold.lease().count_as(waiting.held());
        }
        // Before the caller hears, so that what they see then is up to date.
        drop(waiting);
        let _ = caller.send(answer);
    }
}

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
        reply.send(Ok(Some(hold)));
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.id).field("claim", &self.claim).finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::clock::Clock;
    use crate::identity::{Attempt, LeaseId, Token};
    use crate::lease::Lease;
    use crate::lease::state::Event;
    use crate::loss::LossReason;
    use crate::name::LockName;
    use crate::owner::Owner;
    use crate::share::Share;
    use crate::status::Status;

    fn hold() -> Hold {
        let id = LeaseId {
            name: LockName::new("x").unwrap(),
            attempt: Attempt::new(),
            token: Token::new(1),
            owner: Owner::of_this_process(),
            share: Share::ALL,
        };
        let lease = Lease::granted(id, Terms::switched_off(), Clock::Boot, Duration::ZERO);
        Hold::new(lease, mpsc::unbounded_channel().0)
    }

    #[test]
    fn a_lease_counts_from_its_caller_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let status = Status::open(Some(folder.path().join("status"))).unwrap();

        let (caller, answer) = oneshot::channel();
        let reply = Reply::new(caller, status.waiting());
        assert_eq!(status.digit(), "1");
        let hold = hold();
        reply.send(Ok(Some(hold.clone())));
        assert_eq!(status.digit(), "2");
        let (other, other_answer) = oneshot::channel();
        Reply::new(other, status.waiting()).send(Ok(Some(hold.clone())));
        hold.lease().apply(Event::Gone(LossReason::Shutdown));
        assert_eq!(status.digit(), "0", "counted once, though joined");
        drop((answer, other_answer));

        let (caller, answer) = oneshot::channel();
        Reply::new(caller, status.waiting()).send(Ok(Some(hold)));
        assert_eq!(status.digit(), "0", "it was over before it was handed out");
        drop(answer);
    }

    #[test]
    fn a_caller_that_has_gone_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let status = Status::open(Some(folder.path().join("status"))).unwrap();
        let (caller, answer) = oneshot::channel();
        let reply = Reply::new(caller, status.waiting());
        drop(answer);
        let hold = hold();
        let lease = hold.lease().clone();
        reply.send(Ok(Some(hold)));
        assert_eq!(status.digit(), "0");
        lease.check().expect("its release is left to the engine");
    }
}
