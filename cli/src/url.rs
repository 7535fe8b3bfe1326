//! Which database: the option, else the environment, else a file of the user's own.

use std::env;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use crate::args::Database;
use crate::exit::{self, Failure};

const VARIABLE: &str = "DATABASE_LOCKS_URL";

/// The URL of the database to use. It may hold a password: it is for connecting, not for showing.
pub(crate) fn resolve(database: &Database) -> Result<String, Failure> {
    if let Some(url) = &database.url {
        return Ok(url.clone());
    }
    match env::var(VARIABLE) {
        Ok(url) if !url.is_empty() => Ok(url),
        Ok(_) | Err(env::VarError::NotPresent) => embedded(),
        // The error would show the value.
        Err(env::VarError::NotUnicode(_)) => {
            Err(Failure::new(exit::USAGE, format!("{VARIABLE} is not UTF-8: escape it with %XX")))
        }
    }
}

/// The name of the database system, for people.
pub(crate) fn system(url: &str) -> &str {
    url.split_once(':').map_or(url, |(scheme, _)| scheme)
}

/// An SQLite file in the user's state folder, which is made on first use.
fn embedded() -> Result<String, Failure> {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or_else(|| {
            let message =
                format!("neither HOME nor XDG_STATE_HOME is set: give --url or set {VARIABLE}");
            Failure::new(exit::CONFIGURATION, message)
        })?;
    let folder = state.join("database-locks");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
        Failure::system(&format!("cannot create the folder {}", folder.display()), error)
    })?;
    let file = folder.join("locks.db");
    let path = file.to_str().ok_or_else(|| {
        let message = format!("the state folder {} is not UTF-8: give --url", folder.display());
        Failure::new(exit::CONFIGURATION, message)
    })?;
    Ok(format!("sqlite:{path}"))
}
