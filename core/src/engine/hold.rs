//! What a guard keeps of a live lease: when the last hold of it goes, the lease is released.

use tokio::sync::{mpsc, oneshot};

use crate::error::Result;
use crate::locks::lease::Lease;
use crate::locks::lease::state::LeaseEvent;
use crate::words::identity::Attempt;

/// Keeps a lease. Several may keep one, as guards of one explicit owner do.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Lease,
    given_up: mpsc::UnboundedSender<GivenUp>,
    gives_up: bool,
}

/// The last hold of a lease is gone.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) attempt: Attempt,
    /// Who waits for the release.
    pub(crate) reply: Option<oneshot::Sender<Result<()>>>,
}

impl Hold {
    /// A hold that the lease counts already: its first.
    pub(crate) fn new(lease: Lease, given_up: mpsc::UnboundedSender<GivenUp>) -> Self {
        Self { lease, given_up, gives_up: true }
    }

    /// Another hold of a lease, unless the last one has gone.
    pub(crate) fn join(lease: &Lease, given_up: &mpsc::UnboundedSender<GivenUp>) -> Option<Self> {
        lease.add_holder().then(|| Self::new(lease.clone(), given_up.clone()))
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives it up. If it was the last one, the answer comes once the lease is released.
    pub(crate) fn release(mut self) -> Option<oneshot::Receiver<Result<()>>> {
        self.gives_up = false;
        let (reply, released) = oneshot::channel();
        self.give_up(Some(reply)).then_some(released)
    }

    /// Says whether it was the last.
    fn give_up(&self, reply: Option<oneshot::Sender<Result<()>>>) -> bool {
        let is_last = self.lease.remove_holder();
        if is_last {
            // Here, so that what nobody calls any more is dropped on the holder's thread, and nothing renews it now.
            self.lease.apply(LeaseEvent::Release);
            // An engine that has gone has told the lease.
            let _ = self.given_up.send(GivenUp { attempt: self.lease.id().attempt, reply });
        }
        is_last
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.gives_up {
            self.give_up(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::Claim;
    use crate::locks::lease::Shared;
    use crate::locks::lease::state::Terms;
    use crate::observer::Observers;
    use crate::words::identity::Token;
    use crate::words::name::LockName;

    #[test]
    fn a_lease_is_given_up_once_by_the_last_of_those_who_share_it() {
        let id = Claim::new(LockName::new("x").unwrap()).lease(Token::new(1));
        let (sender, mut given_up) = mpsc::unbounded_channel();
        let shared = Shared::of_a_test(Observers::default());
        let lease = Lease::granted(id, Terms::switched_off(), shared, Duration::ZERO);
        let first = Hold::new(lease.clone(), sender.clone());
        let second = Hold::join(&lease, &sender).unwrap();
        assert!(first.release().is_none(), "somebody else keeps it");
        assert!(given_up.try_recv().is_err());
        lease.check().unwrap();
        assert!(second.release().is_some());
        given_up.try_recv().unwrap();
        assert!(given_up.try_recv().is_err());
        assert!(Hold::join(&lease, &sender).is_none(), "it is being released");
        lease.check().unwrap_err();
    }
}
