//! Many processes on one file, some of which are killed.
//!
//! This test binary starts itself again as each of its workers, with the worker's task as the
//! first argument.

#![expect(clippy::unwrap_used, reason = "a test with a harness of its own")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use database_locks_core::{
    Attempt, Claim, LockBackend, LockName, Release, Released, Result, Token, Ttl, Verdict,
};
use database_locks_sqlite::SqliteBackend;

const CASES: &[(&str, fn())] = &[
    ("sixteen_processes_lose_no_update_though_four_are_killed", no_update_is_lost),
    ("holder_that_is_killed_is_followed_within_its_ttl", killed_holder_is_followed),
    ("ten_processes_create_a_missing_file_at_once", create_missing),
    ("ten_processes_set_up_an_empty_file_at_once", create_from_empty),
    ("folder_that_cannot_be_written_is_a_permission_error", folder_is_read_only),
    ("file_that_cannot_be_written_is_a_permission_error", file_is_read_only),
];

const WORKERS: usize = 16;
const KILLED: usize = 4;
const UPDATES: usize = 25;

/// Longer than any pause that a loaded machine is expected to take between two lines of a worker.
const TTL: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["worker-count", folder, id] => work(count(Path::new(folder), id)),
        ["worker-create", file] => work(create(Path::new(file))),
        ["worker-hold", file] => work(hold(Path::new(file))),
        ["worker-refused", file] => work(refused(Path::new(file))),
        _ => run_cases(&arguments),
    }
}

/// What the standard harness does, as far as cargo and its users ask for it.
fn run_cases(arguments: &[&str]) -> ExitCode {
    let filters: Vec<&&str> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(**filter)) {
            continue;
        }
        if arguments.contains(&"--list") {
            println!("{name}: test");
            continue;
        }
        if std::panic::catch_unwind(case).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed += 1;
        }
    }
    if !arguments.contains(&"--list") {
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {result}. {passed} passed; {failed} failed\n");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn no_update_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("counter"), format!("{:08}", 0)).unwrap();
    let mut workers: Vec<Child> = (0..WORKERS)
        .map(|id| spawn(&["worker-count", text(folder.path()), &id.to_string()]))
        .collect();
    for victim in &mut workers[..KILLED] {
        // Random on purpose: each run kills elsewhere, within the time that the work takes.
        std::thread::sleep(Duration::from_millis(fastrand::u64(20..400)));
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    for worker in &mut workers[KILLED..] {
        assert!(worker.wait().unwrap().success(), "a worker failed");
    }

    // Each worker wrote down, before it wrote the counter, the value and its token. Only the last
    // line of a killed worker may say what it then did not do.
    let mut lines: Vec<(u64, u64)> = Vec::new();
    let mut undone: BTreeSet<(u64, u64)> = BTreeSet::new();
    for id in 0..WORKERS {
        let Ok(journal) = File::open(journal(folder.path(), &id.to_string())) else {
            continue;
        };
        let own: Vec<(u64, u64)> = BufReader::new(journal)
            .lines()
            .filter_map(|line| {
                let line = line.unwrap();
                let (value, token) = line.split_once(' ')?;
                Some((value.parse().ok()?, token.parse().ok()?))
            })
            .collect();
        if id < KILLED {
            undone.extend(own.last());
        } else {
            assert_eq!(own.len(), UPDATES);
        }
        lines.extend(own);
    }
    let counter: u64 = fs::read_to_string(folder.path().join("counter")).unwrap().parse().unwrap();
    let values: BTreeSet<u64> = lines.iter().map(|(value, _)| *value).collect();
    let (done, open): (Vec<_>, Vec<_>) = lines.iter().partition(|line| !undone.contains(line));
    let mut seen = BTreeSet::new();
    for (value, token) in &done {
        assert!(seen.insert(value), "two processes wrote {value}, the second under token {token}");
    }
    assert!(values.iter().copied().eq(1..=values.len() as u64), "a value is missing: {values:?}");
    assert!(done.len() as u64 <= counter && counter <= lines.len() as u64);
    lines.retain(|line| done.contains(line));
    lines.sort_unstable();
    assert!(lines.windows(2).all(|pair| pair[0].1 < pair[1].1), "a token fell: {lines:?}");
    println!(
        "{counter} updates by {WORKERS} processes, {} perhaps cut short by a kill",
        open.len()
    );
}

fn killed_holder_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("locks.db");
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["worker-hold", text(&file)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut token = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut token).unwrap();
    let token: u64 = token.trim().parse().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();

    block_on(async {
        let backend = SqliteBackend::connect(file).await.unwrap();
        let claim = claim("held", Attempt::new());
        let Verdict::Busy(busy) = ask(&backend, &claim).await.unwrap() else {
            panic!("a lease ended with its holder instead of at its expiry");
        };
        let remaining = busy.holder.unwrap().remaining.unwrap();
        assert!(remaining <= TTL);
        tokio::time::sleep(remaining).await;
        let verdict = ask(&backend, &claim).await.unwrap();
        assert!(matches!(verdict, Verdict::Granted(next) if next.get() > token), "{verdict:?}");
    });
}

