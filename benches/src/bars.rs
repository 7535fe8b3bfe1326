//! The bars: what database-locks has to reach, beside what it is compared with in the same run.

use serde::Serialize;

use crate::contenders::{Contender, NAIVE, OURS, On, SEED, SESSION, SINGLE, SINGLE_ALONE, UPDATE};
use crate::plan::Workload;
use crate::results::Results;

/// A ratio, and what it has to be at least. The higher the better, always.
#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    pub(crate) name: String,
    /// `None` where it was not measured in this run.
    pub(crate) ratio: Option<f64>,
    pub(crate) at_least: f64,
    pub(crate) reached: bool,
}

const TABLES: [On; 3] = [On::Postgres, On::MySql, On::MariaDb];

/// All bars, in the order of the work that they are about.
pub(crate) fn bars(results: &Results, contenders: &[Contender]) -> Vec<Bar> {
    let mut bars = Bars { results, bars: Vec::new() };
    for on in TABLES {
        let p50 = (Workload::Pairs, "1 task", "p50");
        bars.quicker(on, p50, SINGLE, 1.0 / 1.15);
        for (tasks, system, at_least) in [
            ("8 tasks", SINGLE, 1.0),
            ("64 tasks", SINGLE, 2.0),
            ("512 tasks", SINGLE, 4.0),
            ("512 tasks", SEED, 8.0),
            ("512 tasks", UPDATE, 2.0),
            ("512 tasks", SESSION, if on == On::Postgres { 1.2 } else { 1.5 }),
        ] {
            bars.more(on, (Workload::Pairs, tasks, "per_second"), system, at_least);
        }
        for (system, at_least) in [(SINGLE, 10.0), (SEED, 25.0), (SESSION, 5.0)] {
            bars.more(on, (Workload::Network, "512 tasks", "per_second"), system, at_least);
        }
        bars.more(on, (Workload::Work, "512 tasks", "per_second"), SESSION, 15.0);
    }
    bars.quicker(On::PgBouncer, (Workload::Pairs, "1 task", "p50"), SINGLE, 1.0 / 1.3);
    let peers = contenders.iter().filter(|peer| peer.is_peer() && peer.does(Workload::Pairs));
    for peer in peers.filter(|peer| TABLES.contains(&peer.on)) {
        for (tasks, at_least) in [("1 task", 1.5), ("512 tasks", 2.0)] {
            let what = (Workload::Pairs, tasks, "per_second");
            bars.more(peer.on, what, peer.name, at_least);
        }
    }
    let processes = (Workload::PairsProcesses, "8 processes", "per_second");
    bars.more(On::Sqlite, processes, NAIVE, 3.0);

    for on in TABLES {
        for (workload, size) in [
            (Workload::Readers, "3000 readers, TTL 3s"),
            (Workload::Permits, "3000 permits, TTL 3s"),
        ] {
            let lost = bars.ours(workload, size, on, "lost");
            let none = lost.map(|lost| if lost == 0.0 { 1.0 } else { 0.0 });
            bars.push(&format!("{}: {size}: none lost", on.name()), none, 1.0);
            for (figure, what, limit) in [
                ("acquired_all", "acquired within 2 s", 2e6),
                ("released_all", "released within 1 s", 1e6),
            ] {
                let ratio = bars.ours(workload, size, on, figure).map(|took| limit / took);
                bars.push(&format!("{}: {size}: {what}", on.name()), ratio, 1.0);
            }
        }
        let [names, shares] = ["1000 names", "1000 shares of one name"]
            .map(|size| bars.ours(Workload::Batch, size, on, "p50"));
        bars.push(
            &format!("{}: 1,000 shares of one name in one batch against 1,000 names", on.name()),
            ratio(names, shares),
            1.0 / 1.5,
        );
        let sections = bars.ours(Workload::Hot, "8 tasks", on, "per_second");
        let bare = bars.median(Workload::Alone, "1 task", on, SINGLE_ALONE, "per_second");
        bars.push(
            &format!("{}: hot name, 8 tasks: sections/s against bare pairs", on.name()),
            ratio(sections, bare),
            0.6,
        );
        let what = (Workload::HotProcesses, "8 processes", "per_second");
        bars.more(on, what, SESSION, 0.25);
        bars.more(on, what, SINGLE, 5.0);
        let [worst, mean] = ["worst_wait", "mean_wait"]
            .map(|figure| bars.ours(Workload::HotProcesses, "8 processes", on, figure));
        bars.push(
            &format!("{}: hot name, 8 processes: worst wait within 4 times the mean", on.name()),
            ratio(mean.map(|mean| 4.0 * mean), worst),
            1.0,
        );
        let two = "two processes";
        let p99 = bars.ours(Workload::HandOver, two, on, "hand_over_p99");
        if on == On::Postgres {
            let what = (Workload::HandOver, two, "hand_over_p99");
            bars.quicker(on, what, SESSION, 1.0 / 2.5);
        } else {
            let ratio = p99.map(|p99| 30_000.0 / p99);
            bars.push(&format!("{}: hand-over p99 within 30 ms", on.name()), ratio, 1.0);
        }
        let (wall, cpu) = if on == On::Postgres { (7.0, 30.0) } else { (4.0, 12.0) };
        bars.quicker(on, (Workload::Renew, "10000 leases", "p50"), SINGLE, wall);
        bars.quicker(on, (Workload::Renew, "10000 leases", "client_cpu"), SINGLE, cpu);
        let most = bars.ours(Workload::Pairs, "512 tasks", on, "connections");
        let ratio = most.map(|most| 8.0 / most);
        bars.push(&format!("{}: 8 connections a process", on.name()), ratio, 1.0);

        let held = "100000 leases, TTL 30s";
        let cpu = bars.ours(Workload::HoldMany, held, on, "client_cpu_seconds");
        let seconds = bars.ours(Workload::HoldMany, held, on, "seconds");
        let busy = cpu.zip(seconds).map(|(cpu, seconds)| 100.0 * cpu / seconds);
        let bytes = bars.ours(Workload::HoldMany, held, on, "bytes_per_lease");
        let lost = bars.ours(Workload::HoldMany, held, on, "lost");
        let none = lost.map(|lost| if lost == 0.0 { 1.0 } else { 0.0 });
        let name = |what: &str| format!("{}: 100,000 leases: {what}", on.name());
        bars.push(&name("none lost"), none, 1.0);
        bars.push(&name("5 % of a core"), busy.map(|busy| 5.0 / busy), 1.0);
        bars.push(&name("600 bytes each"), bytes.map(|bytes| 600.0 / bytes), 1.0);
    }
    let cost = bars.ours(Workload::Pairs, "512 tasks", On::Memory, "client_cpu");
    bars.push("memory, 512 tasks: 5 µs of processor a pair", cost.map(|cost| 5.0 / cost), 1.0);
    let allocations = bars.ours(Workload::Allocations, "memory", On::Memory, "crowded_allocations");
    let ratio = allocations.map(|count| 12.0 / count);
    bars.push("memory, 512 tasks: 12 allocations a pair", ratio, 1.0);
    bars.bars
}

