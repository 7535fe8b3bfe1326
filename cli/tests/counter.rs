//! Sixteen processes count without any synchronisation but `dblock run`, and some are killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use database_locks_test_servers::Postgres;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Reads the list of runs so far, dawdles, and writes it back with its own id: whoever does so at
/// the same time as another loses one of the two. The marks tell that two were inside at once; a
/// mark that was left behind belongs to a run whose process has to be dead by now.
const COUNT: &str = r#"
for mark in inside.*; do
    [ -e "$mark" ] || continue
    leader=${mark#inside.}
    if [ -d "/proc/$leader" ] && ! grep -q '^State:.Z' "/proc/$leader/status" 2>/dev/null; then
        echo "$1 overlaps $leader" >> overlaps
    fi
    rm -f "$mark"
done
: > "inside.$$"
runs=$(cat counter)
sleep 0.02
printf '%s\n%s\n' "$runs" "$1" > "next.$$"
mv "next.$$" counter
echo "$1 $DATABASE_LOCKS_TOKEN" >> completed
rm -f "inside.$$"
"#;

#[test]
fn sixteen_processes_lose_no_update_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("locks.db").display());
    count_with_sixteen(folder.path(), &url, false);
}

#[test]
fn sixteen_processes_lose_no_update_on_sqlite_though_some_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("locks.db").display());
    count_with_sixteen(folder.path(), &url, true);
}

#[test]
fn sixteen_processes_lose_no_update_on_postgres() {
    count_on_postgres(false);
}

#[test]
fn sixteen_processes_lose_no_update_on_postgres_though_some_are_killed() {
    count_on_postgres(true);
}

fn count_on_postgres(some_are_killed: bool) {
    // Twice sixteen processes at once were seen to lose leases of 2 s on two cores: for want of
    // processor time, as far as could be told.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let database = Postgres::shared().unwrap().database().unwrap();
    let migrated = Command::new(env!("CARGO_BIN_EXE_dblock"))
        .arg("migrate")
        .env("DATABASE_LOCKS_URL", database.url())
        .status();
    assert!(migrated.unwrap().success());
    count_with_sixteen(folder.path(), database.url(), some_are_killed);
}

fn count_with_sixteen(folder: &Path, url: &str, some_are_killed: bool) {
    const PROCESSES: usize = 16;
    const ROUNDS: usize = 4;
    fs::write(folder.join("counter"), "").unwrap();
    let workers: Vec<_> = (0..PROCESSES)
        .map(|worker| {
            let (folder, url) = (folder.to_owned(), url.to_owned());
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    let mut child = start(&folder, &url, &format!("{worker}.{round}"));
                    let is_victim = some_are_killed && worker % 4 == round % 4;
                    if is_victim {
                        // A random moment: before, while, or after it holds the lock.
                        std::thread::sleep(Duration::from_millis(fastrand::u64(0..800)));
                        let pid = Pid::from_raw(child.id().cast_signed());
                        kill(pid, Signal::SIGKILL).unwrap();
                        child.wait().unwrap();
                    } else {
                        let status = child.wait().unwrap();
                        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                        assert!(status.success(), "{worker}.{round}: {status}\n{log}");
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    assert_eq!(read("overlaps"), "");
    let counter = read("counter");
    let counted: Vec<&str> = counter.split_whitespace().collect();
    let completed = read("completed");
    let mut last_token = 0;
    for line in completed.lines() {
        let (run, token) = line.split_once(' ').unwrap();
        assert!(counted.contains(&run), "the update of {run} is lost");
        let token: u64 = token.parse().unwrap();
        assert!(token > last_token, "the token of {run} is not higher than the one before");
        last_token = token;
    }
    let survivors = PROCESSES * ROUNDS - if some_are_killed { PROCESSES * ROUNDS / 4 } else { 0 };
    assert!(completed.lines().count() >= survivors);
    assert!(counted.len() >= completed.lines().count());
}

fn start(folder: &Path, url: &str, run: &str) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_dblock"))
        .args(["run", "--ttl", "2s", "counter", "--", "sh", "-c", COUNT, "sh", run])
        .current_dir(folder)
        .env("DATABASE_LOCKS_URL", url)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}
