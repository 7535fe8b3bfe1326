//! What every system under test is put through: the same loops, clocks and counts for all of them.
//!
//! A system is a way to hold a lock ([`System`]). A program has one or more of them, and hands itself to [`serve`]; the
//! benchmark starts such a program for each sample, tells it its [`Job`] on standard input, and reads what came of it
//! from standard output. So every sample has a process of its own, whose memory and processor time are its own too.

mod job;
mod meter;
mod work;

use std::future::Future;
use std::io::{self, BufRead as _, Write as _};

use anyhow::{Context as _, Result, bail};

pub use job::{Job, Names, Outcome, Section, Share, Work};
pub use meter::{monotonic_nanos, resident_bytes};
pub use work::COUNT_WARM_UP;

/// A way to hold a lock, and to give it back.
pub trait System: Send + Sync + Sized + 'static {
    /// A lock that is held.
    type Held: Send + 'static;

    /// Waits until it holds the lock, in the way that this system waits.
    fn acquire(&self, name: &str) -> impl Future<Output = Result<Self::Held>> + Send;

    /// Gives the lock back, and waits until that is done.
    fn release(&self, held: Self::Held) -> impl Future<Output = Result<()>> + Send;

    /// As [`acquire`](Self::acquire), for a part of the lock and with a TTL.
    fn acquire_share(
        &self,
        _name: &str,
        _share: Share,
        _ttl_ms: u64,
    ) -> impl Future<Output = Result<Self::Held>> + Send {
        async { bail!("this system has neither shares nor leases") }
    }

    /// Whether a lock that was held is held no more, as far as its holder knows.
    fn is_lost(_held: &Self::Held) -> bool {
        false
    }

    /// Makes so many leases, and renews each of them once for every call of what it gives.
    fn renewals(
        &self,
        _leases: usize,
    ) -> impl Future<Output = Result<impl AsyncFnMut() -> Result<()>>> {
        async { if true { bail!("this system has no renewals") } else { Ok(async || Ok(())) } }
    }

    /// Acquires so many leases by one call of the store and releases them by another, for every call of what it
    /// gives: shares of one name, or all of a name each.
    fn batches(
        &self,
        _leases: usize,
        _shares: bool,
    ) -> impl Future<Output = Result<impl AsyncFnMut() -> Result<()>>> {
        async { if true { bail!("this system has no batches") } else { Ok(async || Ok(())) } }
    }
}

/// Reads the job of this process.
///
/// # Errors
///
/// When standard input does not hold one.
pub fn job() -> Result<Job> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("no job on standard input")?;
    serde_json::from_str(&line).context("the job cannot be read")
}

/// Does the job's work with a system, and reports what came of it.
///
/// # Errors
///
/// When the system fails before it was measured. What fails later is counted.
pub async fn serve<S: System>(job: &Job, system: S) -> Result<()> {
    let outcome = work::run(job, system).await?;
    say(&serde_json::to_string(&outcome)?)?;
    // What a system has running may not want to end by itself.
    std::process::exit(0)
}

/// Says that all is prepared, and waits until the measurement may begin.
///
/// # Errors
///
/// When the benchmark has gone.
pub fn ready() -> Result<()> {
    say("ready")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() == "go" { Ok(()) } else { bail!("the benchmark has gone") }
}

/// Tells the benchmark.
///
/// # Errors
///
/// When it has gone.
pub fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
