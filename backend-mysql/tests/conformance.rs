//! The common suite on MySQL, on MariaDB, and on a Galera cluster whose clients are on different
//! nodes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{Kind, Store};
use database_locks_conformance::{
    Client, ClientOption, ClockStep, Harness, Isolation, Outcome, RowLock, ServerEnd, ShiftedBy,
    Stop, TableNames, async_trait,
};
use database_locks_core::{LeaseId, LockName};
use database_locks_mysql::{MysqlBackend, MysqlConfig};
use database_locks_test_servers::{Access, Galera, MariaDb, MySql, Server, ShiftedClock};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use uuid::Uuid;

mod mysql {
    use super::OnMySql;

    database_locks_conformance::suite!(OnMySql);
}

mod mariadb {
    use super::OnMariaDb;

    database_locks_conformance::suite!(OnMariaDb);
}

mod galera {
    use super::OnGalera;

    database_locks_conformance::suite!(OnGalera);
}

/// A database of its own for each case.
struct Case {
    store: Arc<Store>,
    table: &'static str,
    /// Below the database, which is dropped while its server still runs.
    own: Option<Arc<Own>>,
}

/// A server, or a cluster, for one case only.
enum Own {
    MySql(MySql),
    MariaDb(MariaDb),
    Galera(Galera),
}

impl Own {
    /// One whose clock can be set. Galera's nodes have one clock each.
    fn steppable(kind: Kind) -> Outcome<Self> {
        Ok(match kind {
            Kind::MySql => Self::MySql(MySql::builder().steppable().start().map_err(failed)?),
            Kind::MariaDb => Self::MariaDb(MariaDb::builder().steppable().start().map_err(failed)?),
            Kind::Galera => return Err(Stop::lacks("steppable")),
        })
    }

    fn step_clock(&self, step: ClockStep) -> database_locks_test_servers::Result<()> {
        let step = self::step(step);
        match self {
            Self::MySql(server) => server.step_clock(step),
            Self::MariaDb(server) => server.step_clock(step),
            Self::Galera(cluster) => {
                cluster.nodes().iter().try_for_each(|node| node.step_clock(step))
            }
        }
    }

    fn start(kind: Kind) -> database_locks_test_servers::Result<Self> {
        Ok(match kind {
            Kind::MySql => Self::MySql(MySql::builder().durable().start()?),
            Kind::MariaDb => Self::MariaDb(MariaDb::builder().durable().start()?),
            Kind::Galera => Self::Galera(Galera::builder().durable().start()?),
        })
    }

    fn nodes(&self) -> Vec<Access> {
        match self {
            Self::MySql(server) => vec![Access::clone(server)],
            Self::MariaDb(server) => vec![Access::clone(server)],
            Self::Galera(cluster) => cluster.nodes().iter().map(|n| Access::clone(n)).collect(),
        }
    }

    /// A cluster restarts node by node, as its administrators do it, and crashes as one node of it does, the
    /// first.
    fn restart(&self, end: ServerEnd) -> database_locks_test_servers::Result<()> {
        match self {
            Self::MySql(server) => restart(server, end),
            Self::MariaDb(server) => restart(server, end),
            Self::Galera(cluster) => cluster.nodes().iter().try_for_each(|node| restart(node, end)),
        }
    }
}

fn restart(server: &impl Server, end: ServerEnd) -> database_locks_test_servers::Result<()> {
    match end {
        ServerEnd::Crash => server.stop_hard().and_then(|()| server.start_again()),
        _ => server.restart(),
    }
}

impl Case {
    async fn fresh(kind: Kind) -> Outcome<Self> {
        let nodes = kind.shared().map_err(failed)?;
        Self::on(&nodes, None).await
    }

    async fn restartable(kind: Kind) -> Outcome<Self> {
        let own = tokio::task::spawn_blocking(move || Own::start(kind)).await?.map_err(failed)?;
        Self::on(&own.nodes(), Some(own)).await
    }

    async fn steppable(kind: Kind) -> Outcome<Self> {
        let own = tokio::task::spawn_blocking(move || Own::steppable(kind)).await??;
        Self::on(&own.nodes(), Some(own)).await
    }

    fn step_clock(&self, step: ClockStep) -> Outcome {
        match &self.own {
            Some(own) => own.step_clock(step).map_err(failed),
            None => Err(Stop::failed("only the clock of the case's own server may be set")),
        }
    }

    async fn on(nodes: &[Access], own: Option<Own>) -> Outcome<Self> {
        let store = Arc::new(Store::on(nodes).map_err(failed)?);
        let case = Self { store, table: MysqlConfig::DEFAULT_TABLE, own: own.map(Arc::new) };
        case.migrate().await?;
        Ok(case)
    }

    async fn restart(&self, end: ServerEnd) -> Outcome {
        let Some(own) = self.own.clone() else {
            return Err(Stop::failed("only a server of the case's own may be restarted"));
        };
        tokio::task::spawn_blocking(move || own.restart(end)).await?.map_err(failed)
    }

