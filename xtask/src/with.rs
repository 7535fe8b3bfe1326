//! A command with a server of its own.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use database_locks_test_servers::{Galera, MariaDb, MySql, PgBouncer, PoolMode, Postgres};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::SIGINT;

use crate::command::ending_signals;

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
    /// A MariaDB.
    #[value(name = "mariadb")]
    MariaDb,
    /// A MySQL.
    #[value(name = "mysql")]
    MySql,
    /// A Galera cluster of three nodes, all of them in one URL.
    Galera,
}

/// Runs the command, and gives its exit code. The server is removed when this process ends,
/// however it does.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let status = match options.server {
        Server::Postgres => execute(&options.command, Postgres::start()?.url())?,
        Server::PgBouncer => {
            let postgres = Postgres::start()?;
            let pooler = PgBouncer::start(&postgres, PoolMode::Transaction)?;
            execute(&options.command, pooler.url())?
        }
        Server::MariaDb => execute(&options.command, MariaDb::start()?.url())?,
        Server::MySql => execute(&options.command, MySql::start()?.url())?,
        Server::Galera => execute(&options.command, &Galera::start()?.urls())?,
    };
    // A shell, too, says 128 and the signal's number of a command that a signal has ended.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The server outlives the command, whatever signal comes. SIGTERM and SIGHUP are passed on to it;
/// a Ctrl-C reaches it without us, because it is in the terminal's foreground group as we are.
fn execute(command: &[String], url: &str) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    let mut signals = ending_signals()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("DATABASE_LOCKS_URL", url)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    thread::spawn(move || {
        for signal in signals.forever().filter(|signal| *signal != SIGINT) {
            let _ = Signal::try_from(signal).and_then(|signal| kill(pid, signal));
        }
    });
    Ok(child.wait()?)
}
