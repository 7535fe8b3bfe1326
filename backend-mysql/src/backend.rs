//! The verbs: what is asked of which connection, and what the answers mean.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use database_locks_core::fence::Fence;
use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Attempt, Capabilities, Claim, Error, ErrorKind, How, LeaseId, LeaseInfo, ListQuery,
    LockBackend, LockName, Owner, Release, Released, Renewal, Renewed, Result, Share, Token, Ttl,
    Verdict, async_trait,
};
use uuid::Uuid;

use crate::config::MysqlConfig;
use crate::error;
use crate::literal::digits;
use crate::packet::Answer;
use crate::pool::{Connections, InUse};
use crate::schema::{self, Schema};
use crate::sql::{Kind, Packet, Start, Tables};
use crate::state::{Change, Doubt, Snapshot, get, unexpected};

/// How often what others have changed in the meantime is decided again, within one request.
const ROUNDS: u32 = 8;
/// How long no statement waits for a row after one has waited in vain.
const CAREFUL_FOR: Duration = Duration::from_secs(10);
/// So many items together cost less than one by one.
const BATCH_FROM: usize = 16;
/// At most so many locks are taken by one packet, whose answer has all of their names.
const TAKEN_AT_ONCE: usize = 1_000;
/// At most so many leases are renewed by one call.
const MAX_RENEWALS: usize = 2_048;
/// At most so many names are forgotten by one call of `clean_up`.
const FORGOTTEN_AT_ONCE: usize = 1_000;

/// Leases in the tables of a MySQL, a MariaDB, or a Galera cluster of either.
///
/// Cheap to share by reference or `Arc`; it holds at most
/// [`pool_size`](MysqlConfig::pool_size) + 1 connections, however many leases there are.
#[derive(Debug)]
pub struct MysqlBackend {
    config: MysqlConfig,
    connections: Connections,
    tables: Tables,
    /// Whether most of the claims to whole locks that came together last were granted: only then it is worth it to take all
    /// of their locks at once, and not to read first who has these.
    are_mostly_free: AtomicBool,
    /// Until when somebody is taken to keep rows locked.
    locked_until: Mutex<Option<Instant>>,
}

impl MysqlBackend {
    /// Connects, and checks that the server answers and can be made safe. The tables need not be
    /// there yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if no host can be reached, [`ErrorKind::Permission`] if the
    /// server refuses the user, [`ErrorKind::InvalidOption`] if the database does not exist or TLS
    /// is not possible as configured, [`ErrorKind::Unsupported`] for a server that is too old,
    /// has settings that cannot be made safe, or keeps the tables in a way that is not.
    pub async fn connect(config: MysqlConfig) -> Result<Self> {
        let backend = Self::new(config)?;
        backend.check().await.map_err(|error| error.with_operation("connect"))?;
        Ok(backend)
    }

