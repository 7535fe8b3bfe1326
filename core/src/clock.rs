//! The clocks: one that runs through suspend for deadlines, and tokio's for tests that pause time.

use std::time::Duration;

/// Time since the machine booted, counted through suspend where the system can tell.
///
/// `CLOCK_BOOTTIME` on Linux. On macOS `CLOCK_MONOTONIC` runs through suspend. Elsewhere the
/// standard library's monotonic clock is used, counted from its first use in this process.
#[must_use]
pub fn time_since_boot() -> Duration {
    #[cfg(unix)]
    {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(CLOCK);
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }
    #[cfg(not(unix))]
    time_since_first_use()
}

/// The best clock that a system has of which no more is known. Compiled for tests as well, so that it compiles.
#[cfg(any(not(unix), test))]
fn time_since_first_use() -> Duration {
    use std::sync::LazyLock;
    use std::time::Instant;
    #[expect(clippy::disallowed_methods, reason = "there is no other")]
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Which clock an engine counts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// [`time_since_boot`].
    Boot,
    /// The clock of the tokio runtime that the engine runs on, counted from the engine's start,
    /// which tests can pause and step.
    Tokio { start: tokio::time::Instant },
}

impl Clock {
    /// The clock of the tokio runtime, beginning now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that paused tests count on")]
    pub(crate) fn of_tokio() -> Self {
        Self::Tokio { start: tokio::time::Instant::now() }
    }

    /// The moment, on a scale of this clock's own.
    pub(crate) fn now(self) -> Duration {
        match self {
            Self::Boot => time_since_boot(),
            Self::Tokio { start } => start.elapsed(),
        }
    }

    /// Sleeps until `moment`, or not much longer than [`Self::LONGEST_NAP`] where the machine was
    /// suspended meanwhile: timers do not run through suspend, so the caller looks again.
    pub(crate) async fn sleep_towards(self, moment: Duration) {
        let left = moment.saturating_sub(self.now());
        let nap = match self {
            Self::Boot => left.min(Self::LONGEST_NAP),
            Self::Tokio { .. } => left,
        };
        tokio::time::sleep(nap).await;
    }

    const LONGEST_NAP: Duration = Duration::from_millis(250);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_does_not_run_backwards() {
        let first = time_since_boot();
        assert!(time_since_boot() >= first);
        assert!(first > Duration::ZERO);
        let first = time_since_first_use();
        assert!(time_since_first_use() >= first);
    }
}
