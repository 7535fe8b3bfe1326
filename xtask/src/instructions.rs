//! `cargo xtask instructions`: how many instructions core's hot paths take, beside those of before.
//!
//! Unlike time, that hardly depends on the machine and on what else runs there.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::command;

/// What has been counted before, and by which compiler.
const BASELINE: &str = "instructions/baseline.txt";

/// Counts of one program differ by a thousandth, since hashes have random seeds. The rest is for the C library and the
/// processor, for which it chooses other code.
const TOLERANCE_PERCENT: u64 = 2;

/// What is counted: a name, the program's argument, and a small and a large number of times. What comes before and
/// after is in both, and so is not counted.
const PATHS: [(&str, &str, [u64; 2]); 2] = [
    ("a pair of acquire and release", "pairs", [1_000, 6_000]),
    ("a minute of holding a thousand leases", "minutes", [1, 7]),
];

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Writes what is counted to the baseline, to be committed.
    #[arg(long)]
    renew: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !command::succeeds("valgrind", &["--version"]) {
        ensure!(!options.renew, "valgrind is not installed: `apt-get install valgrind`");
        println!("nothing is counted: valgrind is not installed (`apt-get install valgrind`)");
        return Ok(());
    }
    let compiler = compiler()?;
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    // A folder of its own, so that nobody else's features and flags get into the program.
    let target = Path::new(&target).join("instructions");
    let build = ["build", "--quiet", "--release", "--package=instructions", "--target-dir"];
    command::run(Command::new("cargo").args(build).arg(&target).env("RUSTFLAGS", ""))?;
    let program = target.join("release/instructions");

    let mut counted = Vec::new();
    for (name, path, [few, many]) in PATHS {
        let more = count(&program, path, many)?.saturating_sub(count(&program, path, few)?);
        counted.push((name, more / (many - few)));
    }
    if options.renew {
        let mut text = format!("{compiler}\n");
        for (name, count) in &counted {
            writeln!(text, "{name}: {count}")?;
        }
        print!("{text}");
        return fs::write(BASELINE, text).with_context(|| format!("cannot write {BASELINE}"));
    }

    let text = fs::read_to_string(BASELINE).with_context(|| format!("cannot read {BASELINE}"))?;
    let (their_compiler, baseline) = text.split_once('\n').unwrap_or((&text, ""));
    let mut others = Vec::new();
    for (name, count) in counted {
        let before = expected(baseline, name)?;
        println!("{name}: {count} instructions, {before} before");
        if count.abs_diff(before) * 100 > before * TOLERANCE_PERCENT {
            others.push(name);
        }
    }
    if their_compiler != compiler {
        println!("nothing is compared: this is {compiler}, and before it was {their_compiler}");
    } else if !others.is_empty() {
        bail!(
            "the instructions of {} are not within {TOLERANCE_PERCENT} % of those of before: find out why, or accept \
             them by `cargo xtask instructions --renew`",
            others.join(" and ")
        );
    }
    Ok(())
}

/// The instructions of a whole run.
fn count(program: &Path, path: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([path, &times.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the program failed under valgrind; it said:\n{said}");
    let count =
        said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.with_context(|| format!("valgrind counted nothing; it said:\n{said}"))
}

/// The compiler that cargo runs, and what it compiles for.
fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    Ok(format!("{} for {host}", text.lines().next().unwrap_or_default()))
}

fn expected(baseline: &str, name: &str) -> Result<u64> {
    let line = baseline.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let count = line.and_then(|count| count.parse().ok());
    count.with_context(|| {
        format!("{BASELINE} does not have {name}: `cargo xtask instructions --renew`")
    })
}
