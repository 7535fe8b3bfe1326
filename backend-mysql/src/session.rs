//! What makes a session safe, whatever the server's defaults and its `init_connect` are.

use std::fmt::Write as _;

use database_locks_core::{Error, ErrorKind, Result};
use mysql_async::{Conn, Row};

use crate::packet::{self, Answer, Request};
use crate::{NAME, error};

/// What a connection is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) flavour: Flavour,
    pub(crate) version: Version,
    /// Whether it is a node of a Galera cluster.
    pub(crate) galera: bool,
}

/// Which of the two families a server's SQL belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    MySql,
    MariaDb,
}

/// Major, minor and patch.
pub(crate) type Version = (u16, u16, u16);

/// A variable of the session, what it is set to, and how it reads then.
struct Pin(&'static str, &'static str, &'static str);

/// What could make a simple statement wrong, slow or void.
const PINS: &[Pin] = &[
    Pin("autocommit", "1", "ON"),
    Pin("completion_type", "'NO_CHAIN'", "NO_CHAIN"),
    // Our clock, and what DATETIME is compared with.
    Pin("time_zone", "'+00:00'", "+00:00"),
    // Nothing is cut to fit, and text means what the standard says as MySQL reads it.
    Pin(
        "sql_mode",
        "'STRICT_TRANS_TABLES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
        "STRICT_TRANS_TABLES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION",
    ),
    // Seconds to wait for a row and for a table: less than a lease lives.
    Pin("innodb_lock_wait_timeout", "1", "1"),
    Pin("lock_wait_timeout", "2", "2"),
    // Nothing is left out of a result, or compared by its first bytes only.
    Pin("sql_select_limit", "18446744073709551615", "18446744073709551615"),
    Pin("max_sort_length", "1024", "1024"),
    Pin("group_concat_max_len", "1048576", "1048576"),
    // No statement is refused, and no condition read otherwise than it is written.
    Pin("sql_safe_updates", "0", "OFF"),
    Pin("sql_big_selects", "1", "ON"),
    Pin("sql_auto_is_null", "0", "OFF"),
    Pin("foreign_key_checks", "1", "ON"),
    Pin("unique_checks", "1", "ON"),
];

const MYSQL_PINS: &[Pin] = &[
    // In milliseconds. A server that waits for a lock does not notice that its client has gone.
    Pin("max_execution_time", "10000", "10000"),
];
const MARIADB_PINS: &[Pin] = &[
    // In seconds, as above.
    Pin("max_statement_time", "10", "10.000000"),
    // Seconds until the rows are let go of that a client had locked when it was suspended. Only on
    // Galera may it have locked any by then.
    Pin("idle_transaction_timeout", "5", "5"),
];

/// A read waits until what any node has committed before is there, and fails where that is not
/// known.
const GALERA_PINS: &[Pin] =
    &[Pin("wsrep_sync_wait", "1", "1"), Pin("wsrep_dirty_reads", "0", "OFF")];

/// What `SET NAMES` and `SET TRANSACTION` have to lead to, by all names that servers have for it.
const OUTCOMES: &[(&str, &str)] = &[
    ("character_set_client", "utf8mb4"),
    ("character_set_connection", "utf8mb4"),
    ("character_set_results", "utf8mb4"),
    ("collation_connection", "utf8mb4_bin"),
    ("transaction_isolation", "READ-COMMITTED"),
    ("tx_isolation", "READ-COMMITTED"),
    ("transaction_read_only", "OFF"),
    ("tx_read_only", "OFF"),
];

/// What tells whether the server can be used.
const INSPECTED: &[&str] = &[
    "version",
    "read_only",
    "innodb_read_only",
    "log_bin",
    "binlog_format",
    "wsrep_on",
    "wsrep_provider",
];

/// What speaks like a MySQL, by what its version says, and would grant a lock twice or wait where it must
/// not.
const REFUSED: &[(&str, &str)] = &[
    (
        "TiDB",
        "TiDB reads SKIP LOCKED and locks nothing, and each of its servers has a clock of its own",
    ),
    (
        "Vitess",
        "Vitess keeps no variables of the session with the rows: connect to the MySQL behind it",
    ),
    ("ProxySQL", BEHIND_PROXYSQL),
];

const BEHIND_PROXYSQL: &str = "ProxySQL hands the statements of a session to several connections: connect to the server behind it";

/// What `ProxySQL` alone answers, whatever version it shows.
const ARE_YOU_PROXYSQL: &str = "PROXYSQL INTERNAL SESSION";

/// Makes a new session safe, and finds out what it is connected to. One round trip, two on
/// Galera, and one more that finds out what is in between.
///
/// `READ COMMITTED`, so that a statement after a locking one sees what the wait was for.
/// `innodb_rollback_on_timeout` cannot be set for a session and does not matter: every failed
/// packet is followed by a `ROLLBACK`.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] for a server that takes no writes now, as another one may;
/// [`ErrorKind::Unsupported`] for one that is too old, or has settings that cannot be made safe.
pub(crate) async fn prepare(conn: &mut Conn, place: &str) -> Result<Server> {
    let answers = match packet::send(conn, Request::Packet(&first_packet())).await {
        Ok(answers) => answers,
        Err(failed) => return Err(why_not(conn, failed, place).await),
    };
    let found = Variables::read(&answers, place)?;
    let server = found.server()?;
    if packet::send(conn, Request::Packet(ARE_YOU_PROXYSQL)).await.is_ok() {
        return Err(found.unsupported(format!("is no server: {BEHIND_PROXYSQL}")));
    }
    found.check_writable()?;
    let pins = match server.flavour {
        Flavour::MySql => MYSQL_PINS,
        Flavour::MariaDb => MARIADB_PINS,
    };
    found.check_pins(PINS.iter().chain(pins))?;
    if server.galera {
        let answers = packet::send(conn, Request::Packet(&galera_packet()))
            .await
            .map_err(|failed| error::from_driver(failed, place))?;
        let found = Variables::read(&answers, place)?;
        found.check_ready()?;
        found.check_pins(GALERA_PINS)?;
    }
    Ok(server)
}

/// An old server may have refused a variable only because it does not know it.
async fn why_not(conn: &mut Conn, failed: mysql_async::Error, place: &str) -> Error {
    if matches!(failed, mysql_async::Error::Server(_))
        && let Ok(answers) =
            packet::send(conn, Request::Packet("SHOW VARIABLES LIKE 'version'")).await
        && let Ok(Err(too_old)) = Variables::read(&answers, place).map(|found| found.server())
    {
        return too_old;
    }
    error::from_driver(failed, place)
}

fn first_packet() -> String {
    let mut packet = String::from(
        "ROLLBACK; SET NAMES utf8mb4 COLLATE utf8mb4_bin; \
         SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; \
         SET timestamp = DEFAULT",
    );
    for Pin(name, value, _) in PINS {
        let _ = write!(packet, ", {name} = {value}");
    }
    // Each of them is a comment to the other one.
    for (condition, pins) in [("/*!80000", MYSQL_PINS), ("/*M!100600", MARIADB_PINS)] {
        let _ = write!(packet, " {condition}");
        for Pin(name, value, _) in pins {
            let _ = write!(packet, ", {name} = {value}");
        }
        packet.push_str(" */");
    }
    packet.push_str("; ");
    let names = PINS.iter().chain(MYSQL_PINS).chain(MARIADB_PINS).map(|pin| pin.0);
    let names = names.chain(OUTCOMES.iter().map(|outcome| outcome.0));
    packet + &show("SESSION VARIABLES", names.chain(INSPECTED.iter().copied()))
}

fn galera_packet() -> String {
    let mut packet = String::from("SET ");
    for (at, Pin(name, value, _)) in GALERA_PINS.iter().enumerate() {
        let _ = write!(packet, "{}{name} = {value}", if at == 0 { "" } else { ", " });
    }
    packet
        + "; "
        + &show("SESSION VARIABLES", GALERA_PINS.iter().map(|pin| pin.0))
        + "; "
        + &show("STATUS", ["wsrep_ready", "wsrep_cluster_status"].into_iter())
}

fn show(what: &str, names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<String> = names.map(|name| format!("'{name}'")).collect();
    format!("SHOW {what} WHERE Variable_name IN ({})", names.join(", "))
}

/// What a server says of itself.
struct Variables<'a> {
    found: Vec<(String, String)>,
    place: &'a str,
}

