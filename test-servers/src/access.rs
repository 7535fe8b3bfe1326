//! How a client reaches a server: URLs, SQL on the command line, databases of one's own.

use std::fmt;
use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::folder::random_hex;
use crate::install::{MARIADB_TOOLS, POSTGRES};

/// What the client of MySQL says where a server accepts a connection and does not greet it.
const NO_GREETING: &str = "reading initial communication packet";
/// How often to ask again then.
const GREETINGS: u32 = 3;

/// Where a server (or a pooler in front of one) is, and as whom to enter which database.
#[derive(Clone)]
pub struct Access {
    family: Family,
    user: String,
    password: String,
    /// `host:port`, or several with commas between them.
    hosts: String,
    database: String,
    /// What follows the database, with its question mark, or nothing.
    query: String,
    url: String,
    client: PathBuf,
}

/// The servers that speak one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

impl Family {
    /// What its URLs begin with. Ours begin with the first.
    fn schemes(self) -> [&'static str; 2] {
        match self {
            Family::Postgres => ["postgres", "postgresql"],
            Family::MySql => ["mysql", "mariadb"],
        }
    }

    fn default_port(self) -> &'static str {
        match self {
            Family::Postgres => "5432",
            Family::MySql => "3306",
        }
    }

    /// The command-line client. MariaDB's knows how to log in at MySQL, too.
    fn client(self) -> Result<PathBuf> {
        match self {
            Family::Postgres => Ok(POSTGRES.find()?.join("psql")),
            Family::MySql => Ok(MARIADB_TOOLS.find()?.join("mariadb")),
        }
    }

    /// What a test's database is created with unless the test says otherwise.
    fn database_options(self) -> &'static str {
        match self {
            Family::Postgres => "TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'",
            Family::MySql => "CHARACTER SET utf8mb4",
        }
    }
}

