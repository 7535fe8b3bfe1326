//! A request for a lock, and its options.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tracing::Instrument;

use crate::backend::{Busy, Claim};
use crate::engine::backoff::Retry;
use crate::engine::hold::Hold;
use crate::engine::request::Request;
use crate::engine::{Engine, OnWait};
use crate::error::{Error, ErrorKind, Result};
use crate::locks::guard::Guard;
use crate::locks::lease::state::{RenewBefore, Terms};
use crate::locks::lease::{Lease, OnLost};
use crate::spans;
use crate::words::data::Data;
use crate::words::identity::Attempt;
use crate::words::loss::LossReason;
use crate::words::name::LockName;
use crate::words::owner::Owner;
use crate::words::share::Share;
use crate::words::ttl::Ttl;

/// Makes requests that share an engine and defaults.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    pub(crate) engine: Arc<Engine>,
    pub(crate) defaults: Defaults,
}

/// What holds for requests that do not choose.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) ttl: Ttl,
    pub(crate) renew_before: Option<Duration>,
    pub(crate) owner: Owner,
    pub(crate) grace: Duration,
    /// Whether there is a database at all.
    pub(crate) enabled: bool,
}

impl Requests {
    pub(crate) fn request(&self, name: Result<LockName>, share: Result<Share>) -> LockRequest {
        let Self { engine, defaults } = self.clone();
        LockRequest {
            engine,
            name,
            share,
            owner: Ok(defaults.owner.clone()),
            ttl: Ok(defaults.ttl),
            margin: None,
            renew_before: None,
            auto_renew: true,
            grace: defaults.grace,
            data: Ok(None),
            timeout: None,
            retry: Retry::default(),
            on_wait: None,
            on_lost: None,
            defaults,
        }
    }
}

impl Defaults {
    /// Checks that the defaults go together.
    pub(crate) fn check(&self) -> Result<()> {
        Terms::new(self.ttl, None, self.renew_before(self.ttl), true).map(drop)
    }

    /// When to renew a lease of this TTL for a holder who does not choose.
    fn renew_before(&self, ttl: Ttl) -> RenewBefore {
        match (self.renew_before, ttl.duration()) {
            (None, _) => RenewBefore::default(),
            // It fits the default TTL, and so it fits a longer one.
            (Some(chosen), Some(ttl)) if self.ttl.duration().is_some_and(|own| own <= ttl) => {
                RenewBefore::Exactly(chosen)
            }
            (Some(chosen), _) => RenewBefore::AtMostHalf(chosen),
        }
    }
}

/// A request for a lock, made by [`Locks::lock`](crate::Locks::lock),
/// [`RwLock`](crate::RwLock) or [`Semaphore`](crate::Semaphore).
///
/// Options are checked when the lock is asked for: an unusable one is an error of
/// [`acquire`](Self::acquire), which names it.
#[must_use = "a request does nothing until it is acquired, tried or run"]
pub struct LockRequest {
    engine: Arc<Engine>,
    defaults: Defaults,
    name: Result<LockName>,
    share: Result<Share>,
    owner: Result<Owner>,
    ttl: Result<Ttl>,
    margin: Option<Duration>,
    renew_before: Option<Duration>,
    auto_renew: bool,
    grace: Duration,
    data: Result<Option<Data>>,
    timeout: Option<Duration>,
    retry: Retry,
    on_wait: Option<OnWait>,
    on_lost: Option<OnLost>,
}

impl LockRequest {
    /// Waits for at most this long. Without it, a request waits for as long as it takes, also
    /// through an outage of the database. The engine keeps the time, so that after a `fork`, which copies no threads, nobody
    /// does: make new locks there.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the lease lives on the server without being renewed: 100 ms to 24 h, or
    /// [`Ttl::Infinite`]. Default 10 s.
    pub fn ttl(mut self, ttl: impl TryInto<Ttl, Error: Into<Error>>) -> Self {
        self.ttl = ttl.try_into().map_err(Into::into);
        self
    }

