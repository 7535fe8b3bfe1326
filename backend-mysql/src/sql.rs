//! All SQL that touches the tables.
//!
//! A single claim to all of a lock, and the release of one, are a prepared statement. Many of these, and renewals, are a packet that
//! locks and writes. Any other request is one packet
//! of text with several statements, so that it takes one round trip and the server never waits for the
//! client with a row locked. Many items go with it as a list (`lists.rs`), for as many statements as one.
//! All values are parameters, numbers and hexadecimal literals: nothing needs escaping, whatever the
//! session's `sql_mode` and character set are. Names compare by their bytes, because `schema.rs` sees to it
//! that their column does.
//!
//! These rules make it exact:
//!
//! - **Judge a version, change that version.** Each change of a name writes the name's row and its
//!   `version`. What was decided from a plain read is written only if the row still has the
//!   version, and the `expires_at`, that were read: the latter because others, such as a Django
//!   app, write the row without knowing of versions. On Galera a stale version passes here and
//!   fails at commit, because the row is written.
//! - **Lock first, then act, and never wait.** Rows are locked by a statement of their own, with
//!   `SKIP LOCKED`, which tells which of them it has got; those that follow touch no others. An `UPDATE`
//!   cannot skip locked rows itself. The three prepared statements do wait, for a second at most, and
//!   `backend.rs` leaves them alone for a while once one of them has waited in vain.
//! - **Each statement is right by itself.** A node of a Galera cluster may roll a transaction back
//!   in the middle of a packet without a word, and run what follows outside of any. So whatever
//!   writes repeats as much of the condition as tells its rows from others, does nothing unless its transaction is open, and writes
//!   shares only where the name's row is as the statement before has left it; and `pool.rs` finds
//!   out whether the transaction was whole. What is one statement needs no transaction.
//! - **Time is `UTC_TIMESTAMP(6)`**, which no session's time zone changes, and which stands still while a
//!   statement runs.

use std::collections::HashSet;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::Duration;

use database_locks_core::fence::{Dialect, Fence, FenceParam, FenceSql, Statement};
use database_locks_core::{Claim, LeaseId, ListQuery, LockName, Renewal, Share, Standing, Ttl};
use mysql_async::Params;

use crate::config::MysqlConfig;
use crate::lists::{
    CHANGED, CHANGES, GONE, MARKED, NEW, SHARES, change_row, hexadecimal, share_rows,
};
use crate::literal::{hex, text};
use crate::state::{Change, NEVER, SHARED};

const NOW: &str = "UTC_TIMESTAMP(6)";

/// Which of the items have their row locked by the statements before, and go on; null for none.
const ROWS: &str = "@database_locks_rows";
/// What the client is told of those rows.
const TOLD: &str = "@database_locks_told";
/// A statement that is put together for them.
const STATEMENT: &str = "@database_locks_statement";
/// A time for several statements, in µs since 1970.
const TIME: &str = "@database_locks_time";
/// Which of the shares have.
const SHARE_ROWS: &str = "@database_locks_share_rows";
/// Whether a row was written last by us, and for a lease of all of the lock if for any: whoever is granted all of
/// the lock next has nothing else to know of. What others have written may tell of a wrong clock, and shares that
/// have ended are remembered.
const LEFT_BY_ONE: &str =
    "lease_expires_at <=> expires_at AND (attempt IS NOT NULL OR locked_by IS NULL)";
/// Small tables would be read as a whole otherwise, and a row that somebody has locked be waited for.
const BY_KEY: &str = "FORCE INDEX (PRIMARY)";
/// What `FOR UPDATE` locks, where a list is joined. For MySQL alone, which would complain of the list.
const OF_L: &str = "/*!80000 OF l */";

/// Part of each condition under which a statement of a transaction writes: it does nothing once the
/// transaction is gone. Only MariaDB, which rolls back without a word, reads it.
const WHOLE: &str = "/*M! AND @@in_transaction */";

/// Statements that are sent as one.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    text: String,
    statements: usize,
    kind: Kind,
}

