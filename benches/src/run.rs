//! Samples: who does what, in turns, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use database_locks_bench_worker::{COUNT_WARM_UP, Job, Outcome, Section, Work, monotonic_nanos};
use serde::Serialize;

use crate::contenders::{Contender, OURS, On, Programs};
use crate::plan::{Effort, Variant, Workload, old_rows, variants};
use crate::servers::Servers;
use crate::stats::{jain, quantile};
use crate::worker::Worker;

/// What came of one contender, doing one size of one work, once.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) workload: &'static str,
    pub(crate) variant: String,
    pub(crate) system: &'static str,
    pub(crate) server: &'static str,
    pub(crate) round: usize,
    /// Named figures: times in µs unless the name says otherwise.
    pub(crate) figures: BTreeMap<String, f64>,
    /// The values at the hundredths from 0 to 99, and at 99.9.
    pub(crate) percentiles: Vec<f64>,
    /// Why there are no figures, or the first of the errors that were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Runs everything, and tells how it goes.
pub(crate) fn all(
    contenders: &[Contender],
    workloads: &[Workload],
    effort: Effort,
    programs: &Programs,
    servers: &mut Servers,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let began = Instant::now();
    for &workload in workloads {
        let took = Instant::now();
        println!("{} ({} s so far)", workload.title(), began.elapsed().as_secs());
        for variant in variants(workload, effort) {
            for round in 0..variant.rounds {
                // Another one goes first each time.
                let mut turn: Vec<&Contender> =
                    contenders.iter().filter(|contender| contender.does(workload)).collect();
                let first = round % turn.len().max(1);
                turn.rotate_left(first);
                for contender in turn {
                    let Some(command) = contender.command(programs)? else { continue };
                    let run = Run { contender, workload, variant: &variant, command, effort };
                    let sample = run.sample(round, servers);
                    println!("  {}", summary(&sample));
                    samples.push(sample);
                }
            }
        }
        println!("  took {} s", took.elapsed().as_secs());
    }
    Ok(samples)
}

fn summary(sample: &Sample) -> String {
    let Sample { variant, system, server, figures, error, .. } = sample;
    let shown = [
        "per_second",
        "p50",
        "p99",
        "hand_over_p50",
        "hand_over_p99",
        "recovery_ms",
        "lost",
        "double_grants",
        "stuck",
        "statements",
        "round_trips",
        "errors",
    ];
    let figures: Vec<String> = shown
        .iter()
        .filter_map(|name| figures.get(*name).map(|value| format!("{name} {value:.0}")))
        .collect();
    let error = error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
    format!("{server}, {system}, {variant}: {}{error}", figures.join(", "))
}

struct Run<'a> {
    contender: &'a Contender,
    workload: Workload,
    variant: &'a Variant,
    command: Vec<PathBuf>,
    effort: Effort,
}

