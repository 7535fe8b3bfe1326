//! Packets, and connections that are cut, given up, replaced and chosen.

use std::time::Duration;

use database_locks_core::ErrorKind;
use database_locks_test_servers::{
    Access, MariaDbProduct, MySqlProduct, Mysqld, Product, Proxy, Server as _,
};
use tokio::time::timeout;

use super::{connections, one, rows, url_of};
use crate::pool::InUse;
use crate::session::{Flavour, Server};

const ID: &str = "SELECT CONNECTION_ID()";

/// Generous: it only has to end on the slowest machine. Whoever waits for a host that hangs under
/// [`UNHURRIED`] waits for longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// So that nothing but being passed over ends the wait for a host that hangs.
const UNHURRIED: &str = "?connect_timeout=600";

async fn each_statement_of_a_packet_has_an_answer(server: &Access) {
    let database = server.database().unwrap();
    let connections = connections(database.url());
    let packet = "CREATE TABLE t (n INT PRIMARY KEY, m INT); INSERT INTO t VALUES (1, 1), (2, 2); \
                  BEGIN; SELECT n FROM t ORDER BY n; \
                  UPDATE t SET m = LAST_INSERT_ID(m + 40) WHERE n = 2; \
                  SELECT n FROM t WHERE n = 3; UPDATE t SET m = 0 WHERE n = 3; COMMIT; SELECT 'é'";
    let answers = connections.shared().await.unwrap().run(packet).await.unwrap();
    let outline: Vec<_> = answers
        .iter()
        .map(|answer| (answer.rows.len(), answer.affected, answer.last_insert_id))
        .collect();
    assert_eq!(
        outline,
        [
            (0, 0, 0),
            (0, 2, 0),
            (0, 0, 0),
            (2, 0, 0),
            (0, 1, 42),
            (0, 0, 0),
            (0, 0, 0),
            (0, 0, 0),
            (1, 0, 0)
        ]
    );
    let mut answers = answers;
    assert_eq!(rows::<String>(answers.pop().unwrap()), ["é"]);
    assert_eq!(rows::<u32>(answers.swap_remove(3)), [1, 2]);
}

async fn error_in_the_middle_is_rolled_back_and_the_connection_is_reused(server: &Access) {
    let database = server.database().unwrap();
    database.sql("CREATE TABLE t (n INT PRIMARY KEY)").unwrap();
    let connections = connections(database.url());
    let id: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    for broken in ["INSERT INTO t VALUES (1)", "SELECT * FROM missing", "SELECT 1 FROM (SELEC"] {
        let packet = format!("BEGIN; INSERT INTO t VALUES (1); SELECT 7; {broken}; COMMIT");
        let connection = connections.for_renewals().await.unwrap();
        connection.run(&packet).await.map(|_| ()).expect_err(broken);
        let connection = connections.for_renewals().await.unwrap();
        assert_eq!(one::<u64>(connection, ID).await, id, "{broken}");
        // Another session sees nothing of it, and is not kept from writing it.
        database.sql("SET innodb_lock_wait_timeout = 1; INSERT INTO t VALUES (1)").unwrap();
        database.sql("DELETE FROM t").unwrap();
    }
}

async fn connection_in_a_transaction_is_not_reused(server: &Access) {
    let database = server.database().unwrap();
    let connections = connections(database.url());
    let first: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    connections.for_renewals().await.unwrap().run("BEGIN; SELECT 1").await.unwrap();
    let second: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    assert_ne!(first, second);
}

async fn request_that_nobody_waits_for_closes_its_connection(server: &Access) {
    let database = server.database().unwrap();
    let connections = connections(database.url());
    // Before any answer, between two, and in the middle of one.
    let rows = "SELECT REPEAT('x', 100000) UNION ALL SELECT SLEEP(30)";
    for packet in ["DO SLEEP(30)", "SELECT 1; DO SLEEP(30); SELECT 2", rows] {
        let first: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
        let running = connections.for_renewals().await.unwrap().run(packet);
        timeout(Duration::from_millis(300), running).await.expect_err(packet);
        let next: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
        assert_ne!(next, first, "{packet}");
    }
}

async fn connection_that_was_killed_while_idle_is_replaced(server: &Access) {
    let database = server.database().unwrap();
    let connections = connections(database.url());
    let first: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    database.sql(&format!("KILL {first}")).unwrap();
    let second: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    assert_ne!(first, second);
}