impl<'a> Variables<'a> {
    /// Takes all rows of a name and a value together.
    fn read(answers: &[Answer], place: &'a str) -> Result<Self> {
        let found = answers
            .iter()
            .flat_map(|answer| &answer.rows)
            .map(|row: &Row| Some((row.get_opt(0)?.ok()?, row.get_opt(1)?.ok()?)))
            .collect::<Option<_>>()
            .ok_or_else(|| {
                let said = format!("{place} does not tell its variables: connect to it directly");
                Error::new(ErrorKind::Unsupported, said).with_backend(NAME)
            })?;
        Ok(Self { found, place })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.found.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "OFF")
    }

    fn server(&self) -> Result<Server> {
        let text = self.get("version").unwrap_or_default();
        if let Some((_, why)) = REFUSED.iter().find(|(mark, _)| text.contains(mark)) {
            return Err(self.unsupported(format!("has version {text}: {why}")));
        }
        let (flavour, version) = parse_version(text).ok_or_else(|| {
            self.unsupported(format!("has a version that cannot be read, {text:?}"))
        })?;
        let (oldest, least) = match flavour {
            Flavour::MySql => ((8, 0, 0), "MySQL 8.0"),
            Flavour::MariaDb => ((10, 6, 0), "MariaDB 10.6"),
        };
        if version < oldest {
            return Err(self.unsupported(format!(
                "has version {text}, which lacks SKIP LOCKED: use {least} or newer"
            )));
        }
        let galera = self.is_on("wsrep_on")
            && !["", "none"].contains(&self.get("wsrep_provider").unwrap_or_default());
        if self.get("binlog_format") == Some("STATEMENT") && (galera || self.is_on("log_bin")) {
            return Err(self.unsupported(
                "has binlog_format=STATEMENT, with which READ COMMITTED cannot write: set it to \
                 ROW or MIXED in the server's configuration",
            ));
        }
        Ok(Server { flavour, version, galera })
    }

    fn check_writable(&self) -> Result<()> {
        match ["read_only", "innodb_read_only"].into_iter().find(|name| self.is_on(name)) {
            None => Ok(()),
            Some(name) => Err(error::unavailable(format!(
                "{} takes no writes, as a replica does not ({name} is on): name all hosts in the \
                 URL",
                self.place
            ))),
        }
    }

    fn check_ready(&self) -> Result<()> {
        let status = self.get("wsrep_cluster_status").unwrap_or("unknown");
        if self.is_on("wsrep_ready") && status == "Primary" {
            return Ok(());
        }
        Err(error::unavailable(format!(
            "{} is a Galera node that is not ready (wsrep_cluster_status is {status}): wait until \
             it is, and name all hosts in the URL",
            self.place
        )))
    }

    fn check_pins<'p>(&self, pins: impl IntoIterator<Item = &'p Pin>) -> Result<()> {
        for Pin(name, _, wanted) in pins {
            self.check(name, wanted, self.get(name).unwrap_or("missing"))?;
        }
        for (name, wanted) in OUTCOMES {
            // Of two names for one thing a server has at least one.
            self.check(name, wanted, self.get(name).unwrap_or(wanted))?;
        }
        Ok(())
    }

    fn check(&self, name: &str, wanted: &str, found: &str) -> Result<()> {
        if found.eq_ignore_ascii_case(wanted) {
            return Ok(());
        }
        Err(self.unsupported(format!(
            "keeps {name} at {found}, though the session set it to {wanted}: let sessions set it, \
             or connect without what stands between"
        )))
    }

    fn unsupported(&self, said: impl AsRef<str>) -> Error {
        let said = format!("{} {}", self.place, said.as_ref());
        Error::new(ErrorKind::Unsupported, said).with_backend(NAME)
    }
}

