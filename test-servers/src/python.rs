//! Finding a Python that has the real django-database-locks.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cache::cache;

/// What is installed beside [`python`], as pip reads it.
pub const PYTHON_REQUIREMENTS: &str =
    include_str!("../../database-locks/tests/django/requirements.txt");

/// The interpreter of the [`python_environment`].
///
/// # Errors
///
/// When it is not there. The message says what to do.
pub fn python() -> Result<PathBuf> {
    let python = python_environment()?.join("bin/python");
    ensure!(
        python.is_file(),
        "there is no python with django-database-locks ({} does not exist): run `cargo xtask test --only install`, \
         which makes one",
        python.display()
    );
    Ok(python)
}

/// The virtual environment that has the [`PYTHON_REQUIREMENTS`], whether it is there or not: a folder of the [`cache`],
/// another one for each list.
///
/// # Errors
///
/// As [`cache`].
pub fn python_environment() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    PYTHON_REQUIREMENTS.hash(&mut hasher);
    Ok(cache()?.join(format!("python-{:016x}", hasher.finish())))
}
