//! Servers whose defaults would break statements, and those that are refused.

use std::time::Duration;

use database_locks_core::ErrorKind;
use database_locks_test_servers::{Access, MariaDb, MariaDbProduct, MySqlProduct, Mysqld, Product};

use mysql_async::{Conn, Opts};

use super::{connections, one, ordinary_user, rows};
use crate::packet::{self, Request};
use crate::session;

/// What an administrator can do to the sessions of ordinary users, as one statement each.
const HOSTILE: &str = "SET autocommit = 0, time_zone = '-03:30', sql_mode = \
    'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,PAD_CHAR_TO_FULL_LENGTH', \
    innodb_lock_wait_timeout = 50, lock_wait_timeout = 31536000, sql_select_limit = 1, \
    sql_safe_updates = 1, completion_type = 'CHAIN', sql_auto_is_null = 1, \
    foreign_key_checks = 0, unique_checks = 0, max_sort_length = 64, timestamp = 1000000000, \
    sql_big_selects = 0, max_join_size = 1; \
    SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY; SET NAMES latin1; USE mysql";

async fn sessions_are_safe_whatever_the_defaults<P: Product>(own: &[(&str, &str)], limit: &str) {
    let mut server = Mysqld::<P>::builder();
    for (name, value) in own.iter().chain(&[
        ("init_connect", HOSTILE),
        ("default_time_zone", "+09:00"),
        ("sql_mode", ""),
        ("transaction_isolation", "SERIALIZABLE"),
        ("sysdate-is-now", "ON"),
    ]) {
        server = server.setting(name, value);
    }
    let server = server.start().unwrap();
    let user = ordinary_user(&server);
    server.sql("GRANT SELECT ON mysql.* TO ordinary").unwrap();
    assert_hostile(&user);
    server.sql(&format!("SET GLOBAL {limit}")).unwrap();
    assert_safe(&user).await;
}

#[tokio::test]
async fn mariadb_sessions_are_safe_whatever_the_defaults() {
    let limit = "max_statement_time = 1";
    let own = [("skip-character-set-client-handshake", "ON")];
    sessions_are_safe_whatever_the_defaults::<MariaDbProduct>(&own, limit).await;
}

#[tokio::test]
async fn mysql_sessions_are_safe_whatever_the_defaults() {
    let limit = "max_execution_time = 1000";
    sessions_are_safe_whatever_the_defaults::<MySqlProduct>(&[], limit).await;
}

/// So that the test above cannot pass because the server ignored what it was told.
fn assert_hostile(user: &Access) {
    // The client names its character set in its login, and its URL's database too late.
    let said = user
        .sql("SELECT @@autocommit, @@time_zone, @@completion_type, DATABASE(), UNIX_TIMESTAMP()")
        .unwrap();
    assert_eq!(said, "0|-03:30|CHAIN|mysql|1000000000");
}

