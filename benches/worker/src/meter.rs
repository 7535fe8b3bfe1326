//! Clocks and counters of a worker.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::job::Outcome;

/// The host's monotonic clock, which all processes of it read alike.
#[must_use]
pub fn monotonic_nanos() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// The processor time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    Duration::from_nanos(nanos(clock_gettime(ClockId::ProcessCPUTime)))
}

/// The memory of this process that is in use now, in bytes. 0 where the system does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

fn nanos(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or_default()
}

/// Durations that were measured, and errors that were met, by many tasks at once.
#[derive(Debug)]
pub(crate) struct Meter {
    counts: Mutex<Counts>,
    cpu: Duration,
    began: u64,
}

#[derive(Debug)]
struct Counts {
    durations: Histogram<u64>,
    errors: u64,
    error: Option<String>,
}

impl Meter {
    /// Begins to measure.
    pub(crate) fn start() -> Self {
        // Up to ten minutes in µs, to three digits.
        let durations = Histogram::new_with_bounds(1, 600_000_000, 3);
        let durations = durations.unwrap_or_else(|error| panic!("valid bounds: {error}"));
        let counts = Mutex::new(Counts { durations, errors: 0, error: None });
        Self { counts, cpu: cpu_time(), began: monotonic_nanos() }
    }

    /// Adds what one task has measured.
    pub(crate) fn add(&self, tally: Tally) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for micros in tally.micros {
            counts.durations.saturating_record(micros);
        }
        counts.errors += tally.errors;
        if counts.error.is_none() {
            counts.error = tally.error;
        }
    }

    /// What was measured, of which `figures` are known already.
    pub(crate) fn finish(self, mut figures: BTreeMap<String, f64>) -> Outcome {
        let seconds = Duration::from_nanos(monotonic_nanos() - self.began).as_secs_f64();
        let cpu = (cpu_time() - self.cpu).as_secs_f64();
        let counts = self.counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let durations = counts.durations;
        figures.insert("seconds".into(), seconds);
        figures.insert("client_cpu_seconds".into(), cpu);
        figures.insert("errors".into(), counts.errors as f64);
        figures.insert("resident_bytes".into(), resident_bytes() as f64);
        let mut percentiles = Vec::new();
        if !durations.is_empty() {
            let operations = durations.len() as f64;
            figures.insert("operations".into(), operations);
            figures.insert("per_second".into(), operations / seconds);
            figures.insert("client_cpu".into(), cpu * 1e6 / operations);
            for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
                figures.insert(name.into(), durations.value_at_quantile(quantile) as f64);
            }
            figures.insert("mean".into(), durations.mean());
            percentiles = (0..100)
                .map(|hundredth| f64::from(hundredth) / 100.0)
                .chain([0.999])
                .map(|quantile| durations.value_at_quantile(quantile) as f64)
                .collect();
        }
        Outcome { figures, sections: Vec::new(), percentiles, error: counts.error }
    }
}

/// What one task has measured.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    micros: Vec<u64>,
    errors: u64,
    error: Option<String>,
}

impl Tally {
    pub(crate) fn record(&mut self, nanos: u64) {
        self.micros.push(nanos.div_ceil(1_000));
    }

    pub(crate) fn failed(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.error.get_or_insert_with(|| format!("{error:#}"));
    }
}
