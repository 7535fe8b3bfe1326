//! What the tables hold of a name, and how that becomes a ledger and back.
//!
//! The name's own row says who holds all of the lock. Where several hold shares it says
//! [`SHARED`], and until when the last of them lives; each share then has a row of its own.
//!
//! Others, such as a Django app, know only `locked_by` and `expires_at`. What they write is told
//! from ours by `lease_expires_at`, which only we write along: where it differs from `expires_at`
//! somebody else has taken, renewed or ended the lease since.

use std::collections::BTreeMap;
use std::time::Duration;

use database_locks_core::ledger::{Entry, Ledger, Mark, Until};
use database_locks_core::{
    Attempt, Data, Error, ErrorKind, LockName, Owner, Result, Share, Standing, Token,
};
use mysql_async::Row;
use mysql_async::prelude::FromValue;
use uuid::Uuid;

/// In `locked_by` of a name that is held by shares. Its `attempt` is null then.
pub(crate) const SHARED: &str = "(shared)";

/// The expiry of a lease that never expires: 9999-01-01, which every client can read.
pub(crate) const NEVER: Duration = Duration::from_secs(253_370_764_800);

/// The last expiry of any other lease.
pub(crate) const LAST: Duration = Duration::from_secs(253_370_764_799);

/// What was read, and when by the server's clock.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Since 1970; zero where no name has a row, of which nothing can be told by time.
    pub(crate) now: Duration,
    pub(crate) states: BTreeMap<LockName, State>,
    /// The last name that was read, by bytes, also if it cannot be one of ours.
    pub(crate) last: Option<Vec<u8>>,
}

/// All that the tables hold of one name, and what is to become of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// What was decided; at first as it was read.
    pub(crate) ledger: Ledger,
    /// What is wrong with the clock of whoever else has written the row.
    pub(crate) doubt: Option<Doubt>,
    before: Ledger,
    row: Option<RowRead>,
    /// Whether the name is held by shares.
    is_shared: bool,
    /// The rows of shares that there are, in the order of their tokens. They are void unless the
    /// name is held by shares.
    shares: Vec<Entry>,
}

/// That somebody else's client goes by another time than the server.
#[derive(Debug)]
pub(crate) enum Doubt {
    /// It has taken the lock though a lease of ours was alive, and may have released it since. Or it
    /// has the name of our owner.
    Ahead { owner: String, has_released: bool },
    /// It has written a lease that was over by then, by this much at least.
    Behind { owner: String, by: Duration },
}

/// Which version of a name's row was read.
#[derive(Debug, Clone, Copy)]
struct RowRead {
    id: i64,
    version: i64,
    expires_at: Option<i64>,
}

/// What is to be written of a name, if its row is still as it was read.
#[derive(Debug)]
pub(crate) struct Change<'s> {
    pub(crate) name: &'s LockName,
    pub(crate) id: i64,
    pub(crate) version: i64,
    /// In µs since 1970.
    pub(crate) expires_at: Option<i64>,
    /// What was decided holds only until then.
    pub(crate) before: Option<Duration>,
    pub(crate) write: Write<'s>,
}

/// What is to be written of a name.
#[derive(Debug)]
pub(crate) enum Write<'s> {
    /// Only who waits.
    Mark(Mark),
    /// All of it.
    Row(Box<RowWrite<'s>>),
    /// The name is forgotten.
    Nothing,
}

/// A name's row, and its shares as far as they differ from those that were read.
#[derive(Debug)]
pub(crate) struct RowWrite<'s> {
    pub(crate) token: u64,
    pub(crate) locked_by: Option<&'s str>,
    pub(crate) explicit_owner: bool,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) capacity: u32,
    pub(crate) acquired_at: Option<Duration>,
    pub(crate) expires_at: Option<Duration>,
    pub(crate) touched_at: Duration,
    pub(crate) mark: Option<Mark>,
    pub(crate) standing: Standing,
    pub(crate) data: Option<&'s Data>,
    pub(crate) new_shares: Vec<&'s Entry>,
    pub(crate) changed_shares: Vec<&'s Entry>,
    pub(crate) gone_shares: Vec<Attempt>,
}

