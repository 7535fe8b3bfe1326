//! Spans of `tracing`, whose names and fields are documented in the crate `database-locks`. They cost a look at a flag where
//! nobody wants them.

use std::time::Duration;

use tracing::field::Empty;
use tracing::{Level, Span};

use crate::clock::Clock;
use crate::error::Result;
use crate::observer::NotGranted;
use crate::words::identity::LeaseId;
use crate::words::name::LockName;

/// Of both, whatever files they are in.
const TARGET: &str = "database_locks";

/// The span around a request, which is told what becomes of it.
pub(crate) struct Acquire {
    span: Span,
    clock: Clock,
    /// When it began. Nothing once the outcome is told, or where nobody wants to know.
    began: Option<Duration>,
}

impl Acquire {
    pub(crate) fn begin(lock: &LockName, backend: &'static str, clock: Clock) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            "lock.acquire",
            lock = lock.as_str(),
            backend,
            outcome = Empty,
            waited = Empty,
        );
        let began = (!span.is_disabled()).then(|| clock.now());
        Self { span, clock, began }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn end<T>(mut self, answer: Result<Option<T>>) -> Result<Option<T>> {
        self.tell(match &answer {
            Ok(Some(_)) => "acquired",
            Ok(None) => NotGranted::Busy.as_str(),
            Err(error) => NotGranted::Failed(error).as_str(),
        });
        answer
    }

    fn tell(&mut self, outcome: &'static str) {
        if let Some(began) = self.began.take() {
            let waited = self.clock.now().saturating_sub(began);
            self.span.record("outcome", outcome).record("waited", waited.as_secs_f64());
        }
    }
}

/// The caller has gone, unless it was told.
impl Drop for Acquire {
    fn drop(&mut self) {
        self.tell(NotGranted::Abandoned.as_str());
    }
}

/// Whether anybody may want the spans of this crate.
pub(crate) fn may_be_wanted() -> bool {
    tracing::level_enabled!(Level::INFO)
}

/// The span of a lease that is held, until [`end_hold`]. Nothing where nobody wants it.
pub(crate) fn hold(lease: &LeaseId, backend: &'static str) -> Option<Span> {
    let span = tracing::info_span!(
        target: TARGET,
        "lock.hold",
        lock = lease.name.as_str(),
        token = lease.token.get(),
        backend,
        ended = Empty,
    );
    (!span.is_disabled()).then_some(span)
}

pub(crate) fn end_hold(span: &Span, how: &'static str) {
    span.record("ended", how);
}
