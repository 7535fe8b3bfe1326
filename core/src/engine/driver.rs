//! The engine's one task: it owns all state, and lets the wait queue, the renewals and the
//! releases send their batches. Whatever talks to the database runs in a task of its own.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::{LockBackend, Released, Renewed, Verdict, Wakeup};
use crate::callbacks;
use crate::clock::Clock;
use crate::engine::backoff;
use crate::engine::hints;
use crate::engine::hold::{GivenUp, Hold};
use crate::engine::outage_log::OutageLog;
use crate::engine::releases::{GivenBack, Interest, ReleaseBatch, Releases};
use crate::engine::renewals::{RenewalBatch, Renewals};
use crate::engine::request::{Request, RequestId};
use crate::engine::wait_queue::{ClaimBatch, Grant, HandOver, HandOverEnded, WaitQueue};
use crate::error::{Error, ErrorKind, Result};
use crate::locks::lease::state::{LeaseEvent, Phase};
use crate::locks::lease::{Lease, Shared};
use crate::observer::{Event as Observed, Observers};
use crate::words::identity::Attempt;
use crate::words::loss::LossReason;
use crate::words::name::LockName;
use crate::words::owner::Owner;

/// How soon a thread is tried to be had again for callbacks.
const CALLBACKS: Duration = Duration::from_millis(250);

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
pub(crate) struct Driver {
    backend: Arc<dyn LockBackend>,
    clock: Clock,
    /// For the leases that are granted.
    shared: Arc<Shared>,
    request_timeout: Duration,
    commands: mpsc::UnboundedReceiver<Command>,
    hints: mpsc::UnboundedReceiver<Wakeup>,
    hints_sender: Option<mpsc::UnboundedSender<Wakeup>>,
    given_up: mpsc::UnboundedReceiver<GivenUp>,
    /// One that was received, before those that are still to be.
    given_up_first: Option<GivenUp>,
    given_up_sender: mpsc::UnboundedSender<GivenUp>,
    waiting: WaitQueue,
    renewals: Renewals,
    releases: Releases,
    /// Leases that are to be handed over to whoever comes next.
    handing_over: HashMap<Attempt, GivenBack>,
    /// Leases of explicit owners, for others of that owner to join.
    owned: Owned,
    tasks: JoinSet<Done>,
    closing: Option<Vec<oneshot::Sender<()>>>,
    observers: Observers,
    outages: OutageLog,
}

/// Leases by name and by the label of their explicit owner.
type Owned = HashMap<(LockName, Owner), Lease>;

/// What came of a batch.
#[derive(Debug)]
enum Done {
    Claims(ClaimBatch, Result<Vec<Verdict>>),
    Renewals(RenewalBatch, Result<Vec<Renewed>>),
    Releases(ReleaseBatch, Result<Vec<Released>>),
}

impl Driver {
    pub(crate) fn new(
        backend: Arc<dyn LockBackend>,
        clock: Clock,
        request_timeout: Duration,
        commands: mpsc::UnboundedReceiver<Command>,
        observers: Observers,
    ) -> Self {
        let can = backend.capabilities();
        let (hints_sender, hints) = mpsc::unbounded_channel();
        let (given_up_sender, given_up) = mpsc::unbounded_channel();
        let phase = backoff::GridPhase(fastrand::u16(..));
        Self {
            shared: Arc::new(Shared {
                clock,
                fence: backend.fence(),
                observers: observers.clone(),
            }),
            backend,
            clock,
            request_timeout,
            commands,
            hints,
            hints_sender: Some(hints_sender),
            given_up,
            given_up_first: None,
            given_up_sender,
            waiting: WaitQueue::new(&can, phase, observers.clone()),
            renewals: Renewals::new(&can, phase, observers.clone()),
            releases: Releases::new(&can),
            handing_over: HashMap::default(),
            owned: HashMap::default(),
            tasks: JoinSet::new(),
            closing: None,
            observers,
            outages: OutageLog::new(can.backend),
        }
    }

