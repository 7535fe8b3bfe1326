//! Renewals of all leases of a process, together, and the deadlines of those leases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foldhash::HashMap;

use crate::backend::{Capabilities, Renewal, Renewed};
use crate::engine::backoff::{GridPhase, on_grid};
use crate::engine::releases::{GivenBack, Interest};
use crate::engine::timers::Agenda;
use crate::error::Result;
use crate::locks::lease::Lease;
use crate::locks::lease::state::{LeaseEvent, Phase};
use crate::observer::{Event as Observed, Observers};
use crate::words::identity::Attempt;

/// The least time that a renewal is given.
const LEAST_TIME: Duration = Duration::from_millis(50);
/// A batch takes this part of what is due, as far as the backend wants batches of that size.
const BACKLOG: usize = 8;
/// Into how many parts a batch that was refused is divided, to find out which lease is to blame.
const PARTS: usize = 16;

#[derive(Debug)]
pub(crate) struct Renewals {
    leases: HashMap<Attempt, Held>,
    /// When to look at which lease: its renewal is due, or its deadline has come.
    looks: Agenda<Attempt>,
    /// Leases whose renewal is due, by their deadlines. Some may have gone since.
    due: BTreeSet<(Duration, Attempt)>,
    /// Whether a batch is on its way: one at a time, since renewals have one connection.
    is_in_flight: bool,
    max_batch: usize,
    max_renewals: usize,
    /// The most that a batch has now: fewer while batches are not answered in time.
    most: usize,
    /// How many leases live and are renewed that have this TTL.
    ttls: BTreeMap<Duration, usize>,
    /// How many batches in a row have failed.
    failures: u32,
    phase: GridPhase,
    observers: Observers,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// When it is looked at next.
    look: Option<Duration>,
    /// Whether its TTL is counted: as long as nobody here knows that it has ended.
    is_counted: bool,
    /// Since when its lock has gone from one to the next here.
    ours_since: Duration,
    /// The largest batch that it may be in: a small one, where it was in a batch that was refused and may be to blame.
    largest_batch: u32,
}

impl Renewals {
    pub(crate) fn new(can: &Capabilities, phase: GridPhase, observers: Observers) -> Self {
        Self {
            leases: HashMap::default(),
            looks: Agenda::new(),
            due: BTreeSet::new(),
            is_in_flight: false,
            max_batch: can.max_batch.max(1),
            max_renewals: can.max_renewals,
            most: can.max_renewals,
            ttls: BTreeMap::new(),
            failures: 0,
            phase,
            observers,
        }
    }

    /// Takes care of a lease that was granted to a request that left at `asked_at`, and whose lock has gone from one to the next
    /// here since `ours_since`.
    pub(crate) fn watch(&mut self, lease: Lease, asked_at: Duration, ours_since: Duration) {
        let attempt = lease.id().attempt;
        if let Some(ttl) = renewed_ttl(&lease) {
            *self.ttls.entry(ttl).or_default() += 1;
        }
        let held =
            Held { lease, look: None, is_counted: true, ours_since, largest_batch: u32::MAX };
        let held = self.leases.entry(attempt).insert_entry(held).into_mut();
        let look = held.next_look(asked_at, 1, self.phase);
        self.looks.set(attempt, &mut held.look, look);
    }

    /// The holder gives the lease up: no renewal leaves any more. Says since when its lock has gone from one to the next here.
    pub(crate) fn forget(&mut self, attempt: Attempt) -> Option<Duration> {
        let mut held = self.leases.remove(&attempt)?;
        self.looks.set(attempt, &mut held.look, None);
        uncount(&mut self.ttls, &mut held);
        Some(held.ours_since)
    }

