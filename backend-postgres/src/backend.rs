//! The verbs: what is asked of which connection, and what the answers mean.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks_core::{
    Attempt, Busy, Capabilities, Claim, Error, ErrorKind, Holder, LeaseId, LeaseInfo, ListQuery,
    LockBackend, LockName, LossReason, Owner, Released, Renewal, Renewed, Result, Share, Token,
    Ttl, Verdict, Wakeups, async_trait,
};
use futures_util::future::{join3, join4};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::config::PostgresConfig;
use crate::pool::{Connections, InUse};
use crate::sql::{self, Statements};
use crate::{error, wakeups};

/// Leases in the tables of a Postgres.
///
/// Cheap to share by reference or `Arc`; it holds at most
/// [`pool_size`](PostgresConfig::pool_size) + 2 connections, however many leases there are.
#[derive(Debug)]
pub struct PostgresBackend {
    config: PostgresConfig,
    connections: Connections,
    statements: Statements,
    /// Whether statements need explicit transactions, because the sessions' defaults are hostile.
    guarded: AtomicBool,
}

impl PostgresBackend {
    /// Connects, and checks that the server answers and is new enough. The tables need not be
    /// there yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the server cannot be reached, [`ErrorKind::Permission`] if it
    /// refuses the user, [`ErrorKind::InvalidOption`] if the database does not exist or TLS is not
    /// possible as configured, [`ErrorKind::Unsupported`] for a server before Postgres 12.
    pub async fn connect(config: PostgresConfig) -> Result<Self> {
        let backend = Self {
            connections: Connections::new(&config)?,
            statements: Statements::new(&config),
            guarded: AtomicBool::new(false),
            config,
        };
        let connection = backend.connections.shared().await?;
        let rows = connection
            .run(async |client| client.query_typed(sql::INSPECT, &[]).await)
            .await
            .map_err(|error| backend.failed("connect", error))?;
        let row = first(&rows).map_err(|error| error.with_operation("connect"))?;
        let (version, friendly): (i32, bool) = (get(row, 0)?, get(row, 1)?);
        if version < sql::MIN_SERVER_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the server is Postgres {}: at least 12 is needed", version / 10_000),
            )
            .with_backend(crate::NAME));
        }
        backend.guarded.store(!friendly, Ordering::Relaxed);
        Ok(backend)
    }

    /// Makes the tables, or adds what is missing to the table of a Django app. Does nothing where
    /// all is there, and may be called by many at once.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect); [`ErrorKind::Permission`] if something is missing and the
    /// user may not make it; [`ErrorKind::Unavailable`] if somebody's transaction has used the table
    /// for a second: whoever wants a lock meanwhile waits, so that this does not wait any longer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves either all of it done or nothing.
    pub async fn migrate(&self) -> Result<()> {
        let (lock, share) = (self.config.lock_table(), self.config.share_table());
        let connection = self.connections.shared().await?;
        connection
            .run(async |client| {
                let tables: [(&(dyn ToSql + Sync), Type); 2] =
                    [(&lock, Type::TEXT), (&share, Type::TEXT)];
                let rows = client.query_typed(self.statements.is_migrated, &tables).await?;
                if rows.first().is_some_and(|row| row.get(0)) {
                    return Ok(());
                }
                let schema: String =
                    sql::schema(&self.config).into_iter().map(|s| s + ";\n").collect();
                client.batch_execute(&format!("{}{schema}", sql::MIGRATE)).await
            })
            .await
            .map_err(|error| match error::is_row_locked(&error) {
                true => error::tables_in_use(error).with_operation("migrate"),
                false => self.failed("migrate", error),
            })
    }

    /// Asks once for all claims. `None` stands for a claim that was contended.
    async fn decide(&self, claims: &[&Claim], patient: bool) -> Result<Vec<Option<Verdict>>> {
        let names: Vec<&str> = claims.iter().map(|c| c.name.as_str()).collect();
        let connection = self.connections.shared().await?;
        let result = match claims {
            [claim] => {
                let parameters: &[Parameter<'_>] = &[
                    (&names[0], Type::TEXT),
                    (&claim.attempt.as_uuid(), Type::UUID),
                    (&claim.owner.label(), Type::TEXT),
                    (&claim.owner.is_explicit(), Type::BOOL),
                    (&int(claim.share.weight()), Type::INT4),
                    (&int(claim.share.capacity()), Type::INT4),
                    (&ttl_micros(claim.ttl), Type::INT8),
                    (&micros(claim.grace), Type::INT8),
                    (&claim.mark.map(micros), Type::INT8),
                ];
                self.query(connection, &self.statements.acquire_one, parameters, patient, &names)
                    .await
            }
            _ => {
                let attempts = column(claims, |c| c.attempt.as_uuid());
                let owners = column(claims, |c| c.owner.label());
                let explicit = column(claims, |c| c.owner.is_explicit());
                let weights = column(claims, |c| int(c.share.weight()));
                let capacities = column(claims, |c| int(c.share.capacity()));
                let ttls = column(claims, |c| ttl_micros(c.ttl));
                let graces = column(claims, |c| micros(c.grace));
                let marks = column(claims, |c| c.mark.map(micros));
                let parameters: &[Parameter<'_>] = &[
                    (&names, Type::TEXT_ARRAY),
                    (&attempts, Type::UUID_ARRAY),
                    (&owners, Type::TEXT_ARRAY),
                    (&explicit, Type::BOOL_ARRAY),
                    (&weights, Type::INT4_ARRAY),
                    (&capacities, Type::INT4_ARRAY),
                    (&ttls, Type::INT8_ARRAY),
                    (&graces, Type::INT8_ARRAY),
                    (&marks, Type::INT8_ARRAY),
                ];
                self.query(connection, &self.statements.acquire_many, parameters, patient, &names)
                    .await
            }
        };
        match result {
            Ok(rows) => by_ordinal(claims.len(), &rows, None, |row, i| {
                let verdict = verdict(row)?;
                if let Some(Verdict::Granted(_)) = verdict {
                    doubt_the_last_holder(&claims[i].name, row)?;
                }
                Ok(verdict)
            }),
            Err(error) if error::is_row_locked(&error) && claims.len() > 1 && !patient => {
                // Somebody's uncommitted row of one of the names: it must not fail the others.
                let mut verdicts = Vec::with_capacity(claims.len());
                for claim in claims {
                    verdicts.extend(Box::pin(self.decide(&[claim], false)).await?);
                }
                Ok(verdicts)
            }
            Err(error) if error::is_row_locked(&error) => Ok(vec![None; claims.len()]),
            Err(error) => Err(self.failed("acquire", error)),
        }
    }

    /// Ends leases once. `Skipped` are those that were contended.
    async fn end(&self, leases: &[&LeaseId], patient: bool) -> Result<Vec<Released>> {
        let columns = LeaseColumns::new(leases);
        let channel = self.config.channel();
        let mut parameters = columns.parameters();
        parameters.push((&channel, Type::TEXT));
        let connection = self.connections.shared().await?;
        let sql = &self.statements.release;
        match self.query(connection, sql, &parameters, patient, &columns.names).await {
            Ok(rows) => by_ordinal(leases.len(), &rows, Released::Skipped, |row, i| {
                Ok(match ended(row, &leases[i].name)? {
                    Ended::No => Released::Freed,
                    Ended::Undecided => Released::Skipped,
                    Ended::For(reason) => Released::Lost(reason),
                })
            }),
            Err(error) if error::is_row_locked(&error) => Ok(vec![Released::Skipped; leases.len()]),
            Err(error) => Err(self.failed("release", error)),
        }
    }

    /// Runs one statement in one round trip.
    ///
    /// A patient one locks the rows of its names first; that, and sessions with hostile defaults,
    /// take an explicit transaction whose statements are sent without waiting for each other's
    /// answers.
    async fn query(
        &self,
        connection: InUse,
        statement: &str,
        parameters: &[Parameter<'_>],
        patient: bool,
        names: &[&str],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let guarded = self.guarded.load(Ordering::Relaxed);
        let result = connection
            .run(async |client: &Client| {
                let query = client.query_typed(statement, parameters);
                if patient {
                    let begin = format!("{}; {}", sql::BEGIN, sql::PATIENCE);
                    let rows = [(&names as &(dyn ToSql + Sync), Type::TEXT_ARRAY)];
                    let (begun, locked, rows, committed) = join4(
                        client.batch_execute(&begin),
                        client.query_typed(&self.statements.lock_rows, &rows),
                        query,
                        client.batch_execute(sql::COMMIT),
                    )
                    .await;
                    begun.and(locked).and(rows).and_then(|rows| committed.map(|()| rows))
                } else if guarded {
                    let (begun, rows, committed) = join3(
                        client.batch_execute(sql::BEGIN),
                        query,
                        client.batch_execute(sql::COMMIT),
                    )
                    .await;
                    begun.and(rows).and_then(|rows| committed.map(|()| rows))
                } else {
                    query.await
                }
            })
            .await;
        if result.as_ref().is_err_and(error::is_sessions_fault) {
            self.guarded.store(true, Ordering::Relaxed);
        }
        result
    }

    fn failed(&self, operation: &'static str, error: tokio_postgres::Error) -> Error {
        error::from_driver(error, self.connections.place()).with_operation(operation)
    }
}

