//! Locks for code without async: the same requests and guards, by methods that wait on their
//! thread.
//!
//! ```
//! # use std::time::Duration;
//! # use database_locks_core::{Result, blocking::Locks};
//! # fn example(locks: Locks) -> Result<()> {
//! let guard = locks.lock("nightly").timeout(Duration::from_secs(5)).acquire()?;
//! println!("one of us works, under token {}", guard.token());
//! guard.release()?;
//!
//! locks.lock("nightly").run(|lease| -> Result<()> {
//!     for page in 0..10 {
//!         lease.check()?; // Lost? Then stop here.
//!         println!("page {page}");
//!     }
//!     Ok(())
//! })??;
//! # Ok(()) }
//! ```
//!
//! The engine has a thread of its own, so that a thread that waits here holds up nothing else: not
//! the renewal of its leases, nor that of other threads. No tokio runtime is needed, neither by
//! `main` nor by any other thread. Of [`Locks`] whose engine runs
//! [on a runtime of yours](crate::LocksBuilder::on_current_runtime) nothing moves while nobody
//! drives that runtime, and so whoever waits here waits for that, too.
//!
//! # Not on an async worker
//!
//! A thread that runs async tasks must not wait: the task that holds the lock may be one of those
//! that it should run, and then both wait for ever. There, that is inside a tokio task, a `LocalSet`
//! or a `block_on`, every method here that waits returns an error of kind
//! [`InvalidOption`](crate::ErrorKind::InvalidOption) at once and does nothing. Use
//! [`crate::Locks`] there, or wait inside `tokio::task::spawn_blocking` or
//! `tokio::task::block_in_place`.
//!
//! What is told is whether tokio limits how long the code may run at a time. It cannot be told
//! inside `tokio::task::unconstrained`, on other async runtimes, or in a destructor that a tokio
//! runtime calls while it shuts down: such a thread waits.

mod wait;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::fence::FenceSql;
use crate::backend::{Busy, Capabilities, LeaseInfo, ListQuery, LockBackend};
use crate::engine::backoff::Retry;
use crate::engine::runtime::Runtime;
use crate::error::{Error, Result};
use crate::health::Health;
use crate::locks::LocksBuilder;
use crate::locks::lease::Lease;
use crate::words::identity::{LeaseId, Token};
use crate::words::loss::LossReason;
use crate::words::name::LockName;
use crate::words::ttl::Ttl;

use self::wait::{wait, wait_at_most};

/// Locks on one backend, for code without async: the twin of [`crate::Locks`], into which and from
/// which it converts. Both may be used at once.
///
/// Cheap to clone. A release that was only queued when the process exits is not sent: call
/// [`release`](Guard::release) or [`shutdown`](Self::shutdown) first.
#[derive(Debug, Clone)]
pub struct Locks(crate::Locks);

impl Locks {
    /// Locks on `backend`, with the default options. For others,
    /// [build](crate::LocksBuilder::build) a [`crate::Locks`], and convert it.
    ///
    /// # Panics
    ///
    /// If the system gives no thread; [`LocksBuilder::build`](crate::LocksBuilder::build) reports
    /// that as an error.
    #[must_use]
    pub fn new(backend: impl LockBackend) -> Self {
        Self(crate::Locks::new(backend))
    }

    /// Connects a backend where the engine will run: the twin of
    /// [`LocksBuilder::open`](crate::LocksBuilder::open).
    ///
    /// # Errors
    ///
    /// As there, and [on an async worker](self#not-on-an-async-worker).
    pub fn open(
        options: LocksBuilder,
        connect: impl Future<Output = Result<Arc<dyn LockBackend>>> + Send + 'static,
    ) -> Result<Self> {
        wait(options.open(connect)).map(Self)
    }

    /// A lock that one can hold at a time.
    pub fn lock(&self, name: impl AsRef<str>) -> LockRequest {
        LockRequest(self.0.lock(name))
    }

    /// A lock that many readers or one writer can hold.
    pub fn rwlock(&self, name: impl AsRef<str>) -> RwLock {
        RwLock(self.0.rwlock(name))
    }

    /// A lock that has `capacity` permits.
    pub fn semaphore(&self, name: impl AsRef<str>, capacity: u32) -> Semaphore {
        Semaphore(self.0.semaphore(name, capacity))
    }

    /// All live leases whose names start with `prefix`, by name.
    ///
    /// # Errors
    ///
    /// What the database reports, and [on an async worker](self#not-on-an-async-worker).
    pub fn list(&self, prefix: impl Into<String>) -> Result<Vec<LeaseInfo>> {
        wait(self.0.list(prefix))
    }

    /// One page of live leases.
    ///
    /// # Errors
    ///
    /// What the database reports, and [on an async worker](self#not-on-an-async-worker).
    pub fn list_page(&self, query: ListQuery) -> Result<Vec<LeaseInfo>> {
        wait(self.0.list_page(query))
    }

