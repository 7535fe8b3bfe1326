//! The suite against a file of each case's own.
//!
//! Connecting creates the tables, so the cases about tables that are missing do not apply; their
//! like stands in `backend.rs` and `processes.rs`.

use std::sync::Arc;

use database_locks_conformance::{Client, ClientOption, Harness, Outcome, Stop, async_trait};
use database_locks_core::LockName;
use database_locks_sqlite::{SqliteBackend, SqliteConfig};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

struct Sqlite(TempDir);

#[async_trait]
impl Harness for Sqlite {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    async fn client(&self) -> Outcome<Client> {
        let config = SqliteConfig::new(self.0.path().join("locks.db"));
        Ok(Arc::new(SqliteBackend::connect(config).await?))
    }

    async fn delete_row(&self, name: &LockName) -> Outcome {
        let path = self.0.path().join("locks.db");
        let mut connection =
            SqliteConnection::connect(&format!("sqlite:{}", path.display())).await?;
        for delete in [
            "DELETE FROM database_locks_lock WHERE name = ?",
            "DELETE FROM database_locks_lock_lease WHERE name = ?",
        ] {
            sqlx::query(delete).bind(name.as_str().as_bytes()).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    // Every client has one connection that writes.
    async fn client_with(&self, option: &ClientOption) -> Outcome<Client> {
        match option {
            ClientOption::PoolOfOne => self.client().await,
            _ => Err(Stop::lacks("client_with")),
        }
    }
}

database_locks_conformance::suite!(Sqlite);
