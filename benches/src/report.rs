//! `BENCHMARKS.md`: what a run has found, in tables, pictures and plain words.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;

use crate::bars::Bar;
use crate::contenders::{OURS, On};
use crate::plan::Workload;
use crate::results::{Figure, Results};

/// What a table shows of a figure.
struct Column {
    figure: &'static str,
    title: &'static str,
    /// Figures are divided by this, and shown with so many digits.
    unit: f64,
    digits: usize,
    /// Whether it is shown beside what ours has, and whether more is better there.
    ratio: Option<Better>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

const fn column(figure: &'static str, title: &'static str, unit: f64, digits: usize) -> Column {
    Column { figure, title, unit, digits, ratio: None }
}

const fn compared(mut column: Column, better: Better) -> Column {
    column.ratio = Some(better);
    column
}

const PER_SECOND: Column = compared(column("per_second", "a second", 1.0, 0), Better::More);
const P50: Column = compared(column("p50", "p50, ms", 1e3, 2), Better::Less);
const P99: Column = compared(column("p99", "p99, ms", 1e3, 2), Better::Less);
const CLIENT_CPU: Column = column("client_cpu", "client CPU, µs a pair", 1.0, 0);
const SERVER_CPU: Column = column("server_cpu", "server CPU, µs a pair", 1.0, 0);
const CONNECTIONS: Column = column("connections", "connections", 1.0, 0);
const LOST: Column = column("lost", "lost", 1.0, 0);
const ERRORS: Column = column("errors", "errors", 1.0, 0);
const DOUBLE: Column = column("double_grants", "held twice", 1.0, 0);

/// What is shown of a kind of work, and what it says.
fn shown(workload: Workload) -> (&'static str, Vec<Column>) {
    const PAIRS: &str = "A pair is an acquire and a release that was waited for, without the time in \
        between.";
    let pairs = vec![PER_SECOND, P50, P99, CLIENT_CPU, SERVER_CPU, CONNECTIONS, ERRORS];
    let crowd = vec![
        column("acquired_all", "all acquired, ms", 1e3, 0),
        column("released_all", "all released, ms", 1e3, 0),
        LOST,
        ERRORS,
        column("client_cpu_seconds", "client CPU, s", 1.0, 2),
        column("server_cpu_seconds", "server CPU, s", 1.0, 2),
        CONNECTIONS,
    ];
    let turns = vec![
        PER_SECOND,
        column("mean_wait", "mean wait, ms", 1e3, 2),
        column("worst_wait", "worst wait, ms", 1e3, 1),
        column("fairness", "fairness", 1.0, 2),
        DOUBLE,
        ERRORS,
        CONNECTIONS,
    ];
    match workload {
        Workload::Count => (
            "One task, one name, through a proxy that counts bytes and turns of direction; the rest are the \
             server's own counters. These do not depend on the machine's speed. A release of database-locks \
             on Postgres is lazy, so that its flush is shared.",
            vec![
                column("round_trips", "round trips", 1.0, 2),
                column("statements", "statements", 1.0, 2),
                column("transactions", "transactions", 1.0, 2),
                column("bytes_sent", "bytes sent", 1.0, 0),
                column("bytes_received", "bytes received", 1.0, 0),
                column("fsyncs", "flushes", 1.0, 2),
                column("wal_bytes", "log bytes", 1.0, 0),
            ],
        ),
        Workload::Alone => ("What one connection does, statement after statement.", pairs),
        Workload::Pairs => (PAIRS, pairs),
        Workload::PairsProcesses => ("Each process has one task and a name of its own.", pairs),
        Workload::Fresh => ("Each pair has a name of its own, which has no row yet.", pairs),
        Workload::Work => (
            "As above with 10 ms between acquire and release. Whoever pins a connection for each lock that \
             is held is bounded by its pool.",
            pairs,
        ),
        Workload::Network => ("As above, 1 ms away.", pairs),
        Workload::Hot | Workload::HotProcesses => (
            "Everybody wants the same name, holds it for a moment and asks again. The wait is from the ask \
             to the grant; fairness is Jain's index of the turns that each had, 1 where all had the same. \
             Those that poll do so every 25 ms.",
            turns,
        ),
        Workload::HandOver => (
            "From the moment before a release to the moment after the grant to the other process, which was \
             waiting.",
            vec![
                compared(column("hand_over_p50", "p50, ms", 1e3, 2), Better::Less),
                compared(column("hand_over_p99", "p99, ms", 1e3, 2), Better::Less),
                column("hand_overs", "hand-overs", 1.0, 0),
                DOUBLE,
                ERRORS,
            ],
        ),
        Workload::Recovery => (
            "From the kill -9 of a holder to the grant to a process that waits. A lease has to run out; a \
             session's lock goes with its connection, which the server notices at once on one machine, and \
             late or never where a host or a network dies.",
            vec![column("recovery_ms", "ms", 1.0, 0)],
        ),
        Workload::Readers | Workload::Permits => (
            "All in one process, on one name: acquired at once, held while they are renewed, released at \
             once. A lease that is lost on a healthy server is a fault.",
            crowd,
        ),
        Workload::Renew => (
            "Each of so many leases renewed once: by the backend in its batches on its one connection, \
             without the engine, and one by one on a pool of 16 connections.",
            vec![
                compared(column("p50", "ms", 1e3, 1), Better::Less),
                compared(column("client_cpu", "client CPU, ms", 1e3, 1), Better::Less),
                column("server_cpu", "server CPU, ms", 1e3, 1),
                CONNECTIONS,
                ERRORS,
            ],
        ),
        Workload::Batch => (
            "Acquired by one call of the backend and released by another, without the engine.",
            vec![
                column("p50", "ms", 1e3, 1),
                column("client_cpu", "client CPU, ms", 1e3, 1),
                column("server_cpu", "server CPU, ms", 1e3, 1),
                ERRORS,
            ],
        ),
        Workload::Hold | Workload::HoldMany => (
            "One process keeps so many leases alive. The memory is what the process grew by while it \
             acquired them.",
            vec![
                LOST,
                column("client_cpu_seconds", "client CPU, s", 1.0, 2),
                column("server_cpu_seconds", "server CPU, s", 1.0, 2),
                column("seconds", "of s", 1.0, 0),
                column("bytes_per_lease", "bytes a lease", 1.0, 0),
                CONNECTIONS,
            ],
        ),
        Workload::Wait | Workload::Fleet => (
            "While nothing is released: what waiting costs. Queries include what the holder renews.",
            vec![
                column("queries_per_second", "queries a second", 1.0, 1),
                column("client_cpu_seconds", "client CPU, s", 1.0, 2),
                column("seconds", "of s", 1.0, 0),
                column("server_cpu_percent", "server CPU, %", 1.0, 1),
                column("resident_bytes", "memory of the waiters, MiB", 1_048_576.0, 1),
                CONNECTIONS,
                ERRORS,
            ],
        ),
        Workload::Old => ("As the pairs above, beside many rows of names that nobody uses.", pairs),
        Workload::Allocations => (
            "The memory backend, with the engine on the caller's thread; exact.",
            vec![
                column("allocations", "allocations a pair", 1.0, 1),
                column("crowded_allocations", "by 512 tasks", 1.0, 1),
                column("allocated_bytes", "bytes a pair", 1.0, 0),
                column("kept_allocations", "allocations a lease held", 1.0, 1),
                column("kept_bytes", "bytes a lease held", 1.0, 0),
            ],
        ),
        Workload::Abandon => (
            "Acquires of free names whose future is dropped after 0.05 to 3 ms. A second later another \
             process tries each of the names for three seconds: what is stuck was leaked.",
            vec![column("abandoned", "given up", 1.0, 0), column("stuck", "stuck", 1.0, 0)],
        ),
    }
}

/// The whole report.
pub(crate) fn report(
    results: &Results,
    bars: &[Bar],
    servers: &[(On, String)],
    plots: &[(String, String)],
    command: &str,
) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "# Benchmarks\n\n\
         Written by `{command}`. All systems took turns in this one run, on one machine, on servers that keep \
         what they have committed. The machine is small and shared: ratios say more than numbers, and a number \
         is the median of all rounds.\n\n\
         What is compared with what: database-locks grants **leases**, which are durable, expire on the \
         server's clock, are renewed and carry a fencing token. The bare statements are what no lease can do \
         without, with none of that. **Session locks** (`pg_advisory_lock`, `GET_LOCK`) are neither durable nor \
         leases: they write nothing, pin a connection each, and end with it. Redis and etcd are other worlds, \
         shown for scale.\n"
    )?;
    machine(&mut out)?;
    writeln!(out, "| server | |\n|---|---|")?;
    for (on, description) in servers {
        writeln!(out, "| {} | {description} |", on.name())?;
    }
    writeln!(out, "\n## Bars\n\n| | ratio | at least | |\n|---|--:|--:|---|")?;
    for bar in bars {
        let Bar { name, ratio, at_least, reached } = bar;
        let (ratio, verdict) = match ratio {
            Some(ratio) => (format!("{ratio:.2}"), if *reached { "reached" } else { "**missed**" }),
            None => ("–".to_owned(), "not measured"),
        };
        writeln!(out, "| {name} | {ratio} | {at_least:.2} | {verdict} |")?;
    }
    let reached = bars.iter().filter(|bar| bar.reached).count();
    writeln!(out, "\n{reached} of {} bars are reached.", bars.len())?;
    if reached < bars.len() {
        writeln!(out, "[`benches/MISSED.md`](benches/MISSED.md) says why others are missed.")?;
    }
    if !plots.is_empty() {
        writeln!(out, "\n## Plots\n")?;
        for (file, title) in plots {
            writeln!(out, "![{title}](benches/plots/{file})\n")?;
        }
    }
    for workload in Workload::ALL {
        table(&mut out, results, workload)?;
    }
    failures(&mut out, results)?;
    Ok(out)
}

