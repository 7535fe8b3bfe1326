//! What the benchmark and its workers tell each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a worker has to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Which of the program's systems.
    pub system: String,
    /// Where its server is.
    pub url: String,
    /// How many connections it may pool, where it pools any.
    pub connections: usize,
    /// What all names begin with, so that no two samples meet.
    pub prefix: String,
    /// What to do.
    pub work: Work,
}

/// The loops.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Each task acquires and releases a lock of its own, over and over.
    Pairs {
        /// How many tasks.
        tasks: usize,
        /// Whether a task uses one name or ever new ones.
        names: Names,
        /// For how long the lock is held, in ms.
        hold_ms: u64,
        /// For how long, in ms.
        for_ms: u64,
    },
    /// One task does so many pairs on one name, for whoever counts what they cost.
    Count {
        /// How many pairs.
        pairs: u64,
    },
    /// Tasks take turns on one name.
    Hot {
        /// How many tasks of this process.
        tasks: usize,
        /// For how long, in ms.
        for_ms: u64,
    },
    /// Many hold parts of one name at once, for three TTLs.
    Crowd {
        /// How many.
        holders: usize,
        /// What each of them takes.
        share: Share,
        /// Their TTL, in ms.
        ttl_ms: u64,
    },
    /// Two such processes hand one lock back and forth.
    HandOver {
        /// For how long, in ms.
        for_ms: u64,
    },
    /// Takes a lock, says so, and never gives it back.
    Sit {
        /// The TTL, in ms.
        ttl_ms: u64,
    },
    /// Acquires a lock once, and tells when.
    Once {
        /// The TTL, in ms.
        ttl_ms: u64,
    },
    /// Keeps leases of distinct names.
    Hold {
        /// How many.
        leases: usize,
        /// Their TTL, in ms.
        ttl_ms: u64,
        /// For how long, in ms.
        for_ms: u64,
    },
    /// Waits for distinct names that somebody else holds.
    Wait {
        /// How many.
        names: usize,
        /// For how long, in ms.
        for_ms: u64,
    },
    /// Renews leases, all of them each time.
    Renew {
        /// How many.
        leases: usize,
        /// How often.
        times: usize,
    },
    /// Acquires all of it by one call of the store, and releases it by another.
    Batch {
        /// How many leases.
        leases: usize,
        /// Whether they are shares of one name, instead of a name each.
        shares: bool,
        /// How often.
        times: usize,
    },
    /// Counts allocations of so many pairs, and of as many leases.
    Allocations {
        /// How many.
        times: usize,
    },
    /// Begins to acquire free locks and gives up at a random moment: what is left behind?
    Abandon {
        /// How many.
        names: usize,
    },
    /// Tries to acquire each of these names, for some seconds: how many are stuck?
    Probe {
        /// How many.
        names: usize,
    },
}

/// Which names a task uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    /// One, which the database knows.
    Known,
    /// A new one each time.
    Fresh,
}

/// What a holder takes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// All of it.
    All,
    /// A reader's part.
    Read,
    /// One of so many permits.
    Permit(u32),
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Named figures: times in µs unless the name says otherwise.
    pub figures: BTreeMap<String, f64>,
    /// When a lock was held: for whoever has to look whether two held it at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<Section>,
    /// The values at the hundredths from 0 to 99, and at 99.9, of what was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<f64>,
    /// The first of the errors that were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A lock was held from one moment to another, in ns of the host's monotonic clock.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Section {
    /// When it was asked for.
    pub asked: u64,
    /// When it was held.
    pub from: u64,
    /// When its release began.
    pub to: u64,
}
