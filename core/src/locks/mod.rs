//! The entrance: one backend and one engine, for all locks of a process.

pub(crate) mod guard;
pub(crate) mod lease;
pub(crate) mod request;
pub(crate) mod rwlock;
pub(crate) mod semaphore;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::disabled;
use crate::backend::{Capabilities, LeaseInfo, ListQuery, LockBackend, Release, Released};
use crate::engine::Engine;
use crate::engine::runtime::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::health::Health;
use crate::locks::request::{Defaults, LockRequest, Requests};
use crate::locks::rwlock::RwLock;
use crate::locks::semaphore::Semaphore;
use crate::observer::{Observer, Observers};
use crate::words::identity::LeaseId;
use crate::words::name::LockName;
use crate::words::owner::Owner;
use crate::words::share::Share;
use crate::words::ttl::Ttl;

/// Locks on one backend.
///
/// Cheap to clone; all clones share one engine, with a thread of its own. The engine ends when the
/// last clone and the last guard have gone. A release that was only queued when the process exits
/// is not sent: await [`release`](crate::Guard::release) or [`shutdown`](Self::shutdown) first.
///
/// The engine logs from its thread. A `tracing` subscriber that blocks, on a full pipe for example, stops it, so that leases
/// expire: give it a writer that does not block.
///
/// # Which lock should you use?
///
/// - [`lock`](Self::lock): one holder at a time.
/// - [`rwlock`](Self::rwlock): many readers or one writer.
/// - [`semaphore`](Self::semaphore): up to a number of permits at a time.
#[derive(Debug, Clone)]
pub struct Locks {
    requests: Requests,
}

impl Locks {
    /// Locks on `backend`, with the default options.
    ///
    /// # Panics
    ///
    /// If the system gives no thread; [`builder`](Self::builder) reports that as an error.
    #[must_use]
    pub fn new(backend: impl LockBackend) -> Self {
        match Self::builder().build(Arc::new(backend)) {
            Ok(locks) => locks,
            Err(error) => panic!("no locks: {error}"),
        }
    }

    /// Chooses options first.
    pub fn builder() -> LocksBuilder {
        LocksBuilder::default()
    }

    /// A lock that one can hold at a time.
    pub fn lock(&self, name: impl AsRef<str>) -> LockRequest {
        self.requests.request(LockName::new(name), Ok(Share::ALL))
    }

    /// A lock that many readers or one writer can hold.
    pub fn rwlock(&self, name: impl AsRef<str>) -> RwLock {
        RwLock::new(self.requests.clone(), LockName::new(name))
    }

    /// A lock that has `capacity` permits.
    pub fn semaphore(&self, name: impl AsRef<str>, capacity: u32) -> Semaphore {
        Semaphore::new(self.requests.clone(), LockName::new(name), capacity)
    }

    /// All live leases whose names start with `prefix`, by name.
    ///
    /// # Errors
    ///
    /// What the database reports.
    pub async fn list(&self, prefix: impl Into<String>) -> Result<Vec<LeaseInfo>> {
        let mut query = ListQuery::new(prefix);
        let mut all = Vec::new();
        loop {
            let page = self.list_page(query.clone()).await?;
            let full = page.len() >= query.limit as usize;
            query.after = page.last().map(|info| (info.lease.name.clone(), info.lease.attempt));
            all.extend(page);
            if !full {
                return Ok(all);
            }
        }
    }

    /// One page of live leases.
    ///
    /// # Errors
    ///
    /// What the database reports.
    pub async fn list_page(&self, query: ListQuery) -> Result<Vec<LeaseInfo>> {
        self.requests.engine.call("list", |backend| async move { backend.list(&query).await }).await
    }

    /// Lets exactly this lease, as [`list`](Self::list) named it, be renewed no more. True if it was alive.
    ///
    /// Its holder learns of the loss by its next renewal, and frees the name when its work has stopped. Otherwise,
    /// where the holder has gone or [does not renew](LockRequest::auto_renew), the name stays taken until the lease
    /// expires; one without a TTL does not. Two never work at once, unlike after a
    /// [release by force](Self::force_release): try this first.
    ///
    /// # Errors
    ///
    /// What the database reports, [`ErrorKind::Unsupported`] for a lease of another client that shares the table,
    /// such as a Django app, and [`ErrorKind::Unavailable`] if somebody keeps its row locked.
    pub async fn revoke(&self, lease: &LeaseId) -> Result<bool> {
        self.release("revoke", Release::revoke(lease.clone())).await
    }

