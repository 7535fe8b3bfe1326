//! The command: found before the lock is asked for, started behind a gate, told apart by how it
//! ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::{env, fs};

use database_locks::Lease;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::FdFlags;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::args::{Exec, Run};
use crate::exit::{self, Failure, say};
use crate::group::Group;
use crate::settings::STATUS_FILE;
use crate::signals;

/// This program, also when its file was replaced since it started.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// The command, from its start behind the gate on.
pub(crate) struct Running {
    process: Child,
    gate: Option<PipeWriter>,
    group: Group,
}

/// What has become of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    Stopped(Signal),
    Ended(Ended),
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(u8),
    /// By this signal, which may be a real-time one.
    Killed(i32),
}

impl Ended {
    /// The exit code that shells give it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

/// Fails if the command cannot be executed, as far as that can be told without doing so.
pub(crate) fn find(program: &OsStr) -> Result<(), Failure> {
    if program.as_encoded_bytes().contains(&b'/') {
        return match fs::metadata(program) {
            Err(error) => Err(cannot_execute(program, &error)),
            Ok(_) if is_executable(Path::new(program)) => Ok(()),
            Ok(_) => Err(cannot_execute(program, &io::ErrorKind::PermissionDenied.into())),
        };
    }
    let Some(path) = env::var_os("PATH") else {
        // Then the system has a path of its own, which execution will search.
        return Ok(());
    };
    let mut error = io::ErrorKind::NotFound;
    if !program.is_empty() {
        for candidate in env::split_paths(&path).map(|folder| folder.join(program)) {
            if is_executable(&candidate) {
                return Ok(());
            }
            if candidate.is_file() {
                error = io::ErrorKind::PermissionDenied;
            }
        }
    }
    Err(cannot_execute(program, &error.into()))
}

impl Running {
    /// Starts a process that becomes the command once [`open_gate`](Self::open_gate) is called,
    /// and that ends without having done anything if this process dies before that.
    pub(crate) fn start_behind_gate(arguments: &Run, lease: &Lease) -> io::Result<Self> {
        let (reader, gate) = io::pipe()?;
        // Only the reader is inherited. Nothing else is started while it can be.
        rustix::io::fcntl_setfd(&reader, FdFlags::empty())?;
        let mut command = Command::new(THIS_PROGRAM);
        command
            .arg0("dblock")
            .args(["__exec", &reader.as_raw_fd().to_string(), "--"])
            .args(&arguments.command)
            .env("DATABASE_LOCKS_NAME", lease.name().as_str())
            .env("DATABASE_LOCKS_TOKEN", lease.token().to_string())
            .process_group(0);
        let is_ours = |theirs| arguments.status_file.as_ref().is_none_or(|ours| *ours == theirs);
        if env::var_os(STATUS_FILE).is_some_and(is_ours) {
            // A command that uses it too would overwrite what we show.
            command.env_remove(STATUS_FILE);
        }
        let process = command.spawn()?;
        let leader = Pid::from_raw(process.id().cast_signed());
        Ok(Self { process, gate: Some(gate), group: Group::new(leader) })
    }

    pub(crate) fn group(&self) -> Group {
        self.group
    }

    /// Lets the command begin.
    pub(crate) fn open_gate(&mut self) {
        if let Some(mut gate) = self.gate.take() {
            // If nobody waits behind the gate any more, its end is reported like any other.
            let _ = gate.write_all(b"!");
        }
    }

    /// What has become of the command since the last call. One that ended stays a zombie, so
    /// that its process group's number is not given to anybody else.
    pub(crate) fn state(&self) -> io::Result<State> {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        if let Some(status) = self.wait_for(ended)? {
            return Ok(State::Ended(match status.exit_status() {
                Some(code) => Ended::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
                None => {
                    Ended::Killed(status.terminating_signal().unwrap_or(Signal::SIGKILL as i32))
                }
            }));
        }
        let stopped = self.wait_for(WaitIdOptions::STOPPED)?;
        let signal = stopped.and_then(|status| status.stopping_signal());
        Ok(match signal.map(Signal::try_from) {
            Some(Ok(signal)) => State::Stopped(signal),
            _ => State::Runs,
        })
    }

    fn wait_for(&self, what: WaitIdOptions) -> io::Result<Option<WaitIdStatus>> {
        let leader = rustix::process::Pid::from_raw(self.group.id().as_raw());
        let leader = leader.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(waitid(WaitId::Pid(leader), what | WaitIdOptions::NOHANG)?)
    }

    /// Lets go of the number of the process group, once nobody signals it any more.
    pub(crate) fn reap(mut self) {
        // A leader that is stuck in the kernel is left to whoever inherits it.
        let _ = self.process.try_wait();
    }
}

/// The other side of [`Running::start_behind_gate`].
pub(crate) fn exec_behind_gate(exec: &Exec) -> ExitCode {
    // The descriptor is taken over by way of /proc, since a number alone proves no ownership;
    // this copy of it is closed on execution.
    let gate = File::open(format!("/proc/self/fd/{}", exec.gate));
    let _ = nix::unistd::close(exec.gate);
    signals::unblock();
    let opened = gate.and_then(|mut gate| gate.read_exact(&mut [0]));
    let ([program, arguments @ ..], Ok(())) = (&exec.command[..], opened) else {
        return ExitCode::from(exit::SYSTEM);
    };
    let error = Command::new(program).args(arguments).exec();
    let failure = cannot_execute(program, &error);
    say(&failure.message);
    ExitCode::from(failure.code)
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn cannot_execute(program: &OsStr, error: &io::Error) -> Failure {
    let program = program.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(exit::NOT_FOUND, format!("{program}: command not found"))
        }
        _ => Failure::new(exit::NOT_EXECUTABLE, format!("{program}: cannot be executed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_codes_that_shells_give_them() {
        assert_eq!(Ended::Exited(3).code(), 3);
        assert_eq!(Ended::Killed(15).code(), 143);
        assert_eq!(Ended::Killed(64).code(), 192);
    }

    #[test]
    fn what_cannot_be_executed_is_found_out_before() {
        assert_eq!(find("sh".as_ref()).map_err(|f| f.code), Ok(()));
        assert_eq!(find("/bin/sh".as_ref()).map_err(|f| f.code), Ok(()));
        assert_eq!(find("".as_ref()).map_err(|f| f.code), Err(127));
        assert_eq!(find("no-such-command-anywhere".as_ref()).map_err(|f| f.code), Err(127));
        assert_eq!(find("/no/such/command".as_ref()).map_err(|f| f.code), Err(127));
        assert_eq!(find("/proc/self/status".as_ref()).map_err(|f| f.code), Err(126));
        assert_eq!(find("/tmp".as_ref()).map_err(|f| f.code), Err(126));
        assert_eq!(find("/bin/sh/x".as_ref()).map_err(|f| f.code), Err(126));
    }
}
