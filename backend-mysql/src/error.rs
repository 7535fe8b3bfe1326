//! What the driver's errors mean: the only place that classifies them.

use std::io;

use database_locks_core::{Error, ErrorKind};
use deadpool::managed::PoolError;
use mysql_async::{DriverError, Error as Driver, IoError, ServerError};

/// Others were at the same rows: nothing is wrong, and it has to be decided again.
///
/// A deadlock, a certification failure of Galera (1213) or of group replication (3101), a row
/// that stayed locked (1205) or was not to be waited for (3572), a record that changed since it
/// was read (1020), a row that somebody else has just inserted (1062).
/// MariaDB says 1467 where a deadlock ends at the lock of an `AUTO_INCREMENT`.
pub(crate) fn is_conflict(error: &Driver) -> bool {
    matches!(code(error), Some(1213 | 1205 | 1020 | 3572 | 1062 | 3101 | 1467))
}

/// Whether a statement cannot be prepared here, or not any more: the server has no room for one more, or knows no
/// such protocol. As text it may do.
pub(crate) fn cannot_prepare(error: &Driver) -> bool {
    matches!(code(error), Some(1461 | 1295)) || has_lost_statement(error)
}

/// Whether the server has lost a statement that the connection still counts on.
pub(crate) fn has_lost_statement(error: &Driver) -> bool {
    matches!(code(error), Some(1243 | 1615))
}

/// What a node of a cluster should have reported of a transaction that it has rolled back.
pub(crate) fn rolled_back() -> Driver {
    Driver::Server(ServerError {
        code: 1213,
        message: "the transaction was rolled back, because another node has changed its rows"
            .to_owned(),
        state: "40001".to_owned(),
    })
}

/// Whether somebody else has just made the table or the column that was to be made.
pub(crate) fn is_defined_already(error: &Driver) -> bool {
    matches!(code(error), Some(1050 | 1060))
}

/// Whether the connection that reported this must not be used again.
///
/// Whatever did not come from the server left the protocol in an unknown state, and a server that
/// takes no writes, shuts down or ran out of something is better asked anew.
pub(crate) fn breaks_connection(error: &Driver) -> bool {
    code(error).is_none_or(|code| takes_no_writes(code) || is_leaving(code))
}

/// Whether a lock was waited for in vain or, by a read on a node of Galera, what other nodes have
/// written.
pub(crate) fn waited_in_vain(error: &Driver) -> bool {
    code(error) == Some(1205)
}

/// Whether a connection that had been idle was found closed: by the server's timeout or shutdown,
/// an administrator, or something on the way.
pub(crate) fn was_closed(error: &Driver) -> bool {
    match error {
        Driver::Io(IoError::Io(_)) | Driver::Driver(DriverError::ConnectionClosed) => true,
        Driver::Server(reported) => is_leaving(reported.code),
        _ => false,
    }
}

/// Whether the server has refused the user or the password.
pub(crate) fn is_refused(error: &Driver) -> bool {
    code(error) == Some(1045)
}

/// Whether a server without TLS was asked for it.
pub(crate) fn lacks_tls(error: &Driver) -> bool {
    matches!(error, Driver::Driver(DriverError::NoClientSslFlagFromServer))
}

/// An error of getting a connection. What connecting reports is classified already.
pub(crate) fn from_pool(error: PoolError<Error>, place: &str) -> Error {
    match error {
        PoolError::Backend(error) => error,
        other => unavailable(format!("no connection to {place} could be had: {other}")),
    }
}

/// An error of connecting or of a statement.
pub(crate) fn from_driver(error: Driver, place: &str) -> Error {
    let (kind, message) = match &error {
        Driver::Server(reported) => from_server(reported, place),
        Driver::Io(failed) => from_io(failed, place),
        Driver::Driver(failed) => from_protocol(failed, place),
        Driver::Url(_) | Driver::Other(_) => {
            (ErrorKind::Backend, format!("{place} cannot be used: {error}"))
        }
    };
    Error::new(kind, message).with_backend(crate::NAME).with_source(error)
}

/// An error of changing the tables while somebody's transaction holds them.
pub(crate) fn tables_in_use(error: Driver) -> Error {
    unavailable(
        "the lock table is in use by a transaction that does not end: try again, and see SHOW \
         PROCESSLIST for who it is"
            .to_owned(),
    )
    .with_source(error)
}

