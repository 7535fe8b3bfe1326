//! A complete lock backend in one file: all leases in one JSON file in a folder.
//!
//! Copy it to start a backend of your own. Any store will do in which the state of a name can be
//! loaded, changed and stored while nobody else does so. What a claim, a renewal and a release do
//! to that state is decided by [`Ledger`], so there is no rule of its own in here.
//!
//! It serves the processes of one host, which share the host's clock.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use database_locks_core::ledger::{Entry, Ledger, Mark, Until};
use database_locks_core::{
    Attempt, Capabilities, Claim, Error, ErrorKind, LeaseId, LeaseInfo, ListQuery, LockBackend,
    LockName, Locks, Owner, Released, Renewal, Renewed, Result, Share, Token, Verdict, async_trait,
};
use serde::{Deserialize, Serialize};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let locks = Locks::new(FileBackend::open(std::env::temp_dir().join("custom_backend"))?);
    let guard = locks.lock("nightly").timeout(Duration::from_secs(30)).acquire().await?;
    println!("only one of me, under token {}", guard.token());
    guard.release().await
}

/// Leases in the file `locks.json` of a folder.
#[derive(Debug)]
pub struct FileBackend {
    folder: PathBuf,
}

impl FileBackend {
    /// Leases in `folder`, which is created where it is missing.
    ///
    /// # Errors
    ///
    /// `Permission` where the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    /// Lets `work` change the state of all names, while every other process waits.
    ///
    /// Files block, so this runs on a thread that may be blocked. If the caller stops waiting, the
    /// work still goes on to its end: it is done wholly or, by a crash, not at all.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Names, Now) -> T + Send + 'static,
    ) -> Result<T> {
        let folder = self.folder.clone();
        let task = tokio::task::spawn_blocking(move || change(&folder, work));
        task.await.map_err(io::Error::other).flatten().map_err(failed)
    }

    /// Lets `decide` change the state of the name of each item.
    async fn decide<I: Clone + Send + 'static, O: Send + 'static>(
        &self,
        items: &[I],
        name: fn(&I) -> &LockName,
        decide: fn(&mut Ledger, &I, Now) -> O,
    ) -> Result<Vec<O>> {
        let items = items.to_vec();
        self.change(move |names, now| {
            let one = |item| decide(names.entry(name(item).clone()).or_default(), item, now);
            items.iter().map(one).collect()
        })
        .await
    }
}

#[async_trait]
impl LockBackend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("file")
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        self.decide(claims, |c| &c.name, |ledger, c, now| ledger.acquire(c, now.time, now.micros))
            .await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        self.decide(renewals, |r| &r.lease.name, |ledger, r, now| ledger.renew(r, now.time)).await
    }

    async fn release(&self, leases: &[LeaseId]) -> Result<Vec<Released>> {
        // A backend that can notify its waiters sends a hint where the ledger's second answer
        // says so.
        self.decide(leases, |l| &l.name, |ledger, l, now| ledger.release(l, now.time).0).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let query = query.clone();
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        self.change(move |names, now| {
            names
                .iter()
                .filter(|(name, _)| name.as_str().starts_with(&query.prefix))
                .flat_map(|(name, ledger)| ledger.list(name, now.time))
                .filter(|info| {
                    let place = (&info.lease.name, info.lease.attempt);
                    query.after.as_ref().is_none_or(|(name, attempt)| place > (name, *attempt))
                })
                .take(limit)
                .collect()
        })
        .await
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        self.change(move |names, now| {
            names.extract_if(.., |_, l| l.is_idle(idle, now.time, now.micros)).count() as u64
        })
        .await
    }
}

/// The state of every name, in the order of the names.
type Names = BTreeMap<LockName, Ledger>;

/// When a decision is made, by the clock of the store and never by that of its clients.
#[derive(Clone, Copy)]
struct Now {
    time: Duration,
    /// For tokens: microseconds since 1970.
    micros: u64,
}

