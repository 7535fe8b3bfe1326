//! `cargo xtask bench`: builds the benchmark and whom it measures, and starts it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{run, succeeds};
use crate::install;

/// What is built apart from the workspace, each with dependencies of its own.
const PEERS: &str = "benches/peers";

/// Passes `arguments` on to the benchmark.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let mut build = Command::new("cargo");
    build.args(["build", "--workspace", "--all-features", "--bins"]);
    let mut profile = "debug";
    if smoke {
        install::whatever_is_missing()?;
    } else {
        install::whatever_is_missing_for_peers()?;
        profile = "release";
        build.arg("--release");
        build_peers()?;
    }
    run(&mut build)?;
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    run(Command::new(target.join(profile).join("bench")).args(arguments))
}

/// A peer that does not build is left out, and the benchmark says so.
fn build_peers() -> Result<()> {
    let folders = std::fs::read_dir(PEERS).context("run this from the project's root")?;
    for folder in folders {
        let manifest = folder?.path().join("Cargo.toml");
        if manifest.exists() {
            println!("building {}", manifest.display());
            let manifest = manifest.display().to_string();
            succeeds(
                "cargo",
                &[
                    "build",
                    "--release",
                    "--locked",
                    "--manifest-path",
                    &manifest,
                    "--target-dir",
                    "target/peers",
                ],
            );
        }
    }
    Ok(())
}
