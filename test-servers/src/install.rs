//! Finding installed servers, and the account to run them as.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{User, geteuid};

/// What has to be installed for a kind of server, and where it may be found.
#[derive(Debug, Clone, Copy)]
pub struct Binaries {
    /// What the server is called in messages.
    pub name: &'static str,
    /// The Debian package that brings all of [`programs`](Self::programs).
    pub package: &'static str,
    /// The programs, the server itself first.
    pub programs: &'static [&'static str],
    /// Folders to search besides `PATH`. One `*` stands for a version number; the highest is taken.
    pub folders: &'static [&'static str],
    /// A program that prints one more folder to search, and its arguments.
    pub folder_command: &'static [&'static str],
}

/// Postgres with its tools, of any major version.
pub const POSTGRES: Binaries = Binaries {
    name: "postgres",
    package: "postgresql",
    programs: &["postgres", "initdb", "psql", "pg_basebackup"],
    folders: &["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"],
    folder_command: &["pg_config", "--bindir"],
};

/// The server of MariaDB, which can be a node of a Galera cluster.
pub const MARIADB: Binaries = Binaries {
    name: "mariadb",
    package: "mariadb-server",
    programs: &["mariadbd"],
    folders: &["/usr/sbin", "/usr/libexec", "/usr/local/sbin"],
    folder_command: &[],
};

/// The tools of MariaDB: its client, and what prepares a server's data.
pub const MARIADB_TOOLS: Binaries = Binaries {
    name: "mariadb's tools",
    package: "mariadb-server",
    programs: &["mariadb", "mariadb-install-db"],
    folders: &["/usr/bin", "/usr/local/bin"],
    folder_command: &[],
};

/// The library that makes a node of a Galera cluster out of MariaDB.
pub const GALERA: Binaries = Binaries {
    name: "galera",
    package: "galera-4",
    programs: &["libgalera_smm.so"],
    folders: &["/usr/lib/galera", "/usr/lib64/galera", "/usr/lib64/galera-4"],
    folder_command: &[],
};

/// What copies the data of a node of a Galera cluster to another.
pub const RSYNC: Binaries = Binaries {
    name: "rsync",
    package: "rsync",
    programs: &["rsync"],
    folders: &["/usr/bin"],
    folder_command: &[],
};

/// The connection pooler.
pub const PGBOUNCER: Binaries = Binaries {
    name: "pgbouncer",
    package: "pgbouncer",
    programs: &["pgbouncer"],
    folders: &["/usr/sbin", "/usr/local/sbin"],
    folder_command: &[],
};

/// The server of Redis.
pub const REDIS: Binaries = Binaries {
    name: "redis",
    package: "redis-server",
    programs: &["redis-server"],
    folders: &["/usr/bin", "/usr/local/bin"],
    folder_command: &[],
};

/// The server of etcd.
pub const ETCD: Binaries = Binaries {
    name: "etcd",
    package: "etcd-server",
    programs: &["etcd"],
    folders: &["/usr/bin", "/usr/local/bin"],
    folder_command: &[],
};

impl Binaries {
    /// The folder that has all programs: the first of `PATH`, then of [`folders`](Self::folders), then what
    /// [`folder_command`](Self::folder_command) prints.
    ///
    /// # Errors
    ///
    /// When there is none. The message says what to install.
    pub fn find(&self) -> Result<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(self.folders.iter().flat_map(|pattern| expand(pattern)))
            .chain(self.printed_folder())
            .find(|folder| self.programs.iter().all(|program| folder.join(program).is_file()))
            .with_context(|| {
                format!(
                    "{} is not installed ({} not found in PATH or {}): run `cargo xtask test`, which installs it \
                     where it may, or `apt-get install {}`",
                    self.name,
                    self.programs.join(", "),
                    self.folders.join(", "),
                    self.package
                )
            })
    }

    fn printed_folder(&self) -> Option<PathBuf> {
        let (program, arguments) = self.folder_command.split_first()?;
        let output = Command::new(program).args(arguments).output().ok()?;
        let printed = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| PathBuf::from(printed.trim()))
    }
}

/// The ordinary user that a server runs as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The ids to change to; none when this process is not root and servers simply run as its user.
    pub(crate) ids: Option<(u32, u32)>,
}

impl Account {
    /// This process's user or, as root, the first of `names` that exists, or else `nobody`.
    pub(crate) fn ordinary(names: &[&str]) -> Result<Account> {
        if !geteuid().is_root() {
            return Ok(Account { ids: None });
        }
        for name in names.iter().chain(&["nobody"]) {
            if let Some(user) = User::from_name(name)? {
                return Ok(Account { ids: Some((user.uid.as_raw(), user.gid.as_raw())) });
            }
        }
        bail!(
            "servers refuse to run as root, and there is no ordinary user: create one called {}",
            names.join(" or ")
        )
    }
}

/// The folders that a pattern with at most one `*` stands for, the highest version first.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let after = after.trim_start_matches('/');
    // `/usr/pgsql-*/bin` has a prefix of the versioned folder's own name in front of the star.
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let mut versions: Vec<(u32, PathBuf)> = Path::new(parent)
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = version(&entry.file_name(), prefix)?;
            Some((version, entry.path().join(after)))
        })
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

fn version(file_name: &OsStr, prefix: &str) -> Option<u32> {
    file_name.to_str()?.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::folder::random_hex;

    #[test]
    fn highest_version_comes_first() {
        let root = env::temp_dir().join(format!("dblocks-install-{}", random_hex(4).unwrap()));
        for name in ["v9", "v15", "v17", "current", "w18"] {
            fs::create_dir_all(root.join(name).join("bin")).unwrap();
        }
        let found = expand(&format!("{}/v*/bin", root.display()));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [root.join("v17/bin"), root.join("v15/bin"), root.join("v9/bin")]);
    }

    #[test]
    fn missing_server_says_how_to_get_it() {
        let binaries = Binaries {
            name: "nosuchdb",
            package: "nosuchdb-server",
            programs: &["nosuchdbd"],
            folders: &["/usr/lib/nosuchdb/*/bin"],
            folder_command: &["nosuchdb_config", "--bindir"],
        };
        let message = binaries.find().unwrap_err().to_string();
        assert!(message.contains("apt-get install nosuchdb-server"), "{message}");
        assert!(message.contains("cargo xtask test"), "{message}");
    }
}
