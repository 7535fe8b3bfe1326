//! Releases on their way: repeated until the server has answered, or the lease is dead anyway.

use std::time::Duration;

use foldhash::HashMap;
use tokio::sync::oneshot;

use crate::backend::{Capabilities, Release, Released};
use crate::engine::backoff::Pace;
use crate::engine::batcher::{Batcher, Company, Haste};
use crate::engine::timers::Timers;
use crate::error::{Error, ErrorKind, Result};
use crate::words::identity::{Attempt, LeaseId};
use crate::words::name::LockName;

/// How soon to ask again where somebody has locked the row.
const SKIPPED: Duration = Duration::from_millis(20);
/// How long a shutdown waits for a database that is away, and whoever waits for a release.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Releases {
    pending: HashMap<Attempt, PendingRelease>,
    batcher: Batcher<Attempt>,
    timers: Timers<Attempt>,
    /// Counts them, so that they leave in their order.
    entered: u64,
    closing: bool,
    random: fastrand::Rng,
}

/// A lease that is to be given back.
#[derive(Debug)]
pub(crate) struct GivenBack {
    pub(crate) lease: LeaseId,
    /// When it is dead on the server whatever becomes of its release, if ever.
    pub(crate) until: Option<Duration>,
    pub(crate) interest: Interest,
}