async fn assert_safe(user: &Access) {
    let connections = connections(user.url());
    let packet = "CREATE TABLE app.t (n INT, name VARBINARY(255)); \
        INSERT INTO app.t VALUES (1, \"a\\\\b\"), (2, 'é'), (3, CONCAT(REPEAT('x', 200), 'b')), \
        (4, CONCAT(REPEAT('x', 200), 'a')); \
        SELECT HEX(name), n FROM app.t ORDER BY name; \
        SELECT 1 || 0, TIMESTAMPDIFF(HOUR, UTC_TIMESTAMP(6), NOW(6)), \
        UNIX_TIMESTAMP() > 1700000000; \
        UPDATE app.t SET n = n + 1; SELECT COUNT(*) FROM app.t a JOIN app.t b JOIN app.t c";
    let mut answers = connections.shared().await.unwrap().run(packet).await.unwrap();
    assert_eq!(answers.len(), 6);
    assert_eq!(rows::<u64>(answers.pop().unwrap()), [64]);
    assert_eq!(answers.pop().unwrap().affected, 4);
    assert_eq!(rows::<(u8, i64, u8)>(answers.pop().unwrap()), [(1, 0, 1)]);
    let x = "78".repeat(200);
    assert_eq!(
        rows::<(String, u8)>(answers.pop().unwrap()),
        [("615C62".into(), 1), (format!("{x}61"), 4), (format!("{x}62"), 3), ("C3A9".into(), 2)]
    );
    // A second is the server's limit. One of a millisecond would also end what a server does at
    // each login, and then some logins are never answered.
    assert_eq!(one::<u8>(connections.shared().await.unwrap(), "SELECT SLEEP(1.5)").await, 0);
    // Ours is 10 s, so that what nobody waits for any more does not stay for ever.
    let endless = connections.shared().await.unwrap();
    let endless = endless.run("SELECT SLEEP(600)");
    let ended = tokio::time::timeout(Duration::from_secs(120), endless).await;
    let _ = ended.expect("the server bounds no statement");
    // What is too long is refused, not cut, and what was written is committed.
    let too_long = "INSERT INTO app.t VALUES (9, REPEAT('x', 256))";
    connections.shared().await.unwrap().run(too_long).await.map(|_| ()).expect_err(too_long);
    let others = super::connections(user.url());
    let sum = "SELECT CAST(SUM(n) AS SIGNED) FROM app.t";
    assert_eq!(one::<i64>(others.shared().await.unwrap(), sum).await, 14);
    // A statement sees what was committed since the last one.
    let connection = connections.shared().await.unwrap();
    let isolation =
        "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')";
    assert_eq!(one::<(String, String)>(connection, isolation).await.1, "READ-COMMITTED");
    // A locked row is not waited for long.
    let lock = "BEGIN; SELECT n FROM app.t FOR UPDATE; DO SLEEP(60)";
    let mut locking = Box::pin(others.shared().await.unwrap().run(lock));
    let waiting = async {
        loop {
            let connection = connections.shared().await.unwrap();
            if let Err(refused) = connection.run("UPDATE app.t SET n = 0").await {
                break refused;
            }
        }
    };
    tokio::select! {
        refused = waiting => assert!(crate::error::is_conflict(&refused), "{refused}"),
        ended = &mut locking => panic!("the lock was not kept: {ended:?}"),
    }
}

#[tokio::test]
async fn rows_of_a_suspended_client_are_let_go() {
    let database = MariaDb::shared().unwrap().database().unwrap();
    let mut suspended = Conn::new(Opts::from_url(database.url()).unwrap()).await.unwrap();
    session::prepare(&mut suspended, "here").await.unwrap();
    let lock = "CREATE TABLE t (n INT); INSERT INTO t VALUES (1); BEGIN; UPDATE t SET n = 2";
    packet::send(&mut suspended, Request::Packet(lock)).await.unwrap();
    let connections = connections(database.url());
    let others = async {
        while connections.shared().await.unwrap().run("UPDATE t SET n = 3").await.is_err() {}
    };
    // Generous: it only has to end on the slowest machine.
    tokio::time::timeout(Duration::from_mins(1), others).await.expect("the row is still locked");
}

#[tokio::test]
async fn server_that_cannot_write_under_read_committed_is_refused() {
    let server = MariaDb::builder()
        .setting("log_bin", "binlog")
        .setting("server_id", "1")
        .setting("binlog_format", "STATEMENT")
        .start()
        .unwrap();
    let error = connections(server.url()).shared().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("binlog_format"), "{error}");
    server.sql("SET GLOBAL binlog_format = 'MIXED'").unwrap();
    one::<u8>(connections(server.url()).shared().await.unwrap(), "SELECT 1").await;
}

#[tokio::test]
async fn server_that_lets_nobody_set_the_time_is_used() {
    let server = MariaDb::builder().setting("secure_timestamp", "YES").start().unwrap();
    let user = ordinary_user(&server);
    one::<u8>(connections(user.url()).shared().await.unwrap(), "SELECT 1").await;
}