async fn packet_whose_answer_is_lost_is_repeated_unless_it_must_not_be(server: &Access) {
    let database = server.database().unwrap();
    database.sql("CREATE TABLE t (n INT); INSERT INTO t VALUES (0)").unwrap();
    let proxy = Proxy::start(port_of(&database)).unwrap();
    let connections = connections(database.at_port(proxy.port()).url());
    let n = || database.sql("SELECT n FROM t").unwrap().parse::<u32>().unwrap();
    let count = async |as_used: fn(InUse) -> InUse| {
        let before = n();
        let connection = connections.for_renewals().await.unwrap();
        one::<u64>(connection, ID).await;
        let reused = as_used(connections.for_renewals().await.unwrap());
        let packet = format!(
            "UPDATE t SET n = n + 1; SELECT SLEEP(60) FROM t WHERE n = {before} + 1; SELECT 7"
        );
        let cut_once = async {
            while n() == before {
                tokio::task::yield_now().await;
            }
            proxy.cut();
        };
        let (result, ()) = tokio::join!(reused.run(&packet), cut_once);
        let executed = n() - before;
        assert_eq!(result.is_ok(), executed == 2, "{result:?}");
        executed
    };
    assert_eq!(count(InUse::once).await, 1);
    assert_eq!(count(|it| it).await, 2);
}

async fn connections_are_replaced_after_a_restart<P: Product>() {
    let server = Mysqld::<P>::start().unwrap();
    let connections = connections(server.url());
    let opened = [connections.shared().await.unwrap(), connections.shared().await.unwrap()];
    for connection in opened {
        one::<u64>(connection, ID).await;
    }
    server.stop_hard().unwrap();
    let error = connections.shared().await.unwrap().run(ID).await.unwrap_err();
    assert!(crate::error::was_closed(&error), "{error}");
    let error = connections.for_renewals().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(connections.place()), "{error}");
    server.start_again().unwrap();
    one::<u64>(connections.shared().await.unwrap(), ID).await;
    one::<u64>(connections.shared().await.unwrap(), ID).await;
}

async fn fresh_connection_that_is_cut_is_not_replaced(server: &Access) {
    let database = server.database().unwrap();
    let proxy = Proxy::start(port_of(&database)).unwrap();
    let connections = connections(database.at_port(proxy.port()).url());
    let connection = connections.shared().await.unwrap();
    proxy.cut();
    let error = connection.run(ID).await.unwrap_err();
    let error = crate::error::from_driver(error, connections.place());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

async fn first_host_that_takes_writes_is_used<P: Product>() {
    let dead = super::dead_port::<P>();
    let replica = Mysqld::<P>::builder().setting("read_only", "ON").start().unwrap();
    let primary = Mysqld::<P>::start().unwrap();
    // They have to know the same user.
    let user = "CREATE USER u IDENTIFIED BY 'hunter2'; GRANT ALL ON app.* TO u";
    replica.sql(user).unwrap();
    primary.sql(user).unwrap();
    let access = primary.as_user("u", "hunter2");

    let all = connections(&url_of(&access, &[dead, replica.port(), primary.port()]));
    let port: u16 = one(all.shared().await.unwrap(), "SELECT @@port").await;
    assert_eq!(port, primary.port());

    let without = connections(&url_of(&access, &[dead, replica.port()]));
    let error = without.shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let said = error.to_string();
    assert!(said.contains(&format!(":{dead}/app")), "{said}");
    assert!(said.contains(&format!(":{}/app takes no writes", replica.port())), "{said}");
    assert_eq!(said.matches("mysql: ").count(), 1, "{said}");

    // The roles change: a connection that finds out is left, and the other host found.
    replica.sql("SET GLOBAL read_only = OFF").unwrap();
    primary.sql("CREATE TABLE app.t (n INT); SET GLOBAL read_only = ON").unwrap();
    let refused = all.shared().await.unwrap().run("INSERT INTO t VALUES (1)").await.unwrap_err();
    let refused = crate::error::from_driver(refused, all.place());
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let port: u16 = one(all.shared().await.unwrap(), "SELECT @@port").await;
    assert_eq!(port, replica.port());
}

async fn wrong_password_and_unknown_database_are_told_at_once(server: &Access) {
    let database = server.database().unwrap();
    let port = port_of(&database);
    let stranger = database.as_user("nobody", "hunter2");
    let refused = connections(&url_of(&stranger, &[port, port]));
    let error = refused.shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");

    let nowhere = connections(database.in_database("no_such_database").url());
    let error = nowhere.shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
}

async fn host_that_does_not_answer_is_given_up(server: &Access) {
    let database = server.database().unwrap();
    let server_port = port_of(&database);
    let proxy = Proxy::start(server_port).unwrap();
    proxy.black_hole();
    let url = url_of(&database, &[proxy.port()]) + "?connect_timeout=1";
    let error = connections(&url).shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("connect_timeout"), "{error}");

    let url = url_of(&database, &[proxy.port(), server_port]) + "?connect_timeout=1";
    one::<u64>(connections(&url).shared().await.unwrap(), ID).await;
}

