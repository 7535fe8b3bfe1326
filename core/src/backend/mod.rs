//! The contract that a database has to keep to serve as a lock backend.
//!
//! A backend stores leases and decides, by its own clock, which of them are alive. It owns no
//! timer, no retry loop and no wait loop: the engine does all of that, the same for everybody.
//! Whoever writes one holds it to the suite in `database-locks-conformance`.

pub(crate) mod disabled;
pub mod fence;
pub mod hosts;
pub mod identifier;
#[cfg(feature = "key-value")]
pub mod key_value;
pub mod ledger;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use futures_util::stream::BoxStream;

use crate::backend::fence::Fence;
use crate::error::{Error, ErrorKind, Result};
use crate::words::data::Data;
use crate::words::identity::{Attempt, LeaseId, Token};
use crate::words::loss::LossReason;
use crate::words::name::LockName;
use crate::words::owner::Owner;
use crate::words::share::Share;
use crate::words::ttl::Ttl;

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
///   together are never both granted. [`Ledger`](crate::backend::ledger::Ledger) states the rule in full,
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
    /// Idempotent in the attempt: asked again while it holds its lease, an attempt gets the same
    /// token and a fresh TTL; after that lease ended, [`Verdict::Ended`], for as long as the name is
    /// not granted again. (The engine asks no more once it has heard of an end.) A claim that is busy
    /// writes nothing but the mark that it asks for.
    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>>;

    /// Extends leases that are still alive to their TTL from now.
    ///
    /// A lease is touched only if its name, attempt, token and owner match and it is alive on the
    /// server, neither [kept nor revoked](How). A lease that has ended never lives again.
    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>>;

    /// Ends leases, or what their holders have of them. A lease is touched only if its name, attempt, token and
    /// owner match and it is alive, kept and revoked ones included, so that this cannot end a successor.
    ///
    /// Idempotent: a lease that has ended stays as it is. Where a waiter left a mark, a release that frees or keeps
    /// also sends the hint that [`wakeups`](Self::wakeups) delivers.
    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>>;

    /// Live leases in the order of name (by bytes) and attempt, changing nothing.
    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>>;

    /// Forgets names that nobody has held for `idle`, at most some thousands a call, and answers
    /// how many.
    ///
    /// Never touches a held name, nor one whose token is not older than `idle` by the server's
    /// clock, since the next token of a forgotten name starts at that clock
    /// (unless the backend has another way to let tokens grow). Whether it is held is looked
    /// at when it is forgotten. Zero says that nothing is left to forget.
    async fn clean_up(&self, idle: Duration) -> Result<u64>;

    /// A new stream of hints that names were released, or `None` where the backend has none.
    ///
    /// Hints may be lost, late or spurious: polling always remains. The stream ends when its
    /// connection does, and the engine asks for a new one.
    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        Ok(None)
    }

    /// How a transaction of the user's own is fenced by a lease, or `None` where the leases are in no database that has
    /// transactions. Constant for the life of the backend.
    fn fence(&self) -> Option<Fence> {
        None
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
    /// The most renewals that it wants in one batch, `max_batch` or more. One batch of renewals is on its way
    /// at a time, so that over a slow network this says how many leases a process can hold.
    pub max_renewals: usize,
    /// How many names there have to be for one batch of them to cost less than each by itself.
    pub batch_from: usize,
    /// The most batches of claims, and of releases, that it can usefully work on at once. Where that is more than one, there is
    /// one less of claims, so that a release does not wait for these.
    pub max_in_flight: usize,
    /// Whether a claim can [take the place](Claim::replaces) of a lease.
    pub hands_over: bool,
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
            max_renewals: 256,
            batch_from: 2,
            max_in_flight: 1,
            hands_over: false,
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

    /// Sets the most items that it wants in one batch, at least one, renewals among them.
    #[must_use]
    pub const fn with_max_batch(mut self, max_batch: usize) -> Self {
        self.max_batch = if max_batch == 0 { 1 } else { max_batch };
        self.max_renewals = self.max_batch;
        self
    }

    /// Sets the most renewals that it wants in one batch, where that is more than the most items of any batch.
    #[must_use]
    pub const fn with_max_renewals(mut self, max_renewals: usize) -> Self {
        self.max_renewals =
            if max_renewals > self.max_batch { max_renewals } else { self.max_batch };
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

    /// Says whether a claim can take the place of a lease.
    #[must_use]
    pub const fn with_hand_over(mut self, hands_over: bool) -> Self {
        self.hands_over = hands_over;
        self
    }
}

/// A request for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
    /// What the holder tells of itself for as long as the lease lives.
    pub data: Option<Data>,
    /// A lease of the same name that its holder gives back to this claim: it ends if, and only if, the claim is granted
    /// instead of it, in one step. Both take all of the lock. Where that lease is not alive, or is not its holder's any
    /// more, the claim is [`Skipped`](Verdict::Skipped) and nothing is changed, unless its attempt has a lease already.
    /// Only for backends that [say](Capabilities::hands_over) that they can.
    pub replaces: Option<LeaseId>,
}

