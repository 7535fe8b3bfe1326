//! A Galera cluster whose nodes do not see the same, or do not see each other.

use std::time::Duration;

use database_locks::{Connect, ErrorKind, Locks, Ttl, migrate};
use database_locks_test_servers::{Galera, Server as _};

/// Generous: it only has to end on the slowest machine.
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_has_committed_every_node_knows() {
    let database = Galera::shared().unwrap().database().unwrap();
    migrate(database.urls()).await.unwrap();
    let mut clients = Vec::new();
    for i in 0..3 {
        clients.push(Locks::connect(database.node(i).url()).await.unwrap());
    }
    let mut last = None;
    for i in 0..200 {
        let (here, there, elsewhere) =
            (&clients[i % 3], &clients[(i + 1) % 3], &clients[(i + 2) % 3]);
        let guard = here.lock("x").try_acquire().await.unwrap();
        let guard = guard.expect("it was released before, on another node");
        assert!(last < Some(guard.token()), "tokens grow over the nodes");
        last = Some(guard.token());
        assert!(there.lock("x").try_acquire().await.unwrap().is_none(), "held twice");
        assert_eq!(elsewhere.list("x").await.unwrap().len(), 1, "the lease is listed everywhere");
        guard.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_quorum_is_an_error_that_passes_and_waiters_go_on() {
    let cluster = Galera::start().unwrap();
    let database = cluster.database().unwrap();
    migrate(database.urls()).await.unwrap();
    let holder = Locks::connect(database.urls()).await.unwrap();
    let waiter = Locks::connect(database.urls()).await.unwrap();
    let other = Locks::connect(database.node(0).url()).await.unwrap();
    let ttl = Ttl::new(PATIENCE * 2).unwrap();
    let guard = holder.lock("x").ttl(ttl).acquire().await.unwrap();
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let request = waiter.lock("x").timeout(PATIENCE).on_wait(move |_| {
        let _ = told.send(());
    });
    let waiting = tokio::spawn(async move { request.acquire().await });
    waits.recv().await.unwrap();

    // The one node that is left has no majority.
    for lost in [1, 2] {
        cluster.node(lost).pause().unwrap();
    }
    let error = other.lock("y").timeout(Duration::from_secs(8)).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable(), "{error}");
    guard.check().unwrap();
    for lost in [1, 2] {
        cluster.node(lost).resume().unwrap();
    }
    for node in 0..3 {
        cluster.wait_until_synced(node).unwrap();
    }

    guard.check().unwrap();
    let first = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap().unwrap();
    assert!(next.token() > first);
    other.lock("y").timeout(PATIENCE).acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_is_renewed_by_another_node_when_its_own_hangs() {
    let cluster = Galera::start().unwrap();
    let database = cluster.database().unwrap();
    migrate(database.urls()).await.unwrap();
    let locks = Locks::connect(database.urls()).await.unwrap();
    let ttl = Duration::from_secs(20);
    let guard = locks.lock("x").ttl(Ttl::new(ttl).unwrap()).acquire().await.unwrap();
    // It still accepts connections, but nothing answers.
    cluster.node(0).pause().unwrap();
    let past_the_ttl = tokio::time::timeout(ttl + ttl / 2, guard.lost()).await;
    cluster.node(0).resume().unwrap();
    assert!(past_the_ttl.is_err(), "{past_the_ttl:?}");
    guard.check().unwrap();
    guard.release().await.unwrap();
}
