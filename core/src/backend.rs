//! The contract that a database has to keep to serve as a lock backend.
//!
//! A backend stores leases and decides, by its own clock, which of them are alive. It owns no
//! timer, no retry loop and no wait loop: the engine does all of that, the same for everybody.
//! Whoever writes one holds it to the suite in `database-locks-conformance`.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use futures_util::stream::BoxStream;

use crate::error::Result;
use crate::identity::{Attempt, LeaseId, Token};
use crate::loss::LossReason;
use crate::name::LockName;
use crate::owner::Owner;
use crate::share::Share;
use crate::ttl::Ttl;

/// A store of leases.
///
/// Every verb takes a batch and answers with one entry for each item, in the order of the items.
/// Several items of a batch may be of one name. They are answered as if they had come one after the
/// other, or some of them with `Skipped`; thousands of readers of one name depend on it that as many of
/// them are decided at once as of different names.
///
/// # To ensure correctness
///
/// - **One rule grants.** A claim is granted if and only if the live weights of its name plus its
///   own weight are within the capacity, decided atomically: two claims that would not fit
///   together are never both granted. [`Ledger`](crate::ledger::Ledger) states the rule in full,
///   for backends that can load and store a name's whole state, and for tests of those that
///   decide in SQL.
/// - **Time belongs to the server.** Whether a lease is alive is judged by the backend's clock at
///   the moment of the decision, after any wait for a row lock. Only durations cross this trait.
/// - **A row that somebody else has locked is not waited for.** It is answered with `Skipped`, and
///   does not stall the other names of the batch. (A batch of one may wait, for a second or so.)
/// - **Answers are durable.** What was answered with `Granted` survives a restart of the server.
///
/// # Errors
///
/// An error means that the outcome of the whole batch is unknown. The engine repeats what is
/// [retryable](crate::Error::is_retryable), each item under its own attempt, and otherwise asks
/// for the items of the batch one by one, so that one poisonous item fails alone.
///
/// # How the engine calls it
///
/// The engine calls from tasks of its own runtime, which runs on a thread of its own, and users may call
/// the same backend from theirs (`list`, for example). A driver that spawns a task where it connects must
/// bear that the runtime of that task ends before the backend does.
///
/// What is [`Skipped`](Verdict::Skipped) is asked again within some 20 ms (a release), an eighth of the
/// renewal period, or at the pace of a waiter. Leave timeouts and repetitions to the engine: each call
/// has [a few seconds](crate::LocksBuilder::request_timeout).
///
/// # Cancel safety
///
/// The engine drops the future of a call that takes too long. What that call did is unknown, and
/// is asked again; a connection with an unfinished request on it must not be used again.
#[async_trait]
pub trait LockBackend: fmt::Debug + Send + Sync + 'static {
    /// What this backend is and can do. Constant for the life of the backend.
    fn capabilities(&self) -> Capabilities;

    /// Decides claims.
    ///
    /// Idempotent in the attempt: asked again while its lease is alive, an attempt gets the same
    /// token and a fresh TTL; after that lease ended, [`Verdict::Ended`], for as long as the name is
    /// not granted again. (The engine asks no more once it has heard of an end.) A claim that is busy
    /// writes nothing but the mark that it asks for.
    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>>;

    /// Extends leases that are still alive to their TTL from now.
    ///
    /// A lease is touched only if its name, attempt, token and owner match and it is alive on the
    /// server. A lease that has ended never lives again.
    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>>;

    /// Ends leases. Matches like [`renew`](Self::renew), so that it cannot end a successor.
    ///
    /// Idempotent: a lease that has ended stays as it is. Where a waiter left a mark, a release
    /// also sends the hint that [`wakeups`](Self::wakeups) delivers.
    async fn release(&self, leases: &[LeaseId]) -> Result<Vec<Released>>;

    /// Live leases in the order of name (by bytes) and attempt, changing nothing.
    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>>;

    /// Forgets names that nobody has held for `idle`, at most some thousands a call, and answers
    /// how many.
    ///
    /// Never touches a held name, nor one whose token is not older than `idle` by the server's
    /// clock, since the next token of a forgotten name starts at that clock. Whether it is held is looked
    /// at when it is forgotten. Zero says that nothing is left to forget.
    async fn clean_up(&self, idle: Duration) -> Result<u64>;

    /// A new stream of hints that names were released, or `None` where the backend has none.
    ///
    /// Hints may be lost, late or spurious: polling always remains. The stream ends when its
    /// connection does, and the engine asks for a new one.
    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        Ok(None)
    }
}

/// What a backend is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend's name in errors and logs, for example `"postgres"`.
    pub backend: &'static str,
    /// Whether it can grant anything but [`Share::ALL`].
    pub shares: bool,
    /// The shortest TTL that is safe on it.
    pub min_ttl: Duration,
    /// The most items that it wants in one batch.
    pub max_batch: usize,
    /// How many names there have to be for one batch of them to cost less than each by itself.
    pub batch_from: usize,
    /// The most batches of claims, and of releases, that it can usefully work on at once.
    pub max_in_flight: usize,
}

