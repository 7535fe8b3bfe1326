//! A command with a server of its own.

use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use database_locks_test_servers::{PgBouncer, PoolMode, Postgres};

#[derive(Args)]
pub(crate) struct Options {
    server: Server,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Server {
    /// A Postgres.
    Postgres,
    /// A Postgres behind a `PgBouncer` in transaction mode.
    #[value(name = "pgbouncer")]
    PgBouncer,
}

/// Runs the command, and gives its exit code. The server is removed when this process ends,
/// however it does.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let postgres = Postgres::start()?;
    let status = match options.server {
        Server::Postgres => execute(&options.command, postgres.url())?,
        Server::PgBouncer => {
            let pooler = PgBouncer::start(&postgres, PoolMode::Transaction)?;
            execute(&options.command, pooler.url())?
        }
    };
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn execute(command: &[String], url: &str) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    Command::new(program)
        .args(arguments)
        .env("DATABASE_LOCKS_URL", url)
        .status()
        .with_context(|| format!("cannot run {program}"))
}
