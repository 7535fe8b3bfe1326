//! What a holder may rely on, and what it leaves behind.

use std::convert::Infallible;

use database_locks::Ttl;
use serde_json::json;

use super::{LONG, NAME, Scene, release, run};
use crate::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exception_in_the_body_releases() {
    let scene = Scene::after("exception", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({ "another_gets_it_at_once": false, "another_gets_it_after_its_ttl": false })
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

    let held = scene.here.lock(NAME).acquire().await.unwrap();
    let try_in_a_thread = || {
        let (locks, runtime) = (scene.here.clone(), tokio::runtime::Handle::current());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let guard = locks.lock(NAME).try_acquire().await.unwrap();
                let is_granted = guard.is_some();
                release(guard).await;
                is_granted
            })
        });
        tokio::task::block_in_place(|| thread.join().unwrap())
    };
    assert!(!try_in_a_thread(), "granted to two threads");
    held.release().await.unwrap();
    assert!(try_in_a_thread(), "a thread like any other");
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