/// What the statements of a packet are, taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Reading,
    Writing,
    /// A `COMMIT` has to follow.
    Transaction,
}

impl Packet {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn begin(&mut self) {
        self.add("START TRANSACTION");
        self.kind = Kind::Transaction;
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

/// The pair of tables.
#[derive(Debug)]
pub(crate) struct Tables {
    lock: String,
    share: String,
    claim: String,
    hand_over: String,
    release: String,
    fence: Arc<str>,
    fence_share: Arc<str>,
    lookup: Arc<str>,
}

impl Tables {
    pub(crate) fn new(config: &MysqlConfig) -> Self {
        let (lock, share) = (config.lock_table(), config.share_table());
        let until = format!("COALESCE({NOW} + INTERVAL ? MICROSECOND, {})", never());
        let grant = format!(
            "UPDATE {lock} SET token = LAST_INSERT_ID(GREATEST(token + 1, {})), \
             version = version + 1, locked_by = ?, explicit_owner = ?, attempt = UNHEX(?), \
             capacity = {}, acquired_at = {NOW}, touched_at = {NOW}, expires_at = {until}, \
             lease_expires_at = {until}, waiting_weight = 0, standing = {}, data = ? WHERE name = ?",
            micros(NOW),
            Share::FULL,
            Standing::Held.code(),
        );
        let claim = format!(
            "{grant} AND {LEFT_BY_ONE} \
             AND (expires_at IS NULL OR expires_at <= {NOW} - INTERVAL ? MICROSECOND) \
             AND NOT attempt <=> UNHEX(?)",
        );
        let hand_over = format!(
            "{grant} AND {} AND standing = {} AND capacity = {} AND NOT attempt <=> UNHEX(?)",
            alive(["UNHEX(?)", "?", "?", "?"]),
            Standing::Held.code(),
            Share::FULL,
        );
        let release = format!(
            "UPDATE {lock} SET version = version + 1, touched_at = {NOW}, expires_at = NULL, \
             lease_expires_at = NULL WHERE name = ? AND {}",
            alive(["UNHEX(?)", "?", "?", "?"]),
        );
        let held = Standing::Held.code();
        let identity = ["UNHEX(?)", "?", "?", "?"];
        // They write the row, so that a cluster certifies it: no claim commits beside them. Whatever the isolation level, and in
        // whatever order they are read, the rows of both tables are judged as they are now, since both are locked.
        let fence = format!("UPDATE {lock} l SET l.version = l.version + 1 WHERE l.name = ?");
        let fence_share = format!(
            "{fence} AND l.attempt IS NULL AND l.locked_by = '{SHARED}' AND {} AND EXISTS \
             (SELECT 1 FROM {share} s WHERE s.name = l.name AND {} AND s.standing = {held} \
             AND s.expires_at > {NOW} LOCK IN SHARE MODE)",
            lives(),
            identified(identity),
        );
        let fence = format!("{fence} AND {} AND standing = {held}", alive(identity));
        let lookup = format!("SELECT 1 FROM {lock} WHERE name = ?");
        let [fence, fence_share, lookup] = [fence, fence_share, lookup].map(Into::into);
        Self { lock, share, claim, hand_over, release, fence, fence_share, lookup }
    }

    /// What fences a transaction of the user's own.
    pub(crate) fn fence(&self) -> Fence {
        let [whole, share, lookup] = [&self.fence, &self.fence_share, &self.lookup].map(Arc::clone);
        Fence::new(move |lease| {
            let sql = if lease.share.is_exclusive() { &whole } else { &share };
            let name = FenceParam::Text(lease.name.as_str().to_owned());
            let params = [
                name.clone(),
                FenceParam::Text(hexadecimal(lease.attempt)),
                FenceParam::Integer(i64::try_from(lease.token.get()).unwrap_or(i64::MAX)),
                FenceParam::Text(lease.owner.label().to_owned()),
                FenceParam::Integer(lease.owner.is_explicit().into()),
            ];
            FenceSql::new(Dialect::MySql, Statement::new(Arc::clone(sql), params))
                .with_lookup(Statement::new(Arc::clone(&lookup), [name]))
        })
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
        packet.kind = Kind::Writing;
    }