async fn idle_connections_to_a_host_that_hangs_are_not_tried(server: &Access) {
    let database = server.database().unwrap();
    let server_port = port_of(&database);
    let proxy = Proxy::start(server_port).unwrap();
    let url = url_of(&database, &[proxy.port(), server_port]) + UNHURRIED;
    let connections = connections(&url);
    let shared = async || connections.shared().await.unwrap();
    let all = tokio::join!(shared(), shared(), shared(), shared());
    for connection in <[InUse; 4]>::from(all) {
        one::<u64>(connection, ID).await;
    }
    one::<u64>(connections.for_renewals().await.unwrap(), ID).await;

    proxy.black_hole();
    let given_up = timeout(Duration::from_secs(2), shared().await.run(ID)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    for _ in 0..4 {
        timeout(PATIENCE, one::<u64>(shared().await, ID)).await.unwrap();
    }
    let renewals = connections.for_renewals().await.unwrap();
    timeout(PATIENCE, one::<u64>(renewals, ID)).await.unwrap();
}

async fn unix_socket_is_used_where_it_is_named_and_only_there<P: Product>() {
    let server = Mysqld::<P>::start().unwrap();
    let credentials = server.url().rsplit_once('@').unwrap().0;
    let socket = server.socket();
    let url = format!("{credentials}@localhost/app?ssl-mode=required&socket={}", socket.display());
    let over =
        |id: &str| format!("SELECT host FROM information_schema.processlist WHERE id = {id}");
    let host: String =
        one(connections(&url).shared().await.unwrap(), &over("CONNECTION_ID()")).await;
    assert_eq!(host, "localhost");
    let url = server.url().replace("127.0.0.1", "localhost");
    let host: String =
        one(connections(&url).shared().await.unwrap(), &over("CONNECTION_ID()")).await;
    assert!(host.starts_with("127.0.0.1:"), "{host}");
}

async fn server_closes_what_was_idle_for_too_long(server: &Access) {
    let database = server.database().unwrap();
    let connections = connections(database.url());
    let first: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    connections.for_renewals().await.unwrap().run("SET SESSION wait_timeout = 1").await.unwrap();
    // It is gone from the list of all when the server has closed it.
    let gone = format!("SELECT COUNT(*) FROM information_schema.processlist WHERE id = {first}");
    while one::<u64>(connections.shared().await.unwrap(), &gone).await != 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second: u64 = one(connections.for_renewals().await.unwrap(), ID).await;
    assert_ne!(first, second);
}

async fn server_says_what_it_is(server: &Access) {
    let database = server.database().unwrap();
    let connection = connections(database.url()).shared().await.unwrap();
    let Server { flavour, version, galera } = connection.server();
    let said: String = one(connection, "SELECT VERSION()").await;
    assert_eq!((flavour == Flavour::MariaDb, galera), (said.contains("MariaDB"), false));
    let (major, minor, patch) = version;
    assert!(said.starts_with(&format!("{major}.{minor}.{patch}")), "{said} {version:?}");
}

/// The port of a shared server.
fn port_of(access: &Access) -> u16 {
    let (_, host_and_path) = access.url().rsplit_once(':').unwrap();
    host_and_path.split_once('/').unwrap().0.parse().unwrap()
}

/// What is tried on each product: first on its shared server, then on servers of its own.
macro_rules! on {
    ($module:ident, $product:ty: $($shared:ident)*; $($own:ident)*) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test]
                async fn $shared() {
                    super::$shared(Mysqld::<$product>::shared().unwrap()).await;
                }
            )*
            $(
                #[tokio::test]
                async fn $own() {
                    super::$own::<$product>().await;
                }
            )*
        }
    };
}

on!(mariadb, MariaDbProduct:
    each_statement_of_a_packet_has_an_answer
    error_in_the_middle_is_rolled_back_and_the_connection_is_reused
    connection_in_a_transaction_is_not_reused
    request_that_nobody_waits_for_closes_its_connection
    connection_that_was_killed_while_idle_is_replaced
    packet_whose_answer_is_lost_is_repeated_unless_it_must_not_be
    server_closes_what_was_idle_for_too_long
    fresh_connection_that_is_cut_is_not_replaced
    wrong_password_and_unknown_database_are_told_at_once
    host_that_does_not_answer_is_given_up
    idle_connections_to_a_host_that_hangs_are_not_tried
    server_says_what_it_is;
    connections_are_replaced_after_a_restart
    first_host_that_takes_writes_is_used
    unix_socket_is_used_where_it_is_named_and_only_there
);
on!(mysql, MySqlProduct:
    each_statement_of_a_packet_has_an_answer
    error_in_the_middle_is_rolled_back_and_the_connection_is_reused
    connection_in_a_transaction_is_not_reused
    request_that_nobody_waits_for_closes_its_connection
    connection_that_was_killed_while_idle_is_replaced
    packet_whose_answer_is_lost_is_repeated_unless_it_must_not_be
    server_closes_what_was_idle_for_too_long
    fresh_connection_that_is_cut_is_not_replaced
    wrong_password_and_unknown_database_are_told_at_once
    host_that_does_not_answer_is_given_up
    idle_connections_to_a_host_that_hangs_are_not_tried
    server_says_what_it_is;
    connections_are_replaced_after_a_restart
    first_host_that_takes_writes_is_used
    unix_socket_is_used_where_it_is_named_and_only_there
);
