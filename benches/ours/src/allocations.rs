//! What a pair and a held lease cost in allocations: on the memory backend, with the engine on the caller's thread. A
//! program of its own, because counting takes time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use anyhow::{Result, bail};
use database_locks::memory::MemoryBackend;
use database_locks::{Guard, Locks};
use database_locks_bench_worker::{Outcome, Work, job, ready, say};
use tokio::runtime::{Builder, Runtime};

/// How many tasks are a crowd.
const TASKS: usize = 512;

fn main() -> Result<()> {
    let Work::Allocations { times } = job()?.work else { bail!("allocations are all it counts") };
    ready()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let locks = runtime.block_on(async {
        let options = Locks::builder().on_current_runtime().default_ttl(Duration::from_secs(600));
        options.build(Arc::new(MemoryBackend::new()))
    })?;
    let pairs = || {
        for _ in 0..times {
            let pair = async { acquire(&locks, "x").await?.release().await };
            if let Err(error) = runtime.block_on(pair) {
                panic!("a free lock was not granted: {error}");
            }
        }
    };
    pairs();
    let pair = measure(pairs);
    let crowd = || runtime.block_on(pairs_of_a_crowd(&locks, times.div_ceil(TASKS)));
    crowd();
    let crowded = measure(crowd);
    let mut held = Vec::with_capacity(times);
    let lease = measure(|| hold(&runtime, &locks, times, &mut held));
    let each = |count: f64| count / times as f64;
    let figures = BTreeMap::from([
        ("allocations".to_owned(), each(pair.count_total as f64)),
        ("allocated_bytes".to_owned(), each(pair.bytes_total as f64)),
        ("crowded_allocations".to_owned(), {
            crowded.count_total as f64 / (times.div_ceil(TASKS) * TASKS) as f64
        }),
        ("kept_allocations".to_owned(), each(lease.count_current as f64)),
        ("kept_bytes".to_owned(), each(lease.bytes_current as f64)),
    ]);
    say(&serde_json::to_string(&Outcome { figures, ..Outcome::default() })?)
}

/// Many tasks do so many pairs each, at once.
async fn pairs_of_a_crowd(locks: &Locks, times: usize) {
    let tasks = (0..TASKS).map(|task| async move {
        let name = format!("task {task}");
        for _ in 0..times {
            if let Err(error) = async { acquire(locks, &name).await?.release().await }.await {
                panic!("a free lock was not granted: {error}");
            }
        }
    });
    futures_util::future::join_all(tasks).await;
}

fn hold(runtime: &Runtime, locks: &Locks, leases: usize, held: &mut Vec<Guard>) {
    for lease in 0..leases {
        match runtime.block_on(acquire(locks, &format!("lease {lease}"))) {
            Ok(guard) => held.push(guard),
            Err(error) => panic!("a free lock was not granted: {error}"),
        }
    }
}

async fn acquire(locks: &Locks, name: &str) -> database_locks::Result<Guard> {
    locks.lock(name).acquire().await
}