/// Something that another server or another try may mend.
pub(crate) fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, message).with_backend(crate::NAME)
}

fn code(error: &Driver) -> Option<u16> {
    match error {
        Driver::Server(reported) => Some(reported.code),
        _ => None,
    }
}

fn from_server(error: &ServerError, place: &str) -> (ErrorKind, String) {
    let said = &error.message;
    match error.code {
        // No such table, no such column.
        1146 | 1054 => (
            ErrorKind::NotMigrated,
            format!(
                "the tables of the locks are not as they should be ({said}): run `dblock migrate` \
                 or call migrate()"
            ),
        ),
        // A right on the database, a table, a column or a routine, or a global one.
        1044 | 1142 | 1143 | 1227 | 1370 => (
            ErrorKind::Permission,
            format!(
                "the database user lacks a right ({said}): grant select, insert, update and \
                 delete on the lock table and its _share table"
            ),
        ),
        // Wrong, without a plugin that we have, locked or expired.
        1045 | 1698 | 1251 | 3118 | 1820 | 1862 | 3955 | 4151 => (
            ErrorKind::Permission,
            format!(
                "the user or its password was refused ({said}): correct them in the URL, and set \
                 ssl-mode if this user has to use TLS"
            ),
        ),
        1130 => (
            ErrorKind::Permission,
            format!("the connection was refused ({said}): let the user connect from this host"),
        ),
        1049 => {
            (ErrorKind::InvalidOption, format!("{said}: create it, or name another one in the URL"))
        }
        3159 => (
            ErrorKind::InvalidOption,
            format!("{place} takes encrypted connections only ({said}): set ssl-mode"),
        ),
        // A command that the server does not know, which it says where it is not in a quorum.
        1047 => (
            ErrorKind::Unavailable,
            format!("{place} is not in the primary component of its cluster ({said})"),
        ),
        code if takes_no_writes(code) => (
            ErrorKind::Unavailable,
            format!(
                "{place} takes no writes, as a replica does not ({said}): name all hosts in the \
                 URL"
            ),
        ),
        1040 | 1203 | 1226 => (
            ErrorKind::Unavailable,
            format!(
                "{place} has no connection left ({said}): raise max_connections, or the user's \
                 limit"
            ),
        ),
        1129 => (
            ErrorKind::Unavailable,
            format!("{place} lets this host in no more ({said}): run FLUSH HOSTS there"),
        ),
        1153 => (
            ErrorKind::Backend,
            format!("{place} refused a request as too long ({said}): raise max_allowed_packet"),
        ),
        code if is_passing(code) => (
            ErrorKind::Unavailable,
            format!("{place} gave up ({said}, {code}): it may be asked again"),
        ),
        code => (ErrorKind::Backend, format!("{place} reported {code}: {said}")),
    }
}

/// `read_only` and its kin, a transaction that is read only, a node outside of the quorum.
///
/// 1290 is said of other options, too, but of none that our statements meet.
fn takes_no_writes(code: u16) -> bool {
    matches!(code, 1047 | 1290 | 1792 | 1836 | 1874 | 3100)
}

/// The server shuts down, or has closed this connection.
fn is_leaving(code: u16) -> bool {
    matches!(code, 1053 | 1077..=1080 | 1158..=1161 | 1184 | 1152 | 1927 | 3169 | 4031)
}

/// What passes by itself: conflicts, cancelled and interrupted statements, commits that another
/// node did not confirm, resources that are out for a while, tables that are being changed.
fn is_passing(code: u16) -> bool {
    is_leaving(code)
        || matches!(
            code,
            1213 | 1205
                | 1467
                | 1020
                | 3572
                | 3101
                | 1180
                | 1317
                | 3024
                | 1969
                | 1021
                | 1037
                | 1038
                | 1041
                | 1114
                | 1135
                | 1206
                | 1412
        )
}

fn from_io(error: &IoError, place: &str) -> (ErrorKind, String) {
    match error {
        IoError::Tls(failed) => no_tls(failed, place),
        // A handshake that fails is told as an error of reading.
        IoError::Io(failed) if is_tls(failed) => no_tls(failed, place),
        IoError::Io(failed) => {
            (ErrorKind::Unavailable, format!("{place} cannot be reached ({failed})"))
        }
    }
}

