//! The backend: connections, transactions, and the verbs.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use database_locks_core::fence::Fence;
use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Capabilities, Claim, Error, LeaseInfo, ListQuery, LockBackend, LockName, Release, Released,
    Renewal, Renewed, Result, Verdict, async_trait,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};

use crate::config::SqliteConfig;
use crate::error::{BACKEND, classify, is_busy, replaced};
use crate::host::{Host, Identity, Moment, check_place, identity};
use crate::sql::{BEGIN_RESERVING, BEGIN_WRITING, DO_NOT_WAIT, Sql};

/// After all names: no byte of UTF-8 is 255.
const END: &[u8] = &[u8::MAX];
/// Between two looks whether the file can be written, in µs.
const PAUSE: Range<u64> = 1_000..4_000;
/// At most so many names are forgotten by one call of `clean_up`.
const FORGOTTEN_AT_ONCE: usize = 4_096;

/// Leases in one SQLite file, for all processes of one host. See the [crate](crate).
///
/// It has up to three connections: one decides, one looks before claims are decided, and one looks through all of the
/// file. Within the process decisions queue up first
/// come, first served; among processes the write lock of the file is waited for up to
/// [`SqliteConfig::busy_timeout`], and then the call fails with
/// [`ErrorKind::Unavailable`](database_locks_core::ErrorKind::Unavailable).
#[derive(Debug)]
pub struct SqliteBackend {
    config: SqliteConfig,
    /// Absolute, without symbolic links.
    path: PathBuf,
    sql: Sql,
    host: Host,
    writer: Slot,
    reader: Slot,
    scanner: Slot,
}

impl SqliteBackend {
    /// Opens the file, and creates it and the tables where they are missing. Any number of
    /// processes may do so at once.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for a folder that does not exist and a file that is no SQLite database,
    /// `Permission` for what cannot be written, `Unsupported` for a network file system and a
    /// system without a boot id, `Unavailable` where the file stays locked.
    pub async fn connect(config: impl Into<SqliteConfig>) -> Result<Self> {
        let host = Host::this().map_err(|e| e.with_backend(BACKEND).with_operation("connect"))?;
        Self::connect_on(config.into(), host).await
    }

    /// As [`connect`](Self::connect), in a boot and by clocks of the caller's choice.
    pub(crate) async fn connect_on(config: SqliteConfig, host: Host) -> Result<Self> {
        let backend = Self {
            path: check_place(config.path())
                .map_err(|error| error.with_backend(BACKEND).with_operation("connect"))?,
            sql: Sql::new(config.table()),
            writer: Slot::default(),
            reader: Slot::default(),
            scanner: Slot::default(),
            config,
            host,
        };
        backend.migrate().await?;
        Ok(backend)
    }

