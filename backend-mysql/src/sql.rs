//! All SQL that touches the tables.
//!
//! A request is one packet of text with several statements, so that it takes one round trip and the
//! server never waits for the client with a row locked. All values in it are numbers and
//! hexadecimal literals: nothing needs escaping, whatever the session's `sql_mode` and character
//! set are. Names compare by their bytes, because `schema.rs` sees to it that their column does.
//!
//! These rules make it exact:
//!
//! - **Judge a version, change that version.** Each change of a name writes the name's row and its
//!   `version`. What was decided from a plain read is written only if the row still has the
//!   version, and the `expires_at`, that were read: the latter because others, such as a Django
//!   app, write the row without knowing of versions. On Galera a stale version passes here and
//!   fails at commit, because the row is written.
//! - **Lock first, then act, and never wait.** A row is locked by a statement of its own, with
//!   `SKIP LOCKED`; the statements that follow read the clock after that. So it does not matter
//!   when within a statement the server reads its clock (`sysdate-is-now`), nor that an `UPDATE`
//!   cannot skip locked rows itself.
//! - **Each statement is right by itself.** A node of a Galera cluster may roll a transaction back
//!   in the middle of a packet without a word, and run what follows outside of any. So whatever
//!   writes repeats the whole condition, does nothing unless its transaction is open, and writes
//!   shares only where the name's row is as the statement before has left it; and `pool.rs` finds
//!   out whether the transaction was whole. What is one statement needs no transaction.
//! - **Time is `UTC_TIMESTAMP(6)`**, which no session's time zone changes.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use database_locks_core::ledger::{Entry, Mark, Until};
use database_locks_core::{Claim, LeaseId, ListQuery, LockName, Share, Ttl};

use crate::config::MysqlConfig;
use crate::state::{Change, NEVER, Write};

const NOW: &str = "UTC_TIMESTAMP(6)";

/// The row that the statement before has locked, null for none.
const ROW: &str = "@database_locks_row";

/// Part of each condition under which a statement of a transaction writes: it does nothing once the
/// transaction is gone. Only MariaDB, which rolls back without a word, reads it.
const WHOLE: &str = "/*M! AND @@in_transaction */";

/// Statements that are sent as one.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    text: String,
    statements: usize,
    is_transaction: bool,
}

impl Packet {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a `COMMIT` has to follow.
    pub(crate) fn is_transaction(&self) -> bool {
        self.is_transaction
    }

    fn begin(&mut self) {
        self.add("START TRANSACTION");
        self.is_transaction = true;
    }

    /// Adds a statement, and tells its place among the answers.
    pub(crate) fn add(&mut self, statement: impl Display) -> usize {
        if self.statements > 0 {
            self.text.push_str(";\n");
        }
        let _ = write!(self.text, "{statement}");
        self.statements += 1;
        self.statements - 1
    }
}

/// Where the answers to a read stand among those of its packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadAt {
    /// One row with the server's clock in µs since 1970.
    pub(crate) clock: usize,
    /// What `state.rs` makes states of.
    pub(crate) rows: usize,
}

/// The pair of tables.
#[derive(Debug)]
pub(crate) struct Tables {
    lock: String,
    share: String,
}

impl Tables {
    pub(crate) fn new(config: &MysqlConfig) -> Self {
        Self { lock: config.lock_table(), share: config.share_table() }
    }

    /// Makes rows for `names`, where there are none.
    ///
    /// A name that somebody else is just making is left out, since to insert it would wait for
    /// them: only a dirty read sees it. The gap that somebody's locking read of a missing row leaves
    /// locked is not seen, so that this may wait all the same, and fail for all of the names.
    pub(crate) fn make(&self, packet: &mut Packet, names: &[&LockName]) {
        let lock = &self.lock;
        let rows: Vec<_> =
            names.iter().map(|name| format!("SELECT {} AS name", text(name.as_str()))).collect();
        packet.add("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED");
        packet.add(format_args!(
            "INSERT IGNORE INTO {lock} (name) SELECT m.name FROM ({}) m \
             WHERE NOT EXISTS (SELECT 1 FROM {lock} l WHERE l.name = m.name)",
            rows.join(" UNION ALL "),
        ));
    }

    /// Lets others finish with the rows.
    pub(crate) fn pause(&self, packet: &mut Packet, pause: Duration) {
        if !pause.is_zero() {
            packet.add(format_args!("DO SLEEP({})", pause.as_secs_f64()));
        }
    }

