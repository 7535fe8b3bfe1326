//! What a program is doing, as far as the system tells.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many lines of a log are shown.
const TAIL: usize = 20;

/// A process and those that it started, parents first.
pub(crate) struct Processes(Vec<Process>);

struct Process {
    id: Pid,
    depth: usize,
    /// When it was started. Another one may have its number later.
    started: String,
}

impl Processes {
    pub(crate) fn under(root: Pid) -> Self {
        let mut children: HashMap<Pid, Vec<(Pid, String)>> = HashMap::new();
        for id in ids() {
            if let Some((parent, started)) = stat(id) {
                children.entry(parent).or_default().push((id, started));
            }
        }
        let mut found = Vec::new();
        let started = stat(root).map(|(_, started)| started).unwrap_or_default();
        let mut open = vec![Process { id: root, depth: 0, started }];
        while let Some(process) = open.pop() {
            let its = children.remove(&process.id).unwrap_or_default();
            open.extend(its.into_iter().map(|(id, started)| Process {
                id,
                depth: process.depth + 1,
                started,
            }));
            found.push(process);
        }
        Self(found)
    }

    /// The command lines of all processes that have not ended.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<String> {
        ids().filter(|id| stat(*id).is_some()).map(command_line).collect()
    }

    /// Whether any of them has not ended.
    pub(crate) fn live(&self) -> bool {
        self.0.iter().any(Process::lives)
    }

    /// Kills those that have not ended.
    pub(crate) fn kill(&self) {
        for process in self.0.iter().filter(|process| process.lives()) {
            let _ = kill(process.id, Signal::SIGKILL);
        }
    }
}

impl Process {
    fn lives(&self) -> bool {
        stat(self.id).is_some_and(|(_, started)| started == self.started)
    }
}

/// What they are, what the threads of the first one wait for, and the ends of the logs of the rest.
impl fmt::Display for Processes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(root) = self.0.first() else { return Ok(()) };
        writeln!(formatter, "its threads, and where in the kernel they wait:")?;
        let tasks = fs::read_dir(format!("/proc/{}/task", root.id)).into_iter().flatten().flatten();
        for task in tasks {
            let id = task.file_name();
            let (name, place) = (read(task.path().join("comm")), read(task.path().join("wchan")));
            writeln!(formatter, "    {:>7} {:15} {place}", id.display(), name.trim_end())?;
        }
        writeln!(formatter, "its processes:")?;
        for process in &self.0 {
            let line = command_line(process.id);
            let place = read(format!("/proc/{}/wchan", process.id));
            let indent = "  ".repeat(process.depth);
            writeln!(formatter, "    {indent}{} {line:.200} ({place})", process.id)?;
        }
        // Servers run in the folder that has their log.
        let logs = self.0.iter().filter_map(|process| {
            let log = fs::read_link(format!("/proc/{}/cwd", process.id)).ok()?.join("log");
            Some((fs::read(&log).ok()?, log))
        });
        for (text, log) in logs {
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            writeln!(formatter, "the end of {}:", log.display())?;
            for line in &lines[lines.len().saturating_sub(TAIL)..] {
                writeln!(formatter, "    {line}")?;
            }
        }
        Ok(())
    }
}

fn ids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.map(Pid::from_raw)
}

/// On one line, though a script among the arguments has lines of its own.
fn command_line(process: Pid) -> String {
    let line = read(format!("/proc/{process}/cmdline")).replace('\0', " ");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The parent of a process that has not ended, and when it was started.
fn stat(process: Pid) -> Option<(Pid, String)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in brackets, and may itself have spaces and brackets.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ([state, parent, ..], Some(started)) = (&fields[..], fields.get(19)) else { return None };
    (!matches!(*state, "Z" | "X")).then_some(())?;
    Some((Pid::from_raw(parent.parse().ok()?), (*started).to_owned()))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}
