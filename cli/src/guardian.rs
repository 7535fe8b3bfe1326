//! The guardian: a second process that ends the command's group if this one cannot.
//!
//! It lives in a session of its own, so that what is sent to `dblock`'s group or session does not
//! reach it, and listens on a pipe. The end of the pipe without a farewell means that `dblock` is
//! dead, and a deadline that passes without news means that it hangs: in both cases the group is
//! killed at once.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::setsid;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::child::THIS_PROGRAM;
use crate::exit;
use crate::group::Group;

/// How long a guardian may take to hear something.
const PATIENCE: Duration = Duration::from_secs(1);

/// `dblock`'s side of a guardian.
pub(crate) struct Guardian {
    process: Child,
    news: ChildStdin,
}

impl Guardian {
    /// Starts a guardian, and returns once it guards `group`, which it will kill at `kill_at` on
    /// the boot clock unless it hears better news.
    pub(crate) async fn start(group: Group, kill_at: Option<Duration>) -> io::Result<Self> {
        let mut command = std::process::Command::new(THIS_PROGRAM);
        // It inherits our blocked signals, so that no Ctrl-C can hit it on its way.
        command.arg0("dblock").arg("__guard");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Command::from(command).spawn()?;
        let missing = || io::Error::other("its pipes are missing");
        let mut news = process.stdin.take().ok_or_else(missing)?;
        let mut answers = process.stdout.take().ok_or_else(missing)?;
        tell(&mut news, Message::Guard(group.id(), kill_at)).await?;
        answers.read_exact(&mut [0; READY.len()]).await?;
        Ok(Self { process, news })
    }

    /// Tells it the new deadline.
    pub(crate) async fn extend(&mut self, kill_at: Option<Duration>) {
        let told = tell(&mut self.news, Message::Until(kill_at));
        // One that does not listen is dead, which `gone` reports. One whose pipe is full was stopped, and is of no use.
        if timeout(PATIENCE, told).await.is_err() {
            let _ = self.process.start_kill();
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> Option<Pid> {
        self.process.id().map(|id| Pid::from_raw(id.cast_signed()))
    }

    /// Completes when the guardian is no more. Cancel safe.
    pub(crate) async fn gone(&mut self) {
        let _ = self.process.wait().await;
    }

    /// Sends it home: the group is gone, and its number may be reused as soon as this is said.
    pub(crate) async fn farewell(mut self) {
        let _ = timeout(PATIENCE, tell(&mut self.news, Message::Farewell)).await;
        if timeout(PATIENCE, self.gone()).await.is_err() {
            // It was stopped, and might kill whoever gets the group's number once it goes on.
            let _ = self.process.start_kill();
        }
    }
}

async fn tell(news: &mut ChildStdin, message: Message) -> io::Result<()> {
    news.write_all(message.to_string().as_bytes()).await
}

const READY: &[u8] = b"ready\n";

/// A line of what `dblock` tells its guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Guard(Pid, Option<Duration>),
    Until(Option<Duration>),
    Farewell,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |until: Option<Duration>| {
            until.map_or("forever".to_owned(), |until| until.as_micros().to_string())
        };
        match *self {
            Self::Guard(group, until) => writeln!(f, "guard {group} {}", micros(until)),
            Self::Until(until) => writeln!(f, "until {}", micros(until)),
            Self::Farewell => writeln!(f, "farewell"),
        }
    }
}

impl FromStr for Message {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let until = |text: &str| match text {
            "forever" => Ok(None),
            micros => micros.parse().map(Duration::from_micros).map(Some).map_err(|_| ()),
        };
        match line.split(' ').collect::<Vec<_>>()[..] {
            // A group of 1 or less would mean everybody, or nobody.
            ["guard", group, time] => match group.parse() {
                Ok(group @ 2..) => Ok(Self::Guard(Pid::from_raw(group), until(time)?)),
                _ => Err(()),
            },
            ["until", time] => Ok(Self::Until(until(time)?)),
            ["farewell"] => Ok(Self::Farewell),
            _ => Err(()),
        }
    }
}

/// The guardian's own main.
pub(crate) fn stand_guard() -> ExitCode {
    let _ = SigSet::all().thread_block();
    close_what_was_inherited();
    // Without a session of its own it still guards, only less sheltered.
    let _ = setsid();
    // A working folder would keep a file system from being unmounted.
    let _ = std::env::set_current_dir("/");
    match watch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(exit::SYSTEM),
    }
}