impl Run<'_> {
    /// One sample. What fails is what the sample tells.
    fn sample(&self, round: usize, servers: &mut Servers) -> Sample {
        let outcome = match self.workload {
            Workload::Recovery => self.recovery(servers),
            Workload::Wait | Workload::Fleet => self.waiting(servers),
            Workload::Abandon => self.abandoned(servers),
            _ => self.measured(servers),
        };
        let outcome = outcome.unwrap_or_else(|error| Outcome {
            error: Some(format!("{error:#}")),
            figures: BTreeMap::from([("failed".to_owned(), 1.0)]),
            ..Outcome::default()
        });
        Sample {
            workload: self.workload.title(),
            variant: self.variant.name.clone(),
            system: self.contender.name,
            server: self.contender.on.name(),
            round,
            figures: outcome.figures,
            percentiles: outcome.percentiles,
            error: outcome.error,
        }
    }

    /// Workers side by side, whose outcomes are put together.
    fn measured(&self, servers: &mut Servers) -> Result<Outcome> {
        let on = self.contender.on;
        let url = match self.workload {
            Workload::Network => servers.far_url(on)?.to_owned(),
            Workload::Old => servers.old_url(on, old_rows(self.effort))?,
            Workload::Count => servers.counted_url(on)?.1.clone(),
            _ if self.contender.name == OURS => servers.url(on)?.to_owned(),
            _ => servers.single_url(on)?.to_owned(),
        };
        if self.workload == Workload::Count {
            servers.count_statements(on, true)?;
            let counted = self.counted(servers, &url);
            servers.count_statements(on, false)?;
            return counted;
        }
        let prefix = prefix();
        let mut workers = self.start(&url, &prefix, &self.variant.work, self.variant.processes)?;
        let cpu = servers.cpu_time(on)?;
        for worker in &mut workers {
            worker.go()?;
        }
        sleep(self.half_time());
        let connections: usize = workers.iter().map(Worker::connections).sum();
        let mut outcomes = Vec::new();
        for worker in &mut workers {
            outcomes.push(worker.outcome()?);
        }
        let used =
            servers.cpu_time(on)?.zip(cpu).map(|(after, before)| after.saturating_sub(before));
        for worker in workers {
            worker.end()?;
        }
        let mut outcome = together(outcomes);
        let figures = &mut outcome.figures;
        figures.insert("connections".to_owned(), connections as f64);
        if let Some(used) = used {
            figures.insert("server_cpu_seconds".to_owned(), used.as_secs_f64());
            if let Some(operations) = figures.get("operations") {
                let each = used.as_secs_f64() * 1e6 / operations;
                figures.insert("server_cpu".to_owned(), each);
            }
        }
        match self.workload {
            Workload::Hot | Workload::HotProcesses => turns(&mut outcome),
            Workload::HandOver => hand_overs(&mut outcome),
            _ => {}
        }
        Ok(outcome)
    }

    /// What so many pairs cost: by the server's counters, and by what passes a proxy.
    fn counted(&self, servers: &Servers, url: &str) -> Result<Outcome> {
        let on = self.contender.on;
        let [worker] = &mut self.start(url, &prefix(), &self.variant.work, 1)?[..] else {
            anyhow::bail!("one worker was asked for")
        };
        let traffic = || anyhow::Ok(servers.counted_url(on)?.0.traffic());
        let (before, passed_before) = (servers.counters(on)?, traffic()?);
        worker.go()?;
        let mut outcome = worker.outcome()?;
        let passed = traffic()?.since(passed_before);
        worker.kill()?;
        servers.await_sessions_end(on)?;
        // What the asking for counters costs, they count too.
        let asked = servers.counters(on)?;
        let after = servers.counters(on)?;
        let Work::Count { pairs } = self.variant.work else { anyhow::bail!("nothing to count") };
        let figures = &mut outcome.figures;
        for (name, value) in &asked {
            let idle = after.get(name).unwrap_or(value) - value;
            let spent = value - before.get(name).unwrap_or(value) - idle;
            // Postgres tells of a session when it has ended, its warm-up included. A pooler's do not end.
            let counted = match (on, *name) {
                (On::Postgres, "statements") => pairs,
                (On::Postgres, _) => pairs + COUNT_WARM_UP,
                (On::PgBouncer, "wal_bytes" | "fsyncs" | "transactions") => continue,
                _ => pairs,
            };
            figures.insert((*name).to_owned(), spent.max(0.0) / counted as f64);
        }
        for (name, value) in [
            ("round_trips", passed.round_trips),
            ("bytes_sent", passed.to_server),
            ("bytes_received", passed.to_client),
        ] {
            figures.insert(name.to_owned(), value as f64 / pairs as f64);
        }
        Ok(outcome)
    }

    /// A holder is killed while somebody waits.
    fn recovery(&self, servers: &Servers) -> Result<Outcome> {
        let url = servers.url(self.contender.on)?;
        let prefix = prefix();
        let Work::Once { ttl_ms } = self.variant.work else { anyhow::bail!("nothing to wait for") };
        let mut holders = self.start(url, &prefix, &Work::Sit { ttl_ms }, 1)?;
        let mut waiters = self.start(url, &prefix, &self.variant.work, 1)?;
        let (holder, waiter) = (&mut holders[0], &mut waiters[0]);
        waiter.go()?;
        // The waiter is settled, and the holder has renewed its lease at some moment.
        sleep(Duration::from_millis(ttl_ms / 2 + fastrand::u64(..ttl_ms / 2)));
        let killed = monotonic_nanos();
        holder.kill()?;
        let mut outcome = waiter.outcome()?;
        let from = outcome.sections.first().context("it was acquired")?.from;
        let ms = (from as f64 - killed as f64) / 1e6;
        outcome.figures.insert("recovery_ms".to_owned(), ms);
        Ok(outcome)
    }

    /// Many wait for what one process holds.
    fn waiting(&self, servers: &Servers) -> Result<Outcome> {
        let on = self.contender.on;
        let url = servers.url(on)?;
        let prefix = prefix();
        let Work::Wait { names, for_ms } = self.variant.work else {
            anyhow::bail!("nothing to wait for")
        };
        let hold = Work::Hold { leases: names, ttl_ms: 30_000, for_ms: 120_000 };
        let mut holders = self.start(url, &prefix, &hold, 1)?;
        holders[0].go()?;
        let mut workers = self.start(url, &prefix, &self.variant.work, self.variant.processes)?;
        let (before, cpu) = (servers.counters(on)?, servers.cpu_time(on)?);
        let began = Instant::now();
        for worker in &mut workers {
            worker.go()?;
        }
        sleep(Duration::from_millis(for_ms / 2));
        let connections: usize = workers.iter().map(Worker::connections).sum();
        let mut outcomes = Vec::new();
        for worker in &mut workers {
            outcomes.push(worker.outcome()?);
        }
        let seconds = began.elapsed().as_secs_f64();
        let (after, used) = (servers.counters(on)?, servers.cpu_time(on)?);
        let mut outcome = together(outcomes);
        let figures = &mut outcome.figures;
        figures.insert("connections".to_owned(), connections as f64);
        // On Postgres each statement of a waiter is a transaction of its own.
        for name in ["transactions", "statements"] {
            if let (Some(after), Some(before)) = (after.get(name), before.get(name))
                && after > before
            {
                figures.insert("queries_per_second".to_owned(), (after - before) / seconds);
                break;
            }
        }
        if let (Some(used), Some(cpu)) = (used, cpu) {
            let busy = used.saturating_sub(cpu).as_secs_f64() / seconds;
            figures.insert("server_cpu_percent".to_owned(), 100.0 * busy);
        }
        Ok(outcome)
    }

    /// What is left behind by those who have begun to acquire, and gave up.
    fn abandoned(&self, servers: &Servers) -> Result<Outcome> {
        let url = servers.url(self.contender.on)?;
        let prefix = prefix();
        let Work::Abandon { names } = self.variant.work else {
            anyhow::bail!("nothing to abandon")
        };
        let mut leaving = self.start(url, &prefix, &self.variant.work, 1)?;
        leaving[0].go()?;
        let mut outcome = leaving[0].outcome()?;
        // Whatever gives back in the background has had its time.
        sleep(Duration::from_secs(1));
        let mut probing = self.start(url, &prefix, &Work::Probe { names }, 1)?;
        probing[0].go()?;
        outcome.figures.append(&mut probing[0].outcome()?.figures);
        Ok(outcome)
    }

    /// Workers that are ready to go.
    fn start(&self, url: &str, prefix: &str, work: &Work, processes: usize) -> Result<Vec<Worker>> {
        let job = Job {
            system: self.contender.system.to_owned(),
            url: url.to_owned(),
            connections: self.contender.connections,
            prefix: prefix.to_owned(),
            work: work.clone(),
        };
        let mut workers = Vec::new();
        for process in 0..processes {
            let mut job = job.clone();
            if matches!(work, Work::Pairs { .. }) {
                job.prefix = format!("{prefix}-p{process}");
            }
            workers.push(Worker::start(&self.command, &job)?);
        }
        for worker in &mut workers {
            worker.await_ready()?;
        }
        Ok(workers)
    }

    /// Half of how long the work takes at least: a moment at which all is going on.
    fn half_time(&self) -> Duration {
        Duration::from_millis(match self.variant.work {
            Work::Pairs { for_ms, .. }
            | Work::Hot { for_ms, .. }
            | Work::HandOver { for_ms }
            | Work::Hold { for_ms, .. } => for_ms / 2,
            Work::Crowd { ttl_ms, .. } => ttl_ms,
            _ => 0,
        })
    }
}

