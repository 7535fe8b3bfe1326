//! SQLite by sqlx, as one would write it in an afternoon.

use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use database_locks_bench_worker::{Job, Share, System};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Row as _, SqlitePool};

use crate::TTL;

const POLL: Duration = Duration::from_millis(10);

/// `BEGIN IMMEDIATE`, look, write, `COMMIT`; asked again after 10 ms, whether the lock or the file is busy.
pub(crate) struct Naive {
    pool: SqlitePool,
    next: AtomicU64,
}

pub(crate) struct Lease {
    name: String,
    owner: String,
}

impl Naive {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        let options = SqliteConnectOptions::from_str(&job.url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::ZERO);
        let pool = SqlitePoolOptions::new().max_connections(1);
        let naive = Self { pool: pool.connect_lazy_with(options), next: AtomicU64::new(0) };
        let schema = "create table if not exists bench_lock (
            name text primary key, owner text, expires_at real) without rowid";
        while sqlx::query(schema).execute(&naive.pool).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
        Ok(naive)
    }

    /// One transaction; false where the file was busy or the condition did not hold.
    async fn write(&self, condition: &str, write: &str, lease: &Lease, ttl: f64) -> Result<bool> {
        let mut connection = self.pool.acquire().await?;
        if sqlx::query("begin immediate").execute(&mut *connection).await.is_err() {
            return Ok(false);
        }
        let Lease { name, owner } = lease;
        let looked = sqlx::query(sqlx::AssertSqlSafe(condition))
            .bind(name)
            .bind(owner)
            .fetch_one(&mut *connection)
            .await?;
        let holds: bool = looked.try_get(0)?;
        if holds {
            let write = sqlx::query(sqlx::AssertSqlSafe(write)).bind(name).bind(owner).bind(ttl);
            write.execute(&mut *connection).await?;
        }
        sqlx::query("commit").execute(&mut *connection).await?;
        Ok(holds)
    }

    async fn acquire_for(&self, name: &str, ttl: f64) -> Result<Lease> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{}.{next}", std::process::id());
        let lease = Lease { name: name.to_owned(), owner };
        let free = "select not exists (select 1 from bench_lock
            where name = ?1 and ?2 <> '' and expires_at > unixepoch('now', 'subsec'))";
        let take = "insert or replace into bench_lock
            values (?1, ?2, unixepoch('now', 'subsec') + ?3)";
        while !self.write(free, take, &lease, ttl).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(lease)
    }
}

impl System for Naive {
    type Held = Lease;

    async fn acquire(&self, name: &str) -> Result<Lease> {
        self.acquire_for(name, TTL as f64).await
    }

    async fn release(&self, held: Lease) -> Result<()> {
        let mine = "select exists (select 1 from bench_lock where name = ?1 and owner = ?2)";
        let free = "update bench_lock set owner = null, expires_at = null
            where name = ?1 and owner = ?2 and ?3 = 0";
        while !self.write(mine, free, &held, 0.0).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<Lease> {
        ensure!(share == Share::All, "this system has no shares");
        self.acquire_for(name, ttl_ms as f64 / 1e3).await
    }
}
