//! Where what no package brings is kept between runs.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;

/// The folder of what `cargo xtask test` has fetched: `database-locks` in the user's cache. As root it is in
/// `/var/cache`, because the ordinary user that servers run as has no access to root's home.
///
/// # Errors
///
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| geteuid().is_root().then(|| PathBuf::from("/var/cache")))
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set one of them")?;
    Ok(cache.join("database-locks"))
}
