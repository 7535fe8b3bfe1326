//! What the driver's errors mean: the only place that classifies them.

use std::error::Error as StdError;
use std::io;

use database_locks_core::{Error, ErrorKind};
use deadpool::managed::PoolError;
use tokio_postgres::error::{DbError, SqlState};

/// A row was locked for longer than a statement was ready to wait.
pub(crate) fn is_row_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// The user may not do that, and nothing was done.
pub(crate) fn is_denied(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

/// A default of the session got in the way: the isolation level.
pub(crate) fn is_sessions_fault(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

/// Whether the connection that reported this must not be used again.
///
/// Whatever did not come from the server left the protocol in an unknown state, and a server that
/// is a standby, shuts down or ran out of something is better asked anew.
pub(crate) fn breaks_connection(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(|reported| {
        let code = reported.code().code();
        is_standbys(reported)
            || ["08", "25P03", "25P04", "57P", "58", "XX"]
                .iter()
                .any(|class| code.starts_with(class))
    })
}

/// An error of getting a connection. What connecting reports is classified already.
pub(crate) fn from_pool(error: PoolError<Error>, place: &str) -> Error {
    match error {
        PoolError::Backend(error) => error,
        other => unavailable(format!("no connection to {place} could be had: {other}")),
    }
}

/// An error of connecting or of a statement.
pub(crate) fn from_driver(error: tokio_postgres::Error, place: &str) -> Error {
    let result = match error.as_db_error() {
        Some(reported) => from_server(reported, place),
        None => from_this_side(&error, place),
    };
    result.with_backend(crate::NAME).with_source(error)
}

/// An error of changing the tables while somebody's transaction holds them.
pub(crate) fn tables_in_use(error: tokio_postgres::Error) -> Error {
    unavailable(
        "the lock table is in use by a transaction that does not end: try again, and see \
         pg_stat_activity for who it is"
            .to_owned(),
    )
    .with_source(error)
}

fn from_server(error: &DbError, place: &str) -> Error {
    let said = error.message();
    let (kind, message) = match error.code().code() {
        "42P01" | "42703" | "42883" | "3F000" | "42P10" => (
            ErrorKind::NotMigrated,
            format!(
                "the tables or functions of the locks are not as they should be ({said}): run `dblock migrate` \
                 or call migrate()"
            ),
        ),
        "42501" => (
            ErrorKind::Permission,
            format!(
                "the database user lacks a right ({said}): grant usage on the schema, execute on its \
                 functions, select, insert, update and delete on the lock table and its _share table, and \
                 usage on the sequence of the lock table where a Django before 4.1 made it"
            ),
        ),
        "28P01" => (
            ErrorKind::Permission,
            format!("the user or its password was refused ({said}): correct them in the URL"),
        ),
        "28000" => (
            ErrorKind::Permission,
            format!("the connection was refused ({said}): check the user and pg_hba.conf"),
        ),
        "3D000" => {
            (ErrorKind::InvalidOption, format!("{said}: create it, or name another one in the URL"))
        }
        // As pgbouncer refuses settings that a session would keep.
        "08P01" if said.contains("startup parameter") => (
            ErrorKind::InvalidOption,
            format!(
                "{place} takes no such parameter of the connection ({said}): remove it from the URL, or name it \
                 in pgbouncer's ignore_startup_parameters"
            ),
        ),
        _ if is_standbys(error) => return takes_no_writes(place),
        "53300" => (
            ErrorKind::Unavailable,
            format!(
                "{place} has no connection left ({said}): raise max_connections, or use a pooler"
            ),
        ),
        code if is_passing(code) && !is_violated(error) => (
            ErrorKind::Unavailable,
            format!("{place} gave up ({said}, {code}): it may be asked again"),
        ),
        code => (ErrorKind::Backend, format!("{place} reported {code}: {said}")),
    };
    Error::new(kind, message)
}

/// A standby refused a write, or a transaction that is to write.
///
/// For the latter it has a code of many meanings, which comes from there for no other setting that
/// this crate makes. The routine is not translated, unlike the message.
fn is_standbys(error: &DbError) -> bool {
    match *error.code() {
        SqlState::READ_ONLY_SQL_TRANSACTION => true,
        SqlState::FEATURE_NOT_SUPPORTED => error.routine() == Some("call_bool_check_hook"),
        _ => false,
    }
}

/// A protocol violation by what Postgres itself says, which is the same the next time. pgbouncer says this of
/// whatever it cannot do, such as to take one more client, and names no routine of its own.
fn is_violated(error: &DbError) -> bool {
    *error.code() == SqlState::PROTOCOL_VIOLATION && error.routine().is_some()
}

/// Serialization failures, deadlocks, row locks, cancelled statements, lost connections, servers
/// that start, stop or lack something for a while.
fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "40001" | "40P01" | "40003" | "55P03" | "55000" | "57014" | "25P02" | "25P03" | "25P04"
    ) || ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
}

