//! Whose turn it is among the processes that wait for a name.

use std::time::Duration;

use crate::backend::Releaser;

/// Who released a name lately, whoever did so longest ago first.
///
/// All who listen hear of the same releases in the same order, so that they agree whose turn it is without asking each
/// other: that of whoever has had the lock least recently. The others hold back a little, for it to get there first.
#[derive(Debug, Default)]
pub(crate) struct Rota {
    releases: Vec<(Releaser, Duration)>,
    /// Whether a hint told of a release of this process since its last one: who hears of it waited for that.
    was_awaited: bool,
    /// Whether that was so at its last one.
    is_awaited: bool,
}

/// For how long a release counts. Whoever has not had the lock for so long asks at once.
pub(crate) const LATELY: Duration = Duration::from_secs(1);
/// How many releasers are remembered.
const MOST: usize = 64;
/// What each of those that come before is given to ask, a round trip within these bounds, and at most to work and release.
const TO_ASK: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(25));
const TO_WORK: Duration = Duration::from_millis(50);
/// The longest pause. Those that come before may all have gone.
const LONGEST: Duration = Duration::from_millis(200);

impl Rota {
    /// A hint tells of a release.
    pub(crate) fn heard(&mut self, by: Releaser, now: Duration) {
        self.was_awaited |= by == Releaser::Own;
        self.add(by, now);
    }

    /// This process releases the name.
    pub(crate) fn released(&mut self, now: Duration) {
        self.is_awaited = std::mem::take(&mut self.was_awaited);
        self.add(Releaser::Own, now);
    }

    fn add(&mut self, by: Releaser, now: Duration) {
        self.releases.retain(|(other, at)| *other != by && now < *at + LATELY);
        if self.releases.len() == MOST {
            self.releases.remove(0);
        }
        self.releases.push((by, now));
    }

    /// How long this process holds back after a release: until those before it have had the lock, which is heard of,
    /// or would have.
    pub(crate) fn pause(&self, round_trip: Duration, now: Duration) -> Duration {
        let lately = || self.releases.iter().filter(|(_, at)| now < *at + LATELY);
        let before = lately().position(|(by, _)| *by == Releaser::Own).unwrap_or_default();
        let (Some((_, first)), Some((_, last))) = (lately().next(), self.releases.last()) else {
            return Duration::ZERO;
        };
        let turns = u32::try_from(lately().count()).unwrap_or(u32::MAX);
        let to_work = (*last - *first) / (turns - 1).max(1);
        let each = round_trip.clamp(TO_ASK.0, TO_ASK.1) + to_work.min(TO_WORK);
        each.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX)).min(LONGEST)
    }

    /// Until when this process holds back after its own last release. Who waited for that, and has not had the lock
    /// lately, is given `theirs`.
    pub(crate) fn until(
        &self,
        round_trip: Duration,
        theirs: Duration,
        now: Duration,
    ) -> Option<Duration> {
        let (_, at) = self.releases.iter().find(|(by, _)| *by == Releaser::Own)?;
        let least = if self.is_awaited { theirs } else { Duration::ZERO };
        Some(*at + self.pause(round_trip, now).max(least)).filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(7);
    const STEP: Duration = Duration::from_millis(1);

    fn rota(releases: &[Releaser]) -> Rota {
        let mut rota = Rota::default();
        for by in releases {
            rota.heard(*by, NOW);
        }
        rota
    }

    #[test]
    fn whoever_had_it_least_recently_is_next() {
        use Releaser::{Other, Own};
        for (releases, steps) in [
            (&[][..], 0),
            (&[Other(1), Other(2)], 0),
            (&[Own, Other(1)], 0),
            (&[Other(1), Own], 1),
            (&[Other(1), Other(2), Own, Other(3)], 2),
            (&[Other(1), Own, Other(1)], 0),
            (&[Own, Other(1), Other(2), Own], 2),
        ] {
            assert_eq!(rota(releases).pause(STEP, NOW), STEP * steps, "{releases:?}");
        }
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut rota = rota(&[Releaser::Other(1), Releaser::Own]);
        let later = NOW + LATELY;
        assert_eq!(rota.pause(STEP, later - STEP), STEP);
        assert_eq!(rota.pause(STEP, later), Duration::ZERO);
        rota.released(later);
        assert_eq!(rota.pause(STEP, later), Duration::ZERO);
    }

    #[test]
    fn those_before_are_given_the_time_that_a_turn_takes() {
        let mut rota = Rota::default();
        let turn = Duration::from_millis(3);
        for (turns, by) in [(0, Releaser::Other(1)), (1, Releaser::Other(2)), (2, Releaser::Own)] {
            rota.heard(by, NOW + turn * turns);
        }
        assert_eq!(rota.pause(STEP, NOW + turn * 2), (STEP + turn) * 2);
    }

    #[test]
    fn many_that_have_gone_cost_little() {
        let mut rota = Rota::default();
        for other in 0..1_000 {
            rota.heard(Releaser::Other(other), NOW);
        }
        rota.released(NOW);
        assert_eq!(rota.pause(STEP, NOW), STEP * 63);
        assert_eq!(rota.pause(Duration::from_secs(3), NOW), LONGEST);
        let until = |now| rota.until(STEP, Duration::ZERO, now);
        assert_eq!(until(NOW + STEP), Some(NOW + STEP * 63));
        assert_eq!(until(NOW + STEP * 63), None);
    }

    #[test]
    fn whoever_was_waited_for_lets_others_have_a_turn() {
        let mut rota = Rota::default();
        let until_after_release = |rota: &mut Rota, heard| {
            if heard {
                rota.heard(Releaser::Own, NOW);
            }
            rota.released(NOW);
            rota.until(STEP, STEP * 5, NOW)
        };
        assert_eq!(until_after_release(&mut rota, false), None);
        assert_eq!(until_after_release(&mut rota, true), Some(NOW + STEP * 5));
        // Nobody waited any more.
        assert_eq!(until_after_release(&mut rota, false), None);
    }
}
