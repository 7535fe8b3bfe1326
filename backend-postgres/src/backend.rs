//! The verbs: what is asked of which connection, and what the answers mean.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks_core::fence::{Dialect, Fence, FenceParam, FenceSql, Statement};
use database_locks_core::{
    Attempt, Busy, Capabilities, Claim, Data, Error, ErrorKind, Holder, How, LeaseId, LeaseInfo,
    ListQuery, LockBackend, LockName, LossReason, Owner, Release, Released, Renewal, Renewed,
    Result, Share, Standing, Token, Ttl, Verdict, Wakeups, async_trait,
};
use futures_util::future::join3;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::config::{PostgresConfig, Tables};
use crate::pool::{Connections, InUse, Parameter};
use crate::sql::{self, Statements};
use crate::{error, wakeups};

/// At most so many leases are renewed by one call.
const MAX_RENEWALS: usize = 2_048;

/// Leases in the tables of a Postgres.
///
/// Cheap to share by reference or `Arc`; it holds at most
/// [`pool_size`](PostgresConfig::pool_size) + 2 connections, however many leases there are.
#[derive(Debug)]
pub struct PostgresBackend {
    config: PostgresConfig,
    connections: Connections,
    /// Who we are in what others are told of releases.
    client: String,
    tables: Tables,
    statements: Statements,
    /// Whether statements need explicit transactions, because the sessions' defaults are hostile.
    guarded: AtomicBool,
    /// Whether the user may use the table: not once it was denied, and the functions were not.
    has_table: AtomicBool,
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
        let opened = async { Self::open(Connections::new(&config)?, config).await };
        opened.await.map_err(|error| error.with_operation("connect"))
    }

    /// As [`connect`](Self::connect), on connections that `connect` makes: through a tunnel, or with TLS of
    /// your own. It gets what the URL says, hosts, user and password included.
    ///
    /// Such connections are driven by their own tasks, so that hints do not arrive, waiting takes polls,
    /// a request that was given up is not cancelled on the server, and a commit that no synchronous
    /// standby has confirmed is believed. Their statements are prepared by `prepare=always` alone.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    pub async fn connect_by(
        config: PostgresConfig,
        connect: impl deadpool_postgres::Connect + 'static,
    ) -> Result<Self> {
        let opened = async { Self::open(Connections::by(connect, &config)?, config).await };
        opened.await.map_err(|error| error.with_operation("connect"))
    }

    async fn open(connections: Connections, config: PostgresConfig) -> Result<Self> {
        let connection = connections.shared().await?;
        let table = config.quoted_table();
        let rows = connection
            .run(async |session| session.query(sql::INSPECT, &[(&table, Type::TEXT)]).await)
            .await
            .map_err(|error| error::from_driver(error, connections.place()))?;
        let row = first(&rows)?;
        let (version, friendly): (i32, bool) = (get(row, 0)?, get(row, 1)?);
        if version < sql::MIN_SERVER_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the server is Postgres {}: at least 12 is needed", version / 10_000),
            )
            .with_backend(crate::NAME));
        }
        let schema = config.named_schema().or(get(row, 2)?).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOption,
                "the user's search_path names no schema that is there: name one in the URL, schema=…",
            )
            .with_backend(crate::NAME)
        })?;
        let tables = config.tables_in(schema);
        Ok(Self {
            has_table: AtomicBool::new(true),
            statements: Statements::new(&tables),
            guarded: AtomicBool::new(!friendly),
            client: Uuid::new_v4().as_u64_pair().0.to_string(),
            tables,
            connections,
            config,
        })
    }

    /// Makes the tables and functions, or adds what is missing to the table of a Django app. Does nothing
    /// where all is there, and may be called by many at once.
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
        let (lock, share) = (self.tables.lock(), self.tables.share());
        let schema = self.tables.quoted_schema();
        let connection = self.connections.shared().await?;
        connection
            .run(async |session| {
                let client = session.client();
                let wanted: &[Parameter<'_>] = &[
                    (&lock, Type::TEXT),
                    (&share, Type::TEXT),
                    (&self.statements.functions, Type::TEXT_ARRAY),
                ];
                let rows = client.query_typed(self.statements.is_migrated, wanted).await?;
                if rows.first().is_some_and(|row| row.get(0)) {
                    return Ok(());
                }
                // Whoever owns a schema need not have the right to make one.
                let rows = client.query_typed(sql::HAS_SCHEMA, &[(&schema, Type::TEXT)]).await?;
                let make_schema = match rows.first().is_some_and(|row| row.get(0)) {
                    true => String::new(),
                    false => sql::make_schema(&self.tables),
                };
                let (migrate, rest) = (sql::MIGRATE, &self.statements.schema);
                client.batch_execute(&format!("{migrate}{make_schema}{rest}")).await
            })
            .await
            .map_err(|error| match error::is_row_locked(&error) {
                true => error::tables_in_use(error).with_operation("migrate"),
                false => self.failed("migrate", error),
            })
    }

    /// Asks once for all claims. A patient request waits a moment for rows that are locked.
    async fn decide(&self, claims: &[&Claim], patient: bool) -> Result<Vec<Verdict>> {
        let order = by_name(claims, |c| &c.name);
        let asked = column(&order, |&i| claims[i]);
        let names = column(&asked, |c| c.name.as_str());
        let attempts = column(&asked, |c| c.attempt.as_uuid());
        let owners = column(&asked, |c| c.owner.label());
        let explicit = column(&asked, |c| c.owner.is_explicit());
        let weights = column(&asked, |c| int(c.share.weight()));
        let capacities = column(&asked, |c| int(c.share.capacity()));
        let ttls = column(&asked, |c| ttl_micros(c.ttl));
        let graces = column(&asked, |c| micros(c.grace));
        let marks = column(&asked, |c| c.mark.map(micros));
        let datas = column(&asked, |c| c.data.as_ref().map(Data::as_str));
        let replaced = column(&asked, |c| c.replaces.as_ref().map(|lease| lease.attempt.as_uuid()));
        let replaced_owners =
            column(&asked, |c| c.replaces.as_ref().map(|lease| lease.owner.label()));
        let replaced_explicit =
            column(&asked, |c| c.replaces.as_ref().map(|lease| lease.owner.is_explicit()));
        let replaced_tokens =
            column(&asked, |c| c.replaces.as_ref().map(|lease| int8(lease.token)));
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
            (&datas, Type::TEXT_ARRAY),
            (&replaced, Type::UUID_ARRAY),
            (&replaced_tokens, Type::INT8_ARRAY),
            (&replaced_owners, Type::TEXT_ARRAY),
            (&replaced_explicit, Type::BOOL_ARRAY),
            (&patient, Type::BOOL),
        ];
        let are_whole = claims.iter().all(|c| c.share.is_exclusive());
        let plain = self.statements.acquire_whole.of(&names).filter(|_| are_whole);
        match self.call(Verb::Acquire, plain, &self.statements.acquire, parameters).await? {
            Ok(rows) => in_order(&order, &rows, Verdict::Skipped, |row, i| {
                let verdict = verdict(row)?;
                if let Verdict::Granted(_) = verdict {
                    doubt_the_last_holder(&claims[i].name, row)?;
                }
                Ok(verdict)
            }),
            Err(error) if error::is_row_locked(&error) && claims.len() > 1 => {
                // Somebody keeps a share's row of one of the names: it must not hold up the others.
                let mut verdicts = Vec::with_capacity(claims.len());
                for claim in claims {
                    verdicts.extend(Box::pin(self.decide(&[claim], false)).await?);
                }
                Ok(verdicts)
            }
            Err(error) if error::is_row_locked(&error) => Ok(vec![Verdict::Skipped]),
            Err(error) => Err(self.failed(Verb::Acquire.operation(), error)),
        }
    }

    async fn change(
        &self,
        verb: Verb,
        changes: &[Change<'_>],
        patient: bool,
    ) -> Result<Vec<Changed>> {
        let order = by_name(changes, |c| &c.lease.name);
        let asked = column(&order, |&i| changes[i]);
        let names = column(&asked, |c| c.lease.name.as_str());
        let attempts = column(&asked, |c| c.lease.attempt.as_uuid());
        let tokens = column(&asked, |c| int8(c.lease.token));
        let owners = column(&asked, |c| c.lease.owner.label());
        let explicit = column(&asked, |c| c.lease.owner.is_explicit());
        let weights = column(&asked, |c| int(c.lease.share.weight()));
        let capacities = column(&asked, |c| int(c.lease.share.capacity()));
        let hows = column(&asked, |c| c.how);
        let micros = column(&asked, |c| c.micros);
        let channel = self.tables.channel();
        let parameters: &[Parameter<'_>] = &[
            (&names, Type::TEXT_ARRAY),
            (&attempts, Type::UUID_ARRAY),
            (&tokens, Type::INT8_ARRAY),
            (&owners, Type::TEXT_ARRAY),
            (&explicit, Type::BOOL_ARRAY),
            (&weights, Type::INT4_ARRAY),
            (&capacities, Type::INT4_ARRAY),
            (&hows, Type::TEXT_ARRAY),
            (&micros, Type::INT8_ARRAY),
            (&channel, Type::TEXT),
            (&self.client, Type::TEXT),
            (&patient, Type::BOOL),
        ];
        let is_plain =
            |c: &Change<'_>| c.lease.share.is_exclusive() && matches!(c.how, "renew" | "free");
        let are_plain = changes.iter().all(is_plain);
        let plain = self.statements.change_whole.of(&names).filter(|_| are_plain);
        match self.call(verb, plain, &self.statements.change, parameters).await? {
            Ok(rows) => in_order(&order, &rows, Changed::Skipped, |row, i| {
                changed(row, &changes[i].lease.name)
            }),
            Err(error) if error::is_row_locked(&error) => Ok(vec![Changed::Skipped; changes.len()]),
            Err(error) => Err(self.failed(verb.operation(), error)),
        }
    }

    /// As [`change`](Self::change). Shares are often contended by those beside them, which is over in
    /// a moment: they are asked for once more, patiently.
    async fn change_patiently(&self, verb: Verb, changes: &[Change<'_>]) -> Result<Vec<Changed>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut changed = self.change(verb, changes, false).await?;
        let again: Vec<usize> = (0..changes.len())
            .filter(|&i| changed[i] == Changed::Skipped && !changes[i].lease.share.is_exclusive())
            .collect();
        if !again.is_empty() {
            let outcomes = match self.change(verb, &column(&again, |&i| changes[i]), true).await {
                // What was renewed before stays renewed, and these are asked for again.
                Err(error) if verb == Verb::Renew => {
                    tracing::debug!(%error, "renewals that were skipped failed the second time");
                    Vec::new()
                }
                // A release that was heard after all must not be told as skipped.
                outcomes => outcomes?,
            };
            for (i, outcome) in again.into_iter().zip(outcomes) {
                changed[i] = outcome;
            }
        }
        Ok(changed)
    }

    /// Calls a function, or runs the plain statement that calls it only if need be, where the user may and it is worth it: to
    /// plan it costs more than the function does.
    async fn call(
        &self,
        verb: Verb,
        plain: Option<&str>,
        function: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Result<Vec<Row>, tokio_postgres::Error>> {
        let connection = self.connection(verb).await?;
        let is_worth_it = self.has_table.load(Ordering::Relaxed) && connection.is_ours();
        let Some(plain) = plain.filter(|_| is_worth_it) else {
            return Ok(self.query(connection, function, parameters).await);
        };
        match self.query(connection, plain, parameters).await {
            Err(error) if error::is_denied(&error) => {
                self.has_table.store(false, Ordering::Relaxed);
                Ok(self.query(self.connection(verb).await?, function, parameters).await)
            }
            result => Ok(result),
        }
    }

    async fn connection(&self, verb: Verb) -> Result<InUse> {
        match verb {
            Verb::Renew => self.connections.for_renewals().await,
            Verb::Acquire | Verb::Release => self.connections.shared().await,
        }
    }

    /// Runs one statement in one round trip.
    ///
    /// Sessions with hostile defaults take an explicit transaction, whose statements are sent without
    /// waiting for each other's answers.
    async fn query(
        &self,
        connection: InUse,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let guarded = self.guarded.load(Ordering::Relaxed);
        let result = connection
            .run(async |session| {
                if !guarded {
                    return session.query(statement, parameters).await;
                }
                // Before the transaction, which is sent as a whole.
                let prepared = session.prepare(statement, parameters).await?;
                let (begun, rows, committed) = join3(
                    session.client().batch_execute(sql::BEGIN),
                    session.send(prepared.as_ref(), statement, parameters),
                    session.client().batch_execute(sql::COMMIT),
                )
                .await;
                begun.and(rows).and_then(|rows| committed.map(|()| rows))
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
        Capabilities::new(crate::NAME)
            .with_max_renewals(MAX_RENEWALS)
            .with_max_in_flight(self.config.connections())
            .with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<&Claim> = claims.iter().collect();
        let mut verdicts = self.decide(&asked, false).await?;

        // A share is often contended by those beside it, which is over in a moment. One that could not take a place will not.
        let is_worth_it = |claim: &Claim| !claim.share.is_exclusive() && claim.replaces.is_none();
        let again: Vec<usize> = (0..claims.len())
            .filter(|&i| verdicts[i] == Verdict::Skipped && is_worth_it(&claims[i]))
            .collect();
        if !again.is_empty() {
            let asked = column(&again, |&i| &claims[i]);
            // If this fails nobody can say whether it was heard: it must not be told as skipped.
            for (i, verdict) in again.into_iter().zip(self.decide(&asked, true).await?) {
                verdicts[i] = verdict;
            }
        }
        Ok(verdicts)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        let changes = column(renewals, |r| Change {
            lease: &r.lease,
            how: "renew",
            micros: ttl_micros(r.ttl),
        });
        let changed = self.change_patiently(Verb::Renew, &changes).await?;
        Ok(column(&changed, |changed| match changed {
            Changed::Done => Renewed::Alive,
            Changed::Skipped => Renewed::Skipped,
            Changed::Lost(reason) => Renewed::Lost(*reason),
        }))
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let changes = releases.iter().map(Change::release).collect::<Result<Vec<_>>>()?;
        let changed = self.change_patiently(Verb::Release, &changes).await?;
        Ok(column(&changed, |changed| match changed {
            Changed::Done => Released::Done,
            Changed::Skipped => Released::Skipped,
            Changed::Lost(reason) => Released::Lost(*reason),
        }))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let after = query.after.as_ref().map(|(name, _)| name.as_str());
        // Other letters may be in another order in the database's encoding, or not be in it.
        let end = query.end().filter(|end| end.is_ascii());
        let after_attempt = query.after.as_ref().map(|(_, attempt)| attempt.as_uuid());
        let parameters: &[Parameter<'_>] = &[
            (&query.prefix, Type::TEXT),
            (&after, Type::TEXT),
            (&after_attempt, Type::UUID),
            (&i64::from(query.limit), Type::INT8),
            (&end, Type::TEXT),
        ];
        let connection = self.connections.shared().await?;
        let rows = self
            .query(connection, &self.statements.list, parameters)
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
            .query(connection, sql, &[(&idle, Type::INT8)])
            .await
            .map_err(|error| self.failed("clean_up", error))?;
        let gone: i64 = get(first(&rows)?, 0)?;
        Ok(gone.unsigned_abs())
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        wakeups::listen(&self.connections, &self.tables.channel(), &self.client)
            .await
            .map_err(|error| error.with_operation("listen"))
    }

    fn fence(&self) -> Option<Fence> {
        let sql = Arc::clone(&self.statements.fence);
        Some(Fence::new(move |lease| {
            let name = FenceParam::Text(lease.name.as_str().to_owned());
            let params = [name, FenceParam::Integer(int8(lease.token))];
            FenceSql::new(Dialect::Postgres, Statement::new(Arc::clone(&sql), params))
        }))
    }
}

fn column<'a, T, V>(items: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    items.iter().map(value).collect()
}

fn int8(token: Token) -> i64 {
    i64::try_from(token.get()).unwrap_or(i64::MAX)
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

/// The places of items by their names, as the functions take them: those of one name together, one after the other.
fn by_name<'a, T>(items: &'a [T], name: impl Fn(&'a T) -> &'a LockName) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| name(&items[i]));
    order
}

/// Puts answers, whose first column is the ordinal of their item among those sent in `order`, into the order of the items.
fn in_order<T: Clone>(
    order: &[usize],
    rows: &[Row],
    unanswered: T,
    answer: impl Fn(&Row, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let mut answers = vec![unanswered; order.len()];
    for row in rows {
        let ordinal: i64 = get(row, 0)?;
        let place = usize::try_from(ordinal - 1).ok().and_then(|i| order.get(i).copied());
        let place = place.ok_or_else(|| error::unexpected("an answer to no question"))?;
        answers[place] = answer(row, place)?;
    }
    Ok(answers)
}

fn verdict(row: &Row) -> Result<Verdict> {
    Ok(match get(row, 1)? {
        "granted" => Verdict::Granted(token(get(row, 2)?)),
        "mismatch" => Verdict::CapacityMismatch(get::<i32>(row, 3)?.unsigned_abs()),
        "busy" => Verdict::Busy(busy(row)?),
        "standback" => Verdict::Busy(Busy::default()),
        "ended" => Verdict::Ended,
        "revoked" => Verdict::Revoked(token(get(row, 2)?)),
        "contended" => Verdict::Skipped,
        other => return Err(error::unexpected(other)),
    })
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
        None => return Ok(Busy::default()),
        Some(held) => Holder::new(owner(get(row, 4)?, get(row, 5)?), token(held))
            .with_held_for(get::<Option<i64>>(row, 7)?.map_or(Duration::ZERO, duration))
            .with_remaining(get::<Option<i64>>(row, 8)?.map(duration))
            .with_standing(standing(get::<Option<i16>>(row, 12)?.unwrap_or_default()))
            .with_data(data(get(row, 13)?)),
    };
    Ok(Busy::by(holder).with_retry_after(get::<Option<i64>>(row, 9)?.map(duration)))
}

/// Which verb asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Acquire,
    Renew,
    Release,
}

impl Verb {
    fn operation(self) -> &'static str {
        match self {
            Verb::Acquire => "acquire",
            Verb::Renew => "renew",
            Verb::Release => "release",
        }
    }
}

