//! Releases on their way: repeated until the server has answered, or the lease is dead anyway.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::backend::{Capabilities, Release, Released};
use crate::engine::agenda::Agenda;
use crate::engine::lane::{Company, Lane};
use crate::engine::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Attempt, LeaseId};
use crate::loss::LossReason;
use crate::name::LockName;

/// How soon to ask again where somebody has locked the row.
const SKIPPED: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Releases {
    pending: HashMap<Attempt, Pending>,
    lane: Lane<Attempt>,
    agenda: Agenda<Attempt>,
}

#[derive(Debug)]
struct Pending {
    lease: LeaseId,
    /// When the lease is dead on the server whatever becomes of the release.
    until: Duration,
    failures: u32,
    suspect: bool,
    interest: Interest,
}

/// Who wants to know what becomes of a release.
#[derive(Debug)]
pub(crate) enum Interest {
    /// Somebody waits for it.
    Reply(oneshot::Sender<Result<()>>),
    /// The log, where the lease was lost or cannot be released.
    Outcome,
    /// The log, where the lease cannot be released. That it was lost is known.
    Failure,
}

impl Releases {
    pub(crate) fn new(can: &Capabilities) -> Self {
        Self {
            pending: HashMap::new(),
            lane: Lane::new(can.max_in_flight, can.max_batch).with_batch_from(can.batch_from),
            agenda: Agenda::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.lane.is_idle()
    }

    pub(crate) fn enter(&mut self, lease: LeaseId, until: Duration, interest: Interest) {
        let (name, attempt) = (lease.name.clone(), lease.attempt);
        let pending = Pending { lease, until, failures: 0, suspect: false, interest };
        self.pending.insert(attempt, pending);
        self.lane.push_urgent(name, attempt, Company::Any);
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.agenda.next()
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(attempt) = self.agenda.pop(now) {
            if let Some(pending) = self.pending.get(&attempt) {
                let company = if pending.suspect { Company::Alone } else { Company::Any };
                self.lane.push(pending.lease.name.clone(), attempt, company);
            }
        }
    }

    /// The next batch of releases.
    pub(crate) fn depart(&mut self) -> Option<Vec<Release>> {
        loop {
            let (mut releases, mut settled) = (Vec::new(), Vec::new());
            for (name, attempt) in self.lane.depart()? {
                match self.pending.get(&attempt) {
                    Some(pending) => releases.push(Release::free(pending.lease.clone())),
                    None => settled.push(name),
                }
            }
            self.lane.skipped(&settled);
            if !releases.is_empty() {
                return Some(releases);
            }
            self.lane.landed([]);
        }
    }

    /// Takes the answer to a batch, and names the locks that are free now.
    pub(crate) fn arrive(
        &mut self,
        batch: &[Release],
        answer: Result<Vec<Released>>,
        now: Duration,
        jitter: &mut dyn FnMut() -> f64,
    ) -> Vec<LockName> {
        self.lane.landed(batch.iter().map(|release| &release.lease.name));
        let answers: Vec<Result<Released>> = match answer {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut freed = Vec::new();
        for (Release { lease, .. }, answer) in batch.iter().zip(answers) {
            let attempt = lease.attempt;
            let Some(pending) = self.pending.get_mut(&attempt) else { continue };
            let outcome = match answer {
                Ok(Released::Done) => Ok(()),
                // An earlier try was heard, and only its answer was lost.
                Ok(Released::Lost(LossReason::Forced | LossReason::Taken))
                    if pending.failures > 0 && now < pending.until =>
                {
                    Ok(())
                }
                Ok(Released::Lost(reason)) => Err(Error::lost(reason)),
                Ok(Released::Skipped) if now >= pending.until => Err(Error::new(
                    ErrorKind::Unavailable,
                    "the release did not get through: somebody keeps the lock's row locked",
                )),
                Ok(Released::Skipped) => {
                    self.agenda.set(attempt, now.saturating_add(SKIPPED));
                    continue;
                }
                Err(error) if !error.is_retryable() && batch.len() == 1 => Err(error),
                Err(error) if now >= pending.until => Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("the release did not get through, so the lease has run out: {error}"),
                )
                .with_source(error)),
                Err(error) => {
                    tracing::warn!(lock = %lease.name, %error, "a release failed, will try again");
                    pending.suspect = !error.is_retryable();
                    let next = Pace::after_error(pending.failures, now, jitter());
                    pending.failures += 1;
                    self.agenda.set(attempt, next);
                    continue;
                }
            };
            freed.push(lease.name.clone());
            let interest = self.pending.remove(&attempt).map(|pending| pending.interest);
            let outcome = outcome.map_err(|e| e.with_lock(&lease.name).with_operation("release"));
            match (interest, outcome) {
                (Some(Interest::Reply(reply)), outcome) => {
                    let _ = reply.send(outcome);
                }
                (_, Ok(())) => {}
                (Some(Interest::Failure), Err(error)) if error.kind() == ErrorKind::Lost => {}
                (_, Err(error)) => tracing::warn!(%error, "a lease could not be released"),
            }
        }
        freed
    }
}
