//! `dblock run`: waits for the lock, runs the command while the lease lives, releases the lock.

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use database_locks::clock::time_since_boot;
use database_locks::{ErrorKind, Guard, Lease, LockRequest, Locks, LossReason, Settings, Ttl};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::args::Run;
use crate::child::{self, Ended, Running, State};
use crate::exit::{self, Failure, block_on, say};
use crate::group::reap_orphans;
use crate::guardian::Guardian;
use crate::settings;
use crate::signals::{Signals, asks_to_end};
use crate::terminal::{Terminal, signal_own_job};
use crate::waiting::Waiting;

pub(crate) fn run(arguments: Run) -> Result<u8, Failure> {
    child::find(&arguments.command[0])?;
    let settings = settings::of_run(&arguments)?;
    let signals = Signals::listen().map_err(|error| Failure::system("no signals", error))?;
    block_on(connect_and_run(&arguments, &settings, signals))
}

async fn connect_and_run(
    arguments: &Run,
    settings: &Settings,
    mut signals: Signals,
) -> Result<u8, Failure> {
    const SHUTDOWN: Duration = Duration::from_secs(2);
    let started = Instant::now();
    let ttl = match arguments.ttl {
        Some(ttl) => ttl,
        None => settings.ttl()?,
    };
    let locks = match connect(arguments, settings, &mut signals).await? {
        ControlFlow::Continue(locks) => locks,
        ControlFlow::Break(code) => return Ok(code),
    };
    let timeout_left = arguments.timeout.map(|limit| limit.saturating_sub(started.elapsed()));
    let request = request(arguments, ttl, &locks);
    let code = match obtain(arguments, timeout_left, request, &mut signals).await {
        Ok(ControlFlow::Continue(guard)) => run_while_held(arguments, ttl, guard, signals).await,
        Ok(ControlFlow::Break(code)) => Ok(code),
        Err(failure) => Err(failure),
    };
    // Lets a claim that was given up and a release that is queued reach the database.
    let _ = timeout(SHUTDOWN, locks.shutdown()).await;
    code
}

/// Breaks with the exit code if a signal asks to end meanwhile.
async fn connect(
    arguments: &Run,
    settings: &Settings,
    signals: &mut Signals,
) -> Result<ControlFlow<u8, Locks>, Failure> {
    const LEAST: Duration = Duration::from_secs(1);
    let mut connected = pin!(async {
        let connecting = settings.connect();
        match arguments.timeout {
            None => Ok(connecting.await?),
            Some(limit) => match timeout(limit.max(LEAST), connecting).await {
                Ok(connected) => Ok(connected?),
                Err(_) => Err(Failure::new(
                    exit::UNAVAILABLE,
                    "the database did not answer in time: is the server up?",
                )),
            },
        }
    });
    loop {
        tokio::select! {
            locks = &mut connected => return locks.map(ControlFlow::Continue),
            signal = signals.next() => if let Some(code) = signal_while_waiting(signal, signals).await {
                return Ok(ControlFlow::Break(code));
            },
        }
    }
}

