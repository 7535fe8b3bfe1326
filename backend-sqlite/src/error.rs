//! What SQLite reports, as the errors of this library.

use std::path::Path;

use database_locks_core::{Error, ErrorKind};

/// The name of this backend in errors and logs.
pub(crate) const BACKEND: &str = "sqlite";

/// The error of `operation` on the file at `path`.
pub(crate) fn classify(error: sqlx::Error, path: &Path, operation: &'static str) -> Error {
    let (kind, advice) = match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse().ok());
            by_code(code.unwrap_or(0), database.message())
        }
        sqlx::Error::WorkerCrashed => {
            (ErrorKind::Unavailable, "the thread of the connection ended; try again")
        }
        sqlx::Error::Io(_) => {
            (ErrorKind::Unavailable, "no thread could be started for a connection; try again")
        }
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            (ErrorKind::Backend, "a row is malformed; find out who wrote it, and delete it")
        }
        _ => (ErrorKind::Backend, "see the source of this error"),
    };
    Error::new(kind, format!("{path:?}: {error}: {advice}"))
        .with_backend(BACKEND)
        .with_operation(operation)
        .with_source(error)
}

/// `SQLITE_BUSY`.
const BUSY: i32 = 5;

/// Whether another process has the file locked.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == BUSY)
}

/// The file was replaced by another one while it was being opened.
pub(crate) fn replaced(path: &Path) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{path:?} was replaced by another file while it was being opened; try again"),
    )
}

/// By SQLite's extended result code, <https://sqlite.org/rescode.html>.
fn by_code(code: i32, message: &str) -> (ErrorKind, &'static str) {
    const MOVED: i32 = 1032;
    match (code, code & 0xff) {
        (MOVED, _) => (ErrorKind::Unavailable, "the file was moved or deleted; try again"),
        (_, BUSY | 6 | 15) => (
            ErrorKind::Unavailable,
            "another process kept the file locked for longer than the busy timeout; try again, \
             and look for a program that holds a transaction open on it",
        ),
        (_, 13) => (ErrorKind::Unavailable, "the disk is full; free some space"),
        (_, 7) => (ErrorKind::Unavailable, "memory ran out; try again"),
        (_, 3 | 8 | 23) => (
            ErrorKind::Permission,
            "give this user the right to write to the file, to its `-wal` and `-shm` files and to \
             the folder that they are in",
        ),
        (_, 14) => (
            ErrorKind::Permission,
            "the file, or a `-wal` or `-shm` file beside it, cannot be opened; check the rights, \
             and the limit of open files",
        ),
        (_, 26) => {
            (ErrorKind::InvalidOption, "name a SQLite database, or a file that is not there")
        }
        (_, 11) => (ErrorKind::Backend, "move the damaged file away; a new one will be made"),
        (_, 10) => (ErrorKind::Backend, "the disk failed; look at the system's log"),
        (_, 1) if message.starts_with("no such table") => {
            (ErrorKind::NotMigrated, "somebody dropped the tables; connect again to have them made")
        }
        (_, 1) if message.contains("no column named") || message.starts_with("no such column") => (
            ErrorKind::NotMigrated,
            "the tables are not those of this version; choose other names with `?table=NAME`",
        ),
        _ => (ErrorKind::Backend, "see SQLite's list of result codes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_kinds() {
        for (code, message, kind) in [
            (5, "database is locked", ErrorKind::Unavailable),
            (517, "database is locked", ErrorKind::Unavailable),
            (261, "database is locked", ErrorKind::Unavailable),
            (13, "database or disk is full", ErrorKind::Unavailable),
            (1032, "attempt to write a readonly database", ErrorKind::Unavailable),
            (8, "attempt to write a readonly database", ErrorKind::Permission),
            (14, "unable to open database file", ErrorKind::Permission),
            (26, "file is not a database", ErrorKind::InvalidOption),
            (1, "no such table: x", ErrorKind::NotMigrated),
            (1, "no such column: l.owner", ErrorKind::NotMigrated),
            (1, "table x has no column named boot", ErrorKind::NotMigrated),
            (1, "near \"x\": syntax error", ErrorKind::Backend),
            (11, "database disk image is malformed", ErrorKind::Backend),
            (778, "disk I/O error", ErrorKind::Backend),
        ] {
            assert_eq!(by_code(code, message).0, kind, "{code} {message}");
        }
    }
}
