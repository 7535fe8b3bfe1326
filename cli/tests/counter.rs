//! Sixteen processes count without any synchronisation but `dblock run`, and some are killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use database_locks_test_servers::{
    Access, ClockStep, Galera, MariaDb, MySql, Postgres, Server as _, ShiftedClock,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scopeguard::defer;
use tempfile::TempDir;

use crate::common::{DBLOCK, command};

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

/// What clocks are off by.
const YEARS: Duration = Duration::from_hours(10 * 365 * 24);
/// How much of what the processes said is shown of a failure.
const LAST_LINES: usize = 20;
/// How many processes count at once.
const PROCESSES: usize = 16;
/// How often each of them does so at least.
const ROUNDS: usize = 4;
/// Far more than it takes the other fifteen to count, with a node that comes back meanwhile: whoever waits for
/// longer waits for a lock that is lost, or for servers that are.
const PATIENCE: &str = "3m";

#[test]
fn sixteen_processes_lose_no_update_on_sqlite() {
    Count::on_sqlite().run();
}

#[test]
fn sixteen_processes_lose_no_update_on_sqlite_though_some_are_killed() {
    Count { trouble: Trouble::Kills, ..Count::on_sqlite() }.run();
}

#[test]
fn sixteen_processes_lose_no_update_on_postgres_though_clocks_are_years_off() {
    count_on(Postgres::shared().unwrap(), Trouble::Clocks);
}

#[test]
fn sixteen_processes_lose_no_update_on_postgres_though_some_are_killed() {
    count_on(Postgres::shared().unwrap(), Trouble::Kills);
}

#[test]
fn sixteen_processes_lose_no_update_on_mysql_though_clocks_are_years_off() {
    count_on(MySql::shared().unwrap(), Trouble::Clocks);
}

#[test]
fn sixteen_processes_lose_no_update_on_mysql_though_some_are_killed() {
    count_on(MySql::shared().unwrap(), Trouble::Kills);
}

#[test]
fn sixteen_processes_lose_no_update_on_mariadb_though_some_are_killed() {
    count_on(MariaDb::shared().unwrap(), Trouble::Kills);
}

#[test]
fn sixteen_processes_on_three_galera_nodes_lose_no_update_while_nodes_fail() {
    let _turn = turn();
    let cluster = Galera::start().unwrap();
    let database = cluster.database().unwrap();
    migrate(database.urls());
    // Each node is the first choice of a third of the processes.
    let ports: Vec<u16> = cluster.nodes().iter().map(|node| node.port()).collect();
    let urls = (0..ports.len())
        .map(|first| {
            let hosts = ports.iter().cycle().skip(first).take(ports.len());
            let hosts: Vec<String> = hosts.map(|port| format!("127.0.0.1:{port}")).collect();
            let (before, rest) = database.urls().split_once('@').unwrap();
            let (_, after) = rest.split_once('/').unwrap();
            format!("{before}@{}/{after}", hosts.join(","))
        })
        .collect();
    let count = Count { ttl: "20s", ..Count::new(urls) };
    let going_on = AtomicBool::new(true);
    let counted_by = || count.read("completed").lines().count();
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| count.until(&going_on));
        // Otherwise a node that does not come up again would leave this waiting for ever.
        defer! { going_on.store(false, Ordering::Relaxed) };
        let await_counts = |more: usize| {
            let goal = counted_by() + more;
            while counted_by() < goal && !counting.is_finished() {
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        await_counts(PROCESSES);
        cluster.node(0).stop_hard().unwrap();
        await_counts(PROCESSES);
        cluster.node(0).start_again().unwrap();
        await_counts(PROCESSES);
        cluster.node(1).pause().unwrap();
        // What the fault is: it has to be longer than the others take to give the node up.
        std::thread::sleep(Duration::from_secs(10));
        cluster.node(1).resume().unwrap();
        cluster.wait_until_synced(1).unwrap();
        await_counts(PROCESSES);
    });
    count.check();
}