#[derive(Debug)]
struct PendingRelease {
    given_back: GivenBack,
    /// Whether an earlier try may have been heard by the server.
    maybe_heard: bool,
    /// When whoever waits for it is told that it takes longer.
    tell_by: Duration,
    failures: u32,
    is_suspect: bool,
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

impl Interest {
    pub(crate) fn tell(self, outcome: Result<()>) {
        match (self, outcome) {
            (Self::Reply(reply), outcome) => {
                let _ = reply.send(outcome);
            }
            (_, Ok(())) => {}
            (Self::Failure, Err(error)) if error.kind() == ErrorKind::Lost => {}
            (_, Err(error)) => tracing::warn!(%error, "a lease could not be released"),
        }
    }
}

/// A batch of releases on its way.
#[derive(Debug)]
pub(crate) struct ReleaseBatch {
    pub(crate) releases: Vec<Release>,
    at: Duration,
}

impl Releases {
    pub(crate) fn new(can: &Capabilities) -> Self {
        Self {
            pending: HashMap::default(),
            batcher: Batcher::new(can.max_in_flight, can.max_batch).with_batch_from(can.batch_from),
            timers: Timers::new(),
            entered: 0,
            closing: false,
            random: fastrand::Rng::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.batcher.is_idle()
    }

    /// Begins to release a lease. It is `maybe_heard` of where a hand-over without an answer may have given it back.
    pub(crate) fn enter(&mut self, mut given_back: GivenBack, maybe_heard: bool, now: Duration) {
        let (name, attempt) = (given_back.lease.name.clone(), given_back.lease.attempt);
        let tell_by = now.saturating_add(PATIENCE);
        if self.closing {
            given_back.until = at_most(given_back.until, tell_by);
        }
        let pending =
            PendingRelease { given_back, maybe_heard, tell_by, failures: 0, is_suspect: false };
        self.pending.insert(attempt, pending);
        self.push(name, attempt, Haste::Urgent, Company::Any);
    }

    /// From now on nothing is tried for longer than a shutdown may take.
    pub(crate) fn close(&mut self, now: Duration) {
        self.closing = true;
        for pending in self.pending.values_mut() {
            let until = &mut pending.given_back.until;
            *until = at_most(*until, now.saturating_add(PATIENCE));
        }
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        [self.timers.next(), self.batcher.next()].into_iter().flatten().min()
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(attempt) = self.timers.pop(now) {
            if let Some(pending) = self.pending.get(&attempt) {
                let company = if pending.is_suspect { Company::Isolated } else { Company::Any };
                let name = pending.given_back.lease.name.clone();
                self.push(name, attempt, Haste::Patient, company);
            }
        }
    }

    /// The next batch of releases, to be sent at `now`.
    pub(crate) fn depart(&mut self, now: Duration) -> Option<ReleaseBatch> {
        let pending = &self.pending;
        let batch = self.batcher.depart(now, |attempt| pending.contains_key(attempt))?;
        let mut releases = Vec::with_capacity(batch.len());
        let leases = batch.iter().filter_map(|(_, attempt)| pending.get(attempt));
        releases.extend(leases.map(|pending| Release::free(pending.given_back.lease.clone())));
        Some(ReleaseBatch { releases, at: now })
    }

    /// Takes the answer to a batch, and names the locks that are free now.
    pub(crate) fn arrive(
        &mut self,
        batch: &ReleaseBatch,
        answer: Result<Vec<Released>>,
        now: Duration,
    ) -> Vec<LockName> {
        let ReleaseBatch { releases, at } = batch;
        self.batcher.landed(releases.iter().map(|release| &release.lease.name), *at, now);
        let answers: Vec<Result<Released>> = match answer {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) => releases.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut freed = Vec::with_capacity(releases.len());
        for (Release { lease, .. }, answer) in releases.iter().zip(answers) {
            let alone = releases.len() == 1;
            if let Some(outcome) = self.answered(lease.attempt, answer, alone, now) {
                freed.push(lease.name.clone());
                self.end(lease.attempt, outcome);
            }
        }
        freed
    }

    /// What came of a release, unless it is tried again.
    fn answered(
        &mut self,
        attempt: Attempt,
        answer: Result<Released>,
        alone: bool,
        now: Duration,
    ) -> Option<Result<()>> {
        let jitter = self.random.f64();
        let pending = self.pending.get_mut(&attempt)?;
        let GivenBack { lease, until, interest } = &mut pending.given_back;
        let is_dead = until.is_some_and(|until| now >= until);
        let (why, again) = match answer {
            Ok(Released::Done) => return Some(Ok(())),
            // It was alive then, so an earlier try was heard, and only its answer was lost.
            Ok(Released::Lost(_)) if pending.maybe_heard && !is_dead => return Some(Ok(())),
            Ok(Released::Lost(reason)) => return Some(Err(Error::lost(reason))),
            Ok(Released::Skipped) => {
                let why = "somebody keeps the lock's row locked";
                (Error::new(ErrorKind::Unavailable, why), now.saturating_add(SKIPPED))
            }
            Err(error) if !error.is_retryable() && alone => return Some(Err(error)),
            Err(error) => {
                let lock = &lease.name;
                tracing::debug!(%lock, %error, "a release failed, will try again");
                pending.is_suspect = !error.is_retryable();
                let again = Pace::after_error(pending.failures, now, jitter);
                pending.failures += 1;
                pending.maybe_heard = true;
                (error, again)
            }
        };
        if is_dead {
            let text = format!("the release did not get through, so the lease has run out: {why}");
            return Some(Err(Error::new(ErrorKind::Unavailable, text).with_source(why)));
        }
        self.timers.set(attempt, again);
        if now >= pending.tell_by
            && let Interest::Reply(_) = interest
            && let Interest::Reply(reply) = std::mem::replace(interest, Interest::Outcome)
        {
            let text = format!(
                "the release did not get through within {PATIENCE:?}, and is tried on for as long as the \
                 lease lives: {why}"
            );
            let late = Error::new(ErrorKind::Unavailable, text).with_source(why);
            let _ = reply.send(Err(late.with_lock(&lease.name).with_operation("release")));
        }
        None
    }

    fn end(&mut self, attempt: Attempt, outcome: Result<()>) {
        let Some(PendingRelease { given_back, .. }) = self.pending.remove(&attempt) else { return };
        let GivenBack { lease, interest, .. } = given_back;
        interest.tell(outcome.map_err(|e| e.with_lock(&lease.name).with_operation("release")));
    }

    fn push(&mut self, name: LockName, attempt: Attempt, haste: Haste, company: Company) {
        self.entered += 1;
        self.batcher.push(name, attempt, self.entered, haste, company);
    }
}

fn at_most(until: Option<Duration>, limit: Duration) -> Option<Duration> {
    Some(until.map_or(limit, |until| until.min(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Claim;
    use crate::words::identity::Token;
    use crate::words::loss::LossReason;

    const NOW: Duration = Duration::from_secs(1_000);
    const HOUR: Duration = Duration::from_hours(1);

    fn given_back(until: Option<Duration>, reply: oneshot::Sender<Result<()>>) -> GivenBack {
        let lease = Claim::new(LockName::new("x").unwrap()).lease(Token::new(1));
        GivenBack { lease, until, interest: Interest::Reply(reply) }
    }

    fn released(until: Option<Duration>) -> (Releases, oneshot::Receiver<Result<()>>) {
        let mut releases = Releases::new(&Capabilities::new("test"));
        let (reply, told) = oneshot::channel();
        releases.enter(given_back(until, reply), false, NOW);
        (releases, told)
    }

    fn away() -> Result<Vec<Released>> {
        Err(Error::new(ErrorKind::Unavailable, "the database is away"))
    }

    /// Answers whatever leaves from `from` to `to` with an error.
    fn outage(releases: &mut Releases, from: Duration, to: Duration) {
        let mut now = from;
        while now < to {
            releases.tick(now);
            while let Some(batch) = releases.depart(now) {
                releases.arrive(&batch, away(), now);
            }
            now += Duration::from_millis(100);
        }
    }

    #[test]
    fn a_release_is_tried_for_as_long_as_the_lease_lives() {
        for until in [Some(NOW + HOUR), None] {
            let (mut releases, mut told) = released(until);
            outage(&mut releases, NOW, NOW + Duration::from_secs(50));
            assert!(told.try_recv().is_err(), "still waiting");
            outage(&mut releases, NOW + Duration::from_secs(50), NOW + Duration::from_secs(70));
            let error = told.try_recv().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(!error.to_string().contains("run out"), "{error}");
            outage(&mut releases, NOW + Duration::from_secs(70), NOW + HOUR / 2);

            let back = NOW + HOUR / 2 + Duration::from_secs(10);
            releases.tick(back);
            let batch = releases.depart(back).expect("it has not been given up");
            releases.arrive(&batch, Ok(vec![Released::Done]), back);
            assert!(releases.is_empty());
        }
    }

    #[test]
    fn a_release_is_given_up_with_the_lease() {
        let (mut releases, mut told) = released(Some(NOW + Duration::from_secs(30)));
        outage(&mut releases, NOW, NOW + Duration::from_secs(40));
        let error = told.try_recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("run out"), "{error}");
        assert!(releases.is_empty());
    }

    #[test]
    fn a_shutdown_gives_up_after_a_minute() {
        let (mut releases, _before) = released(None);
        releases.close(NOW);
        let (reply, _after) = oneshot::channel();
        releases.enter(given_back(None, reply), false, NOW);
        outage(&mut releases, NOW, NOW + Duration::from_secs(70));
        assert!(releases.is_empty());
    }

    #[test]
    fn a_loss_after_an_unheard_release_is_that_release() {
        for reason in [LossReason::Forced, LossReason::Expired, LossReason::Superseded] {
            let (mut releases, mut told) = released(Some(NOW + HOUR));
            let batch = releases.depart(NOW).unwrap();
            releases.arrive(&batch, away(), NOW);
            let later = NOW + Duration::from_secs(10);
            releases.tick(later);
            let batch = releases.depart(later).unwrap();
            releases.arrive(&batch, Ok(vec![Released::Lost(reason)]), later);
            told.try_recv().unwrap().unwrap_or_else(|error| panic!("{reason}: {error}"));

            let (mut releases, mut told) = released(Some(NOW + HOUR));
            let batch = releases.depart(NOW).unwrap();
            releases.arrive(&batch, Ok(vec![Released::Lost(reason)]), NOW);
            assert_eq!(told.try_recv().unwrap().unwrap_err().loss(), Some(reason));
        }
    }
}
