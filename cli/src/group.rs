//! A process group: signalling it, and knowing who is left of it.

use std::fs;
use std::str::FromStr;
use std::time::Duration;

use database_locks::clock::time_since_boot;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process group that somebody keeps from being reused: its leader is not waited for while
/// this is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group(Pid);

impl Group {
    pub(crate) fn new(leader: Pid) -> Self {
        Self(leader)
    }

    pub(crate) fn id(self) -> Pid {
        self.0
    }

    /// Sends a signal to every process of the group that we may signal. A group without any is none of our worries.
    pub(crate) fn signal(self, signal: Signal) {
        let _ = killpg(self.0, signal);
    }

    /// Whether a process of the group still runs. A zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        if killpg(self.0, None) == Err(Errno::ESRCH) {
            return false;
        }
        match processes() {
            Some(mut processes) => processes.any(|process| process.runs_in(self.0)),
            None => true,
        }
    }

    /// Those processes of the group that still run, for people to read.
    pub(crate) fn names(self) -> String {
        let left = processes().into_iter().flatten().filter(|process| process.runs_in(self.0));
        let names: Vec<_> =
            left.map(|Process { pid, name, .. }| format!("{pid} ({name})")).collect();
        if names.is_empty() { "a process".to_owned() } else { names.join(", ") }
    }

    /// Ends every process of the group: SIGTERM, and SIGKILL at `kill_at` on the boot clock.
    /// Answers whether the whole group is gone. What survives this is stuck in the kernel, and does not get to run
    /// another instruction, or it has become another user's, whom we may not kill.
    pub(crate) async fn end(self, kill_at: Duration) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        const LOOK_AT_LEAST: Duration = Duration::from_millis(100);
        const STUCK: Duration = Duration::from_secs(5);
        let mut pause = LOOK_AGAIN;
        if self.is_alive() && time_since_boot() < kill_at {
            self.signal(Signal::SIGTERM);
            // What is stopped would not see the signal before it is killed.
            self.signal(Signal::SIGCONT);
            while time_since_boot() < kill_at && self.is_alive() {
                tokio::time::sleep(pause.min(kill_at.saturating_sub(time_since_boot()))).await;
                pause = (pause * 2).min(LOOK_AT_LEAST);
            }
        }
        // Also where nobody was seen: a process that forks and ends may have hidden from the look. The number is still
        // the group's.
        self.signal(Signal::SIGKILL);
        let (given_up_at, mut pause) = (time_since_boot() + STUCK, LOOK_AGAIN);
        while self.is_alive() {
            if time_since_boot() >= given_up_at {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AT_LEAST);
        }
        true
    }
}

/// Waits for processes that have ended and were left to this one, if it is the first process of a container. Those in
/// `except` are somebody else's to wait for.
pub(crate) fn reap_orphans(except: &[Option<Pid>]) {
    let own = Pid::this();
    if own.as_raw() != 1 {
        return;
    }
    let ended = processes().into_iter().flatten().filter(|process| {
        process.parent == own && process.state == 'Z' && !except.contains(&Some(process.pid))
    });
    for process in ended {
        let _ = waitpid(process.pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// A process, as the system tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    name: String,
    state: char,
    parent: Pid,
    group: Pid,
}

impl Process {
    fn runs_in(&self, group: Pid) -> bool {
        self.group == group && !matches!(self.state, 'Z' | 'X')
    }
}

fn processes() -> Option<impl Iterator<Item = Process>> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let processes =
        entries.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    Some(
        processes
            .filter_map(|entry| fs::read(entry.path().join("stat")).ok())
            // A name is cut off after some bytes, in the middle of a character perhaps.
            .filter_map(|stat| String::from_utf8_lossy(&stat).parse().ok()),
    )
}

/// Reads `/proc/PID/stat`: `pid (name) state ppid pgrp …`, where the name may hold anything.
impl FromStr for Process {
    type Err = ();

    fn from_str(stat: &str) -> Result<Self, ()> {
        let parse = || {
            let (before, after_name) = stat.rsplit_once(") ")?;
            let (pid, name) = before.split_once(" (")?;
            let mut fields = after_name.split(' ');
            let state = fields.next()?.chars().next()?;
            let mut number = || Some(Pid::from_raw(fields.next()?.parse().ok()?));
            let (parent, group) = (number()?, number()?);
            let pid = Pid::from_raw(pid.parse().ok()?);
            Some(Self { pid, name: name.to_owned(), state, parent, group })
        };
        parse().ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_stat() {
        let runs_in = |stat: &str| {
            stat.parse::<Process>().is_ok_and(|process| process.runs_in(Pid::from_raw(42)))
        };
        assert!(runs_in("43 (sh) S 1 42 42 0 -1"));
        assert!(runs_in("43 (a) Z 9 9 (b) T 1 42 42 0 -1"));
        assert!(!runs_in("42 (sh) Z 1 42 42 0 -1"));
        assert!(!runs_in("42 (sh) S 42 1 42 0 -1"));
        assert!(!runs_in(""));
        let strange: Process = "43 (a) (b) T 7 42 42 0".parse().unwrap();
        assert_eq!((strange.name.as_str(), strange.parent), ("a) (b", Pid::from_raw(7)));
    }
}
