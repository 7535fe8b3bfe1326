//! Who is measured, on what, and at which work.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::plan::Workload::{self, *};

/// What a contender works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(crate) enum On {
    /// A Postgres.
    Postgres,
    /// The same Postgres behind a `PgBouncer` in transaction mode.
    #[value(name = "pgbouncer")]
    PgBouncer,
    /// A MySQL.
    #[value(name = "mysql")]
    MySql,
    /// A MariaDB.
    #[value(name = "mariadb")]
    MariaDb,
    /// A Galera cluster of three nodes.
    Galera,
    /// A file.
    Sqlite,
    /// The process itself.
    Memory,
    /// A Redis that writes its file once a second.
    Redis,
    /// A Redis that flushes each write.
    RedisDurable,
    /// An etcd of one node.
    Etcd,
}

impl On {
    pub(crate) fn name(self) -> &'static str {
        match self {
            On::Postgres => "Postgres",
            On::PgBouncer => "Postgres behind pgbouncer",
            On::MySql => "MySQL",
            On::MariaDb => "MariaDB",
            On::Galera => "Galera",
            On::Sqlite => "SQLite",
            On::Memory => "memory",
            On::Redis => "Redis, appendfsync everysec",
            On::RedisDurable => "Redis, appendfsync always",
            On::Etcd => "etcd",
        }
    }
}