/// What several workers did at once. Of what cannot be added, the worst counts.
fn together(outcomes: Vec<Outcome>) -> Outcome {
    if outcomes.len() == 1 {
        return outcomes.into_iter().next().unwrap_or_default();
    }
    let mut all = Outcome::default();
    for (worker, outcome) in outcomes.into_iter().enumerate() {
        for (name, value) in outcome.figures {
            let added = matches!(
                name.as_str(),
                "operations"
                    | "per_second"
                    | "errors"
                    | "client_cpu_seconds"
                    | "lost"
                    | "resident_bytes"
            );
            let name = if name == "task_0" { format!("task_{worker}") } else { name };
            let figure = all.figures.entry(name).or_insert(0.0);
            *figure = if added { *figure + value } else { figure.max(value) };
        }
        all.sections.extend(outcome.sections);
        all.error = all.error.or(outcome.error);
    }
    all
}

/// How the turns on one name went: how many, how fair, and whether two had one at once.
fn turns(outcome: &mut Outcome) {
    let mut sections = std::mem::take(&mut outcome.sections);
    sections.sort_by_key(|section| section.from);
    let waits: Vec<f64> = sections.iter().map(|s| (s.from - s.asked) as f64 / 1e3).collect();
    let counts: Vec<f64> = outcome
        .figures
        .iter()
        .filter(|(name, _)| name.starts_with("task_"))
        .map(|(_, count)| *count)
        .collect();
    let figures = &mut outcome.figures;
    figures.retain(|name, _| !name.starts_with("task_"));
    let mean = waits.iter().sum::<f64>() / waits.len().max(1) as f64;
    let worst = waits.iter().copied().fold(0.0, f64::max);
    figures.insert("mean_wait".to_owned(), mean);
    figures.insert("worst_wait".to_owned(), worst);
    figures.insert("fairness".to_owned(), jain(&counts));
    figures.insert("double_grants".to_owned(), overlaps(&sections) as f64);
}