    /// Lets others finish with the rows.
    pub(crate) fn pause(&self, packet: &mut Packet, pause: Duration) {
        if !pause.is_zero() {
            packet.add(format_args!("DO SLEEP({})", pause.as_secs_f64()));
        }
    }

    /// Reads all that is known of `names`. Answers where the rows stand that `state.rs` makes states of.
    pub(crate) fn read<'n>(
        &self,
        packet: &mut Packet,
        names: impl Iterator<Item = &'n LockName>,
    ) -> usize {
        let of = format!("{} l", self.lock);
        let names = list(names.map(|name| text(name.as_str())));
        packet.add(self.select(&of, &format!("WHERE l.name IN ({names})")))
    }

    /// As [`read`](Self::read), of up to `limit` live names that start with the query's prefix, from `first` on.
    pub(crate) fn read_live(
        &self,
        packet: &mut Packet,
        query: &ListQuery,
        first: &Start,
        limit: usize,
    ) -> usize {
        let start = match first {
            Start::Prefix => format!("name >= {}", hex(query.prefix.as_bytes())),
            Start::Name(name) => format!("name >= {}", hex(name)),
            Start::After(name) => format!("name > {}", hex(name)),
        };
        let end = query.end().map(|end| format!(" AND name < {}", hex(end.as_bytes())));
        let page = format!(
            "(SELECT * FROM {} WHERE {start}{} AND expires_at > {NOW} ORDER BY name LIMIT {limit}) l",
            self.lock,
            end.unwrap_or_default(),
        );
        packet.add(self.select(&page, ""))
    }

    /// The clock, which is a column since each statement waits for the cluster where there is one, is that of when the statement
    /// began: an older time than that of the rows can only make a dead lease look alive.
    fn select(&self, from: &str, condition: &str) -> String {
        format!(
            "SELECT l.id, l.name, l.version, l.token, l.locked_by, l.explicit_owner, l.attempt, \
             l.capacity, {}, {}, {}, {}, {}, l.waiting_weight, \
             s.attempt, s.token, s.locked_by, s.explicit_owner, s.weight, s.capacity, {}, {}, {}, \
             l.standing, l.data, s.standing, s.data, {} \
             FROM {from} LEFT JOIN {} s ON s.name = l.name {condition}",
            micros("l.acquired_at"),
            micros("l.expires_at"),
            micros("l.lease_expires_at"),
            micros("l.touched_at"),
            micros("l.waiting_until"),
            micros("s.acquired_at"),
            micros("s.expires_at"),
            micros("s.touched_at"),
            micros(NOW),
            self.share,
        )
    }

    /// What grants a claim to all of a lock that nobody holds, or that is held by the lease whose place the claim takes, as far
    /// as its row alone tells, with the token as the last inserted id; and what it is executed with.
    ///
    /// It waits for a row that somebody has locked, for as long as the session lets it. What it decides is right
    /// as of when it began: what had expired then has expired.
    pub(crate) fn claim(&self, claim: &Claim) -> (&str, Params) {
        let ttl = match claim.ttl {
            Ttl::Infinite => None,
            Ttl::Finite(ttl) => Some(span(ttl.get())),
        };
        let attempt = hexadecimal(claim.attempt);
        let grace = span(claim.grace);
        let (owner, is_explicit) = (claim.owner.label(), claim.owner.is_explicit());
        let data = claim.data.as_ref().map(|data| data.as_str().as_bytes());
        let name = claim.name.as_str();
        let Some(lease) = &claim.replaces else {
            let params = (owner, is_explicit, &attempt, ttl, ttl, data, name, grace, &attempt);
            return (&self.claim, params.into());
        };
        let was = hexadecimal(lease.attempt);
        let (was_owner, was_explicit) = (lease.owner.label(), lease.owner.is_explicit());
        let token = lease.token.get();
        let params = (
            owner,
            is_explicit,
            &attempt,
            ttl,
            ttl,
            data,
            name,
            &was,
            token,
            was_owner,
            was_explicit,
            &attempt,
        );
        (&self.hand_over, params.into())
    }

