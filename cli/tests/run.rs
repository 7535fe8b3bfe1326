//! `dblock run` as its users see it: real processes on a real SQLite file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{DBLOCK, command};

/// A fresh SQLite file, in a folder that also serves as a place for marks.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn dblock(&self, arguments: &[&str]) -> Command {
        let mut command = command(DBLOCK);
        self.at(&mut command).args(arguments);
        command
    }

    /// Has a command run here, on the file.
    fn at<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.0.path())
            .env("DATABASE_LOCKS_URL", format!("sqlite:{}", self.path("locks.db").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.dblock(arguments).output().unwrap()
    }

    fn code(&self, arguments: &[&str]) -> i32 {
        self.output(arguments).status.code().unwrap()
    }

    /// A process id that a command wrote to a file, once it has.
    fn pid(&self, file: &str) -> Pid {
        let path = self.path(file);
        await_that("a process id is written", || read(&path).ends_with('\n'));
        Pid::from_raw(read(&path).trim().parse().unwrap())
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Waits with a bound that only a broken program, or a machine that stands still, exceeds.
fn await_that(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// A process that is dead but not waited for by its parent does not run.
fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

const GRANDCHILD: &str = "sleep 600 & echo $! > grandchild; wait";

#[test]
fn the_exit_code_is_that_of_the_command() {
    let place = Place::new();
    assert_eq!(place.code(&["run", "n", "--", "true"]), 0);
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", "kill -TERM $$"]), 143);
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", "kill -KILL $$"]), 137);
}

#[test]
fn what_cannot_run_says_so() {
    let place = Place::new();
    fs::write(place.path("plain"), "no program").unwrap();
    assert_eq!(place.code(&["run", "n", "--", "no-such-command-anywhere"]), 127);
    assert_eq!(place.code(&["run", "n", "--", "./missing"]), 127);
    assert_eq!(place.code(&["run", "n", "--", "./plain"]), 126);
    assert_eq!(place.code(&["run", "n", "--", "/"]), 126);
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0, "the lock is free");
}

#[test]
fn bad_usage_is_64() {
    let place = Place::new();
    let long = "x".repeat(256);
    for arguments in [
        &[][..],
        &["run", "n"],
        &["run", "", "--", "true"],
        &["run", &long, "--", "true"],
        &["run", "a\nb", "--", "true"],
        &["run", "--ttl", "99ms", "n", "--", "true"],
        &["run", "--ttl", "25h", "n", "--", "true"],
        &["run", "--timeout", "soon", "n", "--", "true"],
        &["run", "--retry", "often", "n", "--", "true"],
        &["run", "--retry", "1s", "--no-wait", "n", "--", "true"],
        &["run", "--ttl", "2", "--renew-before", "2", "n", "--", "true"],
        &["run", "--no-renew", "--renew-before", "1", "n", "--", "true"],
        &["run", "--status-file", "", "n", "--", "true"],
        &["run", "--no-such-option", "n", "--", "true"],
        &["run", "--url", "oracle://x", "n", "--", "true"],
        &["list", "--url", "no-url"],
    ] {
        assert_eq!(place.code(arguments), 64, "{arguments:?}");
    }
    assert_eq!(place.code(&["--help"]), 0);
}

#[test]
fn a_lease_that_expired_is_respected_for_a_grace() {
    let place = Place::new();
    let sleep = ["run", "--ttl", "5s", "n", "--", "sh", "-c", "echo $$ > held; exec sleep 600"];
    let mut holder = place.dblock(&sleep).spawn().unwrap();
    place.pid("held");
    holder.kill().unwrap();
    holder.wait().unwrap();
    await_that("the lease expires", || !place.output(&["list", "--json"]).stdout.contains(&b'n'));
    assert_eq!(place.code(&["run", "--no-wait", "--grace", "1h", "n", "--", "true"]), 75);
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0);
}

#[test]
fn a_lock_that_is_held_is_not_obtained() {
    let place = Place::new();
    let mut holder =
        place.dblock(&["run", "n", "--", "sh", "-c", "echo $$ > held; exec sleep 600"]);
    let mut holder = holder.spawn().unwrap();
    place.pid("held");
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 75);
    let waited = place.output(&["run", "--timeout", "3s", "n", "--", "true"]);
    assert_eq!(waited.status.code(), Some(75));
    let said = String::from_utf8(waited.stderr).unwrap();
    assert!(said.contains(&format!(".{}", holder.id())), "names the holder: {said}");
    let chosen = ["run", "--no-wait", "--not-obtained-exit", "9", "n", "--", "true"];
    assert_eq!(place.code(&chosen), 9);
    let listed = place.output(&["list", "--json"]).stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed[0]["name"], "n");
    assert!(listed[0]["token"].as_u64().unwrap() > 0);
    assert!(listed[0]["remaining_seconds"].as_f64().unwrap() > 0.0);
    kill(pid(&holder), Signal::SIGTERM).unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(143));
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0);
}

