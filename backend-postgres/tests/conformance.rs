//! The common suite, directly and behind pgbouncer in transaction mode.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use database_locks_conformance::{
    Client, ClientOption, Harness, Outcome, RowLock, Stop, TableNames, async_trait,
};
use database_locks_core::LockName;
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{Database, PgBouncer, Postgres};
use tokio_postgres::NoTls;

mod direct {
    use super::Direct;

    database_locks_conformance::suite!(Direct);
}

mod behind_pgbouncer {
    use super::Pooled;

    database_locks_conformance::suite!(Pooled);
}

/// A database of its own for each case.
struct Store {
    database: Arc<Database>,
    /// How clients get there.
    url: String,
    table: &'static str,
    schema: Option<&'static str>,
}

impl Store {
    fn fresh(pooled: bool) -> Outcome<Self> {
        let failed = |error: &dyn std::fmt::Display| Stop::failed(format!("{error:#}"));
        let database =
            Postgres::shared().and_then(|server| server.database()).map_err(|e| failed(&e))?;
        let url = if pooled {
            let pooler = PgBouncer::shared().map_err(|e| failed(&e))?;
            pooler.in_database(database.database_name()).url().to_owned()
        } else {
            database.url().to_owned()
        };
        let table = PostgresConfig::DEFAULT_TABLE;
        Ok(Self { database: Arc::new(database), url, table, schema: None })
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
        let (client, connection) = tokio_postgres::connect(self.database.url(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn without_tables(&self, names: TableNames) -> Self {
        let (table, schema) = match names {
            TableNames::Default => (self.table, Some("other")),
            TableNames::Custom => ("order", Some("Some_Schema")),
        };
        Self { database: Arc::clone(&self.database), url: self.url.clone(), table, schema }
    }

    async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
        let admin = self.admin().await?;
        admin.batch_execute("begin").await?;
        let sql = "update database_locks_lock set waiting_weight = waiting_weight where name = $1";
        admin.execute(sql, &[&name.as_str()]).await?;
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
    ($name:ident, pooled: $pooled:literal) => {
        struct $name(Store);

        #[async_trait]
        impl Harness for $name {
            async fn fresh() -> Outcome<Self> {
                let store = Store::fresh($pooled)?;
                store.migrate().await?;
                Ok(Self(store))
            }

            async fn client(&self) -> Outcome<Client> {
                self.0.client().await
            }

            async fn lock_row(&self, name: &LockName) -> Outcome<Box<dyn RowLock>> {
                self.0.lock_row(name).await
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
        }
    };
}

harness!(Direct, pooled: false);
harness!(Pooled, pooled: true);
