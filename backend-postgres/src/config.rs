//! Where the database is, and what the tables are called.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use database_locks_core::{Error, ErrorKind, Result};
use percent_encoding::percent_decode_str;
use tokio_postgres::config::{Host, SslMode as DriverSslMode, TargetSessionAttrs};

/// How to reach a Postgres, and which tables to use there.
///
/// Made of a URL by [`from_url`](Self::from_url), with setters for what a program wants to say
/// itself. The crate's documentation lists the parameters of the URL. `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    driver: tokio_postgres::Config,
    tls: TlsConfig,
    schema: Option<String>,
    table: String,
    pool_size: usize,
}

/// How connections are encrypted, with the meaning that libpq gives to these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server offers it, without checking its certificate.
    #[default]
    Prefer,
    /// Always. The certificate is checked, but not its name, where `sslrootcert` is given.
    Require,
    /// Always, with a certificate that a trusted authority has signed.
    VerifyCa,
    /// Always, with a trusted certificate in the name of the host that was connected to.
    VerifyFull,
}

/// What `tls.rs` needs to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsConfig {
    pub(crate) mode: SslMode,
    pub(crate) root_cert: Option<PathBuf>,
    pub(crate) client_cert: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
}

impl PostgresConfig {
    /// The table that is used unless another is named: that of django-database-locks.
    pub const DEFAULT_TABLE: &str = "database_locks_lock";
    /// How many connections claims, releases and lists share, unless the URL says otherwise.
    pub const DEFAULT_POOL_SIZE: usize = 4;

