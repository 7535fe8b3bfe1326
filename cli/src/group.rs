//! A process group: signalling it, and knowing who is left of it.

use std::fs;
use std::time::Duration;

use database_locks::clock::time_since_boot;
use nix::sys::signal::{Signal, killpg};
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

    /// Sends a signal to every process of the group. A group without any is none of our worries.
    pub(crate) fn signal(self, signal: Signal) {
        let _ = killpg(self.0, signal);
    }

    /// Whether a process of the group still runs. A zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        if killpg(self.0, None).is_err() {
            return false;
        }
        let Ok(processes) = fs::read_dir("/proc") else { return true };
        processes
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
            .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
            .any(|stat| runs_in(&stat, self.0))
    }

    /// Ends every process of the group: SIGTERM, and SIGKILL at `kill_at` on the boot clock.
    /// Answers whether the whole group is gone. Only a process that is stuck in the kernel
    /// survives this, and does not get to run another instruction.
    pub(crate) async fn end(self, kill_at: Duration) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        const STUCK: Duration = Duration::from_secs(5);
        if !self.is_alive() {
            return true;
        }
        if time_since_boot() < kill_at {
            self.signal(Signal::SIGTERM);
            // What is stopped would not see the signal before it is killed.
            self.signal(Signal::SIGCONT);
            while time_since_boot() < kill_at {
                tokio::time::sleep(LOOK_AGAIN.min(kill_at.saturating_sub(time_since_boot()))).await;
                if !self.is_alive() {
                    return true;
                }
            }
        }
        self.signal(Signal::SIGKILL);
        let given_up_at = time_since_boot() + STUCK;
        while self.is_alive() {
            if time_since_boot() >= given_up_at {
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        true
    }
}

/// Reads `/proc/PID/stat`: `pid (name) state ppid pgrp …`, where the name may hold anything.
fn runs_in(stat: &str, group: Pid) -> bool {
    let Some((_, after_name)) = stat.rsplit_once(") ") else { return false };
    let mut fields = after_name.split(' ');
    let (state, _parent, pgrp) = (fields.next(), fields.next(), fields.next());
    !matches!(state, Some("Z" | "X") | None)
        && pgrp.and_then(|pgrp| pgrp.parse().ok()) == Some(group.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_stat() {
        let group = Pid::from_raw(42);
        assert!(runs_in("43 (sh) S 1 42 42 0 -1", group));
        assert!(runs_in("43 (a) Z 9 9 (b) T 1 42 42 0 -1", group));
        assert!(!runs_in("42 (sh) Z 1 42 42 0 -1", group));
        assert!(!runs_in("42 (sh) S 42 1 42 0 -1", group));
        assert!(!runs_in("", group));
    }
}
