//! Processes of both sides, mixed, count in a file without any synchronisation but one lock.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use database_locks::{Connect, Locks, migrate};
use tempfile::TempDir;

use crate::project::{PATIENCE, Project, scripts};
use crate::{Kind, on_each_server};

on_each_server!(four_processes_of_each_side_lose_no_update);

/// How many processes each side has.
const PROCESSES: usize = 4;
/// How often each of them counts.
const ROUNDS: usize = 63;

/// Where set, this is a process of the fleet, which counts in that folder.
const FOLDER: &str = "DATABASE_LOCKS_TEST_FLEET";
/// The database of such a process.
const URL: &str = "DATABASE_LOCKS_TEST_FLEET_URL";

async fn four_processes_of_each_side_lose_no_update(kind: Kind) {
    let project = Project::migrated(kind);
    migrate(project.database.url()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [("counter", "0"), ("history", "")] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    // Three fleets at once are too many for two processors.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let run = || {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        run(&project, &folder);
    };
    tokio::task::block_in_place(run);
    check(&folder);
}

fn run(project: &Project, folder: &TempDir) {
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        let mut python = project.python();
        python.arg(scripts().join("fleet.py")).arg(ROUNDS.to_string()).arg(folder.path());
        processes.push(Member(python.stdin(Stdio::null()).spawn().unwrap()));

        let mut ours = Command::new(env::current_exe().unwrap());
        ours.args(["--exact", "fleet::process_of_the_fleet", "--include-ignored"])
            .env(FOLDER, folder.path())
            .env(URL, project.database.url())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        processes.push(Member(ours.spawn().unwrap()));
    }
    for Member(process) in &mut processes {
        assert!(process.wait().unwrap().success());
    }
}

/// A process of the fleet, which is not left behind where another one has failed.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ours, as a process of its own.
#[tokio::test]
#[ignore = "is run by the tests of the fleet"]
async fn process_of_the_fleet() {
    let Ok(folder) = env::var(FOLDER) else { return };
    let locks = Locks::connect(&env::var(URL).unwrap()).await.unwrap();
    for _ in 0..ROUNDS {
        let request = locks.lock("counter").timeout(PATIENCE * 5);
        request.run(async |_| count(Path::new(&folder)).await).await.unwrap();
    }
}

async fn count(folder: &Path) {
    let mut history = OpenOptions::new().append(true).open(folder.join("history")).unwrap();
    let me = format!("rust-{}", std::process::id());
    history.write_all(format!("begin {me}\n").as_bytes()).unwrap();
    let counter = folder.join("counter");
    let number: usize = fs::read_to_string(&counter).unwrap().parse().unwrap();
    // Somewhat different each time.
    let pause = Duration::from_millis(number as u64 * 7 % 10);
    tokio::time::sleep(pause).await;
    fs::write(&counter, (number + 1).to_string()).unwrap();
    history.write_all(format!("end {me}\n").as_bytes()).unwrap();
}

fn check(folder: &TempDir) {
    let read = |file| fs::read_to_string(folder.path().join(file)).unwrap();
    let history = read("history");
    let lines: Vec<&str> = history.lines().collect();
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for turn in lines.chunks(2) {
        let who = turn[0].strip_prefix("begin ").unwrap();
        assert_eq!(turn.get(1), Some(&&*format!("end {who}")), "an overlap");
        *counted.entry(who).or_default() += 1;
    }
    println!("{counted:?}");
    assert_eq!(counted.len(), 2 * PROCESSES);
    assert!(counted.values().all(|rounds| *rounds == ROUNDS), "{counted:?}");
    assert_eq!(read("counter"), (2 * PROCESSES * ROUNDS).to_string());
    let changes = lines.chunks(2).map(|turn| turn[0]).collect::<Vec<_>>();
    let changes = changes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    println!("the lock changed hands {changes} times");
}
