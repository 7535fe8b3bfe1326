//! The clock that leases in memory live on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use database_locks_core::clock::time_since_boot;

/// A clock that moves only when a test says so. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<Duration>>);

impl ManualClock {
    /// A clock that stands at the present.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(since_epoch())))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.saturating_add(by);
    }

    fn now(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Clock {
    Boot,
    Manual(ManualClock),
}

impl Clock {
    /// The moment on the clock that leases live on.
    pub(crate) fn now(&self) -> Duration {
        match self {
            Self::Boot => time_since_boot(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// µs since 1970, for tokens.
    pub(crate) fn micros(&self) -> u64 {
        let wall = match self {
            Self::Boot => since_epoch(),
            Self::Manual(clock) => clock.now(),
        };
        u64::try_from(wall.as_micros()).unwrap_or(u64::MAX)
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
