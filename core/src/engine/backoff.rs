//! How often a waiter asks: quick at first, then slower, and in step with the others.

use std::str::FromStr;
use std::time::Duration;

use crate::backend::Busy;
use crate::error::Error;
use crate::words::duration::parse_duration;

/// How a request that finds its lock busy asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retry {
    /// When a release is heard of, at once or when it is this process's turn, and otherwise with a back-off that suits the backend:
    /// quick at first, slower while hints arrive or many names are waited for. Where there are no hints, a wait of a
    /// second hears of a release within some 25 ms, and a longer one within a fortieth of its length, or a quarter of a
    /// second if that is less.
    #[default]
    Adaptive,
    /// At this interval, at least 1 ms; and when a release is heard of, at once or when it is this process's turn, which is
    /// sure for intervals of up to 10 s.
    Every(Duration),
    /// Never: the request asks once.
    Never,
}

/// `adaptive`, `never` (also `none` and `0`), or an interval as [`parse_duration`] takes it.
impl FromStr for Retry {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let word = text.trim();
        if word.eq_ignore_ascii_case("adaptive") {
            return Ok(Self::Adaptive);
        }
        if word.eq_ignore_ascii_case("never") || word.eq_ignore_ascii_case("none") {
            return Ok(Self::Never);
        }
        let interval = parse_duration(text)?;
        Ok(if interval.is_zero() { Self::Never } else { Self::Every(interval) })
    }
}

const FIRST: Duration = Duration::from_millis(25);
/// The pace where only polling tells of a release: at first so quick, for so many asks; then each pause is longer by
/// this part, so that it is about this part of the time that was waited. A process asks for all of its names at once.
const POLLING: Duration = Duration::from_millis(22);
const POLLS_AT_FIRST: u32 = 40;
const LONGER: f64 = 1.0 / 40.0;
/// The slowest pace there.
const SLOWEST_POLLING: Duration = Duration::from_millis(250);
/// The slowest pace where hints were seen to arrive.
const SLOWEST_LISTENING: Duration = Duration::from_secs(2);
/// With more names than this polling is slow at once: to ask for all of them is no small query any more.
const POLLED_QUICKLY: usize = 200;
/// What each name that is waited for adds to the slowest pace: a process asks for at most about a
/// thousand names a second.
const PER_NAME: Duration = Duration::from_millis(1);
const AFTER_ERROR: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a waiter's mark lives at least.
const SHORTEST_MARK: Duration = Duration::from_secs(5);

/// The longest pause between asks that a mark bridges. Others stand back for as long as a mark lives, also once its
/// waiter has gone.
const LONGEST_MARK: Duration = Duration::from_secs(10);

/// What the pace of a process depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) listening: bool,
    pub(crate) names: usize,
    /// How much later than those of others the moments of this process are.
    pub(crate) phase: GridPhase,
}

/// Who of those that wait for a name asks again soonest, for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quickest {
    /// The shortest interval that one of them has chosen.
    pub(crate) interval: Option<Duration>,
    /// Whether one of them leaves the pace to the engine.
    pub(crate) adaptive: bool,
}

impl Pace {
    /// When to ask again what was busy just now for the `asks`th time. `jitter` is 0 to 1.
    pub(crate) fn next_ask(
        self,
        quickest: Quickest,
        asks: u32,
        busy: &Busy,
        now: Duration,
        jitter: f64,
    ) -> Duration {
        let chosen = quickest
            .interval
            .map(|interval| now.saturating_add(interval.max(Duration::from_millis(1))));
        let adaptive = quickest.adaptive.then(|| self.adaptive(asks, busy, now, jitter));
        chosen.into_iter().chain(adaptive).min().unwrap_or(now)
    }

    fn adaptive(self, asks: u32, busy: &Busy, now: Duration, jitter: f64) -> Duration {
        let slowest = self.slowest();
        // Laid on a grid, so that the waiters of a process ask together.
        let (backoff, grid) = if self.listening {
            (doubled(FIRST, asks, slowest).mul_f64(0.75 + jitter / 2.0), slowest / 16)
        } else {
            let later = asks.saturating_sub(POLLS_AT_FIRST).min(POLLS_AT_FIRST * 4);
            let pause = POLLING.mul_f64((1.0 + LONGER).powf(later.into()));
            let pause = if self.names > POLLED_QUICKLY { slowest } else { pause.min(slowest) };
            // The next point of the grid that is not too soon.
            (pause.saturating_sub(POLLING / 2), POLLING)
        };
        match busy.retry_after {
            // The holder may die: be there when its lease ends, though not before, and not all at once.
            Some(ends) if ends < backoff => {
                now.saturating_add(ends).saturating_add(ENDED.mul_f64(1.0 + jitter))
            }
            _ => on_grid(now.saturating_add(backoff), grid, self.phase),
        }
    }

    /// When to ask again after an error.
    pub(crate) fn after_error(failures: u32, now: Duration, jitter: f64) -> Duration {
        now.saturating_add(doubled(AFTER_ERROR.0, failures, AFTER_ERROR.1).mul_f64(0.5 + jitter))
    }

