//! Core's hot paths, as often as asked, on one thread and a backend in memory: `cargo xtask instructions` counts what
//! they execute.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use database_locks_core::{Locks, Owner, Ttl};
use database_locks_memory::{ManualClock, MemoryBackend};
use tokio::runtime;
use tokio::time::sleep;

const LEASES: usize = 1_000;
const TTL: Duration = Duration::from_mins(1);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().context("which path?")?;
    let times: u32 = arguments.next().context("how often?")?.parse()?;
    // On paused time nothing waits, and renewals come exactly when they are due. The backend's clock stands still: the
    // machine's is read from a page that valgrind does not have.
    let runtime =
        runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let locks = Locks::builder()
            .default_ttl(Ttl::new(TTL)?)
            .default_owner(Owner::label_only("host.1234")?)
            .on_current_runtime()
            .build(Arc::new(MemoryBackend::with_clock(ManualClock::new())))?;
        match what.as_str() {
            "pairs" => pairs(&locks, times).await,
            "minutes" => minutes(&locks, times).await,
            _ => bail!("there is no path {what}: there are pairs and minutes"),
        }
    })
}

async fn pairs(locks: &Locks, times: u32) -> Result<()> {
    for _ in 0..times {
        locks.lock("x").acquire().await?.release().await?;
    }
    Ok(())
}

/// Holds a thousand leases that are due for renewal at the same times.
async fn minutes(locks: &Locks, times: u32) -> Result<()> {
    let mut held = Vec::with_capacity(LEASES);
    for i in 0..LEASES {
        held.push(locks.lock(format!("lock {i:3}")).acquire().await?);
    }
    sleep(Duration::from_mins(1) * times).await;
    for guard in &held {
        guard.check()?;
    }
    Ok(())
}
