//! `dblock`: runs a command under a lock that lives in a SQL database, and shows who holds what.
//!
//! `dblock run` is made of three processes. The one that the user started holds the lease. It
//! starts the command in a process group of its own, and a [guardian] in a session of its own,
//! which ends that group if the first one dies, or hangs for longer than the lease lives.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "dblock needs Linux: it guards process groups by /proc and timers that run through suspend"
);

mod args;
mod child;
mod exit;
mod group;
mod guardian;
mod list;
mod migrate;
mod run;
mod settings;
mod signals;
mod terminal;
mod waiting;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Arguments, Subcommand};
use crate::exit::{Failure, say};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(help_or_error) => {
            // A closed standard stream is no reason to panic over a message.
            let _ = help_or_error.print();
            return ExitCode::from(if help_or_error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let outcome = match arguments.subcommand {
        Subcommand::Exec(exec) => return child::exec_behind_gate(&exec),
        Subcommand::Guard => return guardian::stand_guard(),
        Subcommand::Run(run) => {
            log_to_stderr();
            run::run(run)
        }
        Subcommand::List(list) => {
            log_to_stderr();
            list::list(&list)
        }
        Subcommand::Migrate(migrate) => {
            log_to_stderr();
            migrate::migrate(&migrate)
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, message }) => {
            say(&message);
            ExitCode::from(code)
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
