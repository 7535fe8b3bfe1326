//! What the tests of all servers share.

#![allow(clippy::unwrap_used, dead_code, reason = "a test may panic, and need not use everything")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Whether somebody listens on a port.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Has another process start a server, kills that process, and checks that the server goes with it.
pub(crate) fn killed_owner_leaves_nothing_behind(server: &str) {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hold-server"))
        .arg(server)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let servers: Vec<(u16, PathBuf)> = BufReader::new(holder.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let (port, folder) = line.split_once(' ').unwrap();
            (port.parse().unwrap(), PathBuf::from(folder))
        })
        .collect();
    assert!(!servers.is_empty());
    for (port, folder) in &servers {
        assert!(listens(*port) && folder.exists());
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    for (port, folder) in &servers {
        assert!(vanishes(folder), "{} is still there", folder.display());
        assert!(!listens(*port), "the server is still there");
    }
}

/// Generous, because a busy machine may take its time to stop a server.
fn vanishes(path: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while path.exists() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}
