//! How a client reaches a Postgres: URLs, `psql`, databases of one's own.

use std::fmt;
use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::folder::random_hex;
use crate::install::POSTGRES;

/// Where a Postgres (or a pooler in front of one) is, and as whom to enter which database.
#[derive(Clone)]
pub struct Access {
    user: String,
    password: String,
    /// `host:port`, or several with commas between them.
    hosts: String,
    database: String,
    /// What follows the database, with its question mark, or nothing.
    query: String,
    url: String,
    psql: PathBuf,
}

impl Access {
    pub(crate) fn local(port: u16, user: &str, password: &str, database: &str) -> Result<Access> {
        Access::parse(&format!(
            "postgres://{}:{}@127.0.0.1:{port}/{}",
            escape(user),
            escape(password),
            escape(database)
        ))
    }

    /// Takes a URL apart: `postgres://USER[:PASSWORD]@HOSTS[/DATABASE][?PARAMETERS]`.
    pub(crate) fn parse(url: &str) -> Result<Access> {
        const SHAPE: &str =
            "a test server's url must look like postgres://USER:PASSWORD@HOST:PORT/DATABASE";
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .context(SHAPE)?;
        let (rest, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').context(SHAPE)?;
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        ensure!(!user.is_empty() && !hosts.is_empty(), SHAPE);
        let user = unescape(user)?;
        let access = Access {
            password: unescape(password)?,
            hosts: hosts.to_owned(),
            database: if database.is_empty() { user.clone() } else { unescape(database)? },
            user,
            query: query.to_owned(),
            url: String::new(),
            psql: POSTGRES.find()?.join("psql"),
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
        first.rsplit_once(':').unwrap_or((first, "5432"))
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
        Access { hosts: format!("127.0.0.1:{port}"), ..self.clone() }.with_url()
    }

    /// Runs SQL with `psql`, each statement in a transaction of its own, and returns what it prints: one line a row,
    /// `|` between the columns, without headings.
    ///
    /// # Errors
    ///
    /// When a statement fails (those before it stay done) or the server cannot be reached; with what `psql` said.
    pub fn psql(&self, sql: &str) -> Result<String> {
        // The password goes by the environment, which other users of the machine cannot read.
        let mut psql = Command::new(&self.psql)
            .args([
                "--no-psqlrc",
                "--quiet",
                "--tuples-only",
                "--no-align",
                "--set=ON_ERROR_STOP=1",
                "--file=-",
            ])
            .args(["--dbname", &self.address("")])
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.psql.display()))?;
        // Should psql end without reading all of it, its own message tells why.
        let _ = psql.stdin.take().context("psql has no input")?.write_all(sql.as_bytes());
        let output = psql.wait_with_output()?;
        ensure!(
            output.status.success(),
            "psql in database {} ended with {}: {}",
            self.database,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8(output.stdout)?.trim_end_matches('\n').to_owned())
    }

    /// Creates an empty database with a random name, in UTF-8, that is dropped with the returned value.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses it.
    pub fn database(&self) -> Result<Database> {
        let name = format!("dblocks_test_{}", random_hex(8)?);
        self.psql(&format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        ))
        .context("cannot create a database for a test")?;
        Ok(Database { access: self.in_database(&name), parent: self.clone() })
    }

    fn with_url(mut self) -> Access {
        self.url = self.address(&format!(":{}", escape(&self.password)));
        self
    }

    fn address(&self, password: &str) -> String {
        let Access { user, hosts, database, query, .. } = self;
        format!("postgres://{}{password}@{hosts}/{}{query}", escape(user), escape(database))
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
        let _ = self.parent.psql(&format!("DROP DATABASE {} WITH (FORCE)", self.access.database));
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
        let access =
            Access::parse("postgresql://me%40x:p%3A%2Fw@h1:1,h2:2/app?sslmode=require").unwrap();
        assert_eq!(access.url(), "postgres://me%40x:p%3A%2Fw@h1:1,h2:2/app?sslmode=require");
        assert_eq!(
            access.as_user("lock_user", "a b").in_database("t").at_port(7).url(),
            "postgres://lock_user:a%20b@127.0.0.1:7/t?sslmode=require"
        );
        assert_eq!(Access::parse("postgres://me@h").unwrap().database_name(), "me");
    }

    #[test]
    fn a_url_without_user_or_of_another_kind_is_refused() {
        for url in [
            "postgres://localhost/app",
            "mysql://me@h/app",
            "postgres://:pw@h/app",
            "postgres://me@/app",
        ] {
            let message = Access::parse(url).unwrap_err().to_string();
            assert!(
                message.contains("postgres://USER:PASSWORD@HOST:PORT/DATABASE"),
                "{url}: {message}"
            );
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let access = Access::parse("postgres://me:s3cret@h/app").unwrap();
        assert!(!format!("{access:?}").contains("s3cret"), "{access:?}");
    }
}