    /// Reads all that is known of `names`.
    pub(crate) fn read<'n>(
        &self,
        packet: &mut Packet,
        names: impl Iterator<Item = &'n LockName>,
    ) -> ReadAt {
        // The clock is read before the rows: an older time can only make a dead lease look alive.
        let clock = packet.add(format_args!("SELECT {}", micros(NOW)));
        let of = format!("{} l", self.lock);
        let names = list(names.map(|name| text(name.as_str())));
        let rows = packet.add(self.select(&of, &format!("WHERE l.name IN ({names})")));
        ReadAt { clock, rows }
    }

    /// Reads up to `limit` live names that start with the query's prefix, from `first` on.
    pub(crate) fn read_live(
        &self,
        packet: &mut Packet,
        query: &ListQuery,
        first: &Start,
        limit: usize,
    ) -> ReadAt {
        let clock = packet.add(format_args!("SELECT {}", micros(NOW)));
        let start = match first {
            Start::Prefix => format!("name >= {}", hex(query.prefix.as_bytes())),
            Start::Name(name) => format!("name >= {}", hex(name)),
            Start::After(name) => format!("name > {}", hex(name)),
        };
        let length = query.prefix.len();
        let page = format!(
            "(SELECT * FROM {} WHERE {start} AND LEFT(CAST(name AS BINARY), {length}) = {} \
             AND expires_at > {NOW} ORDER BY name LIMIT {limit}) l",
            self.lock,
            hex(query.prefix.as_bytes()),
        );
        let rows = packet.add(self.select(&page, ""));
        ReadAt { clock, rows }
    }

    fn select(&self, from: &str, condition: &str) -> String {
        format!(
            "SELECT l.id, l.name, l.version, l.token, l.locked_by, l.explicit_owner, l.attempt, \
             l.capacity, {}, {}, {}, {}, {}, l.waiting_weight, \
             s.attempt, s.token, s.locked_by, s.explicit_owner, s.weight, s.capacity, {}, {}, {} \
             FROM {from} LEFT JOIN {} s ON s.name = l.name {condition}",
            micros("l.acquired_at"),
            micros("l.expires_at"),
            micros("l.lease_expires_at"),
            micros("l.touched_at"),
            micros("l.waiting_until"),
            micros("s.acquired_at"),
            micros("s.expires_at"),
            micros("s.touched_at"),
            self.share,
        )
    }

    /// Grants a claim to all of a lock that nobody holds. Answers where the number of granted rows
    /// stands, with the token as the last inserted id.
    ///
    /// A plain read goes first, so that a claim that is busy locks nothing.
    pub(crate) fn take(&self, packet: &mut Packet, claim: &Claim) -> usize {
        let lock = &self.lock;
        let attempt = hex(claim.attempt.as_uuid().as_bytes());
        let free = format!(
            "(expires_at IS NULL OR expires_at <= {NOW} - INTERVAL {} MICROSECOND) \
             AND NOT attempt <=> {attempt}",
            span(claim.grace),
        );
        let until = until(claim.ttl);
        packet.add(format_args!(
            "SET {ROW} = (SELECT id FROM {lock} WHERE name = {} AND {free})",
            text(claim.name.as_str())
        ));
        packet.add(format_args!(
            "SET {ROW} = (SELECT id FROM {lock} WHERE id = {ROW} AND {free} FOR UPDATE SKIP LOCKED)"
        ));
        packet.add(format_args!(
            "UPDATE {lock} SET token = LAST_INSERT_ID(GREATEST(token + 1, {})), \
             version = version + 1, locked_by = {}, explicit_owner = {}, attempt = {attempt}, \
             capacity = {}, acquired_at = {NOW}, touched_at = {NOW}, expires_at = {until}, \
             lease_expires_at = {until}, waiting_weight = 0 WHERE id = {ROW} AND {free}",
            micros(NOW),
            text(claim.owner.label()),
            u8::from(claim.owner.is_explicit()),
            Share::FULL,
        ))
    }

    /// Gives leases that hold all of their lock, and are alive, another end: a TTL from now, or none of
    /// it, which is their release. Answers where each number of changed rows stands.
    pub(crate) fn set_end<'l>(
        &self,
        packet: &mut Packet,
        leases: impl ExactSizeIterator<Item = (&'l LeaseId, Option<Ttl>)>,
    ) -> Vec<usize> {
        let lock = &self.lock;
        let whole = if leases.len() > 1 {
            packet.begin();
            WHOLE
        } else {
            ""
        };
        leases
            .map(|(lease, ttl)| {
                let alive = format!(
                    "attempt = {} AND token = {} AND locked_by = {} AND explicit_owner = {} \
                     AND lease_expires_at = expires_at AND expires_at > {NOW}",
                    hex(lease.attempt.as_uuid().as_bytes()),
                    lease.token,
                    text(lease.owner.label()),
                    u8::from(lease.owner.is_explicit()),
                );
                let until = or_null(ttl.map(until));
                packet.add(format_args!(
                    "SET {ROW} = (SELECT id FROM {lock} WHERE name = {} AND {alive} \
                     FOR UPDATE SKIP LOCKED)",
                    text(lease.name.as_str()),
                ));
                packet.add(format_args!(
                    "UPDATE {lock} SET version = version + 1, touched_at = {NOW}, \
                     expires_at = {until}, lease_expires_at = {until} WHERE id = {ROW} AND {alive} {whole}"
                ))
            })
            .collect()
    }

    /// Carries out changes, each if its name is still as it was read. Answers where each number of
    /// changed rows stands.
    pub(crate) fn change(&self, packet: &mut Packet, changes: &[Change<'_>]) -> Vec<usize> {
        packet.begin();
        changes.iter().map(|change| self.change_one(packet, change)).collect()
    }

    fn change_one(&self, packet: &mut Packet, change: &Change<'_>) -> usize {
        let Self { lock, share, .. } = self;
        let name = text(change.name.as_str());
        let unchanged = format!(
            "version = {} AND {} <=> {}",
            change.version,
            micros("expires_at"),
            or_null(change.expires_at),
        );
        packet.add(format_args!(
            "SET {ROW} = (SELECT id FROM {lock} WHERE id = {} AND {unchanged} \
             FOR UPDATE SKIP LOCKED)",
            change.id,
        ));
        let columns = match &change.write {
            Write::Mark(mark) => mark_columns(Some(*mark)),
            Write::Row(row) => {
                let until = or_null(row.expires_at.map(moment));
                format!(
                    "token = {}, locked_by = {}, explicit_owner = {}, attempt = {}, capacity = {}, \
                     acquired_at = {}, touched_at = {}, expires_at = {until}, \
                     lease_expires_at = {until}, {}",
                    row.token,
                    or_null(row.locked_by.map(text)),
                    u8::from(row.explicit_owner),
                    or_null(row.attempt.map(|attempt| hex(attempt.as_uuid().as_bytes()))),
                    row.capacity,
                    or_null(row.acquired_at.map(moment)),
                    moment(row.touched_at),
                    mark_columns(row.mark),
                )
            }
            Write::Nothing => {
                let done = packet.add(format_args!(
                    "DELETE FROM {lock} WHERE id = {ROW} AND {unchanged} {WHOLE}"
                ));
                packet.add(format_args!(
                    "DELETE FROM {share} WHERE name = IF({ROW} IS NULL, NULL, {name}) \
                     AND NOT EXISTS (SELECT 1 FROM {lock} WHERE name = {name}) {WHOLE}"
                ));
                return done;
            }
        };
        if let Write::Row(row) = &change.write {
            let touched: Vec<String> = row
                .changed_shares
                .iter()
                .map(|entry| &entry.attempt)
                .chain(&row.gone_shares)
                .map(|attempt| hex(attempt.as_uuid().as_bytes()))
                .collect();
            if !touched.is_empty() {
                packet.add(format_args!(
                    "SET {ROW} = IF({} = (SELECT COUNT(*) FROM {share} WHERE name = {name} \
                     AND attempt IN ({}) FOR UPDATE SKIP LOCKED), {ROW}, NULL)",
                    touched.len(),
                    touched.join(", "),
                ));
            }
        }
        let in_time = match change.before {
            None => String::new(),
            Some(limit) => format!(" AND {NOW} < {}", moment(limit)),
        };
        let done = packet.add(format_args!(
            "UPDATE {lock} SET version = version + 1, {columns} \
             WHERE id = {ROW} AND {unchanged}{in_time} {WHOLE}"
        ));
        if let Write::Row(row) = &change.write {
            // Otherwise rows would be locked before it is seen that they must not be written.
            let of = format!("IF({ROW} IS NULL, NULL, {name})");
            let written = format!(
                "EXISTS (SELECT 1 FROM {lock} WHERE id = {ROW} AND version = {} AND touched_at = {}) \
                 {WHOLE}",
                change.version + 1,
                moment(row.touched_at),
            );
            if !row.gone_shares.is_empty() {
                let gone = row.gone_shares.iter().map(|gone| hex(gone.as_uuid().as_bytes()));
                packet.add(format_args!(
                    "DELETE FROM {share} WHERE name = {of} AND attempt IN ({}) AND {written}",
                    list(gone)
                ));
            }
            for entry in &row.new_shares {
                packet.add(format_args!(
                    "INSERT INTO {share} (name, attempt, token, locked_by, explicit_owner, weight, \
                     capacity, acquired_at, expires_at, touched_at) \
                     SELECT {name}, {}, {}, {}, {}, {}, {}, {}, {} FROM DUAL WHERE {written}",
                    hex(entry.attempt.as_uuid().as_bytes()),
                    entry.token,
                    text(entry.owner.label()),
                    u8::from(entry.owner.is_explicit()),
                    entry.share.weight(),
                    entry.share.capacity(),
                    moment(entry.granted_at),
                    until_columns(entry, row.touched_at).join(", "),
                ));
            }
            for entry in &row.changed_shares {
                let [expires_at, touched_at] = until_columns(entry, row.touched_at);
                packet.add(format_args!(
                    "UPDATE {share} SET expires_at = {expires_at}, touched_at = {touched_at} \
                     WHERE name = {of} AND attempt = {} AND {written}",
                    hex(entry.attempt.as_uuid().as_bytes()),
                ));
            }
        }
        done
    }

    /// Reads names that may be idle.
    pub(crate) fn read_idle(&self, packet: &mut Packet, idle: Duration, limit: usize) -> ReadAt {
        let clock = packet.add(format_args!("SELECT {}", micros(NOW)));
        let since = format!("{NOW} - INTERVAL {} MICROSECOND", span(idle));
        let page = format!(
            "(SELECT * FROM {} WHERE touched_at <= {since} \
             AND (expires_at IS NULL OR expires_at <= {since}) \
             AND (waiting_until IS NULL OR waiting_until <= {NOW}) \
             AND token <= {} LIMIT {limit}) l",
            self.lock,
            micros(&since),
        );
        let rows = packet.add(self.select(&page, ""));
        ReadAt { clock, rows }
    }
}