impl Access {
    pub(crate) fn local(
        family: Family,
        port: u16,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<Access> {
        let access = Access {
            family,
            user: user.to_owned(),
            password: password.to_owned(),
            hosts: format!("127.0.0.1:{port}"),
            database: database.to_owned(),
            query: String::new(),
            url: String::new(),
            client: family.client()?,
        };
        Ok(access.with_url())
    }

    /// Takes a URL apart: `SCHEME://USER[:PASSWORD]@HOSTS[/DATABASE][?PARAMETERS]`, with one of the family's schemes.
    pub(crate) fn parse(family: Family, url: &str) -> Result<Access> {
        let schemes = family.schemes();
        let shape = || {
            format!(
                "a test server's url must look like {}://USER:PASSWORD@HOST:PORT/DATABASE",
                schemes[0]
            )
        };
        let (scheme, rest) = url.split_once("://").with_context(shape)?;
        ensure!(schemes.contains(&scheme), shape());
        let (rest, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').with_context(shape)?;
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        ensure!(!user.is_empty() && !hosts.is_empty(), shape());
        let user = unescape(user)?;
        let database = match (family, database) {
            // Postgres enters the database that is called like the user; the MySQL family enters none.
            (Family::Postgres, "") => user.clone(),
            (_, given) => unescape(given)?,
        };
        let access = Access {
            family,
            user,
            password: unescape(password)?,
            hosts: hosts.to_owned(),
            database,
            query: query.to_owned(),
            url: String::new(),
            client: family.client()?,
        };
        Ok(access.with_url())
    }

    /// The URL, with the password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// The first host, and its port.
    pub(crate) fn host_and_port(&self) -> (&str, &str) {
        let first = self.hosts.split(',').next().unwrap_or(&self.hosts);
        first.rsplit_once(':').unwrap_or((first, self.family.default_port()))
    }

    /// The line of a `PgBouncer` user list for this user.
    pub(crate) fn pgbouncer_user(&self) -> String {
        let quoted = |text: &str| text.replace('"', "\"\"");
        format!("\"{}\" \"{}\"\n", quoted(&self.user), quoted(&self.password))
    }

    /// The database's name.
    #[must_use]
    pub fn database_name(&self) -> &str {
        &self.database
    }

    /// The same database, entered as another user. The user is not created.
    #[must_use]
    pub fn as_user(&self, user: &str, password: &str) -> Access {
        Access { user: user.to_owned(), password: password.to_owned(), ..self.clone() }.with_url()
    }

    /// Another database of the same server. It is not created.
    #[must_use]
    pub fn in_database(&self, name: &str) -> Access {
        Access { database: name.to_owned(), ..self.clone() }.with_url()
    }

    /// The same database at another port of 127.0.0.1, such as a [`Proxy`](crate::Proxy)'s.
    #[must_use]
    pub fn at_port(&self, port: u16) -> Access {
        self.at_ports([port])
    }

    /// The same database at several ports of 127.0.0.1.
    pub(crate) fn at_ports(&self, ports: impl IntoIterator<Item = u16>) -> Access {
        let hosts: Vec<String> =
            ports.into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Access { hosts: hosts.join(","), ..self.clone() }.with_url()
    }

    /// Runs SQL with the command-line client (`psql`, or `mariadb` for the MySQL family), one statement after the
    /// other and each in a transaction of its own, and returns what it prints: one line a row, `|` between the columns,
    /// without headings. NULL is the empty string on Postgres and `NULL` in the MySQL family.
    ///
    /// # Errors
    ///
    /// When a statement fails (those before it stay done) or the server cannot be reached; with what the client said.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let mut output = self.run_client(sql)?;
        for _ in 0..GREETINGS {
            // A busy server did not say who it is in time. Nothing was sent.
            if !String::from_utf8_lossy(&output.stderr).contains(NO_GREETING) {
                break;
            }
            output = self.run_client(sql)?;
        }
        ensure!(
            output.status.success(),
            "{} in database {} ended with {}: {}",
            self.client.display(),
            self.database,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        let text = String::from_utf8(output.stdout)?;
        let text = text.trim_end_matches('\n');
        Ok(match self.family {
            Family::Postgres => text.to_owned(),
            // A tab inside a value is printed as a backslash and a t.
            Family::MySql => text.replace('\t', "|"),
        })
    }

    fn run_client(&self, sql: &str) -> Result<Output> {
        let mut client = self
            .client_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.client.display()))?;
        // Should the client end without reading all of it, its own message tells why.
        let _ = client.stdin.take().context("the client has no input")?.write_all(sql.as_bytes());
        Ok(client.wait_with_output()?)
    }

    /// Creates an empty database with a random name, in UTF-8, that is dropped with the returned value.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses it.
    pub fn database(&self) -> Result<Database> {
        self.database_with(self.family.database_options())
    }

    /// Creates an empty database with a random name, that is dropped with the returned value, by `CREATE DATABASE NAME`
    /// with these options, such as `CHARACTER SET latin1`. With none, the server's defaults hold.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses it.
    pub fn database_with(&self, options: &str) -> Result<Database> {
        let name = format!("dblocks_test_{}", random_hex(8)?);
        self.sql(&format!("CREATE DATABASE {name} {options}"))
            .context("cannot create a database for a test")?;
        Ok(Database { access: self.in_database(&name), parent: self.clone() })
    }

    /// The client that reads SQL from its standard input. The password goes by the environment, which other users of
    /// the machine cannot read.
    fn client_command(&self) -> Command {
        let mut client = Command::new(&self.client);
        match self.family {
            Family::Postgres => client
                .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--file=-"])
                .arg("--set=ON_ERROR_STOP=1")
                .args(["--dbname", &self.address("")])
                .env("PGPASSWORD", &self.password),
            Family::MySql => {
                let (host, port) = self.host_and_port();
                client
                    .args(["--no-defaults", "--batch", "--skip-column-names", "--protocol=tcp"])
                    .args(["--default-character-set=utf8mb4", "--connect-timeout=60"])
                    // Certificates are what tests are about, with clients that check them.
                    .arg("--skip-ssl-verify-server-cert")
                    .arg(format!("--host={host}"))
                    .arg(format!("--port={port}"))
                    .arg(format!("--user={}", self.user))
                    .arg(format!("--database={}", self.database))
                    .env("MYSQL_PWD", &self.password)
            }
        };
        client
    }

