//! A lease in its holder's hands: what is known of it, and who wants to hear of its loss.

pub(crate) mod state;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::identity::{LeaseId, Token};
use crate::loss::LossReason;
use crate::name::LockName;
use crate::status::Mark;

use self::state::{Event, Phase, State, Terms};

/// What is called when a lease is lost.
pub(crate) type OnLost = Box<dyn FnOnce(LossReason) + Send>;

/// A view of a lease that is held by a [`Guard`](crate::Guard). Cheap to clone; dropping it
/// releases nothing.
#[derive(Clone)]
pub struct Lease(Arc<Inner>);

struct Inner {
    id: LeaseId,
    terms: Terms,
    clock: Clock,
    state: watch::Sender<State>,
    callbacks: Mutex<Vec<OnLost>>,
    /// Counts the lease until it is over.
    mark: Mutex<Option<Mark>>,
}

impl Lease {
    pub(crate) fn granted(id: LeaseId, terms: Terms, clock: Clock, asked_at: Duration) -> Self {
        Self(Arc::new(Inner {
            id,
            terms,
            clock,
            state: watch::Sender::new(State::granted(asked_at, &terms)),
            callbacks: Mutex::default(),
            mark: Mutex::default(),
        }))
    }

    /// The lock's name.
    #[must_use]
    pub fn name(&self) -> &LockName {
        &self.0.id.name
    }

    /// The fencing token: higher than that of every earlier lease of this name.
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.id.token
    }

    /// What identifies this lease in the database.
    #[must_use]
    pub fn id(&self) -> &LeaseId {
        &self.0.id
    }

    /// How long the holder may still rely on the lease if it is not renewed again: until the
    /// server's expiry, less the margin. `None` for a lease that never expires, zero once it is
    /// lost or released.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let state = self.look();
        if state.is_over() {
            return Some(Duration::ZERO);
        }
        state.deadline.map(|deadline| deadline.saturating_sub(self.0.clock.now()))
    }

    /// Whether the lease can still be relied on. Exact, by this machine's clock, even where the
    /// engine was starved or the machine suspended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) once the lease is lost, past its deadline, or
    /// released.
    pub fn check(&self) -> Result<()> {
        match self.look().phase {
            Phase::Held | Phase::Unknown => Ok(()),
            Phase::Lost(reason) => Err(Error::lost(reason).with_lock(self.name())),
            Phase::Released => Err(Error::lost(LossReason::Released).with_lock(self.name())),
        }
    }

    /// Waits until the lease is lost, and says why. Never completes for a lease that is released
    /// by its holder. Whoever asks late is told as well.
    ///
    /// After a suspend of the machine this may complete up to a quarter of a second late;
    /// [`check`](Self::check) never does.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost by dropping the future.
    pub async fn lost(&self) -> LossReason {
        let mut states = self.0.state.subscribe();
        loop {
            if let Phase::Lost(reason) = states.borrow_and_update().phase {
                return reason;
            }
            if states.changed().await.is_err() {
                // The sender lives as long as this lease does.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Calls `callback` once when the lease is lost, on a thread of its own, or at once where it
    /// is lost already. Never called for a lease that its holder releases.
    pub fn on_lost(&self, callback: impl FnOnce(LossReason) + Send + 'static) {
        // The lock is held across the look, so that a loss that comes now finds the callback.
        let mut callbacks = self.callbacks();
        match self.0.state.borrow().phase {
            Phase::Lost(reason) => self.call(vec![Box::new(callback)], reason),
            Phase::Released => {}
            Phase::Held | Phase::Unknown => callbacks.push(Box::new(callback)),
        }
    }

    /// Counts the lease by `mark`, unless it is counted already, for as long as it is not over.
    pub(crate) fn count_as(&self, mark: Mark) {
        // The lock is held across the look, so that an end that comes now finds the mark.
        let mut counted = self.mark();
        if !self.0.state.borrow().is_over() {
            counted.get_or_insert(mark);
        }
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.0.terms
    }

    /// What is known now, the passing of time included.
    pub(crate) fn look(&self) -> State {
        self.apply(Event::Tick)
    }

    /// Tells the lease what happened, and whoever waits for its loss.
    pub(crate) fn apply(&self, event: Event) -> State {
        let now = self.0.clock.now();
        let mut callbacks = Vec::new();
        self.0.state.send_if_modified(|state| {
            let next = state.on(event, now, &self.0.terms);
            let modified = next != *state;
            *state = next;
            modified
        });
        let state = *self.0.state.borrow();
        if state.is_over() {
            callbacks.append(&mut self.callbacks());
            self.mark().take();
        }
        if let Phase::Lost(reason) = state.phase
            && !callbacks.is_empty()
        {
            self.call(callbacks, reason);
        }
        state
    }

    fn mark(&self) -> MutexGuard<'_, Option<Mark>> {
        self.0.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callbacks(&self) -> MutexGuard<'_, Vec<OnLost>> {
        self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs callbacks on a thread of their own: they may block, and whoever found the loss may be
    /// the engine.
    fn call(&self, callbacks: Vec<OnLost>, reason: LossReason) {
        let spawned =
            thread::Builder::new().name("database-locks-on-lost".to_owned()).spawn(move || {
                for callback in callbacks {
                    // One that panics must not keep the others from hearing.
                    let _ = catch_unwind(AssertUnwindSafe(|| callback(reason)));
                }
            });
        if let Err(error) = spawned {
            tracing::error!(lock = %self.name(), %error, "no thread for the on_lost callbacks");
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.0.id)
            .field("state", &*self.0.state.borrow())
            .finish()
    }
}
