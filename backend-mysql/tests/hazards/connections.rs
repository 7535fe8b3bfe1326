//! Sessions that start out hostile, rights, and connections that break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_core::{
    ErrorKind, ListQuery, LockBackend, Release, Released, Renewal, Renewed, Ttl, Verdict,
};
use database_locks_mysql::{MysqlBackend, MysqlConfig};
use database_locks_test_servers::{Access, MariaDb, MySql};
use mysql_async::prelude::Queryable;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::common::packets::host_and_port;
use crate::common::{Kind, Store, ask, claim, connect, hold, on_each_server};
use crate::{Said, list, outlive, reader, release, renew};

on_each_server!(
    hostile_defaults_of_the_session_change_nothing,
    lock_user_needs_four_rights_on_two_tables,
    killed_connections_are_replaced,
    dropped_request_takes_its_connection_with_it,
    bad_credentials_and_databases_say_what_to_do,
    login_that_is_refused_is_tried_once_more,
    proxysql_is_refused_whatever_version_it_shows,
    password_is_asked_for_with_each_connection_and_the_driver_told_what_the_user_says,
);

async fn hostile_defaults_of_the_session_change_nothing(kind: Kind) {
    let (store, admin) = Store::migrated(kind).await;
    // Only users that are called like this one, so that no other test meets it.
    let prefix = "hostile_";
    let user = format!("{prefix}{}", &Uuid::new_v4().simple().to_string()[..20]);
    let if_hostile = |name: &str, value: &str| {
        format!("@@session.{name} = IF(USER() LIKE '{prefix}%', {value}, @@session.{name})")
    };
    let init = format!(
        "SET {}, {}, {}",
        if_hostile("autocommit", "0"),
        if_hostile("time_zone", "'+09:00'"),
        if_hostile("sql_mode", "''"),
    );
    for node in &store.nodes {
        connect(node).await.exec_drop("SET GLOBAL init_connect = ?", (&init,)).await.unwrap();
    }
    make_user(&store, &user).await;
    let database = store.database.database_name();
    grant(&store, &format!("GRANT ALL ON {database}.* TO {user}")).await;
    let access = store.node().as_user(&user, "secret");
    let hostile =
        MysqlBackend::connect(MysqlConfig::from_url(access.url()).unwrap()).await.unwrap();

    // What this user's sessions are like without us.
    let mut plain = connect(&access).await;
    let found: Option<(i64, String)> =
        plain.query_first("SELECT @@autocommit, @@time_zone").await.unwrap();
    assert_eq!(found, Some((0, "+09:00".to_owned())));

    for asked in [claim("x"), reader("y")] {
        let lock = asked.name.as_str();
        let held = hold(&hostile, &asked).await;
        let seen = list(&admin, lock).await;
        assert_eq!(seen[0].lease, held);
        let remaining = seen[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_mins(1));
        assert_eq!(ask(&hostile, &claim(lock)).await.kind(), "busy");
        assert_eq!(ask(&admin, &claim(lock)).await.kind(), "busy");
        let remaining = list(&hostile, lock).await[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_mins(1));

        assert_eq!(renew(&hostile, &held).await, Renewed::Alive);
        let remaining = list(&admin, lock).await[0].remaining.unwrap();
        assert!(remaining <= Duration::from_secs(10), "the renewal is not seen");
        assert_eq!(release(&hostile, &held).await, Released::Done);
        let held = hold(&admin, &asked.clone().with_attempt(claim(lock).attempt)).await;
        assert_eq!(renew(&hostile, &held).await, Renewed::Alive);
        assert_eq!(release(&hostile, &held).await, Released::Done);
        outlive().await;
        let idle = Duration::from_micros(1);
        assert_eq!(hostile.clean_up(idle).await.unwrap(), 1);
        assert_eq!(admin.clean_up(idle).await.unwrap(), 0);
    }
    grant(&store, &format!("DROP USER {user}")).await;
}

