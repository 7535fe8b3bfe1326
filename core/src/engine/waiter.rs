//! The life of a request that has no lock yet: a pure function of state, event and time.

use std::time::Duration;

/// A request that has no lock yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaiterState {
    /// Its caller waits.
    Waiting(Step, Doubt),
    /// Its caller has gone or was told, and its attempt may have a lease, which has to be found out and given back.
    Settling(Step, Doubt),
    /// Nothing of it is left to do. Terminal.
    Done,
}

/// Where its claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nowhere: others come before it, or it asks again later.
    Idle,
    /// It waits for a batch that takes it along.
    Queued,
    /// It is on its way since then. Where it is `stale`, a hint came meanwhile, and "busy" may be out of date.
    Asked { since: Duration, stale: bool },
}

/// Whether an earlier claim of the attempt may have been granted without anybody hearing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// No: each claim was answered.
    None,
    /// One had no answer.
    Unknown,
    /// One was in a batch that was refused, and may be what was wrong with it: it goes by itself.
    Suspect,
}

/// What can happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaiterEvent {
    /// It is to ask: its turn has come, or there is a reason to look again.
    Ask,
    /// Its claim leaves.
    Sent,
    /// Its claim does not leave after all.
    Withdrawn,
    /// An answer to its claim.
    Answered(Answer),
    /// Its caller has gone, or was told something else.
    Abandoned,
    /// Whatever it was granted unheard of has ended by now.
    Expired,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted,
    /// Granted, so long ago that little or nothing is left of the lease.
    Late,
    Busy,
    /// The capacity is another one.
    Mismatch,
    /// The attempt has had a lease that is over.
    Ended,
    /// Nothing was decided.
    Skipped,
    /// There was no answer.
    Failed,
    /// There was an error that will not go away. Where the claim was not `alone`, another one may be to blame.
    Refused {
        alone: bool,
    },
}

/// What follows from an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effects {
    /// What the caller is told.
    pub(crate) tell: Tell,
    pub(crate) next: Next,
}

/// What the caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    Nothing,
    /// The lease is theirs. It is given back where the caller has gone.
    Granted,
    /// Somebody else has the lock.
    Busy,
    /// The error.
    Error,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// The claim goes into the next batch.
    Queue,
    /// A claim of a new attempt goes into the next batch.
    BeginAnew,
    /// Ask again when its turn comes.
    Rest,
    /// Ask again later.
    BackOff,
    /// The request is over.
    Forget,
}

impl WaiterState {
    /// Somebody wants a lock.
    pub(crate) const ENTERED: Self = Self::Waiting(Step::Idle, Doubt::None);

    /// What `event` makes of this state at `now`. A request that `asks_once` is over with its first answer.
    pub(crate) fn on(self, event: WaiterEvent, now: Duration, asks_once: bool) -> (Self, Effects) {
        let (step, doubt, waits) = match self {
            Self::Waiting(step, doubt) => (step, doubt, true),
            Self::Settling(step, doubt) => (step, doubt, false),
            Self::Done => return (Self::Done, Effects::NONE),
        };
        let then = |step, doubt| match waits {
            true => Self::Waiting(step, doubt),
            false => Self::Settling(step, doubt),
        };
        match (event, step) {
            (WaiterEvent::Ask, Step::Idle) => (then(Step::Queued, doubt), Next::Queue.into()),
            (WaiterEvent::Ask, Step::Queued) => (self, Effects::NONE),
            (WaiterEvent::Ask, Step::Asked { since, .. }) => {
                (then(Step::Asked { since, stale: true }, doubt), Effects::NONE)
            }
            (WaiterEvent::Sent, Step::Queued) => {
                (then(Step::Asked { since: now, stale: false }, doubt), Effects::NONE)
            }
            (WaiterEvent::Withdrawn, Step::Queued) => (then(Step::Idle, doubt), Effects::NONE),
            (WaiterEvent::Abandoned, _) => self.abandoned(),
            // What is under way is waited for: it may be a grant.
            (WaiterEvent::Expired, Step::Idle | Step::Queued) if !waits => {
                (Self::Done, Next::Forget.into())
            }
            (WaiterEvent::Answered(answer), Step::Asked { stale, .. }) => {
                self.answered(answer, stale, asks_once)
            }
            (
                WaiterEvent::Sent
                | WaiterEvent::Withdrawn
                | WaiterEvent::Answered(_)
                | WaiterEvent::Expired,
                _,
            ) => (self, Effects::NONE),
        }
    }