fn machine(out: &mut String) -> Result<()> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().map(|output| output.stdout);
        String::from_utf8_lossy(&output.unwrap_or_default()).trim().to_owned()
    };
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, model)| model);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let kib: f64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    let system = read("/etc/os-release");
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("an unknown system", |name| name.trim_matches('"'));
    writeln!(
        out,
        "On {}, commit {}: {cores} cores of {model}, {:.0} GiB, {system}, Linux {}, {}.\n",
        said("date", &["+%Y-%m-%d"]),
        said("git", &["rev-parse", "--short", "HEAD"]),
        kib / 1_048_576.0,
        said("uname", &["-r"]),
        said("rustc", &["--version"]),
    )?;
    Ok(())
}

/// One section: a table for each server, a line for each size and system.
fn table(out: &mut String, results: &Results, workload: Workload) -> Result<()> {
    let all = [
        On::Postgres,
        On::PgBouncer,
        On::MySql,
        On::MariaDb,
        On::Galera,
        On::Sqlite,
        On::Memory,
        On::Redis,
        On::RedisDurable,
        On::Etcd,
    ];
    let on: Vec<On> =
        all.into_iter().filter(|on| !results.variants(workload, *on).is_empty()).collect();
    if on.is_empty() {
        return Ok(());
    }
    let (words, columns) = shown(workload);
    writeln!(out, "\n## {}\n\n{words}\n", workload.title())?;
    let head: Vec<&str> = columns.iter().map(|column| column.title).collect();
    writeln!(out, "| | | {} |", head.join(" | "))?;
    writeln!(out, "|---|---|{}", "--:|".repeat(head.len()))?;
    for on in on {
        for variant in results.variants(workload, on) {
            for system in results.systems(workload, on) {
                let figure = |column: &Column, on, system| {
                    results.figure(workload, &variant, on, system, column.figure)
                };
                let cell = |column: &Column| {
                    let Some(theirs) = figure(column, on, system) else { return String::new() };
                    // Where ours cannot be, it is on Postgres.
                    let ours = figure(column, on, OURS).or(figure(column, On::Postgres, OURS));
                    cell(column, theirs, ours.filter(|_| system != OURS))
                };
                let cells: Vec<String> = columns.iter().map(cell).collect();
                if cells.iter().any(|cell| !cell.is_empty()) {
                    let system =
                        if system == OURS { format!("**{system}**") } else { system.to_owned() };
                    writeln!(
                        out,
                        "| {}, {variant} | {system} | {} |",
                        on.name(),
                        cells.join(" | ")
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// The median; how far the rounds were from it where that is much; and how ours compares.
fn cell(column: &Column, theirs: Figure, ours: Option<Figure>) -> String {
    let Column { unit, digits, ratio, .. } = *column;
    let mut cell = number(theirs.median / unit, digits);
    let spread = (theirs.most - theirs.least) / 2.0 / theirs.median;
    if ratio.is_some() && spread > 0.1 {
        cell += &format!(" ±{:.0} %", 100.0 * spread);
    }
    if let (Some(better), Some(ours)) = (ratio, ours) {
        let ratio = match better {
            Better::More => ours.median / theirs.median,
            Better::Less => theirs.median / ours.median,
        };
        cell += &format!(" ({ratio:.2}×)");
    }
    cell
}

/// With a comma at each thousand.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Who failed at its own job, how often, and the first reason.
fn failures(out: &mut String, results: &Results) -> Result<()> {
    let failed: Vec<_> = results.failures().collect();
    writeln!(out, "\n## What went wrong in this run\n")?;
    if failed.is_empty() {
        writeln!(out, "Nothing: no error, no lease lost, no lock held twice, none stuck.")?;
        return Ok(());
    }
    writeln!(out, "| work | server | system | round | what |\n|---|---|---|--:|---|")?;
    for sample in failed {
        let count = |name: &str, what: &str| {
            let count = sample.figures.get(name).filter(|count| **count > 0.0)?;
            Some(format!("{count:.0} {what}"))
        };
        let mut what: Vec<String> = [
            ("failed", "run failed"),
            ("errors", "errors"),
            ("lost", "leases lost"),
            ("double_grants", "times held twice"),
            ("stuck", "locks stuck"),
        ]
        .iter()
        .filter_map(|(name, what)| count(name, what))
        .collect();
        if let Some(error) = &sample.error {
            let error: String = error.chars().take(160).collect();
            what.push(error.replace('|', "/").replace('\n', " "));
        }
        writeln!(
            out,
            "| {}, {} | {} | {} | {} | {} |",
            sample.workload,
            sample.variant,
            sample.server,
            sample.system,
            sample.round + 1,
            what.join("; ")
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(999.5, 1), "999.5");
        assert_eq!(number(12_345.678, 2), "12,345.68");
        assert_eq!(number(-1234.0, 0), "-1,234");
    }
}
