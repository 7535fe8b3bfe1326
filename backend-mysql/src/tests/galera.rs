//! Nodes of a cluster: found out, told apart, and left where they have no quorum.

use database_locks_core::ErrorKind;
use database_locks_test_servers::{Galera, Server as _};

use super::{connections, one, rows, url_of};

const PINNED: &str = "SHOW VARIABLES WHERE Variable_name IN ('wsrep_sync_wait', \
                      'wsrep_dirty_reads', 'tx_isolation')";

#[tokio::test]
async fn node_without_quorum_is_left_and_passed_over() {
    let cluster = Galera::start().unwrap();
    let [first, second, _] = cluster.nodes() else { panic!("a cluster has three nodes") };
    first.sql("CREATE TABLE t (n INT PRIMARY KEY); INSERT INTO t VALUES (7)").unwrap();
    // Whatever the cluster's administrator thinks of stale reads.
    for node in cluster.nodes() {
        node.sql("SET GLOBAL wsrep_sync_wait = 0, GLOBAL wsrep_dirty_reads = ON").unwrap();
    }

    let all = connections(&url_of(first, &[first.port(), second.port()]));
    let connection = all.for_renewals().await.unwrap();
    assert!(connection.server().galera);
    let pinned = rows::<(String, String)>(connection.run(PINNED).await.unwrap().pop().unwrap());
    let pinned: Vec<_> = pinned.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(pinned, ["READ-COMMITTED", "OFF", "1"]);
    let port = "SELECT @@port, n FROM t";
    assert_eq!(one::<(u16, u8)>(all.for_renewals().await.unwrap(), port).await, (first.port(), 7));

    cluster.isolate(0).unwrap();
    let refused = all.for_renewals().await.unwrap().run(port).await.unwrap_err();
    assert!(crate::error::breaks_connection(&refused), "{refused}");
    let refused = crate::error::from_driver(refused, all.place());
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("primary component"), "{refused}");
    assert_eq!(one::<(u16, u8)>(all.for_renewals().await.unwrap(), port).await, (second.port(), 7));

    let alone = connections(&url_of(first, &[first.port()]));
    let error = alone.shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let said = error.to_string();
    assert!(said.contains("not ready") || said.contains("primary component"), "{said}");

    cluster.rejoin(0).unwrap();
    assert_eq!(one::<(u16, u8)>(alone.shared().await.unwrap(), port).await, (first.port(), 7));
}

#[tokio::test]
async fn read_on_one_node_sees_what_another_has_just_committed() {
    let cluster = Galera::shared().unwrap();
    let database = cluster.database().unwrap();
    database
        .node(0)
        .sql("CREATE TABLE t (n INT PRIMARY KEY, m INT); INSERT INTO t VALUES (1, 0)")
        .unwrap();
    let nodes = [0, 1, 2].map(|node| connections(database.node(node).url()));
    for round in 1..=300_u32 {
        let writer = &nodes[round as usize % 3];
        let reader = &nodes[(round as usize + 1) % 3];
        writer.shared().await.unwrap().run(&format!("UPDATE t SET m = {round}")).await.unwrap();
        let seen: u32 = one(reader.shared().await.unwrap(), "SELECT m FROM t").await;
        assert_eq!(seen, round);
    }
}
