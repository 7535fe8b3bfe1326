//! The reason for fences: a holder is stopped between its check and its write for longer than its lease lives.
//!
//! `DATABASE_LOCKS_TEST_FENCE_ROUNDS` is how often, 20 unless it is set.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::env;
use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Driver, MysqlAsync, PATIENCE, Place, Server, SqlxSqlite, TokioPostgres};
use database_locks::{Connect as _, Locks};
use database_locks_fence::FenceIn as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Notify;

const TTL: Duration = Duration::from_millis(300);
/// How long the holder takes from each step to the next.
const STEP: Duration = Duration::from_millis(20);
const STEPS: u32 = 3;
/// What a line of the holder begins with, among those of its test harness.
const SAYS: &str = "holder: ";
/// What the holder does beside checking its lease.
const FENCED: &str = "fenced";

#[tokio::test]
async fn stale_writes_are_not_committed_on_postgres() {
    stale_writes_are_not_committed::<TokioPostgres>(Server::Postgres).await;
}

#[tokio::test]
async fn stale_writes_are_not_committed_on_mysql() {
    stale_writes_are_not_committed::<MysqlAsync>(Server::MySql).await;
}

#[tokio::test]
async fn stale_writes_are_not_committed_on_mariadb() {
    stale_writes_are_not_committed::<MysqlAsync>(Server::MariaDb).await;
}

#[tokio::test]
async fn stale_writes_are_not_committed_on_sqlite() {
    stale_writes_are_not_committed::<SqlxSqlite>(Server::Sqlite).await;
}

async fn stale_writes_are_not_committed<D: Driver>(server: Server) {
    let rounds = env::var("DATABASE_LOCKS_TEST_FENCE_ROUNDS").map_or(20, |n| n.parse().unwrap());
    let place = Place::migrated(server).await;
    let mut work: D = place.work().await;
    let locks = place.locks().await;
    let with = stale_writes(&place, server, &locks, &mut work, FENCED, rounds).await;
    let without = stale_writes(&place, server, &locks, &mut work, "checked", rounds).await;
    println!("of {rounds} rounds: {with:?} with the fence, {without:?} without");
    assert_eq!(with.stale, 0);
    assert!(without.stale > 0, "the test stops nobody in time: {without:?}");
}

#[derive(Debug, Default)]
struct Seen {
    committed: u64,
    refused: u64,
    /// Written by a holder after the next one was granted the lock.
    stale: u64,
}

async fn stale_writes<D: Driver>(
    place: &Place,
    server: Server,
    locks: &Locks,
    work: &mut D,
    how: &str,
    rounds: u32,
) -> Seen {
    let is_fenced = how == FENCED;
    let mut holder = Holder::start(server, &place.url, how);
    let mut seen = Seen::default();
    for round in 0..rounds {
        let token = holder.begin();
        if is_fenced {
            // Somewhere between its check and its commit, each time a bit later.
            tokio::time::sleep(STEP * STEPS * (round % 8) / 8).await;
        }
        holder.signal(Signal::STOP);
        tokio::time::sleep(TTL * 3 / 2).await;

        let by_it = format!("SELECT COUNT(*) FROM work WHERE n = {token}");
        let granted = Notify::new();
        let next = async {
            let guard = locks.lock("job").timeout(PATIENCE).acquire().await.unwrap();
            let before = work.number(&by_it).await;
            granted.notify_one();
            (guard, before)
        };
        let goes_on = async {
            // What is fenced is not granted before the holder goes on.
            let patience = if is_fenced { TTL } else { PATIENCE };
            let _ = tokio::time::timeout(patience, granted.notified()).await;
            holder.signal(Signal::CONT);
            tokio::task::spawn_blocking(move || (holder.says(), holder)).await.unwrap()
        };
        let ((next, before), (outcome, same)) = tokio::join!(next, goes_on);
        holder = same;
        next.release().await.unwrap();
        match &*outcome {
            "committed" => seen.committed += 1,
            _ => seen.refused += 1,
        }
        if work.number(&by_it).await > before {
            seen.stale += 1;
        }
    }
    seen
}

/// A process that takes the lock, checks that it has it, and writes its token, once for each line that it is given.
struct Holder {
    process: Child,
    commands: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(server: Server, url: &str, how: &str) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "process_of_a_holder"])
            .env("DATABASE_LOCKS_TEST_HOLDER", format!("{server:?} {how} {url}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, commands, output }
    }

    /// Lets it take and check the lock, and tells the token.
    fn begin(&mut self) -> i64 {
        writeln!(self.commands).unwrap();
        self.says().parse().unwrap()
    }

    fn says(&mut self) -> String {
        loop {
            let line = self.output.next().expect("the holder has ended").unwrap();
            // Its harness may have begun the line.
            if let Some((_, said)) = line.split_once(SAYS) {
                return said.to_owned();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "a process that the tests of this file start"]
fn process_of_a_holder() {
    let Ok(told) = env::var("DATABASE_LOCKS_TEST_HOLDER") else { return };
    let [server, how, url] = told.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    match server {
        "Postgres" => runtime.block_on(hold::<TokioPostgres>(url, how)),
        "Sqlite" => runtime.block_on(hold::<SqlxSqlite>(url, how)),
        _ => runtime.block_on(hold::<MysqlAsync>(url, how)),
    }
}

async fn hold<D: Driver>(url: &str, how: &str) {
    let locks = Locks::connect(url).await.unwrap();
    let mut client = D::connect(url).await;
    for _ in std::io::stdin().lines() {
        let guard = locks.lock("job").ttl(TTL).timeout(PATIENCE).acquire().await.unwrap();
        let token = guard.token();
        // What a careful holder does who has no fence.
        let is_held = guard.check().is_ok();
        println!("{SAYS}{token}");
        let outcome = async {
            if !is_held {
                return Err("too late".to_owned());
            }
            tokio::time::sleep(STEP).await;
            let mut transaction = client.begin().await;
            if how == FENCED {
                let fenced = guard.fence_in(&mut transaction).await;
                fenced.map_err(|error| error.to_string())?;
                tokio::time::sleep(STEP).await;
            }
            D::write(&mut transaction, &format!("INSERT INTO work VALUES ({token})")).await?;
            tokio::time::sleep(STEP).await;
            D::commit(transaction).await
        };
        let outcome = outcome.await.map_or_else(|error| error, |()| "committed".to_owned());
        drop(guard);
        println!("{SAYS}{outcome}");
    }
}
