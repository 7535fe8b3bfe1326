//! A lease in its holder's hands: what is known of it, and who wants to hear of its loss.

pub(crate) mod state;

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::Span;

use crate::backend::fence::{Fence, FenceSql};
use crate::callbacks;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::observer::{self, Observers};
use crate::spans;
use crate::words::identity::{LeaseId, Token};
use crate::words::loss::LossReason;
use crate::words::name::LockName;

use self::state::{LeaseEvent, LeaseState, Phase, Terms};

/// What is called when a lease is lost.
pub(crate) type OnLost = Box<dyn FnOnce(LossReason) + Send>;

/// A view of a lease that is held by a [`Guard`](crate::Guard). Cheap to clone; dropping it
/// releases nothing.
#[derive(Clone)]
pub struct Lease(Arc<Inner>);

struct Inner {
    id: LeaseId,
    terms: Terms,
    shared: Arc<Shared>,
    /// Until when the lease is good if nothing happens, in µs of the clock: zero once it is over. Written under the lock of
    /// what is known, and read without it.
    good_until: AtomicU64,
    /// How many holds keep it: the last one gives it back.
    holders: AtomicUsize,
    known: Mutex<Known>,
    over: Notify,
}

/// What is the same for all leases of an engine.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    /// How they fence a transaction.
    pub(crate) fence: Option<Fence>,
    pub(crate) observers: Observers,
}

#[cfg(test)]
impl Shared {
    /// By the boot clock, without a backend.
    pub(crate) fn of_a_test(observers: Observers) -> Arc<Self> {
        Arc::new(Self { clock: Clock::Boot, fence: None, observers })
    }
}

struct Known {
    state: LeaseState,
    /// Of most leases nobody wants to hear.
    listeners: Option<Box<Listeners>>,
}

/// Who hears of the end of a lease.
#[derive(Default)]
struct Listeners {
    callbacks: Vec<OnLost>,
    /// When observers were told of the grant.
    observed_since: Option<Duration>,
    span: Option<Span>,
}

/// How a lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was lost, for this reason.
    Lost(LossReason),
    /// Its holder gave it back.
    Released,
}

