//! What the observer `Metrics` records, as a recorder sees it and as Prometheus scrapes it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use database_locks::{Locks, LocksBuilder, LossReason, Metrics};
use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_memory::MemoryBackend;
use metrics::{LocalRecorderGuard, set_default_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
/// Where the names are documented.
const SOURCE: &str = include_str!("../src/metrics.rs");

/// A store, locks of two processes on it, what spoils the calls of the first, and what its metrics are. All of it is on the
/// test's thread, and so is the recorder.
struct Scene {
    faulty: Arc<FaultyBackend>,
    here: Locks,
    there: Locks,
    seen: Seen,
}

impl Scene {
    fn new(recorder: &DebuggingRecorder, metrics: Metrics) -> Self {
        let seen = Seen::by(recorder);
        let (faulty, here, there) = locks(Locks::builder().observer(metrics));
        Self { faulty, here, there, seen }
    }
}

fn locks(options: LocksBuilder) -> (Arc<FaultyBackend>, Locks, Locks) {
    let store = Arc::new(MemoryBackend::new());
    let faulty = FaultyBackend::new(store.clone());
    let here = options.on_current_runtime().build(faulty.clone()).unwrap();
    let there = Locks::builder().on_current_runtime().build(store).unwrap();
    (faulty, here, there)
}

/// All that was recorded so far.
struct Seen {
    snapshotter: Snapshotter,
    /// Counters and gauges.
    sums: BTreeMap<String, f64>,
    histograms: BTreeMap<String, Vec<f64>>,
}

impl Seen {
    fn by(recorder: &DebuggingRecorder) -> Self {
        Self {
            snapshotter: recorder.snapshotter(),
            sums: BTreeMap::new(),
            histograms: BTreeMap::new(),
        }
    }

    /// Takes in what is new. A snapshot sets all to zero, and so each is a difference.
    async fn look(&mut self) {
        // Until the engine has heard of what was dropped.
        sleep(Duration::from_millis(1)).await;
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            assert!(unit.is_some() && description.is_some(), "{key} is not described");
            let mut labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            labels.sort();
            let name = key.name().strip_prefix("database_locks_").unwrap();
            let series = format!("{name} {}", labels.join(" "));
            match value {
                DebugValue::Counter(more) => *self.sums.entry(series).or_default() += more as f64,
                DebugValue::Gauge(more) => *self.sums.entry(series).or_default() += more.0,
                DebugValue::Histogram(more) => {
                    let values = self.histograms.entry(series).or_default();
                    values.extend(more.into_iter().map(|value| value.0));
                }
            }
        }
    }

    async fn sum(&mut self, series: &str) -> f64 {
        self.look().await;
        self.sums.get(series).copied().unwrap_or_default()
    }

    async fn held_and_waiting(&mut self) -> (f64, f64) {
        (self.sum("held backend=memory").await, self.sum("waiting backend=memory").await)
    }

    async fn durations(&mut self, series: &str) -> Vec<f64> {
        self.look().await;
        self.histograms.get(series).cloned().unwrap_or_default()
    }
}

fn record(recorder: &DebuggingRecorder) -> LocalRecorderGuard<'_> {
    set_default_local_recorder(recorder)
}

