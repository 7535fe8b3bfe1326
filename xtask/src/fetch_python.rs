//! A Python with the real django-database-locks, in a virtual environment of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use database_locks_test_servers::{PYTHON_REQUIREMENTS, python, python_environment};

use crate::cache;
use crate::command::{run, succeeds};

/// Succeeds where an interpreter can make environments, and is new enough for Django.
const SUITS: &str = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))";

/// Whether the tests' environment is whole and runs.
pub(crate) fn is_there() -> bool {
    python().is_ok_and(|python| succeeds(python, &["-c", "import django, database_locks"]))
}

/// A Python of this machine that an environment can be made of.
pub(crate) fn interpreter() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin")])
        .map(|folder| folder.join("python3"))
        .find(|python| succeeds(python, &["-c", SUITS]))
}

/// Makes the environment. Packages come from where this machine's pip is set to get them.
pub(crate) fn fetch() -> Result<()> {
    cache::put(is_there, make).context("cannot make a python with django-database-locks")?;
    println!("django-database-locks is in {}", python_environment()?.display());
    Ok(())
}

fn make(folder: &Path) -> Result<(PathBuf, String)> {
    let interpreter = interpreter()
        .context("there is no python 3.10 or later with its module venv: install python3-venv")?;
    let environment = folder.join("environment");
    run(Command::new(interpreter).args(["-m", "venv"]).arg(&environment))?;
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, PYTHON_REQUIREMENTS)?;
    // Not by its script `pip`, which names the folder that the environment is in only for now.
    run(Command::new(environment.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(requirements))?;
    let place = python_environment()?;
    let name = place.file_name().context("a folder has a name")?;
    Ok((environment, name.to_string_lossy().into_owned()))
}
