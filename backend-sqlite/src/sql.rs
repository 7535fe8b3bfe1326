//! Every statement that is sent to SQLite, and how rows become the state of a name.
//!
//! All rows of a name are read by one statement, so that they are of one snapshot, and written in
//! the transaction in which they were read and that had the write lock before. What they mean is
//! decided by [`Ledger`] alone; nothing here compares times or weights.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use database_locks_core::fence::{Dialect, Fence, FenceParam, FenceSql, Statement};
use database_locks_core::ledger::{Entry, Ledger, Mark, Until};
use database_locks_core::{Attempt, Data, LockName, Owner, Share, Standing, Token};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use crate::host::Host;

/// Takes the write lock of the file before anything is read, so that nobody can decide between
/// the reading and the writing. It does not wait for it: whoever begins tries again.
///
/// What is committed survives the process, and a power failure only if the file is synchronized later:
/// such a failure ends the boot, and with it all leases.
pub(crate) const BEGIN_WRITING: &str = "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE";

/// As [`BEGIN_WRITING`], and what is committed survives a power failure too, as the [reserve](Reserve) has to.
pub(crate) const BEGIN_RESERVING: &str = "PRAGMA synchronous = FULL; BEGIN IMMEDIATE";

/// For a connection whose user waits for the file's lock by trying again.
pub(crate) const DO_NOT_WAIT: &str = "PRAGMA busy_timeout = 0";

/// As [`BEGIN_WRITING`], and keeps readers out as well while the file is not in WAL mode yet.
const BEGIN_ALONE: &str = "BEGIN EXCLUSIVE";

const JOURNAL_MODE: &str = "PRAGMA journal_mode";
const SWITCH_TO_WAL: &str = "PRAGMA journal_mode = WAL";
const KEEP_FILE_LOCKED: &str = "PRAGMA locking_mode = EXCLUSIVE";

/// SQLite takes 32,766 parameters in a statement, and a lease has twelve.
const ROWS_PER_STATEMENT: usize = 1_000;

/// The statements for one pair of tables.
#[derive(Debug)]
pub(crate) struct Sql {
    names: String,
    leases: String,
    tokens: String,
}

/// Which tokens may be granted without synchronizing the file. A power failure may lose grants, with all leases, though
/// no token may be granted twice: those of the next boot are higher than all that were reserved.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reserve {
    /// All tokens of this boot are higher.
    floor: u64,
    /// The highest token that may be granted.
    until: u64,
}

impl Reserve {
    /// How much is reserved at once, in tokens, which count the µs.
    const SIZE: u64 = 60_000_000;

    /// The highest token that may be granted.
    pub(crate) fn until(self) -> u64 {
        self.until
    }

    /// Lets all tokens that are granted from now on be higher than `token`.
    pub(crate) fn above(self, token: u64) -> Self {
        let floor = self.floor.max(token);
        Self { floor, until: self.until.max(floor) }
    }

    /// Reserves more than `token`.
    pub(crate) fn beyond(self, token: u64) -> Self {
        Self { until: token.saturating_add(Self::SIZE), ..self }
    }
}

/// All that the tables hold of one name, and what is to become of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// What was decided; at first as it was read.
    pub(crate) ledger: Ledger,
    /// As it was read.
    before: Ledger,
    /// The tokens of the rows that there are, some of them perhaps of another boot.
    rows: Vec<i64>,
}

impl State {
    /// Lets tokens begin above the reserve of earlier boots.
    pub(crate) fn begin_above(&mut self, reserve: Reserve) {
        for ledger in [&mut self.ledger, &mut self.before] {
            ledger.token = ledger.token.max(reserve.floor);
        }
    }

    /// The token that was granted last, if one was just now.
    pub(crate) fn granted(&self) -> Option<u64> {
        (self.ledger.token > self.before.token).then_some(self.ledger.token)
    }

    /// Whether anything was decided that has to be written.
    pub(crate) fn is_changed(&self) -> bool {
        self.ledger != self.before
    }

    /// The last token that was granted.
    pub(crate) fn token(&self) -> u64 {
        self.before.token
    }

    /// Whether the tables know of the name at all: who grants a name writes its token.
    pub(crate) fn is_stored(&self) -> bool {
        self.before.token > 0 || self.before.mark.is_some()
    }
}

