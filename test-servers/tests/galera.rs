//! A Galera cluster comes up, serves on every node, survives its nodes' ends, and leaves nothing behind.

use common::killed_owner_leaves_nothing_behind;
use database_locks_test_servers::{FailureDetection, Galera, Server as _};

mod common;

#[test]
fn written_on_one_node_is_read_on_the_others() {
    let cluster = Galera::shared().unwrap();
    let database = cluster.database().unwrap();
    assert_eq!(cluster.nodes().len(), 3);
    database.node(0).sql("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (0)").unwrap();
    // Otherwise a node may not have applied yet what another has committed.
    let all = "SET wsrep_sync_wait = 1; SELECT n FROM t ORDER BY n";
    assert_eq!(database.node(1).sql(all).unwrap(), "0");
    database.node(1).sql("INSERT INTO t VALUES (1)").unwrap();
    database.node(2).sql("INSERT INTO t VALUES (2)").unwrap();
    for index in 0..3 {
        assert_eq!(database.node(index).sql(all).unwrap(), "0\n1\n2");
    }
    let hosts = format!("@127.0.0.1:{},127.0.0.1:", cluster.node(0).port());
    assert!(database.urls().contains(&hosts), "{hosts}");
    assert!(database.urls().ends_with(database.database_name()));
    let name = database.database_name().to_owned();
    drop(database);
    let gone = format!("SET wsrep_sync_wait = 1; SHOW DATABASES LIKE '{name}'");
    assert_eq!(cluster.node(2).sql(&gone).unwrap(), "");
}

#[test]
fn nodes_come_back_one_by_one_and_after_all_went() {
    let cluster = Galera::start().unwrap();
    let (first, second) = (cluster.node(0), cluster.node(1));
    let all = "SET wsrep_sync_wait = 1; SELECT n FROM t ORDER BY n";
    first.sql("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();

    first.stop_hard().unwrap();
    second.sql("INSERT INTO t VALUES (2)").unwrap();
    first.start_again().unwrap();
    assert_eq!(first.sql(all).unwrap(), "1\n2");
    let log = first.log().unwrap();
    assert!(!log.contains("SST completed on joiner"), "it copied everything:\n{log}");

    cluster.isolate(2).unwrap();
    let refused = cluster.node(2).sql("SELECT n FROM t").unwrap_err().to_string();
    assert!(refused.contains("ERROR 1047"), "{refused}");
    first.sql("INSERT INTO t VALUES (3)").unwrap();
    cluster.rejoin(2).unwrap();
    assert_eq!(cluster.node(2).sql(all).unwrap(), "1\n2\n3");

    second.pause().unwrap();
    cluster.node(2).pause().unwrap();
    cluster.wait_until_cut_off(0).unwrap();
    let refused = first.sql("INSERT INTO t VALUES (99)").unwrap_err().to_string();
    assert!(refused.contains("ERROR 1047"), "{refused}");
    second.resume().unwrap();
    cluster.node(2).resume().unwrap();
    for index in 0..3 {
        cluster.wait_until_synced(index).unwrap();
    }

    for node in cluster.nodes() {
        node.stop_hard().unwrap();
    }
    cluster.bootstrap(1).unwrap();
    assert_eq!(second.sql(all).unwrap(), "1\n2\n3");
    first.start_again().unwrap();
    cluster.node(2).start_again().unwrap();
    first.sql("INSERT INTO t VALUES (4)").unwrap();
    assert_eq!(cluster.node(2).sql(all).unwrap(), "1\n2\n3\n4");
    assert_eq!(second.status("wsrep_cluster_size").unwrap(), "3");
}

#[test]
fn settings_reach_the_servers_and_galera() {
    let cluster = Galera::builder()
        .setting("wsrep_sync_wait", "7")
        .provider_option("gcache.size", "16M")
        .failure_detection(FailureDetection::Defaults)
        .start()
        .unwrap();
    for node in cluster.nodes() {
        let settings = "SELECT @@wsrep_sync_wait, @@wsrep_provider_options";
        let settings = node.sql(settings).unwrap();
        assert!(settings.starts_with("7|"), "{settings}");
        assert!(settings.contains("gcache.size = 16M;"), "{settings}");
        assert!(settings.contains("evs.suspect_timeout = PT5S;"), "{settings}");
    }
}

#[test]
fn killed_owner_leaves_no_node_behind() {
    killed_owner_leaves_nothing_behind("galera");
}