impl Claim {
    /// A new attempt of this process to have all of a lock, for [`Ttl::DEFAULT`].
    #[must_use]
    pub fn new(name: LockName) -> Self {
        Self {
            name,
            attempt: Attempt::new(),
            share: Share::ALL,
            owner: Owner::of_this_process(),
            ttl: Ttl::DEFAULT,
            grace: Duration::ZERO,
            mark: None,
            data: None,
            replaces: None,
        }
    }

    /// Sets which acquire call asks.
    #[must_use]
    pub fn with_attempt(self, attempt: Attempt) -> Self {
        Self { attempt, ..self }
    }

    /// Sets what it takes of the lock.
    #[must_use]
    pub fn with_share(self, share: Share) -> Self {
        Self { share, ..self }
    }

    /// Sets who asks.
    #[must_use]
    pub fn with_owner(self, owner: Owner) -> Self {
        Self { owner, ..self }
    }

    /// Sets how long the lease lives unless it is renewed.
    #[must_use]
    pub fn with_ttl(self, ttl: Ttl) -> Self {
        Self { ttl, ..self }
    }

    /// Sets how long an expired lease still counts as held for it.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Sets for how long a mark is left where the lock is busy.
    #[must_use]
    pub fn with_mark(self, mark: impl Into<Option<Duration>>) -> Self {
        Self { mark: mark.into(), ..self }
    }

    /// Sets what the holder tells of itself.
    #[must_use]
    pub fn with_data(self, data: impl Into<Option<Data>>) -> Self {
        Self { data: data.into(), ..self }
    }

    /// Sets whose place it takes.
    #[must_use]
    pub fn with_replaces(self, replaces: impl Into<Option<LeaseId>>) -> Self {
        Self { replaces: replaces.into(), ..self }
    }

    /// The lease that it is granted under `token`.
    #[must_use]
    pub fn lease(&self, token: Token) -> LeaseId {
        LeaseId {
            name: self.name.clone(),
            attempt: self.attempt,
            token,
            owner: self.owner.clone(),
            share: self.share,
        }
    }
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The lease is granted, or was already and is extended.
    Granted(Token),
    /// The claim does not fit now.
    Busy(Busy),
    /// The name is held with this other capacity.
    CapacityMismatch(u32),
    /// This attempt held a lease before, and that lease has ended, or is [kept](How::Keep): it is not granted again.
    Ended,
    /// This attempt holds a lease of this token that was [revoked](How::Revoke). Where its grant was never heard of, the
    /// lease has to be freed.
    Revoked(Token),
    /// Its row is locked by somebody, or the lease whose place it was to take has ended: ask again, nothing was decided.
    Skipped,
}

/// Why a claim did not fit, as far as the backend could tell without waiting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// One of those who hold it, none of whom is the claim's own attempt. `None` where the claim stands
    /// back for a heavier waiter.
    pub holder: Option<Holder>,
    /// How long until a lease of this name expires, unless it is renewed: asking before is of no
    /// use without a hint. `None` where that is not known.
    pub retry_after: Option<Duration>,
}

impl Busy {
    /// Held by `holder`.
    #[must_use]
    pub const fn by(holder: Holder) -> Self {
        Self { holder: Some(holder), retry_after: None }
    }

    /// Sets how long until a lease of this name expires.
    #[must_use]
    pub fn with_retry_after(self, retry_after: impl Into<Option<Duration>>) -> Self {
        Self { retry_after: retry_after.into(), ..self }
    }
}

/// Who holds a lock that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who.
    pub owner: Owner,
    /// Under which token.
    pub token: Token,
    /// For how long, by the server's clock.
    pub held_for: Duration,
    /// How long the lease lives unless it is renewed; `None` for one that never expires.
    pub remaining: Option<Duration>,
    /// Whether it still has the lease.
    pub standing: Standing,
    /// What the holder tells of itself.
    pub data: Option<Data>,
}

