//! A primary and its hot standby: whoever names both in the URL is always at the one that writes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{ask, claim, hold};
use database_locks_core::{
    ErrorKind, LockBackend, Release, Released, Renewal, Renewed, Ttl, Verdict,
};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{POSTGRES, Postgres, Server};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

mod common;

#[tokio::test(flavor = "multi_thread")]
async fn url_of_both_finds_the_primary_and_a_standby_alone_says_what_to_do() {
    let pair = Pair::start();
    for ports in
        [[pair.standby.port, pair.primary.port()], [pair.primary.port(), pair.standby.port]]
    {
        let backend = pair.connect(&ports, "").await.unwrap();
        backend.migrate().await.unwrap();
        hold(&backend, &claim(&format!("{ports:?}"))).await;
    }

    let error = pair.connect(&[pair.standby.port], "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("does not take writes"), "{error}");
    assert!(error.to_string().contains("name all hosts in the URL"), "{error}");
}

/// As after a failover behind a pooler, which keeps the client's connection while the server that
/// it leads to becomes another one.
#[tokio::test(flavor = "multi_thread")]
async fn statement_that_reaches_a_standby_is_unavailable_in_each_kind_of_transaction() {
    let pair = Pair::start();
    let backend = pair.connect(&[pair.primary.port()], "").await.unwrap();
    backend.migrate().await.unwrap();
    pair.replicated().await;
    let repeatable = "&options=-c%20default_transaction_isolation%3Drepeatable%5C%20read";
    for options in ["", repeatable] {
        let parameters = format!("?target_session_attrs=any{options}");
        let backend = pair.connect(&[pair.standby.port], &parameters).await.unwrap();
        let error = backend.acquire(&[claim("one")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{options}: {error}");
        assert!(error.to_string().contains("does not take writes"), "{options}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_the_standby_has_is_kept_over_a_failover() {
    let pair = Pair::start();
    let backend = pair.connect(&[pair.primary.port(), pair.standby.port], "").await.unwrap();
    backend.migrate().await.unwrap();
    let lease = hold(&backend, &claim("one")).await;
    pair.replicated().await;

    pair.primary.stop().unwrap();
    let error = backend.acquire(&[claim("two")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");

    pair.standby.control(&["promote"]).unwrap();
    let ttl = Ttl::new(Duration::from_mins(1)).unwrap();
    let renewed = backend.renew(&[Renewal::new(lease.clone(), ttl)]).await.unwrap();
    assert_eq!(renewed, [Renewed::Alive]);
    assert!(matches!(ask(&backend, &claim("one")).await, Verdict::Busy(_)));
    let released = backend.release(&[Release::free(lease.clone())]).await.unwrap();
    assert_eq!(released, [Released::Done]);
    assert!(hold(&backend, &claim("one")).await.token > lease.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_the_standby_has_is_kept_over_a_failover_from_a_primary_that_hangs() {
    let pair = Pair::start();
    // So that nothing but being passed over ends the wait for the primary.
    let unhurried = "?connect_timeout=600";
    let ports = [pair.primary.port(), pair.standby.port];
    let backend = pair.connect(&ports, unhurried).await.unwrap();
    backend.migrate().await.unwrap();
    let lease = hold(&backend, &claim("one")).await;
    pair.replicated().await;

    pair.primary.pause().unwrap();
    let ttl = Ttl::new(Duration::from_mins(1)).unwrap();
    let renewals = [Renewal::new(lease, ttl)];
    // Any time is long enough to have asked the primary.
    let given_up = timeout(Duration::from_secs(2), backend.renew(&renewals)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    pair.standby.control(&["promote"]).unwrap();
    let renewed = timeout(Duration::from_mins(1), backend.renew(&renewals)).await;
    pair.primary.resume().unwrap();
    assert_eq!(renewed.unwrap().unwrap(), [Renewed::Alive]);
}

/// What a standby that has to confirm each commit has not confirmed is not told, also when it is asked for again after the
/// server was told to wait no longer; and what was told is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn grant_that_a_synchronous_standby_has_not_confirmed_is_unknown() {
    let pair = Pair::start();
    let ports = [pair.primary.port(), pair.standby.port];
    let backend = pair.connect(&ports, "").await.unwrap();
    backend.migrate().await.unwrap();
    pair.replicated().await;
    let synchronous = "ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()";
    pair.primary.sql(synchronous).unwrap();
    let confirmed = hold(&backend, &claim("confirmed")).await;
    let ttl = Ttl::new(Duration::from_mins(1)).unwrap();
    let renewal = [Renewal::new(confirmed.clone(), ttl)];

    pair.standby.control(&["stop"]).unwrap();
    let asked = [claim("one")];
    for _ in 0..2 {
        // Any time is long enough to have asked the primary.
        let unheard = timeout(Duration::from_secs(2), backend.acquire(&asked)).await;
        assert!(unheard.is_err(), "{unheard:?}");
        let unheard = timeout(Duration::from_secs(2), backend.renew(&renewal)).await;
        assert!(unheard.is_err(), "{unheard:?}");
    }
    pair.standby.control(&["start", "--log=standby.log"]).unwrap();
    let heard = timeout(Duration::from_mins(1), backend.acquire(&asked)).await.unwrap().unwrap();
    let [Verdict::Granted(token)] = heard[..] else { panic!("{heard:?}") };

    pair.primary.stop_hard().unwrap();
    pair.standby.control(&["promote"]).unwrap();
    let renewals = [renewal[0].clone(), Renewal::new(asked[0].lease(token), ttl)];
    let renewed = timeout(Duration::from_mins(1), backend.renew(&renewals)).await;
    assert_eq!(renewed.unwrap().unwrap(), [Renewed::Alive; 2]);
}

/// Whoever cancels the wait for the standby has it answered as a success, with a warning.
#[tokio::test(flavor = "multi_thread")]
async fn commit_whose_wait_for_the_standby_is_cancelled_is_unknown() {
    let pair = Pair::start();
    let backend = pair.connect(&[pair.primary.port()], "").await.unwrap();
    backend.migrate().await.unwrap();
    pair.replicated().await;
    let held = hold(&backend, &claim("held")).await;
    let renewal = [Renewal::new(held, Ttl::new(Duration::from_mins(1)).unwrap())];
    let synchronous = "ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()";
    pair.primary.sql(synchronous).unwrap();
    pair.standby.control(&["stop"]).unwrap();

    let client = pair.client().await;
    // All that wait for it, and that there was one.
    let cancel = async || {
        let sql =
            "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
        while client.query(sql, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asked = [claim("one")];
    let (verdicts, ()) = tokio::join!(backend.acquire(&asked), cancel());
    let error = verdicts.expect_err("a grant that a failover loses was told");
    assert!(error.is_retryable(), "{error}");
    let (renewed, ()) = tokio::join!(backend.renew(&renewal), cancel());
    let error = renewed.expect_err("a renewal that a failover loses was told");
    assert!(error.is_retryable(), "{error}");
}

/// The standby comes first, because it is stopped before the folder that it lies in is removed.
struct Pair {
    standby: Standby,
    primary: Postgres,
}

impl Pair {
    fn start() -> Self {
        let primary = Postgres::start().unwrap();
        Self { standby: Standby::of(&primary), primary }
    }

    /// Connects by a URL that names these ports in this order, and ends in these parameters.
    async fn connect(
        &self,
        ports: &[u16],
        parameters: &str,
    ) -> database_locks_core::Result<PostgresBackend> {
        let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let own = format!("127.0.0.1:{}", self.primary.port());
        let url = self.primary.url().replace(&own, &hosts.join(",")) + parameters;
        PostgresBackend::connect(PostgresConfig::from_url(&url)?).await
    }

    /// A plain connection to the primary.
    async fn client(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(self.primary.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Waits until the standby has everything that was committed so far.
    async fn replicated(&self) {
        let client = self.client().await;
        let sql = "select exists (select from pg_stat_replication
                                  where replay_lsn >= pg_current_wal_lsn())";
        let caught_up = async {
            while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // A standby connects again after five seconds where it did not succeed at once.
        timeout(Duration::from_mins(1), caught_up).await.unwrap();
    }
}

/// A hot standby, in the folder of its primary and as the same user. Should this process be killed,
/// that folder is removed, and a Postgres without its folder ends by itself.
struct Standby {
    folder: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Standby {
    fn of(primary: &Postgres) -> Self {
        let folder = primary.socket_dir().to_owned();
        let mut standby = Self { data: folder.join("standby"), folder, port: 0 };
        let url: tokio_postgres::Config = primary.url().parse().unwrap();
        let password = std::str::from_utf8(url.get_password().unwrap()).unwrap();
        let port = primary.port().to_string();
        let mut copy = standby.tool("pg_basebackup");
        copy.args(["--host=127.0.0.1", "--port", &port, "--username", url.get_user().unwrap()])
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--pgdata"])
            .arg(&standby.data)
            .env("PGPASSWORD", password);
        run(copy).unwrap();

        // Somebody else may take a port that was free a moment ago.
        let started = (0..10).any(|_| standby.start_on_free_port().is_ok());
        let log = || fs::read_to_string(standby.folder.join("standby.log")).unwrap_or_default();
        assert!(started, "the standby does not start; it said:\n{}", log());
        standby
    }

    fn start_on_free_port(&mut self) -> Result<(), String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        self.port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut settings =
            OpenOptions::new().append(true).open(self.data.join("postgresql.conf")).unwrap();
        writeln!(settings, "port = {}", self.port).unwrap();
        writeln!(settings, "listen_addresses = '127.0.0.1'").unwrap();
        writeln!(settings, "unix_socket_directories = ''").unwrap();
        self.control(&["start", "--log=standby.log"])
    }

    /// Has `pg_ctl` do something, and waits until it is done.
    fn control(&self, arguments: &[&str]) -> Result<(), String> {
        let mut control = self.tool("pg_ctl");
        control.args(arguments).args(["--wait", "--pgdata"]).arg(&self.data);
        run(control)
    }

    /// A program of Postgres, run as the user whom the primary's folder belongs to.
    fn tool(&self, program: impl AsRef<OsStr>) -> Command {
        let owner = fs::metadata(&self.folder).unwrap();
        let mut tool = Command::new(POSTGRES.find().unwrap().join(program.as_ref()));
        tool.current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .uid(owner.uid())
            .gid(owner.gid());
        tool
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // It does not run where it failed to start.
        let _ = self.control(&["stop", "--mode=immediate"]);
    }
}

fn run(mut tool: Command) -> Result<(), String> {
    let program = tool.get_program().display().to_string();
    let output = tool.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} ended with {}: {said}", output.status))
}