impl Snapshot {
    /// Makes states of rows, in whatever order these are.
    pub(crate) fn new(rows: &[Row]) -> Result<Self> {
        let now = rows.first().map(|row| get(row, column::CLOCK)).transpose()?;
        let now = since_1970(now.unwrap_or_default());
        let mut snapshot = Self { now, states: BTreeMap::new(), last: None };
        for row in rows {
            let bytes: Vec<u8> = get(row, column::NAME)?;
            let name = std::str::from_utf8(&bytes).ok().and_then(|name| LockName::new(name).ok());
            snapshot.last = snapshot.last.max(Some(bytes));
            // A name that this library could not have written is nothing that it can be asked for.
            let Some(name) = name else { continue };
            let state = snapshot.states.entry(name).or_default();
            if state.row.is_none() {
                state.row = Some(RowRead {
                    id: get(row, column::ID)?,
                    version: get(row, column::VERSION)?,
                    expires_at: get(row, column::EXPIRES_AT)?,
                });
                state.before = name_row(row, now)?;
                state.doubt = doubt(row, now)?;
                state.is_shared = is_shared(row)?;
            }
            if let Some(share) = share_row(row)? {
                state.shares.push(share);
            }
        }
        for state in snapshot.states.values_mut() {
            // As the ledger keeps them: in the order in which they were granted.
            state.shares.sort_by_key(|share| share.token);
            if state.is_shared {
                let is_ended = state.row.is_some_and(|row| row.expires_at.is_none());
                let touched = state.before.touched;
                let shares = state.shares.iter().cloned();
                state.before.entries = match is_ended {
                    // Perhaps by somebody else, all of them at once.
                    true => shares.map(|share| ended(share, touched)).collect(),
                    false => shares.collect(),
                };
            }
            state.ledger = state.before.clone();
        }
        Ok(snapshot)
    }
}

impl State {
    /// What has to be written for what was decided, `None` for nothing. A name without a row has
    /// nothing that could be changed.
    pub(crate) fn change<'s>(&'s self, name: &'s LockName, now: Duration) -> Option<Change<'s>> {
        let row = self.row?;
        let write = if self.is_decided() {
            Write::Row(Box::new(self.row_write()))
        } else {
            Write::Mark(self.ledger.mark.filter(|_| self.ledger.mark != self.before.mark)?)
        };
        let RowRead { id, version, expires_at } = row;
        let before = self.ledger.holds_until(&self.before, now);
        Some(Change { name, id, version, expires_at, before, write })
    }

    /// The change that forgets the name.
    pub(crate) fn removal<'s>(&self, name: &'s LockName) -> Option<Change<'s>> {
        let RowRead { id, version, expires_at } = self.row?;
        Some(Change { name, id, version, expires_at, before: None, write: Write::Nothing })
    }

    /// Whether something was decided that only a row can tell: it has to be made first.
    pub(crate) fn lacks_row(&self) -> bool {
        self.row.is_none() && self.ledger != self.before
    }

    /// Whether more than a mark was decided.
    pub(crate) fn is_decided(&self) -> bool {
        self.ledger.entries != self.before.entries || self.ledger.token != self.before.token
    }

    fn row_write(&self) -> RowWrite<'_> {
        let Ledger { token, entries, mark, touched, .. } = &self.ledger;
        let mut row = RowWrite {
            token: *token,
            locked_by: None,
            explicit_owner: false,
            attempt: None,
            capacity: Share::FULL,
            acquired_at: None,
            expires_at: None,
            touched_at: *touched,
            mark: *mark,
            standing: Standing::Held,
            data: None,
            new_shares: Vec::new(),
            changed_shares: Vec::new(),
            gone_shares: Vec::new(),
        };
        let mut shares: &[Entry] = &[];
        match entries.as_slice() {
            [] => {}
            [entry] if entry.share.is_exclusive() => {
                row.locked_by = Some(entry.owner.label());
                row.explicit_owner = entry.owner.is_explicit();
                row.attempt = Some(entry.attempt).filter(|attempt| *attempt != Attempt::FOREIGN);
                row.capacity = entry.share.capacity();
                row.acquired_at = Some(entry.granted_at);
                row.expires_at = end(entry.until);
                row.standing = entry.standing;
                row.data = entry.data.as_ref();
            }
            entries => {
                row.locked_by = Some(SHARED);
                row.acquired_at = entries.iter().map(|entry| entry.granted_at).max();
                // Others may take the row once it has expired: not before the last share, and for
                // those who give a grace not before that of one that has expired is over, either.
                row.expires_at = entries.iter().filter_map(|e| end(e.until)).max();
                shares = entries;
            }
        }
        let stored = by_lease(&self.shares);
        for entry in shares.iter().filter(|entry| entry.attempt != Attempt::FOREIGN) {
            match stored.get(&(entry.attempt, entry.token)) {
                None => row.new_shares.push(entry),
                Some(stored) if *stored != entry => row.changed_shares.push(entry),
                Some(_) => {}
            }
        }
        let kept = by_lease(shares);
        let gone = stored.keys().filter(|lease| !kept.contains_key(lease));
        row.gone_shares = gone.map(|(attempt, _)| *attempt).collect();
        row
    }
}

