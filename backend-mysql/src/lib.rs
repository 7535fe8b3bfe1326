//! Leases that hold on MySQL, MariaDB and Galera clusters.

mod config;
mod error;
mod packet;
mod pool;
mod session;
mod tls;

pub use config::{MysqlConfig, SslMode};

/// The backend's name in errors and logs.
const NAME: &str = "mysql";

#[cfg(test)]
mod tests;
