//! Whose clock decides.

use std::env;
use std::process::Command;
use std::time::Duration;

use database_locks::{Connect, Locks};
use database_locks_test_servers::{ClockStep, ShiftedClock};
use serde_json::{Value, json};

use super::{NAME, Scene, project, release};
use crate::Kind;

const AHEAD: ClockStep = ClockStep::Forward(Duration::from_hours(1));
const URL: &str = "DATABASE_LOCKS_FAULTS_URL";
const ENTERED: &str = "this process has entered";
const REFUSED: &str = "this process was refused";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_clock_is_an_hour_ahead_is_refused() {
    let mut project = project(Kind::Postgres);
    project.django(&["migrate", "--verbosity=0"]);
    let ask_once = json!({ "retry": Value::Null });
    let (mut holder, mut punctual) = (project.worker(), project.worker());
    holder.enter("clock", json!({ "lock_ttl": 60 })).unwrap();
    assert_eq!(punctual.enter("clock", ask_once.clone()).unwrap_err().kind, "LockException");
    project.step_clock(AHEAD);
    let mut ahead = project.worker();
    ahead.enter("clock", ask_once).expect("the real package lets both in");

    let scene = Scene::adopt(project, Value::Null).await;
    let guard = scene.here.lock(NAME).acquire().await.unwrap();
    let said = ask_once_with_a_clock_ahead(&scene);
    assert!(said.contains(REFUSED), "{said}");
    guard.check().unwrap();
    guard.release().await.unwrap();
    let said = ask_once_with_a_clock_ahead(&scene);
    assert!(said.contains(ENTERED), "{said}");
}

/// What a process of ours says.
fn ask_once_with_a_clock_ahead(scene: &Scene) -> String {
    let clock = ShiftedClock::new(AHEAD).unwrap();
    let output = clock
        .give(&mut Command::new(env::current_exe().unwrap()))
        .args(["--exact", "--ignored", "--nocapture", "faults::clock::ask_once"])
        .env(URL, scene.project.database.url())
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[tokio::test]
#[ignore = "the test above runs it as a process of its own"]
async fn ask_once() {
    let Ok(url) = env::var(URL) else { return };
    let locks = Locks::connect(&url).await.unwrap();
    let guard = locks.lock(NAME).try_acquire().await.unwrap();
    println!("{}", if guard.is_some() { ENTERED } else { REFUSED });
    release(guard).await;
}
