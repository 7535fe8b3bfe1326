//! `cargo xtask test`: everything that has to hold before a change lands.

use std::env;
use std::iter;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use database_locks_test_servers::Redis;

use crate::{bench, command, install, instructions, test_programs};

/// The backends of `database-locks`, each of which builds alone and with any others.
const BACKENDS: [&str; 4] = ["memory", "sqlite", "mysql", "postgres"];
/// Its features that only add a name: each is checked without any backend, and all of them with all.
const NAMES: [&str; 2] = ["macros", "metrics"];

/// The drivers of `database-locks-fence`, each of which builds alone, as does the crate without any.
const DRIVERS: [&str; 6] = [
    "tokio-postgres",
    "deadpool-postgres",
    "sqlx-postgres",
    "sqlx-mysql",
    "sqlx-sqlite",
    "mysql_async",
];

#[derive(Args)]
pub(crate) struct Options {
    /// Runs only these steps.
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// The seconds that each test program may take, before it is killed and says what it waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Passed on to the test programs, for example a part of a test's name.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Installs servers that are missing, and a Python with Django.
    Install,
    /// Checks the format.
    Format,
    /// Lints the workspace, `database-locks` in every combination of its backends, and each driver of its fences alone.
    Lint,
    /// Builds with the declared `rust-version`.
    RustVersion,
    /// Builds the documentation.
    Docs,
    /// Runs all tests, doctests included.
    Tests,
    /// Runs the examples, and the README's first command.
    Examples,
    /// Counts the instructions of core's hot paths.
    Instructions,
    /// Runs each work of the benchmark for a moment.
    Bench,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    for step in Step::value_variants() {
        if !options.only.is_empty() && !options.only.contains(step) {
            continue;
        }
        let name =
            step.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("\n==> {name}");
        let start = Instant::now();
        let done = match step {
            Step::Install => install::whatever_is_missing(),
            Step::Format => cargo(&["fmt", "--all", "--check"]),
            Step::Lint => lint(),
            Step::RustVersion => rust_version(),
            Step::Docs => cargo(&["doc", "--workspace", "--all-features", "--no-deps"]),
            Step::Tests => {
                test_programs::run_all(&options.arguments, Duration::from_secs(options.limit))
            }
            Step::Examples => examples(),
            Step::Instructions => instructions::run(&instructions::Options::default()),
            Step::Bench => bench::bench(&["--smoke".to_owned()]),
        };
        done.with_context(|| {
            format!("{name} failed; run it alone by `cargo xtask test --only {name}`")
        })?;
        println!("==> {name} done in {} s", start.elapsed().as_secs());
    }
    Ok(())
}

fn lint() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])?;
    let chosen = (0..1_usize << BACKENDS.len()).map(|chosen| {
        let backends = BACKENDS.iter().enumerate();
        backends
            .filter(|(i, _)| chosen >> i & 1 == 1)
            .map(|(_, f)| *f)
            .collect::<Vec<_>>()
            .join(",")
    });
    for features in chosen.chain(NAMES.map(str::to_owned)) {
        lint_alone("database-locks", &features)?;
    }
    for driver in iter::once("").chain(DRIVERS) {
        lint_alone("database-locks-fence", driver)?;
    }
    Ok(())
}

fn lint_alone(package: &str, features: &str) -> Result<()> {
    cargo(&[
        "clippy",
        &format!("--package={package}"),
        "--no-default-features",
        &format!("--features={features}"),
        "--",
        "-D",
        "warnings",
    ])
}

/// The lints and tests have built everything already where this toolchain is of that version.
fn rust_version() -> Result<()> {
    let declared = env!("CARGO_PKG_RUST_VERSION");
    let current = Command::new("rustc").arg("--version").output()?;
    let current = String::from_utf8(current.stdout)?;
    let current = current.split(' ').nth(1).unwrap_or_default();
    if current == declared || current.starts_with(&format!("{declared}.")) {
        println!("this is {declared}");
        return Ok(());
    }
    let toolchain = format!("+{declared}");
    ensure!(
        Command::new("cargo")
            .args([&toolchain, "--version"])
            .status()
            .is_ok_and(|status| status.success()),
        "rust {declared}, the declared rust-version, is not installed: `rustup toolchain install {declared}`"
    );
    // A folder of its own, so that two compilers do not evict each other's artefacts.
    command::run(Command::new("cargo").args([
        &toolchain,
        "check",
        "--workspace",
        "--all-features",
        "--target-dir=target/rust-version",
    ]))
}

fn examples() -> Result<()> {
    let redis = Redis::start()?;
    for example in
        std::fs::read_dir("database-locks/examples").context("run this from the project's root")?
    {
        let path = example?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let arguments =
                ["run", "--quiet", "--package=database-locks", "--all-features", "--example", name];
            command::run(Command::new("cargo").args(arguments).env("REDIS_URL", redis.url()))?;
        }
    }
    let state = env::temp_dir().join(format!("dblock-readme-{}", std::process::id()));
    let command = ["run", "-p", "dblock", "--", "run", "nightly", "--", "echo", "only one of me"];
    let output = Command::new("cargo").args(command).env("XDG_STATE_HOME", &state).output()?;
    let _ = std::fs::remove_dir_all(&state);
    ensure!(
        output.status.success(),
        "the README's first command failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.stdout == b"only one of me\n",
        "the README's first command printed something else"
    );
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    command::run(Command::new("cargo").args(arguments).env("RUSTDOCFLAGS", "-Dwarnings"))
}
