//! Where Django's processes go by another time than the server: what then happens, and what is said.

use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use database_locks::{Connect, Guard, Locks, LossReason, migrate};
use database_locks_test_servers::ClockStep;
use serde_json::json;

use crate::project::{PATIENCE, Project, Worker, assert_refused, once};
use crate::{Kind, on_each_server};

const FIVE_MINUTES: Duration = Duration::from_mins(5);

on_each_server!(
    a_clock_that_is_ahead_takes_live_leases_and_keeps_its_own_for_too_long,
    a_clock_that_is_behind_loses_live_leases,
    naive_times_are_off_by_the_zone_on_the_mysql_family_only,
);

async fn a_clock_that_is_ahead_takes_live_leases_and_keeps_its_own_for_too_long(kind: Kind) {
    let (mut project, locks) = both(kind).await;
    project.step_clock(ClockStep::Forward(FIVE_MINUTES));
    django_is_ahead(&mut project.worker(), &locks, "ahead", FIVE_MINUTES).await;
}

async fn a_clock_that_is_behind_loses_live_leases(kind: Kind) {
    let (mut project, locks) = both(kind).await;
    project.step_clock(ClockStep::Back(FIVE_MINUTES));
    django_is_behind(&mut project.worker(), &locks, "behind", FIVE_MINUTES).await;
}

async fn naive_times_are_off_by_the_zone_on_the_mysql_family_only(kind: Kind) {
    let (mut project, locks) = both(kind).await;
    project.set("USE_TZ", false);
    project.set("TIME_ZONE", "Asia/Tokyo");
    let mut east = project.worker();
    project.set("TIME_ZONE", "America/Lima");
    let mut west = project.worker();
    match kind {
        // There the session has the zone, too.
        Kind::Postgres => {
            for django in [&mut east, &mut west] {
                let name = &unique("exact");
                let guard = locks.lock(name).acquire().await.unwrap();
                assert_refused(django.enter(name, once(60.0)));
                guard.release().await.unwrap();
                django.enter(name, once(60.0)).unwrap();
                assert!(locks.lock(name).try_acquire().await.unwrap().is_none());
                let remaining = locks.list(name).await.unwrap()[0].remaining.unwrap();
                assert!(remaining <= Duration::from_secs(60), "{remaining:?}");
                assert_eq!(said_of(name), "");
            }
        }
        Kind::MariaDb | Kind::MySql => {
            django_is_ahead(&mut east, &locks, "east", Duration::from_hours(9)).await;
            django_is_behind(&mut west, &locks, "west", Duration::from_hours(5)).await;
        }
    }
}

async fn django_is_ahead(django: &mut Worker, locks: &Locks, name: &str, ahead: Duration) {
    // The next renewal is due after three seconds, and has most of a minute to come.
    let (ttl, renew_before) = (Duration::from_mins(1), Duration::from_secs(57));
    let is_taken_from_us = async |django: &Worker, guard: &Guard| {
        let loss = tokio::time::timeout(PATIENCE, guard.lost()).await.unwrap();
        assert_eq!(loss, LossReason::Taken);
        let said = said_of(guard.name().as_str());
        assert!(said.contains(django.owner()), "{said}");
        assert!(said.contains("zone is ahead of the server's"), "{said}");
    };

    // It may have come and gone before our next renewal.
    let brief = &unique(name);
    let guard = locks.lock(brief).ttl(ttl).renew_before(renew_before).acquire().await.unwrap();
    django.enter(brief, once(60.0)).unwrap();
    django.exit(brief).unwrap();
    is_taken_from_us(django, &guard).await;

    let name = &unique(name);
    let guard = locks.lock(name).ttl(ttl).renew_before(renew_before).acquire().await.unwrap();
    // Two hold it until our next renewal.
    django.enter(name, once(60.0)).unwrap();
    is_taken_from_us(django, &guard).await;

    // Whoever looks can tell before anything happens.
    let remaining = locks.list(name).await.unwrap()[0].remaining.unwrap();
    assert!(remaining > ahead && remaining < ahead + Duration::from_secs(61), "{remaining:?}");
    drop(guard);
    assert!(locks.lock(name).try_acquire().await.unwrap().is_none());
    django.exit(name).unwrap();

    // A lease that is renewed long enough before it ends never looks over.
    let minutes = Duration::from_mins(5);
    let request = locks.lock(name).ttl(ahead + minutes * 2).renew_before(ahead + minutes);
    let guard = request.timeout(PATIENCE).acquire().await.unwrap();
    assert_refused(django.enter(name, once(60.0)));
    guard.release().await.unwrap();
}

async fn django_is_behind(django: &mut Worker, locks: &Locks, name: &str, behind: Duration) {
    let name = &unique(name);
    let ttl = Duration::from_mins(2);
    let guard = locks.lock(name).ttl(ttl).acquire().await.unwrap();
    assert_refused(django.enter(name, once(60.0)));
    guard.release().await.unwrap();
    assert_eq!(said_of(name), "");

    // Renews after a second, which is the least.
    django.enter(name, json!({"lock_ttl": 60, "lock_ttl_renew": 59})).unwrap();
    // Whoever asks with enough grace does not take what only looks over.
    let patient = locks.lock(name).grace(behind + ttl);
    assert!(patient.try_acquire().await.unwrap().is_none());
    // Without it two hold it until Django's next renewal.
    let guard = locks.lock(name).ttl(ttl).timeout(PATIENCE).acquire().await.unwrap();
    let said = said_of(name);
    assert!(said.contains(django.owner()), "{said}");
    assert!(said.contains("zone is behind the server's"), "{said}");
    let deadline = std::time::Instant::now() + PATIENCE;
    while django.lost == 0 {
        assert!(std::time::Instant::now() < deadline, "django does not notice");
        tokio::time::sleep(Duration::from_millis(50)).await;
        django.ask(&json!({"do": "rows"})).unwrap();
    }
    guard.release().await.unwrap();
}

async fn both(kind: Kind) -> (Project, Locks) {
    listen();
    let project = Project::migrated(kind);
    migrate(project.database.url()).await.unwrap();
    let locks = Locks::connect(project.database.url()).await.unwrap();
    (project, locks)
}

/// A name that no other test has, to find what is said of it.
fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::now_v7())
}

/// All that was logged.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .with_ansi(false)
            .with_writer(|| Log)
            .init();
    });
}

/// What the backends said of other clients and the lock.
fn said_of(name: &str) -> String {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let log = String::from_utf8_lossy(&log);
    let lines = log.lines().filter(|line| line.contains("another client") && line.contains(name));
    lines.collect::<Vec<_>>().join("\n")
}

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
