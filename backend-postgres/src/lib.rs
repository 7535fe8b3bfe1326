//! Leases that hold on Postgres: a [`LockBackend`](database_locks_core::LockBackend) on
//! tokio-postgres.

mod backend;
mod config;
mod error;
mod pool;
mod sql;
mod tls;
mod wakeups;

pub use backend::PostgresBackend;
pub use config::{PostgresConfig, SslMode};

/// The backend's name in errors and logs.
const NAME: &str = "postgres";

/// The schema, as SQL for people who run their own migrations. Each statement may be repeated.
#[must_use]
pub fn schema_sql(config: &PostgresConfig) -> String {
    sql::schema(config).into_iter().map(|statement| statement + ";\n").collect()
}
