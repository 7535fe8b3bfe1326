//! A backend that fails on purpose, in front of any other.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use database_locks_core::async_trait;
use database_locks_core::fence::Fence;
use database_locks_core::{
    Capabilities, Claim, Error, ErrorKind, LeaseInfo, ListQuery, LockBackend, Release, Released,
    Renewal, Renewed, Result, Verdict, Wakeup, Wakeups,
};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

/// A call of [`LockBackend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`LockBackend::acquire`].
    Acquire,
    /// [`LockBackend::renew`].
    Renew,
    /// [`LockBackend::release`].
    Release,
    /// [`LockBackend::list`].
    List,
    /// [`LockBackend::clean_up`].
    CleanUp,
    /// [`LockBackend::wakeups`].
    Wakeups,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails as `Unavailable` before it reaches the store.
    Refuse,
    /// The store does what was asked, and the answer is lost: it fails as `Unavailable`.
    LoseAnswer,
    /// It never reaches the store and never answers.
    Hang,
    /// The store does what was asked, and no answer ever comes. A stream of wake-ups says that it
    /// listens, and then nothing.
    HangAnswer,
    /// It reaches the store this much later.
    Delay(Duration),
    /// The store does what was asked, and the answer comes this much later.
    DelayAnswer(Duration),
}

/// A [`LockBackend`] that passes calls on to another one, counts them, and makes them fail as a
/// test says.
///
/// ```
/// # use std::sync::Arc;
/// use database_locks_conformance::{Client, Fault, FaultyBackend, Verb};
///
/// fn flaky(client: Client) -> Arc<FaultyBackend> {
///     let faulty = FaultyBackend::new(client);
///     faulty.once(Verb::Acquire, Fault::LoseAnswer); // the first claim
///     faulty.always(Verb::Renew, Fault::Hang); // every renewal, until `heal`
///     faulty
/// }
/// ```
#[derive(Debug)]
pub struct FaultyBackend {
    inner: Arc<dyn LockBackend>,
    plan: Mutex<HashMap<Verb, Plan>>,
    calls: watch::Sender<HashMap<Verb, Calls>>,
}

#[derive(Debug, Default)]
struct Plan {
    next: VecDeque<Fault>,
    standing: Option<Fault>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Calls {
    begun: usize,
    ended: usize,
}

impl FaultyBackend {
    /// A backend that behaves as `inner` does, so far.
    #[must_use]
    pub fn new(inner: Arc<dyn LockBackend>) -> Arc<Self> {
        Arc::new(Self { inner, plan: Mutex::default(), calls: watch::Sender::default() })
    }

    /// Spoils one call of `verb`: the next, or the one after those that are spoiled already.
    pub fn once(&self, verb: Verb, fault: Fault) {
        self.with_plan(verb, |plan| plan.next.push_back(fault));
    }

    /// Spoils every call of `verb`, after those that [`once`](Self::once) spoils.
    pub fn always(&self, verb: Verb, fault: Fault) {
        self.with_plan(verb, |plan| plan.standing = Some(fault));
    }

    /// Lets later calls of `verb` through again. A call that hangs goes on hanging.
    pub fn heal(&self, verb: Verb) {
        self.with_plan(verb, |plan| *plan = Plan::default());
    }

    /// How many calls of `verb` have begun.
    #[must_use]
    pub fn begun(&self, verb: Verb) -> usize {
        self.calls.borrow().get(&verb).copied().unwrap_or_default().begun
    }

    /// Completes once `count` calls of `verb` have begun, counted from the start.
    ///
    /// Cancel safe.
    pub async fn until_begun(&self, verb: Verb, count: usize) {
        self.until(verb, |calls| calls.begun >= count).await;
    }

    /// Completes once no call of `verb` is under way: each has been answered or dropped.
    ///
    /// Cancel safe.
    pub async fn until_quiet(&self, verb: Verb) {
        self.until(verb, |calls| calls.begun == calls.ended).await;
    }

    async fn until(&self, verb: Verb, condition: impl Fn(Calls) -> bool) {
        let mut calls = self.calls.subscribe();
        let seen =
            calls.wait_for(|calls| condition(calls.get(&verb).copied().unwrap_or_default())).await;
        // The sender is a field of `self`, so that the channel cannot be closed here.
        debug_assert!(seen.is_ok());
    }

    fn with_plan<T>(&self, verb: Verb, change: impl FnOnce(&mut Plan) -> T) -> T {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        change(plan.entry(verb).or_default())
    }

    async fn spoil<T>(&self, verb: Verb, call: BoxFuture<'_, Result<T>>) -> Result<T> {
        let _call = CallUnderWay::begin(&self.calls, verb);
        match self.with_plan(verb, |plan| plan.next.pop_front().or(plan.standing)) {
            None => call.await,
            Some(Fault::Refuse) => Err(unavailable("the call was refused by the test")),
            Some(Fault::LoseAnswer) => {
                call.await?;
                Err(unavailable("the answer was lost by the test"))
            }
            Some(Fault::Hang) => pending().await,
            Some(Fault::HangAnswer) => {
                call.await?;
                pending().await
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                call.await
            }
            Some(Fault::DelayAnswer(time)) => {
                let answer = call.await;
                tokio::time::sleep(time).await;
                answer
            }
        }
    }
}

#[async_trait]
impl LockBackend for FaultyBackend {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.spoil(Verb::Acquire, self.inner.acquire(claims)).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.spoil(Verb::Renew, self.inner.renew(renewals)).await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        self.spoil(Verb::Release, self.inner.release(releases)).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        self.spoil(Verb::List, self.inner.list(query)).await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.spoil(Verb::CleanUp, self.inner.clean_up(idle)).await
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        let deaf = self.with_plan(Verb::Wakeups, |plan| plan.standing == Some(Fault::HangAnswer));
        if deaf {
            let listening = futures_util::stream::iter([Wakeup::Listening]);
            return Ok(Some(Wakeups::new(listening.chain(futures_util::stream::pending()))));
        }
        self.spoil(Verb::Wakeups, self.inner.wakeups()).await
    }

    fn fence(&self) -> Option<Fence> {
        self.inner.fence()
    }
}

/// Counts a call, whether it is answered or dropped.
struct CallUnderWay<'a> {
    calls: &'a watch::Sender<HashMap<Verb, Calls>>,
    verb: Verb,
}

impl<'a> CallUnderWay<'a> {
    fn begin(calls: &'a watch::Sender<HashMap<Verb, Calls>>, verb: Verb) -> Self {
        calls.send_modify(|calls| calls.entry(verb).or_default().begun += 1);
        Self { calls, verb }
    }
}

impl Drop for CallUnderWay<'_> {
    fn drop(&mut self) {
        self.calls.send_modify(|calls| calls.entry(self.verb).or_default().ended += 1);
    }
}

fn unavailable(message: &str) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}
