//! Where the database is, and what the tables are called.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use database_locks_core::hosts::PasswordSource;
use database_locks_core::{Error, ErrorKind, Result, identifier};
use mysql_async::{Opts, OptsBuilder, SslOpts};
use percent_encoding::percent_decode_str;

const DEFAULT_PORT: u16 = 3306;

/// What the URL may say, in the order of the crate's documentation.
const PARAMETERS: &str = "table, pool_size, ssl-mode, ssl-ca, ssl-cert, ssl-key, socket, \
                          connect_timeout and tcp_keepalive";

/// How to reach a MySQL, a MariaDB or a Galera cluster, and which tables to use there.
///
/// Made of a URL by [`from_url`](Self::from_url), with setters for what a program wants to say
/// itself. The crate's documentation lists the parameters of the URL. `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct MysqlConfig {
    hosts: Vec<Host>,
    socket: Option<PathBuf>,
    user: Option<String>,
    password: Option<Secret>,
    password_source: Option<PasswordSource>,
    driver_options: Option<DriverOptions>,
    database: String,
    tls: TlsConfig,
    table: String,
    pool_size: usize,
    connect_timeout: Duration,
    tcp_keepalive: Duration,
}

/// The three that are prepared, and room for those of other tables.
const CACHED_STATEMENTS: usize = 8;

#[derive(Clone)]
struct DriverOptions(Arc<dyn Fn(OptsBuilder) -> OptsBuilder + Send + Sync>);

impl fmt::Debug for DriverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DriverOptions")
    }
}

/// How connections are encrypted, with the meaning that MySQL gives to these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SslMode {
    /// Never.
    Disabled,
    /// Where the server offers it, without checking its certificate.
    #[default]
    Preferred,
    /// Always, without checking the server's certificate.
    Required,
    /// Always, with a certificate that a trusted authority has signed.
    VerifyCa,
    /// Always, with a trusted certificate in the name of the host that was connected to.
    VerifyIdentity,
}

/// What `tls.rs` needs to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsConfig {
    pub(crate) mode: SslMode,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) client_cert: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
}

/// One server that may be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    name: String,
    port: u16,
}

#[derive(Clone)]
struct Secret(String);

impl MysqlConfig {
    /// The table that is used unless another is named: that of django-database-locks.
    pub const DEFAULT_TABLE: &str = "database_locks_lock";
    /// How many connections claims, releases and lists share, unless the URL says otherwise.
    pub const DEFAULT_POOL_SIZE: usize = 4;