    fn config(&self) -> Outcome<MysqlConfig> {
        Ok(self.store.config().table(self.table)?)
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(MysqlBackend::connect(self.config()?).await?))
    }

    async fn migrate(&self) -> Outcome {
        Ok(MysqlBackend::connect(self.config()?).await?.migrate().await?)
    }

    /// A row lock is known only to the node that it was taken on: this takes it on all of them.
    async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
        let sql = format!("UPDATE {} SET version = version + 1 WHERE name = ?", self.table);
        self.lock(&sql, name.as_str().as_bytes()).await
    }

    async fn lock_share(&self, lease: &LeaseId) -> Outcome<Box<dyn RowLock>> {
        let sql = format!("SELECT * FROM {}_share WHERE attempt = ? FOR UPDATE", self.table);
        self.lock(&sql, lease.attempt.as_uuid().as_bytes()).await
    }

    /// Runs `sql` in a transaction on each node.
    async fn lock(&self, sql: &str, parameter: &[u8]) -> Outcome<Box<dyn RowLock>> {
        let mut lockers = Vec::new();
        for node in &self.store.nodes {
            let mut locker = common::connect(node).await;
            // What other nodes have written before would undo the transaction when it gets here.
            locker.query_drop("SET SESSION wsrep_sync_wait = 1; SELECT 1").await.ok();
            locker.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
            locker.query_drop("START TRANSACTION").await?;
            locker.exec_drop(sql, (parameter,)).await?;
            lockers.push(locker);
        }
        Ok(Box::new(Locked(lockers)))
    }

    async fn delete_row(&self, name: &LockName) -> Outcome {
        let mut admin = self.store.client().await;
        for table in ["database_locks_lock_share", "database_locks_lock"] {
            let sql = format!("DELETE FROM {table} WHERE name = ?");
            admin.exec_drop(&sql, (name.as_str().as_bytes(),)).await?;
        }
        Ok(())
    }

    async fn client_with(&self, option: &ClientOption) -> Outcome<Client> {
        let mark = match option {
            ClientOption::PoolOfOne => {
                let config = self.config()?.pool_size(1)?;
                return Ok(Arc::new(MysqlBackend::connect(config).await?));
            }
            ClientOption::Isolation(Isolation::ReadCommitted) => "rc",
            ClientOption::Isolation(Isolation::RepeatableRead) => "rr",
            ClientOption::Isolation(Isolation::Serializable) => "se",
            ClientOption::AutocommitOff => "ac",
            ClientOption::TimeZone(zone) if zone == "Pacific/Kiritimati" => "ea",
            ClientOption::TimeZone(zone) if zone == "America/Los_Angeles" => "we",
            _ => return Err(Stop::Skipped(format!("these servers have no {option:?}"))),
        };
        let user = format!("{mark}_{}", &Uuid::new_v4().simple().to_string()[..20]);
        let database = self.store.database.database_name();
        for node in &self.store.nodes {
            let mut admin = common::connect(node).await;
            let version: Option<String> = admin.query_first("SELECT VERSION()").await?;
            let is_mariadb = version.unwrap_or_default().contains("MariaDB");
            admin.exec_drop("SET GLOBAL init_connect = ?", (hostile_sessions(is_mariadb),)).await?;
        }
        let mut admin = self.store.client().await;
        admin.query_drop(format!("CREATE USER {user} IDENTIFIED BY 'secret'")).await?;
        admin.query_drop(format!("GRANT ALL ON {database}.* TO {user}")).await?;
        let access = self.store.node().as_user(&user, "secret");
        for node in &self.store.nodes[1..] {
            // The user was made on one node: this waits until another has caught up.
            node.sql("SET SESSION wsrep_sync_wait = 1; SELECT 1").map_err(failed)?;
        }
        let config = MysqlConfig::from_url(access.url())?.table(self.table)?;
        Ok(Arc::new(MysqlBackend::connect(config).await?))
    }

    async fn break_connections(&self) -> Outcome {
        for node in &self.store.nodes {
            let mut admin = admin(node).await;
            let ids: Vec<u64> =
                admin.exec(CONNECTIONS, (self.store.database.database_name(),)).await?;
            for id in ids {
                // It may have gone by itself.
                admin.query_drop(format!("KILL {id}")).await.ok();
            }
        }
        Ok(())
    }

    async fn connection_count(&self) -> Outcome<usize> {
        let mut count = 0;
        for node in &self.store.nodes {
            let database = self.store.database.database_name();
            let ids: Vec<u64> = admin(node).await.exec(CONNECTIONS, (database,)).await?;
            count += ids.len();
        }
        Ok(count)
    }
}

const CONNECTIONS: &str = "SELECT id FROM information_schema.processlist WHERE db = ?";

/// A connection that is not to the case's database, so that it is not counted.
async fn admin(node: &Access) -> Conn {
    common::connect(&node.in_database("mysql")).await
}

