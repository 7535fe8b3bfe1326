//! From a URL to locks: which backend serves which scheme.

#![cfg_attr(
    not(any(feature = "memory", feature = "sqlite", feature = "mysql", feature = "postgres")),
    allow(unreachable_code, reason = "without a backend no URL leads anywhere")
)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use database_locks_core::{Error, ErrorKind, LockBackend, Locks, LocksBuilder, Result};

/// Makes [`Locks`] from a URL.
///
/// | URL | backend | feature |
/// |---|---|---|
/// | `postgres://user:password@host/database` (also `postgresql://`) | Postgres | `postgres` |
/// | `mysql://user:password@host/database` (also `mariadb://`) | MySQL, MariaDB, Galera | `mysql` |
/// | `sqlite:PATH` | one file, many processes on one host | `sqlite` |
/// | `memory:` | this process, for tests: each `connect` is a store of its own | `memory` |
///
/// The backends' own crates list the parameters that their URLs take.
pub trait Connect: Sized {
    /// Connects with the default options, and checks that the database answers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a URL that cannot be used, [`ErrorKind::Unsupported`] for a
    /// scheme whose feature is not compiled in, [`ErrorKind::Unavailable`] if the database does not
    /// answer, [`ErrorKind::Permission`] if it refuses the credentials. No message holds the
    /// password.
    fn connect(url: &str) -> impl Future<Output = Result<Self>> + Send {
        Self::connect_with(url, LocksBuilder::default())
    }

    /// Connects with options of one's own.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    fn connect_with(url: &str, options: LocksBuilder) -> impl Future<Output = Result<Self>> + Send;
}

impl Connect for Locks {
    async fn connect_with(url: &str, options: LocksBuilder) -> Result<Self> {
        let target = Target::parse(url)?;
        options.open(target.connect()).await
    }
}

/// Creates the tables that the locks behind `url` need, or brings them up to date. Repeating it
/// does no harm.
///
/// # Errors
///
/// As [`Connect::connect`].
pub async fn migrate(url: &str) -> Result<()> {
    Target::parse(url)?.migrate().await
}

/// What [`migrate`] does, as SQL for people who run their own migrations. Connects to nothing.
///
/// # Errors
///
/// As [`Connect::connect`], but for those of a connection.
pub fn schema_sql(url: &str) -> Result<String> {
    Ok(Target::parse(url)?.schema_sql())
}

