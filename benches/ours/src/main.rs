//! database-locks under test, on whatever backend the URL names.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use database_locks::{
    Attempt, Claim, Connect as _, Guard, LockBackend, LockName, LockRequest, Locks, Owner, Release,
    Released, Renewal, Renewed, Ttl, Verdict, migrate,
};
use database_locks_bench_worker::{Job, Share, System, job, serve};

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "ours" => serve(&job, Ours::connect(&job).await?).await,
        // Makes the tables, for all who come after.
        "migrate" => Ok(migrate(&job.url).await?),
        other => bail!("there is no system {other:?} here"),
    }
}

struct Ours {
    url: String,
    locks: Locks,
}

impl Ours {
    async fn connect(job: &Job) -> Result<Self> {
        let locks = Locks::connect(&job.url).await?;
        Ok(Self { url: job.url.clone(), locks })
    }

    fn request(&self, name: &str, share: Share) -> LockRequest {
        match share {
            Share::All => self.locks.lock(name),
            Share::Read => self.locks.rwlock(name).read(),
            Share::Permit(capacity) => self.locks.semaphore(name, capacity).permits(1),
        }
    }

    /// The backend without the engine around it.
    async fn backend(&self) -> Result<Arc<dyn LockBackend>> {
        use database_locks::{mysql, postgres, sqlite};
        Ok(match self.url.split_once(':').map(|(scheme, _)| scheme) {
            Some("postgres") => {
                let config = postgres::PostgresConfig::from_url(&self.url)?;
                Arc::new(postgres::PostgresBackend::connect(config).await?)
            }
            Some("mysql") => {
                let config = mysql::MysqlConfig::from_url(&self.url)?;
                Arc::new(mysql::MysqlBackend::connect(config).await?)
            }
            Some("sqlite") => {
                let config = sqlite::SqliteConfig::from_url(&self.url)?;
                Arc::new(sqlite::SqliteBackend::connect(config).await?)
            }
            _ => bail!("this backend is reached through the engine only"),
        })
    }
}

impl System for Ours {
    type Held = Guard;

    async fn acquire(&self, name: &str) -> Result<Guard> {
        Ok(self.locks.lock(name).acquire().await?)
    }

    async fn release(&self, held: Guard) -> Result<()> {
        Ok(held.release().await?)
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<Guard> {
        let request = self.request(name, share).ttl(Duration::from_millis(ttl_ms));
        Ok(request.acquire().await?)
    }

    fn is_lost(held: &Guard) -> bool {
        held.check().is_err()
    }

    async fn renewals(&self, leases: usize) -> Result<impl AsyncFnMut() -> Result<()>> {
        let backend = self.backend().await?;
        let most = backend.capabilities().max_batch;
        let ttl = Ttl::new(Duration::from_secs(600))?;
        let mut renewals = Vec::new();
        for first in (0..leases).step_by(most) {
            let claims = (first..leases.min(first + most)).map(|lease| claim(lease, ttl));
            let claims = claims.collect::<Result<Vec<_>>>()?;
            let verdicts = backend.acquire(&claims).await?;
            for (claim, verdict) in claims.into_iter().zip(verdicts) {
                let Verdict::Granted(token) = verdict else { bail!("not granted: {verdict:?}") };
                renewals.push(Renewal::new(claim.lease(token), ttl));
            }
        }
        Ok(async move || {
            for batch in renewals.chunks(most) {
                let renewed = backend.renew(batch).await?;
                let lost = renewed.iter().find(|renewed| **renewed != Renewed::Alive);
                lost.map_or(Ok(()), |lost| Err(anyhow::anyhow!("not renewed: {lost:?}")))?;
            }
            Ok(())
        })
    }

    async fn batches(
        &self,
        leases: usize,
        shares: bool,
    ) -> Result<impl AsyncFnMut() -> Result<()>> {
        let backend = self.backend().await?;
        let ttl = Ttl::new(Duration::from_secs(600))?;
        let mut claims = (0..leases).map(|lease| claim(lease, ttl)).collect::<Result<Vec<_>>>()?;
        if shares {
            let name = LockName::new(format!("shared-{}", std::process::id()))?;
            for claim in &mut claims {
                (claim.name, claim.share) = (name.clone(), database_locks::Share::ONE);
            }
        }
        Ok(async move || {
            for claim in &mut claims {
                claim.attempt = Attempt::new();
            }
            let verdicts = backend.acquire(&claims).await?;
            let held = claims.iter().zip(&verdicts).map(|(claim, verdict)| match verdict {
                Verdict::Granted(token) => Ok(Release::free(claim.lease(*token))),
                other => bail!("not granted: {other:?}"),
            });
            let released = backend.release(&held.collect::<Result<Vec<_>>>()?).await?;
            match released.iter().find(|released| **released != Released::Done) {
                None => Ok(()),
                Some(other) => bail!("not released: {other:?}"),
            }
        })
    }
}

fn claim(lease: usize, ttl: Ttl) -> Result<Claim> {
    Ok(Claim::new(LockName::new(format!("renewed-{}-{lease}", std::process::id()))?)
        .with_share(database_locks::Share::ALL)
        .with_owner(Owner::label_only("bench").context("an owner")?)
        .with_ttl(ttl))
}
