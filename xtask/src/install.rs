//! What the machine lacks.

use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};
use database_locks_test_servers::{Binaries, PGBOUNCER, POSTGRES};

const NEEDED: [Binaries; 2] = [POSTGRES, PGBOUNCER];

/// Installs the servers that are missing, where that is possible, and otherwise says what to do.
pub(crate) fn missing_servers() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|server| server.find().is_err())
        .map(|server| server.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("install {} (on Debian: apt-get install {0})", missing.join(" "));
    ensure!(succeeds("apt-get", &["--version"]), "there is no apt-get here: {by_hand}");
    let sudo = !succeeds("test", &["-w", "/var/lib/dpkg"]);
    if sudo && !succeeds("sudo", &["-n", "true"]) {
        bail!("neither root nor sudo without a password: {by_hand}");
    }
    for arguments in
        [vec!["update"], [&["install", "-y", "--no-install-recommends"], &missing[..]].concat()]
    {
        let mut apt = Command::new(if sudo { "sudo" } else { "apt-get" });
        if sudo {
            apt.args(["-n", "apt-get"]);
        }
        println!("apt-get {}", arguments.join(" "));
        let status = apt.args(&arguments).env("DEBIAN_FRONTEND", "noninteractive").status()?;
        ensure!(status.success(), "apt-get failed: {by_hand}");
    }
    for server in NEEDED {
        server.find()?;
    }
    Ok(())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
