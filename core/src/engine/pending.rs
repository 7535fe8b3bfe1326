//! A request that has no lock yet, and what it is told in the end.

use std::time::Duration;

use crate::engine::backoff::Retry;
use crate::engine::line::Line;
use crate::engine::request::Request;
use crate::engine::waiter::WaiterState;
use crate::error::{Error, ErrorKind};
use crate::words::identity::LeaseId;

/// How long an unanswered request may be out before its caller is told that the database is away,
/// and not only that the lock was not free.
const SILENCE: Duration = Duration::from_secs(1);

/// A request that waits, or whose outcome still has to be settled.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    pub(crate) request: Box<Request>,
    pub(crate) state: WaiterState,
    /// Where it stands in the line of its name, if it does.
    pub(crate) place: Option<u64>,
    /// The lease whose place its next claim is to take.
    pub(crate) replaces: Option<LeaseId>,
    /// When its last claim left.
    pub(crate) sent: Duration,
    pub(crate) failures: u32,
    /// Why its last claim had no answer.
    pub(crate) error: Option<Error>,
}

impl PendingRequest {
    /// Whether hardly anything is left at `now` of a lease that is granted to its last claim.
    pub(crate) fn is_late(&self, now: Duration) -> bool {
        let Some(ttl) = self.request.claim.ttl.duration() else { return false };
        let usable = ttl.saturating_sub(self.request.terms.margin);
        now.saturating_sub(self.sent) >= usable - usable / 8
    }

    pub(crate) fn asks_once(&self) -> bool {
        self.request.retry == Retry::Never
    }

    pub(crate) fn mismatch(&self, held: u32, backend: &'static str) -> Error {
        let claim = &self.request.claim;
        Error::new(
            ErrorKind::CapacityMismatch,
            format!(
                "it is held with a capacity of {held}, and {} was asked for: use one capacity \
                 (or one kind of lock) for one name",
                claim.share.capacity()
            ),
        )
        .with_lock(&claim.name)
        .with_backend(backend)
        .with_operation("acquire")
    }

    /// Why the caller has to go without.
    pub(crate) fn why_not(
        &self,
        line: Option<&Line>,
        backend: &'static str,
        now: Duration,
    ) -> Error {
        let is_silent =
            self.state.asked_since().is_some_and(|since| now.saturating_sub(since) >= SILENCE);
        let holder = line.and_then(|line| line.busy.as_ref()).and_then(|busy| busy.holder.as_ref());
        let error = match (&self.error, holder) {
            (Some(error), _) if error.is_retryable() => Error::new(
                ErrorKind::Unavailable,
                format!("the database could not be asked within the timeout: {error}"),
            )
            .with_source(error.clone()),
            _ if is_silent || self.asks_once() => Error::new(
                ErrorKind::Unavailable,
                "the database did not answer within the timeout: check that it is reachable",
            ),
            (_, Some(holder)) => Error::new(
                ErrorKind::Timeout,
                format!(
                    "not obtained within the timeout: {} holds it under token {}",
                    holder.owner, holder.token
                ),
            ),
            _ => Error::new(ErrorKind::Timeout, "not obtained within the timeout"),
        };
        error.with_lock(&self.request.claim.name).with_backend(backend).with_operation("acquire")
    }
}
