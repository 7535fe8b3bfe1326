//! What whoever runs a process may choose: in the environment, or in code.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use database_locks_core::{Error, ErrorKind, Locks, LocksBuilder, Result, Ttl, parse_duration};

use crate::blocking;
use crate::connect::Target;
use crate::status::StatusFile;

const ENABLED: &str = "DATABASE_LOCKS_ENABLED";
const URL: &str = "DATABASE_LOCKS_URL";
const TABLE: &str = "DATABASE_LOCKS_TABLE";
const STATUS_FILE: &str = "DATABASE_LOCKS_STATUS_FILE";
const DEFAULT_TTL: &str = "DATABASE_LOCKS_DEFAULT_TTL";
const DEFAULT_TTL_RENEW: &str = "DATABASE_LOCKS_DEFAULT_TTL_RENEW";

/// Where the locks of a process are, and what they do by default.
///
/// | variable | what to write | default | in code |
/// |---|---|---|---|
/// | `DATABASE_LOCKS_URL` | as for [`Connect`](crate::Connect) | none | [`url`](Self::url) |
/// | `DATABASE_LOCKS_TABLE` | a table's name | that of the URL | [`table`](Self::table) |
/// | `DATABASE_LOCKS_ENABLED` | `true`, `false`, `1`, `0`, `yes`, `no`, `on` or `off`, in any case | `true` | [`enabled`](Self::enabled) |
/// | `DATABASE_LOCKS_DEFAULT_TTL` | `30`, `1m30s`, or `infinite` | 10 s | [`default_ttl`](Self::default_ttl) |
/// | `DATABASE_LOCKS_DEFAULT_TTL_RENEW` | `2`, or `500ms` | 2 s, or half the TTL if that is less | [`default_renew_before`](Self::default_renew_before) |
/// | `DATABASE_LOCKS_STATUS_FILE` | a path | no file | [`status_file`](Self::status_file) |
///
/// A variable that is unset or empty leaves the default. The variables are those of
/// django-database-locks, with the same meaning, and the first two.
///
/// ```no_run
/// use std::time::Duration;
/// use database_locks::Settings;
///
/// # async fn example() -> database_locks::Result<()> {
/// let locks = Settings::from_env()?.default_ttl(Duration::from_secs(30)).connect().await?;
/// database_locks::init(locks)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "settings do nothing until they are connected"]
pub struct Settings {
    enabled: bool,
    url: Option<String>,
    table: Option<String>,
    default_ttl: Result<Option<Ttl>>,
    default_renew_before: Option<Duration>,
    status_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            url: None,
            table: None,
            default_ttl: Ok(None),
            default_renew_before: None,
            status_file: None,
        }
    }
}