/// The columns of what `sql.rs` reads.
mod column {
    pub(super) const ID: usize = 0;
    pub(super) const NAME: usize = 1;
    pub(super) const VERSION: usize = 2;
    pub(super) const TOKEN: usize = 3;
    pub(super) const LOCKED_BY: usize = 4;
    pub(super) const EXPLICIT_OWNER: usize = 5;
    pub(super) const ATTEMPT: usize = 6;
    pub(super) const CAPACITY: usize = 7;
    pub(super) const ACQUIRED_AT: usize = 8;
    pub(super) const EXPIRES_AT: usize = 9;
    pub(super) const LEASE_EXPIRES_AT: usize = 10;
    pub(super) const TOUCHED_AT: usize = 11;
    pub(super) const WAITING_UNTIL: usize = 12;
    pub(super) const WAITING_WEIGHT: usize = 13;
    pub(super) const SHARE_ATTEMPT: usize = 14;
    pub(super) const SHARE_TOKEN: usize = 15;
    pub(super) const SHARE_LOCKED_BY: usize = 16;
    pub(super) const SHARE_EXPLICIT_OWNER: usize = 17;
    pub(super) const SHARE_WEIGHT: usize = 18;
    pub(super) const SHARE_CAPACITY: usize = 19;
    pub(super) const SHARE_ACQUIRED_AT: usize = 20;
    pub(super) const SHARE_EXPIRES_AT: usize = 21;
    pub(super) const SHARE_TOUCHED_AT: usize = 22;
    pub(super) const STANDING: usize = 23;
    pub(super) const DATA: usize = 24;
    pub(super) const SHARE_STANDING: usize = 25;
    pub(super) const SHARE_DATA: usize = 26;
    pub(super) const CLOCK: usize = 27;
}

/// What the name's own row says, shares apart.
fn name_row(row: &Row, now: Duration) -> Result<Ledger> {
    let moment = |at| Ok::<_, Error>(get::<Option<i64>>(row, at)?.map(since_1970));
    let expires_at = moment(column::EXPIRES_AT)?;
    let is_ours = expires_at == moment(column::LEASE_EXPIRES_AT)?;
    let touched = moment(column::TOUCHED_AT)?.unwrap_or_default();
    let owner: Option<Vec<u8>> = get(row, column::LOCKED_BY)?;
    let label = owner.as_deref().map(String::from_utf8_lossy);
    let label = label.as_deref().unwrap_or("unknown");
    let attempt: Option<Vec<u8>> = get(row, column::ATTEMPT)?;
    let capacity = get(row, column::CAPACITY)?;
    let mut ledger = Ledger::default();
    ledger.token = get(row, column::TOKEN)?;
    ledger.touched = touched;
    if let Some(until) = moment(column::WAITING_UNTIL)? {
        ledger.mark = Some(Mark::new(until, get(row, column::WAITING_WEIGHT)?));
    }
    if let (Some(expires_at), false) = (expires_at, is_ours) {
        // Somebody else's lease. Whatever was granted before it is older than it is.
        ledger.token += 1;
        let (token, owner) = (Token::new(ledger.token), Owner::lossy(label, false));
        let mut entry = Entry::new(Attempt::FOREIGN, token, owner, Share::ALL, now);
        entry.until = until(Some(expires_at), touched);
        ledger.entries.push(entry);
    } else if let Some(attempt) = attempt {
        let mut entry = Entry::new(
            to_attempt(&attempt)?,
            Token::new(ledger.token),
            Owner::lossy(label, get(row, column::EXPLICIT_OWNER)?),
            Share::new(capacity, capacity)?,
            moment(column::ACQUIRED_AT)?.unwrap_or(touched),
        );
        entry.until = until(expires_at, touched);
        entry.standing = Standing::of_code(get(row, column::STANDING)?);
        entry.data = data(get(row, column::DATA)?);
        ledger.entries.push(entry);
    }
    Ok(ledger)
}