    /// Parses `postgres://user:password@host:port/database?parameter=value&…`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a URL that cannot be read, an unknown parameter or a value
    /// that it cannot have. The message never repeats the password.
    pub fn from_url(url: &str) -> Result<Self> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(invalid(
                "the URL does not start with postgres:// or postgresql://: give one that does",
            ));
        }
        let credentials_end = url.find('@').unwrap_or(0);
        let (base, query) = match url[credentials_end..].find('?') {
            Some(at) => (&url[..credentials_end + at], &url[credentials_end + at + 1..]),
            None => (url, ""),
        };

        let mut theirs = String::new();
        let mut ours = Vec::new();
        let mut given = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().map_err(|_| {
                invalid(format!("the parameter {key} of the URL is not UTF-8: encode it as UTF-8"))
            })?;
            match key {
                "table" | "schema" | "pool_size" | "sslmode" | "sslrootcert" | "sslcert"
                | "sslkey" => ours.push((key, value.into_owned())),
                _ => {
                    let _ = write!(theirs, "{}{pair}", if theirs.is_empty() { '?' } else { '&' });
                    given.push(key);
                }
            }
        }

        let driver = tokio_postgres::Config::from_str(&format!("{base}{theirs}"))
            .map_err(|error| invalid(unreadable(&error)).with_source(error))?;
        let mut config = Self {
            driver,
            tls: TlsConfig::default(),
            schema: None,
            table: Self::DEFAULT_TABLE.to_owned(),
            pool_size: Self::DEFAULT_POOL_SIZE,
        };
        config.fill_in(&given);
        for (key, value) in ours {
            config = config.with_parameter(key, &value)?;
        }
        Ok(config)
    }

    /// Uses this table instead of [`DEFAULT_TABLE`](Self::DEFAULT_TABLE), and one whose name has
    /// `_share` appended for shares.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless it matches `[A-Za-z_][A-Za-z0-9_]*` and leaves room
    /// for the suffixes within the 63 bytes that Postgres allows: 53 bytes.
    pub fn table(mut self, table: &str) -> Result<Self> {
        check_identifier("table", table, 53)?;
        table.clone_into(&mut self.table);
        Ok(self)
    }

    /// Uses tables in this schema instead of the first that the session's `search_path` finds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless it matches `[A-Za-z_][A-Za-z0-9_]{0,62}`.
    pub fn schema(mut self, schema: &str) -> Result<Self> {
        check_identifier("schema", schema, 63)?;
        self.schema = Some(schema.to_owned());
        Ok(self)
    }

    /// Lets claims, releases and lists share so many connections. Two more are used for renewals
    /// and for hints, however many leases there are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] outside 1 to 64.
    pub fn pool_size(mut self, connections: usize) -> Result<Self> {
        if !(1..=64).contains(&connections) {
            return Err(invalid(format!("pool_size is {connections}: give 1 to 64")));
        }
        self.pool_size = connections;
        Ok(self)
    }

    /// Encrypts connections in this way.
    #[must_use]
    pub fn ssl_mode(mut self, mode: SslMode) -> Self {
        self.tls.mode = mode;
        self.driver.ssl_mode(match mode {
            SslMode::Disable => DriverSslMode::Disable,
            SslMode::Prefer => DriverSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverSslMode::Require,
        });
        self
    }

    /// Trusts the authorities in this PEM file instead of those of the system.
    #[must_use]
    pub fn ssl_root_cert(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.root_cert = Some(path.into());
        self
    }

    /// Shows the server this certificate (PEM, with its chain) and proves it by this key (PEM).
    #[must_use]
    pub fn ssl_client_cert(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client_cert = Some(cert.into());
        self.tls.client_key = Some(key.into());
        self
    }

    /// What the driver is told.
    pub(crate) fn driver(&self) -> &tokio_postgres::Config {
        &self.driver
    }

    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    pub(crate) fn connections(&self) -> usize {
        self.pool_size
    }

    pub(crate) fn quoted_schema(&self) -> Option<String> {
        self.schema.as_ref().map(|schema| format!("\"{schema}\""))
    }

    /// The lock table, qualified and quoted. Nothing in it needs escaping: it was checked.
    pub(crate) fn lock_table(&self) -> String {
        self.qualified("")
    }

    /// The table of shares, qualified and quoted.
    pub(crate) fn share_table(&self) -> String {
        self.qualified("_share")
    }

    /// The index of live shares, quoted. An index lives in the schema of its table.
    pub(crate) fn share_index(&self) -> String {
        format!("\"{}_share_idx\"", self.table)
    }

    /// The channel for hints: one for each pair of schema and table.
    ///
    /// A channel's name has at most 63 bytes, so a long one is replaced by its hash.
    pub(crate) fn channel(&self) -> String {
        let table = match &self.schema {
            Some(schema) => format!("{schema}.{}", self.table),
            None => self.table.clone(),
        };
        if table.len() <= 63 {
            return table;
        }
        // FNV-1a: every build of every program has to come to the same name.
        let hash = table.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("database_locks.{hash:016x}")
    }

    fn qualified(&self, suffix: &str) -> String {
        match self.quoted_schema() {
            Some(schema) => format!("{schema}.\"{}{suffix}\"", self.table),
            None => format!("\"{}{suffix}\"", self.table),
        }
    }

    /// Sets what the URL does not say. The driver's own defaults never give up.
    fn fill_in(&mut self, given: &[&str]) {
        let driver = &mut self.driver;
        if driver.get_hosts().is_empty() && driver.get_hostaddrs().is_empty() {
            driver.host("localhost");
        }
        if driver.get_application_name().is_none() {
            driver.application_name("database-locks");
        }
        if driver.get_connect_timeout().is_none() {
            driver.connect_timeout(Duration::from_secs(5));
        }
        if driver.get_tcp_user_timeout().is_none() {
            driver.tcp_user_timeout(Duration::from_secs(20));
        }
        if !given.contains(&"keepalives_idle") {
            driver.keepalives_idle(Duration::from_secs(15));
        }
        if !given.contains(&"keepalives_interval") {
            driver.keepalives_interval(Duration::from_secs(5));
        }
        if !given.contains(&"keepalives_retries") {
            driver.keepalives_retries(3);
        }
        if !given.contains(&"target_session_attrs") {
            driver.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
    }

    fn with_parameter(self, key: &str, value: &str) -> Result<Self> {
        match key {
            "table" => self.table(value),
            "schema" => self.schema(value),
            "pool_size" => {
                let connections = value
                    .parse()
                    .map_err(|_| invalid("pool_size in the URL is not a number: give 1 to 64"))?;
                self.pool_size(connections)
            }
            "sslmode" => Ok(self.ssl_mode(match value {
                "disable" => SslMode::Disable,
                "prefer" => SslMode::Prefer,
                "require" => SslMode::Require,
                "verify-ca" => SslMode::VerifyCa,
                "verify-full" => SslMode::VerifyFull,
                _ => {
                    return Err(invalid(format!(
                        "sslmode is {value:?}: give disable, prefer, require, verify-ca or \
                         verify-full"
                    )));
                }
            })),
            "sslrootcert" => Ok(self.ssl_root_cert(value)),
            "sslcert" => {
                let mut config = self;
                config.tls.client_cert = Some(value.into());
                Ok(config)
            }
            _ => {
                let mut config = self;
                config.tls.client_key = Some(value.into());
                Ok(config)
            }
        }
    }

    /// Where this is, for messages: hosts and database, without the user's secrets.
    pub(crate) fn place(&self) -> String {
        let hosts: Vec<String> = self
            .driver
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                #[cfg(unix)]
                Host::Unix(path) => path.display().to_string(),
            })
            .chain(self.driver.get_hostaddrs().iter().map(ToString::to_string))
            .collect();
        format!("{}/{}", hosts.join(","), self.driver.get_dbname().unwrap_or_default())
    }
}