impl Settings {
    /// The defaults, whatever the environment says.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the environment of this process says. What is then set in code takes its place.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a value that cannot be used. It names the variable, and says
    /// what to write; it does not repeat the value. The URL and the table are looked at by
    /// [`connect`](Self::connect).
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|variable| env::var_os(variable))
    }

    fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let get = |variable| get(variable).filter(|value| !value.is_empty());
        let text = |variable| match get(variable).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::new(
                ErrorKind::InvalidOption,
                format!("{variable}: the value is not UTF-8: write it in UTF-8"),
            )),
        };
        Ok(Self {
            enabled: parsed(ENABLED, text(ENABLED)?, parse_switch)?.unwrap_or(true),
            url: text(URL)?,
            table: text(TABLE)?,
            default_ttl: Ok(parsed(DEFAULT_TTL, text(DEFAULT_TTL)?, Ttl::from_str)?),
            default_renew_before: parsed(
                DEFAULT_TTL_RENEW,
                text(DEFAULT_TTL_RENEW)?,
                parse_duration,
            )?,
            status_file: get(STATUS_FILE).map(PathBuf::from),
        })
    }

    /// Whether there are locks at all. Without them every request is granted at once, and no URL is
    /// needed: see [`LocksBuilder::disabled`].
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Where the database is: see [`Connect`](crate::Connect).
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// The table of the locks, instead of the one that the URL names.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    /// The TTL of requests that choose none: see [`LocksBuilder::default_ttl`].
    pub fn default_ttl(mut self, ttl: impl TryInto<Ttl, Error: Into<Error>>) -> Self {
        self.default_ttl = ttl.try_into().map(Some).map_err(Into::into);
        self
    }

    /// By how long before a lease expires it is to be renewed, for requests that do not choose: see
    /// [`LocksBuilder::default_renew_before`].
    pub fn default_renew_before(mut self, renew_before: Duration) -> Self {
        self.default_renew_before = Some(renew_before);
        self
    }

    /// The file that says whether this process waits for or holds a lock: see
    /// [`StatusFile`].
    pub fn status_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.status_file = Some(path.into());
        self
    }

    /// No status file, also where one was set: for whoever only looks, and must not overwrite what
    /// somebody else shows there.
    pub fn no_status_file(mut self) -> Self {
        self.status_file = None;
        self
    }

    /// The TTL of requests that choose none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a [`default_ttl`](Self::default_ttl) that cannot be used.
    pub fn ttl(&self) -> Result<Ttl> {
        Ok(self.default_ttl.clone()?.unwrap_or_default())
    }

    /// Whether there are to be locks at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether it was said where the database is.
    #[must_use]
    pub fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// Connects, and checks that the database answers; not so where locks are switched off.
    ///
    /// # Errors
    ///
    /// As [`Connect::connect`](crate::Connect::connect), and [`ErrorKind::InvalidOption`] if there
    /// is no URL, and for settings that cannot be used.
    pub async fn connect(&self) -> Result<Locks> {
        self.connect_with(LocksBuilder::default()).await
    }

    /// Connects with options beyond these settings. What is set here takes their place.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(&self, options: LocksBuilder) -> Result<Locks> {
        let (options, target) = (self.options(options)?, self.target());
        options.open(async { target?.connect().await }).await
    }

    /// Connects, for code without async.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect), and
    /// [on an async worker](database_locks_core::blocking#not-on-an-async-worker).
    pub fn connect_blocking(&self) -> Result<blocking::Locks> {
        self.connect_blocking_with(LocksBuilder::default())
    }

    /// Connects with options beyond these settings, for code without async.
    ///
    /// # Errors
    ///
    /// As [`connect_blocking`](Self::connect_blocking).
    pub fn connect_blocking_with(&self, options: LocksBuilder) -> Result<blocking::Locks> {
        let (options, target) = (self.options(options)?, self.target());
        blocking::Locks::open(options, async { target?.connect().await })
    }

    /// Creates the tables that these locks need, or brings them up to date, as
    /// [`migrate`](crate::migrate) does; nothing where locks are switched off.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn migrate(&self) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        self.target()?.migrate().await
    }

    /// Creates the tables, for code without async.
    ///
    /// # Errors
    ///
    /// As [`migrate`](Self::migrate), and
    /// [on an async worker](database_locks_core::blocking#not-on-an-async-worker).
    pub fn migrate_blocking(&self) -> Result<()> {
        let settings = self.clone();
        blocking::block_on(async move { settings.migrate().await })
    }

    /// What [`migrate`](Self::migrate) does where locks are on, as SQL: see
    /// [`schema_sql`](crate::schema_sql).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] and [`ErrorKind::Unsupported`] for a URL and a table that
    /// cannot be used.
    pub fn schema_sql(&self) -> Result<String> {
        Ok(self.target()?.schema_sql())
    }

    fn options(&self, mut options: LocksBuilder) -> Result<LocksBuilder> {
        if let Some(ttl) = self.default_ttl.clone()? {
            options = options.default_ttl(ttl);
        }
        if let Some(renew_before) = self.default_renew_before {
            options = options.default_renew_before(renew_before);
        }
        let is_ours =
            matches!(self.default_ttl, Ok(Some(_))) || self.default_renew_before.is_some();
        options.check_defaults().map_err(|error| match is_ours {
            true => of(&format!("{DEFAULT_TTL}, {DEFAULT_TTL_RENEW}"), &error),
            false => error,
        })?;
        if let Some(path) = &self.status_file {
            options = options.observer(StatusFile::open(path)?);
        }
        // Who switched them off in the options did so.
        Ok(if self.enabled { options } else { options.disabled(true) })
    }

    fn target(&self) -> Result<Target> {
        let Some(url) = &self.url else {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("no database is given: set {URL}, or {ENABLED}=false to do without locks"),
            ));
        };
        let target = Target::parse(url).map_err(|error| of(URL, &error))?;
        match &self.table {
            Some(table) => target.with_table(table).map_err(|error| of(TABLE, &error)),
            None => Ok(target),
        }
    }
}

