//! The heartbeat: renewals of all leases of a process, together, and their deadlines.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::backend::{Renewal, Renewed};
use crate::engine::agenda::Agenda;
use crate::engine::lane::{Company, Lane};
use crate::engine::pace::on_grid;
use crate::error::Result;
use crate::identity::Attempt;
use crate::lease::Lease;
use crate::lease::state::{Event, Phase};
use crate::name::LockName;

/// One batch at a time, since renewals have one connection.
const MAX_IN_FLIGHT: usize = 1;
/// The least time that a renewal is given.
const LEAST_TIME: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Heartbeat {
    leases: HashMap<Attempt, Lease>,
    agenda: Agenda<Due>,
    lane: Lane<Attempt>,
    /// How many batches in a row have failed.
    failures: u32,
    /// Leases one of which may be to blame for it that a batch failed. Each is asked for alone.
    suspects: HashSet<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    Deadline(Attempt),
    Renewal(Attempt),
}

impl Heartbeat {
    pub(crate) fn new(max_batch: usize) -> Self {
        Self {
            leases: HashMap::new(),
            agenda: Agenda::new(),
            lane: Lane::new(MAX_IN_FLIGHT, max_batch),
            failures: 0,
            suspects: HashSet::new(),
        }
    }

    /// Takes care of a lease that was granted to a request that left at `asked_at`.
    pub(crate) fn watch(&mut self, lease: Lease, asked_at: Duration) {
        let attempt = lease.id().attempt;
        self.leases.insert(attempt, lease);
        self.schedule(attempt, asked_at, 1);
    }

    /// The holder gives the lease up: no renewal leaves any more.
    pub(crate) fn forget(&mut self, attempt: Attempt) -> Option<Lease> {
        let lease = self.leases.remove(&attempt)?;
        self.suspects.remove(&attempt);
        self.agenda.cancel(Due::Deadline(attempt));
        self.agenda.cancel(Due::Renewal(attempt));
        Some(lease)
    }

    pub(crate) fn get(&self, attempt: Attempt) -> Option<&Lease> {
        self.leases.get(&attempt)
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.agenda.next()
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(due) = self.agenda.pop(now) {
            let (Due::Deadline(attempt) | Due::Renewal(attempt)) = due;
            let Some(lease) = self.leases.get(&attempt) else { continue };
            let state = lease.look();
            if state.is_over() {
                self.agenda.cancel(Due::Renewal(attempt));
                self.agenda.cancel(Due::Deadline(attempt));
                if let Phase::Lost(reason) = state.phase {
                    tracing::warn!(lock = %lease.name(), token = %lease.token(), %reason, "lease lost");
                }
            } else if let Due::Renewal(_) = due {
                let is_suspect = !self.suspects.is_empty() && self.suspects.contains(&attempt);
                let company = if is_suspect { Company::Alone } else { Company::Any };
                self.lane.push(lease.name().clone(), attempt, company);
            }
        }
    }

    /// The next batch of renewals, to be sent at `now`.
    pub(crate) fn depart(&mut self, now: Duration) -> Option<Departure> {
        loop {
            let batch = self.lane.depart()?;
            let mut departure =
                Departure { names: Vec::new(), renewals: Vec::new(), at: now, time: Duration::MAX };
            let mut settled = Vec::new();
            for (name, attempt) in batch {
                match self.leases.get(&attempt).filter(|lease| !lease.look().is_over()) {
                    Some(lease) => {
                        departure.names.push(name);
                        departure
                            .renewals
                            .push(Renewal { lease: lease.id().clone(), ttl: lease.terms().ttl });
                    }
                    None => settled.push(name),
                }
            }
            self.lane.skipped(&settled);
            if departure.renewals.is_empty() {
                self.lane.landed([]);
                continue;
            }
            // A batch that hangs delays all others, so it has the time that the lease with the
            // shortest TTL of all can spare; more after a failure, lest one lease whose TTL is
            // shorter than the network is slow take all others along.
            departure.time = self
                .leases
                .values()
                .filter(|lease| lease.terms().renew_every.is_some() && !lease.look().is_over())
                .filter_map(|lease| lease.terms().ttl.duration())
                .min()
                .map_or(Duration::MAX, |ttl| (ttl / 3).max(LEAST_TIME))
                .saturating_mul(1 << self.failures.min(10));
            return Some(departure);
        }
    }

