//! Leases that hold on MySQL, MariaDB and Galera clusters.

mod backend;
mod config;
mod error;
mod packet;
mod pool;
mod session;
mod sql;
mod state;
mod tls;

pub use backend::MysqlBackend;
pub use config::{MysqlConfig, SslMode};

/// The backend's name in errors and logs.
const NAME: &str = "mysql";

/// The schema as SQL, for people who run their own migrations. Each statement may be repeated.
///
/// It makes the tables. Only [`MysqlBackend::migrate`] can adopt one that a Django app has made.
#[must_use]
pub fn schema_sql(config: &MysqlConfig) -> String {
    sql::Tables::new(config).create().into_iter().map(|statement| statement + ";\n").collect()
}

#[cfg(test)]
mod tests;
