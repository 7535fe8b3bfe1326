//! What the log says of an outage: one line when it begins, and one when it is over, however many requests fail.

use std::time::Duration;

use crate::error::Error;

/// For how long the database has to answer everything until an outage is over, so that one in which some requests get
/// through is one.
const CALM: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct OutageLog {
    backend: &'static str,
    outage: Option<Outage>,
}

#[derive(Debug)]
struct Outage {
    since: Duration,
    failures: u64,
    /// When all has been answered since.
    answered_since: Option<Duration>,
}

impl OutageLog {
    pub(crate) fn new(backend: &'static str) -> Self {
        Self { backend, outage: None }
    }

    /// A request had no answer.
    pub(crate) fn failed(&mut self, error: &Error, now: Duration) {
        let backend = self.backend;
        match &mut self.outage {
            Some(outage) => {
                outage.failures += 1;
                outage.answered_since = None;
            }
            None => {
                self.outage = Some(Outage { since: now, failures: 1, answered_since: None });
                tracing::warn!(backend, %error, "the database does not answer, will go on asking");
            }
        }
    }

    /// A request was answered.
    pub(crate) fn answered(&mut self, now: Duration) {
        if let Some(outage) = &mut self.outage {
            outage.answered_since.get_or_insert(now);
        }
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Option<Duration> {
        let since = self.outage.as_ref()?.answered_since?;
        Some(since.saturating_add(CALM))
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        if self.next().is_none_or(|over| now < over) {
            return;
        }
        let Some(Outage { since, failures, answered_since }) = self.outage.take() else { return };
        let lasted = answered_since.unwrap_or(now).saturating_sub(since);
        tracing::warn!(backend = self.backend, ?lasted, failures, "the database answers again");
    }
}