    /// Works until everybody has gone and nothing is left to do.
    pub(crate) async fn run(mut self) {
        let mut abandoned = false;
        loop {
            abandoned |= self.hear_all();
            self.depart();
            if (abandoned || self.closing.is_some()) && self.is_idle() {
                break;
            }
            let callbacks = callbacks::retry().then(|| self.clock.now().saturating_add(CALLBACKS));
            let (waiting, renewals) = (self.waiting.next(), self.renewals.next());
            let (releases, outages) = (self.releases.next(), self.outages.next());
            let next = [waiting, renewals, releases, outages, callbacks];
            let next = next.into_iter().flatten().min();
            let clock = self.clock;
            tokio::select! {
                command = self.commands.recv(), if !abandoned => match command {
                    Some(command) => self.handle_command(command),
                    None => abandoned = true,
                },
                // Not handled yet: whoever asks at the same time may have it in one round trip.
                Some(given_up) = self.given_up.recv() => self.given_up_first = Some(given_up),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.handle_done(done),
                    // What was in the batch would wait for ever. The holders hear of it as this is dropped.
                    Err(panic) => {
                        tracing::error!(%panic, "the backend panicked: these locks have ended");
                        return;
                    }
                },
                Some(hint) = self.hints.recv() => self.handle_hint(hint),
                () = async { clock.sleep_towards(next.unwrap_or_default()).await },
                    if next.is_some() => {}
            }
            let now = self.clock.now();
            self.waiting.tick(now);
            self.renewals.tick(now);
            self.releases.tick(now);
            self.outages.tick(now);
        }
        if self.closing.is_none() {
            return;
        }
        // Nobody asks from here on, and so what observers hear next is the last.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.handle_command(command);
        }
        let closing = self.closing.take();
        self.stop().flush().await;
        for waiting in closing.into_iter().flatten() {
            let _ = waiting.send(());
        }
    }

    /// Hears what has come meanwhile, so that it leaves together: claims first, which may take the places of leases that are
    /// given back. Says whether all users have gone.
    fn hear_all(&mut self) -> bool {
        let abandoned = self.hear_commands();
        self.hear_given_up();
        abandoned
    }

    fn hear_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.handle_command(command),
                Err(error) => return error == mpsc::error::TryRecvError::Disconnected,
            }
        }
    }

    fn hear_given_up(&mut self) {
        while let Some(given_up) =
            self.given_up_first.take().or_else(|| self.given_up.try_recv().ok())
        {
            self.handle_given_up(given_up);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.renewals.is_empty()
            && self.releases.is_empty()
            && self.handing_over.is_empty()
            && self.given_up.is_empty()
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Enter(mut request) => {
                if self.closing.is_some() {
                    if let Some(reply) = request.reply.take() {
                        reply.send(Err(shut_down()));
                    }
                    return;
                }
                match join(&self.owned, &self.given_up_sender, &request) {
                    Some(hold) => request.fulfil(hold),
                    None => self.waiting.enter(request, now),
                }
            }
            Command::Leave(id) => self.waiting.leave(id, now),
            Command::Shutdown(reply) => {
                // These came before.
                self.hear_given_up();
                self.waiting.close(&shut_down(), now);
                self.releases.close(now);
                let leases: Vec<Lease> = self.renewals.leases().cloned().collect();
                for lease in leases {
                    self.give_back(&lease, LeaseEvent::Gone(LossReason::Shutdown), None);
                }
                self.closing.get_or_insert_default().push(reply);
            }
        }
    }

    /// The last hold of a lease is gone.
    fn handle_given_up(&mut self, given_up: GivenUp) {
        match self.renewals.get(given_up.attempt).cloned() {
            Some(lease) => self.give_back(&lease, LeaseEvent::Release, given_up.reply),
            // Shut down before: its release is on its way or done.
            None => {
                if let Some(reply) = given_up.reply {
                    let _ = reply.send(Err(Error::lost(LossReason::Shutdown)));
                }
            }
        }
    }

    fn give_back(
        &mut self,
        lease: &Lease,
        event: LeaseEvent,
        reply: Option<oneshot::Sender<Result<()>>>,
    ) {
        let id = lease.id();
        let now = self.clock.now();
        let ours_since = self.renewals.forget(id.attempt).unwrap_or(now);
        if id.owner.is_explicit() {
            let key = (id.name.clone(), id.owner.clone());
            // Another lease may have taken the place of one that was lost.
            if self.owned.get(&key).is_some_and(|lease| lease.id() == id) {
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
            // Too late, and it is given back all the same, so that others do not wait for its end: it may have
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
        let deadline = lease.look().deadline;
        let until = deadline.map(|deadline| deadline.saturating_add(lease.terms().margin));
        // What is lost is no more to be given.
        let is_ours = !matches!(interest, Interest::Failure);
        let given_back = GivenBack { lease: id.clone(), until, interest };
        if is_ours && self.waiting.hand_over(id, ours_since, now) {
            self.handing_over.insert(id.attempt, given_back);
        } else {
            self.waiting.gives_back(&id.name, now);
            self.releases.enter(given_back, false, now);
        }
    }

    /// Tells of what was handed over, and releases what was not after all.
    fn handle_hand_overs(&mut self, now: Duration) {
        for HandOverEnded { attempt, outcome } in self.waiting.ended() {
            let Some(given_back) = self.handing_over.remove(&attempt) else { continue };
            match outcome {
                HandOver::Done => given_back.interest.tell(Ok(())),
                HandOver::NotDone => self.releases.enter(given_back, false, now),
                HandOver::Unknown => self.releases.enter(given_back, true, now),
            }
        }
    }

    /// Sends whatever can leave now.
    fn depart(&mut self) {
        let now = self.clock.now();
        self.handle_hand_overs(now);
        if let Some(batch) = self.renewals.depart(now) {
            let time = batch.time.min(self.request_timeout);
            let backend = Arc::clone(&self.backend);
            self.tasks.spawn(async move {
                let call = async { backend.renew(&batch.renewals).await };
                let answer = ask(time, batch.renewals.len(), "renew", call).await;
                Done::Renewals(batch, answer)
            });
        }
        while let Some(batch) = self.releases.depart(now) {
            let (time, backend) = (self.request_timeout, Arc::clone(&self.backend));
            self.tasks.spawn(async move {
                let call = async { backend.release(&batch.releases).await };
                let answer = ask(time, batch.releases.len(), "release", call).await;
                Done::Releases(batch, answer)
            });
        }
        let (owned, given_up) = (&self.owned, &self.given_up_sender);
        let join = |request: &Request| join(owned, given_up, request);
        while let Some(batch) = self.waiting.depart(now, &join) {
            let (time, backend) = (self.request_timeout, Arc::clone(&self.backend));
            self.tasks.spawn(async move {
                let call = async { backend.acquire(&batch.claims).await };
                let answer = ask(time, batch.claims.len(), "acquire", call).await;
                Done::Claims(batch, answer)
            });
        }
    }

    fn handle_done(&mut self, done: Done) {
        let now = self.clock.now();
        let error = match &done {
            Done::Claims(_, answer) => answer.as_ref().err(),
            Done::Renewals(_, answer) => answer.as_ref().err(),
            Done::Releases(_, answer) => answer.as_ref().err(),
        };
        self.observe(error, now);
        match done {
            Done::Claims(batch, answer) => {
                let (grants, unheard) = self.waiting.arrive(&batch, answer, now);
                for given_back in unheard {
                    self.releases.enter(given_back, false, now);
                }
                for grant in grants {
                    self.grant(grant, batch.at, now);
                }
                if self.waiting.was_busy() {
                    self.listen();
                }
            }
            Done::Renewals(batch, answer) => {
                for given_back in self.renewals.arrive(&batch, answer, now) {
                    self.releases.enter(given_back, false, now);
                }
            }
            Done::Releases(batch, answer) => {
                for name in self.releases.arrive(&batch, answer, now) {
                    self.waiting.released(&name, now);
                }
            }
        }
    }

    /// Tells of the database by what came of a request.
    fn observe(&mut self, error: Option<&Error>, now: Duration) {
        let vitals = self.observers.vitals();
        match error.filter(|error| error.is_retryable()) {
            Some(error) => {
                self.outages.failed(error, now);
                if vitals.failed(error, now) {
                    self.observers.tell(Observed::Away { error });
                }
            }
            None => {
                self.outages.answered(now);
                if vitals.answered(now) {
                    self.observers.tell(Observed::Back);
                }
            }
        }
    }

    fn grant(&mut self, grant: Grant, asked_at: Duration, now: Duration) {
        let Grant { request, token, ours_since } = grant;
        let claim = &request.claim;
        let id = claim.lease(token);
        let lease = Lease::granted(id, request.terms, Arc::clone(&self.shared), asked_at);
        self.renewals.watch(lease.clone(), asked_at, ours_since);
        if claim.owner.is_explicit() {
            let key = (claim.name.clone(), claim.owner.clone());
            // What could not be joined, such as a lease of another share, the server has ended.
            if let Some(old) = self.owned.remove(&key) {
                old.apply(LeaseEvent::Gone(LossReason::Superseded));
            }
            if request.reply.is_some() {
                self.owned.insert(key, lease.clone());
            }
            let (owned, given_up) = (&self.owned, &self.given_up_sender);
            let join = |request: &Request| join(owned, given_up, request);
            let joining = self.waiting.joining(claim, now, &join);
            for (other, hold) in joining {
                other.fulfil(hold);
            }
        }
        request.fulfil(Hold::new(lease, self.given_up_sender.clone()));
    }

    /// Begins to listen for hints, the first time that somebody waits.
    fn listen(&mut self) {
        if let Some(sender) = self.hints_sender.take() {
            tokio::spawn(hints::listen(Arc::clone(&self.backend), sender));
        }
    }

    fn handle_hint(&mut self, hint: Wakeup) {
        let now = self.clock.now();
        match hint {
            Wakeup::Listening => self.set_listening(true, now),
            Wakeup::Released { name, by } => self.waiting.heard(&name, by, now),
            Wakeup::Missed => self.set_listening(false, now),
        }
    }

    fn set_listening(&mut self, listening: bool, now: Duration) {
        self.observers.vitals().set_listening(listening);
        self.waiting.set_listening(listening, now);
    }

    /// Nobody renews the leases any more. Tells so, the first time, and says whom it has told.
    fn stop(&mut self) -> Observers {
        for lease in self.renewals.leases() {
            lease.apply(LeaseEvent::Gone(LossReason::Shutdown));
        }
        let observers = std::mem::take(&mut self.observers);
        observers.vitals().set_listening(false);
        observers.tell(Observed::Stopped);
        observers
    }
}

/// Whatever made the engine end.
impl Drop for Driver {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The error of whoever asks something of an engine that has ended.
pub(crate) fn shut_down() -> Error {
    Error::new(ErrorKind::Unsupported, "these locks were shut down: make new ones")
}

/// A live lease of the same explicit owner, for `request` to join.
fn join(
    owned: &Owned,
    given_up: &mpsc::UnboundedSender<GivenUp>,
    request: &Request,
) -> Option<Hold> {
    let claim = &request.claim;
    if !claim.owner.is_explicit() {
        return None;
    }
    let lease = owned.get(&(claim.name.clone(), claim.owner.clone()))?;
    if lease.id().share != claim.share || lease.look().is_over() {
        return None;
    }
    Hold::join(lease, given_up)
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