#[test]
fn the_streams_and_the_environment_reach_the_command() {
    let place = Place::new();
    let script = "cat; echo \"$DATABASE_LOCKS_NAME $DATABASE_LOCKS_TOKEN\"; echo oops >&2; ls /proc/self/fd | wc -l";
    let mut child = place
        .dblock(&["run", "n", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\0bytes\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "\0bytes");
    let token = lines[1].strip_prefix("n ").unwrap();
    assert!(token.parse::<u64>().unwrap() > 0);
    assert_eq!(output.stderr, b"oops\n");
}

#[test]
fn signals_are_passed_on() {
    let place = Place::new();
    for (name, signal) in [
        ("TERM", Signal::SIGTERM),
        ("HUP", Signal::SIGHUP),
        ("INT", Signal::SIGINT),
        ("QUIT", Signal::SIGQUIT),
        ("USR1", Signal::SIGUSR1),
        ("USR2", Signal::SIGUSR2),
        ("WINCH", Signal::SIGWINCH),
    ] {
        let mark = format!("ready-{name}");
        let script = format!(
            "trap 'echo got; exit 21' {name}; echo $$ > {mark}; while :; do sleep 0.02; done"
        );
        let child = place.dblock(&["run", "n", "--", "sh", "-c", &script]).spawn().unwrap();
        place.pid(&mark);
        kill(pid(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(21), "{name}");
        assert_eq!(output.stdout, b"got\n", "{name}");
    }
}

#[test]
fn what_is_ignored_from_the_start_stays_ignored() {
    // As it is under nohup, and in the background of a script.
    let place = Place::new();
    let mut holder = place
        .dblock(&["run", "n", "--", "sh", "-c", "echo $$ > held; exec sleep 600"])
        .spawn()
        .unwrap();
    place.pid("held");
    let log = place.path("log");
    let mut ignoring = Command::new("env");
    ignoring.args(["--ignore-signal=HUP,INT,QUIT", DBLOCK, "run", "n", "--", "sh", "-c"]);
    let waiter = place
        .at(&mut ignoring)
        .arg("kill -HUP $$; kill -INT $$; kill -QUIT $$; echo lives")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    await_that("the waiter waits", || read(&log).contains("waiting"));
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        kill(pid(&waiter), signal).unwrap();
    }
    kill(pid(&holder), Signal::SIGTERM).unwrap();
    holder.wait().unwrap();
    let output = waiter.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"lives\n");
}

#[test]
fn a_signal_ends_the_wait() {
    let place = Place::new();
    let mut holder = place
        .dblock(&["run", "n", "--", "sh", "-c", "echo $$ > held; exec sleep 600"])
        .spawn()
        .unwrap();
    place.pid("held");
    let log = place.path("log");
    let mut waiter = place
        .dblock(&["run", "n", "--", "touch", "ran"])
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    await_that("the waiter waits", || read(&log).contains("waiting"));
    kill(pid(&waiter), Signal::SIGTERM).unwrap();
    assert_eq!(waiter.wait().unwrap().code(), Some(143));
    kill(pid(&holder), Signal::SIGTERM).unwrap();
    holder.wait().unwrap();
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0);
    assert!(!place.path("ran").exists());
}

#[test]
fn kill_9_of_dblock_ends_the_whole_group() {
    let place = Place::new();
    let mut holder =
        place.dblock(&["run", "--ttl", "3s", "n", "--", "sh", "-c", GRANDCHILD]).spawn().unwrap();
    let grandchild = place.pid("grandchild");
    kill(pid(&holder), Signal::SIGKILL).unwrap();
    holder.wait().unwrap();
    let check =
        format!("test ! -d /proc/{grandchild} || grep -q '^State:.Z' /proc/{grandchild}/status");
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", &check]), 0);
}