#[tokio::test(start_paused = true)]
async fn gauges_return_to_zero_after_every_kind_of_end() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let Scene { faulty, here, there, mut seen } = Scene::new(&recorder, Metrics::new());
    let none = (0.0, 0.0);

    let guard = here.lock("released").acquire().await.unwrap();
    assert_eq!(seen.held_and_waiting().await, (1.0, 0.0));
    guard.release().await.unwrap();
    assert_eq!(seen.held_and_waiting().await, none);
    drop(here.lock("dropped").acquire().await.unwrap());
    assert_eq!(seen.held_and_waiting().await, none);

    let first = here.lock("joined").owner("w").acquire().await.unwrap();
    let second = here.lock("joined").owner("w").acquire().await.unwrap();
    assert_eq!(seen.held_and_waiting().await, (1.0, 0.0));
    let superseding = here.rwlock("joined").read().owner("w").acquire().await.unwrap();
    assert_eq!(seen.held_and_waiting().await, (1.0, 0.0));
    drop((first, second));
    assert_eq!(seen.held_and_waiting().await, (1.0, 0.0));
    drop(superseding);
    assert_eq!(seen.held_and_waiting().await, none);

    let forced = here.lock("forced").acquire().await.unwrap();
    there.force_release(forced.lease().id()).await.unwrap();
    forced.lost().await;
    assert_eq!(seen.held_and_waiting().await, none);
    drop(forced);
    faulty.always(Verb::Renew, Fault::Refuse);
    let expired = here.lock("expired").acquire().await.unwrap();
    expired.lost().await;
    drop(expired);
    assert_eq!(seen.held_and_waiting().await, none);

    let busy = there.lock("busy").ttl(HOUR).acquire().await.unwrap();
    assert!(here.lock("busy").try_acquire().await.unwrap().is_none());
    here.lock("busy").timeout(SECOND).acquire().await.unwrap_err();
    assert_eq!(seen.held_and_waiting().await, none);
    let abandoned = tokio::spawn(here.lock("busy").acquire());
    let waiting = tokio::spawn(here.lock("busy").acquire());
    assert_eq!(seen.held_and_waiting().await, (0.0, 2.0));
    abandoned.abort();
    assert_eq!(seen.held_and_waiting().await, (0.0, 1.0));
    busy.release().await.unwrap();
    let handed_over = waiting.await.unwrap().unwrap();
    let next = tokio::spawn(here.lock("busy").acquire());
    assert_eq!(seen.held_and_waiting().await, (1.0, 1.0));
    handed_over.release().await.unwrap();
    drop(next.await.unwrap().unwrap());
    assert_eq!(seen.held_and_waiting().await, none);

    // A grant that nobody is there to take.
    faulty.once(Verb::Acquire, Fault::DelayAnswer(SECOND));
    assert!(timeout(SECOND / 2, here.lock("late").acquire()).await.is_err());
    sleep(2 * SECOND).await;
    assert_eq!(seen.held_and_waiting().await, none);

    let shut_down = here.lock("shut down").acquire().await.unwrap();
    faulty.always(Verb::Acquire, Fault::Refuse);
    let asking = tokio::spawn(here.lock("asking").acquire());
    sleep(SECOND).await;
    assert_eq!(seen.held_and_waiting().await, (1.0, 1.0));
    assert_eq!(seen.sum("database_away backend=memory").await, 1.0);
    here.shutdown().await;
    assert!(asking.await.unwrap().is_err());
    here.lock("too late").acquire().await.unwrap_err();
    drop(shut_down);
    assert_eq!(seen.held_and_waiting().await, none);
    seen.look().await;
    let gauges = ["held", "waiting", "database_away"];
    let is_gauge = |name: &str| gauges.iter().any(|gauge| name.split(' ').next() == Some(gauge));
    for (series, value) in &seen.sums {
        assert!(!is_gauge(series) || *value == 0.0, "{series}: {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn locks_that_are_dropped_in_an_outage_leave_no_gauge_behind() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let Scene { faulty, here, there: _, mut seen } = Scene::new(&recorder, Metrics::new());
    let guard = here.lock("x").acquire().await.unwrap();
    for verb in [Verb::Acquire, Verb::Renew, Verb::Release] {
        faulty.always(verb, Fault::Refuse);
    }
    let asking = tokio::spawn(here.lock("y").acquire());
    sleep(SECOND).await;
    asking.abort();
    drop((guard, here));
    assert_eq!(seen.sum("database_away backend=memory").await, 1.0);
    sleep(HOUR).await;
    assert_eq!(seen.held_and_waiting().await, (0.0, 0.0));
    assert_eq!(seen.sum("database_away backend=memory").await, 0.0);
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_and_measured_by_their_outcomes() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let Scene { faulty, here, there, mut seen } = Scene::new(&recorder, Metrics::new());
    let held = there.lock("x").ttl(HOUR).acquire().await.unwrap();
    assert!(here.lock("x").try_acquire().await.unwrap().is_none());
    here.lock("x").timeout(3 * SECOND).acquire().await.unwrap_err();
    assert!(timeout(SECOND, here.lock("x").acquire()).await.is_err());
    here.semaphore("x", 7).permits(1).acquire().await.unwrap_err();
    held.release().await.unwrap();
    let first = here.lock("x").owner("w").acquire().await.unwrap();
    let second = here.lock("x").owner("w").acquire().await.unwrap();
    drop((first, second));
    faulty.always(Verb::Acquire, Fault::Refuse);
    here.lock("x").timeout(SECOND).acquire().await.unwrap_err();

    assert_eq!(seen.sum("acquire_attempts_total backend=memory").await, 7.0);
    for (outcome, times) in [
        ("acquired", 2),
        ("busy", 1),
        ("timeout", 1),
        ("abandoned", 1),
        ("error", 1),
        ("unavailable", 1),
    ] {
        let labels = format!("backend=memory outcome={outcome}");
        assert_eq!(seen.sum(&format!("acquires_total {labels}")).await, times as f64, "{outcome}");
        let waited = seen.durations(&format!("wait_duration_seconds {labels}")).await;
        assert_eq!(waited.len(), times, "{outcome}");
        match outcome {
            "timeout" => assert!((3.0..3.1).contains(&waited[0]), "{waited:?}"),
            "abandoned" | "unavailable" => assert!((1.0..1.1).contains(&waited[0]), "{waited:?}"),
            _ => assert!(waited.iter().all(|waited| *waited < 0.1), "{outcome}: {waited:?}"),
        }
    }
    // That of who asked once, and of those who waited.
    assert!(seen.sum("busy_total backend=memory").await >= 3.0);
}

#[tokio::test(start_paused = true)]
async fn leases_are_measured_and_their_renewals_and_losses_counted() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let Scene { faulty, here, there, mut seen } = Scene::new(&recorder, Metrics::new());
    let lost = |reason: &str| format!("lost_total backend=memory reason={reason}");
    for reason in LossReason::ALL {
        seen.look().await;
        assert_eq!(seen.sums.get(&lost(reason.as_str())), Some(&0.0), "it is there from the start");
    }

    let guard = here.lock("x").ttl(60 * SECOND).acquire().await.unwrap();
    sleep(90 * SECOND).await;
    let renewals = seen.sum("renewals_total backend=memory").await;
    assert!((4.0..8.0).contains(&renewals), "{renewals}: every third of a TTL, or a little before");
    assert_eq!(seen.sum("renewal_failures_total backend=memory").await, 0.0);
    guard.release().await.unwrap();
    let released = seen.durations("hold_duration_seconds backend=memory ended=released").await;
    assert!(released.len() == 1 && (90.0..90.1).contains(&released[0]), "{released:?}");

    let forced = here.lock("x").acquire().await.unwrap();
    there.force_release(forced.lease().id()).await.unwrap();
    forced.lost().await;
    faulty.always(Verb::Renew, Fault::Refuse);
    let expired = here.lock("x").acquire().await.unwrap();
    expired.lost().await;
    faulty.heal(Verb::Renew);
    assert!(seen.sum("renewal_failures_total backend=memory").await >= 1.0);
    let shut_down = here.lock("y").acquire().await.unwrap();
    here.shutdown().await;
    for (reason, times) in [("forced", 1.0), ("expired", 1.0), ("shutdown", 1.0), ("taken", 0.0)] {
        assert_eq!(seen.sum(&lost(reason)).await, times, "{reason}");
    }
    let durations = seen.durations("hold_duration_seconds backend=memory ended=lost").await;
    assert!(durations.len() == 3 && durations.iter().all(|held| *held < 10.0), "{durations:?}");
    drop((forced, expired, shut_down));
}