    pub(crate) fn get(&self, attempt: Attempt) -> Option<&Lease> {
        self.leases.get(&attempt).map(|held| &held.lease)
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().map(|held| &held.lease)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.looks.next()
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(attempt) = self.looks.pop(now) {
            let Some(held) = self.leases.get_mut(&attempt) else { continue };
            held.look = None;
            let lease = &held.lease;
            let state = lease.look();
            if let Phase::Lost(reason) = state.phase {
                tracing::warn!(lock = %lease.name(), token = %lease.token(), %reason, "lease lost");
            }
            if state.is_over() {
                uncount(&mut self.ttls, held);
                continue;
            }
            if lease.terms().renew_every.is_some() {
                self.due.insert((state.deadline.unwrap_or(Duration::MAX), attempt));
            }
            self.looks.set(attempt, &mut held.look, state.deadline);
        }
    }

    /// The next batch of renewals, to be sent at `now`: of what is due, that whose deadline comes first.
    pub(crate) fn depart(&mut self, now: Duration) -> Option<RenewalBatch> {
        if self.is_in_flight {
            return None;
        }
        // The more is due, the more goes together: what is left must not grow for ever.
        let mut most = (self.due.len() / BACKLOG).min(self.most).max(self.max_batch);
        let mut renewals = Vec::new();
        while renewals.len() < most
            && let Some((deadline, attempt)) = self.due.pop_first()
        {
            let Some(held) = self.leases.get(&attempt) else { continue };
            let lease = &held.lease;
            if !lease.is_good() {
                continue;
            }
            let largest = usize::try_from(held.largest_batch).unwrap_or(usize::MAX);
            if renewals.len() >= largest {
                self.due.insert((deadline, attempt));
                break;
            }
            most = most.min(largest);
            renewals.push(Renewal { lease: lease.id().clone(), ttl: lease.terms().ttl });
        }
        if renewals.is_empty() {
            return None;
        }
        renewals.sort_by(|a, b| a.lease.name.cmp(&b.lease.name));
        self.is_in_flight = true;
        // A batch that hangs delays all others, so it has the time that the lease with the
        // shortest TTL of all can spare; more after a failure, so that one lease whose TTL is
        // shorter than the network is slow does not take all others along.
        let shortest = self.ttls.first_key_value();
        let time = shortest
            .map_or(Duration::MAX, |(ttl, _)| (*ttl / 3).max(LEAST_TIME))
            .saturating_mul(1 << self.failures.min(10));
        Some(RenewalBatch { renewals, at: now, time })
    }

    /// Takes the answer to a batch, and says which leases live on the server that their holders have given up for lost.
    pub(crate) fn arrive(
        &mut self,
        batch: &RenewalBatch,
        answer: Result<Vec<Renewed>>,
        now: Duration,
    ) -> Vec<GivenBack> {
        self.is_in_flight = false;
        let count = batch.renewals.len();
        let (answers, largest_batch) = match answer {
            Ok(answers) => {
                self.failures = 0;
                self.most = self.most.saturating_mul(2).min(self.max_renewals);
                (answers, u32::MAX)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let largest_batch = if error.is_retryable() {
                    tracing::debug!(leases = count, %error, "a renewal failed, will try again");
                    // It may have been too large for the time that it had.
                    self.most = (count / 2).max(self.max_batch);
                    u32::MAX
                } else {
                    tracing::warn!(leases = count, %error, "a renewal failed, will try again");
                    u32::try_from(count / PARTS).unwrap_or(u32::MAX).max(1)
                };
                (vec![Renewed::Skipped; count], largest_batch)
            }
        };
        let mut raised = Vec::new();
        for (renewal, answer) in batch.renewals.iter().zip(answers) {
            let attempt = renewal.lease.attempt;
            let Some(held) = self.leases.get_mut(&attempt) else { continue };
            held.largest_batch = largest_batch;
            let lease = &held.lease;
            let event = match answer {
                Renewed::Alive => LeaseEvent::Renewed { asked_at: batch.at },
                Renewed::Lost(reason) => LeaseEvent::Gone(reason),
                Renewed::Skipped => LeaseEvent::Failed,
            };
            match lease.apply(event).phase {
                Phase::Lost(reason) => {
                    if held.is_counted {
                        tracing::warn!(
                            lock = %lease.name(), token = %lease.token(), %reason, "lease lost"
                        );
                    }
                    if answer == Renewed::Alive {
                        let until = renewal.ttl.duration().map(|ttl| now.saturating_add(ttl));
                        let (lease, interest) = (lease.id().clone(), Interest::Failure);
                        raised.push(GivenBack { lease, until, interest });
                    }
                    self.looks.set(attempt, &mut held.look, None);
                    uncount(&mut self.ttls, held);
                }
                Phase::Unknown => {
                    self.observers.tell(Observed::RenewalFailed { lease: lease.id() });
                    let look = held.next_look(now, 8, self.phase);
                    self.looks.set(attempt, &mut held.look, look);
                }
                Phase::Held => {
                    self.observers.tell(Observed::Renewed { lease: lease.id() });
                    let look = held.next_look(batch.at, 1, self.phase);
                    self.looks.set(attempt, &mut held.look, look);
                }
                Phase::Released => {}
            }
        }
        raised
    }
}

