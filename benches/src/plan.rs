//! Which work, at which sizes, how long and how often.

use std::time::Duration;

use database_locks_bench_worker::{Names, Share, Work};

/// A kind of work. The words of [`title`](Self::title) say what each of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Workload {
    Count,
    Alone,
    Pairs,
    PairsProcesses,
    Fresh,
    Work,
    Network,
    Hot,
    HotProcesses,
    HandOver,
    Recovery,
    Readers,
    Permits,
    Renew,
    Batch,
    Hold,
    HoldMany,
    Wait,
    Fleet,
    Old,
    Abandon,
    Allocations,
}

impl Workload {
    pub(crate) const ALL: [Workload; 22] = [
        Workload::Count,
        Workload::Alone,
        Workload::Pairs,
        Workload::PairsProcesses,
        Workload::Fresh,
        Workload::Work,
        Workload::Network,
        Workload::Hot,
        Workload::HotProcesses,
        Workload::HandOver,
        Workload::Recovery,
        Workload::Readers,
        Workload::Permits,
        Workload::Renew,
        Workload::Batch,
        Workload::Hold,
        Workload::HoldMany,
        Workload::Wait,
        Workload::Old,
        Workload::Abandon,
        Workload::Allocations,
        // The last, since a server that it has overwhelmed may take minutes to recover.
        Workload::Fleet,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Workload::Count => "What a pair costs: exact counts",
            Workload::Alone => "One task on one connection",
            Workload::Pairs => "Acquire and release, distinct names",
            Workload::PairsProcesses => "Acquire and release, distinct names, eight processes",
            Workload::Fresh => "Acquire and release, names that the database has not seen",
            Workload::Work => "Acquire, 10 ms of work, release",
            Workload::Network => "Acquire and release over a network of 0.5 ms each way",
            Workload::Hot => "One hot name, eight tasks of one process",
            Workload::HotProcesses => "One hot name, eight processes",
            Workload::HandOver => "Hand-over between two processes",
            Workload::Recovery => "Recovery after kill -9 of a holder",
            Workload::Readers => "Readers of one name, for three TTLs",
            Workload::Permits => "Permits of one name, for three TTLs",
            Workload::Renew => "Renewing leases",
            Workload::Batch => "A batch of one name, and of many",
            Workload::Hold => "Holding leases",
            Workload::HoldMany => "Holding a hundred thousand leases",
            Workload::Wait => "Waiting for names that somebody else holds",
            Workload::Fleet => "A fleet of processes that wait for one leader",
            Workload::Old => "A table with many old rows",
            Workload::Abandon => "Acquires that are given up half-way",
            Workload::Allocations => "Allocations of a pair, and of a lease that is held",
        }
    }
}

/// How much time there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// All sizes, several rounds.
    Full,
    /// The ends of each scale, fewer rounds.
    Quick,
    /// Each work for a moment: does it run at all?
    Smoke,
}

/// One size of one kind of work.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// What reports call it, for example `512 tasks`.
    pub(crate) name: String,
    /// What each worker does.
    pub(crate) work: Work,
    /// How many workers do it side by side.
    pub(crate) processes: usize,
    pub(crate) rounds: usize,
}

/// How many rows the table of [`Workload::Old`] has.
pub(crate) fn old_rows(effort: Effort) -> usize {
    match effort {
        Effort::Full => 1_000_000,
        Effort::Quick => 100_000,
        Effort::Smoke => 1_000,
    }
}