    /// Lets exactly this lease be renewed no more: see [`crate::Locks::revoke`]. True if it was alive.
    ///
    /// # Errors
    ///
    /// As there, and [on an async worker](self#not-on-an-async-worker).
    pub fn revoke(&self, lease: &LeaseId) -> Result<bool> {
        wait(self.0.revoke(lease))
    }

    /// Ends exactly this lease, whoever holds it: see
    /// [`crate::Locks::force_release`]. True if it was alive.
    ///
    /// # Errors
    ///
    /// As there, and [on an async worker](self#not-on-an-async-worker).
    pub fn force_release(&self, lease: &LeaseId) -> Result<bool> {
        wait(self.0.force_release(lease))
    }

    /// Forgets names that nobody has held for `idle`, and answers how many: see
    /// [`crate::Locks::clean_up`].
    ///
    /// # Errors
    ///
    /// What the database reports, and [on an async worker](self#not-on-an-async-worker).
    pub fn clean_up(&self, idle: Duration) -> Result<u64> {
        wait(self.0.clean_up(idle))
    }

    /// Ends everything, and waits until queued releases are flushed. Whoever waits for a lock gets
    /// an error; leases that are still held are released, and their holders learn
    /// [`LossReason::Shutdown`].
    ///
    /// # Errors
    ///
    /// [On an async worker](self#not-on-an-async-worker), where nothing is shut down.
    pub fn shutdown(&self) -> Result<()> {
        wait(async {
            self.0.shutdown().await;
            Ok(())
        })
    }

    /// Whether these are locks at all: see [`crate::Locks::is_enabled`].
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.0.is_enabled()
    }

    /// How these locks are: see [`crate::Locks::health`]. It waits for nobody, and may be called anywhere.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.health()
    }

    /// What the backend is and can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

impl From<crate::Locks> for Locks {
    fn from(locks: crate::Locks) -> Self {
        Self(locks)
    }
}

impl From<Locks> for crate::Locks {
    fn from(locks: Locks) -> Self {
        locks.0
    }
}

/// A lock that many readers or one writer can hold: the twin of [`crate::RwLock`].
#[derive(Debug, Clone)]
#[must_use = "choose read() or write()"]
pub struct RwLock(crate::RwLock);

impl RwLock {
    /// Asks to hold it beside other readers.
    pub fn read(&self) -> LockRequest {
        LockRequest(self.0.read())
    }

    /// Asks to hold it alone.
    pub fn write(&self) -> LockRequest {
        LockRequest(self.0.write())
    }
}

/// A number of permits, shared by everybody: the twin of [`crate::Semaphore`].
#[derive(Debug, Clone)]
#[must_use = "choose how many permits()"]
pub struct Semaphore(crate::Semaphore);

impl Semaphore {
    /// Asks for `permits` of the capacity, at least one.
    pub fn permits(&self, permits: u32) -> LockRequest {
        LockRequest(self.0.permits(permits))
    }
}

/// A request for a lock: the twin of [`crate::LockRequest`], with the same options, from which it
/// converts.
#[derive(Debug)]
#[must_use = "a request does nothing until it is acquired, tried or run"]
pub struct LockRequest(crate::LockRequest);

/// Options that are handed on as they are.
macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($value:ident: $type:ty))*) => {
        impl LockRequest {
            $(
                $(#[$doc])*
                pub fn $name(self, $value: $type) -> Self {
                    Self(self.0.$name($value))
                }
            )*
        }
    };
}