    /// Parses `mysql://user:password@host:port,host2:port2/database?parameter=value&…`, or
    /// `mariadb://…`, which means the same.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a URL that cannot be read, one without a database, an
    /// unknown parameter or a value that it cannot have. The message never repeats the password.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = ["mysql://", "mariadb://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme))
            .ok_or_else(|| {
                invalid("the URL does not start with mysql:// or mariadb://: give one that does")
            })?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (database, query) = path.split_once('?').unwrap_or((path, ""));
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        // What seems to be a host, a database or a parameter may be a piece of a password, which
        // nobody may be asked for, and no message may repeat.
        if database.contains('@')
            || names(query).any(|name| name.contains('@'))
            || (!authority.contains('@') && query.contains('@'))
        {
            return Err(invalid(
                "the URL cannot be read: encode special characters as %XX, in the password @ as \
                 %40 and / as %2F",
            ));
        }
        if database.is_empty() {
            return Err(invalid(
                "the URL names no database: give mysql://user:password@host:port/database",
            ));
        }
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        let mut config = Self {
            hosts: hosts.split(',').map(Host::parse).collect::<Result<_>>()?,
            socket: None,
            user: Some(decoded("user", user)?).filter(|user| !user.is_empty()),
            password: password.map(|it| decoded("password", it)).transpose()?.map(Secret),
            database: decoded("database", database)?,
            password_source: None,
            driver_options: None,
            tls: TlsConfig::default(),
            table: Self::DEFAULT_TABLE.to_owned(),
            pool_size: Self::DEFAULT_POOL_SIZE,
            connect_timeout: Duration::from_secs(5),
            tcp_keepalive: Duration::from_secs(15),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            config = config.with_parameter(key, &decoded(key, value)?)?;
        }
        if config.socket.is_some() && !["", "localhost"].contains(&hosts) {
            return Err(invalid(
                "the URL names both a socket and a host: give mysql://user@localhost/database for \
                 a socket",
            ));
        }
        Ok(config)
    }

    /// Uses this table instead of [`DEFAULT_TABLE`](Self::DEFAULT_TABLE), and one whose name has
    /// `_share` appended for shares.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless it matches `[A-Za-z_][A-Za-z0-9_]*` and leaves room
    /// for the suffix within the 64 characters that MySQL allows: 58.
    pub fn table(mut self, table: &str) -> Result<Self> {
        identifier::check("table", table, 58)?;
        table.clone_into(&mut self.table);
        Ok(self)
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
        self.password_source = Some(PasswordSource::new(password));
        self
    }

    /// Changes what the driver is told, for each host, after all else is set: TLS of one's own, the plugin
    /// that sends passwords in plain text, which tokens of clouds need, compression, and whatever else the
    /// driver knows.
    ///
    /// What sessions rely on is set when they are connected, and stays as it is; so does the number of statements
    /// that the driver keeps prepared.
    #[must_use]
    pub fn driver_options(
        mut self,
        change: impl Fn(OptsBuilder) -> OptsBuilder + Send + Sync + 'static,
    ) -> Self {
        self.driver_options = Some(DriverOptions(Arc::new(change)));
        self
    }

    /// Lets claims, releases and lists share so many connections. One more is used for renewals,
    /// however many leases there are.
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
        self
    }

    /// Trusts the authorities in this PEM file instead of those of the system.
    #[must_use]
    pub fn ssl_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// Shows the server this certificate (PEM, with its chain) and proves it by this key (PEM).
    #[must_use]
    pub fn ssl_client_cert(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client_cert = Some(cert.into());
        self.tls.client_key = Some(key.into());
        self
    }

    /// Connects to this Unix socket instead of a host. Nothing is encrypted there: nobody else
    /// can listen.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Gives each host so long to be connected to, login included.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for zero.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self> {
        if timeout.is_zero() {
            return Err(invalid("connect_timeout is 0: give at least a second"));
        }
        self.connect_timeout = timeout;
        Ok(self)
    }

    /// Sends keepalives after so long a silence of a TCP connection; whole seconds count.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for less than a second.
    pub fn tcp_keepalive(mut self, after: Duration) -> Result<Self> {
        if after < Duration::from_secs(1) {
            return Err(invalid("tcp_keepalive is less than a second: give at least one"));
        }
        self.tcp_keepalive = after;
        Ok(self)
    }

    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    /// How many connections are shared.
    pub(crate) fn connections(&self) -> usize {
        self.pool_size
    }

    /// How long one host may take.
    pub(crate) fn host_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// The lock table, qualified and quoted, since `init_connect` may choose another database.
    pub(crate) fn lock_table(&self) -> String {
        self.qualified("")
    }

    /// The table of shares, qualified and quoted.
    pub(crate) fn share_table(&self) -> String {
        self.qualified("_share")
    }

    /// The names of both tables as they are.
    pub(crate) fn table_names(&self) -> [String; 2] {
        [self.table.clone(), format!("{}_share", self.table)]
    }

    /// The database's name as it is.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Where this is, for messages: hosts and database, without the user's secrets.
    pub(crate) fn place(&self) -> String {
        let addresses: Vec<String> = self.addresses().iter().map(Address::to_string).collect();
        format!("{}/{}", addresses.join(","), self.database)
    }

    /// What may be connected to, in the order of the URL.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        match &self.socket {
            Some(path) => vec![Address::Socket(path.clone())],
            None => self.hosts.iter().cloned().map(Address::Tcp).collect(),
        }
    }

    /// What the driver is told to reach one of the addresses.
    pub(crate) fn driver(&self, address: &Address, tls: Option<SslOpts>) -> Opts {
        let mut driver = OptsBuilder::default()
            .user(self.user.clone())
            .pass(self.password.clone().map(|secret| secret.0))
            .db_name(Some(self.database.clone()))
            // The driver would go over to a socket of the server's choice by itself.
            .prefer_socket(false)
            // The driver would spend a round trip on asking for these two. The server's own limit
            // on packets counts, and the driver's pool is not used.
            .max_allowed_packet(Some(1 << 30))
            .wait_timeout(Some(28_800))
            .tcp_keepalive(Some(self.tcp_keepalive));
        driver = match address {
            // It cannot do TLS there, and would ask the server for it all the same.
            Address::Socket(path) => driver.socket(Some(path.to_string_lossy())),
            Address::Tcp(host) => {
                driver.ip_or_hostname(&host.name).tcp_port(host.port).ssl_opts(tls)
            }
        };
        match &self.driver_options {
            // Without a cache the driver leaves each statement that it prepares on the server.
            Some(DriverOptions(change)) => change(driver).stmt_cache_size(CACHED_STATEMENTS).into(),
            None => driver.into(),
        }
    }

    /// What gives the password, where it is not that of the URL.
    pub(crate) fn password_source(&self) -> Option<PasswordSource> {
        self.password_source.clone()
    }

    fn qualified(&self, suffix: &str) -> String {
        format!("`{}`.`{}{suffix}`", self.database.replace('`', "``"), self.table)
    }

    fn with_parameter(mut self, key: &str, value: &str) -> Result<Self> {
        let seconds = || {
            value.parse().map(Duration::from_secs).map_err(|_| {
                invalid(format!("{key} in the URL is not a number: give whole seconds"))
            })
        };
        match key {
            "table" => self.table(value),
            "pool_size" => {
                let connections = value
                    .parse()
                    .map_err(|_| invalid("pool_size in the URL is not a number: give 1 to 64"))?;
                self.pool_size(connections)
            }
            "ssl-mode" | "ssl_mode" | "sslmode" => Ok(self.ssl_mode(SslMode::parse(value)?)),
            "ssl-ca" => Ok(self.ssl_ca(value)),
            "ssl-cert" => {
                self.tls.client_cert = Some(value.into());
                Ok(self)
            }
            "ssl-key" => {
                self.tls.client_key = Some(value.into());
                Ok(self)
            }
            "socket" => Ok(self.socket(value)),
            "connect_timeout" => self.connect_timeout(seconds()?),
            "tcp_keepalive" => self.tcp_keepalive(seconds()?),
            _ => Err(invalid(format!(
                "the URL's parameter {key:?} is unknown: there are {PARAMETERS}"
            ))),
        }
    }
}

