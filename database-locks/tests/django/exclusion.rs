//! Either side keeps the other one out, for as long as it holds a lock and no longer.

use std::time::{Duration, Instant};

use database_locks::{Connect, ErrorKind, Guard, Locks, LossReason, Retry, Ttl, migrate};
use serde_json::{Value, json};

use crate::project::{PATIENCE, Project, assert_refused, once};
use crate::{Kind, on_each_server};

on_each_server!(
    a_lock_is_held_on_one_side_only_and_changes_sides_when_it_is_released,
    renewal_keeps_the_other_side_out,
    what_a_dead_process_held_is_had_once_its_ttl_is_over,
    leases_without_end_and_shares_keep_django_out_until_the_last_has_ended,
    an_owner_of_the_same_name_is_let_in_by_django_alone,
    a_forced_release_lasts_until_djangos_next_renewal,
    names_are_compared_by_their_bytes,
);

/// A table that both sides use.
async fn both(kind: Kind) -> (Project, Locks) {
    let project = Project::migrated(kind);
    let locks = join(&project).await;
    (project, locks)
}

async fn join(project: &Project) -> Locks {
    migrate(project.database.url()).await.unwrap();
    Locks::connect(project.database.url()).await.unwrap()
}

/// Waits until it gets the lock.
fn waiting() -> Value {
    json!({"lock_ttl": 60, "auto_renew": false, "retry": 0.02})
}

async fn is_free(locks: &Locks, name: &str) -> bool {
    locks.lock(name).try_acquire().await.unwrap().is_some()
}

async fn lost(guard: &Guard) -> LossReason {
    tokio::time::timeout(PATIENCE, guard.lost()).await.expect("the loss")
}

async fn a_lock_is_held_on_one_side_only_and_changes_sides_when_it_is_released(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut django = project.worker();

    // Either side makes the row.
    for (name, django_begins) in [("a", true), ("b", false)] {
        if django_begins {
            django.enter(name, once(60.0)).unwrap();
            django.exit(name).unwrap();
        }
        let mut token = 0;
        for _ in 0..2 {
            let guard = locks.lock(name).timeout(PATIENCE).acquire().await.unwrap();
            assert!(guard.token().get() > token, "tokens grow over the turns of django");
            token = guard.token().get();
            assert_refused(django.enter(name, once(60.0)));
            let raised = django.enter(name, json!({"timeout": 0.1, "retry": 0.05})).unwrap_err();
            assert!(raised.message.contains("within timeout"), "{raised:?}");

            // It waits, and is let in by the release.
            django.begin_to_enter(name, waiting());
            guard.check().unwrap();
            guard.release().await.unwrap();
            django.entered().unwrap();

            let error =
                locks.lock(name).timeout(Duration::from_millis(500)).acquire().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert!(error.to_string().contains(django.owner()), "{error}");
            for request in [locks.lock(name), locks.rwlock(name).read(), locks.rwlock(name).write()]
            {
                assert!(request.try_acquire().await.unwrap().is_none());
            }

            let (asked, mut waits) = tokio::sync::mpsc::unbounded_channel();
            let request = locks.lock(name).timeout(PATIENCE).on_wait(move |busy| {
                let _ = asked.send(busy.holder.as_ref().map(|holder| holder.owner.to_string()));
            });
            let getting = tokio::spawn(async move { request.acquire().await });
            while waits.recv().await.unwrap().as_deref() != Some(django.owner()) {}
            django.exit(name).unwrap();
            let guard = getting.await.unwrap().unwrap();
            assert!(guard.token().get() > token);
            token = guard.token().get();
            guard.release().await.unwrap();
        }
    }
    assert_eq!(django.lost, 0);
}

