//! What to use: the command line, else the environment, else a file of the user's own.

use std::env;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use database_locks::Settings;

use crate::args::{Database, Run};
use crate::exit::{self, Failure};

/// Where the status file is named. It is one process's own: see [`of_run`].
pub(crate) const STATUS_FILE: &str = "DATABASE_LOCKS_STATUS_FILE";

/// For a command that is to be run.
pub(crate) fn of_run(arguments: &Run) -> Result<Settings, Failure> {
    let settings = Settings::from_env()?;
    let settings = match &arguments.status_file {
        Some(path) => settings.status_file(path),
        None => settings,
    };
    if settings.is_enabled() { with_url(settings, &arguments.database) } else { Ok(settings) }
}

/// For looking at a database, or setting it up, which is done whether or not locks are switched off.
pub(crate) fn of_database(database: &Database) -> Result<Settings, Failure> {
    with_url(Settings::from_env()?.enabled(true).no_status_file(), database)
}

fn with_url(settings: Settings, database: &Database) -> Result<Settings, Failure> {
    match &database.url {
        Some(url) => {
            // Here the error is not one of the variable.
            database_locks::schema_sql(url)?;
            Ok(settings.url(url))
        }
        None if settings.has_url() => Ok(settings),
        None => Ok(settings.url(embedded()?)),
    }
}

/// An SQLite file in the user's state folder, which is made on first use.
fn embedded() -> Result<String, Failure> {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or_else(|| {
            let message =
                "neither HOME nor XDG_STATE_HOME is set: give --url or set DATABASE_LOCKS_URL";
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