    /// What ends a lease that holds all of its lock and is alive; and what it is executed with. It waits as
    /// [`claim`](Self::claim) does.
    pub(crate) fn release(&self, lease: &LeaseId) -> (&str, Params) {
        let attempt = hexadecimal(lease.attempt);
        let (owner, is_explicit) = (lease.owner.label(), lease.owner.is_explicit());
        let params = (lease.name.as_str(), attempt, lease.token.get(), owner, is_explicit);
        (&self.release, params.into())
    }

    /// Extends a lease that holds all of its lock and is alive. Answers where the number of changed rows
    /// stands.
    pub(crate) fn renew(&self, packet: &mut Packet, Renewal { lease, ttl, .. }: &Renewal) -> usize {
        let lock = &self.lock;
        let held = Standing::Held.code();
        let alive = alive([
            &hex(lease.attempt.as_uuid().as_bytes()),
            &lease.token.to_string(),
            &text(lease.owner.label()),
            if lease.owner.is_explicit() { "1" } else { "0" },
        ]);
        let alive = format!("{alive} AND standing = {held}");
        let until = end(*ttl, NOW);
        packet.begin();
        packet.add(format_args!(
            "SET {ROWS} = (SELECT id FROM {lock} WHERE name = {} AND {alive} FOR UPDATE SKIP LOCKED)",
            text(lease.name.as_str()),
        ));
        packet.add(format_args!(
            "UPDATE {lock} SET version = version + 1, touched_at = {NOW}, expires_at = {until}, \
             lease_expires_at = {until} WHERE id = {ROWS} AND {alive} {WHOLE}"
        ))
    }

    /// Grants claims to all of their locks, which differ in name and attempt alone, where nobody holds these as far as their rows
    /// alone tell. Answers where the number of changed rows stands, and where those names do, in hexadecimal digits and each with the
    /// token behind a colon, if they are as many.
    ///
    /// The clock is read before the rows are locked: an older time can only make a dead lease look alive, and a new one shorter.
    pub(crate) fn claim_many(
        &self,
        packet: &mut Packet,
        first: &Claim,
        claims: &[&Claim],
    ) -> (usize, usize) {
        let Claim { owner, ttl, grace, .. } = first;
        let lock = &self.lock;
        let names = list(claims.iter().map(|claim| text(claim.name.as_str())));
        let attempts = list(claims.iter().map(|claim| hex(claim.attempt.as_uuid().as_bytes())));
        let (time, token) = (moment(TIME), format!("GREATEST(token + 1, {TIME})"));
        let free = format!(
            "{LEFT_BY_ONE} AND (expires_at IS NULL OR expires_at <= {time} - INTERVAL {} MICROSECOND)",
            span(*grace)
        );
        let until = end(*ttl, &time);
        packet.begin();
        packet.add(format_args!("SET {TIME} = {}", micros(NOW)));
        packet.add(format_args!(
            "SELECT GROUP_CONCAT(id), GROUP_CONCAT(LOWER(HEX(name)), ':', {token}) INTO {ROWS}, {TOLD} FROM {lock} \
             WHERE name IN ({names}) AND {free} AND (attempt IS NULL OR attempt NOT IN ({attempts})) \
             FOR UPDATE SKIP LOCKED"
        ));
        let changed = update_rows(
            packet,
            &format!(
                "UPDATE {lock} {BY_KEY} SET token = {token}, version = version + 1, locked_by = {}, \
                 explicit_owner = {}, attempt = ELT(FIELD(name, {names}), {attempts}), capacity = {}, \
                 acquired_at = {time}, touched_at = {time}, expires_at = {until}, lease_expires_at = {until}, \
                 waiting_weight = 0, standing = {}, data = NULL \
                 WHERE FIELD(name, {names}) AND {free} {WHOLE}",
                text(owner.label()),
                u8::from(owner.is_explicit()),
                Share::FULL,
                Standing::Held.code(),
            ),
        );
        (changed, packet.add(format_args!("SELECT {TOLD}")))
    }