impl Held {
    /// When to look at it next: its renewal is due a period, or a part of one, after `since`, and its deadline whenever it is.
    fn next_look(&self, since: Duration, part: u32, phase: GridPhase) -> Option<Duration> {
        let renewal = self.lease.terms().renew_every.map(|period| {
            // Laid on a grid that is the same for all leases of one TTL, so that they leave
            // together; the step before, since a renewal must not be late.
            let step = period / 8;
            let due = on_grid(since.saturating_add(period / part), step, phase);
            due.saturating_sub(step).max(since.saturating_add(step / 2))
        });
        renewal.into_iter().chain(self.lease.look().deadline).min()
    }
}

/// A lease lives no more. Its guard may stay for as long as it likes.
fn uncount(ttls: &mut BTreeMap<Duration, usize>, held: &mut Held) {
    if std::mem::take(&mut held.is_counted)
        && let Some(ttl) = renewed_ttl(&held.lease)
        && let Some(count) = ttls.get_mut(&ttl)
    {
        *count -= 1;
        if *count == 0 {
            ttls.remove(&ttl);
        }
    }
}

/// The TTL of a lease that is renewed and can expire.
fn renewed_ttl(lease: &Lease) -> Option<Duration> {
    lease.terms().renew_every.and(lease.terms().ttl.duration())
}

/// A batch of renewals on its way.
#[derive(Debug)]
pub(crate) struct RenewalBatch {
    pub(crate) renewals: Vec<Renewal>,
    pub(crate) at: Duration,
    /// How long it may take.
    pub(crate) time: Duration,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::backend::Claim;
    use crate::clock::Clock;
    use crate::error::{Error, ErrorKind};
    use crate::locks::lease::Shared;
    use crate::locks::lease::state::{RenewBefore, Terms};
    use crate::words::identity::Token;
    use crate::words::loss::LossReason;
    use crate::words::name::LockName;
    use crate::words::ttl::Ttl;

    fn every(period: u64, ttl: Ttl) -> Terms {
        let renew_every = Some(Duration::from_secs(period));
        Terms { ttl, margin: Duration::ZERO, renew_every, switched_off: false }
    }

    fn renewals(max_batch: usize) -> Renewals {
        let can = Capabilities::new("test").with_max_batch(max_batch);
        Renewals::new(&can.with_max_renewals(100), GridPhase::default(), Observers::default())
    }

    /// Leases of these names and terms that were granted just now.
    fn watched(leases: &[(&str, Terms)]) -> (Renewals, Duration) {
        let start = Clock::Boot.now();
        let mut renewals = renewals(10);
        for (name, terms) in leases {
            let id = Claim::new(LockName::new(name).unwrap()).lease(Token::new(1));
            let shared = Shared::of_a_test(Observers::default());
            renewals.watch(Lease::granted(id, *terms, shared, start), start, start);
        }
        (renewals, start)
    }

