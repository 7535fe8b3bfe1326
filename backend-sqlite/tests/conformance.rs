//! The suite against a file of each case's own.
//!
//! Connecting creates the tables, so the cases about tables that are missing do not apply; their
//! like stands in `backend.rs` and `processes.rs`.

use std::process::Command;
use std::sync::Arc;

use database_locks_conformance::{
    Client, ClientOption, ClockStep, Harness, Outcome, ShiftedBy, Stop, async_trait,
};
use database_locks_core::LockName;
use database_locks_sqlite::{SqliteBackend, SqliteConfig};
use database_locks_test_servers::ShiftedClock;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

struct Sqlite(TempDir);

#[async_trait]
impl Harness for Sqlite {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    async fn client(&self) -> Outcome<Client> {
        Self::client_at(&self.address().await?).await
    }

    async fn address(&self) -> Outcome<String> {
        Ok(self.0.path().join("locks.db").display().to_string())
    }

    async fn client_at(address: &str) -> Outcome<Client> {
        Ok(Arc::new(SqliteBackend::connect(SqliteConfig::new(address)).await?))
    }

    async fn shift_clock(&self, program: &mut Command, by: ClockStep) -> Outcome<ShiftedBy> {
        let by = match by {
            ClockStep::Forward(by) => database_locks_test_servers::ClockStep::Forward(by),
            ClockStep::Back(by) => database_locks_test_servers::ClockStep::Back(by),
        };
        let clock = ShiftedClock::new(by).map_err(|error| Stop::failed(format!("{error:#}")))?;
        clock.give(program);
        Ok(Box::new(clock))
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
