//! The project's commands: `cargo xtask test`, `bench`, `instructions` and `with SERVER -- CMD…`.

mod bench;
mod cache;
mod command;
mod fetch_mysql;
mod fetch_postgres;
mod fetch_python;
mod install;
mod instructions;
mod processes;
mod test;
mod test_programs;
mod with;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tests and servers of database-locks")]
enum Command {
    /// Installs what the machine lacks, checks formats, lints, and runs every test, doctest and
    /// example, on every server.
    Test(test::Options),
    /// Measures database-locks beside its peers, on durable servers.
    #[command(disable_help_flag = true)]
    Bench {
        /// See `cargo xtask bench --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Counts the instructions of core's hot paths, and compares them with those of before.
    Instructions(instructions::Options),
    /// Runs a command with `DATABASE_LOCKS_URL` set to a fresh, empty throwaway server.
    With(with::Options),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Test(options) => test::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Bench { arguments } => bench::bench(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Instructions(options) => instructions::run(&options).map(|()| ExitCode::SUCCESS),
        Command::With(options) => with::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