    /// Creates the tables where they are missing. [`connect`](Self::connect) has done so.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    pub async fn migrate(&self) -> Result<()> {
        for slot in [&self.writer, &self.reader] {
            *slot.0.lock().await = None;
            self.check_out(slot, "connect").await?.put_back();
        }
        Ok(())
    }

    /// Lets `decide` change the state of each item's name, in one transaction for all of them.
    async fn decide<I: Sync, O: Send>(
        &self,
        operation: &'static str,
        grants: bool,
        items: &[&I],
        name: fn(&I) -> &LockName,
        decide: fn(&mut Ledger, &I, Moment) -> O,
    ) -> Result<Vec<O>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let boot = self.host.boot;
        let mut connection = self.check_out(&self.writer, operation).await?;
        let mut turn = self.turn();
        let answers = async {
            let mut begin = BEGIN_WRITING;
            loop {
                let mut transaction = match connection.open.begin_with(begin).await {
                    Err(error) if turn.is_waited_for(&error).await => continue,
                    begun => begun?,
                };
                // The clock is read only now: the write lock may have been waited for.
                let now = self.host.now();
                let reserve = self.sql.reserve(&mut transaction, boot).await?;
                let names = items.iter().map(|item| name(item));
                let mut states = self.sql.load(&mut transaction, names, boot).await?;
                if grants {
                    states.values_mut().for_each(|state| state.begin_above(reserve));
                }
                let mut answers = Vec::with_capacity(items.len());
                for item in items {
                    let state = states.entry(name(item).clone()).or_default();
                    answers.push(decide(&mut state.ledger, item, now));
                }
                let changed: Vec<_> =
                    states.iter().filter(|(_, state)| state.is_changed()).collect();
                if changed.is_empty() {
                    transaction.rollback().await?;
                    return Ok(answers);
                }
                let granted = changed.iter().filter_map(|(_, state)| state.granted()).max();
                if let Some(token) = granted.filter(|token| *token > reserve.until()) {
                    if begin == BEGIN_WRITING {
                        transaction.rollback().await?;
                        (begin, turn) = (BEGIN_RESERVING, self.turn());
                        continue;
                    }
                    let reserve = reserve.beyond(token);
                    self.sql.save_reserve(&mut transaction, reserve, boot).await?;
                }
                self.sql.save(&mut transaction, &changed, boot).await?;
                transaction.commit().await?;
                return Ok(answers);
            }
        }
        .await
        .map_err(|error| self.classify(error, operation))?;
        connection.put_back();
        Ok(answers)
    }

    /// What becomes of each claim that changes nothing, `None` for those that have to be decided.
    async fn look(&self, claims: &[Claim]) -> Result<Vec<Option<Verdict>>> {
        let mut connection = self.check_out(&self.reader, "acquire").await?;
        let names = claims.iter().map(|claim| &claim.name);
        let mut states = self
            .sql
            .load(&mut connection.open, names, self.host.boot)
            .await
            .map_err(|error| self.classify(error, "acquire"))?;
        connection.put_back();
        let now = self.host.now();
        let verdicts: Vec<Verdict> = claims
            .iter()
            .map(|claim| {
                let state = states.entry(claim.name.clone()).or_default();
                acquire(&mut state.ledger, claim, now)
            })
            .collect();
        let is_changed = |claim: &Claim| states[&claim.name].is_changed();
        Ok(claims.iter().zip(verdicts).map(|(c, v)| (!is_changed(c)).then_some(v)).collect())
    }

    /// Takes the slot's connection, and opens one where there is none that can be used.
    async fn check_out<'s>(
        &self,
        slot: &'s Slot,
        operation: &'static str,
    ) -> Result<CheckedOut<'s>> {
        let mut kept = slot.0.lock().await;
        // Somebody may have deleted the file. Its leases went with it, and whoever makes it anew
        // would not see what is granted in the old one, which has no name any more.
        let (open, file) = match kept.take() {
            Some((open, file)) if identity(&self.path) == Some(file) => (open, file),
            _ => {
                let (mut open, file) = self.open(operation).await?;
                if std::ptr::eq(slot, &raw const self.writer) {
                    let silenced = sqlx::raw_sql(DO_NOT_WAIT).execute(&mut open).await;
                    silenced.map_err(|error| self.classify(error, operation))?;
                }
                (open, file)
            }
        };
        Ok(CheckedOut { open, file, kept })
    }

    async fn open(&self, operation: &'static str) -> Result<(SqliteConnection, Identity)> {
        let path = check_place(&self.path)
            .map_err(|error| error.with_backend(BACKEND).with_operation(operation))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(self.config.busy_timeout())
            .synchronous(SqliteSynchronous::Full)
            // On macOS a plain fsync leaves what is written in the disk's cache.
            .pragma("fullfsync", "ON")
            .pragma("checkpoint_fullfsync", "ON")
            .disable_statement_logging();
        let connect = async {
            let mut open = options.connect().await?;
            if !self.sql.is_set_up(&mut open).await? {
                self.sql.set_up(&mut open).await?;
                open.close().await?;
                open = options.connect().await?;
            }
            let file = identity(&path);
            // Reads the file, so that it is surely the one that the connection has open.
            self.sql.is_set_up(&mut open).await?;
            Ok((open, file))
        };
        let (open, file) = connect.await.map_err(|error| self.classify(error, operation))?;
        match file {
            Some(file) if identity(&path) == Some(file) => Ok((open, file)),
            _ => Err(replaced(&path).with_backend(BACKEND).with_operation(operation)),
        }
    }

    /// The wait for the write lock of the file, which begins now.
    fn turn(&self) -> Turn {
        Turn { until: Instant::now() + self.config.busy_timeout() }
    }

    /// Whether what was written last has to survive a power failure.
    #[cfg(test)]
    pub(crate) async fn is_durable(&self) -> bool {
        let mut kept = self.writer.0.lock().await;
        let (open, _) = kept.as_mut().expect("something was written");
        let level: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(open).await.unwrap();
        level == 2
    }

    fn classify(&self, error: sqlx::Error, operation: &'static str) -> Error {
        classify(error, &self.path, operation)
    }
}

