//! The benchmark: database-locks beside the bare statements, other people's locks and other worlds, in one run.
//!
//! `cargo xtask bench` builds everything and starts this.

mod bars;
mod contenders;
mod plan;
mod plots;
mod report;
mod results;
mod run;
mod servers;
mod stats;
mod worker;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;

use crate::bars::Bar;
use crate::contenders::{On, Programs};
use crate::plan::{Effort, Workload};
use crate::results::Results;
use crate::run::Sample;
use crate::servers::Servers;

const SMOKE: [On; 4] = [On::Postgres, On::MariaDb, On::Sqlite, On::Memory];

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measures database-locks beside its peers")]
struct Options {
    /// Fewer sizes and one round: within ten minutes.
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Each work for a moment, without the peers: does all of it run?
    #[arg(long)]
    smoke: bool,
    /// Writes all samples and the bars to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this work; may be repeated.
    #[arg(long, value_name = "WORKLOAD", value_enum)]
    only: Vec<Workload>,
    /// Only what works on these servers.
    #[arg(value_enum)]
    servers: Vec<On>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Document<'a> {
    servers: Vec<(&'static str, &'a str)>,
    bars: &'a [Bar],
    samples: &'a [Sample],
}

fn main() -> Result<()> {
    let options = Options::parse();
    let began = Instant::now();
    let effort = match (options.quick, options.smoke) {
        (true, _) => Effort::Quick,
        (_, true) => Effort::Smoke,
        _ => Effort::Full,
    };
    let workloads: Vec<Workload> = Workload::ALL
        .into_iter()
        .filter(|workload| options.only.is_empty() || options.only.contains(workload))
        .collect();
    let contenders: Vec<_> = contenders::all()
        .into_iter()
        .filter(|one| match &options.servers[..] {
            // One server of each family is enough to see that all of it runs.
            [] if effort == Effort::Smoke => SMOKE.contains(&one.on),
            [] => true,
            chosen => chosen.contains(&one.on),
        })
        .filter(|one| effort != Effort::Smoke || !one.is_peer())
        .filter(|one| workloads.iter().any(|workload| one.does(*workload)))
        .collect();
    ensure!(!contenders.is_empty(), "nobody does that work on these servers");
    let programs = Programs::find()?;
    for peer in &contenders {
        if peer.command(&programs)?.is_none() {
            println!("{} was not built and is left out", peer.name);
        }
    }
    let mut servers = Servers::start(&run::servers(&contenders), programs.ours())?;
    let described = servers.descriptions()?;
    let samples = run::all(&contenders, &workloads, effort, &programs, &mut servers)?;
    let results = Results(samples);
    let bars = bars::bars(&results, &contenders);

    if let Some(path) = &options.json {
        let servers =
            described.iter().map(|(on, description)| (on.name(), description.as_str())).collect();
        let document = Document { servers, bars: &bars, samples: &results.0 };
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Only a whole run speaks for the project.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a folder above")?;
    let whole = effort == Effort::Full && options.only.is_empty() && options.servers.is_empty();
    let folder = if whole { root.to_owned() } else { root.join("target/bench") };
    let plots = plots::draw(&results, &folder.join("benches/plots"))?;
    let command = command(&options);
    let report = report::report(&results, &bars, &described, &plots, &command)?;
    let path = folder.join("BENCHMARKS.md");
    std::fs::write(&path, report).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} is written; {} s in all", path.display(), began.elapsed().as_secs());

    // Whatever of ours did not even run is a defect, however fast the rest is.
    let broken: Vec<String> = results
        .0
        .iter()
        .filter(|sample| sample.figures.contains_key("failed"))
        .filter(|sample| effort == Effort::Smoke || sample.system == contenders::OURS)
        .map(|s| {
            format!(
                "{}, {}, {}: {}",
                s.workload,
                s.server,
                s.system,
                s.error.as_deref().unwrap_or("")
            )
        })
        .collect();
    ensure!(broken.is_empty(), "did not run:\n{}", broken.join("\n"));
    Ok(())
}

fn command(options: &Options) -> String {
    let mut words = vec!["cargo xtask bench".to_owned()];
    if options.quick {
        words.push("--quick".to_owned());
    }
    if options.smoke {
        words.push("--smoke".to_owned());
    }
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    use clap::ValueEnum as _;
    for workload in &options.only {
        words.push(format!("--only {}", name(&|| workload.to_possible_value())));
    }
    for on in &options.servers {
        words.push(name(&|| on.to_possible_value()));
    }
    words.join(" ")
}
