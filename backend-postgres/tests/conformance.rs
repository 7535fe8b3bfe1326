//! The common suite: directly, behind pgbouncer in transaction mode, and on other versions of Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;

use database_locks_conformance::{
    Client, ClientOption, ClockStep, Harness, Outcome, RowLock, ServerEnd, ShiftedBy, Stop,
    TableNames, async_trait,
};
use database_locks_core::{LeaseId, LockName};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{
    Access, Database, PgBouncer, PoolMode, Postgres, PostgresBuilder, Server, ShiftedClock,
};
use futures_util::future::try_join_all;
use tokio_postgres::NoTls;

mod direct {
    use super::Direct;

    database_locks_conformance::suite!(Direct);
}

mod behind_pgbouncer {
    use super::Pooled;

    database_locks_conformance::suite!(Pooled);
}

mod on_version_13 {
    use super::Version13;

    database_locks_conformance::suite!(Version13);
}

/// In databases that do not compare text by its bytes.
mod on_version_18_with_icu {
    use super::Version18;

    database_locks_conformance::suite!(Version18);
}

/// How a store is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Directly,
    ByPgBouncer,
    ByVersion(u32),
}

impl Served {
    fn builder(self) -> PostgresBuilder {
        match self {
            Self::Directly | Self::ByPgBouncer => Postgres::builder(),
            Self::ByVersion(18) => Postgres::builder().version(18).icu_locale("und"),
            Self::ByVersion(major) => Postgres::builder().version(major),
        }
    }

    fn is_pooled(self) -> bool {
        self == Self::ByPgBouncer
    }
}

/// How many connections to the server pgbouncer has for each pair of database and user.
const POOLERS_CONNECTIONS: usize = 4;

/// What a session is left with: the settings that were made in it, apart from those that pgbouncer
/// makes for each client anew, and whatever else of it a later transaction could notice.
const SESSION: &str = "
    select name, setting from pg_settings
    where source = 'session'
      and name not in ('application_name', 'client_encoding', 'DateStyle', 'IntervalStyle',
                       'TimeZone', 'standard_conforming_strings')
    union all select 'channels', count(*)::text from pg_listening_channels()
    union all select 'cursors', count(*)::text from pg_cursors where name <> ''
    union all select 'prepared statements', count(*)::text from pg_prepared_statements
    union all select 'advisory locks', count(*)::text from pg_locks
              where pid = pg_backend_pid() and locktype = 'advisory'
    union all select 'temporary tables', count(*)::text from pg_class
              where relnamespace = pg_my_temp_schema()";

/// A database of its own for each case.
struct Store {
    database: Arc<Database>,
    /// How clients get there.
    url: String,
    table: &'static str,
    schema: Option<&'static str>,
    /// Below the database, which is dropped while its server still runs.
    own: Option<Arc<OwnServer>>,
}

/// A server, and perhaps a pooler in front of it, for one case only.
struct OwnServer {
    pooler: Option<PgBouncer>,
    server: Postgres,
}

impl OwnServer {
    fn start(
        served: Served,
        builder: PostgresBuilder,
    ) -> database_locks_test_servers::Result<Self> {
        let server = builder.start()?;
        let start = || PgBouncer::start(&server, PoolMode::Transaction);
        Ok(Self { pooler: served.is_pooled().then(start).transpose()?, server })
    }
}

impl Store {
    fn fresh(served: Served) -> Outcome<Self> {
        let pooler = served.is_pooled().then(PgBouncer::shared).transpose().map_err(failed)?;
        let server = match served {
            Served::ByVersion(major) => Postgres::shared_of(major, || served.builder().start()),
            Served::Directly | Served::ByPgBouncer => Postgres::shared(),
        };
        Self::on(server.map_err(failed)?, pooler)
    }

