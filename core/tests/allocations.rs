//! What a lock costs in allocations, with the engine and a backend in memory on the caller's thread.
//!
//! A number that changes on purpose is changed here. Numbers of allocations are exact; bytes have an upper bound, since
//! the sizes of futures are the compiler's affair.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use database_locks_core::{Guard, Locks, Owner, Ttl};
use database_locks_memory::MemoryBackend;
use tokio::runtime::{self, Runtime};

#[test]
fn a_pair_of_acquire_and_release_makes_25_allocations_and_leaves_none() {
    let (runtime, locks) = start();
    let pair = || {
        measure(|| {
            runtime.block_on(async { acquire(&locks, "x").await.release().await.unwrap() });
        })
    };
    // By then maps and queues have the room that they need.
    for _ in 0..100 {
        pair();
    }
    for _ in 0..1_000 {
        let cost = pair();
        assert_eq!((cost.count_total, cost.count_current), (25, 0), "{cost:?}");
        assert!(cost.bytes_total <= 5_800, "{cost:?}");
    }
}

/// Some of them are what the backend keeps for a name, also after its release.
#[test]
fn a_thousand_held_leases_keep_3341_allocations() {
    let (runtime, locks) = start();
    let names: Vec<String> = (0..1_000).map(|i| format!("lock {i:3}")).collect();
    let mut held = Vec::with_capacity(names.len());
    let cost = measure(|| {
        for name in &names {
            held.push(runtime.block_on(acquire(&locks, name)));
        }
    });
    assert_eq!((cost.count_total, cost.count_current), (16_350, 3_341), "{cost:?}");
    assert!(cost.bytes_current <= 1_200_000, "{cost:?}");
}

fn start() -> (Runtime, Locks) {
    // Paused, so that no renewal comes in between.
    let runtime =
        runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let locks = runtime.block_on(async {
        Locks::builder()
            .default_ttl(Ttl::new(Duration::from_mins(5)).unwrap())
            .default_owner(Owner::label_only("host.1234").unwrap())
            .on_current_runtime()
            .build(Arc::new(MemoryBackend::new()))
            .unwrap()
    });
    (runtime, locks)
}

async fn acquire(locks: &Locks, name: &str) -> Guard {
    locks.lock(name).acquire().await.unwrap()
}
