//! The signals that `dblock` receives, as a stream, instead of what they would do to it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::terminal::signal_own_job;

/// What is passed on to the command. `dblock` itself lives on through all of them.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// Signals in the order of their arrival.
pub(crate) struct Signals {
    arriving: mpsc::UnboundedReceiver<Signal>,
    /// What arrived while nobody could attend to it.
    kept: VecDeque<Signal>,
}

impl Signals {
    /// Blocks the signals and listens to them. Must be called while this is the only thread, since
    /// those started later inherit what is blocked. Processes do as well: see [`unblock`].
    pub(crate) fn listen() -> io::Result<Self> {
        // What was ignored when we started (as under nohup) stays so, here and in the command.
        let ignored = ignored_signals()?;
        let heard: SigSet =
            PASSED_ON.into_iter().filter(|&signal| ignored & bit(signal) == 0).collect();
        let mut blocked = heard;
        // Lets us speak and change the terminal's foreground from the background.
        blocked.add(Signal::SIGTTOU);
        blocked.thread_block()?;
        let (sender, arriving) = mpsc::unbounded_channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Ok(signal) = heard.wait() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { arriving, kept: VecDeque::new() })
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        if let Some(signal) = self.kept.pop_front() {
            return signal;
        }
        match self.arriving.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Stops our whole job, as Ctrl-Z does to one that does not listen, until it is continued.
    /// Returns at once where the system does not let it stop, because nobody could continue it.
    pub(crate) async fn stop_own_job(&mut self) {
        const ON_ITS_WAY: Duration = Duration::from_millis(100);
        signal_own_job(Signal::SIGTSTP);
        // Our own copy has to be out of the way, or it would stop us a second time.
        let _ = timeout(ON_ITS_WAY, async {
            while let Some(signal) = self.arriving.recv().await
                && signal != Signal::SIGTSTP
            {
                self.kept.push_back(signal);
            }
        })
        .await;
        let stop = SigSet::from(Signal::SIGTSTP);
        let _ = stop.thread_unblock();
        let _ = raise(Signal::SIGTSTP);
        let _ = stop.thread_block();
    }
}

/// Undoes [`Signals::listen`] in a process that was started since.
pub(crate) fn unblock() {
    let blocked: SigSet = PASSED_ON.into_iter().chain([Signal::SIGTTOU]).collect();
    let _ = blocked.thread_unblock();
}

/// Whether a signal asks a process that waits to give up.
pub(crate) fn asks_to_end(signal: Signal) -> bool {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    matches!(signal, SIGHUP | SIGINT | SIGQUIT | SIGTERM)
}

fn ignored_signals() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status does not say which signals are ignored"))
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_known() {
        // Rust's runtime ignores SIGPIPE, and nobody ignores SIGSEGV.
        let ignored = ignored_signals().unwrap();
        assert_ne!(ignored & bit(Signal::SIGPIPE), 0);
        assert_eq!(ignored & bit(Signal::SIGSEGV), 0);
    }
}