fn change<T>(folder: &Path, work: impl FnOnce(&mut Names, Now) -> T) -> io::Result<T> {
    // A file of its own, because the other one is replaced. The lock ends with the process.
    let lock = File::create(folder.join("locks.lock"))?;
    lock.lock()?;
    let path = folder.join("locks.json");
    let saved: Saved = match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
        Err(error) => return Err(error),
    };
    let before: Names =
        saved.names.into_iter().map(load).collect::<Result<_>>().map_err(io::Error::other)?;

    // The clock is read after the wait for the lock, and must not run backwards: were the host's
    // clock set back, time stands still until it has caught up.
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = wall.max(saved.time);
    let micros = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);

    let mut after = before.clone();
    let answer = work(&mut after, Now { time, micros });
    // A busy poll changes nothing, and so it writes nothing.
    if after != before {
        let saved = Saved { time, names: after.iter().map(save).collect() };
        // Whoever reads sees the old file or the new one, whole, also after a crash.
        let new = folder.join("locks.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&saved)?)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        File::open(folder)?.sync_all()?;
    }
    Ok(answer)
}

/// Errors that may pass are `Unavailable`: the engine repeats those, until its caller's timeout.
fn failed(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorKind::Permission
        }
        io::ErrorKind::StorageFull | io::ErrorKind::Interrupted => ErrorKind::Unavailable,
        _ => ErrorKind::Backend,
    };
    let message = format!("{error}: check the folder that the locks are kept in");
    Error::new(kind, message).with_backend("file").with_source(error)
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    time: Duration,
    names: Vec<SavedName>,
}

#[derive(Serialize, Deserialize)]
struct SavedName {
    name: String,
    token: u64,
    touched: Duration,
    /// Until when, and of which weight.
    mark: Option<(Duration, u32)>,
    leases: Vec<SavedLease>,
}

#[derive(Serialize, Deserialize)]
struct SavedLease {
    attempt: u128,
    token: u64,
    owner: String,
    owner_is_explicit: bool,
    weight: u32,
    capacity: u32,
    granted_at: Duration,
    /// Neither of the two for a lease that never expires.
    expires_at: Option<Duration>,
    released_at: Option<Duration>,
}

fn load(saved: SavedName) -> Result<(LockName, Ledger)> {
    let entry = |lease: SavedLease| {
        let label = if lease.owner_is_explicit { Owner::explicit } else { Owner::label_only };
        Ok(Entry {
            attempt: Attempt::from_uuid(uuid::Uuid::from_u128(lease.attempt)),
            token: Token::new(lease.token),
            owner: label(lease.owner)?,
            share: Share::new(lease.weight, lease.capacity)?,
            granted_at: lease.granted_at,
            until: match (lease.expires_at, lease.released_at) {
                (_, Some(at)) => Until::Released(at),
                (Some(at), None) => Until::Expiry(at),
                (None, None) => Until::Forever,
            },
        })
    };
    let ledger = Ledger {
        token: saved.token,
        entries: saved.leases.into_iter().map(entry).collect::<Result<_>>()?,
        mark: saved.mark.map(|(until, weight)| Mark { until, weight }),
        touched: saved.touched,
    };
    Ok((LockName::new(saved.name)?, ledger))
}

fn save((name, ledger): (&LockName, &Ledger)) -> SavedName {
    let lease = |entry: &Entry| {
        let (expires_at, released_at) = match entry.until {
            Until::Forever => (None, None),
            Until::Expiry(at) => (Some(at), None),
            Until::Released(at) => (None, Some(at)),
        };
        SavedLease {
            attempt: entry.attempt.as_uuid().as_u128(),
            token: entry.token.get(),
            owner: entry.owner.label().to_owned(),
            owner_is_explicit: entry.owner.is_explicit(),
            weight: entry.share.weight(),
            capacity: entry.share.capacity(),
            granted_at: entry.granted_at,
            expires_at,
            released_at,
        }
    };
    SavedName {
        name: name.as_str().to_owned(),
        token: ledger.token,
        touched: ledger.touched,
        mark: ledger.mark.map(|mark| (mark.until, mark.weight)),
        leases: ledger.entries.iter().map(lease).collect(),
    }
}
