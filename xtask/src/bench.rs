//! `cargo xtask bench`: builds the benchmark and whom it measures, and starts it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::run;
use crate::install;

/// What is built apart from the workspace, each with dependencies of its own.
const PEERS: &str = "benches/peers";

/// Passes `arguments` on to the benchmark.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let mut build = Command::new("cargo");
    build.args(["build", "--workspace", "--all-features", "--bins"]);
    let mut profile = "debug";
    if smoke {
        install::whatever_is_missing()?;
    } else {
        install::whatever_is_missing_for_peers()?;
        profile = "release";
        build.arg("--release");
        build_peers(&target.join("peers"))?;
    }
    run(&mut build)?;
    run(Command::new(target.join(profile).join("bench")).args(arguments))
}

/// A peer that does not build is left out, and the benchmark says so.
fn build_peers(target: &Path) -> Result<()> {
    for folder in std::fs::read_dir(PEERS).context("run this from the project's root")? {
        let manifest = folder?.path().join("Cargo.toml");
        if manifest.exists() {
            let mut build = Command::new("cargo");
            build.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
            println!("building {}", manifest.display());
            if let Err(error) = run(build.arg(&manifest).arg("--target-dir").arg(target)) {
                println!("{error:#}: this peer is left out");
            }
        }
    }
    Ok(())
}
