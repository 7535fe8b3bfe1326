//! What a node that is behind the others must not do.

use std::time::{Duration, Instant};

use database_locks_core::{Claim, LockBackend as _, Released, Renewal, Renewed, Ttl};
use database_locks_test_servers::{Access, Galera};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::common::{Store, ask, claim, connect, hold};
use crate::{Said as _, reader, release};

/// A cluster whose second node applies what the first has written a while later.
struct Lag {
    _cluster: Galera,
    store: Store,
    first: Conn,
    second: Conn,
}

impl Lag {
    async fn new() -> Self {
        let cluster = Galera::start().unwrap();
        let nodes: Vec<_> = cluster.nodes().iter().map(|node| Access::clone(node)).collect();
        let store = Store::on(&nodes).unwrap();
        let (mut first, second) = (connect(&store.nodes[0]).await, connect(&store.nodes[1]).await);
        // Without a key, another node looks through the whole table for each row that was changed.
        let sql = "CREATE TABLE behind (n INT NOT NULL, v INT NOT NULL);
                   INSERT INTO behind SELECT seq, 0 FROM seq_1_to_6000";
        first.query_drop(sql).await.unwrap();
        Self { _cluster: cluster, store, first, second }
    }

    /// From here on the second node is behind, for seconds.
    async fn begin(&mut self) {
        self.first.query_drop("UPDATE behind SET v = v + 1").await.unwrap();
    }

    /// Whether it still is.
    async fn lasts(&mut self) -> bool {
        let newest = "SELECT MAX(v) FROM behind";
        let first: Option<i32> = self.first.query_first(newest).await.unwrap();
        let second: Option<i32> = self.second.query_first(newest).await.unwrap();
        first != second
    }

    async fn end(&mut self) {
        // As long as it takes on a machine that has much else to do.
        let began = Instant::now();
        while self.lasts().await {
            assert!(began.elapsed() < Duration::from_mins(2), "the second node stays behind");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What came after that, too.
        let sync = "SET SESSION wsrep_sync_wait = 1; SELECT 1; SET SESSION wsrep_sync_wait = 0";
        self.second.query_drop(sync).await.unwrap();
    }
}

#[tokio::test]
async fn node_that_is_behind_grants_nothing_that_is_held_and_loses_nothing_that_lives() {
    let mut lag = Lag::new().await;
    let ahead = lag.store.backend_at(0).await;
    let behind = lag.store.backend_at(1).await;
    ahead.migrate().await.unwrap();
    // Beyond the time for which a node may be behind on a busy machine.
    let ttl = Ttl::new(Duration::from_mins(10)).unwrap();
    for (name, ask_for) in [("whole", claim as fn(&str) -> Claim), ("shared", reader)] {
        // Both know the name, which is free as far as the second node knows.
        for backend in [&ahead, &behind] {
            let held = hold(backend, &claim(name)).await;
            release(backend, &held).await;
        }
        lag.end().await;

        lag.begin().await;
        let held = hold(&ahead, &ask_for(name).with_ttl(ttl)).await;
        assert!(lag.lasts().await, "the second node is not behind");
        let verdict = ask(&behind, &claim(name)).await;
        assert_ne!(verdict.kind(), "granted", "{name}: {verdict:?}");
        lag.end().await;
        assert_eq!(ask(&behind, &claim(name)).await.kind(), "busy");

        assert_eq!(release(&ahead, &held).await, Released::Done);
        lag.end().await;

        // A process that has come to the second node with a lease that it was granted at the first.
        lag.begin().await;
        let held = hold(&ahead, &ask_for(name).with_ttl(ttl)).await;
        assert!(lag.lasts().await, "the second node is not behind");
        match behind.renew(&[Renewal::new(held.clone(), ttl)]).await.as_deref() {
            Ok([Renewed::Lost(reason)]) => panic!("{name} lives, and was lost: {reason:?}"),
            Ok(_) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        lag.end().await;
        assert_eq!(release(&behind, &held).await, Released::Done);
    }
}
