//! Somebody wants a lock, and how they are told.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::backend::{Busy, Claim};
use crate::clock::Clock;
use crate::engine::backoff::Retry;
use crate::engine::hold::Hold;
use crate::error::Result;
use crate::locks::lease::state::Terms;
use crate::observer::{Event, NotGranted, Observers};
use crate::words::name::LockName;

/// Tells requests of one engine apart. Stays the same when a request begins a new attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// Where a caller waits for a lease, or for none where the lock is busy and they ask once.
pub(crate) type Caller = oneshot::Sender<Result<Option<Hold>>>;

/// How a caller is told. As long as this lives, somebody waits.
#[derive(Debug)]
pub(crate) struct Reply {
    caller: Option<Caller>,
    lock: LockName,
    clock: Clock,
    asked: Duration,
    observers: Observers,
}

impl Reply {
    pub(crate) fn new(caller: Caller, lock: LockName, clock: Clock, observers: Observers) -> Self {
        observers.vitals().begin_wait();
        observers.tell(Event::Waiting { lock: &lock });
        Self { caller: Some(caller), lock, clock, asked: clock.now(), observers }
    }

    /// Tells the caller: a lease, or none because the lock was busy. If they have gone, the lease is
    /// released.
    pub(crate) fn send(mut self, answer: Result<Option<Hold>>) {
        if self.caller.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return;
        }
        let Some(caller) = self.caller.take() else { return };
        self.observers.vitals().end_wait();
        // Before the caller hears, so that what they see then is up to date.
        match &answer {
            Ok(Some(hold)) => hold.lease().tell_grant(self.after()),
            Ok(None) => self.not_granted(NotGranted::Busy),
            Err(error) => self.not_granted(NotGranted::Failed(error)),
        }
        let _ = caller.send(answer);
    }

    fn not_granted(&self, why: NotGranted<'_>) {
        self.observers.tell(Event::NotGranted { lock: &self.lock, after: self.after(), why });
    }

    fn after(&self) -> Duration {
        self.clock.now().saturating_sub(self.asked)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.caller.is_some() {
            self.observers.vitals().end_wait();
            self.not_granted(NotGranted::Abandoned);
        }
    }
}

/// Somebody wants a lock.
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) claim: Claim,
    pub(crate) terms: Terms,
    pub(crate) retry: Retry,
    /// For how long the caller waits.
    pub(crate) timeout: Option<Duration>,
    /// Who hears each time that the lock is busy.
    pub(crate) on_busy: Option<mpsc::UnboundedSender<Busy>>,
    /// `None` once the caller has gone or been told, while the outcome still has to be settled.
    pub(crate) reply: Option<Reply>,
}

impl Request {
    /// Gives the lease to whoever asked for it. If they have gone, it is released.
    pub(crate) fn fulfil(self, hold: Hold) {
        if let Some(reply) = self.reply {
            reply.send(Ok(Some(hold)));
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.id).field("claim", &self.claim).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::*;
    use crate::locks::lease::{Lease, Shared, state};
    use crate::observer::Observer;
    use crate::words::identity::Token;
    use crate::words::loss::LossReason;

    /// The names of the events that it is told.
    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Observer for Seen {
        fn on(&self, event: Event<'_>) {
            let text = match event {
                Event::Granted { joined: true, .. } => "joined".to_owned(),
                Event::NotGranted { why, .. } => format!("{why:?}"),
                event => format!("{event:?}").split(' ').next().unwrap_or_default().to_owned(),
            };
            self.0.lock().unwrap().push(text);
            panic!("a panic that the test asks for");
        }
    }

    impl Seen {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn name() -> LockName {
        LockName::new("x").unwrap()
    }

    fn hold(observers: &Observers) -> Hold {
        let (id, terms) = (Claim::new(name()).lease(Token::new(1)), Terms::switched_off());
        let lease = Lease::granted(id, terms, Shared::of_a_test(observers.clone()), Duration::ZERO);
        Hold::new(lease, mpsc::unbounded_channel().0)
    }

    fn observed() -> (Arc<Seen>, Observers, impl Fn(Caller) -> Reply) {
        let seen = Arc::new(Seen::default());
        let observers = Observers::new(vec![Arc::clone(&seen) as Arc<dyn Observer>]);
        let theirs = observers.clone();
        let reply = move |caller| Reply::new(caller, name(), Clock::Boot, theirs.clone());
        (seen, observers, reply)
    }

    #[test]
    fn each_wait_and_each_lease_ends_once() {
        let (seen, observers, reply) = observed();
        let (caller, _answer) = oneshot::channel();
        let first = reply(caller);
        assert_eq!(seen.take(), ["Waiting"]);
        let (sender, hold) = (mpsc::unbounded_channel().0, hold(&observers));
        first.send(Ok(Hold::join(hold.lease(), &sender)));
        assert_eq!(seen.take(), ["Granted"]);
        let (caller, _answer) = oneshot::channel();
        reply(caller).send(Ok(Hold::join(hold.lease(), &sender)));
        assert_eq!(seen.take(), ["Waiting", "joined"]);
        hold.lease().apply(state::LeaseEvent::Gone(LossReason::Shutdown));
        hold.lease().apply(state::LeaseEvent::Release);
        assert_eq!(seen.take(), ["Lost"]);
        let (caller, _answer) = oneshot::channel();
        reply(caller).send(Ok(Some(hold)));
        assert_eq!(
            seen.take(),
            ["Waiting", "Granted", "Lost"],
            "it was over before it was handed out"
        );

        let (caller, _answer) = oneshot::channel();
        reply(caller).send(Ok(None));
        assert_eq!(seen.take(), ["Waiting", "Busy"]);
    }

    #[test]
    fn a_caller_that_has_gone_holds_nothing() {
        let (seen, observers, reply) = observed();
        for is_dropped in [true, false] {
            let (caller, answer) = oneshot::channel();
            let reply = reply(caller);
            drop(answer);
            let hold = hold(&observers);
            let lease = hold.lease().clone();
            if is_dropped {
                drop(reply);
            } else {
                reply.send(Ok(Some(hold)));
                lease.check().expect_err("it was given back");
            }
            assert_eq!(seen.take(), ["Waiting", "Abandoned"]);
        }
    }
}
