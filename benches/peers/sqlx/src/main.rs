//! sqlx's `PgAdvisoryLock`: `pg_advisory_lock` on a connection that is pinned while the lock is held or waited for, so
//! that the server wakes the next one. A lock of the session: no TTL, no fencing token, and not behind a pooler that
//! shares sessions. A name is hashed to 64 bits.

use anyhow::{Result, bail};
use database_locks_bench_worker::{Job, System, job, serve};
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockGuard, PgPool, PgPoolOptions};

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "advisory" => serve(&job, Advisory::connect(&job).await?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

struct Advisory(PgPool);

impl Advisory {
    async fn connect(job: &Job) -> Result<Self> {
        let connections = u32::try_from(job.connections)?;
        let pool = PgPoolOptions::new().max_connections(connections).connect(&job.url).await?;
        open_all(&pool).await?;
        Ok(Self(pool))
    }
}

impl System for Advisory {
    type Held = PgAdvisoryLockGuard<PoolConnection<Postgres>>;

    async fn acquire(&self, name: &str) -> Result<Self::Held> {
        let connection = self.0.acquire().await?;
        Ok(PgAdvisoryLock::new(name).acquire(connection).await?)
    }

    async fn release(&self, held: Self::Held) -> Result<()> {
        held.release_now().await?;
        Ok(())
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