struct Bars<'a> {
    results: &'a Results,
    bars: Vec<Bar>,
}

/// A work, its size, and a figure.
type What = (Workload, &'static str, &'static str);

impl Bars<'_> {
    /// Ours is to have more than this many times what the other has.
    fn more(&mut self, on: On, what: What, other: &str, at_least: f64) {
        let (ours, theirs) = self.both(on, what, other);
        self.push(&title(on, what, other), ratio(ours, theirs), at_least);
    }

    /// The other is to take more than this many times what ours takes.
    fn quicker(&mut self, on: On, what: What, other: &str, at_least: f64) {
        let (ours, theirs) = self.both(on, what, other);
        self.push(&title(on, what, other), ratio(theirs, ours), at_least);
    }

    fn both(&self, on: On, what: What, other: &str) -> (Option<f64>, Option<f64>) {
        let (workload, variant, figure) = what;
        let of = |system| self.median(workload, variant, on, system, figure);
        (of(OURS), of(other))
    }

    fn ours(&self, workload: Workload, variant: &str, on: On, figure: &str) -> Option<f64> {
        self.median(workload, variant, on, OURS, figure)
    }

    fn median(
        &self,
        workload: Workload,
        variant: &str,
        on: On,
        system: &str,
        figure: &str,
    ) -> Option<f64> {
        self.results.median(workload, variant, on, system, figure)
    }

    fn push(&mut self, name: &str, ratio: Option<f64>, at_least: f64) {
        let reached = ratio.is_some_and(|ratio| ratio >= at_least);
        self.bars.push(Bar { name: name.to_owned(), ratio, at_least, reached });
    }
}

fn title(on: On, (workload, variant, figure): What, other: &str) -> String {
    let figure = match figure {
        "per_second" => "throughput",
        "client_cpu" => "client's processor time",
        "hand_over_p99" => "p99",
        other => other,
    };
    format!("{}: {}, {variant}: {figure} against {other}", on.name(), workload.title())
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    Some(ours? / theirs?)
}