/// A renewal or a release, as `change.sql` has it.
#[derive(Debug, Clone, Copy)]
struct Change<'a> {
    lease: &'a LeaseId,
    how: &'static str,
    micros: Option<i64>,
}

impl<'a> Change<'a> {
    fn release(release: &'a Release) -> Result<Self> {
        release.check_foreign()?;
        let (how, micros) = match release.how {
            How::Free => ("free", None),
            How::Keep { until_age } => ("keep", Some(micros(until_age))),
            How::Revoke => ("revoke", None),
        };
        Ok(Self { lease: &release.lease, how, micros })
    }
}

/// What became of a renewal or a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Done,
    Skipped,
    Lost(LossReason),
}

fn changed(row: &Row, name: &LockName) -> Result<Changed> {
    Ok(match get(row, 1)? {
        "ok" => Changed::Done,
        "skipped" => Changed::Skipped,
        "expired" => Changed::Lost(LossReason::Expired),
        "taken" => Changed::Lost(LossReason::Taken),
        "usurped" => {
            tracing::warn!(
                lock = %name,
                by = get::<Option<&str>>(row, 2)?,
                "another client has taken the lock though its lease was alive: that client's clock or \
                 time zone is ahead of the server's, or it has the owner's name"
            );
            Changed::Lost(LossReason::Taken)
        }
        "superseded" => Changed::Lost(LossReason::Superseded),
        "forced" => Changed::Lost(LossReason::Forced),
        "released" => Changed::Lost(LossReason::Released),
        "deleted" => Changed::Lost(LossReason::Deleted),
        other => return Err(error::unexpected(other)),
    })
}