    /// Extends leases to one TTL that hold all of their locks and are alive, or ends them. Answers where the number of changed rows
    /// stands, and where the attempts do whose rows these are, in hexadecimal digits, if they are as many.
    pub(crate) fn change_many(
        &self,
        packet: &mut Packet,
        leases: &[&LeaseId],
        ttl: Option<Ttl>,
    ) -> (usize, usize) {
        let lock = &self.lock;
        let names = list(leases.iter().map(|lease| text(lease.name.as_str())));
        let attempts = list(leases.iter().map(|lease| hex(lease.attempt.as_uuid().as_bytes())));
        let identities = list(leases.iter().map(|lease| {
            let (is_explicit, owner) = (u8::from(lease.owner.is_explicit()), lease.owner.label());
            let name = lease.name.as_str();
            let rest = format!("{}:{is_explicit}:{}:{name}{owner}", lease.token, name.len());
            hex(&[lease.attempt.as_uuid().as_bytes(), rest.as_bytes()].concat())
        }));
        let held =
            format!("lease_expires_at = expires_at AND standing = {}", Standing::Held.code());
        packet.begin();
        packet.add(format_args!(
            "SELECT GROUP_CONCAT(id), GROUP_CONCAT(HEX(attempt)) INTO {ROWS}, {TOLD} FROM {lock} \
             WHERE name IN ({names}) AND {held} AND expires_at > {NOW} \
             AND CONCAT(attempt, token, ':', explicit_owner, ':', LENGTH(name), ':', name, locked_by) IN ({identities}) \
             FOR UPDATE SKIP LOCKED"
        ));
        // One that has expired since it was locked ends all the same, and is not extended.
        let (until, alive) = match ttl {
            None => ("NULL".to_owned(), String::new()),
            Some(ttl) => (end(ttl, NOW), format!("AND expires_at > {NOW}")),
        };
        let changed = update_rows(
            packet,
            &format!(
                "UPDATE {lock} {BY_KEY} SET version = version + 1, touched_at = {NOW}, expires_at = {until}, \
                 lease_expires_at = {until} WHERE attempt IN ({attempts}) AND {held} {alive} {WHOLE}"
            ),
        );
        (changed, packet.add(format_args!("SELECT {TOLD}")))
    }

