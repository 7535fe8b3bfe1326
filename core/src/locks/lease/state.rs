//! The life of a lease as its holder knows it: a pure function of state, event and time.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::words::loss::LossReason;
use crate::words::ttl::Ttl;

/// What a lease was asked for with, as far as its life depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) ttl: Ttl,
    /// How long before the server's expiry the holder gives up.
    pub(crate) margin: Duration,
    /// How long after a renewal the next is due; `None` where nobody renews.
    pub(crate) renew_every: Option<Duration>,
    /// Locks are switched off: no database knows of the lease, and only a shutdown ends it.
    pub(crate) switched_off: bool,
}

/// How long before expiry a renewal is due at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenewBefore {
    /// This long: it must be less than the TTL.
    Exactly(Duration),
    /// This long, or half the TTL where that is less.
    AtMostHalf(Duration),
}

/// What a holder gets who does not choose.
impl Default for RenewBefore {
    fn default() -> Self {
        Self::AtMostHalf(Duration::from_secs(2))
    }
}

/// How often a lease is renewed that would live much longer, so that its holder learns in time
/// that it was released by force.
const LONGEST_PERIOD: Duration = Duration::from_secs(30);
/// The shortest and the longest margin that is chosen for a holder who does not choose.
const MARGINS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

impl Terms {
    /// Fills in what was not chosen, and checks what was.
    pub(crate) fn new(
        ttl: Ttl,
        margin: Option<Duration>,
        renew_before: RenewBefore,
        auto_renew: bool,
    ) -> Result<Self> {
        let Some(length) = ttl.duration() else {
            let renew_every = auto_renew.then_some(LONGEST_PERIOD);
            return Ok(Self { ttl, margin: Duration::ZERO, renew_every, switched_off: false });
        };
        let check = |option: &str, value: Duration| {
            if value < length {
                return Ok(());
            }
            Err(Error::new(
                ErrorKind::InvalidOption,
                format!("{option} is {value:?}: give less than the TTL, {length:?}"),
            ))
        };
        let margin = margin.unwrap_or_else(|| (length / 50).clamp(MARGINS.0, MARGINS.1));
        check("the margin", margin)?;
        let renew_before = match renew_before {
            RenewBefore::Exactly(chosen) => {
                check("renew_before", chosen)?;
                chosen
            }
            RenewBefore::AtMostHalf(chosen) => chosen.min(length / 2),
        };
        let period = (length / 3)
            .min(length - renew_before)
            .min((length - margin) / 2)
            .clamp(Duration::from_millis(1), LONGEST_PERIOD);
        let renew_every = auto_renew.then_some(period);
        Ok(Self { ttl, margin, renew_every, switched_off: false })
    }

    /// The terms of a lease while locks are switched off.
    pub(crate) fn switched_off() -> Self {
        Self { ttl: Ttl::Infinite, margin: Duration::ZERO, renew_every: None, switched_off: true }
    }
}

/// What the holder knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The server said that the lease lives, and the deadline has not come.
    Held,
    /// A renewal failed: the lease may live or not. The deadline stands.
    Unknown,
    /// The lease has ended. Terminal.
    Lost(LossReason),
    /// The holder released it. Terminal.
    Released,
}

/// A lease as its holder knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseState {
    pub(crate) phase: Phase,
    /// When the holder must stop believing in the lease; `None` for one that never expires.
    pub(crate) deadline: Option<Duration>,
}

/// What can happen to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEvent {
    /// The server extended it, asked by a request that left at `asked_at`.
    Renewed { asked_at: Duration },
    /// A renewal failed, or was not decided.
    Failed,
    /// It ended, by the server's word or by a shutdown.
    Gone(LossReason),
    /// Time has passed.
    Tick,
    /// The holder gives it back.
    Release,
}

impl LeaseState {
    /// A lease that was granted to a request that left at `asked_at`.
    pub(crate) fn granted(asked_at: Duration, terms: &Terms) -> Self {
        Self { phase: Phase::Held, deadline: deadline(asked_at, terms) }
    }