fn lease_info(row: &Row) -> Result<Option<LeaseInfo>> {
    let Ok(name) = LockName::new(get::<&str>(row, 0)?) else {
        return Ok(None);
    };
    let weight = get::<i32>(row, 5)?.unsigned_abs();
    let lease = LeaseId::new(
        name,
        Attempt::from_uuid(get(row, 1)?),
        token(get(row, 2)?),
        owner(get(row, 3)?, get(row, 4)?),
        Share::new(weight, get::<i32>(row, 6)?.unsigned_abs())?,
    );
    let info = LeaseInfo::new(lease)
        .with_held_for(get::<Option<i64>>(row, 7)?.map_or(Duration::ZERO, duration))
        .with_remaining(get::<Option<i64>>(row, 8)?.map(duration))
        .with_waited_for(get(row, 9)?)
        .with_standing(standing(get(row, 10)?))
        .with_data(data(get(row, 11)?));
    Ok(Some(info))
}

fn standing(stored: i16) -> Standing {
    Standing::of_code(u8::try_from(stored).unwrap_or(u8::MAX))
}

/// What somebody else has stored and could not be ours is left out.
fn data(stored: Option<&str>) -> Option<Data> {
    stored.and_then(|text| Data::new(text).ok())
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
    rows.first().ok_or_else(|| error::unexpected("no row"))
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(|error| error::from_driver(error, "the server"))
}