    /// Ends exactly this lease, as [`list`](Self::list) named it, whoever holds it; it cannot hit
    /// the next holder. True if it was alive. Its holder learns of the loss by its next renewal.
    ///
    /// A Django app that shares the table gives its leases no identity of their own: two in a row by
    /// one of its processes look alike, and its next renewal takes the lock again.
    ///
    /// # Errors
    ///
    /// What the database reports, and [`ErrorKind::Unavailable`] if somebody keeps its row locked.
    pub async fn force_release(&self, lease: &LeaseId) -> Result<bool> {
        self.release("force_release", Release::free(lease.clone())).await
    }

    async fn release(&self, operation: &'static str, release: Release) -> Result<bool> {
        if !self.is_enabled() {
            return Ok(false);
        }
        let releases = [release];
        self.requests
            .engine
            .call(operation, |backend| async move {
                loop {
                    match backend.release(&releases).await?.first() {
                        Some(Released::Done) => return Ok(true),
                        Some(Released::Lost(_)) | None => return Ok(false),
                        Some(Released::Skipped) => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            })
            .await
    }

    /// Forgets names that nobody has held for `idle`, and answers how many. Never needed for
    /// correctness; a day or more is a good choice.
    ///
    /// # Errors
    ///
    /// What the database reports.
    pub async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let mut all = 0;
        loop {
            let some = self
                .requests
                .engine
                .call("clean_up", move |b| async move { b.clean_up(idle).await })
                .await?;
            all += some;
            if some == 0 {
                return Ok(all);
            }
        }
    }

    /// Ends everything, and waits until queued releases are flushed. Whoever waits for a lock gets
    /// an error; leases that are still held are released, and their holders learn
    /// [`LossReason::Shutdown`](crate::LossReason::Shutdown).
    pub async fn shutdown(&self) {
        self.requests.engine.shutdown().await;
    }

    /// Whether these are locks at all: false where [`LocksBuilder::disabled`] switched them off.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.requests.defaults.enabled
    }

    /// How these locks are, as far as this process knows: for a readiness endpoint. Asks the database nothing, and waits for
    /// nobody.
    #[must_use]
    pub fn health(&self) -> Health {
        self.requests.engine.health()
    }

    /// What the backend is and can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.requests.engine.backend().capabilities()
    }
}

/// Options that hold for all locks of a [`Locks`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct LocksBuilder {
    ttl: Result<Ttl>,
    renew_before: Option<Duration>,
    owner: Owner,
    grace: Duration,
    request_timeout: Duration,
    on_current_runtime: bool,
    disabled: bool,
    observers: Vec<Arc<dyn Observer>>,
    forget_idle: Option<Duration>,
}

impl Default for LocksBuilder {
    fn default() -> Self {
        Self {
            ttl: Ok(Ttl::DEFAULT),
            renew_before: None,
            owner: Owner::of_this_process(),
            grace: Duration::ZERO,
            request_timeout: Duration::from_secs(5),
            on_current_runtime: false,
            disabled: false,
            observers: Vec::new(),
            forget_idle: None,
        }
    }
}

impl LocksBuilder {
    /// The TTL of requests that choose none. Default 10 s.
    pub fn default_ttl(mut self, ttl: impl TryInto<Ttl, Error: Into<Error>>) -> Self {
        self.ttl = ttl.try_into().map_err(Into::into);
        self
    }

    /// The [`renew_before`](LockRequest::renew_before) of requests that choose none; it must be less
    /// than the [default TTL](Self::default_ttl). A request with a shorter TTL of its own gets half
    /// that TTL if this is more. Default 2 s, or half the TTL if that is less.
    pub fn default_renew_before(mut self, renew_before: Duration) -> Self {
        self.renew_before = Some(renew_before);
        self
    }

    /// The owner of requests that name none. Default `hostname.pid`, as a label only.
    pub fn default_owner(mut self, owner: Owner) -> Self {
        self.owner = owner;
        self
    }

    /// The [grace](LockRequest::grace) of requests that choose none. Default zero.
    pub fn default_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long one request to the database may take before its outcome counts as unknown. It also
    /// bounds how long a try waits for an answer. Default 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Forgets names that nobody has held for `idle`, in the background and as long as these locks are there:
    /// [`clean_up`](Locks::clean_up), some eight times in that time, though no more than once a second and about once
    /// an hour at least. Default never, so that a table keeps a row for each name that was ever locked.
    ///
    /// Never needed for correctness. One process of many is enough; all of them do no harm. A day or more is a
    /// good choice.
    pub fn forget_idle(mut self, idle: Duration) -> Self {
        self.forget_idle = Some(idle);
        self
    }

