//! Metrics, by the crate `metrics`: an observer that counts and measures what it is told.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use database_locks_core::LossReason;
use database_locks_core::observer::{Event, Observer};
use metrics::{
    Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::LockName;

const ATTEMPTS: &str = "database_locks_acquire_attempts_total";
const ENDS: &str = "database_locks_acquires_total";
const BUSY: &str = "database_locks_busy_total";
const WAITING: &str = "database_locks_waiting";
const WAITED: &str = "database_locks_wait_duration_seconds";
const HELD: &str = "database_locks_held";
const HOLDS: &str = "database_locks_hold_duration_seconds";
const LOST: &str = "database_locks_lost_total";
const RENEWALS: &str = "database_locks_renewals_total";
const RENEWAL_FAILURES: &str = "database_locks_renewal_failures_total";
const OUTAGES: &str = "database_locks_outages_total";
const AWAY: &str = "database_locks_database_away";

/// Records metrics by the crate [`metrics`](https://docs.rs/metrics), for whichever exporter the application installs
/// (feature `metrics`).
///
/// ```
/// use database_locks::{Locks, Metrics};
///
/// // First an exporter, such as `PrometheusBuilder::new().install()`.
/// let options = Locks::builder().observer(Metrics::new());
/// ```
///
/// | metric | kind | labels | |
/// |---|---|---|---|
/// | `database_locks_acquire_attempts_total` | counter | | requests for a lock |
/// | `database_locks_acquires_total` | counter | `outcome` | requests that have ended: `acquired`, `busy` (of those that ask once), `timeout`, `unavailable` (the database, within the timeout), `abandoned` (their futures were dropped) or `error` |
/// | `database_locks_busy_total` | counter | | answers of the database that a lock is busy |
/// | `database_locks_waiting` | gauge | | requests that wait now |
/// | `database_locks_wait_duration_seconds` | histogram | `outcome` | from the request to its outcome |
/// | `database_locks_held` | gauge | | leases that are held now; guards of one owner that share one count once |
/// | `database_locks_hold_duration_seconds` | histogram | `ended` | from the grant of a lease to its end: `released` or `lost` |
/// | `database_locks_lost_total` | counter | `reason` | leases that were lost: the [`LossReason`] in lower case |
/// | `database_locks_renewals_total` | counter | | leases that were renewed, each time |
/// | `database_locks_renewal_failures_total` | counter | | renewals of a lease that had no answer, or were not decided, and are tried again |
/// | `database_locks_outages_total` | counter | | how often the database has ceased to answer |
/// | `database_locks_database_away` | gauge | | [`Locks`](crate::Locks) of this process whose database does not answer: 0 or 1, where there is one |
///
/// All have the label `backend` as well: `postgres`, `mysql`, `sqlite`, `memory`, or `disabled` while locks are switched
/// off. The names of locks are no label unless [`label_locks`](Self::label_locks) makes them one.
///
/// Several [`Locks`](crate::Locks) of one backend, each with an observer of its own, are added up. Install the exporter
/// before locks are made, since gauges are counted up and down from there, and let it forget no gauge that has not changed
/// for long.
#[derive(Debug, Default)]
pub struct Metrics {
    label_locks: bool,
    backend: OnceLock<&'static str>,
    is_away: AtomicBool,
}

impl Metrics {
    /// Metrics without the names of locks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the name of the lock as the label `lock`, but for outages. Each name makes time series of its own, which stay
    /// for as long as the exporter keeps them: only for names that are few.
    #[must_use]
    pub fn label_locks(mut self) -> Self {
        self.label_locks = true;
        self
    }

    fn labels(&self) -> Vec<Label> {
        vec![Label::new("backend", self.backend.get().copied().unwrap_or_default())]
    }

    fn labels_of(&self, lock: &LockName) -> Vec<Label> {
        let mut labels = self.labels();
        if self.label_locks {
            labels.push(Label::new("lock", lock.to_string()));
        }
        labels
    }

    fn start(&self, backend: &'static str) {
        let _ = self.backend.set(backend);
        describe();
        // A counter that appears at 1 has not increased, for whoever is to be alarmed by an increase.
        counter!(OUTAGES, self.labels()).increment(0);
        if !self.label_locks {
            counter!(RENEWAL_FAILURES, self.labels()).increment(0);
            for reason in LossReason::ALL {
                counter!(LOST, with(self.labels(), "reason", reason.as_str())).increment(0);
            }
        }
    }

    fn begin_outage(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        counter!(OUTAGES, self.labels()).increment(1);
        gauge!(AWAY, self.labels()).increment(1);
    }

    fn end_outage(&self) {
        if self.is_away.swap(false, Ordering::Relaxed) {
            gauge!(AWAY, self.labels()).decrement(1);
        }
    }
}

// Each is looked up anew, since an exporter may have forgotten it: what is kept of one that was forgotten counts for nobody.
impl Observer for Metrics {
    fn on(&self, event: Event<'_>) {
        match event {
            Event::Started { backend } => self.start(backend),
            Event::Waiting { lock } => {
                let labels = self.labels_of(lock);
                counter!(ATTEMPTS, labels.clone()).increment(1);
                gauge!(WAITING, labels).increment(1);
            }
            Event::Busy { lock, .. } => counter!(BUSY, self.labels_of(lock)).increment(1),
            Event::Granted { lease, after, joined } => {
                let labels = self.labels_of(&lease.name);
                gauge!(WAITING, labels.clone()).decrement(1);
                if !joined {
                    gauge!(HELD, labels.clone()).increment(1);
                }
                let labels = with(labels, "outcome", "acquired");
                counter!(ENDS, labels.clone()).increment(1);
                histogram!(WAITED, labels).record(after);
            }
            Event::NotGranted { lock, after, why } => {
                let labels = self.labels_of(lock);
                gauge!(WAITING, labels.clone()).decrement(1);
                let labels = with(labels, "outcome", why.as_str());
                counter!(ENDS, labels.clone()).increment(1);
                histogram!(WAITED, labels).record(after);
            }
            Event::Renewed { lease } => {
                counter!(RENEWALS, self.labels_of(&lease.name)).increment(1);
            }
            Event::RenewalFailed { lease } => {
                counter!(RENEWAL_FAILURES, self.labels_of(&lease.name)).increment(1);
            }
            Event::Lost { lease, reason, after } => {
                let labels = self.labels_of(&lease.name);
                gauge!(HELD, labels.clone()).decrement(1);
                counter!(LOST, with(labels.clone(), "reason", reason.as_str())).increment(1);
                histogram!(HOLDS, with(labels, "ended", "lost")).record(after);
            }
            Event::Released { lease, after } => {
                let labels = self.labels_of(&lease.name);
                gauge!(HELD, labels.clone()).decrement(1);
                histogram!(HOLDS, with(labels, "ended", "released")).record(after);
            }
            Event::Away { .. } => self.begin_outage(),
            Event::Back | Event::Stopped => self.end_outage(),
            _ => {}
        }
    }
}

fn with(mut labels: Vec<Label>, name: &'static str, value: &'static str) -> Vec<Label> {
    labels.push(Label::new(name, value));
    labels
}

/// What an exporter says of each.
fn describe() {
    for (name, what) in [
        (ATTEMPTS, "Requests for a lock."),
        (ENDS, "Requests for a lock that have ended, by their outcome."),
        (BUSY, "Answers of the database that a lock is busy."),
        (LOST, "Leases that were lost, by the reason."),
        (RENEWALS, "Leases that were renewed, each time."),
        (RENEWAL_FAILURES, "Renewals of a lease that failed and are tried again."),
        (OUTAGES, "How often the database has ceased to answer."),
    ] {
        describe_counter!(name, Unit::Count, what);
    }
    for (name, what) in [
        (WAITING, "Requests that wait for a lock."),
        (HELD, "Leases that are held."),
        (AWAY, "Locks of this process whose database does not answer."),
    ] {
        describe_gauge!(name, Unit::Count, what);
    }
    for (name, what) in [
        (WAITED, "How long requests have waited, by their outcome."),
        (HOLDS, "How long leases were held, by how they have ended."),
    ] {
        describe_histogram!(name, Unit::Seconds, what);
    }
}
