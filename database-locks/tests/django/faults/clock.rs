//! Whose clock decides.

use std::env;
use std::process::Command;

use database_locks::{Connect, Locks};
use database_locks_test_servers::{FAKETIME, Postgres};
use serde_json::json;

use super::{NAME, Scene};

const URL: &str = "DATABASE_LOCKS_FAULTS_URL";
const ENTERED: &str = "this process has entered";
const REFUSED: &str = "this process was refused";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_clock_is_an_hour_ahead_is_refused() {
    let faketime = FAKETIME.find().unwrap().join("faketime");
    let clock = [faketime.to_str().unwrap(), "-f", "+1h"];
    let scene = Scene::after_with("clock", &clock, Postgres::shared().unwrap()).await;
    assert_eq!(scene.seen, json!({ "with_our_clock": "refused", "with_its_clock": "entered" }));

    let guard = scene.here.lock(NAME).acquire().await.unwrap();
    let ask = || {
        let [faketime, options @ ..] = clock;
        let output = Command::new(faketime)
            .args(options)
            .arg(env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "faults::clock::ask_once"])
            .env(URL, scene.database.url())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let said = ask();
    assert!(said.contains(REFUSED), "{said}");
    guard.check().unwrap();
    guard.release().await.unwrap();
    let said = ask();
    assert!(said.contains(ENTERED), "{said}");
}

#[tokio::test]
#[ignore = "the test above runs it as a process of its own"]
async fn ask_once() {
    let url = env::var(URL).unwrap();
    let locks = Locks::connect(&url).await.unwrap();
    let guard = locks.lock(NAME).try_acquire().await.unwrap();
    println!("{}", if guard.is_some() { ENTERED } else { REFUSED });
    super::release(guard).await;
}