/// One of the servers that may be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(Host),
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(Host { name, port }) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp(Host { name, port }) => write!(f, "{name}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Host {
    /// Parses `name`, `name:port`, `[address]` or `[address]:port`; nothing means localhost.
    fn parse(host: &str) -> Result<Self> {
        let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((name, rest))) => {
                (name, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
            }
            Some(None) => (host, None),
            None => match host.split_once(':') {
                Some((name, port)) => (name, (!port.is_empty()).then_some(port)),
                None => (host, Some("")),
            },
        };
        // No part is repeated: of a password that was not encoded, it may be a piece.
        let port = port.and_then(|port| match port {
            "" => Some(DEFAULT_PORT),
            port => port.parse().ok().filter(|port| *port != 0),
        });
        match port {
            Some(port) if !name.contains(['[', ']', '@']) => {
                let name = if name.is_empty() { "localhost" } else { name };
                Ok(Self { name: name.to_owned(), port })
            }
            _ => Err(invalid(
                "a host of the URL cannot be read: give host, host:port or [IPv6 address]:port, \
                 and encode special characters of the password as %XX",
            )),
        }
    }
}

impl SslMode {
    fn parse(value: &str) -> Result<Self> {
        Ok(match value.to_ascii_lowercase().replace('-', "_").as_str() {
            "disabled" => Self::Disabled,
            "preferred" => Self::Preferred,
            "required" => Self::Required,
            "verify_ca" => Self::VerifyCa,
            "verify_identity" => Self::VerifyIdentity,
            _ => {
                return Err(invalid(format!(
                    "ssl-mode is {value:?}: give disabled, preferred, required, verify_ca or \
                     verify_identity"
                )));
            }
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

/// The names of the parameters.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
}

fn decoded(what: &str, text: &str) -> Result<String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| invalid(format!("the {what} in the URL is not UTF-8: encode it as UTF-8")))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, message).with_backend(crate::NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> MysqlConfig {
        MysqlConfig::from_url(url).unwrap()
    }

    #[test]
    fn every_part_of_the_url_is_read() {
        let config = parse(
            "mysql://%75:p%40ss@db1:3307,db2,[::1]:3308/my%2Fapp?table=locks&pool_size=2\
             &ssl-mode=VERIFY_IDENTITY&ssl-ca=%2Fetc%2Fca.pem&connect_timeout=3&tcp_keepalive=9\
             &ssl-cert=/c.pem&ssl-key=/k.pem",
        );
        assert_eq!(config.lock_table(), "`my/app`.`locks`");
        assert_eq!(config.share_table(), "`my/app`.`locks_share`");
        assert_eq!(config.connections(), 2);
        assert_eq!(config.tls.mode, SslMode::VerifyIdentity);
        assert_eq!(config.tls.ca.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert_eq!(config.tls.client_cert.as_deref(), Some("/c.pem".as_ref()));
        assert_eq!(config.tls.client_key.as_deref(), Some("/k.pem".as_ref()));
        assert_eq!(config.host_timeout(), Duration::from_secs(3));
        assert_eq!(config.place(), "db1:3307,db2:3306,[::1]:3308/my/app");
        let addresses = config.addresses();
        let driver = config.driver(&addresses[2], None);
        assert_eq!((driver.ip_or_hostname(), driver.tcp_port()), ("::1", 3308));
        assert_eq!((driver.user(), driver.pass()), (Some("u"), Some("p@ss")));
        assert_eq!(driver.db_name(), Some("my/app"));
        assert_eq!(driver.tcp_keepalive(), Some(Duration::from_secs(9)));
        assert!(!driver.prefer_socket());
    }

    #[test]
    fn what_the_url_does_not_say_is_filled_in() {
        let config = parse("mariadb:///app");
        assert_eq!(config.lock_table(), "`app`.`database_locks_lock`");
        assert_eq!(config.connections(), 4);
        assert_eq!(config.tls.mode, SslMode::Preferred);
        assert_eq!(config.host_timeout(), Duration::from_secs(5));
        assert_eq!(config.place(), "localhost:3306/app");
        let driver = config.driver(&config.addresses()[0], None);
        assert_eq!((driver.user(), driver.pass(), driver.socket()), (None, None, None));
    }

    #[test]
    fn ssl_mode_has_three_spellings_and_any_case() {
        for (text, mode) in [
            ("ssl-mode=disabled", SslMode::Disabled),
            ("ssl_mode=Required", SslMode::Required),
            ("sslmode=VERIFY-CA", SslMode::VerifyCa),
        ] {
            assert_eq!(parse(&format!("mysql://h/d?{text}")).tls.mode, mode, "{text}");
        }
    }

    #[test]
    fn socket_takes_the_place_of_the_host_and_has_no_tls() {
        for host in ["", "localhost"] {
            let config = parse(&format!("mysql://u@{host}/d?socket=/run/my.sock"));
            assert_eq!(config.place(), "/run/my.sock/d");
            let driver = config.driver(&config.addresses()[0], Some(SslOpts::default()));
            assert_eq!(driver.socket(), Some("/run/my.sock"));
            assert!(driver.ssl_opts().is_none());
        }
    }

    #[test]
    fn a_database_of_any_characters_is_quoted() {
        assert_eq!(parse("mysql://h/a%60b").share_table(), "`a``b`.`database_locks_lock_share`");
    }

    #[test]
    fn bad_urls_are_refused_without_telling_the_password() {
        for bad in [
            "postgres://u:hunter2@h/d",
            "mysql://u:hunter2@h/d?table=a\"b",
            "mysql://u:hunter2@h/d?table=1a",
            "mysql://u:hunter2@h/d?table=",
            "mysql://u:hunter2@h/d?pool_size=0",
            "mysql://u:hunter2@h/d?pool_size=many",
            "mysql://u:hunter2@h/d?ssl-mode=maybe",
            "mysql://u:hunter2@h/d?connect_timeout=0",
            "mysql://u:hunter2@h/d?connect_timeout=soon",
            "mysql://u:hunter2@h/d?tcp_keepalive=0",
            "mysql://u:hunter2@h/d?no_such_parameter=1",
            "mysql://u:hunter2@db/d?socket=/s",
            "mysql://u:hunter2@h:port/d",
            "mysql://u:hunter2@h:0/d",
            "mysql://u:hunter2@h:/d",
            "mysql://u:hunter2@::1/d",
            "mysql://u:hunter2@[::1/d",
            "mysql://u:hunter2@[::1]x/d",
            "mysql://u:hunter2@h",
            "mysql://u:hunter2@h/",
            "mysql://u:hunter2@h/?table=x",
            "mysql://u:%ffhunter2@h/d",
            "mysql://u:a/hunter2@h/d",
            "mysql://u:a/?hunter2=1@h/d",
            "mysql://u:1/b?hunter2=1@h/d",
            "mysql://u:a@b/hunter2@h/d",
            "mysql://u:a@hunter2/b@h/d",
            "mysql://u:a@hunter2/b?c@h/d",
            "mysql://u:a@b/c?hunter2@h/d",
        ] {
            let error = MysqlConfig::from_url(bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        assert!(parse("mysql://h/d").table(&"x".repeat(59)).is_err());
        let unknown = MysqlConfig::from_url("mysql://h/d?nope=1").unwrap_err().to_string();
        assert!(unknown.contains("nope") && unknown.contains("connect_timeout"), "{unknown}");
        let torn = MysqlConfig::from_url("mysql://u:a@b/c@h/d").unwrap_err().to_string();
        assert!(torn.contains("@ as %40 and / as %2F"), "{torn}");
        let no_database = MysqlConfig::from_url("mysql://h").unwrap_err().to_string();
        assert!(no_database.contains("no database"), "{no_database}");
    }

    #[test]
    fn debug_hides_the_password() {
        let config = parse("mysql://u:hunter2@h/d");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