fn from_this_side(error: &tokio_postgres::Error, place: &str) -> Error {
    let why = error.source().map(|why| format!(": {why}")).unwrap_or_default();
    // The driver tells these kinds apart only by their texts.
    let (kind, message) = match error.to_string().as_str() {
        "error performing TLS handshake" if !was_cut(error) => (
            ErrorKind::InvalidOption,
            format!(
                "no TLS connection to {place} could be made{why}; check sslmode and sslrootcert"
            ),
        ),
        "invalid configuration" if why.contains("password") => {
            (ErrorKind::Permission, format!("{place} asks for a password: give it in the URL"))
        }
        "invalid configuration" => {
            (ErrorKind::InvalidOption, format!("the URL cannot be used{why}; correct it"))
        }
        "authentication error" => (
            ErrorKind::Permission,
            format!("logging in to {place} failed{why}; check the password and channel_binding"),
        ),
        "error connecting to server" if why.contains("does not allow writes") => {
            return takes_no_writes(place);
        }
        said if said.starts_with("error serializing")
            || said.starts_with("error deserializing") =>
        {
            (ErrorKind::Backend, format!("{said}{why}; is the table's column of another type?"))
        }
        said => return out_of_reach(place, &format!("{said}{why}")),
    };
    Error::new(kind, message)
}

pub(crate) fn takes_no_writes(place: &str) -> Error {
    unavailable(format!(
        "{place} does not take writes, as a standby does not: name all hosts in the URL"
    ))
}

pub(crate) fn takes_writes(place: &str) -> Error {
    unavailable(format!(
        "{place} takes writes, which target_session_attrs forbids: correct the URL"
    ))
}

pub(crate) fn out_of_reach(place: &str, why: &str) -> Error {
    unavailable(format!("{place} cannot be reached ({why})"))
}

/// An error of something in the configuration that cannot be used.
pub(crate) fn unusable(message: String) -> Error {
    Error::new(ErrorKind::InvalidOption, message).with_backend(crate::NAME)
}

/// An answer that no statement of ours has.
pub(crate) fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorKind::Backend,
        format!("the server answered with {what:?}: are its tables of another version?"),
    )
    .with_backend(crate::NAME)
}

/// Whether the network failed, rather than TLS itself.
fn was_cut(error: &tokio_postgres::Error) -> bool {
    error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|error| {
        error.kind() != io::ErrorKind::InvalidData && error.kind() != io::ErrorKind::InvalidInput
    })
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, message).with_backend(crate::NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_codes_are_told_from_lasting_ones() {
        for code in
            ["40001", "40P01", "57P01", "57P03", "53300", "08006", "08P01", "57014", "25P03"]
        {
            assert!(is_passing(code), "{code}");
        }
        for code in ["42601", "22001", "23505", "42P01", "28P01"] {
            assert!(!is_passing(code), "{code}");
        }
    }
}
