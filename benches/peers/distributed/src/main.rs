//! `distributed`'s `PostgresLockManager`: a lease of 30 s in a row that the release deletes, asked for every 50 ms while
//! another process has it; tasks of one process wait for each other in memory. It has neither renewal nor fencing
//! tokens, does not tell a loss, and keeps each name that was ever used in memory.

use std::sync::Arc;

use anyhow::{Result, bail};
use database_locks_bench_worker::{Job, System, job, serve};
use distributed::lock::{Lock as _, LockManager as _, PostgresLock, PostgresLockManager};
use sqlx::postgres::{PgPool, PgPoolOptions};

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "postgres" => serve(&job, Distributed::connect(&job).await?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

struct Distributed(PostgresLockManager);

impl Distributed {
    async fn connect(job: &Job) -> Result<Self> {
        let connections = u32::try_from(job.connections)?;
        let pool = PgPoolOptions::new().max_connections(connections).connect(&job.url).await?;
        open_all(&pool).await?;
        PostgresLockManager::migrate(&pool).await?;
        Ok(Self(PostgresLockManager::new(pool)))
    }
}

impl System for Distributed {
    type Held = Arc<PostgresLock>;

    async fn acquire(&self, name: &str) -> Result<Self::Held> {
        let lock = self.0.get_lock(name)?;
        lock.lock().await?;
        Ok(lock)
    }

    async fn release(&self, held: Self::Held) -> Result<()> {
        Ok(held.unlock().await?)
    }
}

/// Opens all connections at once. A connection goes back to its pool a moment after it was dropped, and whoever comes in
/// between would open another one.
async fn open_all(pool: &PgPool) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        all.push(pool.acquire().await?);
    }
    Ok(())
}
