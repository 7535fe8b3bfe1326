//! MySQL's server, which Debian has in its unstable distribution only: fetched by apt, and unpacked in a cache folder
//! rather than installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use database_locks_test_servers::MySqlProgram;

use crate::cache::{self, create_dir};

/// Fetches the server to where the tests look for it.
pub(crate) fn fetch() -> Result<()> {
    cache::put(|| MySqlProgram::find().is_ok(), fetch_to)
        .context("cannot fetch mysql; install version 8 or later by other means")?;
    println!("mysql {} is in the cache", MySqlProgram::find()?.version());
    Ok(())
}

fn fetch_to(folder: &Path) -> Result<(PathBuf, String)> {
    let tree = folder.join("tree");
    let apt = Apt::new(folder)?;
    apt.run(&["update"])?;
    apt.run(&[
        "install",
        "--assume-yes",
        "--download-only",
        "--no-install-recommends",
        "mysql-server-core",
    ])?;
    create_dir(&tree)?;
    for package in fs::read_dir(apt.archives())? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let status =
                Command::new("dpkg-deb").arg("--extract").args([&package, &tree]).status()?;
            ensure!(status.success(), "dpkg-deb cannot unpack {}", package.display());
        }
    }
    let version = MySqlProgram::in_tree(&tree)?.version();
    Ok((tree, format!("mysql-{version}")))
}

/// Apt with a state of its own, in which nothing is installed and Debian unstable is the only source. Packages are
/// verified as always.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Result<Apt> {
        for name in ["lists/partial", "cache/archives/partial"] {
            create_dir(&folder.join(name))?;
        }
        File::create(folder.join("status"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let option = if Path::new(keyring).exists() {
            format!("[signed-by={keyring}] ")
        } else {
            String::new()
        };
        fs::write(folder.join("sources.list"), format!("deb {option}{} sid main\n", mirror()?))?;
        Ok(Apt { folder: folder.to_owned() })
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        println!("apt-get {} (in {})", arguments.join(" "), self.folder.display());
        let folder = self.folder.display();
        let mut apt = Command::new("apt-get");
        for option in [
            format!("Dir::State={folder}"),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "APT::Default-Release=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            apt.args(["-o", &option]);
        }
        let status = apt.arg("--quiet").args(arguments).status()?;
        ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
        Ok(())
    }
}

/// The mirror of Debian that this machine uses.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"])
        .output()
        .context("cannot run apt-get")?;
    let targets = String::from_utf8(output.stdout)?;
    let mut mirrors = targets.lines().filter(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    match mirrors.next() {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt's sources name no mirror of debian"),
    }
}