#[async_trait]
impl LockBackend for PostgresBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(crate::NAME).with_max_in_flight(self.config.connections())
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<&Claim> = claims.iter().collect();
        let mut verdicts = self.decide(&asked, false).await?;

        let again: Vec<usize> = (0..claims.len())
            .filter(|&i| verdicts[i].is_none() && !claims[i].share.is_exclusive())
            .collect();
        if !again.is_empty() {
            let asked: Vec<&Claim> = again.iter().map(|&i| &claims[i]).collect();
            for (i, verdict) in again.into_iter().zip(self.decide(&asked, true).await?) {
                verdicts[i] = verdict;
            }
        }
        let contended = || Verdict::Busy(Busy::default());
        Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(contended)).collect())
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        if renewals.is_empty() {
            return Ok(Vec::new());
        }
        let columns = LeaseColumns::new(&column(renewals, |r| &r.lease));
        let ttls = column(renewals, |r| ttl_micros(r.ttl));
        let mut parameters = columns.parameters();
        parameters.push((&ttls, Type::INT8_ARRAY));
        let connection = self.connections.for_renewals().await?;
        let sql = &self.statements.renew;
        match self.query(connection, sql, &parameters, false, &columns.names).await {
            Ok(rows) => by_ordinal(renewals.len(), &rows, Renewed::Skipped, |row, i| {
                Ok(match ended(row, &renewals[i].lease.name)? {
                    Ended::No => Renewed::Alive,
                    Ended::Undecided => Renewed::Skipped,
                    Ended::For(reason) => Renewed::Lost(reason),
                })
            }),
            Err(error) if error::is_row_locked(&error) => {
                Ok(vec![Renewed::Skipped; renewals.len()])
            }
            Err(error) => Err(self.failed("renew", error)),
        }
    }

    async fn release(&self, leases: &[LeaseId]) -> Result<Vec<Released>> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<&LeaseId> = leases.iter().collect();
        let mut released = self.end(&asked, false).await?;

        // A share is often contended by those beside it, which is over in a moment.
        let again: Vec<usize> = (0..leases.len())
            .filter(|&i| released[i] == Released::Skipped && !leases[i].share.is_exclusive())
            .collect();
        if !again.is_empty() {
            let asked: Vec<&LeaseId> = again.iter().map(|&i| &leases[i]).collect();
            for (i, outcome) in again.into_iter().zip(self.end(&asked, true).await?) {
                released[i] = outcome;
            }
        }
        Ok(released)
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let after = query.after.as_ref().map(|(name, _)| name.as_str());
        let after_attempt = query.after.as_ref().map(|(_, attempt)| attempt.as_uuid());
        let parameters: &[Parameter<'_>] = &[
            (&query.prefix, Type::TEXT),
            (&after, Type::TEXT),
            (&after_attempt, Type::UUID),
            (&i64::from(query.limit), Type::INT8),
        ];
        let connection = self.connections.shared().await?;
        let rows = self
            .query(connection, &self.statements.list, parameters, false, &[])
            .await
            .map_err(|error| self.failed("list", error))?;
        // A name that this library could not have written is nothing that it could release.
        Ok(rows.iter().filter_map(|row| lease_info(row).transpose()).collect::<Result<_>>()?)
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let idle = micros(idle);
        let connection = self.connections.shared().await?;
        let sql = &self.statements.clean_up;
        let rows = self
            .query(connection, sql, &[(&idle, Type::INT8)], false, &[])
            .await
            .map_err(|error| self.failed("clean_up", error))?;
        let gone: i64 = get(first(&rows)?, 0)?;
        Ok(gone.unsigned_abs())
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        wakeups::listen(&self.connections, &self.config.channel())
            .await
            .map(Some)
            .map_err(|error| error.with_operation("listen"))
    }
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Leases as the statements want them: a column each.
struct LeaseColumns<'a> {
    names: Vec<&'a str>,
    attempts: Vec<Uuid>,
    tokens: Vec<i64>,
    owners: Vec<&'a str>,
    explicit: Vec<bool>,
    weights: Vec<i32>,
    capacities: Vec<i32>,
}