    fn on_own(served: Served, builder: PostgresBuilder) -> Outcome<Self> {
        let own = OwnServer::start(served, builder).map_err(failed)?;
        let store = Self::on(&own.server, own.pooler.as_deref())?;
        Ok(Self { own: Some(Arc::new(own)), ..store })
    }

    fn on(server: &Access, pooler: Option<&Access>) -> Outcome<Self> {
        let database = server.database().map_err(failed)?;
        let url = match pooler {
            Some(pooler) => pooler.in_database(database.database_name()).url().to_owned(),
            None => database.url().to_owned(),
        };
        let table = PostgresConfig::DEFAULT_TABLE;
        Ok(Self { database: Arc::new(database), url, table, schema: None, own: None })
    }

    async fn restart(&self, end: ServerEnd) -> Outcome {
        let Some(own) = self.own.clone() else {
            return Err(Stop::failed("only a server of the case's own may be restarted"));
        };
        let restart = move || match end {
            ServerEnd::Crash => own.server.stop_hard().and_then(|()| own.server.start_again()),
            _ => own.server.restart(),
        };
        tokio::task::spawn_blocking(restart).await?.map_err(failed)
    }

    fn step_clock(&self, step: ClockStep) -> Outcome {
        let Some(own) = &self.own else {
            return Err(Stop::failed("only the clock of the case's own server may be set"));
        };
        own.server.step_clock(self::step(step)).map_err(failed)
    }

    /// Reads the sessions of all connections that the pooler may have, by transactions that are
    /// open at once, so that each has a connection of its own.
    async fn pooled_sessions(&self) -> Outcome<BTreeMap<String, String>> {
        let users = (0..POOLERS_CONNECTIONS).map(|_| connect(&self.url));
        let users = try_join_all(users).await?;
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for user in &users {
            user.batch_execute("begin").await?;
            for row in user.query_typed(SESSION, &[]).await? {
                found.entry(row.get(0)).or_default().insert(row.get(1));
            }
        }
        // A pooler closes connections whose users leave amid a transaction.
        for user in &users {
            user.batch_execute("rollback").await?;
        }
        let together = |values: BTreeSet<String>| Vec::from_iter(values).join(" | ");
        Ok(found.into_iter().map(|(name, values)| (name, together(values))).collect())
    }

    fn config(&self) -> Outcome<PostgresConfig> {
        let config = PostgresConfig::from_url(&self.url)?.table(self.table)?;
        Ok(match self.schema {
            Some(schema) => config.schema(schema)?,
            None => config,
        })
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(PostgresBackend::connect(self.config()?).await?))
    }

    async fn migrate(&self) -> Outcome {
        Ok(PostgresBackend::connect(self.config()?).await?.migrate().await?)
    }

    async fn admin(&self) -> Outcome<tokio_postgres::Client> {
        connect(self.database.url()).await
    }

    fn without_tables(&self, names: TableNames) -> Self {
        let (table, schema) = match names {
            TableNames::Default => (self.table, Some("other")),
            TableNames::Custom => ("order", Some("Some_Schema")),
        };
        Self {
            database: Arc::clone(&self.database),
            url: self.url.clone(),
            table,
            schema,
            own: self.own.clone(),
        }
    }

    async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
        let admin = self.admin().await?;
        admin.batch_execute("begin").await?;
        let sql = "update database_locks_lock set waiting_weight = waiting_weight where name = $1";
        admin.execute(sql, &[&name.as_str()]).await?;
        Ok(Box::new(Locked(admin)))
    }

    async fn lock_share(&self, lease: &LeaseId) -> Outcome<Box<dyn RowLock>> {
        let admin = self.admin().await?;
        admin.batch_execute("begin").await?;
        let sql = "select from database_locks_lock_share where name = $1 and token = $2 for update";
        let token = i64::try_from(lease.token.get())?;
        let rows = admin.query(sql, &[&lease.name.as_str(), &token]).await?;
        assert_eq!(rows.len(), 1, "{lease:?} has no row");
        Ok(Box::new(Locked(admin)))
    }

    async fn delete_row(&self, name: &LockName) -> Outcome {
        let admin = self.admin().await?;
        for table in ["database_locks_lock", "database_locks_lock_share"] {
            let sql = format!("delete from {table} where name = $1");
            admin.execute(&sql, &[&name.as_str()]).await?;
        }
        Ok(())
    }

    async fn client_with(&self, option: &ClientOption) -> Outcome<Client> {
        let database = self.database.database_name();
        let sql = match option {
            ClientOption::Isolation(level) => {
                let level = level.to_string().to_lowercase();
                format!("alter database {database} set default_transaction_isolation = '{level}'")
            }
            ClientOption::TimeZone(zone) => {
                format!("alter database {database} set timezone = '{zone}'")
            }
            ClientOption::PoolOfOne => {
                let config = self.config()?.pool_size(1)?;
                return Ok(Arc::new(PostgresBackend::connect(config).await?));
            }
            _ => return Err(Stop::Skipped("Postgres has no such option".to_owned())),
        };
        self.admin().await?.batch_execute(&sql).await?;
        self.client().await
    }

    async fn break_connections(&self) -> Outcome {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()";
        self.admin().await?.execute(sql, &[]).await?;
        Ok(())
    }

    async fn connection_count(&self) -> Outcome<usize> {
        let sql = "select count(*) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()";
        let count: i64 = self.admin().await?.query_one(sql, &[]).await?.get(0);
        Ok(usize::try_from(count)?)
    }
}

