//! A lock in Redis as most people make one: `SET name random NX PX ttl`, asked again after 25 ms while it is taken, and
//! deleted by a script that first looks whether the value is still the own one. A lease, without renewal or a fencing
//! token.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use database_locks_bench_worker::{Job, Share, System, job, serve};
use redis::aio::MultiplexedConnection;
use redis::{Client, ExistenceCheck, Script, SetExpiry, SetOptions};

const TTL_MS: u64 = 10_000;
const POLL: Duration = Duration::from_millis(25);

const RELEASE: &str = "
    if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
    return 0";

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "redis" => serve(&job, Redis::connect(&job).await?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

struct Redis {
    connection: MultiplexedConnection,
    release: Script,
}

struct Lease {
    name: String,
    value: String,
}

impl Redis {
    async fn connect(job: &Job) -> Result<Self> {
        let client = Client::open(job.url.as_str())?;
        let connection = client.get_multiplexed_async_connection().await?;
        Ok(Self { connection, release: Script::new(RELEASE) })
    }

    async fn acquire_for(&self, name: &str, ttl_ms: u64) -> Result<Lease> {
        let value = format!("{:032x}", fastrand::u128(..));
        let options = SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .with_expiration(SetExpiry::PX(ttl_ms));
        let mut set = redis::cmd("SET");
        set.arg(name).arg(&value).arg(options);
        loop {
            let set: Option<String> = set.query_async(&mut self.connection.clone()).await?;
            if set.is_some() {
                return Ok(Lease { name: name.to_owned(), value });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl System for Redis {
    type Held = Lease;

    async fn acquire(&self, name: &str) -> Result<Lease> {
        self.acquire_for(name, TTL_MS).await
    }

    async fn release(&self, held: Lease) -> Result<()> {
        let mut release = self.release.prepare_invoke();
        release.key(held.name).arg(held.value);
        let deleted: u64 = release.invoke_async(&mut self.connection.clone()).await?;
        ensure!(deleted == 1, "it was not held any more");
        Ok(())
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<Lease> {
        ensure!(share == Share::All, "this system has no shares");
        self.acquire_for(name, ttl_ms).await
    }
}
