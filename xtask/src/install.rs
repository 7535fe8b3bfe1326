//! What the machine lacks.

use std::process::Command;

use anyhow::{Result, bail, ensure};
use database_locks_test_servers::{
    Binaries, ETCD, GALERA, MARIADB, MARIADB_TOOLS, MySqlProgram, PGBOUNCER, POSTGRES, REDIS, RSYNC,
};

use crate::command::succeeds;
use crate::{fetch_mysql, fetch_postgres, fetch_python};

const NEEDED: [Binaries; 8] =
    [POSTGRES, PGBOUNCER, MARIADB, MARIADB_TOOLS, GALERA, RSYNC, REDIS, ETCD];

/// What the benchmark's peers are built with: etcd's client, and the drivers of distributed-lock.
const FOR_PEERS: [Binaries; 4] = [
    under_usr("protoc", "protobuf-compiler", &["bin/protoc"]),
    under_usr(
        "protobuf's own types",
        "libprotobuf-dev",
        &["include/google/protobuf/timestamp.proto"],
    ),
    under_usr("openssl's headers", "libssl-dev", &["include/openssl/ssl.h"]),
    under_usr("pkg-config", "pkg-config", &["bin/pkg-config"]),
];

const fn under_usr(
    name: &'static str,
    package: &'static str,
    files: &'static [&'static str],
) -> Binaries {
    Binaries { name, package, programs: files, folders: &["/usr"], folder_command: &[] }
}

/// Installs the servers that are missing, and a Python with Django, where that is possible, and otherwise says what to
/// do.
pub(crate) fn whatever_is_missing() -> Result<()> {
    whatever_is_missing_of(&NEEDED)
}

/// As [`whatever_is_missing`], and what only the benchmark's peers are built with.
pub(crate) fn whatever_is_missing_for_peers() -> Result<()> {
    whatever_is_missing_of(&[&NEEDED[..], &FOR_PEERS].concat())
}

fn whatever_is_missing_of(needed: &[Binaries]) -> Result<()> {
    let mut missing: Vec<&str> = needed
        .iter()
        .filter(|server| server.find().is_err())
        .map(|server| server.package)
        .collect();
    missing.dedup();
    if !fetch_python::is_there() && fetch_python::interpreter().is_none() {
        missing.push("python3-venv");
    }
    if !fetch_postgres::are_there() && !succeeds("npm", &["--version"]) {
        missing.push("npm");
    }
    if !missing.is_empty() {
        install(&missing)?;
    }
    if MySqlProgram::find().is_err() {
        fetch_mysql::fetch()?;
    }
    if !fetch_postgres::are_there() {
        fetch_postgres::fetch()?;
    }
    if !fetch_python::is_there() {
        fetch_python::fetch()?;
    }
    Ok(())
}

fn install(missing: &[&str]) -> Result<()> {
    let by_hand = format!("install {} (on Debian: apt-get install {0})", missing.join(" "));
    ensure!(succeeds("apt-get", &["--version"]), "there is no apt-get here: {by_hand}");
    let sudo = !succeeds("test", &["-w", "/var/lib/dpkg"]);
    if sudo && !succeeds("sudo", &["-n", "true"]) {
        bail!("neither root nor sudo without a password: {by_hand}");
    }
    for arguments in
        [vec!["update"], [&["install", "-y", "--no-install-recommends"], missing].concat()]
    {
        let mut apt = Command::new(if sudo { "sudo" } else { "env" });
        if sudo {
            apt.args(["-n", "env"]);
        }
        println!("apt-get {}", arguments.join(" "));
        // Whether the packages start services of their own is the machine's policy. Tests never use those.
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        let status = apt.args(&arguments).status()?;
        ensure!(status.success(), "apt-get failed: {by_hand}");
    }
    for server in NEEDED {
        server.find()?;
    }
    Ok(())
}
