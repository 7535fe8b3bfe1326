//! What cases are written with: names, claims, and one-item calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use database_locks_core::{
    Claim, Guard, LeaseId, LeaseInfo, ListQuery, LockName, Locks, LossReason, Release, Released,
    Renewal, Renewed, Result, Share, Ttl, Verdict,
};

use crate::faulty::FaultyBackend;
use crate::harness::{Client, ClockStep, Harness, Outcome, Stop};
use crate::process::{Part, Process};

/// A TTL that no case outlives, for leases that must stay alive.
pub(crate) const LONG: Duration = Duration::from_mins(10);

/// How long a case waits at most for what must come to pass: far more than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A case's harness, and names of its own.
#[derive(Clone)]
pub(crate) struct Context {
    harness: Arc<dyn Harness>,
    tag: u64,
    /// The name of the test that runs the case, if it can be started again.
    test: Option<String>,
    /// Set in a process that does a part of the case.
    part: Option<String>,
}

impl Context {
    pub(crate) fn new(harness: Arc<dyn Harness>, test: Option<&str>) -> Self {
        Self { harness, tag: fastrand::u64(..), test: test.map(str::to_owned), part: None }
    }

    pub(crate) fn of_part(harness: Arc<dyn Harness>, part: Part) -> Self {
        Self { harness, tag: part.tag, test: None, part: Some(part.text) }
    }

    /// What this process is to do of the case, if not all of it.
    pub(crate) fn part(&self) -> Option<&str> {
        self.part.as_deref()
    }

    /// Starts a process that does a part of this case.
    pub(crate) async fn process(&self, part: &str, clock: Option<ClockStep>) -> Outcome<Process> {
        let address = self.harness.address().await?;
        let Some(test) = &self.test else {
            let why = "only a test that `suite!` has written can be started again";
            return Err(Stop::Skipped(why.to_owned()));
        };
        let part = Part { address, tag: self.tag, text: part.to_owned() };
        let mut program = part.program(test)?;
        let clock = match clock {
            Some(by) => Some(self.harness.shift_clock(&mut program, by).await?),
            None => None,
        };
        Process::start(program, clock)
    }

    pub(crate) fn harness(&self) -> &dyn Harness {
        self.harness.as_ref()
    }

    pub(crate) fn shared_harness(&self) -> Arc<dyn Harness> {
        Arc::clone(&self.harness)
    }

    pub(crate) async fn client(&self) -> Outcome<Client> {
        self.harness.client().await
    }

    pub(crate) async fn clients(&self, count: usize) -> Outcome<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await?);
        }
        Ok(clients)
    }

    /// An engine on a client of its own, as if in a process of its own.
    pub(crate) async fn locks(&self) -> Outcome<Locks> {
        Ok(Locks::builder().build(self.client().await?)?)
    }

    /// An engine on a client that fails as the case says.
    pub(crate) async fn faulty_locks(&self) -> Outcome<(Arc<FaultyBackend>, Locks)> {
        let faulty = FaultyBackend::new(self.client().await?);
        let locks = Locks::builder().build(Arc::clone(&faulty) as Client)?;
        Ok((faulty, locks))
    }

    /// A client, where it can grant shares.
    pub(crate) async fn client_with_shares(&self) -> Outcome<Client> {
        let client = self.client().await?;
        if client.capabilities().shares {
            return Ok(client);
        }
        Err(Stop::Skipped(format!(
            "the capabilities of {} rule out shares",
            client.capabilities().backend
        )))
    }

    /// The start of all names of this case.
    pub(crate) fn prefix(&self) -> String {
        format!("{:016x}/", self.tag)
    }

    pub(crate) fn name(&self, text: &str) -> LockName {
        match LockName::new(format!("{}{text}", self.prefix())) {
            Ok(name) => name,
            Err(error) => panic!("a name of the suite's own is invalid: {error}"),
        }
    }

    /// Outlives a TTL, and the rounding of the coarsest clock.
    pub(crate) async fn outlive(&self, ttl: Duration) -> Outcome {
        self.harness.pass(ttl + Duration::from_millis(50)).await
    }
}

/// An exclusive claim by a new attempt, for as long as the case takes.
pub(crate) fn claim(name: &LockName) -> Claim {
    Claim::new(name.clone()).with_ttl(ttl(LONG))
}

pub(crate) fn read(name: &LockName) -> Claim {
    claim(name).with_share(Share::ONE)
}

pub(crate) fn permits(name: &LockName, weight: u32, capacity: u32) -> Claim {
    match Share::new(weight, capacity) {
        Ok(share) => claim(name).with_share(share),
        Err(error) => panic!("a share of the suite's own is invalid: {error}"),
    }
}