#[test]
fn a_dblock_that_is_stopped_past_its_ttl_loses_its_command_first() {
    let place = Place::new();
    let holder =
        place.dblock(&["run", "--ttl", "2s", "n", "--", "sh", "-c", GRANDCHILD]).spawn().unwrap();
    let grandchild = place.pid("grandchild");
    kill(pid(&holder), Signal::SIGSTOP).unwrap();
    let check =
        format!("test ! -d /proc/{grandchild} || grep -q '^State:.Z' /proc/{grandchild}/status");
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", &check]), 0);
    kill(pid(&holder), Signal::SIGCONT).unwrap();
    let output = holder.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8(output.stderr).unwrap().contains("lost the lock"));
}

#[test]
fn a_guardian_that_dies_is_replaced() {
    let place = Place::new();
    let mut holder =
        place.dblock(&["run", "--ttl", "1m", "n", "--", "sh", "-c", GRANDCHILD]).spawn().unwrap();
    let grandchild = place.pid("grandchild");
    let first = guardian(&holder).unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    await_that("another guardian comes", || guardian(&holder).is_some_and(|other| other != first));
    assert!(runs(grandchild));
    kill(pid(&holder), Signal::SIGTERM).unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(143));
}

/// The process that guards the command of this `dblock`.
fn guardian(holder: &Child) -> Option<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    read(Path::new(&children)).split_whitespace().find_map(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        line.contains("__guard").then(|| Pid::from_raw(child.parse().unwrap()))
    })
}

#[tokio::test]
async fn a_loss_while_the_guardian_is_replaced_ends_the_command() {
    use database_locks::{Connect, Locks};
    let place = Place::new();
    let often =
        ["run", "--ttl", "60s", "--renew-before", "59.5s", "n", "--", "sh", "-c", GRANDCHILD];
    let holder = place.dblock(&often).spawn().unwrap();
    let grandchild = place.pid("grandchild");
    let url = format!("sqlite:{}", place.path("locks.db").display());
    let locks = Locks::connect(&url).await.unwrap();
    let held = locks.list("n").await.unwrap();
    let first = guardian(&holder).unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    let second = loop {
        if let Some(other) = guardian(&holder).filter(|other| *other != first) {
            break other;
        }
    };
    // As soon as it is seen, so that it has hardly ever said that it is ready.
    kill(second, Signal::SIGSTOP).unwrap();
    assert!(locks.force_release(&held[0].lease).await.unwrap());
    let output = holder.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    assert!(!runs(grandchild));
    kill(second, Signal::SIGCONT).unwrap();
    await_that("the guardian has gone as well", || !runs(second));
    locks.shutdown().await;
}

#[test]
fn what_is_left_of_the_group_is_ended_before_the_release() {
    let place = Place::new();
    let script = "(trap '' TERM; echo $$ > leader; exec sleep 600) & echo $! > left";
    assert_eq!(place.code(&["run", "n", "--", "sh", "-c", script]), 0);
    assert!(!runs(place.pid("left")));
}

#[test]
fn a_pipe_that_the_user_handed_over_is_not_kept_open() {
    let place = Place::new();
    let script = format!("{DBLOCK} run n -- echo done | cat");
    let mut shell = command("sh");
    shell
        .args(["-c", &script])
        .env("DATABASE_LOCKS_URL", format!("sqlite:{}", place.path("l.db").display()));
    assert_eq!(shell.output().unwrap().stdout, b"done\n");
}

#[tokio::test]
async fn a_lease_that_is_released_by_force_ends_the_command() {
    use database_locks::{Connect, Locks};
    let place = Place::new();
    // Renewed twice a second, and far from expiring.
    let often =
        ["run", "--ttl", "60s", "--renew-before", "59.5s", "n", "--", "sh", "-c", GRANDCHILD];
    let holder = place.dblock(&often).spawn();
    let holder = holder.unwrap();
    let grandchild = place.pid("grandchild");
    let url = format!("sqlite:{}", place.path("locks.db").display());
    let locks = Locks::connect(&url).await.unwrap();
    let held = locks.list("n").await.unwrap();
    assert!(locks.force_release(&held[0].lease).await.unwrap());
    let output = holder.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8(output.stderr).unwrap().contains("by force"));
    assert!(!runs(grandchild));
    locks.shutdown().await;
}