/// A future that hides what it is made of: nested in those of a user, the drivers' own would pass
/// the depth to which the compiler goes.
type Erased<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Where a URL leads.
pub(crate) enum Target {
    #[cfg(feature = "memory")]
    Memory,
    #[cfg(feature = "sqlite")]
    Sqlite(database_locks_sqlite::SqliteConfig),
    #[cfg(feature = "postgres")]
    Postgres(Box<database_locks_postgres::PostgresConfig>),
    #[cfg(feature = "mysql")]
    Mysql(Box<database_locks_mysql::MysqlConfig>),
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let scheme = scheme(url);
        match scheme {
            #[cfg(feature = "memory")]
            "memory" => Ok(Self::Memory),
            #[cfg(feature = "sqlite")]
            "sqlite" => Ok(Self::Sqlite(database_locks_sqlite::SqliteConfig::from_url(url)?)),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => {
                let config = database_locks_postgres::PostgresConfig::from_url(url)?;
                Ok(Self::Postgres(Box::new(config)))
            }
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => {
                Ok(Self::Mysql(Box::new(database_locks_mysql::MysqlConfig::from_url(url)?)))
            }
            #[cfg(not(feature = "memory"))]
            "memory" => Err(not_compiled_in("memory")),
            #[cfg(not(feature = "sqlite"))]
            "sqlite" => Err(not_compiled_in("sqlite")),
            #[cfg(not(feature = "postgres"))]
            "postgres" | "postgresql" => Err(not_compiled_in("postgres")),
            #[cfg(not(feature = "mysql"))]
            "mysql" | "mariadb" => Err(not_compiled_in("mysql")),
            "" => Err(unknown("the URL has no scheme".to_owned())),
            other => Err(unknown(format!("the URL's scheme {other:?} is unknown"))),
        }
    }

    /// The same database, but another table. Memory has none.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "mysql", feature = "postgres")),
        expect(unused_variables, reason = "no backend that has a table")
    )]
    pub(crate) fn with_table(self, table: &str) -> Result<Self> {
        Ok(match self {
            #[cfg(feature = "memory")]
            Self::Memory => Self::Memory,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(config) => Self::Sqlite(config.with_table(table)?),
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => Self::Postgres(Box::new(config.table(table)?)),
            #[cfg(feature = "mysql")]
            Self::Mysql(config) => Self::Mysql(Box::new(config.table(table)?)),
        })
    }

    pub(crate) fn connect(self) -> Erased<Arc<dyn LockBackend>> {
        Box::pin(async {
            Ok::<Arc<dyn LockBackend>, Error>(match self {
                #[cfg(feature = "memory")]
                Self::Memory => Arc::new(database_locks_memory::MemoryBackend::new()),
                #[cfg(feature = "sqlite")]
                Self::Sqlite(config) => {
                    Arc::new(database_locks_sqlite::SqliteBackend::connect(config).await?)
                }
                #[cfg(feature = "postgres")]
                Self::Postgres(config) => {
                    Arc::new(database_locks_postgres::PostgresBackend::connect(*config).await?)
                }
                #[cfg(feature = "mysql")]
                Self::Mysql(config) => {
                    Arc::new(database_locks_mysql::MysqlBackend::connect(*config).await?)
                }
            })
        })
    }

    pub(crate) fn migrate(self) -> Erased<()> {
        Box::pin(async {
            match self {
                #[cfg(feature = "memory")]
                Self::Memory => Ok(()),
                #[cfg(feature = "sqlite")]
                Self::Sqlite(config) => {
                    database_locks_sqlite::SqliteBackend::connect(config).await?.migrate().await
                }
                #[cfg(feature = "postgres")]
                Self::Postgres(config) => {
                    database_locks_postgres::PostgresBackend::connect(*config)
                        .await?
                        .migrate()
                        .await
                }
                #[cfg(feature = "mysql")]
                Self::Mysql(config) => database_locks_mysql::migrate(*config).await,
            }
        })
    }

    pub(crate) fn schema_sql(self) -> String {
        match self {
            #[cfg(feature = "memory")]
            Self::Memory => String::new(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(config) => database_locks_sqlite::schema_sql(&config),
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => database_locks_postgres::schema_sql(&config),
            #[cfg(feature = "mysql")]
            Self::Mysql(config) => database_locks_mysql::schema_sql(&config),
        }
    }
}

/// What stands before the first colon, or nothing if that is no scheme: messages repeat it, and in
/// text of another form, such as `password=... host=...`, a password may stand there.
fn scheme(url: &str) -> &str {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if scheme.chars().all(is_part) { scheme } else { "" }
}

/// Only the scheme is repeated: the rest of a URL may hold a password.
fn unknown(what: String) -> Error {
    Error::new(
        ErrorKind::InvalidOption,
        format!("{what}: use postgres://..., mysql://..., sqlite:PATH or memory:"),
    )
}

#[allow(dead_code, reason = "used unless all features are on")]
fn not_compiled_in(feature: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "this build has no {feature} backend: enable the feature {feature:?} of database-locks"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_nobody_serves() {
        for url in [
            "",
            "nightly",
            "mongodb://user:secret@host/db",
            "://",
            "Postgres",
            "user=me password=secret host=::1",
            "Server=db;Password=secret;Host=tcp:db",
            "//me:secret@host/db",
        ] {
            let error = schema_sql(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{url}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_backend_that_is_not_compiled_in_is_named() {
        let features = [
            ("memory:", cfg!(feature = "memory")),
            ("sqlite:locks.db", cfg!(feature = "sqlite")),
            ("postgres://localhost/app", cfg!(feature = "postgres")),
            ("mysql://localhost/app", cfg!(feature = "mysql")),
            ("mariadb://localhost/app", cfg!(feature = "mysql")),
        ];
        for (url, compiled_in) in features {
            match schema_sql(url) {
                Ok(_) => assert!(compiled_in, "{url}"),
                Err(error) => {
                    assert!(!compiled_in, "{url}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(error.to_string().contains("enable the feature"));
                }
            }
        }
    }
}
