//! What can be set for `dblock`, on its command line and in its environment: real processes on a real
//! SQLite file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{DBLOCK, command};

const ENABLED: &str = "DATABASE_LOCKS_ENABLED";
const STATUS_FILE: &str = "DATABASE_LOCKS_STATUS_FILE";
const TABLE: &str = "DATABASE_LOCKS_TABLE";
const TTL: &str = "DATABASE_LOCKS_DEFAULT_TTL";
const TTL_RENEW: &str = "DATABASE_LOCKS_DEFAULT_TTL_RENEW";
const URL: &str = "DATABASE_LOCKS_URL";

/// A fresh SQLite file, in a folder that also serves as a place for marks.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// `dblock` with these settings in its environment, and these arguments.
    fn dblock(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Command {
        let mut command = command(DBLOCK);
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env(URL, format!("sqlite:{}", self.path("locks.db").display()))
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Output {
        self.dblock(settings, arguments).output().unwrap()
    }

    fn code(&self, settings: &[(&str, &str)], arguments: &[&str]) -> i32 {
        self.output(settings, arguments).status.code().unwrap()
    }

    /// Runs a shell script, under the lock "n", that goes on until the file "go" is there.
    fn hold(&self, settings: &[(&str, &str)], options: &[&str]) -> Child {
        // It ends with this place, too.
        let script = "touch held; while test -e held && ! test -e go; do sleep 0.02; done";
        let arguments = [&["run"], options, &["n", "--", "sh", "-c", script]].concat();
        let child = self.dblock(settings, &arguments).spawn().unwrap();
        await_that("the lock is held", || self.path("held").exists());
        child
    }

    fn let_go(&self, mut holder: Child) {
        fs::write(self.path("go"), "").unwrap();
        assert_eq!(holder.wait().unwrap().code(), Some(0));
    }

    /// How many seconds the lease of "n" has left.
    fn remaining(&self) -> f64 {
        let listed = self.output(&[], &["list", "--json", "n"]).stdout;
        let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
        listed[0]["remaining_seconds"].as_f64().unwrap()
    }
}

/// Waits with a bound that only a broken program, or a machine that stands still, exceeds.
fn await_that(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn the_status_file_shows_waiting_running_and_idle() {
    let settings: &[(&str, &str)] = &[(STATUS_FILE, "status")];
    for (settings, options) in [(settings, &[][..]), (&[], &["--status-file", "status"])] {
        let place = Place::new();
        let status = place.path("status");
        let holder = place.hold(&[], &[]);
        fs::write(&status, "2").unwrap();
        let script = "until test $(cat status) = 2; do sleep 0.02; done; touch running; cat";
        let arguments = [&["run"], options, &["n", "--", "sh", "-c", script]].concat();
        let mut waiter = place.dblock(settings, &arguments).stdin(Stdio::piped()).spawn().unwrap();
        await_that("it waits", || read(&status) == "1");
        place.let_go(holder);
        await_that("it runs", || place.path("running").exists());
        assert_eq!(read(&status), "2");
        drop(waiter.stdin.take());
        assert_eq!(waiter.wait().unwrap().code(), Some(0));
        assert_eq!(read(&status), "0");
    }
}

#[test]
fn the_status_file_shows_idle_however_it_ends() {
    let place = Place::new();
    let status = place.path("status");
    let file: &[(&str, &str)] = &[(STATUS_FILE, "status")];

    assert_eq!(place.code(file, &["run", "n", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(read(&status), "0");

    let mut running = place.hold(file, &[]);
    await_that("it runs", || read(&status) == "2");
    signal(&running, Signal::SIGTERM);
    assert_eq!(running.wait().unwrap().code(), Some(143));
    assert_eq!(read(&status), "0");
    fs::remove_file(place.path("held")).unwrap();

    let holder = place.hold(&[], &[]);
    let mut waiting = place.dblock(file, &["run", "n", "--", "true"]).spawn().unwrap();
    await_that("it waits", || read(&status) == "1");
    signal(&waiting, Signal::SIGINT);
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    assert_eq!(read(&status), "0");

    assert_eq!(place.code(file, &["run", "--timeout", "2", "n", "--", "true"]), 75);
    assert_eq!(read(&status), "0");
    assert_eq!(place.code(file, &["run", "--no-wait", "n", "--", "true"]), 75);
    assert_eq!(read(&status), "0");
    place.let_go(holder);

    let lost = ["run", "--ttl", "0.3", "--no-renew", "n", "--", "sleep", "600"];
    assert_eq!(place.code(file, &lost), 70);
    assert_eq!(read(&status), "0");

    fs::write(&status, "2").unwrap();
    let url = "postgres://127.0.0.1:1/none";
    assert_eq!(place.code(file, &["run", "--url", url, "n", "--", "true"]), 69);
    assert_eq!(read(&status), "0", "what a crash left behind is gone all the same");
}

#[test]
fn the_status_file_belongs_to_one_process() {
    let place = Place::new();
    let script = "echo \"${DATABASE_LOCKS_STATUS_FILE-unset}\"";
    let run = |options: &[&str]| {
        let arguments = [&["run"], options, &["n", "--", "sh", "-c", script]].concat();
        String::from_utf8(place.output(&[(STATUS_FILE, "status")], &arguments).stdout).unwrap()
    };
    assert_eq!(run(&[]), "unset\n");
    assert_eq!(run(&["--status-file", "status"]), "unset\n", "it is the same file");
    fs::remove_file(place.path("status")).unwrap();
    assert_eq!(run(&["--status-file", "ours"]), "status\n", "that one is left to the command");
    assert_eq!(read(&place.path("ours")), "0");
    assert!(!place.path("status").exists());

    let holder = place.hold(&[(STATUS_FILE, "status")], &[]);
    await_that("it runs", || read(&place.path("status")) == "2");
    assert_eq!(place.code(&[(STATUS_FILE, "status")], &["list"]), 0);
    assert_eq!(place.code(&[(STATUS_FILE, "status")], &["migrate"]), 0);
    assert_eq!(read(&place.path("status")), "2");
    place.let_go(holder);
}

#[test]
fn the_ttl_is_the_flags_else_the_environments() {
    for (settings, options, about) in [
        (&[][..], &[][..], 10.0),
        (&[(TTL, "3600")], &[], 3600.0),
        (&[(TTL, "1h")], &["--ttl", "600"], 600.0),
    ] {
        let place = Place::new();
        let holder = place.hold(settings, options);
        let remaining = place.remaining();
        assert!(remaining <= about && remaining > about / 10.0, "{options:?}: {remaining}");
        place.let_go(holder);
    }
}

#[test]
fn renewals_come_when_they_are_due() {
    for (settings, options) in [
        (&[(TTL, "10m"), (TTL_RENEW, "599")][..], &[][..]),
        (&[(TTL, "10m"), (TTL_RENEW, "2s")], &["--renew-before", "9m59s"]),
    ] {
        let place = Place::new();
        let holder = place.hold(settings, options);
        // Otherwise a lease of that length is renewed twice a minute.
        let started = Instant::now();
        let mut last = place.remaining();
        loop {
            let remaining = place.remaining();
            if remaining > last {
                break;
            }
            last = remaining;
            assert!(started.elapsed() < Duration::from_secs(15), "not renewed in time");
        }
        place.let_go(holder);
    }
}

#[test]
fn a_lease_that_is_not_renewed_ends_the_command() {
    let place = Place::new();
    let run = ["run", "--ttl", "300ms", "--no-renew", "n", "--", "sleep", "600"];
    let output = place.output(&[], &run);
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8(output.stderr).unwrap().contains("lost the lock"));
}

#[test]
fn a_busy_lock_is_asked_for_again_as_told() {
    let place = Place::new();
    let holder = place.hold(&[], &[]);
    assert_eq!(place.code(&[], &["run", "--retry", "never", "n", "--", "true"]), 75);
    assert_eq!(place.code(&[], &["run", "--retry", "0", "n", "--", "true"]), 75);
    let wait = |retry, timeout: &[&str]| {
        let log = fs::File::create(place.path(retry)).unwrap();
        let run = [&["run", "--retry", retry], timeout, &["n", "--", "true"]].concat();
        let waiter = place.dblock(&[], &run).stderr(log).spawn().unwrap();
        await_that("it waits", || read(&place.path(retry)).contains("waiting"));
        waiter
    };
    let (mut seldom, mut often) = (wait("1h", &["--timeout", "4"]), wait("50ms", &[]));
    place.let_go(holder);
    assert_eq!(often.wait().unwrap().code(), Some(0));
    assert_eq!(seldom.wait().unwrap().code(), Some(75), "it did not look again in time");
}

#[test]
fn locks_can_be_switched_off() {
    let micros = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let place = Place::new();
    let holder = place.hold(&[], &[]);
    let off = [(ENABLED, "False"), (STATUS_FILE, "status"), (URL, "postgres://127.0.0.1:1/none")];
    let script = "until test $(cat status) = 2; do sleep 0.02; done; echo $DATABASE_LOCKS_NAME \
                  $DATABASE_LOCKS_TOKEN; exit 3";
    let before = micros();
    let output = place.output(&off, &["run", "n", "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("locks are switched off"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let token: u128 = text.trim().strip_prefix("n ").unwrap().parse().unwrap();
    assert!((before..=micros()).contains(&token), "{token}");
    assert_eq!(read(&place.path("status")), "0");

    let state = place.path("state");
    let mut nowhere = place.dblock(&[(ENABLED, "0")], &["run", "n", "--", "true"]);
    nowhere.env_remove(URL).env("XDG_STATE_HOME", &state);
    assert_eq!(nowhere.output().unwrap().status.code(), Some(0));
    assert!(!state.exists());

    let listed = place.output(&[(ENABLED, "0")], &["list", "--json"]).stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed[0]["name"], "n", "who looks wants to see");
    assert_eq!(place.code(&[(ENABLED, "yes")], &["run", "--no-wait", "n", "--", "true"]), 75);
    place.let_go(holder);
}

#[test]
fn another_table_holds_other_locks() {
    let place = Place::new();
    let holder = place.hold(&[], &[]);
    let run = ["run", "--no-wait", "n", "--", "true"];
    assert_eq!(place.code(&[], &run), 75);
    assert_eq!(place.code(&[(TABLE, "mine")], &run), 0);
    let listed = place.output(&[(TABLE, "mine")], &["list", "--json"]).stdout;
    assert_eq!(String::from_utf8(listed).unwrap().trim(), "[]");
    let printed = place.output(&[(TABLE, "mine")], &["migrate", "--print"]).stdout;
    assert!(String::from_utf8(printed).unwrap().contains("mine"));
    place.let_go(holder);
}

#[test]
fn malformed_settings_are_named() {
    let place = Place::new();
    for (variable, value) in [
        (ENABLED, "maybe"),
        (TTL, "soon"),
        (TTL, "1ms"),
        (TTL_RENEW, "-1"),
        (TABLE, "no table"),
        (URL, "geheim"),
    ] {
        let output = place.output(&[(variable, value)], &["run", "n", "--", "true"]);
        assert_eq!(output.status.code(), Some(64), "{variable}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(variable) && !said.contains("geheim"), "{said}");
        assert!(!said.contains("::"), "no Rust for people who write settings: {said}");
    }
    let output = place.output(&[], &["run", "--url", "geheim", "n", "--", "true"]);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(URL) && !said.contains("geheim"), "not the variable's fault: {said}");
}