/// A way to lock, on a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contender {
    /// What reports call it.
    pub(crate) name: &'static str,
    pub(crate) on: On,
    program: Program,
    /// What its program calls it.
    pub(crate) system: &'static str,
    /// How many connections it may pool; database-locks has its own idea of that.
    pub(crate) connections: usize,
    /// What it can be put through.
    does: &'static [Workload],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Ours,
    /// Counts allocations of ours.
    Allocations,
    Floors,
    /// A crate of `benches/peers`.
    Peer(&'static str),
    /// A script of `benches/peers`, for the Python that has the real django-database-locks.
    Python(&'static str),
}

/// The name of what all others are compared with.
pub(crate) const OURS: &str = "database-locks";
pub(crate) const SELECT: &str = "two SELECT 1";
pub(crate) const UPDATE: &str = "two raw UPDATEs";
pub(crate) const SINGLE: &str = "one statement each way";
pub(crate) const SINGLE_ALONE: &str = "one statement each way, one connection";
pub(crate) const SEED: &str = "the seed's way, in Rust";
pub(crate) const PYTHON: &str = "django-database-locks";
pub(crate) const SESSION: &str = "session lock";
pub(crate) const NAIVE: &str = "BEGIN IMMEDIATE, 10 ms polling";

const POOL: usize = 16;

const EVERYTHING: &[Workload] = &[
    Pairs,
    Fresh,
    Work,
    Network,
    Hot,
    HotProcesses,
    Readers,
    Permits,
    HandOver,
    Recovery,
    Renew,
    Batch,
    Hold,
    HoldMany,
    Wait,
    Fleet,
    Old,
    Count,
    Abandon,
];
const LEASE: &[Workload] =
    &[Pairs, Fresh, Work, Network, Hot, HotProcesses, HandOver, Renew, Old, Count, Abandon];
const SESSIONS: &[Workload] =
    &[Pairs, Work, Network, Hot, HotProcesses, HandOver, Recovery, Count, Abandon];
const BARE: &[Workload] = &[Pairs, Count];
const PEER: &[Workload] = &[Pairs, Hot, HotProcesses, HandOver, Abandon];

/// Everybody.
pub(crate) fn all() -> Vec<Contender> {
    use On::*;
    use Program::{Floors, Ours, Peer, Python};
    let of = |name, on, program, system, connections, does| Contender {
        name,
        on,
        program,
        system,
        connections,
        does,
    };
    let mut all = Vec::new();
    for on in [Postgres, MySql, MariaDb] {
        all.push(of(OURS, on, Ours, "ours", 0, EVERYTHING));
    }
    for on in [PgBouncer, Galera] {
        all.push(of(
            OURS,
            on,
            Ours,
            "ours",
            0,
            &[Pairs, Fresh, Hot, HotProcesses, HandOver, Renew, Count],
        ));
    }
    all.push(of(
        OURS,
        Sqlite,
        Ours,
        "ours",
        0,
        &[
            Pairs,
            PairsProcesses,
            Fresh,
            Hot,
            HotProcesses,
            Readers,
            Permits,
            HandOver,
            Recovery,
            Renew,
            Hold,
            Wait,
            Abandon,
        ],
    ));
    all.push(of(OURS, Memory, Ours, "ours", 0, &[Pairs, Hot, Readers, Permits, Hold, HoldMany]));

    all.push(of(OURS, Memory, Program::Allocations, "ours", 0, &[Allocations]));

    all.push(of(SELECT, Postgres, Floors, "pg-select", POOL, BARE));
    all.push(of(UPDATE, Postgres, Floors, "pg-update", POOL, BARE));
    all.push(of(SINGLE, Postgres, Floors, "pg-single", POOL, LEASE));
    all.push(of(SINGLE_ALONE, Postgres, Floors, "pg-single", 1, &[Count, Alone]));
    all.push(of(SEED, Postgres, Floors, "pg-seed", POOL, &[Pairs, Network, Count]));
    all.push(of(SESSION, Postgres, Floors, "pg-advisory", POOL, SESSIONS));
    all.push(of(SINGLE, PgBouncer, Floors, "pg-single-unnamed", POOL, &[Pairs, Count]));
    for on in [MySql, MariaDb] {
        all.push(of(SELECT, on, Floors, "my-select", POOL, BARE));
        all.push(of(UPDATE, on, Floors, "my-update", POOL, BARE));
        all.push(of(SINGLE, on, Floors, "my-single", POOL, LEASE));
        all.push(of(SINGLE_ALONE, on, Floors, "my-single", 1, &[Count, Alone]));
        all.push(of(SEED, on, Floors, "my-seed", POOL, &[Pairs, Network, Count]));
        all.push(of(SESSION, on, Floors, "my-get-lock", POOL, SESSIONS));
    }
    all.push(of(UPDATE, Galera, Floors, "my-update", POOL, BARE));
    all.push(of(SINGLE, Galera, Floors, "my-single", POOL, &[Pairs, Renew, Count]));
    all.push(of(
        NAIVE,
        Sqlite,
        Floors,
        "sqlite-naive",
        1,
        &[Pairs, PairsProcesses, Fresh, Hot, HotProcesses, HandOver],
    ));

    for on in [Postgres, MySql] {
        all.push(of(PYTHON, on, Python("django"), "django", 1, &[Alone, HotProcesses, HandOver]));
    }
    all.push(of("distributed-lock", Postgres, Peer("distributed-lock"), "postgres", POOL, PEER));
    all.push(of("distributed-lock", MySql, Peer("distributed-lock"), "mysql", POOL, PEER));
    all.push(of("sqlx PgAdvisoryLock", Postgres, Peer("sqlx"), "advisory", POOL, PEER));
    all.push(of("distributed", Postgres, Peer("distributed"), "postgres", POOL, PEER));
    all.push(of("autumn-web LeaseLock", Postgres, Peer("autumn"), "lease", POOL, PEER));
    for on in [Redis, RedisDurable] {
        all.push(of("SET NX PX", on, Peer("redis"), "redis", 1, PEER));
    }
    all.push(of("etcd's lock", Etcd, Peer("etcd"), "etcd", 1, PEER));
    all
}

impl Contender {
    pub(crate) fn does(&self, workload: Workload) -> bool {
        self.does.contains(&workload)
    }

    /// Whether it is built apart from the workspace.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.program, Program::Peer(_) | Program::Python(_))
    }

    /// What starts its program. `None` where that was not built.
    pub(crate) fn command(&self, programs: &Programs) -> Result<Option<Vec<PathBuf>>> {
        let program = match self.program {
            Program::Ours => programs.ours(),
            Program::Allocations => programs.own.join("bench-allocations"),
            Program::Floors => programs.own.join("bench-floors"),
            Program::Peer(name) => programs.peers.join(format!("bench-peer-{name}")),
            Program::Python(name) => {
                let python = database_locks_test_servers::python()?;
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
                return Ok(Some(vec![python, script.join(format!("{name}.py"))]));
            }
        };
        Ok(program.exists().then(|| vec![program]))
    }
}

/// Where programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Those of the workspace: beside this one.
    own: PathBuf,
    peers: PathBuf,
}

impl Programs {
    /// The program that has database-locks.
    pub(crate) fn ours(&self) -> PathBuf {
        self.own.join("bench-ours")
    }

    pub(crate) fn find() -> Result<Self> {
        let this = std::env::current_exe()?;
        let own = this.parent().context("a program is in a folder")?.to_owned();
        let target = own.parent().context("a profile has a folder")?;
        Ok(Self { peers: target.join("peers/release"), own })
    }
}