    /// A renewal is due at the latest this long before the lease expires; it may come earlier.
    /// It must be less than the TTL. Default 2 s, or half the TTL if that is less, unless
    /// [`LocksBuilder::default_renew_before`](crate::LocksBuilder::default_renew_before) says
    /// otherwise.
    pub fn renew_before(mut self, renew_before: Duration) -> Self {
        self.renew_before = Some(renew_before);
        self
    }

    /// Whether the lease is renewed for as long as the guard lives. Default true. A lease that is
    /// not renewed is lost when its TTL has passed.
    pub fn auto_renew(mut self, auto_renew: bool) -> Self {
        self.auto_renew = auto_renew;
        self
    }

    /// Names the owner, up to 255 bytes. Two requests of one explicit owner do not exclude each
    /// other: from the same [`Locks`](crate::Locks), and for the same share, the second joins the
    /// live lease (one token, the first one's options; released with the last guard), from elsewhere
    /// it supersedes it.
    pub fn owner(mut self, owner: impl AsRef<str>) -> Self {
        self.owner = Owner::explicit(owner);
        self
    }

    /// How long an expired lease of somebody else is still respected. Default zero, unless
    /// [`LocksBuilder::default_grace`](crate::LocksBuilder::default_grace) says otherwise: right
    /// where one server's clock judges. On a cluster whose nodes judge by their own clocks, such as
    /// Galera, give at least what these may differ by.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// What the holder tells of itself, such as the address of a leader: up to 1 KiB of text, which whoever
    /// [lists](crate::Locks::list) the lease sees, and whoever finds the lock [busy](Busy). A request that joins a lease of
    /// its owner's changes nothing of it.
    pub fn data(mut self, data: impl Into<Arc<str>>) -> Self {
        self.data = Data::new(data).map(Some);
        self
    }

    /// How long before the server's expiry the holder gives up: what it takes to stop the work,
    /// and what the clocks' rates may differ by in a TTL. Default a fiftieth of the TTL, within
    /// 5 ms to 1 s.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// How a busy lock is asked for again. Default [`Retry::Adaptive`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Calls `callback` each time that the database says that the lock is busy, or cannot tell, while this request
    /// is the first in its process's queue. It is called by the future that waits, in the caller's task: what it takes
    /// delays that future alone, and a panic is the caller's.
    pub fn on_wait(mut self, callback: impl FnMut(&Busy) + Send + 'static) -> Self {
        self.on_wait = Some(Box::new(callback));
        self
    }

    /// Calls `callback` once if the lease is lost: see [`Lease::on_lost`].
    pub fn on_lost(mut self, callback: impl FnOnce(LossReason) + Send + 'static) -> Self {
        self.on_lost = Some(Box::new(callback));
        self
    }

    /// Waits for the lock, first come, first served within this [`Locks`](crate::Locks).
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future at any point gives up the place in the queue, and a lease that
    /// was granted meanwhile is released.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`] if it was not obtained in time, [`ErrorKind::Unavailable`] if the
    /// database could not be asked in time, [`ErrorKind::CapacityMismatch`] if the name is held
    /// with another capacity, [`ErrorKind::InvalidName`] and [`ErrorKind::InvalidOption`] for what
    /// cannot be asked for, and what the database refuses.
    pub async fn acquire(mut self) -> Result<Guard> {
        if self.timeout == Some(Duration::ZERO) {
            self.retry = Retry::Never;
        }
        let (timeout, name) = (self.timeout, self.name.clone()?);
        self.request().await?.ok_or_else(|| {
            let why = match timeout {
                Some(timeout) => format!("somebody else holds it, and the timeout is {timeout:?}"),
                None => "somebody else holds it, and the request asks only once".to_owned(),
            };
            Error::new(ErrorKind::Timeout, why).with_lock(&name).with_operation("acquire")
        })
    }

    /// Asks for the lock once: `None` where somebody else holds it.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), but never [`ErrorKind::Timeout`].
    pub async fn try_acquire(mut self) -> Result<Option<Guard>> {
        self.retry = Retry::Never;
        self.request().await
    }

