//! What a renewal does when it is late, and when it fails.

use std::sync::Arc;
use std::time::Duration;

use database_locks::postgres::{PostgresBackend, PostgresConfig};
use database_locks::{LockBackend, Locks};
use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_test_servers::Access;
use serde_json::json;

use super::{NAME, Scene};
use crate::Kind;
use crate::project::PATIENCE;

/// With these the next renewal comes within a second, and has twenty to be answered.
const TTL: Duration = Duration::from_mins(1);
const RENEW_BEFORE: Duration = Duration::from_secs(59);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_does_not_take_the_lock_again_after_its_release() {
    let scene = Scene::after("renewal_after_exit", Kind::Postgres).await;
    assert_eq!(
        scene.seen,
        json!({ "released": true, "held_again": true, "another_gets_it": false })
    );

    let (locks, backend) = spoiled(&scene.project.database).await;
    // It is on its way for longer than the release takes.
    backend.once(Verb::Renew, Fault::Delay(Duration::from_secs(3)));
    let request = locks.lock(NAME).ttl(TTL).renew_before(RENEW_BEFORE);
    let guard = request.acquire().await.unwrap();
    backend.until_begun(Verb::Renew, 1).await;
    guard.release().await.unwrap();
    let arrived = backend.until_quiet(Verb::Renew);
    let arrived_before = tokio::time::timeout(Duration::ZERO, arrived).await.is_ok();
    assert!(!arrived_before, "the machine was too slow for this test to tell anything");
    backend.until_quiet(Verb::Renew).await;
    assert_eq!(backend.begun(Verb::Renew), 1);
    assert!(scene.there.list(NAME).await.unwrap().is_empty(), "held again");
    assert!(scene.another_gets_it().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_renewal_is_no_loss() {
    let scene = Scene::after("failed_renewal", Kind::Postgres).await;
    assert_eq!(scene.seen["connections_ended"], 1);
    assert_eq!(scene.seen["outcome"], "LockException: lost lock, terminating");
    assert!(scene.seen["seconds_left"].as_f64().unwrap() > 50.0, "{}", scene.seen);
    assert_eq!(scene.seen["another_gets_it"], false, "it was not lost at all");

    let (locks, backend) = spoiled(&scene.project.database).await;
    let request = locks.lock(NAME).ttl(TTL).renew_before(RENEW_BEFORE);
    let guard = request.acquire().await.unwrap();
    let renewed = async |times: usize| {
        backend.until_begun(Verb::Renew, times).await;
        backend.until_quiet(Verb::Renew).await;
    };
    renewed(1).await;
    // The server ends all connections of others, that of the renewals among them.
    let ended = scene.project.database.sql(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity \
         where datname = current_database() and pid <> pg_backend_pid()",
    );
    assert!(ended.unwrap().parse::<u32>().unwrap() >= 2);
    renewed(2).await;
    guard.check().unwrap();
    // And one fails for good.
    backend.once(Verb::Renew, Fault::Refuse);
    renewed(3).await;
    guard.check().unwrap();
    renewed(4).await;
    guard.check().unwrap();
    assert!(guard.remaining().unwrap() > TTL - Duration::from_secs(30));
    let lost = tokio::time::timeout(Duration::ZERO, guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    assert!(!scene.another_gets_it().await);
    tokio::time::timeout(PATIENCE, guard.release()).await.unwrap().unwrap();
}

/// Locks whose requests to the database can be made to fail.
async fn spoiled(database: &Access) -> (Locks, Arc<FaultyBackend>) {
    let config = PostgresConfig::from_url(database.url()).unwrap();
    let backend = Arc::new(PostgresBackend::connect(config).await.unwrap());
    let backend = FaultyBackend::new(backend);
    let locks = Locks::builder().build(Arc::clone(&backend) as Arc<dyn LockBackend>).unwrap();
    (locks, backend)
}