/// A claim for a lease that is meant to expire: as short as the backend allows.
pub(crate) fn brief(client: &Client, name: &LockName) -> Claim {
    claim(name).with_ttl(ttl(brief_ttl(client)))
}

pub(crate) fn brief_ttl(client: &Client) -> Duration {
    client.capabilities().min_ttl.max(Duration::from_millis(250))
}

pub(crate) fn ttl(duration: Duration) -> Ttl {
    match Ttl::new(duration) {
        Ok(ttl) => ttl,
        Err(error) => panic!("a TTL of the suite's own is invalid: {error}"),
    }
}

/// The lease that a claim has won.
pub(crate) fn lease_of(claim: &Claim, verdict: &Verdict) -> LeaseId {
    let Verdict::Granted(token) = verdict else {
        panic!("the claim of {:?} must be granted, but is {verdict:?}", claim.name)
    };
    claim.lease(*token)
}

/// Asks for one claim, once.
pub(crate) async fn ask(client: &Client, claim: &Claim) -> Result<Verdict> {
    Ok(only(client.acquire(std::slice::from_ref(claim)).await?))
}

/// Asks for one claim that must be granted.
pub(crate) async fn take(client: &Client, claim: &Claim) -> Result<LeaseId> {
    Ok(lease_of(claim, &ask(client, claim).await?))
}

/// Asks for one claim that must be busy.
pub(crate) async fn refuse(client: &Client, claim: &Claim) -> Result<()> {
    let verdict = ask(client, claim).await?;
    assert!(
        matches!(verdict, Verdict::Busy(_)),
        "the claim of {} on {:?} must be busy, but is {verdict:?}",
        claim.share,
        claim.name
    );
    Ok(())
}

/// Renews one lease to [`LONG`] from now.
pub(crate) async fn renew(client: &Client, lease: &LeaseId) -> Result<Renewed> {
    renew_for(client, lease, ttl(LONG)).await
}

pub(crate) async fn renew_for(client: &Client, lease: &LeaseId, ttl: Ttl) -> Result<Renewed> {
    let renewal = Renewal::new(lease.clone(), ttl);
    Ok(only(client.renew(&[renewal]).await?))
}

pub(crate) async fn release(client: &Client, lease: &LeaseId) -> Result<Released> {
    Ok(only(client.release(&[Release::free(lease.clone())]).await?))
}

/// Releases a lease that must be alive.
pub(crate) async fn free(client: &Client, lease: &LeaseId) -> Result<()> {
    let released = release(client, lease).await?;
    assert_eq!(released, Released::Done, "a live lease of {:?} must be freed", lease.name);
    Ok(())
}

/// Renews a lease that must be alive.
pub(crate) async fn keep(client: &Client, lease: &LeaseId) -> Result<()> {
    let renewed = renew(client, lease).await?;
    assert_eq!(renewed, Renewed::Alive, "a live lease of {:?} must be renewed", lease.name);
    Ok(())
}

/// Renews a lease that must have ended, for one of these reasons.
pub(crate) async fn miss(client: &Client, lease: &LeaseId, reasons: &[LossReason]) -> Result<()> {
    let renewed = renew(client, lease).await?;
    assert!(
        matches!(renewed, Renewed::Lost(reason) if reasons.contains(&reason)),
        "renewal of an ended lease of {:?} must answer Lost with one of {reasons:?}, but answers \
         {renewed:?}",
        lease.name
    );
    Ok(())
}

pub(crate) async fn list(client: &Client, prefix: &str) -> Result<Vec<LeaseInfo>> {
    client.list(&ListQuery::new(prefix.to_owned())).await
}

pub(crate) fn only<T>(mut answers: Vec<T>) -> T {
    assert_eq!(answers.len(), 1, "a batch of one must get one answer");
    answers.remove(0)
}

/// Waits for what must come to pass within [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("it must come to pass within {PATIENCE:?} that {what}"),
    }
}

/// Acquires what must become free within [`PATIENCE`].
pub(crate) async fn obtain(locks: &Locks, name: &LockName) -> Result<Guard> {
    soon(&format!("{name:?} is free"), locks.lock(name).ttl(LONG).acquire()).await
}

/// Waits until no lease of this prefix lives.
pub(crate) async fn until_none_lives(client: &Client, prefix: &str) -> Result<()> {
    let none = async {
        while !list(client, prefix).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    soon("no lease is left", none).await
}

/// A moment before a claim was sent: until its TTL has passed from then on, the lease must live.
pub(crate) struct Since(Instant);

impl Since {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// Whether so little real time has passed that a lease of this TTL cannot have expired, on a
    /// machine of any slowness. Asked after what it excuses.
    pub(crate) fn within(&self, ttl: Duration) -> bool {
        self.0.elapsed() < ttl
    }
}