fn check_identifier(what: &str, name: &str, longest: usize) -> Result<()> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts
        && name.len() <= longest
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return Ok(());
    }
    Err(invalid(format!(
        "the {what} name {name:?} cannot be used: give 1 to {longest} ASCII letters, digits and \
         underscores, not starting with a digit"
    )))
}

fn unreadable(error: &tokio_postgres::Error) -> String {
    let why = std::error::Error::source(error).map(|why| format!(" ({why})")).unwrap_or_default();
    format!(
        "the URL cannot be read{why}: give postgres://user:password@host:port/database, with \
         special characters encoded as %XX"
    )
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, message).with_backend(crate::NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> PostgresConfig {
        PostgresConfig::from_url(url).unwrap()
    }

    #[test]
    fn our_parameters_are_taken_out_and_the_rest_is_the_drivers() {
        let config = parse(
            "postgres://u:p%40ss@db1:5433,db2/app?table=locks&schema=ops&pool_size=2\
             &sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&connect_timeout=3",
        );
        assert_eq!(config.lock_table(), r#""ops"."locks""#);
        assert_eq!(config.share_table(), r#""ops"."locks_share""#);
        assert_eq!(config.channel(), "ops.locks");
        assert_eq!(config.connections(), 2);
        assert_eq!(config.tls.mode, SslMode::VerifyFull);
        assert_eq!(config.tls.root_cert.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert_eq!(config.driver.get_ssl_mode(), DriverSslMode::Require);
        assert_eq!(config.driver.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(config.driver.get_ports(), [5433, 5432]);
        assert_eq!(config.driver.get_password(), Some("p@ss".as_bytes()));
        assert_eq!(config.place(), "db1,db2/app");
    }

    #[test]
    fn what_the_url_does_not_say_is_filled_in() {
        let config = parse("postgresql:///app");
        assert_eq!(config.lock_table(), r#""database_locks_lock""#);
        assert_eq!(config.connections(), 4);
        assert_eq!(config.tls.mode, SslMode::Prefer);
        assert_eq!(config.driver.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(config.driver.get_hosts(), [Host::Tcp("localhost".to_owned())]);
        assert_eq!(config.driver.get_options(), None);
        let any = parse("postgres://h/app?target_session_attrs=any");
        assert_eq!(any.driver.get_target_session_attrs(), TargetSessionAttrs::Any);
    }

    #[test]
    fn bad_urls_are_refused_without_telling_the_password() {
        for bad in [
            "mysql://u:hunter2@h/d",
            "postgres://u:hunter2@h/d?table=a\"b",
            "postgres://u:hunter2@h/d?table=1a",
            "postgres://u:hunter2@h/d?table=",
            "postgres://u:hunter2@h/d?schema=a.b",
            "postgres://u:hunter2@h/d?pool_size=0",
            "postgres://u:hunter2@h/d?pool_size=many",
            "postgres://u:hunter2@h/d?sslmode=maybe",
            "postgres://u:hunter2@h/d?no_such_parameter=1",
            "postgres://u:hunter2@h:port/d",
        ] {
            let error = PostgresConfig::from_url(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let long = "x".repeat(54);
        assert!(parse("postgres://h/d").table(&long).is_err());
    }

    #[test]
    fn debug_hides_the_password() {
        let config = parse("postgres://u:hunter2@h/d?application_name=x");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn long_channels_are_hashed_to_what_postgres_allows() {
        let config = parse("postgres://h/d").schema(&"s".repeat(63)).unwrap();
        let other = config.clone().table("other").unwrap();
        assert!(config.channel().len() <= 63);
        assert_ne!(config.channel(), other.channel());
    }
}
