//! What a holder may rely on, and what it leaves behind.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use database_locks::{Connect as _, Error, Locks, Retry, StatusFile, Ttl, blocking, locked};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{LONG, NAME, Scene, project, run};
use crate::Kind;
use crate::project::PATIENCE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exception_in_the_body_releases() {
    let scene = Scene::after("exception", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({
            "another_gets_it_at_once": false,
            "another_gets_it_after_its_ttl": false,
            "renewed_meanwhile": true,
        })
    );

    // An error that leaves the work.
    let request = scene.here.lock(NAME).ttl(LONG);
    let worked = request.run(async |_| Err::<Infallible, _>("the body failed")).await.unwrap();
    assert_eq!(worked.unwrap_err(), "the body failed");
    assert!(scene.another_gets_it().await);

    // An early return, without a word to the guard.
    let fail = async || -> Result<(), &str> {
        let _guard = scene.here.lock(NAME).ttl(LONG).acquire().await.map_err(|_| "not granted")?;
        Err("the body failed")?;
        Ok(())
    };
    assert_eq!(fail().await, Err("the body failed"));
    scene.another_has_it_soon().await;

    // A panic.
    let here = scene.here.clone();
    let task = tokio::spawn(async move {
        let guard = here.lock(NAME).ttl(LONG).acquire().await.unwrap();
        guard.check().unwrap();
        panic!("the body failed, as it has to in this test");
    });
    assert!(task.await.unwrap_err().is_panic());
    scene.another_has_it_soon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_threads_of_one_process_exclude_each_other() {
    let scene = Scene::after("threads", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({
            "second_thread_is_granted": true,
            "second_thread_enters": "ValueError: signal only works in main thread of the main interpreter",
            "second_thread_has_taken_it": true,
        })
    );

    let locks = blocking::Locks::from(scene.here.clone());
    let gets_it = || {
        let guard = locks.lock(NAME).try_acquire().unwrap();
        guard.map(|guard| guard.release().unwrap()).is_some()
    };
    let holder = || {
        let guard = locks.lock(NAME).acquire().unwrap();
        let while_held = thread::scope(|scope| scope.spawn(gets_it).join().unwrap());
        guard.release().unwrap();
        let afterwards = thread::scope(|scope| scope.spawn(gets_it).join().unwrap());
        (while_held, afterwards)
    };
    let (while_held, afterwards) =
        thread::scope(|scope| block_in_place(|| scope.spawn(holder).join().unwrap()));
    assert!(!while_held, "granted to two threads");
    assert!(afterwards, "a thread like any other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nested_release_leaves_the_outer_lock() {
    let scene = Scene::after("nested", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({
            "another_gets_it_before": false,
            "another_gets_it_within": false,
            "released": true,
            "another_gets_it_after": true,
        })
    );

    // Two uses of one process are two holders, unless they say that they are one.
    let outer = scene.here.lock(NAME).acquire().await.unwrap();
    assert!(scene.here.lock(NAME).try_acquire().await.unwrap().is_none());
    outer.release().await.unwrap();

    let outer = scene.here.lock(NAME).owner("one").acquire().await.unwrap();
    let inner = scene.here.lock(NAME).owner("one").acquire().await.unwrap();
    assert_eq!(inner.token(), outer.token(), "one lease");
    assert!(!scene.another_gets_it().await);
    inner.release().await.unwrap();
    outer.check().unwrap();
    assert!(!scene.another_gets_it().await);
    outer.release().await.unwrap();
    assert!(scene.another_gets_it().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_may_be_infinite() {
    let scene = Scene::after("infinite", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({
            "outcome": "TypeError: unsupported type for timedelta seconds component: NoneType",
            "rows": 0,
        })
    );

    let guard = scene.here.lock(NAME).ttl(Ttl::Infinite).acquire().await.unwrap();
    assert_eq!(guard.remaining(), None);
    assert_eq!(scene.there.list(NAME).await.unwrap()[0].remaining, None);
    assert!(!scene.another_gets_it().await);
    let ask = || run("ask_once", &[NAME], &scene.project);
    assert_eq!(ask(), json!({ "granted": false }), "Django, too, can read what never comes");
    guard.release().await.unwrap();
    assert_eq!(ask(), json!({ "granted": true }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_file_does_not_stay_at_held() {
    let folder = tempfile::tempdir().unwrap();
    let mut project = project(Kind::Postgres);
    let theirs = folder.path().join("theirs");
    project.set("DATABASE_LOCKS_STATUS_FILE", theirs.to_str().unwrap());
    let seen = run("status_file", &[], &project);
    assert_eq!(seen, json!({ "held": "2", "released": true, "after": "2" }));
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "2", "though the process has ended");

    let scene = Scene::adopt(project, Value::Null).await;
    let ours = folder.path().join("ours");
    let options = Locks::builder().observer(StatusFile::open(&ours).unwrap());
    let locks = Locks::connect_with(scene.project.database.url(), options).await.unwrap();
    let guard = locks.lock(NAME).acquire().await.unwrap();
    until_it_says(&ours, "2").await;
    guard.release().await.unwrap();
    until_it_says(&ours, "0").await;
    // Also where the body fails.
    let worked = locks.lock(NAME).run(async |_| Err::<Infallible, _>("the body failed")).await;
    assert!(worked.unwrap().is_err());
    locks.shutdown().await;
    assert_eq!(fs::read_to_string(&ours).unwrap(), "0");
}

async fn until_it_says(file: &Path, digit: &str) {
    let says = async {
        while !fs::read_to_string(file).is_ok_and(|text| text == digit) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, says).await.expect("it has to come to that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_of_one_name_on_two_types_are_two_locks() {
    let scene = Scene::after("default_name", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({
            "outcome": "LockException: failed to acquire lock",
            "names": ["__main__.export"],
        })
    );

    let entered = Invoices.export(&scene.here, &scene.there).await.unwrap();
    assert_eq!(
        entered,
        ["django::faults::holding::Invoices::export", "django::faults::holding::Reports::export"]
    );
}

struct Invoices;
struct Reports;

impl Invoices {
    #[locked(with = here, retry = Retry::Never)]
    async fn export(&self, here: &Locks, there: &Locks) -> Result<Vec<String>, Error> {
        Reports.export(there).await
    }
}

impl Reports {
    /// Gives the names of the locks that are held.
    #[locked(with = locks, retry = Retry::Never)]
    async fn export(&self, locks: &Locks) -> Result<Vec<String>, Error> {
        let held = locks.list("django::").await?;
        Ok(held.into_iter().map(|info| info.lease.name.to_string()).collect())
    }
}