async fn lock_user_needs_four_rights_on_two_tables(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let user = format!("u_{}", &Uuid::new_v4().simple().to_string()[..20]);
    let database = store.database.database_name().to_owned();
    make_user(&store, &user).await;
    let access = store.node().as_user(&user, "secret");
    let config = || MysqlConfig::from_url(access.url()).unwrap();
    let error = MysqlBackend::connect(config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    let tables = ["database_locks_lock", "database_locks_lock_share"];
    for table in tables {
        grant(&store, &format!("GRANT SELECT ON {database}.{table} TO {user}")).await;
    }
    let backend = MysqlBackend::connect(config()).await.unwrap();
    let error = backend.acquire(&[claim("x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    for table in tables {
        let rights = "INSERT, UPDATE, DELETE";
        grant(&store, &format!("GRANT {rights} ON {database}.{table} TO {user}")).await;
    }
    let backend = MysqlBackend::connect(config()).await.unwrap();
    backend.migrate().await.unwrap();
    for asked in [claim("x"), reader("y"), reader("y")] {
        let held = hold(&backend, &asked).await;
        assert_eq!(renew(&backend, &held).await, Renewed::Alive);
        assert_eq!(ask(&backend, &claim(asked.name.as_str())).await.kind(), "busy");
        assert_eq!(release(&backend, &held).await, Released::Done);
    }
    // Exclusive over shares that have ended: their rows go.
    hold(&backend, &claim("y")).await;
    backend.list(&ListQuery::default()).await.unwrap();
    outlive().await;
    assert_eq!(backend.clean_up(Duration::from_micros(1)).await.unwrap(), 1);
    grant(&store, &format!("DROP USER {user}")).await;
}

async fn make_user(store: &Store, user: &str) {
    grant(store, &format!("CREATE USER {user} IDENTIFIED BY 'secret'")).await;
}

/// Runs what changes users, and waits until all nodes know of it.
async fn grant(store: &Store, sql: &str) {
    store.client().await.query_drop(sql).await.unwrap();
    for node in &store.nodes {
        let mut node = connect(node).await;
        // Only nodes of a cluster know of this.
        node.query_drop("SET SESSION wsrep_sync_wait = 1").await.ok();
        node.query_drop("SELECT COUNT(*) FROM mysql.user").await.unwrap();
    }
}

/// Ends all connections to the store's database, and tells how many there were.
async fn kill_connections(store: &Store) -> usize {
    let mut killed = 0;
    for node in &store.nodes {
        let mut admin = connect(&node.in_database("mysql")).await;
        let sql = "SELECT id FROM information_schema.processlist WHERE db = ?";
        let database = store.database.database_name();
        let ids: Vec<u64> = admin.exec(sql, (database,)).await.unwrap();
        for id in ids {
            admin.query_drop(format!("KILL {id}")).await.unwrap();
            killed += 1;
        }
    }
    killed
}

async fn killed_connections_are_replaced(kind: Kind) {
    let (store, backend) = Store::migrated(kind).await;
    let held = hold(&backend, &claim("x")).await;
    assert_eq!(renew(&backend, &held).await, Renewed::Alive);
    let killed = kill_connections(&store).await;
    assert!(killed >= 2, "only {killed} were killed");
    // The word of the server may still be on its way: then the request fails as retryable.
    for attempts in 0.. {
        let renewal = Renewal::new(held.clone(), Ttl::DEFAULT);
        match backend.renew(&[renewal]).await {
            Ok(renewed) => {
                assert_eq!(renewed, [Renewed::Alive]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
    for attempts in 0.. {
        match backend.release(&[Release::free(held.clone())]).await {
            Ok(released) => {
                assert_eq!(released, [Released::Done]);
                break;
            }
            Err(error) => assert!(error.is_retryable() && attempts < 10, "{error:?}"),
        }
    }
}

async fn dropped_request_takes_its_connection_with_it(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    let config = MysqlConfig::from_url(store.nodes[0].url()).unwrap().pool_size(1).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();
    let mut blocker = store.client().await;
    blocker.query_drop("LOCK TABLES database_locks_lock WRITE").await.unwrap();
    let stuck = [claim("x")];
    tokio::time::timeout(Duration::from_millis(200), backend.acquire(&stuck)).await.unwrap_err();
    // The pool of one has to have a fresh connection for this, which needs no lock.
    let fresh = tokio::time::timeout(Duration::from_secs(20), backend.migrate());
    fresh.await.expect("the stuck connection was used again").unwrap();
    blocker.query_drop("UNLOCK TABLES").await.unwrap();
    // The server may have finished the dropped request: its own attempt finds out.
    let token = loop {
        match ask(&backend, &stuck[0]).await {
            Verdict::Granted(token) => break token,
            Verdict::Busy(_) | Verdict::Skipped => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(release(&backend, &stuck[0].lease(token)).await, Released::Done);
}

async fn bad_credentials_and_databases_say_what_to_do(kind: Kind) {
    let store = Store::empty(kind);
    let nowhere = MysqlConfig::from_url("mysql://u:hunter2@127.0.0.1:1/d").unwrap();
    let error = MysqlBackend::connect(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("hunter2"));

    let missing = store.node().in_database("no_such_database");
    let missing = MysqlConfig::from_url(missing.url()).unwrap();
    let error = MysqlBackend::connect(missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");

    for user in ["no_such_user", "root"] {
        let unknown = store.node().as_user(user, "hunter2");
        let unknown = MysqlConfig::from_url(unknown.url()).unwrap();
        let error = MysqlBackend::connect(unknown).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

async fn login_that_is_refused_is_tried_once_more(kind: Kind) {
    let (store, _) = Store::migrated(kind).await;
    for (refusals, logins) in [(1, 2), (2, 2)] {
        let (url, counted) = refusing(store.node(), refusals).await;
        let connected = MysqlBackend::connect(MysqlConfig::from_url(&url).unwrap()).await;
        match connected {
            Ok(_) => assert_eq!(refusals, 1),
            Err(error) => {
                assert_eq!((refusals, error.kind()), (2, ErrorKind::Permission), "{error}")
            }
        }
        assert!(counted.load(Ordering::Relaxed) >= logins);
        assert!(refusals == 1 || counted.load(Ordering::Relaxed) == logins, "it is tried on");
    }
}

/// A way to a server that refuses the first logins, and the count of them all.
async fn refusing(node: &Access, refusals: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = host_and_port(node.url()).to_owned();
    let counted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&counted);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            if counter.fetch_add(1, Ordering::Relaxed) < refusals {
                // A packet of its length, its number, and an error in place of a greeting.
                let error = b"\xff\x15\x04#28000Access denied";
                let mut packet = vec![u8::try_from(error.len()).unwrap(), 0, 0, 0];
                packet.extend(error);
                let _ = client.write_all(&packet).await;
                continue;
            }
            let mut server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    (node.at_port(port).url().to_owned(), counted)
}

async fn proxysql_is_refused_whatever_version_it_shows(kind: Kind) {
    let store = Store::empty(kind);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = host_and_port(store.node().url()).to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(as_proxysql(client, server));
        }
    });
    let url = format!("{}?ssl-mode=disabled", store.node().at_port(port).url());
    let config = MysqlConfig::from_url(&url).unwrap();
    let error = MysqlBackend::connect(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("ProxySQL"), "{error}");
}

/// Lets a server answer to what only `ProxySQL` has an answer to.
async fn as_proxysql(client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    let (mut asked, mut answered) = client.into_split();
    let (mut answers, mut asks) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
    loop {
        // A packet of its length, in three bytes, and its number.
        let mut head = [0; 4];
        asked.read_exact(&mut head).await?;
        let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        asked.read_exact(&mut body).await?;
        if body == b"\x03PROXYSQL INTERNAL SESSION" {
            body = b"\x03DO 0".to_vec();
            head[0] = u8::try_from(body.len()).unwrap();
        }
        asks.write_all(&head).await?;
        asks.write_all(&body).await?;
    }
}

#[tokio::test]
async fn mysql_without_room_for_prepared_statements_decides_all_the_same() {
    without_room_for_prepared_statements(&MySql::builder().start().unwrap()).await;
}

#[tokio::test]
async fn mariadb_without_room_for_prepared_statements_decides_all_the_same() {
    without_room_for_prepared_statements(&MariaDb::builder().start().unwrap()).await;
}

async fn without_room_for_prepared_statements(server: &Access) {
    let store = Store::on(std::slice::from_ref(server)).unwrap();
    let before = store.backend().await;
    before.migrate().await.unwrap();
    let held = hold(&before, &claim("before")).await;
    assert_eq!(release(&before, &held).await, Released::Done);
    server.sql("SET GLOBAL max_prepared_stmt_count = 0").unwrap();
    for backend in [before, store.backend().await] {
        for _ in 0..2 {
            let held = hold(&backend, &claim("x")).await;
            assert_eq!(ask(&backend, &claim("x")).await.kind(), "busy");
            assert_eq!(renew(&backend, &held).await, Renewed::Alive);
            let successor = claim("x").with_replaces(held);
            let held = hold(&backend, &successor).await;
            assert_eq!(release(&backend, &held).await, Released::Done);
        }
        let names: Vec<String> = (0..8).map(|index| format!("many {index}")).collect();
        let mut leases = Vec::new();
        for name in &names {
            leases.push(hold(&backend, &claim(name)).await);
        }
        leases.push(hold(&backend, &reader("read")).await);
        let renewals: Vec<_> =
            leases.iter().map(|lease| Renewal::new(lease.clone(), Ttl::DEFAULT)).collect();
        assert_eq!(backend.renew(&renewals).await.unwrap(), [Renewed::Alive; 9]);
        assert_eq!(backend.renew(&renewals[..8]).await.unwrap(), [Renewed::Alive; 8]);
        let released = backend.release(&Release::free_all(&leases)).await.unwrap();
        assert_eq!(released, [Released::Done; 9]);
    }
}

async fn password_is_asked_for_with_each_connection_and_the_driver_told_what_the_user_says(
    kind: Kind,
) {
    let (store, _) = Store::migrated(kind).await;
    let user = format!("u_{}", &Uuid::new_v4().simple().to_string()[..20]);
    make_user(&store, &user).await;
    let database = store.database.database_name();
    grant(&store, &format!("GRANT ALL ON {database}.* TO {user}")).await;
    let url = store.node().as_user("nobody", "out of date").url().to_owned();
    let current = Arc::new(Mutex::new("secret"));
    let source = Arc::clone(&current);
    let config = MysqlConfig::from_url(&url)
        .unwrap()
        .pool_size(1)
        .unwrap()
        .password_from(move || {
            let password = source.lock().unwrap().to_owned();
            async move { Ok(password) }
        })
        .driver_options({
            let user = user.clone();
            move |options| options.user(Some(user.clone()))
        });
    let backend = MysqlBackend::connect(config).await.unwrap();
    let held = hold(&backend, &claim("x")).await;

    *current.lock().unwrap() = "wrong";
    assert!(kill_connections(&store).await >= 1);
    let after = async || loop {
        match backend.acquire(&[claim("y")]).await {
            Err(error) if error.is_retryable() => {}
            result => break result,
        }
    };
    assert_eq!(after().await.unwrap_err().kind(), ErrorKind::Permission);
    *current.lock().unwrap() = "secret";
    assert!(matches!(after().await.unwrap()[..], [Verdict::Granted(_)]));
    assert_eq!(release(&backend, &held).await, Released::Done);
}