    /// Runs the engine on the tokio runtime of the caller, by that runtime's clock, instead of on
    /// a thread of its own: for tests that pause time. If that runtime is blocked, renewals are
    /// late.
    pub fn on_current_runtime(mut self) -> Self {
        self.on_current_runtime = true;
        self
    }

    /// The off switch: true grants every request at once, without a database, and warns once, in the
    /// log. For where nobody else can be in the way, or the database has to be done without.
    ///
    /// **Nothing is excluded any more.** Otherwise all is as if every lock were free: options are
    /// checked, explicit owners join, tokens grow, counted from the time as databases do. A lease is
    /// never lost, but by [`shutdown`](Locks::shutdown). There is none to [`list`](Locks::list) or
    /// to [release by force](Locks::force_release).
    pub fn disabled(mut self, disabled: bool) -> Self {
        self.disabled = disabled;
        self
    }

    /// Tells `observer` what becomes of requests and leases, beside those that were given before: for metrics, for example.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Whether the defaults for requests can be used, and go together: for whoever reads them from
    /// somewhere, and can say where. Starts nothing; [`build`](Self::build) looks as well.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a TTL that cannot be, and a renewal that does not fit it.
    pub fn check_defaults(&self) -> Result<()> {
        self.defaults().map(drop)
    }

    /// Starts the engine.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for an option that cannot be used, and [`ErrorKind::Backend`]
    /// where the system gives no thread.
    pub fn build(self, backend: Arc<dyn LockBackend>) -> Result<Locks> {
        let prepared = self.prepare()?;
        let backend = if prepared.is_enabled() { backend } else { disabled::backend() };
        Ok(prepared.start(backend))
    }

    /// Connects a backend where the engine will run, so that its connections belong to the
    /// engine's runtime and not to the caller's, and starts the engine. Locks that are
    /// [switched off](Self::disabled) do not connect.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), and the errors of `connect`.
    pub async fn open(
        self,
        connect: impl Future<Output = Result<Arc<dyn LockBackend>>> + Send + 'static,
    ) -> Result<Locks> {
        let prepared = self.prepare()?;
        let backend = if prepared.is_enabled() {
            let observers = prepared.observers.clone();
            let connect = async move {
                let connected = connect.await;
                if connected.is_err() {
                    // The process may end now.
                    observers.flush().await;
                }
                connected
            };
            prepared.runtime.run(connect).await?
        } else {
            disabled::backend()
        };
        Ok(prepared.start(backend))
    }

    fn prepare(self) -> Result<Prepared> {
        if self.request_timeout.is_zero() {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                "the request_timeout is zero: give the database some time to answer",
            ));
        }
        if self.forget_idle.is_some_and(|idle| idle.is_zero()) {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                "forget_idle is zero: give the time for which names have to be idle, such as a day",
            ));
        }
        let defaults = self.defaults()?;
        let runtime =
            if self.on_current_runtime { Runtime::current() } else { Runtime::own_thread() }?;
        let Self { request_timeout, forget_idle, observers, .. } = self;
        let observers = Observers::new(observers);
        Ok(Prepared { runtime, defaults, request_timeout, forget_idle, observers })
    }

    fn defaults(&self) -> Result<Defaults> {
        let defaults = Defaults {
            ttl: self.ttl.clone()?,
            renew_before: self.renew_before,
            owner: self.owner.clone(),
            grace: self.grace,
            enabled: !self.disabled,
        };
        defaults.check()?;
        Ok(defaults)
    }
}

/// Options that were checked, and a place for the engine.
struct Prepared {
    runtime: Runtime,
    defaults: Defaults,
    request_timeout: Duration,
    forget_idle: Option<Duration>,
    observers: Observers,
}

impl Prepared {
    fn is_enabled(&self) -> bool {
        self.defaults.enabled
    }

    fn start(self, backend: Arc<dyn LockBackend>) -> Locks {
        let Self { runtime, defaults, request_timeout, forget_idle, observers } = self;
        let engine = Engine::start(runtime, backend, request_timeout, forget_idle, observers);
        let engine = Arc::new(engine);
        Locks { requests: Requests { engine, defaults } }
    }
}