options! {
    /// Waits for at most this long. Without it, a request waits for as long as it takes, also
    /// through an outage of the database.
    timeout(timeout: Duration)

    /// How long the lease lives on the server without being renewed: 100 ms to 24 h, or
    /// [`Ttl::Infinite`]. Default 10 s.
    ttl(ttl: impl TryInto<Ttl, Error: Into<Error>>)

    /// A renewal is due at the latest this long before the lease expires: see
    /// [`crate::LockRequest::renew_before`].
    renew_before(renew_before: Duration)

    /// Whether the lease is renewed for as long as the guard lives. Default true. A lease that is
    /// not renewed is lost when its TTL has passed.
    auto_renew(auto_renew: bool)

    /// Names the owner, up to 255 bytes. Two requests of one explicit owner do not exclude each
    /// other: see [`crate::LockRequest::owner`].
    owner(owner: impl AsRef<str>)

    /// How long an expired lease of somebody else is still respected: see
    /// [`crate::LockRequest::grace`].
    grace(grace: Duration)

    /// What the holder tells of itself, up to 1 KiB of text: see [`crate::LockRequest::data`].
    data(data: impl Into<Arc<str>>)

    /// How long before the server's expiry the holder gives up: see
    /// [`crate::LockRequest::margin`].
    margin(margin: Duration)

    /// How a busy lock is asked for again. Default [`Retry::Adaptive`].
    retry(retry: Retry)

    /// Calls `callback` each time that the database says that the lock is busy, while this request
    /// is the first in its process's queue: see [`crate::LockRequest::on_wait`]. It runs on the thread that waits, and may
    /// block.
    on_wait(callback: impl FnMut(&Busy) + Send + 'static)

    /// Calls `callback` once if the lease is lost: see [`crate::Lease::on_lost`].
    on_lost(callback: impl FnOnce(LossReason) + Send + 'static)
}

impl LockRequest {
    /// Waits for the lock, first come, first served within its [`Locks`].
    ///
    /// # Errors
    ///
    /// As [`crate::LockRequest::acquire`], and [on an async worker](self#not-on-an-async-worker).
    pub fn acquire(self) -> Result<Guard> {
        wait(self.0.acquire()).map(Guard)
    }

    /// Asks for the lock once: `None` where somebody else holds it.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), but never [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
    pub fn try_acquire(self) -> Result<Option<Guard>> {
        Ok(wait(self.0.try_acquire())?.map(Guard))
    }

    /// Waits for the lock, does `work` under it, and releases it, also if the work panics.
    ///
    /// Nothing interrupts the work if the lease is lost meanwhile. So look at
    /// [`Lease::check`] before each step that must not overlap with another holder's work, and
    /// [wait](Lease::wait_lost) by the lease between them.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lease
    /// was lost before the work was done.
    pub fn run<T>(self, work: impl FnOnce(Lease) -> T) -> Result<T> {
        wait(self.0.run(async |lease| work(lease)))
    }
}

impl From<crate::LockRequest> for LockRequest {
    fn from(request: crate::LockRequest) -> Self {
        Self(request)
    }
}

/// A lock that is held: the twin of [`crate::Guard`]. It is renewed in the background until this
/// guard is released or dropped.
///
/// Dropping it, also by a panic or an early return, queues a release, which is sent soon but not at
/// once, and waits for nothing: it may be dropped anywhere. [`release`](Self::release) waits for it
/// and reports errors.
#[derive(Debug)]
#[must_use = "a guard that is not kept releases its lock at once"]
pub struct Guard(crate::Guard);

impl Guard {
    /// The lock's name.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.0.name()
    }

    /// The fencing token: see [`Lease::token`].
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.token()
    }

    /// A view of the lease to hand around. It does not keep the lock held.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.0.lease()
    }

    /// How long the lock may be relied on if it is not renewed again: see [`Lease::remaining`].
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.0.remaining()
    }

    /// Whether the lock can still be relied on: see [`Lease::check`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) once the lease is lost or past its deadline.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }

    /// The statement that fences a transaction of your own: see [`Lease::fence_sql`].
    ///
    /// # Errors
    ///
    /// As of [`Lease::fence_sql`].
    pub fn fence_sql(&self) -> Result<Option<FenceSql>> {
        self.0.fence_sql()
    }

    /// Waits until the lease is lost, or until `timeout` has passed: see [`Lease::wait_lost`].
    ///
    /// # Errors
    ///
    /// [On an async worker](self#not-on-an-async-worker).
    pub fn wait_lost(&self, timeout: Duration) -> Result<Option<LossReason>> {
        self.lease().wait_lost(timeout)
    }

    /// Calls `callback` once if the lease is lost: see [`Lease::on_lost`].
    pub fn on_lost(&self, callback: impl FnOnce(LossReason) + Send + 'static) {
        self.0.on_lost(callback);
    }

    /// Gives the lock back, and waits until the server knows: see [`crate::Guard::release`].
    ///
    /// # Errors
    ///
    /// As there, and [on an async worker](self#not-on-an-async-worker), where the guard is dropped
    /// instead.
    pub fn release(self) -> Result<()> {
        wait(self.0.release())
    }
}

impl Lease {
    /// Waits on this thread until the lease is lost, and says why, or until `timeout` has passed:
    /// `None`. A pause, for [blocking](crate::blocking) code, that ends early when there is
    /// nothing left to wait for. As with [`lost`](Self::lost), a release by the holder is no loss. Where the machine sleeps
    /// meanwhile `timeout` may be counted without that time; the loss is not.
    ///
    /// # Errors
    ///
    /// [On an async worker](crate::blocking#not-on-an-async-worker).
    pub fn wait_lost(&self, timeout: Duration) -> Result<Option<LossReason>> {
        wait_at_most(timeout, self.lost())
    }
}

/// Runs `future` to its end on a thread and a tokio runtime of its own, and waits for it: for what
/// a backend offers only as async, such as making its tables. That thread ends with it.
///
/// # Errors
///
/// Those of `future`, [`ErrorKind::Backend`](crate::ErrorKind::Backend) where the system gives no
/// thread, and [on an async worker](self#not-on-an-async-worker).
pub fn block_on<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    wait(async { Runtime::own_thread()?.run(future).await })
}