impl<'a> LeaseColumns<'a> {
    fn new(leases: &[&'a LeaseId]) -> Self {
        Self {
            names: column(leases, |l| l.name.as_str()),
            attempts: column(leases, |l| l.attempt.as_uuid()),
            tokens: column(leases, |l| i64::try_from(l.token.get()).unwrap_or(i64::MAX)),
            owners: column(leases, |l| l.owner.label()),
            explicit: column(leases, |l| l.owner.is_explicit()),
            weights: column(leases, |l| int(l.share.weight())),
            capacities: column(leases, |l| int(l.share.capacity())),
        }
    }

    fn parameters(&self) -> Vec<Parameter<'_>> {
        vec![
            (&self.names, Type::TEXT_ARRAY),
            (&self.attempts, Type::UUID_ARRAY),
            (&self.tokens, Type::INT8_ARRAY),
            (&self.owners, Type::TEXT_ARRAY),
            (&self.explicit, Type::BOOL_ARRAY),
            (&self.weights, Type::INT4_ARRAY),
            (&self.capacities, Type::INT4_ARRAY),
        ]
    }
}

fn column<'a, T, V>(items: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    items.iter().map(value).collect()
}

/// Weights and capacities are at most [`Share::FULL`], which fits.
fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// At most 1,000 years, so that the server's calendar does not end before it.
fn micros(duration: Duration) -> i64 {
    const MOST: i64 = 1_000 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(MOST).min(MOST)
}