#[tokio::test(start_paused = true)]
async fn outages_are_counted_and_shown_while_they_last() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let Scene { faulty, here, there: _, mut seen } = Scene::new(&recorder, Metrics::new());
    seen.look().await;
    assert_eq!(seen.sums.get("outages_total backend=memory"), Some(&0.0));
    for times in [1.0, 2.0] {
        faulty.always(Verb::Acquire, Fault::Refuse);
        let asking = tokio::spawn(here.lock("x").acquire());
        sleep(10 * SECOND).await;
        assert_eq!(seen.sum("outages_total backend=memory").await, times);
        assert_eq!(seen.sum("database_away backend=memory").await, 1.0);
        faulty.heal(Verb::Acquire);
        drop(asking.await.unwrap().unwrap());
        assert_eq!(seen.sum("outages_total backend=memory").await, times);
        assert_eq!(seen.sum("database_away backend=memory").await, 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_lock_is_a_label_only_if_asked() {
    for label_locks in [false, true] {
        let recorder = DebuggingRecorder::new();
        let _recording = record(&recorder);
        let metrics = if label_locks { Metrics::new().label_locks() } else { Metrics::new() };
        let Scene { here, mut seen, .. } = Scene::new(&recorder, metrics);
        everything(&here).await;
        seen.look().await;
        for series in seen.sums.keys().chain(seen.histograms.keys()) {
            let is_of_the_database =
                series.starts_with("outages_total") || series.starts_with("database_away");
            let is_labelled = series.contains(" lock=x");
            assert_eq!(is_labelled, label_locks && !is_of_the_database, "{series}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn locks_of_one_backend_are_added_up() {
    let recorder = DebuggingRecorder::new();
    let _recording = record(&recorder);
    let one = Scene::new(&recorder, Metrics::new());
    let mut other = Scene::new(&recorder, Metrics::new());
    let first = one.here.lock("x").acquire().await.unwrap();
    let second = other.here.lock("x").acquire().await.unwrap();
    assert_eq!(other.seen.held_and_waiting().await, (2.0, 0.0));
    drop(first);
    assert_eq!(other.seen.held_and_waiting().await, (1.0, 0.0));
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_scrape_shows_what_is_documented_and_no_more() {
    let documented: BTreeMap<&str, &str> = SOURCE
        .lines()
        .filter_map(|line| line.strip_prefix("/// | `"))
        .map(|row| {
            let (name, row) = row.split_once("` | ").unwrap();
            (name, row.split_once(" | ").unwrap().0)
        })
        .collect();
    assert_eq!(documented.len(), 12);
    let recorder = PrometheusBuilder::new().build_recorder();
    let scrape = recorder.handle();
    let _recording = set_default_local_recorder(&recorder);
    let (faulty, here, _) = locks(Locks::builder().observer(Metrics::new()));
    faulty.once(Verb::Renew, Fault::Refuse);
    everything(&here).await;
    faulty.once(Verb::Acquire, Fault::Refuse);
    drop(here.lock("x").acquire().await.unwrap());
    sleep(SECOND).await;

    let text = scrape.render();
    let kinds: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        // Without buckets the exporter makes summaries of histograms.
        .map(|(name, kind)| (name, if kind == "summary" { "histogram" } else { kind }))
        .collect();
    assert_eq!(kinds, documented, "{text}");
    let helped = text.lines().filter(|line| line.starts_with("# HELP ")).count();
    assert_eq!(helped, documented.len(), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(line.contains(r#"backend="memory""#), "{line}");
    }
}

/// Does what is recorded, but for faults of the database.
async fn everything(here: &Locks) {
    let guard = here.lock("x").ttl(60 * SECOND).acquire().await.unwrap();
    assert!(here.lock("x").try_acquire().await.unwrap().is_none());
    sleep(90 * SECOND).await;
    guard.release().await.unwrap();
    let lost = here.lock("x").auto_renew(false).acquire().await.unwrap();
    lost.lost().await;
    drop(lost);
}
