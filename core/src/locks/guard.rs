//! A lock that is held.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use crate::backend::fence::FenceSql;
use crate::engine::hold::Hold;
use crate::error::{Error, Result};
use crate::locks::lease::Lease;
use crate::words::identity::Token;
use crate::words::loss::LossReason;
use crate::words::name::LockName;

/// A lock that is held. It is renewed in the background until this guard is released or dropped.
///
/// Dropping it, also by a panic, an early return or a cancelled task, queues a release, which is
/// sent soon but not at once; [`release`](Self::release) waits for it and reports errors.
#[derive(Debug)]
#[must_use = "a guard that is not kept releases its lock at once"]
pub struct Guard(Hold);

impl Guard {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(hold)
    }

    /// The lock's name.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.0.lease().name()
    }

    /// The fencing token: see [`Lease::token`].
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.lease().token()
    }

    /// A view of the lease to hand around. It does not keep the lock held.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.0.lease().clone()
    }

    /// How long the lock may be relied on if it is not renewed again: see [`Lease::remaining`].
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.0.lease().remaining()
    }

    /// Whether the lock can still be relied on: see [`Lease::check`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) once the lease is lost or past its deadline.
    pub fn check(&self) -> Result<()> {
        self.0.lease().check()
    }

    /// The statement that fences a transaction of your own: see [`Lease::fence_sql`].
    ///
    /// # Errors
    ///
    /// As of [`Lease::fence_sql`].
    pub fn fence_sql(&self) -> Result<Option<FenceSql>> {
        self.0.lease().fence_sql()
    }

    /// Waits until the lease is lost: see [`Lease::lost`].
    pub async fn lost(&self) -> LossReason {
        self.0.lease().lost().await
    }

    /// Calls `callback` once if the lease is lost: see [`Lease::on_lost`].
    pub fn on_lost(&self, callback: impl FnOnce(LossReason) + Send + 'static) {
        self.0.lease().on_lost(callback);
    }

    /// Does `work` for as long as the lease lasts. If it is lost, the work is dropped at its next
    /// await point.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work; the lock stays held by this guard.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lease was lost before the work was done. Work under a lease that
    /// is lost already is not begun.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.check()?;
        let (mut lost, mut work) = (pin!(self.lost()), pin!(work));
        tokio::select! {
            biased;
            reason = &mut lost => Err(Error::lost(reason).with_lock(self.name())),
            done = &mut work => self.check().map(|()| done),
        }
    }

    /// Gives the lock back, and waits until the server knows. Of several guards of one explicit
    /// owner, the last one releases.
    ///
    /// While the database is away this takes as long as the lease would have lived, a minute at
    /// most. The release is tried for as long as the lease lives, also once this has returned.
    ///
    /// # Cancel safety
    ///
    /// Safe: the release is on its way once this was called, whether or not it is waited for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lease had ended before, so that what was
    /// done under it may have overlapped with another holder's work, and
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the database could not be told by then.
    pub async fn release(self) -> Result<()> {
        let lease = self.lease();
        match self.0.release() {
            Some(released) => match released.await {
                Ok(outcome) => outcome,
                // The engine has ended.
                Err(_) => lease.is_not_lost().and_then(|()| Err(Error::lost(LossReason::Shutdown))),
            },
            None => lease.is_not_lost(),
        }
    }
}