async fn renewal_keeps_the_other_side_out(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut holder = project.worker();
    let mut other = project.worker();
    // Due after a second, which is the least that Django waits between two renewals, so that a busy
    // machine has some more to get there.
    let ttl = Duration::from_secs(6);
    holder.enter("django's", json!({"lock_ttl": 6, "lock_ttl_renew": 5})).unwrap();
    let guard = locks.lock("ours").ttl(ttl).acquire().await.unwrap();

    let start = Instant::now();
    while start.elapsed() < ttl + Duration::from_secs(2) {
        assert!(!is_free(&locks, "django's").await);
        assert_refused(other.enter("ours", once(60.0)));
        // A pace, not a wait.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    guard.release().await.unwrap();
    holder.exit("django's").unwrap();
    other.enter("ours", once(60.0)).unwrap();
    assert_eq!((holder.lost, other.lost), (0, 0));
}

async fn what_a_dead_process_held_is_had_once_its_ttl_is_over(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut django = project.worker();
    let mut dead = project.worker();
    let start = Instant::now();
    dead.enter("django's", json!({"lock_ttl": 5})).unwrap();
    dead.kill();
    assert!(!is_free(&locks, "django's").await);
    let guard = locks.lock("django's").timeout(PATIENCE).acquire().await.unwrap();
    // Somewhat less than the TTL, for clocks that are being set.
    assert!(start.elapsed() > Duration::from_millis(4_900), "the dead one still had it");

    // Without a renewal, as of a process that is gone.
    let request = locks.lock("ours").ttl(Duration::from_secs(5)).auto_renew(false);
    let gone = request.acquire().await.unwrap();
    assert_refused(django.enter("ours", once(60.0)));
    django.enter("ours", waiting()).unwrap();
    assert_eq!(lost(&gone).await, LossReason::Expired);
    let error = gone.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(!is_free(&locks, "ours").await, "a late release must not end django's lease");
    guard.release().await.unwrap();
}

async fn leases_without_end_and_shares_keep_django_out_until_the_last_has_ended(kind: Kind) {
    let (mut project, locks) = both(kind).await;
    let mut django = project.worker();
    // Where Django reads the end as naive local time.
    project.set("USE_TZ", false);
    project.set("TIME_ZONE", "Asia/Tokyo");
    let mut naive = project.worker();

    let guard = locks.lock("forever").ttl(Ttl::Infinite).acquire().await.unwrap();
    assert_refused(django.enter("forever", once(60.0)));
    assert_refused(naive.enter("forever", once(60.0)));
    guard.release().await.unwrap();
    django.enter("forever", once(60.0)).unwrap();

    let long = Duration::from_mins(1);
    let readers = locks.rwlock("shared");
    let permits = locks.semaphore("permits", 3);
    for (name, request) in [("shared", &|| readers.read()), ("permits", &|| permits.permits(1))]
        as [(&str, &dyn Fn() -> database_locks::LockRequest); 2]
    {
        let first = request().ttl(long).acquire().await.unwrap();
        let second = request().ttl(long * 2).acquire().await.unwrap();
        assert_refused(django.enter(name, once(60.0)));
        second.release().await.unwrap();
        assert_refused(django.enter(name, once(60.0)));
        first.release().await.unwrap();

        django.enter(name, once(60.0)).unwrap();
        // The row was last used with another capacity.
        assert!(!is_free(&locks, name).await);
        assert!(readers_are_kept_out(&locks, name).await);
        django.exit(name).unwrap();
        let again = request().acquire().await.unwrap();
        assert_refused(django.enter(name, once(60.0)));
        again.release().await.unwrap();
    }
}

async fn readers_are_kept_out(locks: &Locks, name: &str) -> bool {
    locks.rwlock(name).read().try_acquire().await.unwrap().is_none()
}

async fn an_owner_of_the_same_name_is_let_in_by_django_alone(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut django = project.worker();
    let as_alice =
        json!({"lock_ttl": 60, "auto_renew": false, "retry": null, "locked_by": "alice"});

    django.enter("django's", as_alice.clone()).unwrap();
    let request = locks.lock("django's").owner("alice");
    assert!(request.try_acquire().await.unwrap().is_none(), "django could not be told");
    // Also where the row was ours before, by the same owner.
    // The renewal is due after a second, and has most of a minute to come.
    let (ttl, renew_before) = (Duration::from_mins(1), Duration::from_secs(59));
    let request = || locks.lock("again").owner("alice").ttl(ttl).renew_before(renew_before);
    request().acquire().await.unwrap().release().await.unwrap();
    django.enter("again", as_alice.clone()).unwrap();
    assert!(request().try_acquire().await.unwrap().is_none());
    django.exit("again").unwrap();

    // Django goes by the name alone. We notice at the next renewal, and leave its lease alone.
    let guard = request().acquire().await.unwrap();
    django.enter("again", as_alice).unwrap();
    assert_eq!(lost(&guard).await, LossReason::Taken);
    drop(guard);
    assert!(!is_free(&locks, "again").await);
    let listed = locks.list("again").await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].remaining.unwrap() > Duration::from_secs(30), "{listed:?}");
    django.exit("again").unwrap();
    assert!(is_free(&locks, "again").await);
}

async fn a_forced_release_lasts_until_djangos_next_renewal(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut django = project.worker();
    django.enter("x", json!({"lock_ttl": 60, "lock_ttl_renew": 59})).unwrap();
    let held = locks.list("x").await.unwrap().remove(0);
    assert!(locks.force_release(&held.lease).await.unwrap());
    let again = async {
        while locks.list("x").await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("django has to take it again");
    assert!(!is_free(&locks, "x").await);
}

async fn names_are_compared_by_their_bytes(kind: Kind) {
    let (project, locks) = both(kind).await;
    let mut django = project.worker();
    let names = ["job", "Job", "job ", "j\u{f3}b", "jo\u{301}b", "jo\u{301}b "];
    for (i, name) in names.into_iter().enumerate() {
        if i % 2 == 0 {
            django.enter(name, once(60.0)).unwrap();
            assert!(!is_free(&locks, name).await, "{name:?}");
        } else {
            let request = locks.lock(name).ttl(Duration::from_mins(1)).retry(Retry::Never);
            std::mem::forget(request.acquire().await.unwrap());
            assert_refused(django.enter(name, once(60.0)));
        }
    }
    let held = locks.list("").await.unwrap();
    assert_eq!(held.len(), names.len());
}