/// How often somebody held a lock that somebody else still held.
fn overlaps(sections: &[Section]) -> usize {
    sections.windows(2).filter(|two| two[1].from < two[0].to).count()
}

/// How long it took from a release to the grant, where somebody waited for it.
fn hand_overs(outcome: &mut Outcome) {
    let mut sections = std::mem::take(&mut outcome.sections);
    sections.sort_by_key(|section| section.from);
    let mut took: Vec<f64> = sections
        .windows(2)
        .filter(|two| two[1].asked < two[0].to)
        .map(|two| (two[1].from as f64 - two[0].to as f64) / 1e3)
        .collect();
    took.sort_by(f64::total_cmp);
    let figures = &mut outcome.figures;
    figures.insert("hand_overs".to_owned(), took.len() as f64);
    figures.insert("double_grants".to_owned(), overlaps(&sections) as f64);
    if !took.is_empty() {
        figures.insert("hand_over_p50".to_owned(), quantile(&took, 0.5));
        figures.insert("hand_over_p99".to_owned(), quantile(&took, 0.99));
        let hundredths = (0..100).map(|hundredth| f64::from(hundredth) / 100.0);
        outcome.percentiles = hundredths.chain([0.999]).map(|at| quantile(&took, at)).collect();
    }
}

/// Names that no other sample uses.
fn prefix() -> String {
    format!("bench-{:08x}", fastrand::u32(..))
}

/// The servers that these contenders need.
pub(crate) fn servers(contenders: &[Contender]) -> BTreeSet<On> {
    contenders.iter().map(|contender| contender.on).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(asked: u64, from: u64, to: u64) -> Section {
        Section { asked: asked * 1_000, from: from * 1_000, to: to * 1_000 }
    }

    #[test]
    fn two_who_hold_at_once_are_seen() {
        assert_eq!(overlaps(&[section(0, 1, 3), section(0, 3, 4), section(0, 5, 6)]), 0);
        assert_eq!(overlaps(&[section(0, 1, 3), section(0, 2, 4)]), 1);
    }

    #[test]
    fn a_hand_over_counts_from_the_release_where_somebody_waited() {
        let sections = vec![section(0, 1, 10), section(5, 12, 20), section(30, 31, 40)];
        let mut outcome = Outcome { sections, ..Outcome::default() };
        hand_overs(&mut outcome);
        assert_eq!(outcome.figures["hand_overs"], 1.0);
        assert_eq!(outcome.figures["hand_over_p50"], 2.0);
    }
}