    fn with_url(mut self) -> Access {
        self.url = self.address(&format!(":{}", escape(&self.password)));
        self
    }

    fn address(&self, password: &str) -> String {
        let Access { family, user, hosts, database, query, .. } = self;
        let [scheme, _] = family.schemes();
        format!("{scheme}://{}{password}@{hosts}/{}{query}", escape(user), escape(database))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Access").field(&self.address("")).finish()
    }
}

/// A database for one test. It is used as the [`Access`] to it, and dropped, with all connections to it, when this
/// value is: keep it for as long as its URL is in use.
#[derive(Debug)]
#[must_use = "the database is dropped with this value"]
pub struct Database {
    access: Access,
    parent: Access,
}

impl Deref for Database {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The server may be stopped, by the test or for good; then there is nothing to drop.
        let Database { access: Access { family, database, .. }, parent } = self;
        match family {
            Family::Postgres => {
                let _ = parent.sql(&format!("DROP DATABASE {database} WITH (FORCE)"));
            }
            Family::MySql => {
                // An open transaction would keep the database from being dropped.
                let sessions = parent.sql("SHOW PROCESSLIST").unwrap_or_default();
                for session in sessions.lines() {
                    let mut columns = session.split('|');
                    let (id, its_database) = (columns.next(), columns.nth(2));
                    if let (Some(id), Some(true)) = (id, its_database.map(|name| name == database))
                    {
                        let _ = parent.sql(&format!("KILL {id}"));
                    }
                }
                let _ =
                    parent.sql(&format!("SET lock_wait_timeout = 10; DROP DATABASE {database}"));
            }
        }
    }
}

fn escape(part: &str) -> String {
    utf8_percent_encode(part, NON_ALPHANUMERIC).to_string().replace("%5F", "_")
}

fn unescape(part: &str) -> Result<String> {
    Ok(percent_decode_str(part).decode_utf8()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_put_together() {
        let access = Access::parse(
            Family::Postgres,
            "postgresql://me%40x:p%3A%2Fw@h1:1,h2:2/app?sslmode=require",
        )
        .unwrap();
        assert_eq!(access.url(), "postgres://me%40x:p%3A%2Fw@h1:1,h2:2/app?sslmode=require");
        assert_eq!(
            access.as_user("lock_user", "a b").in_database("t").at_port(7).url(),
            "postgres://lock_user:a%20b@127.0.0.1:7/t?sslmode=require"
        );
        assert_eq!(
            Access::parse(Family::Postgres, "postgres://me@h").unwrap().database_name(),
            "me"
        );

        let access = Access::parse(Family::MySql, "mariadb://me:p%25w@h1,h2:2/app?x=y").unwrap();
        assert_eq!(access.url(), "mysql://me:p%25w@h1,h2:2/app?x=y");
        assert_eq!(access.host_and_port(), ("h1", "3306"));
        assert_eq!(Access::parse(Family::MySql, "mysql://me@h").unwrap().database_name(), "");
    }

    #[test]
    fn a_url_without_user_or_of_another_kind_is_refused() {
        for url in [
            "postgres://localhost/app",
            "mysql://me@h/app",
            "postgres://:pw@h/app",
            "postgres://me@/app",
        ] {
            let message = Access::parse(Family::Postgres, url).unwrap_err().to_string();
            assert!(
                message.contains("postgres://USER:PASSWORD@HOST:PORT/DATABASE"),
                "{url}: {message}"
            );
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let access = Access::parse(Family::Postgres, "postgres://me:s3cret@h/app").unwrap();
        assert!(!format!("{access:?}").contains("s3cret"), "{access:?}");
    }
}