    fn abandoned(self) -> (Self, Effects) {
        match self {
            Self::Waiting(Step::Idle | Step::Queued, Doubt::None) => {
                (Self::Done, Next::Forget.into())
            }
            Self::Waiting(Step::Idle, doubt) => {
                (Self::Settling(Step::Queued, doubt), Next::Queue.into())
            }
            Self::Waiting(step, doubt) => (Self::Settling(step, doubt), Effects::NONE),
            Self::Settling(..) | Self::Done => (self, Effects::NONE),
        }
    }

    fn answered(self, answer: Answer, stale: bool, asks_once: bool) -> (Self, Effects) {
        use Step::{Idle, Queued};
        let over = |tell| (Self::Done, Effects { tell, next: Next::Forget });
        // Who listens to a hint that came meanwhile does not rest.
        let (step, rest) = if stale { (Queued, Next::Queue) } else { (Idle, Next::Rest) };
        match (self, answer) {
            (_, Answer::Granted) | (Self::Settling(..), Answer::Late) => over(Tell::Granted),
            // If the lease lives, it is granted anew, with all of its TTL.
            (Self::Waiting(..), Answer::Late) => {
                (Self::Waiting(Queued, Doubt::Unknown), Next::Queue.into())
            }
            (Self::Waiting(..), Answer::Busy) if asks_once => over(Tell::Busy),
            (Self::Waiting(..), Answer::Busy) => (Self::Waiting(step, Doubt::None), rest.into()),
            (Self::Waiting(..), Answer::Mismatch) => over(Tell::Error),
            (Self::Waiting(..), Answer::Ended) => {
                (Self::Waiting(Queued, Doubt::None), Next::BeginAnew.into())
            }
            (Self::Waiting(_, Doubt::None), Answer::Skipped) if asks_once => over(Tell::Busy),
            (Self::Waiting(_, doubt), Answer::Skipped) if asks_once => {
                (Self::Settling(Idle, doubt), Effects { tell: Tell::Busy, next: Next::BackOff })
            }
            (Self::Waiting(_, doubt), Answer::Skipped) => (Self::Waiting(step, doubt), rest.into()),
            (Self::Waiting(..), Answer::Failed) => {
                (Self::Waiting(Idle, Doubt::Unknown), Next::BackOff.into())
            }
            (Self::Waiting(..), Answer::Refused { alone: false }) => {
                (Self::Waiting(Queued, Doubt::Suspect), Next::Queue.into())
            }
            // An error leaves the outcome unknown: it is looked into once more.
            (Self::Waiting(..), Answer::Refused { alone: true }) => (
                Self::Settling(Queued, Doubt::Suspect),
                Effects { tell: Tell::Error, next: Next::Queue },
            ),
            (Self::Settling(..), Answer::Busy | Answer::Mismatch | Answer::Ended)
            | (Self::Settling(_, Doubt::None), Answer::Skipped)
            | (Self::Settling(_, Doubt::Suspect), Answer::Refused { alone: true }) => {
                over(Tell::Nothing)
            }
            (Self::Settling(_, doubt), Answer::Skipped) => {
                (Self::Settling(Idle, doubt), Next::BackOff.into())
            }
            (Self::Settling(..), Answer::Failed) => {
                (Self::Settling(Idle, Doubt::Unknown), Next::BackOff.into())
            }
            (Self::Settling(..), Answer::Refused { .. }) => {
                (Self::Settling(Queued, Doubt::Suspect), Next::Queue.into())
            }
            (Self::Done, _) => (self, Effects::NONE),
        }
    }

    /// Whether its claim waits for a batch or is on its way.
    pub(crate) fn is_asking(self) -> bool {
        !matches!(self, Self::Waiting(Step::Idle, _) | Self::Settling(Step::Idle, _) | Self::Done)
    }

    /// Since when its claim has been on its way.
    pub(crate) fn asked_since(self) -> Option<Duration> {
        match self {
            Self::Waiting(Step::Asked { since, .. }, _)
            | Self::Settling(Step::Asked { since, .. }, _) => Some(since),
            _ => None,
        }
    }

    /// Whether an earlier claim may have been granted.
    pub(crate) fn doubt(self) -> Doubt {
        match self {
            Self::Waiting(_, doubt) | Self::Settling(_, doubt) => doubt,
            Self::Done => Doubt::None,
        }
    }
}

impl Effects {
    pub(crate) const NONE: Self = Self { tell: Tell::Nothing, next: Next::Nothing };
}

