//! The spans of requests and leases. A program of its own: all of its tests share one subscriber, and tell their spans apart by
//! the names of their locks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, Once};
use std::time::Duration;

use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_core::{Locks, blocking};
use database_locks_memory::MemoryBackend;
use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::{Instrument, Span, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default)]
struct Seen {
    name: &'static str,
    target: String,
    fields: BTreeMap<&'static str, String>,
    parent: Option<&'static str>,
    is_closed: bool,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

static SPANS: LazyLock<Mutex<Vec<(u64, Seen)>>> = LazyLock::new(Mutex::default);

struct Recording;

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for Recording {
    fn on_new_span(&self, of: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.name());
        let (name, target) = (of.metadata().name(), of.metadata().target().to_owned());
        let mut seen = Seen { name, target, parent, ..Seen::default() };
        of.record(&mut seen);
        SPANS.lock().unwrap().push((id.into_u64(), seen));
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        with(id, |seen| values.record(seen));
    }

    fn on_close(&self, id: span::Id, _: Context<'_, S>) {
        with(&id, |seen| seen.is_closed = true);
    }
}

/// Ids are used again once a span is closed.
fn with(id: &span::Id, change: impl FnOnce(&mut Seen)) {
    let mut spans = SPANS.lock().unwrap();
    let span = spans.iter_mut().find(|(other, seen)| *other == id.into_u64() && !seen.is_closed);
    change(&mut span.unwrap().1);
}

/// The spans of this name of this lock, in the order in which they began.
fn spans(name: &str, lock: &str) -> Vec<Seen> {
    let all = SPANS.lock().unwrap();
    let is_it = |seen: &&Seen| seen.name == name && seen.fields["lock"] == lock;
    all.iter().map(|(_, seen)| seen).filter(is_it).cloned().collect()
}

fn outcomes(lock: &str) -> Vec<String> {
    let spans = spans("lock.acquire", lock);
    assert!(spans.iter().all(|span| span.is_closed), "{spans:?}");
    spans.into_iter().map(|mut span| span.fields.remove("outcome").unwrap()).collect()
}

fn ends(lock: &str) -> Vec<Option<String>> {
    let end = |mut span: Seen| {
        let end = span.fields.remove("ended");
        assert_eq!(end.is_some(), span.is_closed, "{span:?}");
        end
    };
    spans("lock.hold", lock).into_iter().map(end).collect()
}

fn locks() -> (Arc<FaultyBackend>, Locks) {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| tracing_subscriber::registry().with(Recording).init());
    let faulty = FaultyBackend::new(Arc::new(MemoryBackend::new()));
    let locks = Locks::builder().on_current_runtime().build(faulty.clone()).unwrap();
    (faulty, locks)
}

fn ended(how: &str) -> Vec<Option<String>> {
    vec![Some(how.to_owned())]
}

#[tokio::test(start_paused = true)]
async fn spans_have_their_names_and_fields_and_the_callers_as_parent() {
    let (_, locks) = locks();
    let held = locks.lock("fields").acquire().await.unwrap();
    let request = tracing::info_span!("the caller's", lock = "none");
    let waiting = tokio::spawn(locks.lock("fields").acquire().instrument(request));
    sleep(2 * SECOND).await;
    assert_eq!(ends("fields"), [None], "it is open for as long as the lease is held");
    held.release().await.unwrap();
    let guard = waiting.await.unwrap().unwrap();
    let [_, acquire] = &spans("lock.acquire", "fields")[..] else { panic!("one a request") };
    let [_, hold] = &spans("lock.hold", "fields")[..] else { panic!("one a lease") };
    let expected = [("backend", "memory"), ("lock", "fields"), ("outcome", "acquired")];
    let mut fields = acquire.fields.clone();
    let waited: f64 = fields.remove("waited").unwrap().parse().unwrap();
    assert!((2.0..3.0).contains(&waited), "{waited}");
    assert_eq!(fields, expected.map(|(name, value)| (name, value.to_owned())).into());
    let token = guard.token().to_string();
    let expected = [("backend", "memory"), ("lock", "fields"), ("token", &*token)];
    assert_eq!(hold.fields, expected.map(|(name, value)| (name, value.to_owned())).into());
    for span in [acquire, hold] {
        assert_eq!((&*span.target, span.parent), ("database_locks", Some("the caller's")));
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_says_how_it_went() {
    let (faulty, locks) = locks();
    let held = locks.lock("x").acquire().await.unwrap();
    assert!(locks.lock("x").try_acquire().await.unwrap().is_none());
    locks.lock("x").timeout(SECOND).acquire().await.unwrap_err();
    assert!(timeout(SECOND, locks.lock("x").acquire()).await.is_err());
    locks.semaphore("x", 7).permits(1).acquire().await.unwrap_err();
    faulty.always(Verb::Acquire, Fault::Refuse);
    locks.lock("x").timeout(SECOND).acquire().await.unwrap_err();
    let all = ["acquired", "busy", "timeout", "abandoned", "error", "unavailable"];
    assert_eq!(outcomes("x"), all);
    drop(held);
    // An option that cannot be is no request.
    locks.lock("x").ttl(SECOND).margin(SECOND).acquire().await.unwrap_err();
    assert_eq!(outcomes("x").len(), all.len());
}

#[tokio::test(start_paused = true)]
async fn callbacks_of_a_request_are_in_its_span() {
    let (_, locks) = locks();
    let _held = locks.lock("callback").acquire().await.unwrap();
    let (told, mut within) = tokio::sync::mpsc::unbounded_channel();
    let request = locks.lock("callback").timeout(SECOND).on_wait(move |_| {
        let _ = told.send(Span::current().metadata().map(|span| span.name()));
    });
    request.acquire().await.unwrap_err();
    assert_eq!(within.recv().await, Some(Some("lock.acquire")));
    assert_eq!(outcomes("callback"), ["acquired", "timeout"]);
}

#[tokio::test(start_paused = true)]
async fn a_hold_says_how_it_ended() {
    let (faulty, locks) = locks();
    locks.lock("released").acquire().await.unwrap().release().await.unwrap();
    assert_eq!(ends("released"), ended("released"));
    drop(locks.lock("dropped").acquire().await.unwrap());
    assert_eq!(ends("dropped"), ended("released"));
    let forced = locks.lock("forced").acquire().await.unwrap();
    assert!(locks.force_release(forced.lease().id()).await.unwrap());
    forced.lost().await;
    assert_eq!(ends("forced"), ended("forced"), "its guard is still there");

    let first = locks.lock("joined").owner("w").acquire().await.unwrap();
    let second = locks.lock("joined").owner("w").acquire().await.unwrap();
    drop(first);
    assert_eq!(ends("joined"), [None], "one for both");
    drop(second);
    assert_eq!(ends("joined"), ended("released"));

    let shut_down = locks.lock("shut down").acquire().await.unwrap();
    faulty.always(Verb::Renew, Fault::Refuse);
    let expired = locks.lock("expired").ttl(SECOND).acquire().await.unwrap();
    expired.lost().await;
    assert_eq!(ends("expired"), ended("expired"));
    locks.shutdown().await;
    assert_eq!(ends("shut down"), ended("shutdown"));
    drop(shut_down);
}

#[test]
fn code_without_async_has_them_too() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locks = runtime.block_on(async { locks().1 });
    let locks = blocking::Locks::from(locks);
    drop(locks.lock("blocking").acquire().unwrap());
    assert_eq!((outcomes("blocking").len(), ends("blocking")), (1, ended("released")));
}
