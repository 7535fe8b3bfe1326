//! A complete lock backend in one file: all leases in one JSON file in a folder.
//!
//! Copy it to start a backend of your own. Any store will do that can write a name's value if it is
//! still as it was read: what a claim, a renewal and a release do to that value is decided by
//! [`KeyValueBackend`], so there is no rule of its own in here.
//!
//! It serves the processes of one host, which share the host's clock.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use database_locks_core::key_value::{KeyValue, KeyValueBackend, Loaded, Stored, Write};
use database_locks_core::{Capabilities, Error, ErrorKind, LockName, Locks, Result, async_trait};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let store = FileStore::open(std::env::temp_dir().join("custom_backend"))?;
    let locks = Locks::new(KeyValueBackend::new(store));
    let guard = locks.lock("nightly").timeout(Duration::from_secs(30)).acquire().await?;
    println!("only one of me, under token {}", guard.token());
    guard.release().await
}

/// Values in the file `locks.json` of a folder.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    /// Values in `folder`, which is created where it is missing.
    ///
    /// # Errors
    ///
    /// `Permission` where the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    /// Lets `work` see and change all values, while every other process waits.
    ///
    /// Files block, so this runs on a thread that may be blocked. If the caller stops waiting, the
    /// work still goes on to its end: it is done wholly or, by a crash, not at all.
    async fn with_values<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Values, Duration) -> T + Send + 'static,
    ) -> Result<T> {
        let folder = self.folder.clone();
        let task = tokio::task::spawn_blocking(move || with_values(&folder, work));
        task.await.map_err(io::Error::other).flatten().map_err(failed)
    }
}

#[async_trait]
impl KeyValue for FileStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("file")
    }

    async fn load(&self, names: &[LockName]) -> Result<Loaded> {
        let names = names.to_vec();
        self.with_values(move |values, now| {
            let stored = |value: &String| Stored::versioned_by_itself(value);
            let of = |name: &LockName| values.get(name.as_str()).map(stored);
            Loaded::new(now, names.iter().map(of).collect())
        })
        .await
    }

    async fn store(&self, writes: &[Write]) -> Result<Vec<bool>> {
        let writes = writes.to_vec();
        self.with_values(move |values, now| {
            let one = |write: Write| {
                let key = write.name.as_str();
                let holds = values.get(key) == write.version.as_ref()
                    && write.before.is_none_or(|before| now < before);
                if holds {
                    match write.value {
                        Some(value) => values.insert(key.to_owned(), value),
                        None => values.remove(key),
                    };
                }
                holds
            };
            writes.into_iter().map(one).collect()
        })
        .await
    }

    async fn names(&self, first: &str, limit: usize) -> Result<Vec<LockName>> {
        let first = first.to_owned();
        let names = self.with_values(move |values, _| {
            values.range(first..).take(limit).map(|(key, _)| LockName::new(key)).collect()
        });
        names.await?
    }
}

/// The value of every name, in the order of the names.
type Values = BTreeMap<String, String>;

fn with_values<T>(folder: &Path, work: impl FnOnce(&mut Values, Duration) -> T) -> io::Result<T> {
    // A file of its own, because the other one is replaced. The lock ends with the process.
    let lock = File::create(folder.join("locks.lock"))?;
    lock.lock()?;
    let path = folder.join("locks.json");
    let before: Values = match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Values::new(),
        Err(error) => return Err(error),
    };
    // The clock is read after the wait for the lock.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut after = before.clone();
    let answer = work(&mut after, now);
    if after != before {
        // Whoever reads sees the old file or the new one, whole, also after a crash.
        let new = folder.join("locks.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&after)?)?;
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
