//! Where the file is, and what the tables in it are called.

use std::path::{Path, PathBuf};
use std::time::Duration;

use database_locks_core::{Error, ErrorKind, Result, identifier};
use percent_encoding::percent_decode_str;

/// Where a [`SqliteBackend`](crate::SqliteBackend) keeps its leases.
///
/// ```
/// use database_locks_sqlite::SqliteConfig;
///
/// let config = SqliteConfig::from_url("sqlite:/var/lib/app/locks.db?table=app_locks")?;
/// assert_eq!(config.path().to_str(), Some("/var/lib/app/locks.db"));
/// assert_eq!(config.table(), "app_locks");
/// # Ok::<(), database_locks_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    path: PathBuf,
    table: String,
    busy_timeout: Duration,
}

impl SqliteConfig {
    /// The table's name unless another is given; that of the leases ends in `_lease`, that of tokens in `_token`.
    pub const DEFAULT_TABLE: &str = "database_locks_lock";

    /// How long a decision waits for the write lock of the file unless another time is given.
    pub const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(2);

    /// Leases in the file at `path`. A relative path is relative to the current folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            table: Self::DEFAULT_TABLE.to_owned(),
            busy_timeout: Self::DEFAULT_BUSY_TIMEOUT,
        }
    }

    /// Parses `sqlite:PATH`, `sqlite://PATH` and `sqlite:PATH?table=NAME`.
    ///
    /// `PATH` may be absolute or relative, and is percent-decoded, so that `%3F` stands for a
    /// question mark in it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for another scheme, an empty path, an unknown parameter and a
    /// bad table name, and [`ErrorKind::Unsupported`] for a database in memory.
    pub fn from_url(url: &str) -> Result<Self> {
        let invalid = |why: String| Err(Error::new(ErrorKind::InvalidOption, why));
        let Some(rest) = url.strip_prefix("sqlite:") else {
            return invalid("the URL does not start with `sqlite:`: write sqlite:PATH".to_owned());
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path)?;
        if path.is_empty() {
            return invalid("the URL names no file: write sqlite:PATH".to_owned());
        }
        if path.contains(":memory:") || query.contains("mode=memory") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a SQLite database in memory belongs to one connection alone: use `memory:` for \
                 locks within one process, or name a file",
            ));
        }
        let mut config = Self::new(path);
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            config = match parameter.split_once('=') {
                Some(("table", table)) => config.with_table(decode(table)?)?,
                _ => {
                    return invalid(format!(
                        "the URL has the unknown parameter {parameter:?}: only `table=NAME` is \
                         known"
                    ));
                }
            };
        }
        Ok(config)
    }

    /// Sets the table's name. Those of the leases and tokens are the same with `_lease` and `_token` at their ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless the name is a letter or `_`, followed by at most 62
    /// letters, digits and `_`, all ASCII, and does not start with `sqlite_`.
    pub fn with_table(mut self, table: impl Into<String>) -> Result<Self> {
        self.table = table.into();
        identifier::check("table", &self.table, 63)?;
        if self.table.to_ascii_lowercase().starts_with("sqlite_") {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "the table name {:?} cannot be used: SQLite keeps `sqlite_` for itself",
                    self.table
                ),
            ));
        }
        Ok(self)
    }

    /// Sets how long a decision waits for the write lock of the file before it gives up with a
    /// retryable error. At most a minute.
    #[must_use]
    pub fn with_busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout.min(Duration::from_mins(1));
        self
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// How long a decision waits for the write lock of the file.
    #[must_use]
    pub fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }
}

impl From<&Path> for SqliteConfig {
    fn from(path: &Path) -> Self {
        Self::new(path)
    }
}

impl From<PathBuf> for SqliteConfig {
    fn from(path: PathBuf) -> Self {
        Self::new(path)
    }
}

fn decode(text: &str) -> Result<String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => Err(Error::new(
            ErrorKind::InvalidOption,
            format!("{text:?} in the URL is not UTF-8 without NUL when it is percent-decoded"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_files() {
        for (url, path) in [
            ("sqlite:locks.db", "locks.db"),
            ("sqlite:/var/locks.db", "/var/locks.db"),
            ("sqlite:///var/locks.db", "/var/locks.db"),
            ("sqlite://locks.db", "locks.db"),
            ("sqlite:a%20b%3Fc.db", "a b?c.db"),
            ("sqlite:file:x.db", "file:x.db"),
        ] {
            let config = SqliteConfig::from_url(url).unwrap();
            assert_eq!(config.path(), Path::new(path), "{url}");
            assert_eq!(config.table(), SqliteConfig::DEFAULT_TABLE);
        }
        let config = SqliteConfig::from_url("sqlite:x.db?table=T_1").unwrap();
        assert_eq!((config.path(), config.table()), (Path::new("x.db"), "T_1"));
    }

    #[test]
    fn urls_that_cannot_be_used() {
        for (url, kind) in [
            ("postgres://x", ErrorKind::InvalidOption),
            ("sqlite:", ErrorKind::InvalidOption),
            ("sqlite:?table=x", ErrorKind::InvalidOption),
            ("sqlite:x.db?tabel=x", ErrorKind::InvalidOption),
            ("sqlite:x.db?table", ErrorKind::InvalidOption),
            ("sqlite:x.db?table=a%22b", ErrorKind::InvalidOption),
            ("sqlite:%FF.db", ErrorKind::InvalidOption),
            ("sqlite:%00.db", ErrorKind::InvalidOption),
            ("sqlite::memory:", ErrorKind::Unsupported),
            ("sqlite://:memory:", ErrorKind::Unsupported),
            ("sqlite:x?mode=memory", ErrorKind::Unsupported),
        ] {
            assert_eq!(SqliteConfig::from_url(url).unwrap_err().kind(), kind, "{url}");
        }
        let error = SqliteConfig::from_url("sqlite::memory:").unwrap_err();
        assert!(error.to_string().contains("`memory:`"), "{error}");
    }

    #[test]
    fn table_names_are_checked() {
        let with = |table: &str| SqliteConfig::new("x").with_table(table);
        for good in ["a", "_", "A1_", &"x".repeat(63)] {
            assert!(with(good).is_ok(), "{good}");
        }
        let bad = ["", "1a", "a b", "a\"b", "a;b", "é", "a.b", "SQLite_x", &"x".repeat(64)];
        for bad in bad {
            assert_eq!(with(bad).unwrap_err().kind(), ErrorKind::InvalidOption, "{bad}");
        }
    }
}