/// What tells that somebody else's client goes by another time. It has written the row after we did,
/// the last time at `touched_at`.
fn doubt(row: &Row, now: Duration) -> Result<Option<Doubt>> {
    let moment = |at| Ok::<_, Error>(get::<Option<i64>>(row, at)?.map(since_1970));
    let (ours, theirs) = (moment(column::LEASE_EXPIRES_AT)?, moment(column::EXPIRES_AT)?);
    let owner: Option<Vec<u8>> = get(row, column::LOCKED_BY)?;
    let owner = String::from_utf8_lossy(&owner.unwrap_or_default()).into_owned();
    if ours == theirs || theirs.is_none() && owner == SHARED {
        return Ok(None);
    }
    let touched = moment(column::TOUCHED_AT)?.unwrap_or_default();
    Ok(match theirs {
        _ if ours > Some(now) => Some(Doubt::Ahead { owner, has_released: theirs.is_none() }),
        Some(theirs) if theirs < touched => Some(Doubt::Behind { owner, by: touched - theirs }),
        _ => None,
    })
}

/// Whether the shares of the name count: not once somebody else has written the row, unless it
/// was to end them.
fn is_shared(row: &Row) -> Result<bool> {
    let label: Option<Vec<u8>> = get(row, column::LOCKED_BY)?;
    let expires_at: Option<i64> = get(row, column::EXPIRES_AT)?;
    let ours: Option<i64> = get(row, column::LEASE_EXPIRES_AT)?;
    // An owner may be called like that, too.
    let attempt: Option<Vec<u8>> = get(row, column::ATTEMPT)?;
    Ok(attempt.is_none()
        && label.as_deref() == Some(SHARED.as_bytes())
        && (expires_at == ours || expires_at.is_none()))
}

fn share_row(row: &Row) -> Result<Option<Entry>> {
    let Some(attempt) = get::<Option<Vec<u8>>>(row, column::SHARE_ATTEMPT)? else {
        return Ok(None);
    };
    let owner: Vec<u8> = get(row, column::SHARE_LOCKED_BY)?;
    let expires_at = get::<Option<i64>>(row, column::SHARE_EXPIRES_AT)?.map(since_1970);
    let label = String::from_utf8_lossy(&owner);
    let mut entry = Entry::new(
        to_attempt(&attempt)?,
        Token::new(get(row, column::SHARE_TOKEN)?),
        Owner::lossy(&label, get(row, column::SHARE_EXPLICIT_OWNER)?),
        Share::new(get(row, column::SHARE_WEIGHT)?, get(row, column::SHARE_CAPACITY)?)?,
        since_1970(get(row, column::SHARE_ACQUIRED_AT)?),
    );
    entry.until = until(expires_at, since_1970(get(row, column::SHARE_TOUCHED_AT)?));
    entry.standing = Standing::of_code(get(row, column::SHARE_STANDING)?);
    entry.data = data(get(row, column::SHARE_DATA)?);
    Ok(Some(entry))
}

/// What somebody else has stored and could not be ours is left out.
fn data(stored: Option<Vec<u8>>) -> Option<Data> {
    String::from_utf8(stored?).ok().and_then(|text| Data::new(text).ok())
}

fn ended(mut entry: Entry, at: Duration) -> Entry {
    if !matches!(entry.until, Until::Released(_)) {
        entry.until = Until::Released(at);
    }
    entry
}

/// Entries by what tells them apart: an attempt that was forgotten may have been granted anew.
fn by_lease(entries: &[Entry]) -> BTreeMap<(Attempt, Token), &Entry> {
    entries.iter().map(|entry| ((entry.attempt, entry.token), entry)).collect()
}

fn until(expires_at: Option<Duration>, touched: Duration) -> Until {
    match expires_at {
        None => Until::Released(touched),
        Some(at) if at >= NEVER => Until::Forever,
        Some(at) => Until::Expiry(at),
    }
}

/// When a lease ends or has ended, `None` for one that was released.
fn end(until: Until) -> Option<Duration> {
    match until {
        Until::Forever => Some(NEVER),
        Until::Expiry(at) => Some(at.min(LAST)),
        Until::Released(_) => None,
    }
}

fn to_attempt(bytes: &[u8]) -> Result<Attempt> {
    let uuid = Uuid::from_slice(bytes).map_err(|_| unexpected("an attempt of another length"))?;
    Ok(Attempt::from_uuid(uuid))
}

fn since_1970(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

pub(crate) fn get<T: FromValue>(row: &Row, column: usize) -> Result<T> {
    row.get_opt(column)
        .and_then(std::result::Result::ok)
        .ok_or_else(|| unexpected(&format!("another type in column {column}")))
}

pub(crate) fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorKind::Backend,
        format!("the server answered with {what}: are its tables of another version?"),
    )
    .with_backend(crate::NAME)
}