impl Lease {
    /// A lease that one holder keeps.
    pub(crate) fn granted(
        id: LeaseId,
        terms: Terms,
        shared: Arc<Shared>,
        asked_at: Duration,
    ) -> Self {
        shared.observers.vitals().begin_hold();
        Self(Arc::new(Inner {
            id,
            terms,
            shared,
            good_until: AtomicU64::new(good_until(LeaseState::granted(asked_at, &terms))),
            holders: AtomicUsize::new(1),
            known: Mutex::new(Known {
                state: LeaseState::granted(asked_at, &terms),
                listeners: None,
            }),
            over: Notify::new(),
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
        state.deadline.map(|deadline| deadline.saturating_sub(self.now()))
    }

    /// Whether the lease can still be relied on. Exact, by this machine's clock, even where the
    /// engine was starved or the machine suspended. It costs a look at the clock, and takes no lock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) once the lease is lost, past its deadline, or
    /// released.
    pub fn check(&self) -> Result<()> {
        if self.is_good() {
            return Ok(());
        }
        match self.look().phase {
            Phase::Held | Phase::Unknown => Ok(()),
            Phase::Lost(reason) => Err(Error::lost(reason).with_lock(self.name())),
            Phase::Released => Err(Error::lost(LossReason::Released).with_lock(self.name())),
        }
    }

    /// The statement that fences a transaction of the user's own, on any driver: whatever that transaction writes is
    /// committed only if the lease was alive when it was fenced, and nobody is granted the lock in between. For the drivers
    /// that it knows the crate `database-locks-fence` sends it, and tells its failures apart.
    ///
    /// Run it first in a transaction of the database that keeps the locks. **Roll back unless it succeeds**: on Postgres it
    /// returns one row, or fails, with SQLSTATE 55000 for a lease that has ended; on the other databases it changes
    /// exactly one row, and none for a lease that has ended. On these nothing tells that it runs outside of any transaction,
    /// where it protects nothing; Postgres tells of most ways to do that, and not of an unprepared statement with parameters.
    ///
    /// It is good for one execution now: on SQLite it has the time of this call in it, and one that is late can make a lease
    /// look alive that has ended, if nobody has been granted its place since.
    ///
    /// `None` where locks are [switched off](crate::LocksBuilder::disabled): there is nothing to run.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] as of [`check`](Self::check), and [`ErrorKind::Unsupported`] for leases that are in no
    /// database with transactions, such as those in memory.
    pub fn fence_sql(&self) -> Result<Option<FenceSql>> {
        self.check()?;
        match &self.0.shared.fence {
            _ if self.0.terms.switched_off => Ok(None),
            Some(fence) => Ok(Some(fence.sql(self.id()))),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "this backend has no transactions to fence: let what is written refuse lower tokens, by a \
                 `HighWaterMark` for example",
            )
            .with_lock(self.name())),
        }
    }

    /// Whether the lease is not lost, released ones included.
    pub(crate) fn is_not_lost(&self) -> Result<()> {
        match self.look().phase {
            Phase::Lost(reason) => Err(Error::lost(reason).with_lock(self.name())),
            Phase::Held | Phase::Unknown | Phase::Released => Ok(()),
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
        match self.ended().await {
            Ended::Lost(reason) => reason,
            Ended::Released => std::future::pending().await,
        }
    }

    /// Waits until the lease is lost or its holder releases it, for whoever must not wait for ever. Else as
    /// [`lost`](Self::lost).
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost by dropping the future.
    pub async fn ended(&self) -> Ended {
        loop {
            let mut over = pin!(self.0.over.notified());
            // From here on an end is not missed.
            over.as_mut().enable();
            let phase = self.known().state.phase;
            match phase {
                Phase::Lost(reason) => return Ended::Lost(reason),
                Phase::Released => return Ended::Released,
                Phase::Held | Phase::Unknown => over.await,
            }
        }
    }

    /// Calls `callback` once when the lease is lost, on a thread other than the engine's, or at once where it
    /// is lost already. Never called for a lease that its holder releases. Of callbacks that take long, 32 run at once in a
    /// process, and others wait for them.
    pub fn on_lost(&self, callback: impl FnOnce(LossReason) + Send + 'static) {
        // The lock is held across the look, so that a loss that comes now finds the callback.
        let mut known = self.known();
        match known.state.phase {
            Phase::Lost(reason) => {
                drop(known);
                callbacks::call(move || callback(reason));
            }
            Phase::Released => drop(known),
            Phase::Held | Phase::Unknown => known.listeners().callbacks.push(Box::new(callback)),
        }
    }

    /// Tells observers that the lease is granted, and of its end once it ends.
    pub(crate) fn tell_grant(&self, after: Duration) {
        let observers = &self.0.shared.observers;
        if observers.is_empty() {
            return;
        }
        let (mut known, now) = (self.known(), self.now());
        let joined = known.listeners().observed_since.is_some();
        // Under the lock, so that nobody hears of its end before.
        observers.tell(observer::Event::Granted { lease: self.id(), after, joined });
        if known.state.is_over() {
            self.tell_end(now, known.state.phase);
        } else {
            known.listeners().observed_since.get_or_insert(now);
        }
    }

    /// Keeps a span open until the lease ends. It begins where its first holder is.
    pub(crate) fn begin_span(&self, backend: &'static str) {
        // Under the lock, so that a lease has one, also where several hold it.
        let mut known = self.known();
        let has_one = known.listeners.as_ref().is_some_and(|all| all.span.is_some());
        if has_one || known.state.is_over() {
            return;
        }
        if let Some(span) = spans::hold(self.id(), backend) {
            known.listeners().span = Some(span);
        }
    }

    fn tell_end(&self, since: Duration, phase: Phase) {
        let (lease, after) = (self.id(), self.now().saturating_sub(since));
        self.0.shared.observers.tell(match phase {
            Phase::Lost(reason) => observer::Event::Lost { lease, reason, after },
            _ => observer::Event::Released { lease, after },
        });
    }

    /// One holder more, unless the last one has gone.
    pub(crate) fn add_holder(&self) -> bool {
        let one_more = |holders| (holders > 0).then_some(holders + 1);
        self.0.holders.try_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    /// One holder less. Says whether it was the last.
    pub(crate) fn remove_holder(&self) -> bool {
        self.0.holders.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.0.terms
    }

    /// Whether the lease can be relied on now.
    pub(crate) fn is_good(&self) -> bool {
        micros(self.now()) < self.0.good_until.load(Ordering::Acquire)
    }

    /// What is known now, the passing of time included.
    pub(crate) fn look(&self) -> LeaseState {
        self.apply(LeaseEvent::Tick)
    }

    /// Tells the lease what happened, and whoever waits for its loss.
    pub(crate) fn apply(&self, event: LeaseEvent) -> LeaseState {
        let now = self.now();
        let mut known = self.known();
        let was_over = known.state.is_over();
        let state = known.state.on(event, now, &self.0.terms);
        known.state = state;
        self.0.good_until.store(good_until(state), Ordering::Release);
        if !state.is_over() {
            return state;
        }
        let Listeners { callbacks, observed_since, span } =
            known.listeners.take().map(|all| *all).unwrap_or_default();
        drop(known);
        if !was_over {
            self.0.shared.observers.vitals().end_hold();
        }
        if let Some(since) = observed_since {
            self.tell_end(since, state.phase);
        }
        if let Some(span) = span {
            spans::end_hold(
                &span,
                match state.phase {
                    Phase::Lost(reason) => reason.as_str(),
                    _ => "released",
                },
            );
        }
        self.0.over.notify_waiters();
        if let Phase::Lost(reason) = state.phase {
            for callback in callbacks {
                callbacks::call(move || callback(reason));
            }
        }
        state
    }

    fn now(&self) -> Duration {
        self.0.shared.clock.now()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn listeners(&mut self) -> &mut Listeners {
        self.listeners.get_or_insert_default()
    }
}

fn good_until(state: LeaseState) -> u64 {
    match state.deadline {
        _ if state.is_over() => 0,
        Some(deadline) => micros(deadline),
        None => u64::MAX,
    }
}

fn micros(moment: Duration) -> u64 {
    u64::try_from(moment.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.0.id).field("state", &self.known().state).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::backend::Claim;

    /// For a thread to come back, on a machine of any slowness.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_look_at_a_lease_that_is_good_waits_for_nobody() {
        let id = Claim::new(LockName::new("x").unwrap()).lease(Token::new(1));
        let lease = Lease::granted(
            id,
            Terms::switched_off(),
            Shared::of_a_test(Observers::default()),
            Duration::ZERO,
        );
        let (sender, looked) = mpsc::channel();
        let _known = lease.known();
        let checked = lease.clone();
        thread::spawn(move || sender.send(checked.check()));
        looked.recv_timeout(PATIENCE).expect("it waits for the lock").unwrap();
    }
}