    fn names(batch: &RenewalBatch) -> Vec<&str> {
        batch.renewals.iter().map(|renewal| renewal.lease.name.as_str()).collect()
    }

    #[test]
    fn leases_of_a_batch_that_failed_for_good_are_asked_for_one_by_one() {
        let endless = every(8, Ttl::Infinite);
        let (mut renewals, start) = watched(&["a", "b", "c"].map(|name| (name, endless)));
        let mut now = start + Duration::from_secs(10);
        renewals.tick(now);
        let together = renewals.depart(now).unwrap();
        assert_eq!(together.renewals.len(), 3);
        let error = Error::new(ErrorKind::Backend, "one of them is broken");
        renewals.arrive(&together, Err(error), now);

        now += Duration::from_secs(10);
        renewals.tick(now);
        for _ in 0..3 {
            let alone = renewals.depart(now).unwrap();
            assert_eq!(alone.renewals.len(), 1);
            renewals.arrive(&alone, Ok(vec![Renewed::Alive]), now);
        }
        now += Duration::from_secs(10);
        renewals.tick(now);
        assert_eq!(renewals.depart(now).unwrap().renewals.len(), 3, "they are trusted again");
    }

    #[test]
    fn the_more_is_due_the_larger_are_the_batches() {
        for (count, batch) in [(8, 8), (80, 10), (240, 30), (2_000, 100)] {
            let names: Vec<String> = (0..count).map(|i| i.to_string()).collect();
            let leases: Vec<_> =
                names.iter().map(|name| (&**name, every(8, Ttl::Infinite))).collect();
            let (mut renewals, start) = watched(&leases);
            let now = start + Duration::from_secs(10);
            renewals.tick(now);
            assert_eq!(renewals.depart(now).unwrap().renewals.len(), batch, "of {count}");
        }
    }

    #[test]
    fn batches_that_take_too_long_become_smaller() {
        let names: Vec<String> = (0..2_000).map(|i| i.to_string()).collect();
        let leases: Vec<_> = names.iter().map(|name| (&**name, every(8, Ttl::Infinite))).collect();
        let (mut renewals, mut now) = watched(&leases);
        let mut counts = Vec::new();
        for fails in [true, true, true, true, true, false, false, false, false, false] {
            now += Duration::from_secs(10);
            renewals.tick(now);
            let batch = renewals.depart(now).unwrap();
            let count = batch.renewals.len();
            let late = Error::new(ErrorKind::Unavailable, "no answer in time");
            let answer = if fails { Err(late) } else { Ok(vec![Renewed::Alive; count]) };
            renewals.arrive(&batch, answer, now);
            counts.push(count);
        }
        assert_eq!(counts, [100, 50, 25, 12, 10, 10, 20, 40, 80, 100]);
    }

    #[test]
    fn whoever_spoils_a_batch_is_found_without_asking_for_each_by_itself() {
        let many: Vec<String> = (0..2_000).map(|i| i.to_string()).collect();
        let leases: Vec<_> = many.iter().map(|name| (&**name, every(8, Ttl::Infinite))).collect();
        let (mut renewals, mut now) = watched(&leases);
        let (mut calls, mut alone, mut broken) = (0, false, None);
        while !alone {
            now += Duration::from_secs(1);
            renewals.tick(now);
            while let Some(batch) = renewals.depart(now) {
                let count = batch.renewals.len();
                let broken = broken.get_or_insert_with(|| batch.renewals[0].lease.attempt);
                let is_spoilt = batch.renewals.iter().any(|one| one.lease.attempt == *broken);
                let refused = Error::new(ErrorKind::Backend, "one of them is broken");
                let answer = if is_spoilt { Err(refused) } else { Ok(vec![Renewed::Alive; count]) };
                renewals.arrive(&batch, answer, now);
                alone |= is_spoilt && count == 1;
                calls += 1;
            }
        }
        assert!(calls < 100, "{calls} calls");
    }