    /// What `event` makes of this state at `now`.
    pub(crate) fn on(self, event: LeaseEvent, now: Duration, terms: &Terms) -> Self {
        if self.is_over() {
            return self;
        }
        if let LeaseEvent::Gone(reason) = event {
            if terms.switched_off && reason != LossReason::Shutdown {
                return self;
            }
            return Self { phase: Phase::Lost(reason), ..self };
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Self { phase: Phase::Lost(LossReason::Expired), ..self };
        }
        match event {
            LeaseEvent::Renewed { asked_at } => Self {
                phase: Phase::Held,
                // An answer that overtook a later one must not shorten what that one gave.
                deadline: deadline(asked_at, terms).max(self.deadline),
            },
            LeaseEvent::Failed => Self { phase: Phase::Unknown, ..self },
            LeaseEvent::Release => Self { phase: Phase::Released, ..self },
            LeaseEvent::Tick | LeaseEvent::Gone(_) => self,
        }
    }

    /// Whether the lease was lost or released: nothing happens to it any more.
    pub(crate) fn is_over(self) -> bool {
        matches!(self.phase, Phase::Lost(_) | Phase::Released)
    }
}

fn deadline(asked_at: Duration, terms: &Terms) -> Option<Duration> {
    let ttl = terms.ttl.duration()?;
    Some(asked_at.saturating_add(ttl.saturating_sub(terms.margin)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn terms() -> Terms {
        Terms::new(Ttl::new(at(10)).unwrap(), Some(at(1)), RenewBefore::default(), true).unwrap()
    }

    #[test]
    fn transitions() {
        use LeaseEvent::{Failed, Gone, Release, Renewed, Tick};
        use LossReason::{Expired, Forced, Taken};
        use Phase::{Held, Lost, Released, Unknown};
        // Granted at 100 with a TTL of 10 and a margin of 1: the deadline is 109.
        type Row<'a> = (&'a [(LeaseEvent, u64)], Phase, u64);
        let table: &[Row<'_>] = &[
            (&[(Tick, 108)], Held, 109),
            (&[(Tick, 109)], Lost(Expired), 109),
            (&[(Renewed { asked_at: at(103) }, 104)], Held, 112),
            (&[(Failed, 103)], Unknown, 109),
            (&[(Failed, 103), (Renewed { asked_at: at(104) }, 105)], Held, 113),
            (&[(Failed, 103), (Tick, 109)], Lost(Expired), 109),
            // An answer that comes after the deadline does not raise the dead.
            (&[(Renewed { asked_at: at(108) }, 109)], Lost(Expired), 109),
            (&[(Tick, 109), (Renewed { asked_at: at(108) }, 110)], Lost(Expired), 109),
            (&[(Gone(Taken), 103), (Renewed { asked_at: at(103) }, 104)], Lost(Taken), 109),
            (&[(Gone(Forced), 120)], Lost(Forced), 109),
            (&[(Release, 103), (Gone(Taken), 104), (Tick, 120)], Released, 109),
            (&[(Release, 103), (Renewed { asked_at: at(103) }, 104)], Released, 109),
            // A release after the deadline is no release: somebody else may hold the lock.
            (&[(Release, 109)], Lost(Expired), 109),
            // Answers out of order keep the later deadline.
            (
                &[(Renewed { asked_at: at(105) }, 106), (Renewed { asked_at: at(103) }, 107)],
                Held,
                114,
            ),
        ];
        for (events, phase, deadline) in table {
            let mut state = LeaseState::granted(at(100), &terms());
            for (event, now) in *events {
                state = state.on(*event, at(*now), &terms());
            }
            assert_eq!(
                state,
                LeaseState { phase: *phase, deadline: Some(at(*deadline)) },
                "{events:?}"
            );
        }
    }

    #[test]
    fn a_lease_without_end_is_lost_only_by_the_servers_word() {
        let terms = Terms::new(Ttl::Infinite, None, RenewBefore::default(), true).unwrap();
        let state =
            LeaseState::granted(at(1), &terms).on(LeaseEvent::Failed, Duration::MAX, &terms);
        assert_eq!(state, LeaseState { phase: Phase::Unknown, deadline: None });
        let state = state.on(LeaseEvent::Gone(LossReason::Forced), at(2), &terms);
        assert_eq!(state.phase, Phase::Lost(LossReason::Forced));
    }

    #[test]
    fn a_lease_of_locks_that_are_switched_off_is_ended_by_shutdown_alone() {
        let terms = Terms::switched_off();
        let state = LeaseState::granted(at(1), &terms);
        for event in
            [LeaseEvent::Gone(LossReason::Superseded), LeaseEvent::Tick, LeaseEvent::Failed]
        {
            let phase = state.on(event, Duration::MAX, &terms).phase;
            assert!(matches!(phase, Phase::Held | Phase::Unknown), "{event:?}: {phase:?}");
        }
        let state = state.on(LeaseEvent::Gone(LossReason::Shutdown), at(2), &terms);
        assert_eq!(state.phase, Phase::Lost(LossReason::Shutdown));
    }

    #[test]
    fn terms_are_checked_and_filled_in() {
        use RenewBefore::{AtMostHalf, Exactly};
        let ttl = Ttl::new(at(10)).unwrap();
        let every = |renew_before| Terms::new(ttl, None, renew_before, true).unwrap().renew_every;
        let default = Terms::new(ttl, None, RenewBefore::default(), true).unwrap();
        assert_eq!(default.margin, Duration::from_millis(200));
        assert_eq!(default.renew_every, Some(at(10) / 3));
        assert_eq!(every(Exactly(at(9))), Some(at(1)));
        assert_eq!(every(AtMostHalf(at(8))), every(Exactly(at(5))));
        assert_eq!(Terms::new(ttl, None, Exactly(at(1)), false).unwrap().renew_every, None);
        for (margin, renew_before) in
            [(Some(at(10)), RenewBefore::default()), (None, Exactly(at(10)))]
        {
            let error = Terms::new(ttl, margin, renew_before, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
        let day = Ttl::new(Ttl::MAX).unwrap();
        let day = Terms::new(day, None, RenewBefore::default(), true).unwrap();
        assert_eq!(day.renew_every, Some(LONGEST_PERIOD));
    }

    fn any_event() -> impl Strategy<Value = (LeaseEvent, u64)> {
        (0..5u8, 0..40u64, 0..5u64).prop_map(|(kind, now, ago)| {
            let event = match kind {
                0 => LeaseEvent::Renewed { asked_at: at((100 + now).saturating_sub(ago)) },
                1 => LeaseEvent::Failed,
                2 => LeaseEvent::Gone(LossReason::Taken),
                3 => LeaseEvent::Tick,
                _ => LeaseEvent::Release,
            };
            (event, 100 + now)
        })
    }

    proptest! {
        #[test]
        fn a_dead_lease_never_rises_and_belief_never_outlives_the_server(
            mut events in proptest::collection::vec(any_event(), 0..12)
        ) {
            events.sort_by_key(|(_, now)| *now);
            let terms = terms();
            let mut state = LeaseState::granted(at(100), &terms);
            let mut server_expiry = at(110);
            for (event, now) in events {
                let before = state;
                state = state.on(event, at(now), &terms);
                if let LeaseEvent::Renewed { asked_at } = event {
                    server_expiry = server_expiry.max(asked_at + at(10));
                }
                if before.is_over() {
                    prop_assert_eq!(state, before);
                }
                if !state.is_over() {
                    prop_assert!(at(now) < state.deadline.unwrap());
                    prop_assert!(state.deadline.unwrap() + terms.margin <= server_expiry);
                }
            }
        }
    }
}
