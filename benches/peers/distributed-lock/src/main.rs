//! `distributed-lock`: `pg_advisory_lock` within a transaction that sets a timeout, or `GET_LOCK`, on a connection that
//! is pinned while the lock is held or waited for. A lock of the session: no TTL, and no fencing token; on Postgres
//! nothing watches the connection, and an acquisition that is cancelled is not undone.

use std::str::FromStr as _;

use anyhow::{Result, bail};
use database_locks_bench_worker::{Job, System, job, serve};
use distributed_lock_core::traits::{DistributedLock, LockHandle as _, LockProvider};
use distributed_lock_mysql::MySqlLockProvider;
use distributed_lock_postgres::PostgresLockProvider;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Database, Pool};

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "postgres" => serve(&job, Provided(postgres(&job).await?)).await,
        "mysql" => serve(&job, Provided(mysql(&job).await?)).await,
        other => bail!("there is no system {other:?} here"),
    }
}

async fn postgres(job: &Job) -> Result<PostgresLockProvider> {
    let connections = u32::try_from(job.connections)?;
    let pool = PgPoolOptions::new().max_connections(connections).connect(&job.url).await?;
    open_all(&pool).await?;
    Ok(PostgresLockProvider::builder().pool(pool).build().await?)
}

async fn mysql(job: &Job) -> Result<MySqlLockProvider> {
    let connections = u32::try_from(job.connections)?;
    // The crate has TLS, which takes longer to begin than all else, and the others speak none here.
    let options = MySqlConnectOptions::from_str(&job.url)?.ssl_mode(MySqlSslMode::Disabled);
    let pool = MySqlPoolOptions::new().max_connections(connections).connect_with(options).await?;
    open_all(&pool).await?;
    Ok(MySqlLockProvider::builder().pool(pool).build().await?)
}

/// Opens all connections at once. A connection goes back to its pool a moment after it was dropped, and whoever comes in
/// between would open another one.
async fn open_all<D: Database>(pool: &Pool<D>) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        all.push(pool.acquire().await?);
    }
    Ok(())
}

struct Provided<P>(P);

impl<P: LockProvider + 'static> System for Provided<P> {
    type Held = <P::Lock as DistributedLock>::Handle;

    async fn acquire(&self, name: &str) -> Result<Self::Held> {
        Ok(self.0.create_lock(name).acquire(None).await?)
    }

    async fn release(&self, held: Self::Held) -> Result<()> {
        Ok(held.release().await?)
    }
}