/// Not derived: a URL may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("enabled", &self.enabled)
            .field("url", &self.url.as_ref().map(|_| format_args!("...")))
            .field("table", &self.table)
            .field("default_ttl", &self.default_ttl)
            .field("default_renew_before", &self.default_renew_before)
            .field("status_file", &self.status_file)
            .finish()
    }
}

fn parsed<T>(
    variable: &str,
    value: Option<String>,
    parse: impl FnOnce(&str) -> Result<T>,
) -> Result<Option<T>> {
    value.map(|value| parse(&value).map_err(|error| of(variable, &error))).transpose()
}

/// An error about the setting that is in `variable`, if it was not set in code.
fn of(variable: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{variable}: {error}"))
}

fn parse_switch(text: &str) -> Result<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Error::new(
            ErrorKind::InvalidOption,
            "neither yes nor no: write true or false (or 1, 0, yes, no, on, off)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(|wanted| {
            let value = variables.iter().find(|(variable, _)| *variable == wanted);
            value.map(|(_, value)| OsString::from(value))
        })
    }

    /// The error about `variable`, which must be named, and which must not show the value.
    #[track_caller]
    fn refused<T>(result: Result<T>, variable: &str) -> Error {
        let error = result.err().expect("an error");
        assert!(error.to_string().starts_with(&format!("{variable}: ")), "{error}");
        assert!(!error.to_string().contains("geheim"), "{error}");
        error
    }

    #[test]
    fn unset_and_empty_variables_leave_the_defaults() {
        let all = [ENABLED, URL, TABLE, STATUS_FILE, DEFAULT_TTL, DEFAULT_TTL_RENEW];
        for variables in [vec![], all.map(|variable| (variable, "")).to_vec()] {
            let settings = from(&variables).unwrap();
            assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::new()));
        }
    }

    #[test]
    fn every_variable_is_read() {
        let settings = from(&[
            (ENABLED, "off"),
            (URL, "sqlite:locks.db"),
            (TABLE, "mine"),
            (STATUS_FILE, "/run/app/status"),
            (DEFAULT_TTL, "1m30s"),
            (DEFAULT_TTL_RENEW, "0.5"),
        ])
        .unwrap();
        assert!(!settings.is_enabled());
        assert_eq!(settings.url.as_deref(), Some("sqlite:locks.db"));
        assert_eq!(settings.table.as_deref(), Some("mine"));
        assert_eq!(settings.status_file, Some(PathBuf::from("/run/app/status")));
        assert_eq!(settings.clone().no_status_file().status_file, None);
        assert_eq!(settings.ttl().unwrap().duration(), Some(Duration::from_secs(90)));
        assert_eq!(settings.default_renew_before, Some(Duration::from_millis(500)));

        let endless = from(&[(DEFAULT_TTL, "infinite")]).unwrap();
        assert_eq!(endless.ttl().unwrap(), Ttl::Infinite);
        assert_eq!(Settings::new().ttl().unwrap(), Ttl::DEFAULT);
    }

    #[test]
    fn the_switch_has_many_words() {
        for (words, enabled) in [
            (["true", "True", "TRUE", "1", "yes", "on", " On "], true),
            (["false", "False", "FALSE", "0", "no", "off", " NO "], false),
        ] {
            for word in words {
                assert_eq!(from(&[(ENABLED, word)]).unwrap().is_enabled(), enabled, "{word:?}");
            }
        }
    }

    #[test]
    fn malformed_values_are_errors_that_name_the_variable() {
        for (variable, values) in [
            (ENABLED, ["maybe", "2", " ", "geheim"]),
            (DEFAULT_TTL, ["0", "25h", "soon", "geheim"]),
            (DEFAULT_TTL_RENEW, ["-1", "2 fortnights", " ", "geheim"]),
        ] {
            for value in values {
                let error = refused(from(&[(variable, value)]), variable);
                assert_eq!(error.kind(), ErrorKind::InvalidOption, "{value:?}");
                let text = error.to_string();
                assert!(text.contains("write") || text.contains("give"), "{error}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_utf8_is_refused_but_in_a_path() {
        use std::os::unix::ffi::OsStringExt;

        let bytes = || OsString::from_vec(b"/\xff".to_vec());
        for variable in [ENABLED, URL, TABLE, DEFAULT_TTL, DEFAULT_TTL_RENEW] {
            let settings = Settings::from_variables(|wanted| (wanted == variable).then(bytes));
            let error = refused(settings, variable);
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains("UTF-8"), "{error}");
        }
        let settings = Settings::from_variables(|wanted| (wanted == STATUS_FILE).then(bytes));
        assert_eq!(settings.unwrap().status_file, Some(PathBuf::from(bytes())));
    }

    #[test]
    fn a_url_that_leads_nowhere_is_named() {
        for url in ["geheim", "mongodb://user:geheim@host/db"] {
            let error = refused(Settings::new().url(url).schema_sql(), URL);
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
        let error = Settings::new().schema_sql().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(&format!("set {URL}")), "{error}");
    }

    #[test]
    fn the_table_takes_the_place_of_that_of_the_url() {
        let urls: &[&str] = &[
            #[cfg(feature = "sqlite")]
            "sqlite:locks.db?table=theirs",
            #[cfg(feature = "postgres")]
            "postgres://host/app?table=theirs",
            #[cfg(feature = "mysql")]
            "mysql://host/app?table=theirs",
        ];
        for url in urls {
            let settings = Settings::new().url(*url);
            assert!(settings.schema_sql().unwrap().contains("theirs"), "{url}");
            let sql = settings.clone().table("mine").schema_sql().unwrap();
            assert!(sql.contains("mine") && !sql.contains("theirs"), "{url}: {sql}");
            let error = refused(settings.table("no table").schema_sql(), TABLE);
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
    }

    #[test]
    fn defaults_that_do_not_fit_are_named() {
        let options = |settings: Settings| settings.options(LocksBuilder::default()).map(drop);
        let late = from(&[(DEFAULT_TTL_RENEW, "20")]).unwrap();
        let error = refused(options(late.clone()), &format!("{DEFAULT_TTL}, {DEFAULT_TTL_RENEW}"));
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        options(late.default_ttl(Duration::from_secs(30))).unwrap();
        // In code no variable is to blame.
        let error = options(Settings::new().default_ttl(Duration::ZERO)).unwrap_err();
        assert!(!error.to_string().contains(DEFAULT_TTL), "{error}");
        let chosen = LocksBuilder::default().default_ttl(Duration::ZERO);
        let error = Settings::new().options(chosen).unwrap_err();
        assert!(!error.to_string().contains(DEFAULT_TTL), "{error}");
    }

    #[test]
    fn debug_shows_no_password() {
        let settings = Settings::new().url("postgres://user:geheim@host/db").table("mine");
        let shown = format!("{settings:?}");
        assert!(shown.contains("mine") && !shown.contains("geheim"), "{shown}");
    }
}
