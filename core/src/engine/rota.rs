//! Whose turn it is among the processes that wait for a name.

use std::time::Duration;

use crate::backend::Releaser;

/// Who released a name lately, whoever did so longest ago first.
///
/// All who listen hear of the same releases in the same order, so that they agree whose turn it is without asking each
/// other: that of whoever has had the lock least recently. The others hold back a little, for it to get there first.
#[derive(Debug, Default)]
pub(crate) struct Rota {
    releases: Vec<Release>,
    /// How long the last turn took, from the release before to its own.
    turn: Duration,
    /// Whether a hint told of a release of this process since it last gave the lock back: somebody waited for that.
    was_awaited: bool,
    /// Whether that was so when it last did.
    is_awaited: bool,
}

#[derive(Debug)]
struct Release {
    by: Releaser,
    at: Duration,
    /// How often others had the lock since then whose turn it was later.
    passed_over: u32,
}

/// For how long a release counts. Whoever has not had the lock for so long asks at once: where turns take so long that
/// this holds for several, they draw lots.
pub(crate) const LATELY: Duration = Duration::from_secs(1);
/// How many releasers are remembered.
const MOST: usize = 64;
/// How often one of them may miss its turn before it is taken to have gone.
const MISSED: u32 = 3;
/// What each of those that come before is given, twice over, so that it is heard of by then: to ask, a round trip within these
/// bounds, and to work and release, at most this.
const TO_ASK: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(25));
const TO_WORK: Duration = Duration::from_millis(50);
/// The longest pause. Those that come before may all have gone.
const LONGEST: Duration = Duration::from_millis(200);

impl Rota {
    /// A hint tells of a release.
    pub(crate) fn heard(&mut self, by: Releaser, now: Duration) {
        self.was_awaited |= by == Releaser::Own;
        self.turn = self.releases.last().map_or(Duration::ZERO, |last| now.saturating_sub(last.at));
        self.add(by, now);
    }

    /// This process gives the lock back.
    pub(crate) fn gives_back(&mut self, now: Duration) {
        self.is_awaited = std::mem::take(&mut self.was_awaited);
        self.add(Releaser::Own, now);
    }

    fn add(&mut self, by: Releaser, now: Duration) {
        let place = self.releases.iter().position(|release| release.by == by);
        for release in &mut self.releases[..place.unwrap_or_default()] {
            release.passed_over += 1;
        }
        self.releases.retain(|release| {
            release.by != by && release.passed_over < MISSED && release.is_lately(now)
        });
        if self.releases.len() == MOST {
            self.releases.remove(0);
        }
        self.releases.push(Release { by, at: now, passed_over: 0 });
    }

    /// How long this process holds back after a release: until those before it have had the lock, which is heard of,
    /// or would have.
    pub(crate) fn pause(&self, round_trip: Duration, now: Duration) -> Duration {
        let mut lately = self.releases.iter().filter(|release| release.is_lately(now));
        let before = lately.position(|release| release.by == Releaser::Own);
        let each = (round_trip.clamp(TO_ASK.0, TO_ASK.1) + self.turn.min(TO_WORK)) * 2;
        let before = u32::try_from(before.unwrap_or_default()).unwrap_or(u32::MAX);
        each.saturating_mul(before).min(LONGEST)
    }

    /// Until when this process holds back after it has given the lock back. Whoever waited for that, and has not had the lock
    /// lately, is given `theirs`.
    pub(crate) fn until(
        &self,
        round_trip: Duration,
        theirs: Duration,
        now: Duration,
    ) -> Option<Duration> {
        let own = self.releases.iter().find(|release| release.by == Releaser::Own)?;
        let least = if self.is_awaited { theirs } else { Duration::ZERO };
        let until = own.at.saturating_add(self.pause(round_trip, now).max(least));
        Some(until).filter(|until| now < *until)
    }
}

impl Release {
    fn is_lately(&self, now: Duration) -> bool {
        now < self.at.saturating_add(LATELY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(7);
    const STEP: Duration = Duration::from_millis(1);
    /// What each is given whose turn takes no time.
    const EACH: Duration = Duration::from_millis(2);

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
            // 1 does not come when it is its turn, and seems to have gone in the end.
            (&[Other(1), Other(2), Own, Other(2)], 1),
            (&[Other(1), Other(2), Own, Other(2), Own, Other(2)], 0),
            (&[Other(1), Own, Own, Own], 1),
            (&[Other(1), Own, Own, Own, Own], 0),
        ] {
            assert_eq!(rota(releases).pause(STEP, NOW), EACH * steps, "{releases:?}");
        }
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut rota = rota(&[Releaser::Other(1), Releaser::Own]);
        let later = NOW + LATELY;
        assert_eq!(rota.pause(STEP, later - STEP), EACH);
        assert_eq!(rota.pause(STEP, later), Duration::ZERO);
        rota.gives_back(later);
        assert_eq!(rota.pause(STEP, later), Duration::ZERO);
    }

    #[test]
    fn those_before_are_given_the_time_that_a_turn_takes() {
        let mut rota = Rota::default();
        for (millis, by) in [(0, Releaser::Other(1)), (9, Releaser::Other(2)), (12, Releaser::Own)]
        {
            rota.heard(by, NOW + STEP * millis);
        }
        assert_eq!(rota.pause(STEP, NOW + STEP * 12), (EACH + STEP * 3 * 2) * 2);
    }

    #[test]
    fn many_that_have_gone_cost_little_and_once() {
        let mut rota = Rota::default();
        for other in 0..1_000 {
            rota.heard(Releaser::Other(other), NOW);
        }
        rota.gives_back(NOW);
        assert_eq!(rota.pause(STEP, NOW), EACH * 63);
        assert_eq!(rota.pause(Duration::from_secs(3), NOW), LONGEST);
        let until = |rota: &Rota, now| rota.until(STEP, Duration::ZERO, now);
        assert_eq!(until(&rota, NOW + STEP), Some(NOW + EACH * 63));
        assert_eq!(until(&rota, NOW + EACH * 63), None);
        for turn in [130, 140, 150] {
            rota.gives_back(NOW + STEP * turn);
        }
        assert_eq!(until(&rota, NOW + STEP * 150), None);
    }

    #[test]
    fn whoever_was_waited_for_lets_others_have_a_turn() {
        let mut rota = Rota::default();
        let until = |rota: &Rota| rota.until(STEP, STEP * 5, NOW);
        rota.gives_back(NOW);
        assert_eq!(until(&rota), None);
        rota.heard(Releaser::Own, NOW);
        rota.gives_back(NOW);
        assert_eq!(until(&rota), Some(NOW + STEP * 5));
        // Nobody waited any more.
        rota.gives_back(NOW);
        assert_eq!(until(&rota), None);
    }
}
