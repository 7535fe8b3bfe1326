//! What the databases' refusals of a fence mean: the only place that classifies them.

use std::error::Error as StdError;

use database_locks_core::fence::Dialect;
use database_locks_core::{Error, ErrorKind};

/// The lease is not alive, or somebody else has the lock.
pub(crate) fn lost() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the database says that the lease has ended: roll back, because somebody else may have the lock",
    )
}

/// The lock is not in the database of the transaction.
pub(crate) fn elsewhere() -> Error {
    Error::new(
        ErrorKind::InvalidOption,
        "the database of this transaction does not know the lock: begin the transaction in the database that \
         keeps the locks (or its row was deleted, and the lease has ended); roll back",
    )
}

/// The transaction is of another kind of database than the lease.
pub(crate) fn of_another_kind(lease: Dialect, transaction: Dialect) -> Error {
    Error::new(
        ErrorKind::InvalidOption,
        format!(
            "a {transaction} transaction cannot be fenced by a lease on {lease}: both have to be of one database"
        ),
    )
}

/// What a database answered instead: its `code`, where it was the database that said so.
pub(crate) fn failed(
    dialect: Dialect,
    code: Option<&str>,
    said: &str,
    source: impl StdError + Send + Sync + 'static,
) -> Error {
    let code = code.unwrap_or_default();
    let meaning = match dialect {
        Dialect::Postgres => postgres(code),
        Dialect::MySql => mysql(code),
        Dialect::Sqlite => sqlite(code, said),
        _ => Meaning::Other,
    };
    let (kind, message) = match meaning {
        Meaning::Lost => return lost().with_source(source),
        Meaning::Elsewhere => return elsewhere().with_source(source),
        Meaning::NotMigrated => (
            ErrorKind::NotMigrated,
            format!(
                "the database of this transaction lacks the fence ({said}): run `dblock migrate`, or begin the \
                 transaction in the database that keeps the locks"
            ),
        ),
        Meaning::NoTransaction => (ErrorKind::InvalidOption, format!("{said}: send BEGIN first")),
        Meaning::ReadOnly => (
            ErrorKind::InvalidOption,
            format!("a fence locks a row ({said}): begin a transaction that may write"),
        ),
        Meaning::Denied => (
            ErrorKind::Permission,
            format!(
                "the user of this transaction lacks a right ({said}): grant it select and update on the lock \
                 table and its _share table, and on Postgres usage on the schema and execute on the fence"
            ),
        ),
        Meaning::Conflict => (
            ErrorKind::Unavailable,
            format!(
                "others were at the lock at the same time ({said}): roll back, and run the transaction again with \
                 the fence before anything else"
            ),
        ),
        Meaning::Unavailable => (
            ErrorKind::Unavailable,
            format!("the database gave up ({said}): roll back, and run the transaction again"),
        ),
        Meaning::Other => (ErrorKind::Backend, format!("the fence failed ({said}): roll back")),
    };
    Error::new(kind, message).with_source(source)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Lost,
    Elsewhere,
    NotMigrated,
    NoTransaction,
    ReadOnly,
    Denied,
    Conflict,
    Unavailable,
    Other,
}

/// By SQLSTATE.
fn postgres(code: &str) -> Meaning {
    match code {
        "55000" => Meaning::Lost,
        "P0002" => Meaning::Elsewhere,
        // No such function, schema or table.
        "42883" | "3F000" | "42P01" => Meaning::NotMigrated,
        "25P01" => Meaning::NoTransaction,
        "25006" => Meaning::ReadOnly,
        "42501" => Meaning::Denied,
        "40001" | "40P01" | "55P03" => Meaning::Conflict,
        // Nothing came from the server, or it has lost the connection, lacks something, was told to stop or broke.
        "" => Meaning::Unavailable,
        code if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => {
            Meaning::Unavailable
        }
        _ => Meaning::Other,
    }
}

/// By the server's error number.
fn mysql(code: &str) -> Meaning {
    match code {
        // No such table, column or database.
        "1146" | "1054" | "1049" => Meaning::NotMigrated,
        "1792" => Meaning::ReadOnly,
        "1044" | "1142" | "1143" => Meaning::Denied,
        // A deadlock or a failed certification, a row that stayed locked, a row that has changed since the snapshot.
        "1213" | "1205" | "1020" | "3101" => Meaning::Conflict,
        // Nothing came from the server, or it takes no writes, is in no quorum, was told to stop or broke.
        "" | "1290" | "1836" | "1047" | "1053" | "1317" | "1927" | "1969" | "3024" => {
            Meaning::Unavailable
        }
        _ => Meaning::Other,
    }
}

/// By SQLite's extended code.
fn sqlite(code: &str, said: &str) -> Meaning {
    const PRIMARY: u32 = 0xff;
    match code.parse().unwrap_or(0) & PRIMARY {
        // Busy, its snapshot being too old included, and locked.
        5 | 6 => Meaning::Conflict,
        8 => Meaning::ReadOnly,
        // It has one code for all that is wrong with a statement.
        1 if said.contains("no such table") => Meaning::Elsewhere,
        _ => Meaning::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_at_the_next_try_is_retryable() {
        let kind = |dialect, code: &str| {
            let code = (!code.is_empty()).then_some(code);
            failed(dialect, code, "no such table", std::io::Error::other("no such table")).kind()
        };
        for (dialect, code) in [
            (Dialect::Postgres, "40001"),
            (Dialect::Postgres, "57P01"),
            (Dialect::Postgres, ""),
            (Dialect::MySql, "1213"),
            (Dialect::MySql, "1205"),
            (Dialect::MySql, "1020"),
            (Dialect::Sqlite, "5"),
            (Dialect::Sqlite, "517"),
        ] {
            assert_eq!(kind(dialect, code), ErrorKind::Unavailable, "{dialect} {code}");
        }
        for (dialect, code, expected) in [
            (Dialect::Postgres, "55000", ErrorKind::Lost),
            (Dialect::Postgres, "25P01", ErrorKind::InvalidOption),
            (Dialect::Postgres, "25006", ErrorKind::InvalidOption),
            (Dialect::Postgres, "42501", ErrorKind::Permission),
            (Dialect::Postgres, "25P02", ErrorKind::Backend),
            (Dialect::MySql, "1142", ErrorKind::Permission),
            (Dialect::MySql, "1792", ErrorKind::InvalidOption),
            (Dialect::MySql, "1064", ErrorKind::Backend),
            (Dialect::Sqlite, "1", ErrorKind::InvalidOption),
            (Dialect::Sqlite, "8", ErrorKind::InvalidOption),
            (Dialect::Sqlite, "11", ErrorKind::Backend),
        ] {
            assert_eq!(kind(dialect, code), expected, "{dialect} {code}");
        }
    }
}