impl From<Next> for Effects {
    fn from(next: Next) -> Self {
        Self { tell: Tell::Nothing, next }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(7);
    const EARLIER: Duration = Duration::from_secs(5);

    fn asked(stale: bool) -> Step {
        Step::Asked { since: EARLIER, stale }
    }

    #[test]
    fn transitions() {
        use Answer::{Busy, Ended, Failed, Granted, Late, Mismatch, Refused, Skipped};
        use Doubt::{Suspect, Unknown};
        use Next::{BackOff, BeginAnew, Forget, Queue, Rest};
        use Step::{Idle, Queued};
        use WaiterEvent::{Abandoned, Answered, Ask, Expired, Sent, Withdrawn};
        use WaiterState::{Done, Settling, Waiting};
        let (sure, fresh, stale) = (Doubt::None, asked(false), asked(true));
        let tell = |tell, next| Effects { tell, next };
        let quiet = |next| tell(Tell::Nothing, next);
        let table: &[(WaiterState, WaiterEvent, WaiterState, Effects)] = &[
            // To ask, and be sent.
            (Waiting(Idle, sure), Ask, Waiting(Queued, sure), quiet(Queue)),
            (Waiting(Queued, sure), Ask, Waiting(Queued, sure), Effects::NONE),
            (Waiting(fresh, sure), Ask, Waiting(stale, sure), Effects::NONE),
            (
                Waiting(Queued, Unknown),
                Sent,
                Waiting(Step::Asked { since: NOW, stale: false }, Unknown),
                Effects::NONE,
            ),
            (Waiting(Queued, sure), Withdrawn, Waiting(Idle, sure), Effects::NONE),
            // Answers.
            (Waiting(fresh, Unknown), Answered(Granted), Done, tell(Tell::Granted, Forget)),
            (Waiting(fresh, sure), Answered(Late), Waiting(Queued, Unknown), quiet(Queue)),
            (Waiting(fresh, Unknown), Answered(Busy), Waiting(Idle, sure), quiet(Rest)),
            (Waiting(stale, Unknown), Answered(Busy), Waiting(Queued, sure), quiet(Queue)),
            (Waiting(fresh, Unknown), Answered(Skipped), Waiting(Idle, Unknown), quiet(Rest)),
            (Waiting(stale, sure), Answered(Skipped), Waiting(Queued, sure), quiet(Queue)),
            (Waiting(fresh, sure), Answered(Mismatch), Done, tell(Tell::Error, Forget)),
            (Waiting(fresh, Unknown), Answered(Ended), Waiting(Queued, sure), quiet(BeginAnew)),
            (Waiting(stale, sure), Answered(Failed), Waiting(Idle, Unknown), quiet(BackOff)),
            (
                Waiting(fresh, sure),
                Answered(Refused { alone: false }),
                Waiting(Queued, Suspect),
                quiet(Queue),
            ),
            // Refused for good, and yet it may have been granted.
            (
                Waiting(fresh, sure),
                Answered(Refused { alone: true }),
                Settling(Queued, Suspect),
                tell(Tell::Error, Queue),
            ),
            // The caller goes.
            (Waiting(Idle, sure), Abandoned, Done, quiet(Forget)),
            (Waiting(Queued, sure), Abandoned, Done, quiet(Forget)),
            (Waiting(Idle, Unknown), Abandoned, Settling(Queued, Unknown), quiet(Queue)),
            (Waiting(Queued, Suspect), Abandoned, Settling(Queued, Suspect), Effects::NONE),
            (Waiting(fresh, sure), Abandoned, Settling(fresh, sure), Effects::NONE),
            // Then nobody is told, and what is found out ends it.
            (Settling(fresh, sure), Answered(Granted), Done, tell(Tell::Granted, Forget)),
            (Settling(fresh, sure), Answered(Late), Done, tell(Tell::Granted, Forget)),
            (Settling(fresh, Unknown), Answered(Busy), Done, quiet(Forget)),
            (Settling(fresh, sure), Answered(Skipped), Done, quiet(Forget)),
            (Settling(fresh, Unknown), Answered(Skipped), Settling(Idle, Unknown), quiet(BackOff)),
            (Settling(fresh, Unknown), Answered(Ended), Done, quiet(Forget)),
            (Settling(fresh, sure), Answered(Failed), Settling(Idle, Unknown), quiet(BackOff)),
            (
                Settling(fresh, sure),
                Answered(Refused { alone: true }),
                Settling(Queued, Suspect),
                quiet(Queue),
            ),
            (Settling(fresh, Suspect), Answered(Refused { alone: true }), Done, quiet(Forget)),
            (Settling(Idle, Unknown), Expired, Done, quiet(Forget)),
            (Settling(fresh, Unknown), Expired, Settling(fresh, Unknown), Effects::NONE),
            (Settling(Idle, Unknown), Ask, Settling(Queued, Unknown), quiet(Queue)),
            // What does not concern it.
            (Waiting(Idle, sure), Answered(Busy), Waiting(Idle, sure), Effects::NONE),
            (Waiting(Idle, Unknown), Expired, Waiting(Idle, Unknown), Effects::NONE),
            (Done, Ask, Done, Effects::NONE),
        ];
        for (state, event, next, effects) in table {
            let is = state.on(*event, NOW, false);
            assert_eq!(is, (*next, *effects), "{state:?} on {event:?}");
        }
    }

    #[test]
    fn who_asks_once_is_told_the_first_answer() {
        let waiting = |doubt| WaiterState::Waiting(asked(true), doubt);
        let told = |next| Effects { tell: Tell::Busy, next };
        for answer in [Answer::Busy, Answer::Skipped] {
            let is = waiting(Doubt::None).on(WaiterEvent::Answered(answer), NOW, true);
            assert_eq!(is, (WaiterState::Done, told(Next::Forget)), "{answer:?}");
        }
        let is = waiting(Doubt::Unknown).on(WaiterEvent::Answered(Answer::Skipped), NOW, true);
        assert_eq!(is, (WaiterState::Settling(Step::Idle, Doubt::Unknown), told(Next::BackOff)));
    }

    fn any_event() -> impl Strategy<Value = WaiterEvent> {
        let answer = prop_oneof![
            1 => Just(Answer::Granted),
            1 => Just(Answer::Late),
            3 => Just(Answer::Busy),
            1 => Just(Answer::Mismatch),
            1 => Just(Answer::Ended),
            1 => Just(Answer::Skipped),
            1 => Just(Answer::Failed),
            1 => any::<bool>().prop_map(|alone| Answer::Refused { alone }),
        ];
        prop_oneof![
            3 => Just(WaiterEvent::Ask),
            4 => Just(WaiterEvent::Sent),
            1 => Just(WaiterEvent::Withdrawn),
            4 => answer.prop_map(WaiterEvent::Answered),
            1 => Just(WaiterEvent::Abandoned),
            1 => Just(WaiterEvent::Expired),
        ]
    }

    proptest! {
        /// The driver of the machine in short: it keeps a batcher, a timer and a caller beside it.
        #[test]
        fn nobody_is_forgotten_told_twice_or_left_with_a_lease_unheard_of(
            asks_once: bool,
            events in proptest::collection::vec(any_event(), 0..40)
        ) {
            let (mut state, _) = WaiterState::ENTERED.on(WaiterEvent::Ask, NOW, asks_once);
            let (mut has_caller, mut is_timed, mut in_doubt) = (true, false, false);
            for event in events {
                let before = state;
                let answered = matches!(event, WaiterEvent::Answered(_)) && before.asked_since().is_some();
                let (after, effects) = state.on(event, NOW, asks_once);
                state = after;
                if event == WaiterEvent::Abandoned {
                    has_caller = false;
                }
                if answered && let WaiterEvent::Answered(answer) = event {
                    in_doubt = match answer {
                        Answer::Failed | Answer::Refused { .. } => true,
                        Answer::Late => state != WaiterState::Done,
                        Answer::Skipped => in_doubt,
                        _ => false,
                    };
                }
                is_timed = match effects.next {
                    Next::Rest | Next::BackOff => true,
                    Next::Nothing => is_timed,
                    Next::Queue | Next::BeginAnew | Next::Forget => false,
                };
                match effects.tell {
                    Tell::Nothing => {}
                    // Whoever has gone gives it back.
                    Tell::Granted => has_caller = false,
                    Tell::Busy | Tell::Error => {
                        prop_assert!(has_caller, "told twice: {before:?} on {event:?}");
                        has_caller = false;
                    }
                }
                prop_assert_eq!(effects.next == Next::Forget, state == WaiterState::Done && before != WaiterState::Done);
                match state {
                    WaiterState::Waiting(..) => prop_assert!(has_caller),
                    WaiterState::Settling(step, doubt) => {
                        prop_assert!(!has_caller);
                        let is_under_way = matches!(step, Step::Asked { .. });
                        prop_assert!(doubt != Doubt::None || is_under_way);
                    }
                    WaiterState::Done => {
                        prop_assert!(!has_caller, "forgotten: {before:?} on {event:?}");
                        let is_expired = event == WaiterEvent::Expired;
                        let is_settled_once = before.doubt() == Doubt::Suspect;
                        prop_assert!(!in_doubt || is_expired || is_settled_once, "{before:?} on {event:?}");
                        break;
                    }
                }
                prop_assert_eq!(state.doubt() != Doubt::None, in_doubt);
                // Whoever does nothing asks again some time, or has just been withdrawn.
                if !state.is_asking() && event != WaiterEvent::Withdrawn && before != WaiterState::ENTERED {
                    let rested_before = matches!(before, WaiterState::Waiting(Step::Idle, _));
                    prop_assert!(is_timed || before == state || rested_before);
                }
            }
        }
    }
}
