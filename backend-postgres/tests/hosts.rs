//! Several hosts in the URL, some of which hang: they still accept connections, and answer nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{claim, hold};
use database_locks_core::{ErrorKind, LockBackend, Locks, Renewal, Renewed, Result, Ttl, Wakeup};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{Access, Database, Postgres, Proxy};
use futures_util::StreamExt as _;
use tokio::time::timeout;

/// Generous: it only has to end on the slowest machine. Whoever waits for a host that hangs under
/// [`UNHURRIED`] waits for longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// So that nothing but being passed over ends the wait for a host that hangs.
const UNHURRIED: &str = "?connect_timeout=600";

#[tokio::test(flavor = "multi_thread")]
async fn host_that_hangs_is_given_up_for_the_next() {
    let hosts = Hosts::new();
    hosts.proxies[0].black_hole();
    let connecting = hosts.connect("?connect_timeout=1");
    let backend = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    backend.migrate().await.unwrap();
    let lease = hold(&backend, &claim("one")).await;
    let renewal = Renewal::new(lease, Ttl::DEFAULT);
    assert_eq!(backend.renew(&[renewal]).await.unwrap(), [Renewed::Alive]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wakeups_come_from_the_next_host_where_the_first_hangs() {
    let hosts = Hosts::new();
    hosts.proxies[0].black_hole();
    let connecting = hosts.connect("?connect_timeout=1");
    let backend = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    // What is connected to the second host would hang as well.
    hosts.proxies[0].resume();
    hosts.proxies[1].black_hole();
    hosts.proxies[1].cut();
    let listening = async {
        let mut wakeups = backend.wakeups().await.unwrap().unwrap();
        wakeups.next().await
    };
    assert_eq!(timeout(PATIENCE, listening).await.unwrap(), Some(Wakeup::Listening));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_all_hang_are_named_with_what_to_do() {
    let hosts = Hosts::new();
    hosts.proxies.iter().for_each(Proxy::black_hole);
    let connecting = hosts.connect("?connect_timeout=1");
    let error = timeout(PATIENCE, connecting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("raise connect_timeout"), "{error}");
    for proxy in &hosts.proxies {
        assert!(error.to_string().contains(&proxy.port().to_string()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn password_that_all_hosts_refuse_is_told() {
    let hosts = Hosts::new();
    let stranger = hosts.url_of(&hosts.database.as_user("nobody", "hunter2"), UNHURRIED);
    let connecting = connect(&stranger);
    let error = timeout(PATIENCE, connecting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_is_passed_over_while_it_is_tried() {
    let hosts = Hosts::new();
    let backend = hosts.connect(UNHURRIED).await.unwrap();
    backend.migrate().await.unwrap();
    let lease = hold(&backend, &claim("one")).await;
    let renewals = [Renewal::new(lease, Ttl::DEFAULT)];
    hosts.proxies[0].black_hole();
    // There is no connection for renewals yet. Any time is long enough to have begun with it.
    let given_up = timeout(Duration::from_secs(2), backend.renew(&renewals)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    let renewed = timeout(PATIENCE, backend.renew(&renewals)).await.unwrap().unwrap();
    assert_eq!(renewed, [Renewed::Alive]);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_is_passed_over_after_a_request_on_it_was_given_up() {
    let hosts = Hosts::new();
    let backend = hosts.connect(UNHURRIED).await.unwrap();
    backend.migrate().await.unwrap();
    hosts.proxies[0].black_hole();
    // On the connection that has migrated.
    let given_up = timeout(Duration::from_secs(2), backend.acquire(&[claim("one")])).await;
    assert!(given_up.is_err(), "{given_up:?}");
    timeout(PATIENCE, hold(&backend, &claim("two"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_a_host_that_hangs_are_not_tried() {
    let hosts = Hosts::new();
    let backend = hosts.connect(UNHURRIED).await.unwrap();
    backend.migrate().await.unwrap();
    // All of them take a connection before any has an answer.
    let [one, two, three, four] = ["1", "2", "3", "4"].map(claim);
    let _held = tokio::join!(
        hold(&backend, &one),
        hold(&backend, &two),
        hold(&backend, &three),
        hold(&backend, &four)
    );
    let connected = "select count(*) from pg_stat_activity
        where application_name = 'database-locks' and datname = current_database()";
    assert_eq!(hosts.database.sql(connected).unwrap(), "4");

    hosts.proxies[0].black_hole();
    let given_up = timeout(Duration::from_secs(2), backend.acquire(&[claim("5")])).await;
    assert!(given_up.is_err(), "{given_up:?}");
    for next in ["6", "7", "8", "9"] {
        timeout(PATIENCE, hold(&backend, &claim(next))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_is_renewed_by_another_host_when_its_own_hangs() {
    let hosts = Hosts::new();
    let backend = hosts.connect("").await.unwrap();
    backend.migrate().await.unwrap();
    let locks = Locks::new(backend);
    let ttl = Duration::from_secs(20);
    let guard = locks.lock("one").ttl(ttl).acquire().await.unwrap();
    hosts.proxies[0].black_hole();
    let past_the_ttl = timeout(ttl + ttl / 2, guard.lost()).await;
    assert!(past_the_ttl.is_err(), "{past_the_ttl:?}");
    guard.check().unwrap();
    guard.release().await.unwrap();
}

/// One database behind two hosts, the first of which is tried first.
struct Hosts {
    database: Database,
    proxies: [Proxy; 2],
}

impl Hosts {
    fn new() -> Self {
        let database = Postgres::shared().unwrap().database().unwrap();
        let server: tokio_postgres::Config = database.url().parse().unwrap();
        let port = server.get_ports()[0];
        Self { database, proxies: [(); 2].map(|()| Proxy::start(port).unwrap()) }
    }

    async fn connect(&self, parameters: &str) -> Result<PostgresBackend> {
        connect(&self.url_of(&self.database, parameters)).await
    }

    fn url_of(&self, access: &Access, parameters: &str) -> String {
        let [first, second] = self.proxies.each_ref().map(|proxy| format!(":{}", proxy.port()));
        let access = access.at_port(self.proxies[0].port());
        access.url().replace(&first, &format!("{first},127.0.0.1{second}")) + parameters
    }
}

async fn connect(url: &str) -> Result<PostgresBackend> {
    PostgresBackend::connect(PostgresConfig::from_url(url)?).await
}
