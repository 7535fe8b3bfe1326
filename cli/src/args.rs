//! What can be written on the command line.

#![expect(clippy::doc_markdown, reason = "these texts are shown as they are by --help")]

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use database_locks::{LockName, Owner, Retry, Ttl, parse_duration};

use crate::exit;

/// Runs commands under locks that live in a SQL database, and shows who holds what.
///
/// The database is the one of --url, else of DATABASE_LOCKS_URL, else an SQLite file in your
/// state folder that is made on first use: locks among the processes of one user on one host.
/// DATABASE_LOCKS_TABLE names a table other than the usual one.
///
/// A DURATION is a number of seconds (10, 0.5), or has units (250ms, 1m30s).
#[derive(Debug, Parser)]
#[command(name = "dblock", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    Run(Run),
    List(List),
    Migrate(Migrate),
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
    /// Ends a process group if the process that started this one dies or hangs.
    #[command(name = "__guard", hide = true)]
    Guard,
}

/// Waits for a lock, runs a command while holding it, and releases it.
///
/// The command gets DATABASE_LOCKS_NAME, DATABASE_LOCKS_TOKEN (a number that grows with every
/// grant of the lock, for what it writes to check), a process group of its own, and the standard
/// streams as they are. Signals are passed on to it. What is left of its process group when it
/// ends is ended too, before the lock is released: SIGTERM, and SIGKILL after 5 s at most.
///
/// If the lease is lost, the group gets SIGTERM, and SIGKILL before anybody else can get the lock.
/// If dblock itself is killed, or stopped for longer than the lease lives, the group is killed.
/// A process that leaves the group (setsid, a shell with job control) also leaves this protection.
///
/// With DATABASE_LOCKS_ENABLED=false the command runs at once, without a lock and a database, and a
/// warning says so; its token is then made of the time, as those of databases are.
#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) database: Database,

    /// How long to wait for the lock [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,

    /// Do not wait: give up at once if somebody else holds the lock
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,

    /// When to ask again for a lock that somebody else holds: each DURATION; never, which is
    /// --no-wait; or adaptive, which is quick at first
    #[arg(long, value_name = "DURATION", default_value = "adaptive", conflicts_with = "no_wait")]
    pub(crate) retry: Retry,

    /// How long the lease lives without being renewed: 100ms to 24h, or infinite [default:
    /// DATABASE_LOCKS_DEFAULT_TTL, else 10s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttl: Option<Ttl>,

    /// A renewal is due at the latest this long before the lease expires; it may come earlier
    /// [default: DATABASE_LOCKS_DEFAULT_TTL_RENEW, else 2s; half the TTL if that is less]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) renew_before: Option<Duration>,

    /// Do not renew the lease: a command that takes longer than the TTL is ended
    #[arg(long, conflicts_with = "renew_before")]
    pub(crate) no_renew: bool,

    /// How long a lease that has expired is still respected: on a Galera cluster at least what the
    /// clocks of its nodes may differ by
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "0s")]
    pub(crate) grace: Duration,

    /// Who holds the lock, for people to read. A live lease of the same owner is taken over, and
    /// ends there [default: HOST.PID, which takes nothing over]
    #[arg(long, value_parser = parse_owner)]
    pub(crate) owner: Option<Owner>,

    /// A file that shows in one digit what dblock is at: 0 idle, 1 waiting for the lock, 2 holding
    /// it. If dblock is killed by SIGKILL its last digit stays, though the command is killed too
    /// [default: DATABASE_LOCKS_STATUS_FILE, which the command then does not get, else no file]
    #[arg(long, value_name = "PATH")]
    pub(crate) status_file: Option<PathBuf>,

    /// The exit code if the lock is not obtained
    #[arg(long, value_name = "CODE", default_value_t = exit::NOT_OBTAINED)]
    pub(crate) not_obtained_exit: u8,

    /// The lock: 1 to 255 bytes of text
    #[arg(value_parser = parse_name)]
    pub(crate) name: LockName,

    /// The command to run, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Lists who holds which lock.
///
/// With --json it prints one array of objects with these fields: name, owner, token, attempt,
/// share ("exclusive", "shared" or "2 of 10"), weight, capacity, held_for_seconds,
/// remaining_seconds (null if it never expires), waited_for.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,

    /// Only locks whose name starts with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
}

/// Creates the tables, or brings them up to date; does no harm if they are.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) database: Database,

    /// Print the SQL instead, without touching the database
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Args)]
pub(crate) struct Database {
    /// The database: postgres://USER@HOST/NAME, mysql://USER@HOST/NAME or sqlite:PATH. Everybody on this host can see
    /// a password given here: better set DATABASE_LOCKS_URL [default: DATABASE_LOCKS_URL, else
    /// an SQLite file in your state folder]
    #[arg(long)]
    pub(crate) url: Option<String>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

/// Waits for a byte on a descriptor, and becomes a command.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    pub(crate) gate: RawFd,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

fn parse_name(text: &str) -> Result<LockName, database_locks::Error> {
    LockName::new(text)
}

fn parse_owner(text: &str) -> Result<Owner, database_locks::Error> {
    Owner::explicit(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
