//! The engine's one task: it owns all state, and lets the waiting room, the heartbeat and the
//! releases send their batches. Whatever talks to the database runs in a task of its own.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::{LockBackend, Release, Released, Renewed, Verdict, Wakeup};
use crate::clock::Clock;
use crate::engine::heartbeat::{self, Heartbeat};
use crate::engine::hints;
use crate::engine::hold::{Ended, Hold, WeakHold};
use crate::engine::releases::{Interest, Releases};
use crate::engine::request::{Request, RequestId};
use crate::engine::waiting::{self, Grant, WaitingRoom};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Lease;
use crate::lease::state::{Event, Phase};
use crate::loss::LossReason;
use crate::name::LockName;
use crate::status::Status;

/// How long a lease without end is tried to be released while the database is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the users of an engine ask of it.
#[derive(Debug)]
pub(crate) enum Command {
    /// Somebody wants a lock.
    Enter(Box<Request>),
    /// Whoever wanted it has gone.
    Leave(RequestId),
    /// End everything; answered once nothing is left to do.
    Shutdown(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(crate) struct Actor {
    backend: Arc<dyn LockBackend>,
    clock: Clock,
    request_timeout: Duration,
    commands: mpsc::UnboundedReceiver<Command>,
    hints: mpsc::UnboundedReceiver<Wakeup>,
    hints_sender: Option<mpsc::UnboundedSender<Wakeup>>,
    ended: mpsc::UnboundedReceiver<Ended>,
    ended_sender: mpsc::UnboundedSender<Ended>,
    waiting: WaitingRoom,
    heartbeat: Heartbeat,
    releases: Releases,
    /// Leases of explicit owners, for others of that owner to join.
    owned: HashMap<(LockName, Arc<str>), WeakHold>,
    tasks: JoinSet<Done>,
    closing: Option<Vec<oneshot::Sender<()>>>,
    status: Status,
    random: fastrand::Rng,
}

#[derive(Debug)]
enum Done {
    Claims(waiting::Departure, Result<Vec<Verdict>>),
    Renewals(heartbeat::Departure, Result<Vec<Renewed>>),
    Releases(Vec<Release>, Result<Vec<Released>>),
}

impl Actor {
    pub(crate) fn new(
        backend: Arc<dyn LockBackend>,
        clock: Clock,
        request_timeout: Duration,
        commands: mpsc::UnboundedReceiver<Command>,
        status: Status,
    ) -> Self {
        let can = backend.capabilities();
        let (hints_sender, hints) = mpsc::unbounded_channel();
        let (ended_sender, ended) = mpsc::unbounded_channel();
        Self {
            backend,
            clock,
            request_timeout,
            commands,
            hints,
            hints_sender: Some(hints_sender),
            ended,
            ended_sender,
            waiting: WaitingRoom::new(&can),
            heartbeat: Heartbeat::new(can.max_batch),
            releases: Releases::new(&can),
            owned: HashMap::new(),
            tasks: JoinSet::new(),
            closing: None,
            status,
            random: fastrand::Rng::new(),
        }
    }

    /// Works until everybody has gone and nothing is left to do.
    pub(crate) async fn run(mut self) {
        let mut abandoned = false;
        loop {
            self.depart();
            if (abandoned || self.closing.is_some()) && self.is_idle() {
                break;
            }
            let next = [self.waiting.next(), self.heartbeat.next(), self.releases.next()];
            let next = next.into_iter().flatten().min();
            let clock = self.clock;
            tokio::select! {
                command = self.commands.recv(), if !abandoned => match command {
                    Some(command) => {
                        self.obey(command);
                        // What has come meanwhile leaves in the same batch.
                        while let Ok(command) = self.commands.try_recv() {
                            self.obey(command);
                        }
                    }
                    None => abandoned = true,
                },
                Some(ended) = self.ended.recv() => {
                    self.end(ended);
                    while let Ok(ended) = self.ended.try_recv() {
                        self.end(ended);
                    }
                }
                Some(done) = self.tasks.join_next() => if let Ok(done) = done {
                    self.arrive(done);
                },
                Some(hint) = self.hints.recv() => self.hear(hint),
                () = async { clock.sleep_towards(next.unwrap_or_default()).await },
                    if next.is_some() => {}
            }
            let now = self.clock.now();
            self.waiting.tick(now);
            self.heartbeat.tick(now);
            self.releases.tick(now);
        }
        if self.closing.is_none() {
            return;
        }
        // Nobody is counted from here on, and so the status that is written next is the last.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        let closing = self.closing.take();
        self.status.flush().await;
        for waiting in closing.into_iter().flatten() {
            let _ = waiting.send(());
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.heartbeat.leases().next().is_none()
            && self.releases.is_empty()
            && self.ended.is_empty()
    }

    fn obey(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Enter(mut request) => {
                if self.closing.is_some() {
                    if let Some(reply) = request.reply.take() {
                        reply.send(Err(shut_down()));
                    }
                    return;
                }
                match join(&self.owned, &request) {
                    Some(hold) => request.fulfil(hold),
                    None => self.waiting.enter(*request, now),
                }
            }
            Command::Leave(id) => self.waiting.leave(id, now),
            Command::Shutdown(reply) => {
                self.waiting.close(&shut_down(), now);
                let leases: Vec<Lease> = self.heartbeat.leases().cloned().collect();
                for lease in leases {
                    self.give_back(&lease, Event::Gone(LossReason::Shutdown), None);
                }
                self.closing.get_or_insert_default().push(reply);
            }
        }
    }

    /// The last share in a lease is gone.
    fn end(&mut self, ended: Ended) {
        match self.heartbeat.get(ended.attempt).cloned() {
            Some(lease) => self.give_back(&lease, Event::Release, ended.reply),
            // Shut down before: its loss was told, its release is on its way or done.
            None => {
                if let Some(reply) = ended.reply {
                    let _ = reply.send(Err(Error::lost(LossReason::Shutdown)));
                }
            }
        }
    }

    fn give_back(
        &mut self,
        lease: &Lease,
        event: Event,
        reply: Option<oneshot::Sender<Result<()>>>,
    ) {
        let id = lease.id();
        self.heartbeat.forget(id.attempt);
        if id.owner.is_explicit() {
            let key = (id.name.clone(), id.owner.label().into());
            // Another lease may have taken the place of one that was lost.
            if self
                .owned
                .get(&key)
                .is_some_and(|held| held.upgrade().is_none_or(|h| h.lease().id() == id))
            {
                self.owned.remove(&key);
            }
        }
        let interest = match lease.apply(event).phase {
            // The server has forgotten it, or it is kept.
            Phase::Lost(
                reason @ (LossReason::Taken
                | LossReason::Superseded
                | LossReason::Deleted
                | LossReason::Released),
            ) => {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Error::lost(reason).with_lock(&id.name)));
                }
                return;
            }
            // Too late, and it is given back all the same, lest others wait for its end: it may have
            // expired here and not there, or have been revoked.
            Phase::Lost(reason) => {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Error::lost(reason).with_lock(&id.name)));
                }
                Interest::Failure
            }
            Phase::Held | Phase::Unknown | Phase::Released => {
                reply.map_or(Interest::Outcome, Interest::Reply)
            }
        };
        let now = self.clock.now();
        let until = match lease.look().deadline {
            Some(deadline) => deadline.saturating_add(lease.terms().margin),
            None => now.saturating_add(PATIENCE),
        };
        self.releases.enter(id.clone(), until.min(now.saturating_add(PATIENCE)), interest);
    }

    /// Sends whatever can leave now.
    fn depart(&mut self) {
        let now = self.clock.now();
        while let Some(batch) = self.heartbeat.depart(now) {
            let time = batch.time.min(self.request_timeout);
            let backend = Arc::clone(&self.backend);
            self.tasks.spawn(async move {
                let answer =
                    ask(time, batch.renewals.len(), "renew", backend.renew(&batch.renewals)).await;
                Done::Renewals(batch, answer)
            });
        }
        while let Some(batch) = self.releases.depart() {
            let (time, backend) = (self.request_timeout, Arc::clone(&self.backend));
            self.tasks.spawn(async move {
                let answer = ask(time, batch.len(), "release", backend.release(&batch)).await;
                Done::Releases(batch, answer)
            });
        }
        let owned = &self.owned;
        while let Some(batch) = self.waiting.depart(now, &|request| join(owned, request)) {
            let (time, backend) = (self.request_timeout, Arc::clone(&self.backend));
            self.tasks.spawn(async move {
                let answer =
                    ask(time, batch.claims.len(), "acquire", backend.acquire(&batch.claims)).await;
                Done::Claims(batch, answer)
            });
        }
    }

    fn arrive(&mut self, done: Done) {
        let now = self.clock.now();
        let random = &mut self.random;
        let mut jitter = || random.f64();
        match done {
            Done::Claims(batch, answer) => {
                let (grants, unheard) = self.waiting.arrive(&batch, answer, now, &mut jitter);
                for lease in unheard {
                    self.releases.enter(lease, now.saturating_add(PATIENCE), Interest::Failure);
                }
                for grant in grants {
                    self.grant(grant, batch.at);
                }
                if self.waiting.is_waited_in() {
                    self.listen();
                }
            }
            Done::Renewals(batch, answer) => self.heartbeat.arrive(&batch, answer, now),
            Done::Releases(batch, answer) => {
                for name in self.releases.arrive(&batch, answer, now, &mut jitter) {
                    self.waiting.wake(&name);
                }
            }
        }
    }

    fn grant(&mut self, grant: Grant, asked_at: Duration) {
        let Grant { request, token } = grant;
        let claim = &request.claim;
        let id = claim.lease(token);
        let name = id.name.clone();
        let lease = Lease::granted(id, request.terms, self.clock, asked_at);
        self.heartbeat.watch(lease.clone(), asked_at);
        let hold = Hold::new(lease, self.ended_sender.clone());
        if claim.owner.is_explicit() && request.reply.is_some() {
            let key = (name.clone(), claim.owner.label().into());
            // A lease of another share cannot be joined: the server has ended it.
            if let Some(old) = self.owned.insert(key, hold.downgrade()).and_then(|w| w.upgrade()) {
                old.lease().apply(Event::Gone(LossReason::Superseded));
            }
            let owned = &self.owned;
            for (other, hold) in self.waiting.joining(&name, &|request| join(owned, request)) {
                other.fulfil(hold);
            }
        }
        request.fulfil(hold);
    }

    /// Begins to listen for hints, the first time that somebody waits.
    fn listen(&mut self) {
        if let Some(sender) = self.hints_sender.take() {
            tokio::spawn(hints::listen(Arc::clone(&self.backend), sender));
        }
    }

    fn hear(&mut self, hint: Wakeup) {
        match hint {
            Wakeup::Listening => self.waiting.set_listening(true),
            Wakeup::Released(name) => self.waiting.wake(&name),
            Wakeup::Missed => self.waiting.set_listening(false),
        }
    }
}

