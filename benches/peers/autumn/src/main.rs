//! `autumn-web`'s `LeaseLock`: a lease of 30 s in a row that stays, taken by one statement, asked for every 250 ms while
//! somebody has it, renewed after a third of its TTL by a task and a statement for each lease. It has a fencing token
//! and tells a loss. An acquisition that is cancelled may leave the lease taken for its TTL.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use autumn_web::lock::{LeaseGuard, LeaseLock};
use autumn_web::reexports::diesel_async::AsyncPgConnection;
use autumn_web::reexports::diesel_async::pooled_connection::AsyncDieselConnectionManager;
use autumn_web::reexports::diesel_async::pooled_connection::deadpool::Pool;
use database_locks_bench_worker::{Job, Share, System, job, serve};

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "lease" => serve(&job, Autumn::connect(&job)?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

struct Autumn(Pool<AsyncPgConnection>);

impl Autumn {
    fn connect(job: &Job) -> Result<Self> {
        let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(&job.url);
        Ok(Self(Pool::builder(manager).max_size(job.connections).build()?))
    }
}

impl System for Autumn {
    type Held = LeaseGuard;

    async fn acquire(&self, name: &str) -> Result<LeaseGuard> {
        Ok(LeaseLock::new(self.0.clone(), name).lock().await?)
    }

    async fn release(&self, held: LeaseGuard) -> Result<()> {
        Ok(held.release().await?)
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<LeaseGuard> {
        ensure!(share == Share::All, "this system has no shares");
        let lock = LeaseLock::new(self.0.clone(), name);
        Ok(lock.with_lease_ttl(Duration::from_millis(ttl_ms)).lock().await?)
    }

    fn is_lost(held: &LeaseGuard) -> bool {
        held.is_lost()
    }
}