fn create_missing() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        ten_at_once(&folder.path().join("locks.db"));
    }
}

fn create_from_empty() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("locks.db");
        File::create(&file).unwrap();
        ten_at_once(&file);
    }
}

fn ten_at_once(file: &Path) {
    let workers: Vec<Child> = (0..10).map(|_| spawn(&["worker-create", text(file)])).collect();
    for mut worker in workers {
        assert!(worker.wait().unwrap().success(), "a worker could not create or use the file");
    }
    let header = fs::read(file).unwrap();
    assert_eq!(header[18..20], [2, 2], "the file is not in WAL mode");
}

fn folder_is_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    set_mode(&locked, 0o555);
    let message = refusal(folder.path(), &locked.join("locks.db"));
    assert!(message.contains("Permission") && message.contains("folder"), "{message}");
}

fn file_is_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    set_mode(&open, 0o777);
    let file = open.join("locks.db");
    drop(block_on(SqliteBackend::connect(file.clone())).unwrap());
    set_mode(&file, 0o444);
    let message = refusal(folder.path(), &file);
    assert!(message.contains("Permission") && message.contains("access to the file"), "{message}");
}

/// What a process that is not root is told. Root may write everywhere, so as root this binary is
/// copied to where nobody can start it, and started as nobody.
fn refusal(folder: &Path, file: &Path) -> String {
    let mut command = if rustix::process::getuid().is_root() {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65_534;
        set_mode(folder, 0o755);
        let binary = folder.join("worker");
        fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
        let mut command = Command::new(binary);
        command.uid(NOBODY).gid(NOBODY);
        command
    } else {
        Command::new(std::env::current_exe().unwrap())
    };
    let output = command.args(["worker-refused", text(file)]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Adds to the counter, each time by a read and a write that only the lock keeps together.
async fn count(folder: &Path, id: &str) -> Result<()> {
    let backend = SqliteBackend::connect(folder.join("locks.db")).await?;
    let mut journal =
        OpenOptions::new().create(true).append(true).open(journal(folder, id)).unwrap();
    let counter = folder.join("counter");
    let mut done = 0;
    while done < UPDATES {
        let claim = claim("counter", Attempt::new());
        let (token, asked) = wait_for(&backend, &claim).await?;
        let value: u64 = fs::read_to_string(&counter).unwrap().parse::<u64>().unwrap() + 1;
        tokio::task::yield_now().await;
        // As the engine's guards do: who may have overslept its lease touches nothing.
        if asked.elapsed() < TTL / 2 {
            journal.write_all(format!("{value} {token}\n").as_bytes()).unwrap();
            // One write of one length: a kill leaves the old value or the new one.
            let mut file = OpenOptions::new().write(true).open(&counter).unwrap();
            file.write_all(format!("{value:08}").as_bytes()).unwrap();
            done += 1;
        }
        let lease = claim.lease(token);
        assert_eq!(backend.release(&[Release::free(lease)]).await?, [Released::Done]);
    }
    Ok(())
}

async fn create(file: &Path) -> Result<()> {
    let backend = SqliteBackend::connect(file).await?;
    wait_for(&backend, &claim(&format!("of {}", std::process::id()), Attempt::new())).await?;
    Ok(())
}

async fn hold(file: &Path) -> Result<()> {
    let backend = SqliteBackend::connect(file).await?;
    let (token, _) = wait_for(&backend, &claim("held", Attempt::new())).await?;
    println!("{token}");
    std::future::pending().await
}

async fn refused(file: &Path) -> Result<()> {
    let error = SqliteBackend::connect(file).await.expect_err("it was not refused");
    println!("{:?} {error}", error.kind());
    Ok(())
}

/// Polls far more often than the engine would, to have the processes collide. Answers also since
/// when the lease counts.
async fn wait_for(backend: &SqliteBackend, claim: &Claim) -> Result<(Token, Instant)> {
    loop {
        let asked = Instant::now();
        match ask(backend, claim).await? {
            Verdict::Granted(token) => return Ok((token, asked)),
            Verdict::Busy(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(backend: &SqliteBackend, claim: &Claim) -> Result<Verdict> {
    Ok(backend.acquire(std::slice::from_ref(claim)).await?.remove(0))
}

fn claim(name: &str, attempt: Attempt) -> Claim {
    Claim::new(LockName::new(name).unwrap()).with_attempt(attempt).with_ttl(Ttl::new(TTL).unwrap())
}

fn work(task: impl Future<Output = Result<()>>) -> ExitCode {
    match block_on(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker {}: {error}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

fn spawn(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(arguments).spawn().unwrap()
}

fn journal(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("journal-{id}"))
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