impl Sql {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            names: format!("\"{table}\""),
            leases: format!("\"{table}_lease\""),
            tokens: format!("\"{table}_token\""),
        }
    }

    /// The tables.
    ///
    /// Names are blobs, because blobs are compared byte by byte whatever the file's encoding.
    /// Times are microseconds since the boot that the name's row tells. A lease that has neither
    /// `expires_at` nor `released_at` never expires.
    pub(crate) fn schema(&self) -> String {
        let Self { names, leases, tokens } = self;
        format!(
            "CREATE TABLE IF NOT EXISTS {names} (
    name BLOB NOT NULL PRIMARY KEY,
    token INTEGER NOT NULL,
    boot BLOB NOT NULL,
    touched_at INTEGER NOT NULL,
    mark_until INTEGER,
    mark_weight INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {leases} (
    name BLOB NOT NULL,
    token INTEGER NOT NULL,
    attempt BLOB NOT NULL,
    owner TEXT NOT NULL,
    owner_is_explicit INTEGER NOT NULL,
    weight INTEGER NOT NULL,
    capacity INTEGER NOT NULL,
    granted_at INTEGER NOT NULL,
    expires_at INTEGER,
    released_at INTEGER,
    standing INTEGER NOT NULL,
    data TEXT,
    PRIMARY KEY (name, token)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {tokens} (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    boot BLOB NOT NULL,
    floor INTEGER NOT NULL,
    reserved INTEGER NOT NULL
) STRICT;
"
        )
    }

    /// Whether the file is in WAL mode and has the tables.
    pub(crate) async fn is_set_up(&self, connection: &mut SqliteConnection) -> sqlx::Result<bool> {
        let tables: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM sqlite_schema \
             WHERE type = 'table' AND lower(name) IN (lower(?), lower(?), lower(?))",
        )
        .bind(self.names.trim_matches('"'))
        .bind(self.leases.trim_matches('"'))
        .bind(self.tokens.trim_matches('"'))
        .fetch_one(&mut *connection)
        .await?;
        Ok(tables == 3 && is_in_wal_mode(connection).await?)
    }

    /// Creates the tables, and puts the file into WAL mode. The connection is of no use afterwards
    /// but to be closed.
    ///
    /// Many processes may do so at once. SQLite does not wait when it switches to WAL mode: it
    /// fails if anybody else looks at the file. So the file's own lock is waited for by a
    /// transaction, and kept beyond it for the switch.
    pub(crate) async fn set_up(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let mut alone = connection.begin_with(BEGIN_ALONE).await?;
        sqlx::raw_sql(AssertSqlSafe(self.schema())).execute(&mut *alone).await?;
        if is_in_wal_mode(&mut alone).await? {
            return alone.commit().await;
        }
        sqlx::raw_sql(KEEP_FILE_LOCKED).execute(&mut *alone).await?;
        alone.commit().await?;
        sqlx::raw_sql(SWITCH_TO_WAL).execute(connection).await?;
        Ok(())
    }

    /// Reads which tokens may be granted in `boot`.
    pub(crate) async fn reserve(
        &self,
        connection: &mut SqliteConnection,
        boot: Uuid,
    ) -> sqlx::Result<Reserve> {
        let query = format!("SELECT boot, floor, reserved FROM {}", self.tokens);
        let row = sqlx::query(AssertSqlSafe(query)).fetch_optional(connection).await?;
        let Some(row) = row else { return Ok(Reserve::default()) };
        let until = read_u64(&row, 2)?;
        let is_of_boot = row.try_get::<Vec<u8>, _>(0)? == boot.as_bytes();
        let floor = if is_of_boot { read_u64(&row, 1)? } else { until };
        Ok(Reserve { floor, until })
    }

    /// Writes which tokens may be granted in `boot`. Where more may be than before, the transaction has to be
    /// synchronized.
    pub(crate) async fn save_reserve(
        &self,
        connection: &mut SqliteConnection,
        reserve: Reserve,
        boot: Uuid,
    ) -> sqlx::Result<()> {
        let query = format!("INSERT OR REPLACE INTO {} VALUES (1, ?, ?, ?)", self.tokens);
        sqlx::query(AssertSqlSafe(query))
            .bind(boot.as_bytes().to_vec())
            .bind(number(reserve.floor))
            .bind(number(reserve.until))
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Reads the state of each of `names`, as of `boot`.
    pub(crate) async fn load<'n>(
        &self,
        connection: &mut SqliteConnection,
        names: impl IntoIterator<Item = &'n LockName>,
        boot: Uuid,
    ) -> sqlx::Result<BTreeMap<LockName, State>> {
        let mut states: BTreeMap<LockName, State> =
            names.into_iter().map(|name| (name.clone(), State::default())).collect();
        let names: Vec<LockName> = states.keys().cloned().collect();
        for names in names.chunks(ROWS_PER_STATEMENT) {
            let mut query = QueryBuilder::<Sqlite>::new(self.select());
            query.push(" WHERE n.name IN (");
            let mut list = query.separated(", ");
            for name in names {
                list.push_bind(key(name));
            }
            query.push(")").push(ORDER);
            let mut rows = States::new(query.build().fetch(&mut *connection), boot);
            while let Some((name, state)) = rows.next().await? {
                states.insert(name, state);
            }
        }
        Ok(states)
    }

    /// Reads the state of each name from `first` up to but not including `end`, in their order.
    pub(crate) fn scan<'c>(
        &self,
        connection: &'c mut SqliteConnection,
        first: &[u8],
        end: &[u8],
        boot: Uuid,
    ) -> States<'c> {
        let query = format!("{} WHERE n.name >= ? AND n.name < ?{ORDER}", self.select());
        let query = sqlx::query(AssertSqlSafe(query)).bind(first.to_vec()).bind(end.to_vec());
        States::new(query.fetch(connection), boot)
    }

    /// Writes what was decided. Must be in the transaction in which it was read.
    pub(crate) async fn save(
        &self,
        connection: &mut SqliteConnection,
        changed: &[(&LockName, &State)],
        boot: Uuid,
    ) -> sqlx::Result<()> {
        let Self { names, leases, .. } = self;
        for changed in changed.chunks(ROWS_PER_STATEMENT) {
            let mut query = QueryBuilder::<Sqlite>::new(format!(
                "INSERT INTO {names} (name, token, boot, touched_at, mark_until, mark_weight) "
            ));
            query.push_values(changed, |mut row, (name, State { ledger, .. })| {
                row.push_bind(key(name))
                    .push_bind(number(ledger.token))
                    .push_bind(boot.as_bytes().to_vec())
                    .push_bind(micros(ledger.touched))
                    .push_bind(ledger.mark.map(|mark| micros(mark.until)))
                    .push_bind(ledger.mark.map(|mark| i64::from(mark.weight)));
            });
            query.push(
                " ON CONFLICT (name) DO UPDATE SET token = excluded.token, boot = excluded.boot, \
                 touched_at = excluded.touched_at, mark_until = excluded.mark_until, \
                 mark_weight = excluded.mark_weight",
            );
            execute(query, connection).await?;
        }

        let gone: Vec<(&LockName, i64)> = changed
            .iter()
            .flat_map(|(name, state)| {
                let stays = |row: &i64| {
                    state.ledger.entries.iter().any(|entry| number(entry.token.get()) == *row)
                };
                state.rows.iter().filter(move |row| !stays(row)).map(|row| (*name, *row))
            })
            .collect();
        for gone in gone.chunks(ROWS_PER_STATEMENT) {
            let mut query = QueryBuilder::<Sqlite>::new(format!(
                "DELETE FROM {leases} WHERE (name, token) IN (VALUES "
            ));
            let mut rows = query.separated(", ");
            for (name, token) in gone {
                rows.push("(").push_bind_unseparated(key(name)).push_unseparated(", ");
                rows.push_bind_unseparated(*token).push_unseparated(")");
            }
            query.push(")");
            execute(query, connection).await?;
        }

        let written: Vec<(&LockName, &Entry)> = changed
            .iter()
            .flat_map(|(name, state)| {
                let entries = state.ledger.entries.iter();
                entries.filter(|e| !state.before.entries.contains(e)).map(|e| (*name, e))
            })
            .collect();
        for written in written.chunks(ROWS_PER_STATEMENT) {
            let mut query = QueryBuilder::<Sqlite>::new(format!(
                "INSERT INTO {leases} (name, token, attempt, owner, owner_is_explicit, weight, \
                 capacity, granted_at, expires_at, released_at, standing, data) "
            ));
            query.push_values(written, |mut row, (name, entry)| {
                let (expires_at, released_at) = match entry.until {
                    Until::Forever => (None, None),
                    Until::Expiry(at) => (Some(micros(at)), None),
                    Until::Released(at) => (None, Some(micros(at))),
                };
                row.push_bind(key(name))
                    .push_bind(number(entry.token.get()))
                    .push_bind(entry.attempt.as_uuid().as_bytes().to_vec())
                    .push_bind(entry.owner.label().to_owned())
                    .push_bind(i64::from(entry.owner.is_explicit()))
                    .push_bind(i64::from(entry.share.weight()))
                    .push_bind(i64::from(entry.share.capacity()))
                    .push_bind(micros(entry.granted_at))
                    .push_bind(expires_at)
                    .push_bind(released_at)
                    .push_bind(i64::from(entry.standing.code()))
                    .push_bind(entry.data.as_ref().map(|data| data.as_str().to_owned()));
            });
            query.push(
                " ON CONFLICT (name, token) DO UPDATE SET expires_at = excluded.expires_at, \
                 released_at = excluded.released_at, standing = excluded.standing",
            );
            execute(query, connection).await?;
        }
        Ok(())
    }

    /// Deletes all that is known of `names`.
    pub(crate) async fn forget(
        &self,
        connection: &mut SqliteConnection,
        names: &[&LockName],
    ) -> sqlx::Result<()> {
        for table in [&self.names, &self.leases] {
            for names in names.chunks(ROWS_PER_STATEMENT) {
                let mut query =
                    QueryBuilder::<Sqlite>::new(format!("DELETE FROM {table} WHERE name IN ("));
                let mut list = query.separated(", ");
                for name in names {
                    list.push_bind(key(name));
                }
                query.push(")");
                execute(query, connection).await?;
            }
        }
        Ok(())
    }

    /// What fences a transaction of the user's own on `host`.
    ///
    /// It writes, so that the transaction has the write lock of the file, beside which nobody is granted anything. A lease whose
    /// place was given away is marked as ended, or deleted, so that an older time can make alive only what nobody has
    /// followed.
    pub(crate) fn fence(&self, host: Host) -> Fence {
        let Self { names, leases, .. } = self;
        let sql: Arc<str> = format!(
            "UPDATE {leases} SET standing = standing WHERE name = ?1 AND token = ?2 AND attempt = ?3 \
             AND owner = ?4 AND owner_is_explicit = ?5 AND standing = {} \
             AND released_at IS NULL AND (expires_at IS NULL OR expires_at > ?7) \
             AND EXISTS (SELECT 1 FROM {names} n WHERE n.name = ?1 AND n.boot = ?6)",
            Standing::Held.code(),
        )
        .into();
        let lookup: Arc<str> = format!("SELECT 1 FROM {names} WHERE name = ?1").into();
        Fence::new(move |lease| {
            let name = FenceParam::Bytes(key(&lease.name));
            let params = [
                name.clone(),
                FenceParam::Integer(number(lease.token.get())),
                FenceParam::Bytes(lease.attempt.as_uuid().as_bytes().to_vec()),
                FenceParam::Text(lease.owner.label().to_owned()),
                FenceParam::Integer(lease.owner.is_explicit().into()),
                FenceParam::Bytes(host.boot.as_bytes().to_vec()),
                FenceParam::Integer(micros(host.now().since_boot)),
            ];
            FenceSql::new(Dialect::Sqlite, Statement::new(Arc::clone(&sql), params))
                .with_lookup(Statement::new(Arc::clone(&lookup), [name]))
        })
    }

    fn select(&self) -> String {
        let Self { names, leases, .. } = self;
        format!(
            "SELECT n.name, n.token, n.boot, n.touched_at, n.mark_until, n.mark_weight, \
             l.token, l.attempt, l.owner, l.owner_is_explicit, l.weight, l.capacity, \
             l.granted_at, l.expires_at, l.released_at, l.standing, l.data \
             FROM {names} n LEFT JOIN {leases} l ON l.name = n.name"
        )
    }
}

