//! A server's temporary folder, and the watchdog that empties the house when this process is gone.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::install::Account;

/// Name of the file, in the folder, with the process id of the server that runs there. A server's own shell writes it
/// before it becomes the server, so that there is no moment at which a server runs unseen by the watchdog; it is
/// removed once the process has been reaped, so that the watchdog never kills a stranger with a recycled id.
pub(crate) const PID_FILE: &str = "pid";

/// What the watchdog runs: `$1` is the folder. It reads until the other end of its standard input is closed, then
/// stops the server (SIGQUIT: at once for Postgres, in an orderly way for MySQL's family) with all that is left of its
/// process group, such as the scripts with which nodes of a cluster copy data, and removes the folder.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
alive() {
    kill -0 "$1" 2>/dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null
}
if read -r pid 2>/dev/null <"$1/pid"; then
    kill -QUIT "$pid" 2>/dev/null
    kill -CONT "$pid" 2>/dev/null
    tries=0
    while alive "$pid" && [ "$tries" -lt 500 ]; do
        sleep 0.02
        tries=$((tries + 1))
    done
    kill -KILL "$pid" "-$pid" 2>/dev/null
fi
tries=0
until rm -rf "$1" 2>/dev/null || [ "$tries" -ge 250 ]; do
    sleep 0.02
    tries=$((tries + 1))
done
"#;

/// A folder that only `account` may enter. Dropping it stops the server in it and removes it; so does the end of this
/// process, whatever ends it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    account: Account,
    watchdog: Child,
    /// The only write end of the watchdog's pipe. The standard library opens it close-on-exec, so no child has it.
    lifeline: Option<ChildStdin>,
}

impl Folder {
    /// Creates `TMPDIR/dblocks-NAME-RANDOM`.
    pub(crate) fn create(name: &str, account: Account) -> Result<Folder> {
        // Short, because a Unix socket's path may have 107 bytes only.
        let path = std::env::temp_dir().join(format!("dblocks-{name}-{}", random_hex(6)?));
        // The watchdog comes first, so that a folder never exists without one.
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "dblocks-watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh, which is needed to clean up after a test server")?;
        let lifeline = watchdog.stdin.take();
        let folder = Folder { path, account, watchdog, lifeline };
        folder.make_private_dir("")?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Creates the folder `name` in this one, closed to everybody but the account.
    pub(crate) fn make_private_dir(&self, name: &str) -> Result<PathBuf> {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot create the folder {} for a test server", path.display())
        })?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// Writes the file `name`, readable by the account only.
    pub(crate) fn write(&self, name: &str, contents: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            std::io::Write::write_all(&mut file, contents.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// Has the watchdog stop the server and remove the folder, and waits for it.
    pub(crate) fn remove(&mut self) {
        drop(self.lifeline.take());
        let _ = self.watchdog.wait();
    }

    fn hand_over(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.account.ids else { return Ok(()) };
        chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to the server", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}

/// `bytes` bytes from the system's random source, as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("cannot read /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
