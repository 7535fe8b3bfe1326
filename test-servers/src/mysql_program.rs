//! Finding a `mysqld` that is MySQL's.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::cache;
use crate::process::flag;

/// The oldest major version that will do.
const OLDEST: u32 = 8;

/// Where systems put a `mysqld` besides `PATH`.
const FOLDERS: [&str; 5] =
    ["/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/bin", "/usr/local/mysql/bin"];

/// A `mysqld` of MySQL 8 or later that can be run.
///
/// Few systems have it as a package besides MariaDB. So it may also be a tree of unpacked packages in a cache folder,
/// with its own C library and loader, which `cargo xtask test` fetches.
#[derive(Debug, Clone)]
pub struct MySqlProgram {
    /// The program, and the arguments that come first.
    command: Vec<OsString>,
    version: Version,
}

/// Major, minor, patch.
type Version = (u32, u32, u32);

impl MySqlProgram {
    /// The installed one or, failing that, the newest of the trees in the [`cache`], each called
    /// `mysql-VERSION`.
    ///
    /// # Errors
    ///
    /// When there is none. The message says what to do.
    pub fn find() -> Result<MySqlProgram> {
        let path = env::var_os("PATH").unwrap_or_default();
        let installed = env::split_paths(&path)
            .chain(FOLDERS.map(PathBuf::from))
            .map(|folder| folder.join("mysqld"))
            .filter(|program| program.is_file())
            // MariaDB's packages bring a program of the same name.
            .find_map(|program| Self::of(vec![program.into(), "--no-defaults".into()]).ok());
        let cache = cache()?;
        installed
            .or_else(|| {
                let trees = cache.read_dir().into_iter().flatten().flatten();
                trees
                    .filter(|tree| tree.file_name().to_string_lossy().starts_with("mysql-"))
                    .filter_map(|tree| Self::in_tree(&tree.path()).ok())
                    .max_by_key(|program| program.version)
            })
            .with_context(|| {
                format!(
                    "there is no mysql {OLDEST} or later (no such mysqld in PATH or {}, and none unpacked in {}): run \
                     `cargo xtask test --only install`, which fetches it where there is apt, or install it",
                    FOLDERS.join(", "),
                    cache.display()
                )
            })
    }

    /// The one in a tree of unpacked Debian packages, run with the tree's own loader and libraries.
    ///
    /// # Errors
    ///
    /// When the tree is not whole or does not run here.
    pub fn in_tree(tree: &Path) -> Result<MySqlProgram> {
        let usr = tree.join("usr");
        let libraries = entry(&usr.join("lib"), |name| name.ends_with("-linux-gnu"))?;
        let loader = entry(&libraries, |name| name.starts_with("ld-linux"))?;
        Self::of(vec![
            loader.into(),
            "--library-path".into(),
            libraries.into(),
            usr.join("sbin/mysqld").into(),
            "--no-defaults".into(),
            flag("--basedir=", &usr),
            flag("--lc-messages-dir=", usr.join("share/mysql")),
            flag("--character-sets-dir=", usr.join("share/mysql/charsets")),
            flag("--plugin-dir=", usr.join("lib/mysql/plugin")),
        ])
    }

    /// The version, such as `9.7.4`.
    #[must_use]
    pub fn version(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }

    pub(crate) fn command(self) -> Vec<OsString> {
        self.command
    }

    /// Takes a command whose `--version` says that it is MySQL's, and not too old.
    fn of(command: Vec<OsString>) -> Result<MySqlProgram> {
        let (program, arguments) = command.split_first().context("a command is a program")?;
        let output = Command::new(program).args(arguments).arg("--version").output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let version = version(&printed)
            .filter(|(major, ..)| output.status.success() && *major >= OLDEST)
            .with_context(|| {
                format!(
                    "{program:?} is not mysql {OLDEST} or later; its --version says: {printed}{}",
                    String::from_utf8_lossy(&output.stderr)
                )
            })?;
        Ok(MySqlProgram { command, version })
    }
}

/// What stands behind `Ver` in the output of `mysqld --version`, unless that is MariaDB's.
fn version(printed: &str) -> Option<Version> {
    if printed.contains("MariaDB") {
        return None;
    }
    let mut words = printed.split_whitespace().skip_while(|word| *word != "Ver").skip(1);
    let mut numbers = words.next()?.split(|char: char| !char.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?, number()?))
}

/// The entry of a folder whose name is as it should be.
fn entry(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("no folder {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&matches))
        .with_context(|| format!("{} is not whole", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_of_mysql_and_not_of_mariadb() {
        assert_eq!(version("mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))"), Some((9, 7, 4)));
        assert_eq!(version("/usr/sbin/mysqld  Ver 8.0.41 for Linux"), Some((8, 0, 41)));
        assert_eq!(version("mysqld  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn other_programs_and_torn_trees_are_refused() {
        for (program, reason) in [("/bin/true", "--version says"), ("/bin/false", "not mysql 8")] {
            let message = MySqlProgram::of(vec![program.into()]).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        assert!(MySqlProgram::in_tree(Path::new("/")).is_err());
    }
}