/// Entries in the order in which they were granted, as the ledger keeps them.
const ORDER: &str = " ORDER BY n.name, l.token";

async fn is_in_wal_mode(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    let mode: String = sqlx::query_scalar(JOURNAL_MODE).fetch_one(connection).await?;
    Ok(mode.eq_ignore_ascii_case("wal"))
}

async fn execute(
    mut query: QueryBuilder<Sqlite>,
    connection: &mut SqliteConnection,
) -> sqlx::Result<()> {
    query.build().execute(connection).await?;
    Ok(())
}

/// The states of names, read row by row.
pub(crate) struct States<'c> {
    rows: BoxStream<'c, sqlx::Result<SqliteRow>>,
    boot: Uuid,
    /// The name whose rows are being read.
    current: Option<(LockName, State)>,
}

impl<'c> States<'c> {
    /// The rows of one name must come one after the other.
    fn new(rows: BoxStream<'c, sqlx::Result<SqliteRow>>, boot: Uuid) -> Self {
        Self { rows, boot, current: None }
    }

    /// The next name, or `None` after the last one.
    pub(crate) async fn next(&mut self) -> sqlx::Result<Option<(LockName, State)>> {
        while let Some(row) = self.rows.try_next().await? {
            let (name, token, lease) = (read_name(&row)?, row.try_get(6)?, self.is_of_boot(&row)?);
            let finished = match &self.current {
                Some((current, _)) if *current == name => None,
                _ => self.current.replace((name, read_name_state(&row, lease)?)),
            };
            if let (Some(token), Some((_, state))) = (token, &mut self.current) {
                state.rows.push(token);
                if lease {
                    state.before.entries.push(read_lease(&row)?);
                }
            }
            if let Some(finished) = finished {
                return Ok(Some(as_read(finished)));
            }
        }
        Ok(self.current.take().map(as_read))
    }