    /// Makes the tables, or adds what is missing to the table of a Django app. Does nothing where
    /// all is there, and may be called by many at once.
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect); [`ErrorKind::Permission`] if something is missing and the
    /// user may not make it; [`ErrorKind::Unavailable`] if somebody's transaction has used the table
    /// for two seconds: whoever wants a lock meanwhile waits, so that this does not wait any longer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave some of it done. Another call does the rest.
    pub async fn migrate(&self) -> Result<()> {
        let migrated = async {
            // Others may do the same: what they have done by now is seen the next time.
            for _ in 0..3 {
                let schema = self.schema().await?;
                if schema.is_complete() && schema.adoption(&self.config).is_none() {
                    return Ok(());
                }
                for statement in schema::create(&self.config) {
                    self.define(&statement).await?;
                }
                if let Some(alter) = self.schema().await?.adoption(&self.config) {
                    self.define(&alter).await?;
                }
            }
            let rest = self.schema().await?.adoption(&self.config);
            let rest = rest.unwrap_or_else(|| "columns of the table of shares".to_owned());
            Err(Error::new(
                ErrorKind::Unsupported,
                format!("the tables still lack something ({rest}): is the server new enough?"),
            )
            .with_backend(crate::NAME))
        };
        migrated.await.map_err(|error: Error| error.with_operation("migrate"))
    }

    /// Runs a statement that defines a table, unless somebody else has done so just now.
    async fn define(&self, statement: &str) -> Result<()> {
        // A large table takes longer to alter than any other statement may. For MariaDB alone: MySQL
        // bounds only what reads.
        let statement =
            format!("/*M!100600 SET STATEMENT max_statement_time = 0 FOR */ {statement}");
        match self.connections.shared().await?.run(&statement).await {
            Err(error) if error::waited_in_vain(&error) => Err(error::tables_in_use(error)),
            Err(error) if !error::is_defined_already(&error) => {
                Err(error::from_driver(error, self.connections.place()))
            }
            _ => Ok(()),
        }
    }

    /// Connects to nothing yet.
    pub(crate) fn new(config: MysqlConfig) -> Result<Self> {
        Ok(Self {
            connections: Connections::new(&config)?,
            tables: Tables::new(&config),
            are_mostly_free: AtomicBool::new(true),
            locked_until: Mutex::default(),
            config,
        })
    }

    /// Checks the tables. A host that hangs is left for the next one, as while connecting.
    async fn check(&self) -> Result<()> {
        // To connect has a bound of its own, with a better message.
        let patience = self.config.host_timeout() * 2;
        for _ in self.config.addresses() {
            if let Ok(schema) = tokio::time::timeout(patience, self.schema()).await {
                return schema?.check(&self.config);
            }
        }
        Err(error::unavailable(format!(
            "{} did not answer in time: check the hosts, or raise connect_timeout",
            self.connections.place()
        )))
    }

    async fn schema(&self) -> Result<Schema> {
        let mut packet = Packet::default();
        let at = packet.add(Schema::query(&self.config));
        let answers = self.read_only(&packet).await?;
        Schema::read(&answers[at].rows, &self.config)
    }

    /// Decides what has no answer yet.
    async fn decide_rest<I: Clone + Sync, O: Clone + Send>(
        &self,
        verb: &Verb<I, O>,
        items: &[I],
        answers: Vec<Option<O>>,
    ) -> Result<Vec<O>> {
        let open = items.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
        let open: Vec<I> = open.map(|(item, _)| item.clone()).collect();
        let mut decided = match open.is_empty() {
            true => Vec::new(),
            false => self.decide(verb, &open).await?,
        }
        .into_iter();
        Ok(answers.into_iter().filter_map(|answer| answer.or_else(|| decided.next())).collect())
    }

    /// Lets `verb` change the ledger of each item's name, and writes what has changed.
    ///
    /// Nothing is locked in between: where somebody else has changed a name since it was read, its
    /// items are decided again.
    async fn decide<I: Sync, O: Clone + Send>(
        &self,
        verb: &Verb<I, O>,
        items: &[I],
    ) -> Result<Vec<O>> {
        let mut answers = vec![verb.undecided.clone(); items.len()];
        let mut open: Vec<usize> = (0..items.len()).collect();
        let mut made = !verb.makes_rows;
        for round in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            let names: BTreeSet<_> = open.iter().map(|&i| (verb.name)(&items[i])).collect();
            // A row that is missing can be made on the way, where that holds up nobody else.
            let make = !made && names.len() == 1;
            let snapshot = self.read(verb.urgent, &names, make, pause(round)).await?;
            made |= make;
            let Some(mut snapshot) = snapshot else { break };
            let now = snapshot.now;
            for &i in &open {
                let state = snapshot.states.entry((verb.name)(&items[i]).clone()).or_default();
                answers[i] = (verb.decide)(&mut state.ledger, &items[i], now);
            }

            let Written { undone, is_held_up } = self.write(verb.urgent, &snapshot).await?;
            let missing: BTreeSet<&LockName> = snapshot
                .states
                .iter()
                .filter(|(_, state)| state.lacks_row())
                .map(|(name, _)| name)
                .collect();
            open.retain(|&i| {
                let name = (verb.name)(&items[i]);
                let is_open = missing.contains(name) || undone.contains(name);
                if is_open {
                    answers[i] = verb.undecided.clone();
                } else if let Some(doubt) = &snapshot.states[name].doubt {
                    tell(name, doubt, (verb.outcome)(&items[i], &answers[i]));
                }
                // What somebody holds up is not tried again: each try waits for them.
                is_open
                    && !(made && missing.contains(name))
                    && !(is_held_up && undone.contains(name))
            });
            if !missing.is_empty() && !made {
                self.make(&missing).await?;
                made = true;
            }
        }
        Ok(answers)
    }

    /// Makes rows for names that have none, unless somebody else holds that up.
    async fn make(&self, names: &BTreeSet<&LockName>) -> Result<()> {
        let names = shuffled(names.iter().copied());
        // One that is held up fails its whole statement: one by one, those before it come through.
        let sizes = if names.len() == 1 { &[1][..] } else { &[names.len(), 1] };
        for &at_once in sizes {
            let mut packet = Packet::default();
            for names in names.chunks(at_once) {
                self.tables.make(&mut packet, names);
            }
            match send(self.connections.shared().await?, &packet).await {
                Ok(_) => break,
                Err(error) if error::is_conflict(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Reads the state of names, after making rows for them if it is to `make` them. `None` where others
    /// were in the way.
    async fn read(
        &self,
        urgent: bool,
        names: &BTreeSet<&LockName>,
        make: bool,
        pause: Duration,
    ) -> Result<Option<Snapshot>> {
        let mut packet = Packet::default();
        self.tables.pause(&mut packet, pause);
        if make {
            self.tables.make(&mut packet, &names.iter().copied().collect::<Vec<_>>());
        }
        let at = self.tables.read(&mut packet, names.iter().copied());
        match send(self.connection(urgent).await?, &packet).await {
            Ok(answers) => Ok(Some(Snapshot::new(&answers[at].rows)?)),
            Err(error) if error::is_conflict(&error) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Writes what was decided.
    async fn write<'s>(&self, urgent: bool, snapshot: &'s Snapshot) -> Result<Written<'s>> {
        let changes: Vec<_> = snapshot
            .states
            .iter()
            .filter_map(|(name, state)| state.change(name, snapshot.now))
            .collect();
        let (done, is_held_up) = self.carry_out_most(urgent, &changes).await?;
        let undone = changes
            .iter()
            .zip(done)
            // A mark that was not left is left by the next ask.
            .filter(|(change, done)| !done && snapshot.states[change.name].is_decided())
            .map(|(change, _)| change.name)
            .collect();
        Ok(Written { undone, is_held_up })
    }

    /// Carries out changes. What holds up one of them does not hold up the others: where it is more than one,
    /// those before the second come through, which are others each time. Answers also whether one was.
    async fn carry_out_most(
        &self,
        urgent: bool,
        changes: &[Change<'_>],
    ) -> Result<(Vec<bool>, bool)> {
        let mut done = vec![false; changes.len()];
        match self.carry_out(urgent, changes).await? {
            Carried::Out(done) => return Ok((done, false)),
            Carried::Nothing => return Ok((done, false)),
            Carried::HeldUp if changes.len() == 1 => return Ok((done, true)),
            Carried::HeldUp => {}
        }
        let mut held_up = 0;
        for i in shuffled(0..changes.len()) {
            match self.carry_out(urgent, &changes[i..=i]).await? {
                Carried::Out(carried) => done[i] = carried == [true],
                Carried::Nothing => {}
                Carried::HeldUp => held_up += 1,
            }
            if held_up > 1 {
                break;
            }
        }
        Ok((done, true))
    }

    async fn carry_out(&self, urgent: bool, changes: &[Change<'_>]) -> Result<Carried> {
        if changes.is_empty() {
            return Ok(Carried::Out(Vec::new()));
        }
        let mut packet = Packet::default();
        let at = self.tables.change(&mut packet, changes);
        // A second time it would find what the first has changed.
        match send(self.connection(urgent).await?.once(), &packet).await {
            Ok(answers) => {
                let done: HashSet<i64> = items(&answers[at])?;
                Ok(Carried::Out(changes.iter().map(|change| done.contains(&change.id)).collect()))
            }
            Err(error) if error::waited_in_vain(&error) => Ok(Carried::HeldUp),
            Err(error) if error::is_conflict(&error) => Ok(Carried::Nothing),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Asks for all of a lock by one statement. `None` where that leaves it open.
    async fn take(&self, claim: &Claim) -> Result<Option<Verdict>> {
        if claim.share != Share::ALL {
            return Ok(None);
        }
        let Some(connection) = self.unless_careful().await? else { return Ok(None) };
        let answer = connection.execute(self.tables.claim(claim)).await;
        self.unless_in_the_way(answer, |answer| Verdict::Granted(Token::new(answer.last_insert_id)))
    }

    /// Extends a lease that holds all of its lock, in one round trip, two on Galera. `None` where that leaves it open.
    async fn extend(&self, renewal: &Renewal) -> Result<Option<Renewed>> {
        if !renewal.lease.share.is_exclusive() {
            return Ok(None);
        }
        let mut packet = Packet::default();
        let at = self.tables.renew(&mut packet, renewal);
        let answers = send(self.connections.for_renewals().await?, &packet).await;
        let answer = answers.map(|mut answers| answers.swap_remove(at));
        self.unless_in_the_way(answer, |_| Renewed::Alive)
    }

    /// Asks for all of many locks, in one round trip, two on Galera. `None` is what that leaves open.
    async fn take_many(&self, claims: &[Claim]) -> Result<Vec<Option<Verdict>>> {
        let alone = alone(claims, |claim| (&claim.name, claim.attempt));
        let is_plain = |claim: &&Claim| {
            let has_more = claim.replaces.is_some() || claim.data.is_some();
            claim.share == Share::ALL && !has_more && alone.contains(&claim.attempt)
        };
        let mut alike: Vec<&Claim> = claims.iter().filter(is_plain).collect();
        if let Some(&first) = alike.first() {
            let of = |claim: &Claim| (claim.ttl, claim.grace);
            alike.retain(|claim| of(claim) == of(first) && claim.owner == first.owner);
            alike.truncate(TAKEN_AT_ONCE);
        }
        let (Some(first), 2..) = (alike.first(), alike.len()) else {
            return Ok(vec![None; claims.len()]);
        };
        let mut packet = Packet::default();
        let places = self.tables.claim_many(&mut packet, first, &alike);
        // Asked for a second time it leaves what the first has granted to the ledger, which knows that.
        let told = self.write_many(self.connections.shared().await?, &packet, places).await?;
        let names: HashMap<String, Attempt> = alike
            .iter()
            .map(|claim| (digits(claim.name.as_str().as_bytes()), claim.attempt))
            .collect();
        let mut granted = HashMap::new();
        for told in told {
            let (name, token) = told.split_once(':').ok_or_else(|| unexpected("no token"))?;
            let token = token.parse().map_err(|_| unexpected("another token"))?;
            let attempt = names.get(name).ok_or_else(|| unexpected("another name"))?;
            granted.insert(*attempt, Verdict::Granted(Token::new(token)));
        }
        Ok(claims.iter().map(|claim| granted.get(&claim.attempt).cloned()).collect())
    }

    /// Extends leases that hold all of their locks, in one round trip, two on Galera. `None` is what that leaves open.
    async fn extend_many(&self, renewals: &[Renewal]) -> Result<Vec<Option<Renewed>>> {
        let alone = alone(renewals, |renewal| (&renewal.lease.name, renewal.lease.attempt));
        let is_plain = |renewal: &&Renewal| {
            renewal.lease.share.is_exclusive() && alone.contains(&renewal.lease.attempt)
        };
        let mut ttls: HashMap<Ttl, Vec<&LeaseId>> = HashMap::new();
        for Renewal { lease, ttl, .. } in renewals.iter().filter(is_plain) {
            ttls.entry(*ttl).or_default().push(lease);
        }
        let alike = ttls.into_iter().max_by_key(|(_, leases)| leases.len());
        let extended = match alike {
            Some((ttl, leases)) if leases.len() > 1 => {
                let connection = self.connections.for_renewals().await?;
                self.change_many(connection, &leases, Some(ttl)).await?
            }
            _ => HashSet::new(),
        };
        let is_extended = |renewal: &Renewal| extended.contains(&renewal.lease.attempt);
        Ok(renewals.iter().map(|renewal| is_extended(renewal).then_some(Renewed::Alive)).collect())
    }

    /// Ends leases that hold all of their locks, in one round trip, two on Galera. `None` is what that leaves open.
    async fn end_many(&self, releases: &[Release]) -> Result<Vec<Option<Released>>> {
        let alone = alone(releases, |release| (&release.lease.name, release.lease.attempt));
        let is_plain = |Release { lease, how, .. }: &&Release| {
            *how == How::Free && lease.share.is_exclusive() && alone.contains(&lease.attempt)
        };
        let leases: Vec<&LeaseId> =
            releases.iter().filter(is_plain).map(|release| &release.lease).collect();
        let ended = match leases.len() {
            0 | 1 => HashSet::new(),
            _ => {
                // As of a single one.
                let connection = self.connections.shared().await?.once();
                self.change_many(connection, &leases, None).await?
            }
        };
        let is_ended = |release: &Release| ended.contains(&release.lease.attempt);
        Ok(releases.iter().map(|release| is_ended(release).then_some(Released::Done)).collect())
    }

    async fn change_many(
        &self,
        connection: InUse,
        leases: &[&LeaseId],
        ttl: Option<Ttl>,
    ) -> Result<HashSet<Attempt>> {
        let mut packet = Packet::default();
        let places = self.tables.change_many(&mut packet, leases, ttl);
        let told = self.write_many(connection, &packet, places).await?;
        let of = |told: &String| Uuid::try_parse(told).map(Attempt::from_uuid);
        told.iter().map(|told| of(told).map_err(|_| unexpected("another attempt"))).collect()
    }

    /// What it tells of the rows that a packet has locked and written, which stand at `places`: the number of those
    /// written, and the list. Nothing where others were in the way.
    async fn write_many(
        &self,
        connection: InUse,
        packet: &Packet,
        (changed, told): (usize, usize),
    ) -> Result<HashSet<String>> {
        match send(connection, packet).await {
            Ok(answers) => {
                let told: HashSet<String> = items(&answers[told])?;
                // Where some of those to be extended have expired in between nobody knows which.
                let are_all = answers[changed].affected == told.len() as u64;
                Ok(if are_all { told } else { HashSet::new() })
            }
            Err(error) if error::is_conflict(&error) || error::cannot_prepare(&error) => {
                Ok(HashSet::new())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Ends a lease that holds all of its lock by one statement. `None` where that leaves it open.
    async fn end(&self, Release { lease, how, .. }: &Release) -> Result<Option<Released>> {
        if *how != How::Free || !lease.share.is_exclusive() {
            return Ok(None);
        }
        let Some(connection) = self.unless_careful().await? else { return Ok(None) };
        // A second release would find that the first has ended the lease.
        let answer = connection.once().execute(self.tables.release(lease)).await;
        self.unless_in_the_way(answer, |_| Released::Done)
    }

    /// What it means that a row was changed, if one was. Where others are in the way none was; and where it has
    /// waited in vain for them, no statement waits again for a while, since whoever keeps a row locked for so
    /// long would hold up other names.
    fn unless_in_the_way<O>(
        &self,
        answer: std::result::Result<Answer, mysql_async::Error>,
        changed: impl FnOnce(&Answer) -> O,
    ) -> Result<Option<O>> {
        match answer {
            Ok(answer) => Ok((answer.affected == 1).then(|| changed(&answer))),
            Err(error) if error::is_conflict(&error) || error::cannot_prepare(&error) => {
                if error::waited_in_vain(&error) {
                    *self.locked_until() = Some(Instant::now() + CAREFUL_FOR);
                }
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// A connection for a statement that may wait for a row, unless none may now.
    async fn unless_careful(&self) -> Result<Option<InUse>> {
        let is_careful = || self.locked_until().is_some_and(|until| until > Instant::now());
        if is_careful() {
            return Ok(None);
        }
        let connection = self.connections.shared().await?;
        // Others may have waited in vain while this one waited for them.
        if is_careful() {
            connection.leave();
            return Ok(None);
        }
        Ok(Some(connection))
    }

    fn locked_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.locked_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self, urgent: bool) -> Result<InUse> {
        if urgent { self.connections.for_renewals().await } else { self.connections.shared().await }
    }

    /// Asks what changes nothing, and asks again, perhaps on another host, where the connection
    /// was closed or a node of a cluster could not tell.
    async fn read_only(&self, packet: &Packet) -> Result<Vec<Answer>> {
        let mut rounds = 0..ROUNDS;
        loop {
            match send(self.connections.shared().await?, packet).await {
                Ok(answers) => return Ok(answers),
                Err(error)
                    if (error::is_conflict(&error) || error::was_closed(&error))
                        && rounds.next().is_some() => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: mysql_async::Error) -> Error {
        error::from_driver(error, self.connections.place())
    }
}

#[async_trait]
impl LockBackend for MysqlBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(crate::NAME)
            .with_max_renewals(MAX_RENEWALS)
            .with_max_in_flight(self.config.connections())
            .with_batch_from(BATCH_FROM)
            .with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        let acquire = async {
            if let [claim] = claims
                && let Some(verdict) = self.take(claim).await?
            {
                return Ok(vec![verdict]);
            }
            let taken = match self.are_mostly_free.load(Ordering::Relaxed) {
                true => self.take_many(claims).await?,
                false => vec![None; claims.len()],
            };
            let verdicts = self.decide_rest(&ACQUIRE, claims, taken).await?;
            let of_whole =
                claims.iter().zip(&verdicts).filter(|(claim, _)| claim.share == Share::ALL);
            let are_granted: Vec<bool> =
                of_whole.map(|(_, verdict)| matches!(verdict, Verdict::Granted(_))).collect();
            if are_granted.len() > 1 {
                let granted = are_granted.iter().filter(|is_granted| **is_granted).count();
                self.are_mostly_free.store(granted * 2 > are_granted.len(), Ordering::Relaxed);
            }
            Ok(verdicts)
        };
        acquire.await.map_err(|error: Error| error.with_operation("acquire"))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        let renew = async {
            if let [renewal] = renewals
                && let Some(renewed) = self.extend(renewal).await?
            {
                return Ok(vec![renewed]);
            }
            let extended = self.extend_many(renewals).await?;
            self.decide_rest(&RENEW, renewals, extended).await
        };
        renew.await.map_err(|error: Error| error.with_operation("renew"))
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let release = async {
            for release in releases {
                release.check_foreign()?;
            }
            if let [release] = releases
                && let Some(released) = self.end(release).await?
            {
                return Ok(vec![released]);
            }
            let ended = self.end_many(releases).await?;
            self.decide_rest(&RELEASE, releases, ended).await
        };
        release.await.map_err(|error: Error| error.with_operation("release"))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let after = query.after.as_ref().map(|(name, attempt)| (name.as_str(), *attempt));
        let mut first = match after {
            Some((name, _)) if name >= query.prefix.as_str() => Start::Name(name.into()),
            _ => Start::Prefix,
        };
        let mut page = Vec::new();
        let list = async {
            while page.len() < limit {
                let mut packet = Packet::default();
                // The first name may have no lease that comes after `after`.
                let at = self.tables.read_live(&mut packet, query, &first, limit - page.len() + 1);
                let answers = self.read_only(&packet).await?;
                let snapshot = Snapshot::new(&answers[at].rows)?;
                for (name, state) in &snapshot.states {
                    let leases = state.ledger.list(name, snapshot.now);
                    page.extend(leases.into_iter().filter(|info| {
                        after.is_none_or(|after| (name.as_str(), info.lease.attempt) > after)
                    }));
                }
                match snapshot.last {
                    None => break,
                    Some(last) => first = Start::After(last),
                }
            }
            page.truncate(limit);
            Ok(page)
        };
        list.await.map_err(|error: Error| error.with_operation("list"))
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let clean_up = async {
            let mut packet = Packet::default();
            let at = self.tables.read_idle(&mut packet, idle, FORGOTTEN_AT_ONCE);
            let answers = self.read_only(&packet).await?;
            let Snapshot { now, states, .. } = Snapshot::new(&answers[at].rows)?;
            let changes: Vec<_> = states
                .iter()
                .filter(|(_, state)| state.ledger.is_idle(idle, now, micros(now)))
                .filter_map(|(name, state)| state.removal(name))
                .collect();
            // Whoever uses one of the names just now goes first.
            let (done, _) = self.carry_out_most(false, &changes).await?;
            Ok(done.into_iter().map(u64::from).sum())
        };
        clean_up.await.map_err(|error: Error| error.with_operation("clean_up"))
    }

    fn fence(&self) -> Option<Fence> {
        Some(self.tables.fence())
    }
}

/// What became of all that was decided.
struct Written<'s> {
    /// What could not be written, because somebody else has changed or locked it.
    undone: BTreeSet<&'s LockName>,
    /// Whether that was because somebody kept a lock for long.
    is_held_up: bool,
}

/// What became of a packet of changes.
enum Carried {
    /// It was carried out, but for changes of what was not as it had been read.
    Out(Vec<bool>),
    /// Nothing was, because others were in the way for a moment.
    Nothing,
    /// Nothing was, because somebody has locked what cannot be skipped, such as a gap.
    HeldUp,
}

/// A verb that a ledger decides.
struct Verb<I, O> {
    name: fn(&I) -> &LockName,
    decide: fn(&mut Ledger, &I, Duration) -> O,
    /// The answer where somebody else has the row.
    undecided: O,
    outcome: fn(&I, &O) -> Outcome,
    /// Whether it has a connection of its own.
    urgent: bool,
    /// Whether it needs a row where there is none.
    makes_rows: bool,
}

/// What an answer means for whoever asked.
enum Outcome {
    Granted,
    /// A lease of that owner's.
    Lost(Owner),
    Other,
}

const ACQUIRE: Verb<Claim, Verdict> = Verb {
    name: |claim| &claim.name,
    decide: |ledger, claim, now| ledger.acquire(claim, now, micros(now)),
    undecided: Verdict::Skipped,
    outcome: |_, verdict| match verdict {
        Verdict::Granted(_) => Outcome::Granted,
        _ => Outcome::Other,
    },
    urgent: false,
    makes_rows: true,
};

const RENEW: Verb<Renewal, Renewed> = Verb {
    name: |renewal| &renewal.lease.name,
    decide: |ledger, renewal, now| ledger.renew(renewal, now),
    undecided: Renewed::Skipped,
    outcome: |renewal, renewed| match renewed {
        Renewed::Lost(_) => Outcome::Lost(renewal.lease.owner.clone()),
        _ => Outcome::Other,
    },
    urgent: true,
    makes_rows: false,
};

const RELEASE: Verb<Release, Released> = Verb {
    name: |release| &release.lease.name,
    decide: |ledger, release, now| ledger.release(release, now).0,
    undecided: Released::Skipped,
    outcome: |release, released| match released {
        Released::Lost(_) => Outcome::Lost(release.lease.owner.clone()),
        _ => Outcome::Other,
    },
    urgent: false,
    makes_rows: false,
};

/// Says what is wrong with another client's clock, where it has cost somebody a lock, or may do so.
fn tell(name: &LockName, doubt: &Doubt, outcome: Outcome) {
    match (doubt, outcome) {
        // By hand, without a lease of anybody else's.
        (Doubt::Ahead { owner, has_released: true }, Outcome::Lost(of))
            if of.label() == owner.as_str() => {}
        (Doubt::Ahead { owner, .. }, Outcome::Lost(_)) => tracing::warn!(
            lock = %name,
            by = owner,
            "another client has taken the lock though its lease was alive: that client's clock or time \
             zone is ahead of the server's (does its project have USE_TZ = False?), or it has the \
             owner's name"
        ),
        (Doubt::Behind { owner, by }, Outcome::Granted) => tracing::warn!(
            lock = %name,
            of = owner,
            behind = ?by,
            "a lock was granted that another client may still hold: its lease had ended before it was \
             written, so that client's clock or time zone is behind the server's (does its project have \
             USE_TZ = False?)"
        ),
        _ => {}
    }
}

/// The attempts of items that no other item has anything to do with: several of one name are decided one after the
/// other.
fn alone<'a, I>(items: &'a [I], of: impl Fn(&'a I) -> (&'a LockName, Attempt)) -> HashSet<Attempt> {
    let mut names: HashMap<&LockName, usize> = HashMap::new();
    let mut attempts: HashMap<Attempt, usize> = HashMap::new();
    for (name, attempt) in items.iter().map(&of) {
        *names.entry(name).or_default() += 1;
        *attempts.entry(attempt).or_default() += 1;
    }
    let alone =
        items.iter().map(of).filter(|(name, attempt)| names[name] == 1 && attempts[attempt] == 1);
    alone.map(|(_, attempt)| attempt).collect()
}

/// How long others get to finish before a round: 1 ms before the third, doubling.
fn pause(round: u32) -> Duration {
    match round {
        0 | 1 => Duration::ZERO,
        _ => Duration::from_millis(1 << (round - 2)),
    }
}

/// In another order each time, so that none of them is always behind the same.
fn shuffled<T: Hash>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    let order = RandomState::new();
    items.sort_by_cached_key(|item| order.hash_one(item));
    items
}

async fn send(
    connection: InUse,
    packet: &Packet,
) -> std::result::Result<Vec<Answer>, mysql_async::Error> {
    match packet.kind() {
        Kind::Reading => connection.read(packet.text()).await,
        Kind::Writing => connection.run(packet.text()).await,
        Kind::Transaction => connection.run_transaction(packet.text()).await,
    }
}

/// What stands in a list that a statement has put together.
fn items<N: FromStr + Eq + Hash>(answer: &Answer) -> Result<HashSet<N>> {
    let row = answer.rows.first().ok_or_else(|| unexpected("no list"))?;
    let list: Option<String> = get(row, 0)?;
    let items = list.as_deref().unwrap_or_default().split_terminator(',').map(str::parse);
    items.collect::<std::result::Result<_, _>>().map_err(|_| unexpected("a list of other things"))
}

fn micros(now: Duration) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
