//! Servers come up, serve, and leave nothing behind.

use std::path::Path;
use std::time::{Duration, Instant};

use database_locks_test_servers::{PgBouncer, Postgres, Server as _};

/// Generous, because a busy machine may take its time to stop a server.
fn vanishes(path: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while path.exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_dropped_server_is_gone_with_its_folder() {
    let server = Postgres::start().unwrap();
    let folder = server.socket_dir().to_owned();
    assert_eq!(server.psql("SELECT 40 + 2").unwrap().trim(), "42");
    server.stop_hard().unwrap();
    server.start_again().unwrap();
    assert_eq!(server.psql("SELECT 1").unwrap().trim(), "1");
    drop(server);
    assert!(!folder.exists());
}

#[test]
fn databases_of_the_shared_server_are_separate_also_through_the_pooler() {
    let (one, two) = (
        Postgres::shared().unwrap().database().unwrap(),
        PgBouncer::shared().unwrap().database().unwrap(),
    );
    one.psql("CREATE TABLE t (n int)").unwrap();
    two.psql("CREATE TABLE t (n int)").unwrap();
    assert_ne!(one.url(), two.url());
}

#[test]
fn a_killed_process_leaves_no_server_behind() {
    let mut holder = std::process::Command::new(env!("CARGO_BIN_EXE_hold-postgres"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = holder.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let folder = Path::new(line.trim());
    assert!(folder.join("data").exists(), "{line}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(vanishes(folder), "{} is still there", folder.display());
}
