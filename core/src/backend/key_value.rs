//! A lock backend for stores that can compare and set, such as Redis, etcd, `DynamoDB` or a file.
//!
//! Implement [`KeyValue`], four small methods, and [`KeyValueBackend`] makes a
//! [`LockBackend`] of it: it asks [`Ledger`] for decisions, keeps what is known of a
//! name as one value, and decides again where somebody else has changed that value since it was read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::ledger::Ledger;
use crate::backend::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, Release, Released, Renewal, Renewed,
    Verdict, Wakeups,
};
use crate::error::{Error, ErrorKind, Result};
use crate::words::name::LockName;

/// How often what others have changed in the meantime is decided again, within one request.
const ROUNDS: u32 = 8;
/// How many names are read at once where all are looked through.
const PAGE: usize = 500;
/// At most so many names are forgotten by one call of `clean_up`.
const FORGOTTEN_AT_ONCE: usize = 1_000;

/// A store that holds a text for each name, and can write one if it is still as it was read.
///
/// # Errors
///
/// An error means that nobody can say what was done. Those that may pass are
/// [`Unavailable`](ErrorKind::Unavailable); leave timeouts and repetitions to the engine.
///
/// # Cancel safety
///
/// The future of a call may be dropped. A write may then have been done or not; a connection with an
/// unfinished request on it must not be used again.
#[async_trait]
pub trait KeyValue: fmt::Debug + Send + Sync + 'static {
    /// What the store is and can do. Constant for its life.
    fn capabilities(&self) -> Capabilities;

    /// Reads the values of `names`, an entry for each in their order, and then the time.
    ///
    /// The time is the store's own clock, since 1970, and not before any of the values were read.
    async fn load(&self, names: &[LockName]) -> Result<Loaded>;

    /// Carries out each write that [still holds](Write), atomically for itself, and answers which.
    ///
    /// What was written survives a restart of the store. Where nobody can say whether a write was heard,
    /// answer with an error, and do not repeat it: the engine asks again.
    async fn store(&self, writes: &[Write]) -> Result<Vec<bool>>;

    /// The first `limit` names, in the order of their bytes, that are not before `first`. The end is
    /// where there are fewer.
    async fn names(&self, first: &str, limit: usize) -> Result<Vec<LockName>>;

    /// As of [`LockBackend::wakeups`], for stores that tell waiters of a [hint](Write::hint).
    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        Ok(None)
    }
}

/// What was read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// The time by the store's clock, since 1970.
    pub now: Duration,
    /// The value of each name, `None` for a name that has none.
    pub values: Vec<Option<Stored>>,
}

impl Loaded {
    /// `values`, none of which was read after `now`.
    #[must_use]
    pub const fn new(now: Duration, values: Vec<Option<Stored>>) -> Self {
        Self { now, values }
    }
}

/// A value, and what it is told from others by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stored {
    /// The text that was written.
    pub value: String,
    /// Whatever the store tells versions of a value by. The value itself will do.
    pub version: String,
}

impl Stored {
    /// A value of this version.
    pub fn new(value: impl Into<String>, version: impl Into<String>) -> Self {
        Self { value: value.into(), version: version.into() }
    }

    /// A value that is told from others by itself.
    pub fn versioned_by_itself(value: impl Into<String>) -> Self {
        let value = value.into();
        Self { version: value.clone(), value }
    }
}

/// A value to be written, if that still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Write {
    /// Whose value.
    pub name: LockName,
    /// The write holds only while the name's value is of this version; `None`: while it has no value.
    pub version: Option<String>,
    /// The write holds only before this moment by the store's clock, since 1970.
    pub before: Option<Duration>,
    /// The new value, `None` to delete it.
    pub value: Option<String>,
    /// Whether somebody waits for the name, which is released: a store that can, tells them.
    pub hint: bool,
}

/// A lock backend on a [`KeyValue`] store.
#[derive(Debug)]
pub struct KeyValueBackend<S>(S);

impl<S: KeyValue> KeyValueBackend<S> {
    /// A lock backend on `store`.
    pub const fn new(store: S) -> Self {
        Self(store)
    }

    /// The store.
    pub const fn store(&self) -> &S {
        &self.0
    }

