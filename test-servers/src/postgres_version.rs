//! Versions of Postgres besides the one that the system has.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::cache;

/// The major versions that tests run on besides the installed one: the oldest that is looked after, and the newest.
/// `cargo xtask test` fetches them.
pub const POSTGRES_VERSIONS: [u32; 2] = [13, 18];

/// The folder of the programs of a major version: an installed one, or one unpacked in the [`cache`] as
/// `postgres-MAJOR`.
///
/// # Errors
///
/// When there is none. The message says what to do.
pub fn postgres_binaries(major: u32) -> Result<PathBuf> {
    let unpacked = cache()?.join(format!("postgres-{major}")).join("bin");
    [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")]
        .map(PathBuf::from)
        .into_iter()
        .chain([unpacked.clone()])
        .find(|folder| is_whole(folder))
        .with_context(|| {
            format!(
                "there is no postgres {major} (none installed, and none unpacked in {}): run `cargo xtask test \
                 --only install`, which fetches it where there is npm, or install it",
                unpacked.display()
            )
        })
}

fn is_whole(folder: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|program| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_version_says_what_to_do() {
        let message = postgres_binaries(1).unwrap_err().to_string();
        assert!(
            message.contains("no postgres 1 ") && message.contains("--only install"),
            "{message}"
        );
    }
}
