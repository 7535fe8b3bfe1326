//! What the tests share: a server, and a schema of its own for each test.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses its own part"
)]

use std::time::Duration;

use database_locks_core::{Claim, LeaseId, LockBackend, LockName, Owner, Ttl, Verdict};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{Access, Database, Postgres};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// A database of the test's own, with a schema for the tables in it.
pub struct Store {
    pub database: Database,
    pub schema: String,
}

impl Store {
    /// A schema with the tables in it, and a backend on them.
    pub async fn migrated() -> (Self, PostgresBackend) {
        let store = Self::empty();
        let backend = store.backend().await;
        backend.migrate().await.unwrap();
        (store, backend)
    }

    /// A schema that does not exist yet.
    pub fn empty() -> Self {
        let database = Postgres::shared().unwrap().database().unwrap();
        Self { database, schema: format!("t_{}", Uuid::new_v4().simple()) }
    }

    pub fn config(&self) -> PostgresConfig {
        self.config_of(&self.database)
    }

    /// As [`config`](Self::config), as a role with the password `secret`.
    pub fn config_as(&self, role: &str) -> PostgresConfig {
        self.config_of(&self.database.as_user(role, "secret"))
    }

    fn config_of(&self, access: &Access) -> PostgresConfig {
        let url = access.url();
        let more = if url.contains('?') { '&' } else { '?' };
        // A busy machine may take more than the default to let many in at once.
        let url = format!("{url}{more}connect_timeout=60");
        PostgresConfig::from_url(&url).unwrap().schema(&self.schema).unwrap()
    }

    pub async fn backend(&self) -> PostgresBackend {
        PostgresBackend::connect(self.config()).await.unwrap()
    }

    /// A plain connection of the test's own, whose `search_path` is the schema.
    pub async fn client(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(self.database.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("set search_path = {}", self.schema)).await.unwrap();
        client
    }
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

pub async fn ask(backend: &PostgresBackend, claim: &Claim) -> Verdict {
    let verdicts = backend.acquire(std::slice::from_ref(claim)).await.unwrap();
    let [verdict] = <[Verdict; 1]>::try_from(verdicts).unwrap();
    verdict
}

/// Acquires what must be free.
pub async fn hold(backend: &PostgresBackend, claim: &Claim) -> LeaseId {
    match ask(backend, claim).await {
        Verdict::Granted(token) => claim.lease(token),
        other => panic!("{:?} was not granted: {other:?}", claim.name),
    }
}