#[async_trait]
impl LockBackend for SqliteBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(BACKEND).with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let looked = self.look(claims).await?;
        let open: Vec<&Claim> =
            claims.iter().zip(&looked).filter(|(_, v)| v.is_none()).map(|(c, _)| c).collect();
        let decided = self.decide("acquire", true, &open, |claim| &claim.name, acquire).await?;
        let mut decided = decided.into_iter();
        Ok(looked.into_iter().filter_map(|verdict| verdict.or_else(|| decided.next())).collect())
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        let renewals: Vec<&Renewal> = renewals.iter().collect();
        self.decide(
            "renew",
            false,
            &renewals,
            |renewal| &renewal.lease.name,
            |ledger, renewal, now| ledger.renew(renewal, now.since_boot),
        )
        .await
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let releases: Vec<&Release> = releases.iter().collect();
        self.decide(
            "release",
            false,
            &releases,
            |release| &release.lease.name,
            |ledger, release, now| ledger.release(release, now.since_boot).0,
        )
        .await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let after = query.after.as_ref().map(|(name, attempt)| (name.as_str(), *attempt));
        let first = query.prefix.as_str().max(after.map_or("", |(name, _)| name));
        let mut connection = self.check_out(&self.scanner, "list").await?;
        let page = async {
            let mut page = Vec::new();
            let end = query.end().map_or_else(|| END.to_vec(), String::into_bytes);
            let mut states =
                self.sql.scan(&mut connection.open, first.as_bytes(), &end, self.host.boot);
            while page.len() < limit
                && let Some((name, state)) = states.next().await?
            {
                let leases = state.ledger.list(&name, self.host.now().since_boot);
                page.extend(leases.into_iter().filter(|info| {
                    after.is_none_or(|after| (name.as_str(), info.lease.attempt) > after)
                }));
            }
            page.truncate(limit);
            Ok(page)
        }
        .await
        .map_err(|error| self.classify(error, "list"))?;
        connection.put_back();
        Ok(page)
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let boot = self.host.boot;
        let is_idle = |ledger: &Ledger| {
            // Whatever its token is: all that come after are above those that were forgotten.
            ledger.is_idle(idle, self.host.now().since_boot, u64::MAX)
        };
        // A plain read finds them, so that nobody has to wait while the whole table is read.
        let mut connection = self.check_out(&self.scanner, "clean up").await?;
        let found = async {
            let mut found = Vec::new();
            let mut states = self.sql.scan(&mut connection.open, &[], END, boot);
            while found.len() < FORGOTTEN_AT_ONCE
                && let Some((name, state)) = states.next().await?
            {
                if is_idle(&state.ledger) {
                    found.push(name);
                }
            }
            Ok(found)
        }
        .await
        .map_err(|error| self.classify(error, "clean up"))?;
        connection.put_back();
        if found.is_empty() {
            return Ok(0);
        }

        let mut connection = self.check_out(&self.writer, "clean up").await?;
        let turn = self.turn();
        let forgotten = async {
            let mut transaction = loop {
                match connection.open.begin_with(BEGIN_WRITING).await {
                    Err(error) if turn.is_waited_for(&error).await => {}
                    begun => break begun?,
                }
            };
            let states = self.sql.load(&mut transaction, &found, boot).await?;
            let idle =
                states.iter().filter(|(_, state)| state.is_stored() && is_idle(&state.ledger));
            let (idle, tokens): (Vec<&LockName>, Vec<u64>) =
                idle.map(|(name, state)| (name, state.token())).unzip();
            if let Some(highest) = tokens.into_iter().max() {
                let reserve = self.sql.reserve(&mut transaction, boot).await?.above(highest);
                self.sql.save_reserve(&mut transaction, reserve, boot).await?;
            }
            self.sql.forget(&mut transaction, &idle).await?;
            transaction.commit().await?;
            Ok(idle.len() as u64)
        }
        .await
        .map_err(|error| self.classify(error, "clean up"))?;
        connection.put_back();
        Ok(forgotten)
    }

    fn fence(&self) -> Option<Fence> {
        Some(self.sql.fence(self.host.clone()))
    }
}

/// A wait for the write lock of the file, which other processes have in turns.
///
/// SQLite's own waiting is longer each time, up to a tenth of a second, so that whoever has waited for long comes last.
struct Turn {
    until: Instant,
}

impl Turn {
    /// Pauses if somebody else has the lock and there is still time.
    async fn is_waited_for(&self, error: &sqlx::Error) -> bool {
        let is_waited_for = is_busy(error) && Instant::now() < self.until;
        if is_waited_for {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(PAUSE))).await;
        }
        is_waited_for
    }
}

/// Keeps one connection open between two uses, and which file it has open.
#[derive(Default)]
struct Slot(Mutex<Option<(SqliteConnection, Identity)>>);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// A connection in use. It is closed unless it is put back: after an error, and where the future
/// that used it was dropped, nobody can say what is still going on on it. SQLite rolls back what a
/// closed connection had not committed.
struct CheckedOut<'s> {
    open: SqliteConnection,
    file: Identity,
    kept: MutexGuard<'s, Option<(SqliteConnection, Identity)>>,
}

impl CheckedOut<'_> {
    fn put_back(mut self) {
        *self.kept = Some((self.open, self.file));
    }
}

fn acquire(ledger: &mut Ledger, claim: &Claim, now: Moment) -> Verdict {
    ledger.acquire(claim, now.since_boot, now.wall_micros)
}
