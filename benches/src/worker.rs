//! A worker's process: started, asked, measured from outside.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use database_locks_bench_worker::{Job, Outcome};

/// How long a worker may take for whatever it does next. More than any work takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A process that does one job.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    errors: Receiver<String>,
}

impl Worker {
    /// Starts a program and tells it its job.
    pub(crate) fn start(command: &[PathBuf], job: &Job) -> Result<Worker> {
        let (program, arguments) =
            command.split_first().context("a command is a program and more")?;
        let mut child = Command::new(program)
            .args(arguments)
            // Errors are told in a line.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().context("it has an input")?;
        let output = lines(child.stdout.take().context("it has an output")?);
        let errors = lines(child.stderr.take().context("it has an output for errors")?);
        let mut worker = Worker { child, input, output, errors };
        worker.tell(&serde_json::to_string(job)?)?;
        Ok(worker)
    }

    /// Waits until it has prepared everything.
    pub(crate) fn await_ready(&mut self) -> Result<()> {
        let line = self.line()?;
        ensure!(line == "ready", "a worker said {line:?} instead of being ready");
        Ok(())
    }

    /// Lets it begin.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.tell("go")
    }

    /// What came of it.
    pub(crate) fn outcome(&mut self) -> Result<Outcome> {
        serde_json::from_str(&self.line()?).context("an outcome cannot be read")
    }

    /// Waits until the process has ended in an orderly way.
    pub(crate) fn end(mut self) -> Result<()> {
        if let Ok(line) = self.output.recv_timeout(PATIENCE) {
            bail!("a worker said {line:?} at its end");
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "a worker ended with {status}: {}", self.complaints());
        Ok(())
    }

    /// Ends the process by SIGKILL, and waits until it has gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// How many TCP connections it has open.
    pub(crate) fn connections(&self) -> usize {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let sockets: HashSet<String> = std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter_map(|link| {
                Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
            })
            .collect();
        let established = |table: &str| {
            let table = std::fs::read_to_string(process.join(table)).unwrap_or_default();
            let is_mine = |line: &&str| {
                let mut fields = line.split_whitespace();
                // State 1 is "established"; the inode is the tenth field.
                fields.nth(3) == Some("01") && fields.nth(5).is_some_and(|i| sockets.contains(i))
            };
            table.lines().filter(is_mine).count()
        };
        established("net/tcp") + established("net/tcp6")
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let told = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        told.with_context(|| format!("a worker has gone: {}", self.complaints()))
    }

    fn line(&mut self) -> Result<String> {
        match self.output.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("a worker said nothing for {} s: {}", PATIENCE.as_secs(), self.complaints())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("a worker ended with {status}: {}", self.complaints())
            }
        }
    }

    /// The last of what it has complained about.
    fn complaints(&self) -> String {
        // Where the process has ended its last words come at once.
        let mut last = String::from("it gave no reason");
        while let Ok(line) = self.errors.recv_timeout(Duration::from_millis(100)) {
            if !line.trim().is_empty() {
                last = line;
            }
        }
        last
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
