//! Where the database is, and what the tables are called.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use database_locks_core::hosts::PasswordSource;
use database_locks_core::{Error, ErrorKind, Result, identifier};
use percent_encoding::percent_decode_str;
use tokio_postgres::config::{
    Host, LoadBalanceHosts, SslMode as DriverSslMode, TargetSessionAttrs,
};

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
    prepare: Prepare,
    password: Option<PasswordSource>,
}

/// How connections are encrypted, with the meaning that libpq gives to these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
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

/// When statements are prepared. A prepared one costs the server less, and belongs to a connection to the
/// server: behind a pooler in transaction mode that is another one each time, and before pgbouncer 1.21
/// the same name may be another client's statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Prepare {
    /// Where the server sees the very address and port that were connected from and to, so that nothing
    /// in between takes part: no pooler, and no address translation either.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What `tls.rs` needs to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsConfig {
    pub(crate) mode: SslMode,
    pub(crate) root_cert: Option<PathBuf>,
    pub(crate) client_cert: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
}

/// One of the hosts, and how to connect to it alone.
pub(crate) struct HostConfig {
    pub(crate) driver: tokio_postgres::Config,
    /// What messages call it.
    pub(crate) place: String,
}

/// What the tables are called, and where they are.
///
/// The schema is always named, since the `search_path` of a pooled session may be another client's.
#[derive(Debug)]
pub(crate) struct Tables {
    schema: String,
    table: String,
}

impl Tables {
    /// The schema, quoted.
    pub(crate) fn quoted_schema(&self) -> String {
        format!("\"{}\"", self.schema.replace('"', "\"\""))
    }

    /// The lock table, qualified and quoted.
    pub(crate) fn lock(&self) -> String {
        self.qualified("")
    }

    /// The table of shares, qualified and quoted.
    pub(crate) fn share(&self) -> String {
        self.qualified("_share")
    }

    /// What is called like the lock table with this suffix, qualified and quoted.
    pub(crate) fn qualified(&self, suffix: &str) -> String {
        format!("{}.\"{}{suffix}\"", self.quoted_schema(), self.table)
    }