async fn connect(url: &str) -> Outcome<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
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

struct Locked(tokio_postgres::Client);

#[async_trait]
impl RowLock for Locked {
    async fn roll_back(self: Box<Self>) -> Outcome {
        Ok(self.0.batch_execute("rollback").await?)
    }

    async fn commit(self: Box<Self>) -> Outcome {
        Ok(self.0.batch_execute("commit").await?)
    }
}

macro_rules! harness {
    ($name:ident, $served:expr) => {
        struct $name(Store);

        #[async_trait]
        impl Harness for $name {
            async fn fresh() -> Outcome<Self> {
                let store = Store::fresh($served)?;
                store.migrate().await?;
                Ok(Self(store))
            }

            async fn client(&self) -> Outcome<Client> {
                self.0.client().await
            }

            async fn address(&self) -> Outcome<String> {
                Ok(self.0.url.clone())
            }

            async fn client_at(address: &str) -> Outcome<Client> {
                let config = PostgresConfig::from_url(address)?;
                Ok(Arc::new(PostgresBackend::connect(config).await?))
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
                Ok(Arc::new(Self(self.0.without_tables(names))))
            }

            async fn migrate(&self) -> Outcome {
                self.0.migrate().await
            }

            async fn restartable(&self) -> Outcome<Arc<dyn Harness>> {
                let store = Store::on_own($served, $served.builder().durable())?;
                store.migrate().await?;
                Ok(Arc::new(Self(store)))
            }

            async fn steppable(&self) -> Outcome<Arc<dyn Harness>> {
                let store = Store::on_own($served, $served.builder().steppable())?;
                store.migrate().await?;
                Ok(Arc::new(Self(store)))
            }

            async fn step_clock(&self, step: ClockStep) -> Outcome {
                self.0.step_clock(step)
            }

            async fn restart(&self, end: ServerEnd) -> Outcome {
                self.0.restart(end).await
            }

            async fn session_settings(&self) -> Outcome<BTreeMap<String, String>> {
                if $served.is_pooled() {
                    self.0.pooled_sessions().await
                } else {
                    // The pool of a client is its own, and nobody else gets at its connections.
                    Err(Stop::lacks("session_settings"))
                }
            }
        }
    };
}

harness!(Direct, Served::Directly);
harness!(Pooled, Served::ByPgBouncer);
harness!(Version13, Served::ByVersion(13));
harness!(Version18, Served::ByVersion(18));