    /// Waits for the lock, does `work` under it, and releases it. If the lease is lost, the work
    /// is dropped at its next await point.
    ///
    /// ```
    /// # use database_locks_core::{Locks, Result, LockBackend};
    /// # async fn example(locks: Locks) -> Result<()> {
    /// let sum = locks.lock("nightly").run(async |lease| {
    ///     // Let what you write to refuse tokens older than the newest that it has seen.
    ///     println!("working under token {}", lease.token());
    ///     1 + 1
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and releases the lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`ErrorKind::Lost`] if the lease was lost before the work
    /// was done.
    pub async fn run<T>(self, work: impl AsyncFnOnce(Lease) -> T) -> Result<T> {
        let guard = self.acquire().await?;
        let done = guard.run(work(guard.lease())).await?;
        if let Err(error) = guard.release().await {
            // The work was done while the lease was good.
            tracing::warn!(%error, "the lock was not released in an orderly way");
        }
        Ok(done)
    }

    async fn request(mut self) -> Result<Option<Guard>> {
        let (on_wait, on_lost) = (self.on_wait.take(), self.on_lost.take());
        let (engine, request) = self.into_request()?;
        let answer = if spans::may_be_wanted() {
            Self::request_in_spans(&engine, request, on_wait).await?
        } else {
            engine.request(request, on_wait).await?
        };
        let Some(hold) = answer else { return Ok(None) };
        if let Some(on_lost) = on_lost {
            hold.lease().on_lost(on_lost);
        }
        Ok(Some(Guard::new(hold)))
    }

    /// In a box, so that the futures of those who want no spans do not grow.
    fn request_in_spans(
        engine: &Engine,
        request: Request,
        on_wait: Option<OnWait>,
    ) -> BoxFuture<'_, Result<Option<Hold>>> {
        Box::pin(async move {
            let backend = engine.backend().capabilities().backend;
            let acquire = spans::Acquire::begin(&request.claim.name, backend, engine.clock());
            let asked = engine.request(request, on_wait).instrument(acquire.span().clone());
            let answer = acquire.end(asked.await);
            if let Ok(Some(hold)) = &answer {
                hold.lease().begin_span(backend);
            }
            answer
        })
    }

    fn into_request(self) -> Result<(Arc<Engine>, Request)> {
        let name = self.name?;
        let request = (|| {
            let can = self.engine.backend().capabilities();
            let (share, ttl) = (self.share?, self.ttl?);
            if share != Share::ALL && !can.shares {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "this backend has exclusive locks only",
                )
                .with_backend(can.backend));
            }
            if ttl.duration().is_some_and(|ttl| ttl < can.min_ttl) {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    format!(
                        "the TTL is shorter than is safe here: give at least {:?}",
                        can.min_ttl
                    ),
                )
                .with_backend(can.backend));
            }
            let renew_before = match self.renew_before {
                Some(chosen) => RenewBefore::Exactly(chosen),
                None => self.defaults.renew_before(ttl),
            };
            let terms = Terms::new(ttl, self.margin, renew_before, self.auto_renew)?;
            let terms = if self.defaults.enabled { terms } else { Terms::switched_off() };
            let asks_once = self.retry == Retry::Never;
            Ok(Request {
                id: self.engine.next_id(),
                claim: Claim {
                    name: name.clone(),
                    attempt: Attempt::new(),
                    share,
                    owner: self.owner?,
                    ttl,
                    grace: self.grace,
                    mark: None,
                    data: self.data?,
                    replaces: None,
                },
                terms,
                retry: self.retry,
                // Who asks once waits for no holder, though for an answer.
                timeout: if asks_once {
                    let longest = self.engine.request_timeout();
                    let chosen = self.timeout.filter(|timeout| !timeout.is_zero());
                    Some(chosen.map_or(longest, |timeout| timeout.min(longest)))
                } else {
                    self.timeout
                },
                on_busy: None,
                reply: None,
            })
        })();
        Ok((self.engine, request.map_err(|error: Error| error.with_lock(&name))?))
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockRequest")
            .field("name", &self.name)
            .field("share", &self.share)
            .field("owner", &self.owner)
            .field("ttl", &self.ttl)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