impl Holder {
    /// Somebody who has held a lock since just now, and without end.
    #[must_use]
    pub const fn new(owner: Owner, token: Token) -> Self {
        let (held_for, remaining, standing, data) = (Duration::ZERO, None, Standing::Held, None);
        Self { owner, token, held_for, remaining, standing, data }
    }

    /// Sets whether it still has the lease.
    #[must_use]
    pub fn with_standing(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// Sets for how long.
    #[must_use]
    pub fn with_held_for(self, held_for: Duration) -> Self {
        Self { held_for, ..self }
    }

    /// Sets how long the lease lives unless it is renewed.
    #[must_use]
    pub fn with_remaining(self, remaining: impl Into<Option<Duration>>) -> Self {
        Self { remaining: remaining.into(), ..self }
    }

    /// Sets what the holder tells of itself.
    #[must_use]
    pub fn with_data(self, data: impl Into<Option<Data>>) -> Self {
        Self { data: data.into(), ..self }
    }
}

/// A request to extend a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// Which lease.
    pub lease: LeaseId,
    /// How long it lives from the moment of the renewal on.
    pub ttl: Ttl,
}

impl Renewal {
    /// Extends `lease` to `ttl` from then.
    #[must_use]
    pub const fn new(lease: LeaseId, ttl: Ttl) -> Self {
        Self { lease, ttl }
    }
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewed {
    /// The lease lives for its TTL from now.
    Alive,
    /// The lease has ended.
    Lost(LossReason),
    /// Its row is locked by somebody: ask again, nothing was decided.
    Skipped,
}

/// A request to end a lease, or what its holder has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Release {
    /// Which lease.
    pub lease: LeaseId,
    /// What becomes of its name.
    pub how: How,
}

impl Release {
    /// Frees the name.
    #[must_use]
    pub const fn free(lease: LeaseId) -> Self {
        Self { lease, how: How::Free }
    }

    /// Frees the names of all `leases`.
    #[must_use]
    pub fn free_all<'l>(leases: impl IntoIterator<Item = &'l LeaseId>) -> Vec<Self> {
        leases.into_iter().cloned().map(Self::free).collect()
    }

    /// Ends the lease, and keeps its name until the lease is that old.
    #[must_use]
    pub const fn keep(lease: LeaseId, until_age: Duration) -> Self {
        Self { lease, how: How::Keep { until_age } }
    }

    /// Lets the lease be renewed no more.
    #[must_use]
    pub const fn revoke(lease: LeaseId) -> Self {
        Self { lease, how: How::Revoke }
    }

    /// Refuses what cannot be done with a lease that [another client](Attempt::FOREIGN) has written: it would
    /// renew the lease all the same. For backends that share their table with others.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`].
    pub fn check_foreign(&self) -> Result<()> {
        match self.how {
            How::Keep { .. } | How::Revoke if self.lease.attempt == Attempt::FOREIGN => {
                Err(Error::new(
                    ErrorKind::Unsupported,
                    "the lease is another client's, which knows of no end but a release: free it by force",
                )
                .with_lock(&self.lease.name))
            }
            _ => Ok(()),
        }
    }
}

/// How a lease is released. A backend has to know each way, so no other one can be added without a change of all
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The name is free at once.
    Free,
    /// The lease ends for its holder, who alone should ask for this, and its name stays taken until the lease is so old,
    /// by the server's clock and since its grant: longer than its TTL, or shorter. It is free at once where the lease is that
    /// old by now. To a claim with a grace it counts for that much longer, as if it had expired.
    Keep {
        /// How old the lease has to be.
        until_age: Duration,
    },
    /// The lease can be renewed no more, and lives to its expiry. Its holder learns of its loss by the next renewal,
    /// and may free the name before. Unlike [`Free`](Self::Free) by anybody but the holder this never lets two work
    /// at once. A lease without a TTL stays until it is freed.
    Revoke,
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lease was alive, and what was asked for is done.
    Done,
    /// The lease had ended before.
    Lost(LossReason),
    /// Its row is locked by somebody: ask again, nothing was decided.
    Skipped,
}

/// Which leases to list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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

impl ListQuery {
    /// The first 1,000 leases of names that start with `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// The least text that comes, by bytes, after all that starts with the prefix. `None` where nothing does.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        let mut end = self.prefix.clone();
        while let Some(last) = end.pop() {
            let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
            if let Some(next) = next {
                end.push(next);
                return Some(end);
            }
        }
        None
    }

    /// Starts after this lease.
    #[must_use]
    pub fn with_after(self, after: impl Into<Option<(LockName, Attempt)>>) -> Self {
        Self { after: after.into(), ..self }
    }

    /// Sets how many leases at most.
    #[must_use]
    pub fn with_limit(self, limit: u32) -> Self {
        Self { limit, ..self }
    }
}