/// The sizes of a kind of work.
pub(crate) fn variants(workload: Workload, effort: Effort) -> Vec<Variant> {
    let smoke = effort == Effort::Smoke;
    let (rounds, for_ms) = match effort {
        Effort::Full => (3, 800),
        Effort::Quick => (1, 400),
        Effort::Smoke => (1, 150),
    };
    // What has fewer rounds is long by itself, or a variation of what has more.
    let (twice, once) = (rounds.min(2), 1);
    let by = |full: &[usize], quick: &[usize], smoke: &[usize]| match effort {
        Effort::Full => full.to_vec(),
        Effort::Quick => quick.to_vec(),
        Effort::Smoke => smoke.to_vec(),
    };
    let tasks = |count: usize| if count == 1 { "1 task".into() } else { format!("{count} tasks") };
    let pairs = |sizes: Vec<usize>, names, hold_ms, processes| -> Vec<Variant> {
        let size = |count| Variant {
            name: if processes > 1 { format!("{processes} processes") } else { tasks(count) },
            work: Work::Pairs { tasks: count, names, hold_ms, for_ms },
            processes,
            rounds: match workload {
                Workload::Alone | Workload::Pairs | Workload::PairsProcesses => rounds,
                _ => twice,
            },
        };
        sizes.into_iter().map(size).collect()
    };
    let hot = |count, processes: usize| {
        let name = if processes > 1 { format!("{processes} processes") } else { tasks(count) };
        let for_ms = if smoke { 150 } else { 3 * for_ms };
        vec![Variant { name, work: Work::Hot { tasks: count, for_ms }, processes, rounds: twice }]
    };
    let crowd = |share: fn(usize) -> Share, what: &str| -> Vec<Variant> {
        let ttl_ms = match effort {
            Effort::Full => 3_000,
            Effort::Quick => 1_000,
            Effort::Smoke => 500,
        };
        by(&[100, 1_000, 3_000], &[300], &[10])
            .into_iter()
            .map(|holders| Variant {
                name: format!("{holders} {what}, TTL {:?}", Duration::from_millis(ttl_ms)),
                work: Work::Crowd { holders, share: share(holders), ttl_ms },
                processes: 1,
                rounds: once,
            })
            .collect()
    };
    let one = |name: String, work, processes, rounds| Variant { name, work, processes, rounds };
    let hold = |sizes: Vec<usize>, ttl_ms, for_ms| -> Vec<Variant> {
        let size = |leases| {
            let name = format!("{leases} leases, TTL {:?}", Duration::from_millis(ttl_ms));
            one(name, Work::Hold { leases, ttl_ms, for_ms }, 1, once)
        };
        sizes.into_iter().map(size).collect()
    };
    match workload {
        Workload::Count => {
            let pairs = if smoke { 5 } else { 200 };
            vec![one("a pair".into(), Work::Count { pairs }, 1, once)]
        }
        Workload::Alone => pairs(vec![1], Names::Known, 0, 1),
        Workload::Pairs => pairs(by(&[1, 8, 64, 512], &[1, 512], &[1, 8]), Names::Known, 0, 1),
        Workload::PairsProcesses => pairs(vec![1], Names::Known, 0, if smoke { 2 } else { 8 }),
        Workload::Fresh => pairs(by(&[1, 64, 512], &[512], &[8]), Names::Fresh, 0, 1),
        Workload::Work => pairs(by(&[64, 512], &[512], &[8]), Names::Known, 10, 1),
        Workload::Network => pairs(by(&[1, 8, 512], &[1, 512], &[8]), Names::Known, 0, 1),
        Workload::Hot => hot(8, 1),
        Workload::HotProcesses => hot(1, if smoke { 2 } else { 8 }),
        Workload::HandOver => {
            let for_ms = if smoke { 300 } else { 5 * for_ms };
            vec![one("two processes".into(), Work::HandOver { for_ms }, 2, twice)]
        }
        Workload::Recovery => {
            let ttl_ms = if smoke { 500 } else { 2_000 };
            vec![one(format!("TTL {ttl_ms} ms"), Work::Once { ttl_ms }, 1, twice)]
        }
        Workload::Readers => crowd(|_| Share::Read, "readers"),
        Workload::Permits => {
            crowd(|holders| Share::Permit(u32::try_from(holders).unwrap_or(u32::MAX)), "permits")
        }
        Workload::Renew => {
            let sizes = by(&[1_000, 10_000], &[10_000], &[50]);
            let times = if effort == Effort::Full { 3 } else { 1 };
            sizes
                .into_iter()
                .map(|leases| {
                    one(format!("{leases} leases"), Work::Renew { leases, times }, 1, twice)
                })
                .collect()
        }
        Workload::Batch => {
            let leases = if smoke { 50 } else { 1_000 };
            let times = if effort == Effort::Full { 10 } else { 3 };
            [(false, "names"), (true, "shares of one name")]
                .map(|(shares, of)| {
                    let work = Work::Batch { leases, shares, times };
                    one(format!("{leases} {of}"), work, 1, twice)
                })
                .into()
        }
        Workload::Hold => {
            // Two TTLs, so that each is renewed several times.
            let ttl_ms = match effort {
                Effort::Full => 6_000,
                Effort::Quick => 2_000,
                Effort::Smoke => 500,
            };
            hold(by(&[1_000, 10_000], &[10_000], &[50]), ttl_ms, 2 * ttl_ms)
        }
        Workload::HoldMany => match effort {
            Effort::Full => hold(vec![100_000], 30_000, 30_000),
            Effort::Quick => Vec::new(),
            Effort::Smoke => hold(vec![100], 500, 500),
        },
        Workload::Wait => by(&[200, 5_000], &[200], &[10])
            .into_iter()
            .map(|names| {
                let for_ms = if smoke { 300 } else { 6 * for_ms };
                one(format!("{names} names"), Work::Wait { names, for_ms }, 1, once)
            })
            .collect(),
        Workload::Fleet => {
            let (processes, for_ms) = match effort {
                Effort::Full => (200, 10_000),
                Effort::Quick => (30, 2_000),
                Effort::Smoke => (3, 300),
            };
            let work = Work::Wait { names: 1, for_ms };
            vec![one(format!("{processes} processes"), work, processes, once)]
        }
        Workload::Old => {
            let mut sizes = pairs(by(&[1, 64], &[64], &[8]), Names::Known, 0, 1);
            for size in &mut sizes {
                size.name += &format!(", {} rows", old_rows(effort));
            }
            sizes
        }
        Workload::Allocations => {
            vec![one("memory".into(), Work::Allocations { times: 10_000 }, 1, once)]
        }
        Workload::Abandon => {
            let names = by(&[150], &[50], &[10])[0];
            vec![one(format!("{names} acquires"), Work::Abandon { names }, 1, once)]
        }
    }
}