impl Capabilities {
    /// A backend that can do everything, one batch of up to 256 at a time.
    #[must_use]
    pub const fn new(backend: &'static str) -> Self {
        Self {
            backend,
            shares: true,
            min_ttl: Ttl::MIN,
            max_batch: 256,
            batch_from: 2,
            max_in_flight: 1,
        }
    }

    /// Says whether it can grant anything but [`Share::ALL`].
    #[must_use]
    pub const fn with_shares(mut self, shares: bool) -> Self {
        self.shares = shares;
        self
    }

    /// Sets the shortest TTL that is safe on it.
    #[must_use]
    pub const fn with_min_ttl(mut self, min_ttl: Duration) -> Self {
        self.min_ttl = min_ttl;
        self
    }

    /// Sets the most items that it wants in one batch, at least one.
    #[must_use]
    pub const fn with_max_batch(mut self, max_batch: usize) -> Self {
        self.max_batch = if max_batch == 0 { 1 } else { max_batch };
        self
    }

    /// Sets how many names there have to be for one batch of them to cost less than each by itself.
    #[must_use]
    pub const fn with_batch_from(mut self, batch_from: usize) -> Self {
        self.batch_from = batch_from;
        self
    }

    /// Sets the most batches of claims, and of releases, that it can usefully work on at once, at least one.
    #[must_use]
    pub const fn with_max_in_flight(mut self, max_in_flight: usize) -> Self {
        self.max_in_flight = if max_in_flight == 0 { 1 } else { max_in_flight };
        self
    }
}

/// A request for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The lock.
    pub name: LockName,
    /// The acquire call that asks: the same for each retry of it.
    pub attempt: Attempt,
    /// What it takes of the lock.
    pub share: Share,
    /// Who asks.
    pub owner: Owner,
    /// How long the lease lives unless it is renewed.
    pub ttl: Ttl,
    /// How long an expired (not a released) lease still counts as held for this claim. Zero on
    /// one server; at least the clock skew where nodes judge by their own clocks.
    pub grace: Duration,
    /// Where set, a busy claim leaves a mark for this long: "somebody of this weight waits". A
    /// release then sends a hint, and lighter claims stand back for a heavier mark.
    pub mark: Option<Duration>,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The lease is granted, or was already and is extended.
    Granted(Token),
    /// The claim does not fit now.
    Busy(Busy),
    /// The name is held with this other capacity.
    CapacityMismatch(u32),
    /// This attempt held a lease before, and that lease has ended: it is not granted again.
    Ended,
    /// Its row is locked by somebody: ask again, nothing was decided.
    Skipped,
}

/// Why a claim did not fit, as far as the backend could tell without waiting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Busy {
    /// One of those who hold it, none of whom is the claim's own attempt. `None` where the claim stands
    /// back for a heavier waiter.
    pub holder: Option<Holder>,
    /// How long until a lease of this name expires, unless it is renewed: asking before is of no
    /// use without a hint. `None` where that is not known.
    pub retry_after: Option<Duration>,
}

/// Who holds a lock that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub owner: Owner,
    /// Under which token.
    pub token: Token,
    /// For how long, by the server's clock.
    pub held_for: Duration,
    /// How long the lease lives unless it is renewed; `None` for one that never expires.
    pub remaining: Option<Duration>,
}

/// A request to extend a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Which lease.
    pub lease: LeaseId,
    /// How long it lives from the moment of the renewal on.
    pub ttl: Ttl,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The lease lives for its TTL from now.
    Alive,
    /// The lease has ended.
    Lost(LossReason),
    /// Its row is locked by somebody: ask again, nothing was decided.
    Skipped,
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The lease was alive and has ended.
    Freed,
    /// The lease had ended before.
    Lost(LossReason),
    /// Its row is locked by somebody: ask again, nothing was decided.
    Skipped,
}

/// Which leases to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Only names that start with these bytes.
    pub prefix: String,
    /// Only what comes after this lease: the last one of the page before.
    pub after: Option<(LockName, Attempt)>,
    /// At most so many.
    pub limit: u32,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { prefix: String::new(), after: None, limit: 1_000 }
    }
}

/// A live lease, as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Which lease.
    pub lease: LeaseId,
    /// How long ago it was granted.
    pub held_for: Duration,
    /// How long it lives unless it is renewed; `None` for one that never expires.
    pub remaining: Option<Duration>,
    /// Whether somebody has left a mark that they wait for this name.
    pub waited_for: bool,
}

/// A hint from the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wakeup {
    /// Hints were seen to arrive, one that was sent to oneself for example: from here on, polling may be
    /// slow. Where it is said and not true, waiters wait for a second or two longer than they need.
    Listening,
    /// This name was released.
    Released(LockName),
    /// Hints may have been missed: ask for everything.
    Missed,
}

/// A stream of hints. It ends when its connection does.
pub struct Wakeups(BoxStream<'static, Wakeup>);

impl Wakeups {
    /// Makes a stream of hints of any stream.
    pub fn new(stream: impl Stream<Item = Wakeup> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl Stream for Wakeups {
    type Item = Wakeup;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Wakeup>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Wakeups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wakeups")
    }
}