    /// Takes the answer to a batch.
    pub(crate) fn arrive(
        &mut self,
        departure: &Departure,
        answer: Result<Vec<Renewed>>,
        now: Duration,
    ) {
        self.lane.landed(&departure.names);
        let attempts = || departure.renewals.iter().map(|renewal| renewal.lease.attempt);
        let answers = match answer {
            Ok(answers) => {
                self.failures = 0;
                if !self.suspects.is_empty() {
                    for attempt in attempts() {
                        self.suspects.remove(&attempt);
                    }
                }
                answers
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if !error.is_retryable() {
                    let leases = &self.leases;
                    self.suspects.extend(attempts().filter(|attempt| leases.contains_key(attempt)));
                }
                tracing::warn!(
                    leases = departure.renewals.len(), %error, "a renewal failed, will try again"
                );
                vec![Renewed::Skipped; departure.renewals.len()]
            }
        };
        for (renewal, answer) in departure.renewals.iter().zip(answers) {
            let attempt = renewal.lease.attempt;
            let Some(lease) = self.leases.get(&attempt) else { continue };
            let event = match answer {
                Renewed::Alive => Event::Renewed { asked_at: departure.at },
                Renewed::Lost(reason) => Event::Gone(reason),
                Renewed::Skipped => Event::Failed,
            };
            let state = lease.apply(event);
            match state.phase {
                Phase::Lost(reason) => {
                    tracing::warn!(lock = %lease.name(), token = %lease.token(), %reason, "lease lost");
                    self.agenda.cancel(Due::Deadline(attempt));
                    self.agenda.cancel(Due::Renewal(attempt));
                }
                Phase::Unknown => self.schedule(attempt, now, 8),
                Phase::Held => self.schedule(attempt, departure.at, 1),
                Phase::Released => {}
            }
        }
    }

    /// Makes the next renewal due a period, or a part of one, after `since`, and the deadline
    /// whenever it is.
    fn schedule(&mut self, attempt: Attempt, since: Duration, part: u32) {
        let Some(lease) = self.leases.get(&attempt) else { return };
        if let Some(deadline) = lease.look().deadline {
            self.agenda.set(Due::Deadline(attempt), deadline);
        }
        if let Some(period) = lease.terms().renew_every {
            // Laid on a grid that is the same for all leases of one TTL, so that they leave
            // together; the step before, since a renewal must not be late.
            let step = period / 8;
            let due = on_grid(since.saturating_add(period / part), step).saturating_sub(step);
            self.agenda.set(Due::Renewal(attempt), due.max(since.saturating_add(step / 2)));
        }
    }
}

/// A batch of renewals on its way.
#[derive(Debug)]
pub(crate) struct Departure {
    names: Vec<LockName>,
    pub(crate) renewals: Vec<Renewal>,
    pub(crate) at: Duration,
    /// How long it may take.
    pub(crate) time: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::error::{Error, ErrorKind};
    use crate::identity::{LeaseId, Token};
    use crate::lease::state::Terms;
    use crate::owner::Owner;
    use crate::share::Share;
    use crate::ttl::Ttl;

    #[test]
    fn leases_of_a_batch_that_failed_for_good_are_asked_for_one_by_one() {
        let terms = Terms {
            ttl: Ttl::Infinite,
            margin: Duration::ZERO,
            renew_every: Some(Duration::from_secs(8)),
            switched_off: false,
        };
        let start = Clock::Boot.now();
        let mut heartbeat = Heartbeat::new(10);
        for name in ["a", "b", "c"] {
            let id = LeaseId {
                name: LockName::new(name).unwrap(),
                attempt: Attempt::new(),
                token: Token::new(1),
                owner: Owner::of_this_process(),
                share: Share::ALL,
            };
            heartbeat.watch(Lease::granted(id, terms, Clock::Boot, start), start);
        }
        let mut now = start + Duration::from_secs(10);
        heartbeat.tick(now);
        let together = heartbeat.depart(now).unwrap();
        assert_eq!(together.renewals.len(), 3);
        let error = Error::new(ErrorKind::Backend, "one of them is broken");
        heartbeat.arrive(&together, Err(error), now);

        now += Duration::from_secs(10);
        heartbeat.tick(now);
        for _ in 0..3 {
            let alone = heartbeat.depart(now).unwrap();
            assert_eq!(alone.renewals.len(), 1);
            heartbeat.arrive(&alone, Ok(vec![Renewed::Alive]), now);
        }
        now += Duration::from_secs(10);
        heartbeat.tick(now);
        assert_eq!(heartbeat.depart(now).unwrap().renewals.len(), 3, "they are trusted again");
    }
}