fn count_on(server: &Access, trouble: Trouble) {
    let _turn = turn();
    let database = server.database().unwrap();
    migrate(database.url());
    let clocks = match trouble {
        Trouble::Clocks => [ClockStep::Back(YEARS), ClockStep::Forward(YEARS)]
            .map(ShiftedClock::new)
            .map(Result::unwrap)
            .into(),
        Trouble::None | Trouble::Kills => Vec::new(),
    };
    Count { trouble, clocks, ..Count::new(vec![database.url().to_owned()]) }.run();
}

/// Twice sixteen processes at once were seen to lose leases of 2 s on two cores: for want of
/// processor time, as far as could be told.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn migrate(url: &str) {
    let mut dblock = command(DBLOCK);
    assert!(dblock.arg("migrate").env("DATABASE_LOCKS_URL", url).status().unwrap().success());
}

/// Processes that count in one folder.
struct Count {
    folder: TempDir,
    /// The databases that the processes use in turn: all of them the same one.
    urls: Vec<String>,
    ttl: &'static str,
    trouble: Trouble,
    /// The clocks of all processes but every third.
    clocks: Vec<ShiftedClock>,
}

/// What befalls the processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Every fourth is killed.
    Kills,
    /// Two in three have a clock that is years behind or ahead.
    Clocks,
}

impl Count {
    fn new(urls: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("counter"), "").unwrap();
        Self { folder, urls, ttl: "3s", trouble: Trouble::None, clocks: Vec::new() }
    }

    fn on_sqlite() -> Self {
        let mut count = Self::new(Vec::new());
        count.urls.push(format!("sqlite:{}", count.folder.path().join("locks.db").display()));
        count
    }

    /// Counts the least number of times.
    fn run(&self) {
        self.until(&AtomicBool::new(false));
        self.check();
    }

    /// Counts the least number of times, and then for as long as it is to go on.
    fn until(&self, going_on: &AtomicBool) {
        std::thread::scope(|scope| {
            for worker in 0..PROCESSES {
                scope.spawn(move || {
                    let rounds = (0..)
                        .take_while(|round| *round < ROUNDS || going_on.load(Ordering::Relaxed));
                    for round in rounds {
                        self.count_once(worker, round);
                    }
                });
            }
        });
    }

    fn count_once(&self, worker: usize, round: usize) {
        let mut child = self.start(worker, round);
        if self.trouble == Trouble::Kills && worker % 4 == round % 4 {
            // A random moment: before, while, or after it holds the lock.
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..800)));
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
        } else {
            let status = child.wait().unwrap();
            assert!(status.success(), "{worker}.{round}: {status}\n{}", self.last_words());
        }
    }

    fn start(&self, worker: usize, round: usize) -> Child {
        let folder = self.folder.path();
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
        self.dblock(worker)
            .args(["run", "--ttl", self.ttl, "--timeout", PATIENCE, "counter"])
            .args(["--", "sh", "-c", COUNT, "sh"])
            .arg(format!("{worker}.{round}"))
            .current_dir(folder)
            .env("DATABASE_LOCKS_URL", &self.urls[worker % self.urls.len()])
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    fn dblock(&self, worker: usize) -> Command {
        let mut dblock = command(DBLOCK);
        if let Some(clock) = self.clocks.get(worker % 3) {
            clock.give(&mut dblock);
        }
        dblock
    }

    fn check(&self) {
        assert_eq!(self.read("overlaps"), "");
        let counter = self.read("counter");
        let counted: HashSet<&str> = counter.split_whitespace().collect();
        let completed = self.read("completed");
        let mut last_token = 0;
        for line in completed.lines() {
            let (run, token) = line.split_once(' ').unwrap();
            assert!(counted.contains(&run), "the update of {run} is lost");
            let token: u64 = token.parse().unwrap();
            assert!(token > last_token, "the token of {run} is not higher than the one before");
            last_token = token;
        }
        let all = PROCESSES * ROUNDS;
        let survivors = if self.trouble == Trouble::Kills { all - all / 4 } else { all };
        assert!(completed.lines().count() >= survivors);
        assert!(counted.len() >= completed.lines().count());
        println!("{} counted", counted.len());
    }

    fn last_words(&self) -> String {
        let log = self.read("log");
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }
}