fn from_protocol(error: &DriverError, place: &str) -> (ErrorKind, String) {
    match error {
        DriverError::NoClientSslFlagFromServer => (
            ErrorKind::InvalidOption,
            format!("{place} offers no TLS: enable it there, or set ssl-mode"),
        ),
        DriverError::UnknownAuthPlugin { .. }
        | DriverError::MysqlOldPasswordDisabled
        | DriverError::CleartextPluginDisabled => (
            ErrorKind::Permission,
            format!(
                "logging in to {place} failed ({error}): give the user caching_sha2_password, \
                 mysql_native_password or ed25519"
            ),
        ),
        DriverError::PacketTooLarge => (
            ErrorKind::Backend,
            format!("a request to {place} was too long: raise max_allowed_packet"),
        ),
        DriverError::FromValue { .. } | DriverError::FromRow { .. } => (
            ErrorKind::Backend,
            format!("{place} answered what cannot be read; is a column of another type?"),
        ),
        DriverError::LocalInfile(_) => (
            ErrorKind::Backend,
            format!("{place} asked for a file of this machine: do not trust that server"),
        ),
        // Out of order, cut off, already closed: another connection may fare better.
        _ => (ErrorKind::Unavailable, format!("the connection to {place} failed ({error})")),
    }
}

fn no_tls(why: &dyn std::error::Error, place: &str) -> (ErrorKind, String) {
    (
        ErrorKind::InvalidOption,
        format!(
            "no TLS connection to {place} could be made ({why}): check ssl-mode, ssl-ca, ssl-cert \
             and ssl-key"
        ),
    )
}

fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(code: u16) -> Driver {
        Driver::Server(ServerError { code, message: "said".into(), state: "HY000".into() })
    }

    fn kind(error: Driver) -> ErrorKind {
        from_driver(error, "here").kind()
    }

    #[test]
    fn passing_codes_are_told_from_lasting_ones() {
        for code in [
            1213, 1205, 1467, 1020, 3572, 1180, 1053, 1040, 1203, 1047, 1290, 1836, 1158, 1161,
            1317, 3024, 1969, 4031, 1927,
        ] {
            assert_eq!(kind(reported(code)), ErrorKind::Unavailable, "{code}");
        }
        for (code, expected) in [
            (1146, ErrorKind::NotMigrated),
            (1054, ErrorKind::NotMigrated),
            (1142, ErrorKind::Permission),
            (1044, ErrorKind::Permission),
            (1045, ErrorKind::Permission),
            (1698, ErrorKind::Permission),
            (1049, ErrorKind::InvalidOption),
            (1064, ErrorKind::Backend),
            (1406, ErrorKind::Backend),
            (1153, ErrorKind::Backend),
        ] {
            assert_eq!(kind(reported(code)), expected, "{code}");
        }
    }

    #[test]
    fn connection_survives_what_a_statement_did_and_nothing_else() {
        for code in [1213, 1205, 1062, 1146, 1064, 1317] {
            assert!(!breaks_connection(&reported(code)), "{code}");
        }
        for code in [1047, 1290, 1836, 1053, 4031] {
            assert!(breaks_connection(&reported(code)), "{code}");
        }
        assert!(breaks_connection(&io::Error::from(io::ErrorKind::UnexpectedEof).into()));
        assert!(breaks_connection(&DriverError::PacketOutOfOrder.into()));
    }

    #[test]
    fn conflicts_are_told_from_failures() {
        for code in [1213, 1205, 1020, 3572, 1062] {
            assert!(is_conflict(&reported(code)), "{code}");
        }
        assert!(!is_conflict(&reported(1146)));
        assert!(!is_conflict(&io::Error::from(io::ErrorKind::UnexpectedEof).into()));
    }

    #[test]
    fn failed_handshake_is_told_from_a_cut_connection() {
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let handshake = io::Error::new(io::ErrorKind::InvalidData, refused);
        assert_eq!(kind(handshake.into()), ErrorKind::InvalidOption);
        let cut = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(kind(cut.into()), ErrorKind::Unavailable);
    }
}