    /// Lets `decide` change the ledger of each item's name, and writes what has changed.
    async fn decide<I: Sync, O: Clone + Send>(
        &self,
        items: &[I],
        name: fn(&I) -> &LockName,
        skipped: O,
        decide: fn(&mut State, &I) -> O,
    ) -> Result<Vec<O>> {
        let mut answers = vec![skipped.clone(); items.len()];
        let mut open: Vec<usize> = (0..items.len()).collect();
        for _ in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            let names: BTreeSet<&LockName> = open.iter().map(|&i| name(&items[i])).collect();
            let names: Vec<LockName> = names.into_iter().cloned().collect();
            let mut states = self.read(&names).await?;
            for &i in &open {
                if let Some(state) = states.get_mut(name(&items[i])) {
                    answers[i] = decide(state, &items[i]);
                }
            }
            let undone = self.write(&states).await?;
            open.retain(|&i| undone.contains(name(&items[i])));
            for &i in &open {
                answers[i] = skipped.clone();
            }
        }
        Ok(answers)
    }

    async fn read(&self, names: &[LockName]) -> Result<BTreeMap<LockName, State>> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let Loaded { now, values } = self.0.load(names).await?;
        if values.len() != names.len() {
            let message =
                format!("the store gave {} values of {} names", values.len(), names.len());
            return Err(self.broken(message));
        }
        let states = names.iter().zip(values).map(|(name, stored)| {
            let (before, version) = match stored {
                None => (Ledger::default(), None),
                Some(Stored { value, version }) => {
                    let ledger = serde_json::from_str(&value).map_err(|error| {
                        self.broken(format!("the value of a name cannot be read: {error}"))
                            .with_lock(name)
                    })?;
                    (ledger, Some(version))
                }
            };
            let ledger = before.clone();
            Ok((name.clone(), State { ledger, before, version, wall: now, hint: false }))
        });
        states.collect()
    }

    /// Writes what was decided, and tells what could not be written.
    async fn write(&self, states: &BTreeMap<LockName, State>) -> Result<BTreeSet<LockName>> {
        let changed = states.iter().filter(|(_, state)| state.ledger != state.before);
        let writes: Vec<Write> = changed
            .map(|(name, state)| {
                let value = serde_json::to_string(&state.ledger)
                    .map_err(|error| self.broken(error.to_string()))?;
                Ok(state.write(name, Some(value)))
            })
            .collect::<Result<_>>()?;
        Ok(self.carry_out(&writes).await?.1)
    }

    /// How many writes were carried out, and the names of the others.
    async fn carry_out(&self, writes: &[Write]) -> Result<(u64, BTreeSet<LockName>)> {
        if writes.is_empty() {
            return Ok((0, BTreeSet::new()));
        }
        let done = self.0.store(writes).await?;
        if done.len() != writes.len() {
            let message =
                format!("the store gave {} answers to {} writes", done.len(), writes.len());
            return Err(self.broken(message));
        }
        let undone = writes.iter().zip(&done).filter(|(_, done)| !**done);
        let undone: BTreeSet<LockName> = undone.map(|(write, _)| write.name.clone()).collect();
        Ok(((writes.len() - undone.len()) as u64, undone))
    }

    fn broken(&self, message: String) -> Error {
        Error::new(
            ErrorKind::Backend,
            format!("{message}: this is a defect of the store, or of its data"),
        )
        .with_backend(self.0.capabilities().backend)
    }
}

#[async_trait]
impl<S: KeyValue> LockBackend for KeyValueBackend<S> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities().with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.decide(
            claims,
            |claim| &claim.name,
            Verdict::Skipped,
            |state, claim| {
                let (now, micros) = (state.now(), state.micros());
                state.ledger.acquire(claim, now, micros)
            },
        )
        .await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.decide(
            renewals,
            |renewal| &renewal.lease.name,
            Renewed::Skipped,
            |state, renewal| {
                let now = state.now();
                state.ledger.renew(renewal, now)
            },
        )
        .await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.decide(
            releases,
            |release| &release.lease.name,
            Released::Skipped,
            |state, release| {
                let now = state.now();
                let (released, hint) = state.ledger.release(release, now);
                state.hint |= hint;
                released
            },
        )
        .await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let after = query.after.as_ref().map(|(name, attempt)| (name.as_str(), *attempt));
        let mut first = query.prefix.as_str().max(after.map_or("", |(name, _)| name)).to_owned();
        let mut page = Vec::new();
        while page.len() < limit {
            let names = self.0.names(&first, PAGE).await?;
            let is_last = names.len() < PAGE;
            let Some(last) = names.last() else { break };
            first = next_after(last);
            let names: Vec<LockName> =
                names.into_iter().take_while(|n| n.as_str().starts_with(&query.prefix)).collect();
            for (name, state) in self.read(&names).await? {
                page.extend(state.ledger.list(&name, state.now()).into_iter().filter(|info| {
                    after.is_none_or(|after| (name.as_str(), info.lease.attempt) > after)
                }));
            }
            if is_last || !first.starts_with(&query.prefix) {
                break;
            }
        }
        page.truncate(limit);
        Ok(page)
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let (mut first, mut forgotten) = (String::new(), 0);
        while forgotten < FORGOTTEN_AT_ONCE as u64 {
            let names = self.0.names(&first, PAGE).await?;
            let Some(last) = names.last() else { break };
            first = next_after(last);
            let states = self.read(&names).await?;
            let removals: Vec<Write> = states
                .iter()
                .filter(|(_, state)| state.ledger.is_idle(idle, state.now(), state.micros()))
                .map(|(name, state)| state.write(name, None))
                .collect();
            forgotten += self.carry_out(&removals).await?.0;
            if names.len() < PAGE {
                break;
            }
        }
        Ok(forgotten)
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        self.0.wakeups().await
    }
}

/// What is known of a name, and what is to become of it.
#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// As it was read.
    before: Ledger,
    version: Option<String>,
    wall: Duration,
    hint: bool,
}

impl State {
    /// The moment of the decision. Where the clock was set back, time stands still for the name until
    /// the clock has caught up.
    fn now(&self) -> Duration {
        self.wall.max(self.before.touched)
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.wall.as_micros()).unwrap_or(u64::MAX)
    }

    fn write(&self, name: &LockName, value: Option<String>) -> Write {
        Write {
            name: name.clone(),
            version: self.version.clone(),
            before: self.ledger.holds_until(&self.before, self.now()),
            value,
            hint: self.hint,
        }
    }
}

/// The least text that is after a name and can be before another one: names have no control characters.
fn next_after(name: &LockName) -> String {
    format!("{name}\0")
}