/// Waits for the lock. Breaks with the exit code if it is not obtained, or a signal asks to end.
async fn obtain(
    arguments: &Run,
    timeout_left: Option<Duration>,
    request: LockRequest,
    signals: &mut Signals,
) -> Result<ControlFlow<u8, Guard>, Failure> {
    const REFRESH: Duration = Duration::from_secs(1);
    let (busy, mut is_busy) = watch::channel(None);
    let request = request.on_wait(move |now| {
        busy.send_replace(Some(now.clone()));
    });
    let mut acquired = pin!(async {
        let request = match timeout_left {
            Some(limit) => request.timeout(limit),
            None => request,
        };
        if arguments.no_wait {
            return request.try_acquire().await;
        }
        request.acquire().await.map(Some)
    });
    let mut waiting = Waiting::new(arguments.name.clone());
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let obtained = loop {
        tokio::select! {
            biased;
            obtained = &mut acquired => break obtained,
            signal = signals.next() => {
                waiting.clear();
                if let Some(code) = signal_while_waiting(signal, signals).await {
                    return Ok(ControlFlow::Break(code));
                }
            }
            Ok(()) = is_busy.changed() => {
                let news = is_busy.borrow_and_update().clone();
                if let Some(news) = news {
                    waiting.update(news);
                }
            }
            _ = refresh.tick() => {
                reap_orphans(&[]);
                waiting.show();
            }
        }
    };
    waiting.clear();
    let message = match obtained {
        Ok(Some(guard)) => return Ok(ControlFlow::Continue(guard)),
        Ok(None) => "somebody else holds it".to_owned(),
        Err(error) if error.kind() == ErrorKind::Timeout => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    say(&format!("did not obtain {:?}: {message}", arguments.name.as_str()));
    Ok(ControlFlow::Break(arguments.not_obtained_exit))
}

async fn signal_while_waiting(signal: Signal, signals: &mut Signals) -> Option<u8> {
    if signal == Signal::SIGTSTP {
        signals.stop_own_job().await;
    }
    asks_to_end(signal).then(|| Ended::Killed(signal as i32).code())
}

fn request(arguments: &Run, ttl: Ttl, locks: &Locks) -> LockRequest {
    let mut request = locks
        .lock(arguments.name.as_str())
        .ttl(ttl)
        .auto_renew(!arguments.no_renew)
        .retry(arguments.retry)
        .grace(arguments.grace);
    if let Some(ttl) = ttl.duration() {
        request = request.margin(margin(ttl));
    }
    if let Some(renew_before) = arguments.renew_before {
        request = request.renew_before(renew_before);
    }
    match &arguments.owner {
        Some(owner) => request.owner(owner.label()),
        None => request,
    }
}

/// How long before the server's expiry the command gets SIGTERM.
fn margin(ttl: Duration) -> Duration {
    (ttl / 5).clamp(Duration::from_millis(20), Duration::from_secs(5))
}

/// How long before the server's expiry the command gets SIGKILL: time enough for a busy machine
/// to do so before somebody else is granted the lock.
fn last_moment(ttl: Duration) -> Duration {
    (ttl / 20).clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// Runs the command to its end, or to that of the lease, and releases the lock.
async fn run_while_held(
    arguments: &Run,
    ttl: Ttl,
    guard: Guard,
    signals: Signals,
) -> Result<u8, Failure> {
    let lease = guard.lease();
    let outcome = match Holding::start(arguments, ttl, lease, signals).await {
        Ok(holding) => holding.see_through().await,
        Err(failure) => Err(failure),
    };
    release(guard, matches!(outcome, Ok(Outcome::Ended(_)))).await;
    match outcome? {
        Outcome::Ended(ended) => Ok(ended.code()),
        Outcome::Lost(reason) => Err(Failure::new(
            exit::LOST,
            format!("lost the lock {:?}: {reason}; the command was ended", arguments.name.as_str()),
        )),
    }
}

async fn release(guard: Guard, loss_is_news: bool) {
    const LONGEST: Duration = Duration::from_secs(10);
    let name = guard.name().clone();
    let limit = guard.remaining().unwrap_or(LONGEST).min(LONGEST);
    match timeout(limit, guard.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.kind() == ErrorKind::Lost && !loss_is_news => {}
        Ok(Err(error)) => say(&format!("the command has ended, but {error}")),
        Err(_) => say(&format!(
            "the database does not answer: the lock {:?} stays held until it expires",
            name.as_str()
        )),
    }
}

enum Outcome {
    Ended(Ended),
    Lost(LossReason),
}

/// A command that runs under a lease.
struct Holding {
    lease: Lease,
    deadline: Deadline,
    signals: Signals,
    child_changes: tokio::signal::unix::Signal,
    running: Running,
    guardian: Guardian,
    terminal: Option<Terminal>,
}

impl Holding {
    async fn start(
        arguments: &Run,
        ttl: Ttl,
        lease: Lease,
        signals: Signals,
    ) -> Result<Self, Failure> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut deadline = Deadline { kill_at: None, ttl };
        deadline.follow(&lease);
        // Before the command starts, lest its end be missed.
        let child_changes = signal(SignalKind::child())
            .map_err(|error| Failure::system("cannot watch the command", error))?;
        let mut running = Running::start_behind_gate(arguments, &lease)
            .map_err(|error| Failure::system("cannot start the command", error))?;
        let guarded = Guardian::start(running.group(), deadline.kill_at);
        let guardian = match timeout(PATIENCE, guarded).await {
            Ok(Ok(guardian)) => guardian,
            problem => {
                running.group().end(Duration::ZERO).await;
                running.reap();
                let why = problem.map_or_else(
                    |_| "it does not answer".to_owned(),
                    |started| started.err().map_or_else(String::new, |error| error.to_string()),
                );
                return Err(Failure::system("cannot start the guardian", why));
            }
        };
        let mut terminal = Terminal::open();
        if lease.check().is_ok() {
            if let Some(terminal) = &mut terminal {
                terminal.hand_over(running.group());
            }
            running.open_gate();
        }
        Ok(Self { lease, deadline, signals, child_changes, running, guardian, terminal })
    }

    async fn see_through(mut self) -> Result<Outcome, Failure> {
        const FOR_WHAT_IS_LEFT: Duration = Duration::from_secs(5);
        let mut watched = self.watch().await;
        let now = time_since_boot();
        let group = self.running.group();
        let kill_at = match &watched {
            Ok(Outcome::Ended(_)) => {
                let at = now + FOR_WHAT_IS_LEFT;
                self.deadline.kill_at.map_or(at, |deadline| deadline.min(at))
            }
            Ok(Outcome::Lost(reason)) if may_be_granted_again(*reason) => now,
            Ok(Outcome::Lost(_)) => self.deadline.kill_at.unwrap_or(now),
            Err(_) => now,
        };
        if !group.end(kill_at).await {
            let is_held = matches!(watched, Ok(Outcome::Ended(_)));
            if let Some(reason) = self.outlast(is_held).await {
                watched = Ok(Outcome::Lost(reason));
            }
        }
        self.take_the_terminal_back();
        self.guardian.farewell().await;
        self.running.reap();
        watched.map_err(|error| Failure::system("cannot watch the command", error))
    }

    /// Waits for what is left of the command and cannot be ended, if that is of use: as long as the lock is held, and until
    /// somebody asks to end once more. Answers with the loss of the lock, if that came first.
    async fn outlast(&mut self, is_held: bool) -> Option<LossReason> {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let group = self.running.group();
        let left = group.names();
        if !is_held {
            say(&format!("{left} of the command cannot be ended, and goes on without the lock"));
            return None;
        }
        say(&format!(
            "{left} of the command cannot be ended, as it is another user's or stuck in the kernel: \
             the lock stays held until it is gone, or this program is told to end once more"
        ));
        let mut tick = interval(LOOK_AGAIN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                reason = self.lease.lost() => {
                    say(&format!("{} of the command still runs, without the lock", group.names()));
                    return Some(reason);
                }
                signal = self.signals.next() => {
                    group.signal(signal);
                    if asks_to_end(signal) {
                        say(&format!("{} of the command is left behind", group.names()));
                        return None;
                    }
                }
                _ = tick.tick() => {
                    self.reap_orphans();
                    if !group.is_alive() {
                        return None;
                    }
                    if self.deadline.follow(&self.lease) {
                        self.guardian.extend(self.deadline.kill_at).await;
                    }
                }
            }
        }
    }

    /// Serves the command until it, or its lease, has ended.
    async fn watch(&mut self) -> std::io::Result<Outcome> {
        let mut tick = interval(self.deadline.period());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = self.child_changes.recv() => match self.changed()? {
                    State::Ended(ended) => return Ok(match self.lease.check() {
                        Ok(()) => Outcome::Ended(ended),
                        // Then nobody knows whether it ended in time.
                        Err(lost) => Outcome::Lost(lost.loss().unwrap_or(LossReason::Expired)),
                    }),
                    State::Stopped(by) => self.stop_too(by).await,
                    State::Runs => {}
                },
                reason = self.lease.lost() => return Ok(Outcome::Lost(reason)),
                signal = self.signals.next() => {
                    if signal == Signal::SIGCONT {
                        self.run_on();
                    } else {
                        self.running.group().signal(signal);
                    }
                }
                () = self.guardian.gone() => self.replace_guardian().await?,
                _ = tick.tick() => if self.deadline.follow(&self.lease) {
                    self.guardian.extend(self.deadline.kill_at).await;
                },
            }
        }
    }

    /// What has become of the command, now that the state of some child has changed.
    fn changed(&self) -> std::io::Result<State> {
        self.reap_orphans();
        self.running.state()
    }

    fn reap_orphans(&self) {
        reap_orphans(&[Some(self.running.group().id()), self.guardian.id()]);
    }

    async fn replace_guardian(&mut self) -> std::io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        if self.lease.check().is_err() {
            // It has done its duty, and the loss is about to be seen.
            return Ok(());
        }
        tracing::warn!("the guardian of the command died: starting another one");
        let group = self.running.group();
        let lease = self.lease.clone();
        let mut started = pin!(Guardian::start(group, self.deadline.kill_at));
        let give_up_at = Instant::now() + PATIENCE;
        tokio::select! {
            started = timeout_at(give_up_at, &mut started) => self.guardian = started??,
            // Then the command is to end now, and what may guard it by now must hear of the end of that.
            _ = lease.lost() => {
                group.signal(Signal::SIGTERM);
                group.signal(Signal::SIGCONT);
                if let Ok(Ok(guardian)) = timeout_at(give_up_at, started).await {
                    self.guardian = guardian;
                }
            }
        }
        Ok(())
    }

    /// A command that stops itself for the terminal's sake gets the terminal if it can have it;
    /// otherwise our job stops with it, as the shell that watches the job expects.
    async fn stop_too(&mut self, by: Signal) {
        let Some(terminal) = &mut self.terminal else { return };
        match by {
            Signal::SIGTTIN | Signal::SIGTTOU
                if terminal.hand_over_on_demand(self.running.group()) =>
            {
                self.running.group().signal(Signal::SIGCONT);
            }
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => {
                terminal.take_back();
                self.signals.stop_own_job().await;
                self.run_on();
            }
            _ => {}
        }
    }

    fn run_on(&mut self) {
        // A stop may have outlived the lease.
        if self.lease.check().is_ok() {
            if let Some(terminal) = &mut self.terminal {
                terminal.hand_over(self.running.group());
            }
            self.running.group().signal(Signal::SIGCONT);
        }
    }

    fn take_the_terminal_back(&mut self) {
        let Some(terminal) = &mut self.terminal else { return };
        let command_had_it = terminal.take_back();
        if let (true, Ok(State::Ended(Ended::Killed(signal)))) =
            (command_had_it, self.running.state())
        {
            terminal.restore_modes();
            // Ctrl-C went to the command alone. The script around us is to hear of it as well.
            for from_the_keyboard in [Signal::SIGINT, Signal::SIGQUIT] {
                if signal == from_the_keyboard as i32 {
                    signal_own_job(from_the_keyboard);
                }
            }
        }
    }
}

