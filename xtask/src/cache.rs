//! Filling the folder of what no package brings.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use database_locks_test_servers::cache;

/// Puts a folder into the cache, unless `is_there` says that it is there. Two that do so at once are safe, and the
/// second waits.
///
/// `make` is given an empty folder to work in, and answers with the folder that it has made there and the name that
/// this gets, which it has only once it is whole.
pub(crate) fn put(
    is_there: impl FnOnce() -> bool,
    make: impl FnOnce(&Path) -> Result<(PathBuf, String)>,
) -> Result<()> {
    let cache = cache()?;
    create_dir(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    if is_there() {
        return Ok(());
    }
    // Whoever held the lock before may have been killed.
    for entry in fs::read_dir(&cache)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("fetching-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let workplace = cache.join(format!("fetching-{}", std::process::id()));
    create_dir(&workplace)?;
    let (made, name) = make(&workplace)?;
    let place = cache.join(name);
    // What does not work is no better than nothing.
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(made, place)?;
    fs::remove_dir_all(&workplace)?;
    Ok(())
}

/// Creates a folder that the user whom servers run as can enter, whatever the umask.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot create {}", path.display()))
}