    fn is_of_boot(&self, row: &SqliteRow) -> sqlx::Result<bool> {
        Ok(row.try_get::<Vec<u8>, _>(2)? == self.boot.as_bytes())
    }
}

/// Nothing has been decided yet.
fn as_read((name, mut state): (LockName, State)) -> (LockName, State) {
    state.ledger = state.before.clone();
    (name, state)
}

fn read_name(row: &SqliteRow) -> sqlx::Result<LockName> {
    let name = String::from_utf8(row.try_get(0)?).map_err(malformed)?;
    LockName::new(name).map_err(malformed)
}

/// Reads what stands in the name's own row. Of another boot only the token counts: its times are
/// of another clock, and its leases and marks ended with it.
fn read_name_state(row: &SqliteRow, is_of_boot: bool) -> sqlx::Result<State> {
    let mut before = Ledger::default();
    before.token = read_u64(row, 1)?;
    if is_of_boot {
        before.touched = duration(row.try_get(3)?);
        let mark = (row.try_get::<Option<i64>, _>(4)?, row.try_get::<Option<u32>, _>(5)?);
        if let (Some(until), Some(weight)) = mark {
            before.mark = Some(Mark::new(duration(until), weight));
        }
    }
    Ok(State { before, ..State::default() })
}

fn read_lease(row: &SqliteRow) -> sqlx::Result<Entry> {
    let owner: String = row.try_get(8)?;
    let owner = if row.try_get(9)? { Owner::explicit(owner) } else { Owner::label_only(owner) };
    let expires_at: Option<i64> = row.try_get(13)?;
    let released_at: Option<i64> = row.try_get(14)?;
    let mut entry = Entry::new(
        Attempt::from_uuid(Uuid::from_slice(row.try_get(7)?).map_err(malformed)?),
        Token::new(read_u64(row, 6)?),
        owner.map_err(malformed)?,
        Share::new(row.try_get(10)?, row.try_get(11)?).map_err(malformed)?,
        duration(row.try_get(12)?),
    );
    entry.until = match (expires_at, released_at) {
        (_, Some(at)) => Until::Released(duration(at)),
        (Some(at), None) => Until::Expiry(duration(at)),
        (None, None) => Until::Forever,
    };
    entry.standing = Standing::of_code(row.try_get(15)?);
    entry.data =
        row.try_get::<Option<String>, _>(16)?.map(Data::new).transpose().map_err(malformed)?;
    Ok(entry)
}

fn read_u64(row: &SqliteRow, column: usize) -> sqlx::Result<u64> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(malformed)
}

fn malformed(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

fn key(name: &LockName) -> Vec<u8> {
    name.as_str().as_bytes().to_vec()
}

fn number(token: u64) -> i64 {
    i64::try_from(token).unwrap_or(i64::MAX)
}

fn micros(moment: Duration) -> i64 {
    i64::try_from(moment.as_micros()).unwrap_or(i64::MAX)
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