    #[test]
    fn whose_deadline_comes_first_is_renewed_first() {
        let long = Ttl::new(Duration::from_hours(20)).unwrap();
        let short = Ttl::new(Duration::from_hours(10)).unwrap();
        let names_of_long: Vec<String> = (0..25).map(|i| format!("a {i:2}")).collect();
        let mut leases: Vec<_> =
            names_of_long.iter().map(|name| (&**name, every(8, long))).collect();
        leases.push(("z", every(8, short)));
        let (mut renewals, start) = watched(&leases);
        let now = start + Duration::from_secs(10);
        renewals.tick(now);
        let first = renewals.depart(now).unwrap();
        assert!(names(&first).contains(&"z"), "{:?}", names(&first));
        assert_eq!(first.time, Duration::from_hours(10) / 3);
        assert_eq!(renewals.depart(now).map(|batch| batch.renewals.len()), None, "one at a time");
    }

    #[test]
    fn a_lost_lease_hurries_the_others_no_more() {
        let [short, long] = [1, 10].map(|hours| Ttl::new(Duration::from_hours(hours)).unwrap());
        for is_noticed_by_renewal in [true, false] {
            let (mut renewals, start) = watched(&[("a", every(8, short)), ("b", every(8, long))]);
            let mut now = start + Duration::from_secs(10);
            renewals.tick(now);
            let first = renewals.depart(now).unwrap();
            assert_eq!(first.time, Duration::from_hours(1) / 3);
            let lost = Renewed::Lost(LossReason::Forced);
            let answer = if is_noticed_by_renewal { lost } else { Renewed::Alive };
            renewals.arrive(&first, Ok(vec![answer, Renewed::Alive]), now);
            if !is_noticed_by_renewal {
                let short = renewals.leases().find(|lease| lease.name().as_str() == "a").unwrap();
                short.apply(LeaseEvent::Gone(LossReason::Expired));
            }
            now += Duration::from_secs(10);
            renewals.tick(now);
            let second = renewals.depart(now).unwrap();
            assert_eq!((names(&second), second.time), (vec!["b"], Duration::from_hours(10) / 3));
        }
    }

    #[test]
    fn what_was_given_up_meanwhile_is_not_asked_for() {
        let (mut renewals, start) =
            watched(&["a", "b"].map(|name| (name, every(8, Ttl::Infinite))));
        let now = start + Duration::from_secs(10);
        renewals.tick(now);
        let given_up = renewals.leases().find(|lease| lease.name().as_str() == "a").unwrap();
        given_up.apply(LeaseEvent::Release);
        assert_eq!(names(&renewals.depart(now).unwrap()), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_heard_of_too_late_is_to_be_given_back() {
        let clock = Clock::of_tokio();
        let ttl = Ttl::new(Duration::from_millis(100)).unwrap();
        let terms = Terms::new(ttl, None, RenewBefore::default(), true).unwrap();
        let id = Claim::new(LockName::new("x").unwrap()).lease(Token::new(1));
        let mut renewals = renewals(10);
        let shared = Arc::new(Shared { clock, fence: None, observers: Observers::default() });
        let now = clock.now();
        renewals.watch(Lease::granted(id.clone(), terms, shared, now), now, now);
        advance(Duration::from_millis(60)).await;
        renewals.tick(clock.now());
        let late = renewals.depart(clock.now()).unwrap();
        advance(Duration::from_millis(60)).await;
        let raised = renewals.arrive(&late, Ok(vec![Renewed::Alive]), clock.now());
        assert_eq!(raised.into_iter().map(|one| one.lease).collect::<Vec<_>>(), [id]);
    }
}
