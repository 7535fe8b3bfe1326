//! What the tests share: three servers, and a database of its own for each test.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses its own part"
)]

pub mod packets;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use database_locks_core::{Claim, LeaseId, LockBackend, LockName, Owner, Ttl, Verdict};
use database_locks_mysql::{MysqlBackend, MysqlConfig};
use database_locks_test_servers::{Access, Database, Galera, MariaDb, MySql, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};

/// Which of the servers a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MySql,
    MariaDb,
    Galera,
}

/// Runs each test on each server.
#[allow(unused_macros, reason = "each test binary uses its own part")]
macro_rules! on_each_server {
    ($($test:ident),* $(,)?) => {
        mod mysql { $(#[tokio::test] async fn $test() { super::$test($crate::common::Kind::MySql).await })* }
        mod mariadb { $(#[tokio::test] async fn $test() { super::$test($crate::common::Kind::MariaDb).await })* }
        mod galera { $(#[tokio::test] async fn $test() { super::$test($crate::common::Kind::Galera).await })* }
    };
}
#[allow(unused_imports, reason = "each test binary uses its own part")]
pub(crate) use on_each_server;

impl Kind {
    /// The server that all tests of this process share: all its nodes.
    pub fn shared(self) -> Result<Vec<Access>> {
        Ok(match self {
            Self::MySql => vec![MySql::shared()?.clone()],
            Self::MariaDb => vec![MariaDb::shared()?.clone()],
            Self::Galera => Galera::shared()?.nodes().iter().map(|n| Access::clone(n)).collect(),
        })
    }
}

/// A database of the test's own.
pub struct Store {
    pub database: Database,
    /// The same database on each node.
    pub nodes: Vec<Access>,
    next: AtomicUsize,
}

impl Store {
    /// A database with the tables in it, and a backend on them.
    pub async fn migrated(kind: Kind) -> (Self, MysqlBackend) {
        let store = Self::empty(kind);
        let backend = store.backend().await;
        backend.migrate().await.unwrap();
        (store, backend)
    }

    pub fn empty(kind: Kind) -> Self {
        Self::on(&kind.shared().unwrap()).unwrap()
    }

    /// A database on these nodes of one cluster.
    pub fn on(nodes: &[Access]) -> Result<Self> {
        Self::with(nodes, "")
    }

    /// As [`on`](Self::on), with a character set or collation.
    pub fn with(nodes: &[Access], charset: &str) -> Result<Self> {
        let database = nodes[0].database_with(charset)?;
        let name = database.database_name();
        for node in &nodes[1..] {
            // A read that waits for what the other nodes have written: the database, for one.
            node.sql("SET SESSION wsrep_sync_wait = 1; SELECT 1")?;
        }
        let nodes = nodes.iter().map(|node| node.in_database(name)).collect();
        Ok(Self { database, nodes, next: AtomicUsize::new(0) })
    }

    /// One of the nodes, another each time.
    pub fn node(&self) -> &Access {
        &self.nodes[self.next.fetch_add(1, Ordering::Relaxed) % self.nodes.len()]
    }

    pub fn config(&self) -> MysqlConfig {
        MysqlConfig::from_url(self.node().url()).unwrap()
    }

    pub async fn backend(&self) -> MysqlBackend {
        MysqlBackend::connect(self.config()).await.unwrap()
    }

    /// A backend on the node that [`client`](Self::client) is connected to.
    pub async fn backend_at_client(&self) -> MysqlBackend {
        self.backend_at(0).await
    }

    pub async fn backend_at(&self, node: usize) -> MysqlBackend {
        let config = MysqlConfig::from_url(self.nodes[node].url()).unwrap();
        MysqlBackend::connect(config).await.unwrap()
    }

    /// A plain connection of the test's own, to the first node.
    pub async fn client(&self) -> Conn {
        let mut client = connect(&self.nodes[0]).await;
        // It sees and changes what the other nodes of a cluster have done; others do not know this.
        client.query_drop("SET SESSION wsrep_sync_wait = 7").await.ok();
        client
    }
}

pub async fn connect(access: &Access) -> Conn {
    Conn::new(Opts::from_url(access.url()).unwrap()).await.unwrap()
}

pub fn name(name: &str) -> LockName {
    LockName::new(name).unwrap()
}

pub fn owner(label: &str) -> Owner {
    Owner::label_only(label).unwrap()
}

/// An exclusive claim of a minute.
pub fn claim(lock: &str) -> Claim {
    Claim::new(name(lock))
        .with_owner(owner("host.1"))
        .with_ttl(Ttl::new(Duration::from_mins(1)).unwrap())
}

pub async fn ask(backend: &MysqlBackend, claim: &Claim) -> Verdict {
    let verdicts = backend.acquire(std::slice::from_ref(claim)).await.unwrap();
    let [verdict] = <[Verdict; 1]>::try_from(verdicts).unwrap();
    verdict
}

/// Acquires what must be free.
pub async fn hold(backend: &MysqlBackend, claim: &Claim) -> LeaseId {
    match ask(backend, claim).await {
        Verdict::Granted(token) => claim.lease(token),
        other => panic!("{:?} was not granted: {other:?}", claim.name),
    }
}