/// What sessions of the users of [`Case::client_with`] start with, by the users' names. Others
/// keep the defaults.
fn hostile_sessions(is_mariadb: bool) -> String {
    let isolation = if is_mariadb { "tx_isolation" } else { "transaction_isolation" };
    let east = if is_mariadb { "+13:00" } else { "+14:00" };
    format!(
        "SET @@session.{isolation} = CASE LEFT(USER(), 3) WHEN 'rc_' THEN 'READ-COMMITTED' \
         WHEN 'rr_' THEN 'REPEATABLE-READ' WHEN 'se_' THEN 'SERIALIZABLE' \
         ELSE @@session.{isolation} END, \
         @@session.time_zone = CASE LEFT(USER(), 3) WHEN 'ea_' THEN '{east}' \
         WHEN 'we_' THEN '-08:00' ELSE @@session.time_zone END, \
         @@session.autocommit = IF(LEFT(USER(), 3) = 'ac_', 0, @@session.autocommit)"
    )
}

fn step(step: ClockStep) -> database_locks_test_servers::ClockStep {
    match step {
        ClockStep::Forward(by) => database_locks_test_servers::ClockStep::Forward(by),
        ClockStep::Back(by) => database_locks_test_servers::ClockStep::Back(by),
    }
}

fn failed(error: impl std::fmt::Display) -> Stop {
    Stop::failed(format!("{error:#}"))
}

/// Transactions that have changed the same row, one on each node.
struct Locked(Vec<Conn>);

#[async_trait]
impl RowLock for Locked {
    async fn roll_back(mut self: Box<Self>) -> Outcome {
        for locker in &mut self.0 {
            locker.query_drop("ROLLBACK").await?;
        }
        Ok(())
    }

    /// One of them can commit.
    async fn commit(mut self: Box<Self>) -> Outcome {
        let last = self.0.pop();
        self.roll_back().await?;
        if let Some(mut last) = last {
            last.query_drop("COMMIT").await?;
        }
        Ok(())
    }
}

macro_rules! harness {
    ($name:ident, $kind:expr) => {
        struct $name(Case);

        #[async_trait]
        impl Harness for $name {
            async fn fresh() -> Outcome<Self> {
                Ok(Self(Case::fresh($kind).await?))
            }

            async fn client(&self) -> Outcome<Client> {
                self.0.client().await
            }

            /// One node after the other, as clients here have them.
            async fn address(&self) -> Outcome<String> {
                Ok(self.0.store.node().url().to_owned())
            }

            async fn client_at(address: &str) -> Outcome<Client> {
                let config = MysqlConfig::from_url(address)?;
                Ok(Arc::new(MysqlBackend::connect(config).await?))
            }

            async fn shift_clock(
                &self,
                program: &mut Command,
                by: ClockStep,
            ) -> Outcome<ShiftedBy> {
                let clock = ShiftedClock::new(step(by)).map_err(failed)?;
                clock.give(program);
                Ok(Box::new(clock))
            }

            async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
                self.0.lock_row(name).await
            }

            async fn lock_share(&self, lease: &LeaseId) -> Outcome<Box<dyn RowLock>> {
                self.0.lock_share(lease).await
            }

            async fn delete_row(&self, name: &LockName) -> Outcome {
                self.0.delete_row(name).await
            }

            async fn client_with(&self, option: &ClientOption) -> Outcome<Client> {
                self.0.client_with(option).await
            }

            async fn break_connections(&self) -> Outcome {
                self.0.break_connections().await
            }

            async fn connection_count(&self) -> Outcome<usize> {
                self.0.connection_count().await
            }

            async fn without_tables(&self, names: TableNames) -> Outcome<Arc<dyn Harness>> {
                let own = self.0.own.clone();
                Ok(Arc::new(Self(match names {
                    TableNames::Default => {
                        let store = Store::on(&$kind.shared().map_err(failed)?).map_err(failed)?;
                        Case { store: Arc::new(store), table: self.0.table, own }
                    }
                    TableNames::Custom => {
                        Case { store: Arc::clone(&self.0.store), table: "Order", own }
                    }
                })))
            }

            async fn migrate(&self) -> Outcome {
                self.0.migrate().await
            }

            async fn restartable(&self) -> Outcome<Arc<dyn Harness>> {
                Ok(Arc::new(Self(Case::restartable($kind).await?)))
            }

            async fn restart(&self, end: ServerEnd) -> Outcome {
                self.0.restart(end).await
            }

            async fn steppable(&self) -> Outcome<Arc<dyn Harness>> {
                Ok(Arc::new(Self(Case::steppable($kind).await?)))
            }

            async fn step_clock(&self, step: ClockStep) -> Outcome {
                self.0.step_clock(step)
            }
        }
    };
}

harness!(OnMySql, Kind::MySql);
harness!(OnMariaDb, Kind::MariaDb);
harness!(OnGalera, Kind::Galera);