    /// How long a waiter's mark is to live.
    pub(crate) fn mark(self, quickest: Quickest) -> Duration {
        let chosen = quickest.interval.map(|interval| interval.min(LONGEST_MARK));
        let adaptive = quickest.adaptive.then(|| self.slowest());
        let pause = chosen.into_iter().chain(adaptive).min().unwrap_or_default();
        SHORTEST_MARK.max(pause.mul_f64(2.5))
    }

    fn slowest(self) -> Duration {
        let names = u32::try_from(self.names).unwrap_or(u32::MAX);
        let base = if self.listening { SLOWEST_LISTENING } else { SLOWEST_POLLING };
        base.max(PER_NAME.saturating_mul(names))
    }
}

/// What a lease is given beyond its expiry before it is asked for, so that it has ended.
const ENDED: Duration = Duration::from_millis(2);

fn doubled(first: Duration, times: u32, slowest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(slowest)
}

/// How far through each step of a grid the moments of a process lie, in 2^16ths, so that the processes of a host do not
/// all ask at the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GridPhase(pub(crate) u16);

/// The first moment of a grid of `step` that is not before `moment`.
pub(crate) fn on_grid(moment: Duration, step: Duration, phase: GridPhase) -> Duration {
    let step = step.as_micros().max(1);
    let shift = (step * u128::from(phase.0)) >> 16;
    let steps = moment.as_micros().saturating_sub(shift).div_ceil(step);
    let micros = steps.saturating_mul(step).saturating_add(shift);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);
    const ADAPTIVE: Quickest = Quickest { interval: None, adaptive: true };

    fn pace(listening: bool, names: usize) -> Pace {
        Pace { listening, names, phase: GridPhase::default() }
    }

    fn delay(pace: Pace, asks: u32, retry_after: Option<Duration>) -> Duration {
        let busy = Busy { holder: None, retry_after };
        pace.next_ask(ADAPTIVE, asks, &busy, NOW, 0.5) - NOW
    }

    #[test]
    fn a_retry_can_be_written() {
        let every = |millis| Retry::Every(Duration::from_millis(millis));
        for (text, retry) in [
            ("adaptive", Retry::Adaptive),
            ("Never", Retry::Never),
            ("none", Retry::Never),
            ("0", Retry::Never),
            ("0.5", every(500)),
            ("250ms", every(250)),
        ] {
            assert_eq!(text.parse::<Retry>().unwrap(), retry, "{text:?}");
        }
        for text in ["", "often", "-1"] {
            assert!(text.parse::<Retry>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn polling_is_quick_at_first_and_backs_off() {
        let pace = pace(false, 1);
        for asks in 0..=POLLS_AT_FIRST {
            assert!(delay(pace, asks, None) <= POLLING * 3 / 2);
        }
        assert!(delay(pace, POLLS_AT_FIRST * 4, None) >= Duration::from_millis(200));
        assert!(delay(pace, u32::MAX, None) <= Duration::from_millis(320));
        // All names of a process are asked for at the same moments.
        let busy = Busy::default();
        let ask = |after| pace.next_ask(ADAPTIVE, 0, &busy, NOW + after, 0.5);
        let moments = (0..1_000).map(|millis| ask(Duration::from_millis(millis)));
        let moments: std::collections::BTreeSet<Duration> = moments.collect();
        assert!(moments.len() < 50, "{} moments in a second", moments.len());
    }

    #[test]
    fn hints_and_many_names_slow_it_down() {
        let few = pace(true, 1);
        assert!(delay(few, 20, None) >= Duration::from_millis(1_500));
        let many = pace(false, 5_000);
        assert!(delay(many, 20, None) >= Duration::from_secs(4));
    }

    #[test]
    fn the_end_of_the_holders_lease_is_not_missed() {
        let pace = pace(true, 5_000);
        let ends = Duration::from_millis(30);
        let delay = delay(pace, 20, Some(ends));
        assert!(delay > ends && delay < Duration::from_millis(50), "{delay:?}");
    }

    #[test]
    fn a_mark_outlives_the_next_ask() {
        for pace in [pace(true, 1), pace(false, 9_000)] {
            assert!(pace.mark(ADAPTIVE) > delay(pace, 20, None) * 2);
            let interval = Some(Duration::from_hours(1));
            let patient = pace.mark(Quickest { interval, adaptive: false });
            assert_eq!(patient, Duration::from_secs(25));
        }
    }

    #[test]
    fn the_quickest_of_a_line_sets_its_pace() {
        let interval = Some(Duration::from_mins(1));
        let (busy, pace) = (Busy::default(), pace(false, 1));
        let ask =
            |adaptive| pace.next_ask(Quickest { interval, adaptive }, 0, &busy, NOW, 0.5) - NOW;
        assert_eq!(ask(false), Duration::from_mins(1));
        assert!(ask(true) < POLLING * 2);
    }

    #[test]
    fn processes_have_phases_of_their_own() {
        let step = Duration::from_millis(20);
        let moments = [0, 0x4000, 0x8000].map(|phase| on_grid(NOW, step, GridPhase(phase)) - NOW);
        assert_eq!(moments, [0, 5, 10].map(Duration::from_millis));
        for phase in [0, 1, 0x7fff, u16::MAX] {
            for millis in 0..40 {
                let moment = NOW + Duration::from_millis(millis);
                let next = on_grid(moment, step, GridPhase(phase));
                assert!(next >= moment && next < moment + step);
            }
        }
    }
}