/// Whether somebody else may be holding the lock already.
fn may_be_granted_again(reason: LossReason) -> bool {
    !matches!(reason, LossReason::Expired | LossReason::Shutdown)
}

/// When the command has to be killed, on the boot clock, unless its lease is renewed.
struct Deadline {
    kill_at: Option<Duration>,
    ttl: Ttl,
}

impl Deadline {
    /// Moves with the lease. Answers whether it moved.
    fn follow(&mut self, lease: &Lease) -> bool {
        const NOISE: Duration = Duration::from_millis(1);
        // Read before what remains, so that the sum is early rather than late.
        let now = time_since_boot();
        let (Some(ttl), Some(remaining)) = (self.ttl.duration(), lease.remaining()) else {
            return false;
        };
        if remaining.is_zero() {
            // A lease that has ended says nothing about when it did.
            self.kill_at.get_or_insert(now);
            return false;
        }
        let kill_at = now + remaining + (margin(ttl) - last_moment(ttl));
        let moved = self.kill_at.is_none_or(|old| kill_at > old + NOISE);
        if moved {
            self.kill_at = Some(kill_at);
        }
        moved
    }

    /// How often to look whether the lease was renewed.
    fn period(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(5);
        self.ttl.duration().map_or(LONGEST, |ttl| (ttl / 10).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_moment_is_never_before_the_margin() {
        for ttl in [Ttl::MIN, Duration::from_secs(1), Duration::from_secs(10), Ttl::MAX] {
            assert!(last_moment(ttl) <= margin(ttl), "{ttl:?}");
            assert!(margin(ttl) < ttl, "{ttl:?}");
        }
    }

    #[test]
    fn only_an_expired_lease_leaves_time() {
        assert!(!may_be_granted_again(LossReason::Expired));
        for reason in
            [LossReason::Taken, LossReason::Superseded, LossReason::Forced, LossReason::Deleted]
        {
            assert!(may_be_granted_again(reason));
        }
    }
}