/// Where a list goes on.
#[derive(Debug)]
pub(crate) enum Start {
    Prefix,
    Name(Vec<u8>),
    After(Vec<u8>),
}

/// A share that was released has no expiry, and was touched then.
fn until_columns(entry: &Entry, now: Duration) -> [String; 2] {
    match entry.until {
        Until::Forever => [moment(NEVER), moment(now)],
        Until::Expiry(at) => [moment(at), moment(now)],
        Until::Released(at) => ["NULL".to_owned(), moment(at)],
    }
}

/// The end of a lease of this TTL from now.
fn until(ttl: Ttl) -> String {
    match ttl {
        Ttl::Infinite => moment(NEVER),
        Ttl::Finite(ttl) => format!("{NOW} + INTERVAL {} MICROSECOND", span(ttl.get())),
    }
}

fn mark_columns(mark: Option<Mark>) -> String {
    let (until, weight) = mark.map_or(("NULL".to_owned(), 0), |m| (moment(m.until), m.weight));
    format!("waiting_until = {until}, waiting_weight = {weight}")
}

/// A time as µs since 1970.
fn micros(time: &str) -> String {
    format!("TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {time})")
}

/// µs since 1970 as a time.
fn moment(since_1970: Duration) -> String {
    let micros = since_1970.min(NEVER).as_micros();
    format!("TIMESTAMP'1970-01-01 00:00:00.000000' + INTERVAL {micros} MICROSECOND")
}

/// µs to add to a time or take from it: at most 1,000 years, so that the calendar does not end.
fn span(duration: Duration) -> u128 {
    const MOST: Duration = Duration::from_hours(1_000 * 365 * 24);
    duration.min(MOST).as_micros()
}

/// Text, as bytes where the column has bytes, and by the column's collation where it has text.
fn text(text: &str) -> String {
    format!("_utf8mb4 {}", hex(text.as_bytes()))
}

/// Bytes as a literal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut literal = String::with_capacity(2 * bytes.len() + 3);
    literal.push_str("x'");
    for byte in bytes {
        let _ = write!(literal, "{byte:02x}");
    }
    literal.push('\'');
    literal
}

fn or_null(value: Option<impl Display>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| value.to_string())
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
