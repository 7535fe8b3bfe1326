//! What a guard keeps of a live lease: when the last hold of it goes, the lease is released.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::error::Result;
use crate::locks::lease::Lease;
use crate::locks::lease::state::Event;
use crate::words::identity::Attempt;

/// Keeps a lease. Clones share it, as guards of one explicit owner do.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    gives_up: bool,
}

/// What the holders of a lease share.
#[derive(Debug)]
pub(crate) struct Shared {
    lease: Lease,
    holders: AtomicUsize,
    given_up: mpsc::UnboundedSender<GivenUp>,
}

/// The last hold of a lease is gone.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) attempt: Attempt,
    /// Who waits for the release.
    pub(crate) reply: Option<oneshot::Sender<Result<()>>>,
}

impl Hold {
    pub(crate) fn new(lease: Lease, given_up: mpsc::UnboundedSender<GivenUp>) -> Self {
        let shared = Arc::new(Shared { lease, holders: AtomicUsize::new(1), given_up });
        Self { shared, gives_up: true }
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.shared.lease
    }

    /// What others join this lease by. It does not keep it.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Gives it up. If it was the last one, the answer comes once the lease is released.
    pub(crate) fn release(mut self) -> Option<oneshot::Receiver<Result<()>>> {
        self.gives_up = false;
        let (reply, released) = oneshot::channel();
        self.shared.give_up(Some(reply)).then_some(released)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.gives_up {
            self.shared.give_up(None);
        }
    }
}

impl Shared {
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Another hold of the lease, unless the last one has gone.
    pub(crate) fn join(self: &Arc<Self>) -> Option<Hold> {
        self.holders
            .try_update(Ordering::AcqRel, Ordering::Acquire, |holders| {
                (holders > 0).then_some(holders + 1)
            })
            .ok()?;
        Some(Hold { shared: Arc::clone(self), gives_up: true })
    }

    /// One hold less. Says whether it was the last.
    fn give_up(&self, reply: Option<oneshot::Sender<Result<()>>>) -> bool {
        if self.holders.fetch_sub(1, Ordering::AcqRel) > 1 {
            return false;
        }
        // Here, so that what nobody calls any more is dropped on the holder's thread, and nothing renews it now.
        self.lease.apply(Event::Release);
        // An engine that has gone has told the lease.
        let _ = self.given_up.send(GivenUp { attempt: self.lease.id().attempt, reply });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::Claim;
    use crate::clock::Clock;
    use crate::locks::lease::state::Terms;
    use crate::words::identity::Token;
    use crate::words::name::LockName;

    #[test]
    fn a_lease_is_given_up_once_by_the_last_of_those_who_share_it() {
        let id = Claim::new(LockName::new("x").unwrap()).lease(Token::new(1));
        let (sender, mut given_up) = mpsc::unbounded_channel();
        let lease = Lease::granted(id, Terms::switched_off(), Clock::Boot, Duration::ZERO);
        let first = Hold::new(lease, sender);
        let shared = first.shared();
        let second = shared.join().unwrap();
        assert!(first.release().is_none(), "somebody else keeps it");
        assert!(given_up.try_recv().is_err());
        shared.lease().check().unwrap();
        assert!(second.release().is_some());
        given_up.try_recv().unwrap();
        assert!(given_up.try_recv().is_err());
        assert!(shared.join().is_none(), "it is being released");
        shared.lease().check().unwrap_err();
    }
}