/// A live lease, as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// Which lease.
    pub lease: LeaseId,
    /// How long ago it was granted.
    pub held_for: Duration,
    /// How long it lives unless it is renewed; `None` for one that never expires.
    pub remaining: Option<Duration>,
    /// Whether somebody has left a mark that they wait for this name.
    pub waited_for: bool,
    /// Whether its holder still has it.
    pub standing: Standing,
    /// What its holder tells of itself.
    pub data: Option<Data>,
}

impl LeaseInfo {
    /// A lease that was granted just now and lives without end.
    #[must_use]
    pub const fn new(lease: LeaseId) -> Self {
        Self {
            lease,
            held_for: Duration::ZERO,
            remaining: None,
            waited_for: false,
            standing: Standing::Held,
            data: None,
        }
    }

    /// Sets how long ago it was granted.
    #[must_use]
    pub fn with_held_for(self, held_for: Duration) -> Self {
        Self { held_for, ..self }
    }

    /// Sets how long it lives unless it is renewed.
    #[must_use]
    pub fn with_remaining(self, remaining: impl Into<Option<Duration>>) -> Self {
        Self { remaining: remaining.into(), ..self }
    }

    /// Sets whether somebody has left a mark that they wait for this name.
    #[must_use]
    pub fn with_waited_for(self, waited_for: bool) -> Self {
        Self { waited_for, ..self }
    }

    /// Sets whether its holder still has it.
    #[must_use]
    pub fn with_standing(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// Sets what its holder tells of itself.
    #[must_use]
    pub fn with_data(self, data: impl Into<Option<Data>>) -> Self {
        Self { data: data.into(), ..self }
    }
}

/// Whether a lease that lives is its holder's.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Standing {
    /// It is, and may be renewed.
    #[default]
    Held,
    /// Its holder has [released](How::Keep) it, and the name stays taken until its expiry.
    Kept,
    /// It was [revoked](How::Revoke): the name stays taken until its expiry, or until its holder frees it.
    Revoked,
}

impl Standing {
    /// The standing as a number, to be stored.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Held => 0,
            Self::Kept => 1,
            Self::Revoked => 2,
        }
    }

    /// The standing that was stored. A number that there is not counts as [`Revoked`](Self::Revoked), so that
    /// nothing is believed to be held that is not.
    #[must_use]
    pub const fn of_code(code: u8) -> Self {
        match code {
            0 => Self::Held,
            1 => Self::Kept,
            _ => Self::Revoked,
        }
    }
}

/// A hint from the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wakeup {
    /// Hints were seen to arrive, one that was sent to oneself for example: from here on, polling may be
    /// slow. Where it is said and not true, waiters wait for a second or two longer than they need.
    Listening,
    /// A name was released.
    Released {
        /// The name.
        name: LockName,
        /// By whom.
        by: Releaser,
    },
    /// Hints may have been missed: ask for everything.
    Missed,
}

/// Who released a name, as far as a hint tells.
///
/// Where hints tell this, processes that wait for a lock take turns: whoever has had it least recently asks first. For that
/// all that listen have to hear the same releases in the same order, each its own among them. Engines that share a backend
/// count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Releaser {
    /// Nobody knows. All that wait ask at once.
    Unknown,
    /// The backend whose [`wakeups`](LockBackend::wakeups) these are.
    Own,
    /// Another one, by a number that no two of them have, and that stays as long as it lives: 64 random bits, say.
    Other(u64),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_all_that_does_not_start_with_it() {
        let end = |prefix: &str| ListQuery::new(prefix).end();
        assert_eq!(end("job/"), Some("job0".to_owned()));
        assert_eq!(end("\u{7f}"), Some("\u{80}".to_owned()));
        assert_eq!(end("a\u{d7ff}"), Some("a\u{e000}".to_owned()));
        assert_eq!(end("a\u{10ffff}\u{10ffff}"), Some("b".to_owned()));
        assert_eq!((end(""), end("\u{10ffff}")), (None, None));
        for prefix in ["job/", "é", "🦀", "z"] {
            let end = end(prefix).unwrap();
            assert!(format!("{prefix}\u{10ffff}\u{10ffff}") < end && *prefix < *end, "{prefix}");
        }
    }
}