/// Nobody will renew the leases any more, whatever made the engine end.
impl Drop for Actor {
    fn drop(&mut self) {
        for lease in self.heartbeat.leases() {
            lease.apply(Event::Gone(LossReason::Shutdown));
        }
    }
}

/// The error of whoever asks something of an engine that has ended.
pub(crate) fn shut_down() -> Error {
    Error::new(ErrorKind::Unsupported, "these locks were shut down: make new ones")
}

/// A live lease of the same explicit owner, for `request` to join.
fn join(owned: &HashMap<(LockName, Arc<str>), WeakHold>, request: &Request) -> Option<Hold> {
    let claim = &request.claim;
    if !claim.owner.is_explicit() {
        return None;
    }
    let hold = owned.get(&(claim.name.clone(), claim.owner.label().into()))?.upgrade()?;
    let lease = hold.lease();
    (lease.id().share == claim.share && !lease.look().is_over()).then_some(hold)
}

/// Sends a batch, and makes sure that an answer comes, in time, with an entry for each item.
async fn ask<T>(
    time: Duration,
    items: usize,
    operation: &'static str,
    call: impl Future<Output = Result<Vec<T>>>,
) -> Result<Vec<T>> {
    let answer = tokio::time::timeout(time, AssertUnwindSafe(call).catch_unwind()).await;
    let answers = match answer {
        Ok(Ok(answer)) => answer.map_err(|error| error.with_operation(operation))?,
        Ok(Err(_panic)) => {
            return Err(Error::new(
                ErrorKind::Backend,
                "the backend panicked: this is a defect of it",
            )
            .with_operation(operation));
        }
        Err(_elapsed) => {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the database did not answer within {time:?}: check that it is reachable"),
            )
            .with_operation(operation));
        }
    };
    if answers.len() != items {
        return Err(Error::new(
            ErrorKind::Backend,
            format!(
                "the backend gave {} answers to {items} items: this is a defect of it",
                answers.len()
            ),
        )
        .with_operation(operation));
    }
    Ok(answers)
}