    /// The channel for hints: one for each pair of schema and table.
    ///
    /// A channel's name has at most 63 bytes, so a long one is replaced by its hash.
    pub(crate) fn channel(&self) -> String {
        let table = format!("{}.{}", self.schema, self.table);
        if table.len() <= 63 {
            return table;
        }
        // FNV-1a: every build of every program has to come to the same name.
        let hash = table.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("database_locks.{hash:016x}")
    }
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
        // What seems to be a host, a database or a parameter may be a piece of a password, which
        // nobody may be asked for, and no message may repeat.
        let mut names = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |it| it.0));
        if base.matches('@').count() > 1 || names.any(|name| name.contains('@')) {
            return Err(invalid(
                "the URL cannot be read: encode special characters as %XX, in the password @ as \
                 %40 and / as %2F",
            ));
        }

        let mut theirs = String::new();
        let mut ours = Vec::new();
        let mut given = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().map_err(|_| {
                invalid(format!("the parameter {key} of the URL is not UTF-8: encode it as UTF-8"))
            })?;
            match key {
                "table" | "schema" | "pool_size" | "prepare" | "sslmode" | "sslrootcert"
                | "sslcert" | "sslkey" => ours.push((key, value.into_owned())),
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
            prepare: Prepare::default(),
            password: None,
        };
        config.fill_in(&given);
        config.check_hosts()?;
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
        identifier::check("table", table, 53)?;
        table.clone_into(&mut self.table);
        Ok(self)
    }

    /// Uses tables in this schema instead of where `search_path` finds the table, or would make it,
    /// when the backend connects.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless it matches `[A-Za-z_][A-Za-z0-9_]{0,62}`.
    pub fn schema(mut self, schema: &str) -> Result<Self> {
        identifier::check("schema", schema, 63)?;
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

    /// Prepares statements always, never, or where it is safe.
    #[must_use]
    pub fn prepare(mut self, prepare: Prepare) -> Self {
        self.prepare = prepare;
        self
    }

    /// Asks for the password whenever a connection is made, for tokens that live for some minutes.
    ///
    /// An error of `password` is that of the request which needed the connection: let it be
    /// [`ErrorKind::Unavailable`] where another try may do better.
    #[must_use]
    pub fn password_from<F>(mut self, password: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        self.password = Some(PasswordSource::new(password));
        self
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

    /// The hosts in the order of the URL, of which there is at least one.
    pub(crate) fn hosts(&self) -> Vec<HostConfig> {
        (0..self.host_count())
            .map(|at| HostConfig {
                driver: self.driver_for(at),
                place: format!("{}/{}", self.address(at), self.database()),
            })
            .collect()
    }

    /// Which of the hosts to try first.
    pub(crate) fn first_host(&self) -> usize {
        match self.driver.get_load_balance_hosts() {
            LoadBalanceHosts::Random => fastrand::usize(..self.host_count()),
            _ => 0,
        }
    }

    /// Where the password comes from, if not from the URL.
    pub(crate) fn password(&self) -> Option<PasswordSource> {
        self.password.clone()
    }

    /// How long each host has until it is ready for statements.
    pub(crate) fn host_timeout(&self) -> Duration {
        self.driver.get_connect_timeout().copied().unwrap_or(DEFAULT_CONNECT_TIMEOUT)
    }

    pub(crate) fn driver(&self) -> &tokio_postgres::Config {
        &self.driver
    }

    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    pub(crate) fn prepared(&self) -> Prepare {
        self.prepare
    }

    pub(crate) fn connections(&self) -> usize {
        self.pool_size
    }

    /// The schema, if one was named.
    pub(crate) fn named_schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The lock table, quoted. Nothing in it needs escaping: it was checked.
    pub(crate) fn quoted_table(&self) -> String {
        format!("\"{}\"", self.table)
    }

    /// The tables, in `schema` unless another one was named.
    pub(crate) fn tables_in(&self, schema: &str) -> Tables {
        let schema = self.schema.as_deref().unwrap_or(schema).to_owned();
        Tables { schema, table: self.table.clone() }
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
            driver.connect_timeout(DEFAULT_CONNECT_TIMEOUT);
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
            "prepare" => Ok(self.prepare(match value {
                "auto" => Prepare::Auto,
                "always" => Prepare::Always,
                "never" => Prepare::Never,
                _ => {
                    return Err(invalid(format!(
                        "prepare is {value:?}: give auto, always or never"
                    )));
                }
            })),
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
        let hosts: Vec<String> = (0..self.host_count()).map(|at| self.address(at)).collect();
        format!("{}/{}", hosts.join(","), self.database())
    }

    fn database(&self) -> &str {
        self.driver.get_dbname().unwrap_or_default()
    }

    fn host_count(&self) -> usize {
        self.driver.get_hosts().len().max(self.driver.get_hostaddrs().len())
    }

    /// The rules of libpq for `host`, `hostaddr` and `port`.
    fn check_hosts(&self) -> Result<()> {
        let count = self.host_count();
        let fits = |given: usize| [0, count].contains(&given);
        if !fits(self.driver.get_hosts().len()) || !fits(self.driver.get_hostaddrs().len()) {
            return Err(invalid(
                "the URL has not as many hostaddr as hosts: give one for each host, or none",
            ));
        }
        if !fits(self.driver.get_ports().len()) && self.driver.get_ports().len() != 1 {
            return Err(invalid(
                "the URL has not as many ports as hosts: give one for each host, or one for all",
            ));
        }
        Ok(())
    }

    fn port(&self, at: usize) -> u16 {
        let ports = self.driver.get_ports();
        ports.get(at).or(ports.first()).copied().unwrap_or(5432)
    }

    fn address(&self, at: usize) -> String {
        let host = match (self.driver.get_hosts().get(at), self.driver.get_hostaddrs().get(at)) {
            (Some(Host::Tcp(name)), _) => name.clone(),
            #[cfg(unix)]
            (Some(Host::Unix(path)), _) => path.display().to_string(),
            (None, address) => address.map(ToString::to_string).unwrap_or_default(),
        };
        let port = self.port(at);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// What the driver is told, for one host alone: nothing can be taken away from its
    /// configuration, so all of it is said again.
    fn driver_for(&self, at: usize) -> tokio_postgres::Config {
        let all = &self.driver;
        let mut one = tokio_postgres::Config::new();
        let host = all.get_hosts().get(at);
        match host {
            Some(Host::Tcp(name)) => _ = one.host(name),
            #[cfg(unix)]
            Some(Host::Unix(path)) => _ = one.host_path(path),
            None => {}
        }
        let address = all.get_hostaddrs().get(at).copied();
        address.map(|address| one.hostaddr(address));
        one.port(self.port(at));

        all.get_user().map(|user| one.user(user));
        all.get_password().map(|password| one.password(password));
        all.get_dbname().map(|name| one.dbname(name));
        all.get_options().map(|options| one.options(options));
        all.get_application_name().map(|name| one.application_name(name));
        all.get_tcp_user_timeout().map(|timeout| one.tcp_user_timeout(*timeout));
        all.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
        all.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
        one.ssl_mode(all.get_ssl_mode())
            .ssl_negotiation(all.get_ssl_negotiation())
            .keepalives(all.get_keepalives())
            .keepalives_idle(all.get_keepalives_idle())
            .target_session_attrs(all.get_target_session_attrs())
            .channel_binding(all.get_channel_binding())
            .load_balance_hosts(all.get_load_balance_hosts());

        // A name may have several addresses, which the driver tries in turn: an address that takes
        // no connection must leave some of the host's time to the next.
        let is_name = address.is_none()
            && matches!(host, Some(Host::Tcp(name)) if name.parse::<IpAddr>().is_err());
        one.connect_timeout(self.host_timeout() / if is_name { 2 } else { 1 });
        one
    }
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
        let tables = config.tables_in("elsewhere");
        assert_eq!(tables.lock(), r#""ops"."locks""#);
        assert_eq!(tables.share(), r#""ops"."locks_share""#);
        assert_eq!(tables.channel(), "ops.locks");
        assert_eq!(config.connections(), 2);
        assert_eq!(config.tls.mode, SslMode::VerifyFull);
        assert_eq!(config.tls.root_cert.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert_eq!(config.driver.get_ssl_mode(), DriverSslMode::Require);
        assert_eq!(config.driver.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(config.driver.get_ports(), [5433, 5432]);
        assert_eq!(config.driver.get_password(), Some("p@ss".as_bytes()));
        assert_eq!(config.place(), "db1:5433,db2:5432/app");
    }

    #[test]
    fn each_host_gets_what_the_url_says_of_all() {
        let config = parse(
            "postgres://u:p%40ss@192.0.2.1:5433/app?sslmode=require&sslnegotiation=direct\
             &options=-c%20a%3Db&connect_timeout=3&tcp_user_timeout=4&keepalives=0\
             &keepalives_idle=6&keepalives_interval=7&keepalives_retries=8&channel_binding=require\
             &target_session_attrs=read-only&load_balance_hosts=random",
        );
        let [only] = <[HostConfig; 1]>::try_from(config.hosts()).ok().unwrap();
        assert_eq!(only.driver, config.driver);
        assert_eq!(only.place, "192.0.2.1:5433/app");
    }

    #[test]
    fn each_host_has_its_own_address_and_port() {
        let config = parse(
            "postgres://db1:5433,[2001:db8::1],%2Frun/app?hostaddr=192.0.2.1,192.0.2.2,192.0.2.3",
        );
        let hosts = config.hosts();
        assert_eq!(hosts[1].driver.get_hosts(), &config.driver.get_hosts()[1..2]);
        assert_eq!(hosts[1].driver.get_hostaddrs(), &config.driver.get_hostaddrs()[1..2]);
        assert_eq!(hosts[1].driver.get_ports(), [5432]);
        let places: Vec<_> = hosts.into_iter().map(|host| host.place).collect();
        assert_eq!(places, ["db1:5433/app", "[2001:db8::1]:5432/app", "/run:5432/app"]);
        let by_address = parse("postgres:///app?hostaddr=192.0.2.1,192.0.2.2&port=7");
        assert_eq!(by_address.place(), "192.0.2.1:7,192.0.2.2:7/app");
    }

    #[test]
    fn addresses_of_a_name_share_the_time_of_its_host() {
        let config = parse("postgres://db1,192.0.2.1/app?connect_timeout=4");
        assert_eq!(config.host_timeout(), Duration::from_secs(4));
        let times =
            config.hosts().into_iter().map(|host| *host.driver.get_connect_timeout().unwrap());
        assert_eq!(times.collect::<Vec<_>>(), [Duration::from_secs(2), Duration::from_secs(4)]);
        assert_eq!(parse("postgres://h/d").host_timeout(), Duration::from_secs(5));
    }

    #[test]
    fn load_balancing_begins_with_any_host() {
        let config = parse("postgres://a,b/app?load_balance_hosts=random");
        // One of them alone a hundred times would be a wonder.
        assert!((0..100).any(|_| config.first_host() == 0));
        assert!((0..100).any(|_| config.first_host() == 1));
        assert!((0..100).all(|_| parse("postgres://a,b/app").first_host() == 0));
    }

    #[test]
    fn what_the_url_does_not_say_is_filled_in() {
        let config = parse("postgresql:///app");
        let tables = config.tables_in("O\"Hara");
        assert_eq!(tables.lock(), r#""O""Hara"."database_locks_lock""#);
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
            "postgres://u:hunter2@h/d?prepare=maybe",
            "postgres://u:hunter2@h/d?no_such_parameter=1",
            "postgres://u:hunter2@h:port/d",
            "postgres://u:a@b/hunter2@h/d",
            "postgres://u:a@hunter2/b@h/d",
            "postgres://u:a@hunter2@h/d",
            "postgres://u:a@b?hunter2@h/d?table=x",
            "postgres://u:hunter2@h,i/d?hostaddr=192.0.2.1",
            "postgres://u:hunter2@h,i,j/d?host=k",
        ] {
            let error = PostgresConfig::from_url(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let torn = PostgresConfig::from_url("postgres://u:a@b/c@h/d").unwrap_err().to_string();
        assert!(torn.contains("@ as %40 and / as %2F"), "{torn}");
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
        let other = config.clone().table("other").unwrap().tables_in("public");
        let tables = config.tables_in("public");
        assert!(tables.channel().len() <= 63);
        assert_ne!(tables.channel(), other.channel());
    }
}