/// Reads what `VERSION()` says.
fn parse_version(text: &str) -> Option<(Flavour, Version)> {
    let flavour = match text.to_ascii_lowercase().contains("mariadb") {
        true => Flavour::MariaDb,
        false => Flavour::MySql,
    };
    // An old disguise of MariaDB's for replicas that cannot read two digits.
    let text = match flavour {
        Flavour::MariaDb => text.strip_prefix("5.5.5-").unwrap_or(text),
        Flavour::MySql => text,
    };
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse().ok());
    Some((flavour, (number()?, number()?, number().unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_look_like_one_are_refused_by_name() {
        for (version, name) in [
            ("8.0.11-TiDB-v8.5.0", "TiDB"),
            ("8.0.30-Vitess", "Vitess"),
            ("8.0.27 (ProxySQL)", "ProxySQL"),
        ] {
            let found = vec![("version".to_owned(), version.to_owned())];
            let error = Variables { found, place: "db:3306/app" }.server().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn versions_of_real_servers_are_read() {
        use Flavour::{MariaDb, MySql};
        for (text, flavour, version) in [
            ("10.11.14-MariaDB-0+deb12u2", MariaDb, (10, 11, 14)),
            ("5.5.5-10.6.16-MariaDB-log", MariaDb, (10, 6, 16)),
            ("10.3.39-MariaDB-1:10.3.39+maria~ubu2004-log", MariaDb, (10, 3, 39)),
            ("11.8.2-MariaDB-ubu2404", MariaDb, (11, 8, 2)),
            ("9.7.0", MySql, (9, 7, 0)),
            ("8.0.36-28.1", MySql, (8, 0, 36)),
            ("8.0.mysql_aurora.3.05.2", MySql, (8, 0, 0)),
            ("8.0.31-google", MySql, (8, 0, 31)),
            ("5.7.44-log", MySql, (5, 7, 44)),
        ] {
            assert_eq!(parse_version(text), Some((flavour, version)), "{text}");
        }
        assert_eq!(parse_version(""), None);
        assert_eq!(parse_version("unknown"), None);
    }
}