    /// Carries out changes, each if its name is still as it was read. Answers where the ids of those names
    /// stand for which that was done.
    pub(crate) fn change(&self, packet: &mut Packet, changes: &[Change<'_>]) -> usize {
        let Self { lock, share, .. } = self;
        let (kinds, rows): (HashSet<_>, _) = changes.iter().map(change_row).unzip();
        let changed = CHANGES.list(rows);
        let (share_kinds, rows): (HashSet<_>, _) = changes.iter().flat_map(share_rows).unzip();
        let shares = SHARES.list(rows);
        for set in [changed.set(), shares.set()].into_iter().flatten() {
            packet.add(set);
        }
        packet.begin();
        let unchanged = format!("l.version = c.version AND {} <=> c.was", micros("l.expires_at"));
        packet.add(format_args!(
            "SET {ROWS} = (SELECT GROUP_CONCAT(c.id) FROM {changed} \
             STRAIGHT_JOIN {lock} l {BY_KEY} ON l.id = c.id WHERE {unchanged} \
             AND (c.good_until IS NULL OR {} < c.good_until) FOR UPDATE {OF_L} SKIP LOCKED)",
            micros(NOW)
        ));
        let share_of = format!(
            "STRAIGHT_JOIN {share} s {BY_KEY} ON s.name = l.name AND s.attempt = UNHEX(e.attempt)"
        );
        if share_kinds.contains(CHANGED) || share_kinds.contains(GONE) {
            packet.add(format_args!(
                "SET {SHARE_ROWS} = (SELECT GROUP_CONCAT(e.i) FROM {shares} \
                 STRAIGHT_JOIN {lock} l {BY_KEY} ON l.id = e.id {share_of} \
                 WHERE e.kind <> '{NEW}' AND FIND_IN_SET(e.id, {ROWS}) \
                 FOR UPDATE /*!80000 OF s */ SKIP LOCKED)"
            ));
            // A name whose shares are not all to be had is left as it is.
            packet.add(format_args!(
                "SET {ROWS} = (SELECT GROUP_CONCAT(c.id) FROM {changed} \
                 WHERE FIND_IN_SET(c.id, {ROWS}) AND NOT FIND_IN_SET(c.id, COALESCE(\
                 (SELECT GROUP_CONCAT(DISTINCT e.id) FROM {shares} WHERE e.kind <> '{NEW}' \
                 AND NOT FIND_IN_SET(e.i, COALESCE({SHARE_ROWS}, ''))), '')))"
            ));
        }
        let of = |kind| {
            format!("WHERE c.kind = '{kind}' AND FIND_IN_SET(c.id, {ROWS}) AND {unchanged} {WHOLE}")
        };
        let lock_of = format!("{changed} STRAIGHT_JOIN {lock} l {BY_KEY} ON l.id = c.id");
        let mark = format!(
            "l.waiting_until = {}, l.waiting_weight = c.waiting_weight",
            moment("c.waiting_until")
        );
        if kinds.contains(CHANGED) {
            let until = moment("c.expires_at");
            packet.add(format_args!(
                "UPDATE {lock_of} SET l.version = l.version + 1, l.token = c.token, \
                 l.locked_by = CONVERT(UNHEX(c.locked_by) USING utf8mb4), l.explicit_owner = c.explicit_owner, \
                 l.attempt = UNHEX(c.attempt), l.capacity = c.capacity, l.acquired_at = {}, \
                 l.touched_at = {}, l.expires_at = {until}, l.lease_expires_at = {until}, {mark}, \
                 l.standing = c.standing, l.data = {} {}",
                moment("c.acquired_at"),
                moment("c.touched_at"),
                changed.data(),
                of(CHANGED),
            ));
        }
        if kinds.contains(MARKED) {
            packet.add(format_args!(
                "UPDATE {lock_of} SET l.version = l.version + 1, {mark} {}",
                of(MARKED)
            ));
        }
        if kinds.contains(GONE) {
            packet.add(format_args!(
                "DELETE l, s FROM {lock_of} LEFT JOIN {share} s {BY_KEY} ON s.name = l.name {}",
                of(GONE)
            ));
        }
        // Only where the name's row was written just now.
        let written = |kind| {
            format!(
                "WHERE e.kind = '{kind}' AND FIND_IN_SET(e.id, {ROWS}) \
                 AND l.version = e.version + 1 AND l.touched_at = {} {WHOLE}",
                moment("e.written_at")
            )
        };
        let lock_of = format!("{shares} STRAIGHT_JOIN {lock} l {BY_KEY} ON l.id = e.id");
        if share_kinds.contains(GONE) {
            packet.add(format_args!("DELETE s FROM {lock_of} {share_of} {}", written(GONE)));
        }
        if share_kinds.contains(NEW) {
            packet.add(format_args!(
                "INSERT INTO {share} (name, attempt, token, locked_by, explicit_owner, weight, \
                 capacity, acquired_at, expires_at, touched_at, standing, data) \
                 SELECT l.name, UNHEX(e.attempt), e.token, UNHEX(e.locked_by), e.explicit_owner, e.weight, \
                 e.capacity, {}, {}, {}, e.standing, {} FROM {lock_of} {}",
                moment("e.acquired_at"),
                moment("e.expires_at"),
                moment("e.touched_at"),
                shares.data(),
                written(NEW),
            ));
        }
        if share_kinds.contains(CHANGED) {
            packet.add(format_args!(
                "UPDATE {lock_of} {share_of} SET s.expires_at = {}, s.touched_at = {}, \
                 s.standing = e.standing {}",
                moment("e.expires_at"),
                moment("e.touched_at"),
                written(CHANGED),
            ));
        }
        packet.add(format_args!("SELECT {ROWS}"))
    }

    /// As [`read`](Self::read), of names that may be idle.
    pub(crate) fn read_idle(&self, packet: &mut Packet, idle: Duration, limit: usize) -> usize {
        let since = format!("{NOW} - INTERVAL {} MICROSECOND", span(idle));
        let page = format!(
            "(SELECT * FROM {} WHERE touched_at <= {since} \
             AND (expires_at IS NULL OR expires_at <= {since}) \
             AND (waiting_until IS NULL OR waiting_until <= {NOW}) \
             AND token <= {} LIMIT {limit}) l",
            self.lock,
            micros(&since),
        );
        packet.add(self.select(&page, ""))
    }
}

/// Where a list goes on.
#[derive(Debug)]
pub(crate) enum Start {
    Prefix,
    Name(Vec<u8>),
    After(Vec<u8>),
}

/// A time as µs since 1970.
fn micros(time: &str) -> String {
    format!("TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {time})")
}

/// µs since 1970 as a time.
fn moment(micros: impl Display) -> String {
    format!("TIMESTAMP'1970-01-01 00:00:00.000000' + INTERVAL {micros} MICROSECOND")
}

/// When a lease ends that begins at a time.
fn end(ttl: Ttl, time: &str) -> String {
    match ttl {
        Ttl::Infinite => never(),
        Ttl::Finite(ttl) => format!("{time} + INTERVAL {} MICROSECOND", span(ttl.get())),
    }
}

/// Runs an update, which ends in a condition, on the rows that are locked, and tells its place among the answers.
///
/// A list of ids that only the server knows can stand in a statement that it prepares for that.
fn update_rows(packet: &mut Packet, update: &str) -> usize {
    packet.add(format_args!(
        "SET {STATEMENT} = CONCAT({}, COALESCE({ROWS}, 0), ')')",
        text(&format!("{update} AND id IN ("))
    ));
    packet.add(format_args!("PREPARE database_locks_update FROM {STATEMENT}"));
    let changed = packet.add("EXECUTE database_locks_update");
    packet.add("DEALLOCATE PREPARE database_locks_update");
    changed
}

fn never() -> String {
    moment(NEVER.as_micros())
}

/// µs to add to a time or take from it: at most 1,000 years, so that the calendar does not end.
pub(crate) fn span(duration: Duration) -> u64 {
    const MOST: Duration = Duration::from_hours(1_000 * 365 * 24);
    u64::try_from(duration.min(MOST).as_micros()).unwrap_or(u64::MAX)
}

/// Whether a row is of this lease, which holds all of its lock, and it is alive.
fn alive(identity: [&str; 4]) -> String {
    format!("{} AND {}", identified(identity), lives())
}

/// Whether a name is held, and by leases of ours.
fn lives() -> String {
    format!("lease_expires_at = expires_at AND expires_at > {NOW}")
}

/// Whether a row of either table is of this lease.
fn identified([attempt, token, locked_by, explicit_owner]: [&str; 4]) -> String {
    format!(
        "attempt = {attempt} AND token = {token} AND locked_by = {locked_by} \
         AND explicit_owner = {explicit_owner}"
    )
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use database_locks_core::{Attempt, Owner, Token};

    use super::*;
    use crate::literal::digits;

    /// Else one that expires after the rows were locked makes their number another than was told, and those that were ended
    /// are taken for lost.
    #[test]
    fn what_ends_leases_judges_their_time_but_once() {
        let config = MysqlConfig::from_url("mysql://host/app").unwrap();
        let (name, owner) = (LockName::new("x").unwrap(), Owner::explicit("alice").unwrap());
        let lease = LeaseId::new(name, Attempt::new(), Token::new(1), owner, Share::ALL);
        // The update stands in the packet as a literal.
        let judges_again = |ttl| {
            let mut packet = Packet::default();
            Tables::new(&config).change_many(&mut packet, &[&lease], ttl);
            packet.text().contains(&digits(b"expires_at > "))
        };
        assert!(!judges_again(None));
        assert!(judges_again(Some(Ttl::DEFAULT)), "an expired lease would be extended");
    }
}