/// Listens until the farewell, or until the group had to be killed.
fn watch() -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    let stdin = io::stdin();
    let mut group = None;
    let mut buffer = Vec::new();
    let ending = loop {
        let mut sources = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&timer, PollFlags::IN)];
        match poll(&mut sources, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => break Err(error.into()),
            Ok(_) => {}
        }
        // News come before the deadline, which they may have moved.
        if sources[0].revents().is_empty() {
            break Ok(());
        }
        let mut chunk = [0; 4096];
        match rustix::io::read(&stdin, &mut chunk) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => break Err(error.into()),
            Ok(0) => break Ok(()),
            Ok(length) => buffer.extend_from_slice(&chunk[..length]),
        }
        match hear(&mut buffer, &mut group) {
            Ok(Some(Heard::Farewell)) => return Ok(()),
            Ok(Some(Heard::Until(until))) => set_timer(&timer, until)?,
            Ok(None) => {}
            Err(error) => break Err(error),
        }
    };
    if let Some(group) = group {
        Group::new(group).signal(Signal::SIGKILL);
    }
    ending
}

enum Heard {
    Until(Option<Duration>),
    Farewell,
}

/// Takes the whole lines out of the buffer, and answers what the last of them said.
fn hear(buffer: &mut Vec<u8>, group: &mut Option<Pid>) -> io::Result<Option<Heard>> {
    let mut heard = None;
    while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
        let line: Vec<u8> = buffer.drain(..=end).collect();
        let line = str::from_utf8(&line[..end]).map_err(|_| io::ErrorKind::InvalidData)?;
        match line.parse().map_err(|()| io::ErrorKind::InvalidData)? {
            Message::Guard(leader, until) => {
                *group = Some(leader);
                let mut stdout = io::stdout();
                stdout.write_all(READY)?;
                stdout.flush()?;
                heard = Some(Heard::Until(until));
            }
            Message::Until(until) => heard = Some(Heard::Until(until)),
            Message::Farewell => return Ok(Some(Heard::Farewell)),
        }
    }
    Ok(heard)
}

fn set_timer(timer: &impl std::os::fd::AsFd, until: Option<Duration>) -> io::Result<()> {
    // A zero would disarm the timer; one nanosecond after boot is as past as any moment.
    let until = until.map_or(Duration::ZERO, |until| until.max(Duration::from_nanos(1)));
    let spec = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: until.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: until.subsec_nanos().into(),
        },
    };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &spec)?;
    Ok(())
}

/// Closes everything but the standard streams, which are our own pipes: whoever waits for the
/// end of a pipe that the user handed to the command must not wait for the guardian.
fn close_what_was_inherited() {
    let Ok(folder) = fs::read_dir("/proc/self/fd") else { return };
    let inherited: Vec<i32> =
        folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in inherited.into_iter().filter(|&descriptor| descriptor > 2) {
        let _ = nix::unistd::close(descriptor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        let moment = Some(Duration::from_micros(123_456_789_012));
        for message in [
            Message::Guard(Pid::from_raw(4242), moment),
            Message::Guard(Pid::from_raw(2), None),
            Message::Until(moment),
            Message::Until(None),
            Message::Farewell,
        ] {
            assert_eq!(message.to_string().trim_end().parse(), Ok(message));
        }
    }

    #[tokio::test]
    async fn a_guardian_that_was_stopped_holds_nobody_up() {
        let mut process = Command::new("sleep").arg("600").stdin(Stdio::piped()).spawn().unwrap();
        let news = process.stdin.take().unwrap();
        let mut guardian = Guardian { process, news };
        let gone = async {
            // Until the pipe is full.
            for i in 0..u64::MAX {
                guardian.extend(Some(Duration::from_secs(i))).await;
                if guardian.process.try_wait().unwrap().is_some() {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(60), gone).await.expect("it is ended, and can be replaced");
    }

    #[test]
    fn nonsense_is_not_obeyed() {
        for line in ["", "guard", "guard 1 5", "guard -1 5", "guard 0 5", "guard 7", "until x"] {
            assert_eq!(line.parse::<Message>(), Err(()), "{line:?}");
        }
    }

    #[test]
    fn a_line_that_came_in_pieces_is_heard_once_whole() {
        let (mut buffer, mut group) = (b"until 5".to_vec(), None);
        assert!(hear(&mut buffer, &mut group).unwrap().is_none());
        buffer.extend(b"0\nfare");
        let heard = hear(&mut buffer, &mut group).unwrap();
        assert!(matches!(heard, Some(Heard::Until(Some(u))) if u == Duration::from_micros(50)));
        buffer.extend(b"well\n");
        assert!(matches!(hear(&mut buffer, &mut group), Ok(Some(Heard::Farewell))));
    }
}