fn ttl_micros(ttl: Ttl) -> Option<i64> {
    ttl.duration().map(micros)
}

/// Puts answers, whose first column is the ordinal of their item, into the order of the items.
fn by_ordinal<T: Clone>(
    items: usize,
    rows: &[Row],
    unanswered: T,
    answer: impl Fn(&Row, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let mut answers = vec![unanswered; items];
    for row in rows {
        let ordinal: i64 = get(row, 0)?;
        let place = usize::try_from(ordinal - 1).ok().filter(|i| *i < items);
        let place = place.ok_or_else(|| unexpected("an answer to no question"))?;
        answers[place] = answer(row, place)?;
    }
    Ok(answers)
}

fn verdict(row: &Row) -> Result<Option<Verdict>> {
    Ok(Some(match get(row, 1)? {
        "granted" => Verdict::Granted(token(get(row, 2)?)),
        "mismatch" => Verdict::CapacityMismatch(get::<i32>(row, 3)?.unsigned_abs()),
        "busy" => Verdict::Busy(busy(row)?),
        "standback" => Verdict::Busy(Busy::default()),
        "ended" => Verdict::Ended,
        "contended" => return Ok(None),
        other => return Err(unexpected(other)),
    }))
}

/// Says so where somebody else's client has written a lease that was over by then.
fn doubt_the_last_holder(name: &LockName, row: &Row) -> Result<()> {
    if let Some(behind) = get::<Option<i64>>(row, 10)? {
        tracing::warn!(
            lock = %name,
            of = get::<Option<&str>>(row, 11)?,
            behind = ?duration(behind),
            "a lock was granted that another client may still hold: its lease had ended before it was \
             written, so that client's clock or time zone is behind the server's"
        );
    }
    Ok(())
}

fn busy(row: &Row) -> Result<Busy> {
    let holder = match get::<Option<i64>>(row, 6)? {
        None => None,
        Some(held) => Some(Holder {
            owner: owner(get(row, 4)?, get(row, 5)?),
            token: token(held),
            held_for: get::<Option<i64>>(row, 7)?.map_or(Duration::ZERO, duration),
            remaining: get::<Option<i64>>(row, 8)?.map(duration),
        }),
    };
    Ok(Busy { holder, retry_after: get::<Option<i64>>(row, 9)?.map(duration) })
}

enum Ended {
    No,
    Undecided,
    For(LossReason),
}

fn ended(row: &Row, name: &LockName) -> Result<Ended> {
    Ok(match get(row, 1)? {
        "ok" => Ended::No,
        "skipped" => Ended::Undecided,
        "expired" => Ended::For(LossReason::Expired),
        "taken" => Ended::For(LossReason::Taken),
        "usurped" => {
            tracing::warn!(
                lock = %name,
                by = get::<Option<&str>>(row, 2)?,
                "another client has taken the lock though its lease was alive: that client's clock or \
                 time zone is ahead of the server's, or it has the owner's name"
            );
            Ended::For(LossReason::Taken)
        }
        "superseded" => Ended::For(LossReason::Superseded),
        "forced" => Ended::For(LossReason::Forced),
        "deleted" => Ended::For(LossReason::Deleted),
        other => return Err(unexpected(other)),
    })
}

fn lease_info(row: &Row) -> Result<Option<LeaseInfo>> {
    let Ok(name) = LockName::new(get::<&str>(row, 0)?) else {
        return Ok(None);
    };
    let weight = get::<i32>(row, 5)?.unsigned_abs();
    Ok(Some(LeaseInfo {
        lease: LeaseId {
            name,
            attempt: Attempt::from_uuid(get(row, 1)?),
            token: token(get(row, 2)?),
            owner: owner(get(row, 3)?, get(row, 4)?),
            share: Share::new(weight, get::<i32>(row, 6)?.unsigned_abs())?,
        },
        held_for: get::<Option<i64>>(row, 7)?.map_or(Duration::ZERO, duration),
        remaining: get::<Option<i64>>(row, 8)?.map(duration),
        waited_for: get(row, 9)?,
    }))
}

fn owner(label: Option<&str>, explicit: Option<bool>) -> Owner {
    Owner::lossy(label.unwrap_or("unknown"), explicit.unwrap_or_default())
}

fn token(stored: i64) -> Token {
    Token::new(stored.unsigned_abs())
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn first(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| unexpected("no row"))
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(|error| error::from_driver(error, "the server"))
}

fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorKind::Backend,
        format!("the server answered with {what:?}: are its tables of another version?"),
    )
    .with_backend(crate::NAME)
}
