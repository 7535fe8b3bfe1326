//! How `dblock` ends: its exit codes, those of `sysexits.h` where there is one, and the message
//! that goes with them.

use std::fmt::Display;
use std::future::Future;
use std::io::Write;

use database_locks::{Error, ErrorKind};

/// Bad usage: an unknown option, a name or an option that cannot be used.
pub(crate) const USAGE: u8 = 64;
/// The database could not be reached.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The lease was lost while the command ran, and the command was ended.
pub(crate) const LOST: u8 = 70;
/// The system refused a process, a pipe or a folder.
pub(crate) const SYSTEM: u8 = 71;
/// The database reported something else.
pub(crate) const DATABASE: u8 = 74;
/// The lock was not obtained, unless the user chose another code.
pub(crate) const NOT_OBTAINED: u8 = 75;
/// The database refused the credentials, or a right.
pub(crate) const PERMISSION: u8 = 77;
/// Something has to be set up first: the tables, or where the database is.
pub(crate) const CONFIGURATION: u8 = 78;
/// The command cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// The list that `--help` shows.
pub(crate) const HELP: &str = "\
Exit codes of run:
  the command's own; 128 + n if signal n ended it, or ended the wait for the lock
   64  bad usage: an option, a name or a URL that cannot be used
   69  the database could not be reached
   70  the lease was lost while the command ran, and the command was ended
   71  the system refused a process, a pipe or a folder
   74  the database reported something else
   75  the lock was not obtained (--not-obtained-exit sets another code)
   77  the database refused the credentials, or a right
   78  something has to be set up first: the tables, or where the database is
  126  the command cannot be executed
  127  the command was not found";

/// An end other than the one that was hoped for.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Lower case, without a full stop.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The system refused `what`.
    pub(crate) fn system(what: &str, error: impl Display) -> Self {
        Self::new(SYSTEM, format!("{what}: {error}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::InvalidName
            | ErrorKind::InvalidOption
            | ErrorKind::Unsupported
            | ErrorKind::CapacityMismatch => USAGE,
            ErrorKind::Unavailable => UNAVAILABLE,
            ErrorKind::Lost => LOST,
            ErrorKind::Timeout => NOT_OBTAINED,
            ErrorKind::Permission => PERMISSION,
            ErrorKind::NotMigrated => CONFIGURATION,
            _ => DATABASE,
        };
        let message = match error.kind() {
            ErrorKind::NotMigrated => format!("{error} (dblock migrate creates the tables)"),
            _ => error.to_string(),
        };
        Self { code, message }
    }
}

/// Tells the user something on standard error, also when nobody reads it any more.
pub(crate) fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "dblock: {message}");
}

/// Runs asynchronous work to its end on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("no event loop", error))?
        .block_on(work)
}
