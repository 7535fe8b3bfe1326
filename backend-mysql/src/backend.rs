//! The verbs: what is asked of which connection, and what the answers mean.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Duration;

use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Capabilities, Claim, Error, ErrorKind, LeaseId, LeaseInfo, ListQuery, LockBackend, LockName,
    Owner, Released, Renewal, Renewed, Result, Share, Token, Ttl, Verdict, async_trait,
};

use crate::config::MysqlConfig;
use crate::error;
use crate::packet::Answer;
use crate::pool::{Connections, InUse};
use crate::schema::{self, Schema};
use crate::sql::{Packet, ReadAt, Start, Tables};
use crate::state::{Change, Doubt, Snapshot, State};

/// How often what others have changed in the meantime is decided again, within one request.
const ROUNDS: u32 = 8;
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
        Ok(Self { connections: Connections::new(&config)?, tables: Tables::new(&config), config })
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

    /// Lets `verb` change the ledger of each item's name, and writes what has changed.
    ///
    /// Nothing is locked in between: where somebody else has changed a name since it was read, its
    /// items are decided again. `seen` is what was read of the names before, and `made` whether it
    /// was tried before to make the rows that were missing.
    async fn decide<I: Sync, O: Clone + Send>(
        &self,
        verb: &Verb<I, O>,
        items: &[&I],
        mut seen: Option<Snapshot>,
        mut made: bool,
    ) -> Result<Vec<O>> {
        let mut answers = vec![verb.undecided.clone(); items.len()];
        let mut open: Vec<usize> = (0..items.len()).collect();
        for round in 0..ROUNDS {
            if open.is_empty() {
                break;
            }
            let snapshot = match seen.take() {
                Some(snapshot) => Some(snapshot),
                None => {
                    let names = open.iter().map(|&i| (verb.name)(items[i])).collect();
                    self.read(verb.urgent, &names, pause(round)).await?
                }
            };
            let Some(mut snapshot) = snapshot else { break };
            let now = snapshot.now;
            for &i in &open {
                let state = snapshot.states.entry((verb.name)(items[i]).clone()).or_default();
                answers[i] = (verb.decide)(&mut state.ledger, items[i], now);
            }

            let Written { undone, is_held_up } = self.write(verb.urgent, &snapshot).await?;
            let missing: BTreeSet<&LockName> = snapshot
                .states
                .iter()
                .filter(|(_, state)| state.lacks_row())
                .map(|(name, _)| name)
                .collect();
            open.retain(|&i| {
                let name = (verb.name)(items[i]);
                let is_open = missing.contains(name) || undone.contains(name);
                if is_open {
                    answers[i] = verb.undecided.clone();
                } else if let Some(doubt) = &snapshot.states[name].doubt {
                    tell(name, doubt, (verb.outcome)(items[i], &answers[i]));
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

    /// Reads the state of names. `None` where others were in the way.
    async fn read(
        &self,
        urgent: bool,
        names: &BTreeSet<&LockName>,
        pause: Duration,
    ) -> Result<Option<Snapshot>> {
        let mut packet = Packet::default();
        self.tables.pause(&mut packet, pause);
        let at = self.tables.read(&mut packet, names.iter().copied());
        match send(self.connection(urgent).await?, &packet).await {
            Ok(answers) => Ok(Some(snapshot(&answers, at)?)),
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
        let (done, is_held_up) = match self.carry_out(urgent, &changes).await? {
            Carried::Out(done) => (done, false),
            Carried::Nothing => (vec![false; changes.len()], false),
            // What holds up one of them must not hold up the others. Where it is more than one, those
            // before the second come through, which are others each time.
            Carried::HeldUp if changes.len() > 1 => {
                let mut done = vec![false; changes.len()];
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
                (done, true)
            }
            Carried::HeldUp => (vec![false; changes.len()], true),
        };
        let undone = changes
            .iter()
            .zip(done)
            // A mark that was not left is left by the next ask.
            .filter(|(change, done)| !done && snapshot.states[change.name].is_decided())
            .map(|(change, _)| change.name)
            .collect();
        Ok(Written { undone, is_held_up })
    }

    async fn carry_out(&self, urgent: bool, changes: &[Change<'_>]) -> Result<Carried> {
        if changes.is_empty() {
            return Ok(Carried::Out(Vec::new()));
        }
        let mut packet = Packet::default();
        let done = self.tables.change(&mut packet, changes);
        // A second time it would find what the first has changed.
        match send(self.connection(urgent).await?.once(), &packet).await {
            Ok(answers) => {
                Ok(Carried::Out(done.into_iter().map(|at| answers[at].affected == 1).collect()))
            }
            Err(error) if error::waited_in_vain(&error) => Ok(Carried::HeldUp),
            Err(error) if error::is_conflict(&error) => Ok(Carried::Nothing),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Asks for all of a lock, which takes one round trip where its row is there.
    async fn take(&self, claim: &Claim) -> Result<Taken> {
        let mut seen = None;
        for is_missing in [false, true] {
            let mut packet = Packet::default();
            if is_missing {
                self.tables.make(&mut packet, &[&claim.name]);
            }
            let read = self.tables.read(&mut packet, std::iter::once(&claim.name));
            let granted = self.tables.take(&mut packet, claim);
            let answers = match send(self.connections.shared().await?, &packet).await {
                Ok(answers) => answers,
                Err(error) if error::is_conflict(&error) => return Ok(Taken::Contended),
                Err(error) => return Err(self.failed(error)),
            };
            let snapshot = snapshot(&answers, read)?;
            if answers[granted].affected == 1 {
                let token = Token::new(answers[granted].last_insert_id);
                if let Some(doubt) = snapshot.states.values().find_map(|state| state.doubt.as_ref())
                {
                    tell(&claim.name, doubt, Outcome::Granted);
                }
                return Ok(Taken::Granted(token));
            }
            let is_there = snapshot.states.values().any(State::is_stored);
            seen = Some(snapshot);
            if is_there {
                break;
            }
        }
        Ok(seen.map_or(Taken::Contended, Taken::Open))
    }

    /// Gives those of the leases that hold all of their lock, and are the only ones of it that are asked
    /// for, another end, in one round trip. Answers for each lease whether that was done.
    async fn set_end(&self, urgent: bool, leases: &[(&LeaseId, Option<Ttl>)]) -> Result<Vec<bool>> {
        let mut done = vec![false; leases.len()];
        let mut asked: HashMap<&LockName, usize> = HashMap::new();
        for (lease, _) in leases {
            *asked.entry(&lease.name).or_default() += 1;
        }
        let is_alone =
            |&i: &usize| leases[i].0.share.is_exclusive() && asked[&leases[i].0.name] == 1;
        let alone: Vec<usize> = (0..leases.len()).filter(is_alone).collect();
        if alone.is_empty() {
            return Ok(done);
        }
        let mut packet = Packet::default();
        let ended = self.tables.set_end(&mut packet, alone.iter().map(|&i| leases[i]));
        let connection = self.connection(urgent).await?;
        let is_release = alone.iter().any(|&i| leases[i].1.is_none());
        // A second release would find that the first has ended the lease.
        let connection = if is_release { connection.once() } else { connection };
        match send(connection, &packet).await {
            Ok(answers) => {
                for (i, at) in alone.into_iter().zip(ended) {
                    done[i] = answers[at].affected == 1;
                }
                Ok(done)
            }
            Err(error) if error::is_conflict(&error) => Ok(done),
            Err(error) => Err(self.failed(error)),
        }
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
        Capabilities::new(crate::NAME).with_max_in_flight(self.config.connections())
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        let decide = async {
            let (mut seen, mut made) = (None, false);
            if let [claim] = claims
                && claim.share == Share::ALL
            {
                match self.take(claim).await? {
                    Taken::Granted(token) => return Ok(vec![Verdict::Granted(token)]),
                    Taken::Open(snapshot) => seen = Some(snapshot),
                    Taken::Contended => {}
                }
                made = true;
            }
            let claims: Vec<&Claim> = claims.iter().collect();
            self.decide(&ACQUIRE, &claims, seen, made).await
        };
        decide.await.map_err(|error: Error| error.with_operation("acquire"))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        let renew = async {
            let ends: Vec<_> = renewals.iter().map(|r| (&r.lease, Some(r.ttl))).collect();
            let done = self.set_end(true, &ends).await?;
            let open: Vec<&Renewal> = left(renewals, &done).collect();
            let decided = self.decide(&RENEW, &open, None, true).await?;
            Ok(together(&done, Renewed::Alive, decided))
        };
        renew.await.map_err(|error: Error| error.with_operation("renew"))
    }

    async fn release(&self, leases: &[LeaseId]) -> Result<Vec<Released>> {
        let release = async {
            let ends: Vec<_> = leases.iter().map(|lease| (lease, None)).collect();
            let done = self.set_end(false, &ends).await?;
            let open: Vec<&LeaseId> = left(leases, &done).collect();
            let decided = self.decide(&RELEASE, &open, None, true).await?;
            Ok(together(&done, Released::Freed, decided))
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
                let snapshot = snapshot(&answers, at)?;
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
            let Snapshot { now, states, .. } = snapshot(&answers, at)?;
            let changes: Vec<_> = states
                .iter()
                .filter(|(_, state)| state.ledger.is_idle(idle, now, micros(now)))
                .filter_map(|(name, state)| state.removal(name))
                .collect();
            match self.carry_out(false, &changes).await? {
                Carried::Out(done) => Ok(done.into_iter().map(u64::from).sum()),
                // Whoever uses one of the names just now goes first.
                Carried::Nothing | Carried::HeldUp => Ok(0),
            }
        };
        clean_up.await.map_err(|error: Error| error.with_operation("clean_up"))
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

/// What became of a claim to all of a lock.
enum Taken {
    Granted(Token),
    /// It was not free, as what was read tells.
    Open(Snapshot),
    /// Others were in the way.
    Contended,
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
};

const RELEASE: Verb<LeaseId, Released> = Verb {
    name: |lease| &lease.name,
    decide: |ledger, lease, now| ledger.release(lease, now).0,
    undecided: Released::Skipped,
    outcome: |lease, released| match released {
        Released::Lost(_) => Outcome::Lost(lease.owner.clone()),
        _ => Outcome::Other,
    },
    urgent: false,
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

/// The items that are not done yet.
fn left<'i, I>(items: &'i [I], done: &'i [bool]) -> impl Iterator<Item = &'i I> {
    items.iter().zip(done).filter(|(_, done)| !**done).map(|(item, _)| item)
}

/// The answers to all items: the same to those that are done, and what was decided of the others.
fn together<O: Copy>(done: &[bool], answer: O, decided: Vec<O>) -> Vec<O> {
    let mut decided = decided.into_iter();
    done.iter().filter_map(|done| if *done { Some(answer) } else { decided.next() }).collect()
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
    match packet.is_transaction() {
        true => connection.run_transaction(packet.text()).await,
        false => connection.run(packet.text()).await,
    }
}

fn snapshot(answers: &[Answer], at: ReadAt) -> Result<Snapshot> {
    Snapshot::new(&answers[at.clock].rows, &answers[at.rows].rows)
}

fn micros(now: Duration) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
