//! etcd's lock service: the server queues whoever waits and answers once it is their turn. A lock belongs to a session,
//! a lease that is kept alive; two holders need two sessions, so that each task here takes one of those that are idle.
//! A cancelled waiter's session is not kept alive any longer, and ends after its TTL. The revision fences.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use database_locks_bench_worker::{Job, Share, System, job, serve};
use etcd_client::{Client, LockOptions};
use tokio::task::JoinHandle;

/// What a session of the Go client has, in seconds.
const TTL: u64 = 60;

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "etcd" => serve(&job, Etcd::connect(&job).await?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

struct Etcd {
    client: Client,
    idle: Mutex<Vec<Session>>,
}

struct Session {
    lease: i64,
    ttl: u64,
    keeper: JoinHandle<Result<()>>,
}

struct Held {
    key: Vec<u8>,
    session: Session,
}

impl Etcd {
    async fn connect(job: &Job) -> Result<Self> {
        let client = Client::connect([&job.url], None).await?;
        Ok(Self { client, idle: Mutex::default() })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self, ttl: u64) -> Result<Session> {
        let idle = self.idle().pop_if(|session| session.ttl == ttl);
        match idle {
            Some(session) => Ok(session),
            None => Session::start(&self.client, ttl).await,
        }
    }

    async fn acquire_for(&self, name: &str, ttl: u64) -> Result<Held> {
        let session = self.session(ttl).await?;
        let options = LockOptions::new().with_lease(session.lease);
        let locked = self.client.clone().lock(name, Some(options)).await?;
        Ok(Held { key: locked.key().to_owned(), session })
    }
}

impl Session {
    async fn start(client: &Client, ttl: u64) -> Result<Self> {
        let mut client = client.clone();
        let lease = client.lease_grant(ttl.try_into()?, None).await?.id();
        let keeper = tokio::spawn(async move {
            let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
            loop {
                tokio::time::sleep(Duration::from_secs(ttl) / 3).await;
                keeper.keep_alive().await?;
                let answer = answers.message().await?.context("the stream has ended")?;
                ensure!(answer.ttl() > 0, "the lease has expired");
            }
        });
        Ok(Self { lease, ttl, keeper })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl System for Etcd {
    type Held = Held;

    async fn acquire(&self, name: &str) -> Result<Held> {
        self.acquire_for(name, TTL).await
    }

    async fn release(&self, held: Held) -> Result<()> {
        self.client.clone().unlock(held.key).await?;
        self.idle().push(held.session);
        Ok(())
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<Held> {
        ensure!(share == Share::All, "this system has no shares");
        self.acquire_for(name, ttl_ms.div_ceil(1_000)).await
    }

    fn is_lost(held: &Held) -> bool {
        held.session.keeper.is_finished()
    }
}