#[test]
fn a_password_is_never_shown() {
    let place = Place::new();
    for url in [
        "postgres://user:geheim@127.0.0.1:1/none",
        "postgres://user:geheim@127.0.0.1:notaport/none",
        "oracle://user:geheim@host/none",
    ] {
        for arguments in [&["run", "n", "--", "true"][..], &["list"], &["migrate"], &["--help"]] {
            let mut command = place.dblock(arguments);
            let output = command.env("DATABASE_LOCKS_URL", url).env("RUST_LOG", "trace").output();
            let output = output.unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(!String::from_utf8_lossy(&said).contains("geheim"), "{url} {arguments:?}");
        }
    }
    let mut away = place.dblock(&["run", "--timeout", "1s", "n", "--", "true"]);
    away.env("DATABASE_LOCKS_URL", "postgres://user:geheim@127.0.0.1:1/none");
    assert_eq!(away.output().unwrap().status.code(), Some(69));
}

#[test]
fn the_default_is_a_file_in_the_state_folder() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let mut command = place.dblock(&["run", "n", "--", "true"]);
    command.env_remove("DATABASE_LOCKS_URL").env("XDG_STATE_HOME", place.path("state"));
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    let folder = place.path("state/database-locks");
    assert!(folder.join("locks.db").exists());
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    command.env_remove("XDG_STATE_HOME").env_remove("HOME");
    assert_eq!(command.output().unwrap().status.code(), Some(78));
}

#[test]
fn migrate_prints_or_creates_the_tables() {
    let place = Place::new();
    let printed = place.output(&["migrate", "--print"]);
    assert!(String::from_utf8(printed.stdout).unwrap().contains("CREATE TABLE"));
    assert!(!place.path("locks.db").exists());
    assert_eq!(place.code(&["migrate"]), 0);
    assert_eq!(place.code(&["migrate"]), 0);
    assert!(place.path("locks.db").exists());
}

/// What becomes another user cannot be killed, and must not be left behind without the lock.
#[test]
fn a_command_that_becomes_another_user_keeps_the_lock() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root can make a program that changes its user");
        return;
    }
    let place = Place::new();
    let mode = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(place.path("."), 0o777);
    fs::copy(DBLOCK, place.path("dblock")).unwrap();
    fs::copy("/usr/bin/setpriv", place.path("become-root")).unwrap();
    mode(place.path("become-root"), 0o4755);
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut probe = command("setpriv");
    place.at(&mut probe).args(as_nobody).args([
        "./become-root",
        "--reuid=0",
        "./dblock",
        "--version",
    ]);
    let probe = probe.output().unwrap();
    assert!(
        probe.status.success(),
        "a program cannot change its user here, so that this cannot be tested: let TMPDIR name a folder that others may \
         enter, of a file system that is mounted without nosuid and noexec: {}",
        String::from_utf8_lossy(&probe.stderr)
    );
    let mut nobody = command("setpriv");
    place.at(&mut nobody).args(as_nobody).args(["./dblock", "run", "n", "--", "sh", "-c"]).arg(
        "./become-root --reuid=0 --clear-groups sh -c 'echo $$ > other; exec sleep 600' & \
         while [ ! -s other ]; do sleep 0.01; done",
    );
    let told = fs::File::create(place.path("told")).unwrap();
    let mut dblock = nobody.stderr(told).spawn().unwrap();
    let other = place.pid("other");
    // Five seconds to end by itself, and five after SIGKILL.
    await_that("it is named", || read(&place.path("told")).contains(&format!("{other} (sleep)")));
    assert!(runs(other));
    assert_eq!(dblock.try_wait().unwrap(), None, "{}", read(&place.path("told")));
    assert_ne!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0, "it is still held");
    kill(other, Signal::SIGKILL).unwrap();
    assert_eq!(dblock.wait().unwrap().code(), Some(0));
    assert_eq!(place.code(&["run", "--no-wait", "n", "--", "true"]), 0);
}

#[test]
fn as_the_first_process_of_a_container_it_waits_for_orphans() {
    let place = Place::new();
    let mut container = command("unshare");
    place.at(&mut container).args(["--pid", "--fork", "--mount-proc"]);
    if !rustix::process::geteuid().is_root() {
        container.arg("--map-root-user");
    }
    container.args([DBLOCK, "run", "n", "--", "sh", "-c"]).arg(
        "(sleep 0.1 &); sleep 1; cat /proc/[0-9]*/stat | grep -c ') Z ' > zombies; echo $$ > ended",
    );
    let output = container.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(&place.path("zombies")).trim(), "0");
    assert_ne!(read(&place.path("ended")), "");
}
