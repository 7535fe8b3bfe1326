//! The terminal: whose turn it is to read from it, and to get its Ctrl-C.
//!
//! The command runs in a process group of its own, which the terminal calls a background job
//! until it is told otherwise. In a pipeline (`dblock run … | less`) the neighbours in our own
//! group need the terminal too, so there the command gets it only once it asks for it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::{FileType, fstat};
use rustix::process::getpgrp;
use rustix::termios::{
    OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetpgrp,
};

use crate::group::Group;

/// The terminal that this process was started from.
pub(crate) struct Terminal {
    file: File,
    modes: Option<Termios>,
    in_a_pipeline: bool,
    given_to: Option<Group>,
}

impl Terminal {
    /// The controlling terminal, where there is one.
    pub(crate) fn open() -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        let modes = tcgetattr(&file).ok();
        let in_a_pipeline =
            is_pipe(std::io::stdin()) || is_pipe(std::io::stdout()) || is_pipe(std::io::stderr());
        Some(Self { file, modes, in_a_pipeline, given_to: None })
    }

    /// Hands the terminal to a command that starts, or runs on after a stop.
    pub(crate) fn hand_over(&mut self, group: Group) {
        if !self.in_a_pipeline {
            self.hand_over_on_demand(group);
        }
    }

    /// Hands the terminal to a command that was stopped because it wants to use it. Answers
    /// whether it was ours to hand over.
    pub(crate) fn hand_over_on_demand(&mut self, group: Group) -> bool {
        let ours = tcgetpgrp(&self.file).is_ok_and(|front| front == getpgrp());
        let Some(pid) = rustix::process::Pid::from_raw(group.id().as_raw()) else { return false };
        if ours && tcsetpgrp(&self.file, pid).is_ok() {
            self.given_to = Some(group);
        }
        ours
    }

    /// Takes the terminal back, unless somebody else has got it meanwhile. Answers whether the
    /// command had it until now.
    pub(crate) fn take_back(&mut self) -> bool {
        let Some(group) = self.given_to.take() else { return false };
        let front = tcgetpgrp(&self.file).map(|front| Pid::from_raw(front.as_raw_pid()));
        // An interactive shell that was killed leaves a job in front that is no more.
        let had_it = front.is_ok_and(|front| front == group.id() || killpg(front, None).is_err());
        if had_it {
            let _ = tcsetpgrp(&self.file, getpgrp());
        }
        had_it
    }

    /// Undoes what a command did to the terminal that had no chance to do so itself.
    pub(crate) fn restore_modes(&self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(&self.file, OptionalActions::Now, modes);
        }
    }
}

/// Sends a signal to the rest of the job that this process is part of, as the terminal would.
pub(crate) fn signal_own_job(signal: Signal) {
    let _ = killpg(Pid::from_raw(0), signal);
}

/// How many columns standard error has, where it is a terminal whose current line is ours to
/// rewrite: while our job is in the background, that is the line somebody types on.
pub(crate) fn columns_of_stderr() -> Option<usize> {
    let size = tcgetwinsize(std::io::stderr()).ok()?;
    let in_the_background = tcgetpgrp(std::io::stderr()).is_ok_and(|front| front != getpgrp());
    (!in_the_background).then_some(match size.ws_col {
        0 => 80,
        columns => usize::from(columns),
    })
}

fn is_pipe(stream: impl AsFd) -> bool {
    fstat(stream).is_ok_and(|stat| {
        matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket)
    })
}
