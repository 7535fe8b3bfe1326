//! Everybody in this process who wants a lock and does not have it yet.
//!
//! Those who wait for a name stand in its line, first come, first served. The head of a line asks the database,
//! again and again, and those behind it that take as much as it does, and could hold the lock beside it, ask along
//! with it once: as long as nobody has been told that the lock is busy. A request that asks once stands in no line.
//! What becomes of a request by itself is decided by [`WaiterState`]; here is what they are to each other. No I/O:
//! requests in, batches of claims out, verdicts in, grants out.
//!
//! Where somebody here gives back what the head of a line waits for, the head's claim takes the place of that lease, in
//! one round trip. After a while of that the lock is released, for others than this process to have a turn.

use std::time::Duration;

use foldhash::HashMap;

use crate::backend::{Busy, Capabilities, Claim, Releaser, Verdict};
use crate::engine::backoff::{GridPhase, Pace, Retry};
use crate::engine::batcher::{Batcher, Company, Haste};
use crate::engine::hold::Hold;
use crate::engine::line::{Line, Turn};
use crate::engine::pending::PendingRequest;
use crate::engine::releases::{GivenBack, Interest, PATIENCE};
use crate::engine::request::{Request, RequestId};
use crate::engine::rota::{LATELY, Rota};
use crate::engine::timers::Timers;
use crate::engine::waiter::{Answer, Doubt, Next, Step, Tell, WaiterEvent, WaiterState};
use crate::error::{Error, Result};
use crate::observer::{self, Observers};
use crate::words::identity::{Attempt, LeaseId, Token};
use crate::words::name::LockName;

/// How many at most ask together once others have the lock, and how many for each of these.
const FOLLOWERS: usize = 256;
const MORE: usize = 4;
/// How soon to look again whether what is over has been answered.
const OVERDUE: Duration = Duration::from_secs(1);

/// For how long a lock goes from one to the next in this process before others get a turn, and how much longer than two round
/// trips its next waiter here stands back then.
#[derive(Debug)]
struct Turns {
    ours: Duration,
    theirs: Duration,
}

/// Where hints tell others of a release.
const HINTED: Turns = Turns { ours: Duration::from_millis(500), theirs: Duration::from_millis(5) };
/// Where they find out by asking: whoever has waited for as long as we had the lock asks twice or more in their turn. Who has
/// waited for much longer asks more seldom than that, and may need several turns of theirs.
const POLLED: Turns =
    Turns { ours: Duration::from_millis(1_500), theirs: Duration::from_millis(120) };

/// A claim that was granted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) request: Box<Request>,
    pub(crate) token: Token,
    /// Since when the lock has gone from one to the next here.
    pub(crate) ours_since: Duration,
}

#[derive(Debug)]
pub(crate) struct WaitQueue {
    backend: &'static str,
    pending: HashMap<RequestId, PendingRequest>,
    lines: HashMap<LockName, Line>,
    /// Of names that were released while somebody here waited for them.
    rotas: HashMap<LockName, Rota>,
    batcher: Batcher<RequestId>,
    timers: Timers<Due>,
    /// Counts the claims, so that they leave in their order.
    asked: u64,
    listening: bool,
    /// Whether anybody has had to wait.
    was_busy: bool,
    closing: bool,
    /// What has become of hand-overs, for the driver to hear.
    ended: Vec<HandOverEnded>,
    hands_over: bool,
    phase: GridPhase,
    random: fastrand::Rng,
    observers: Observers,
}

/// What has become of a lease that was to be handed over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HandOverEnded {
    pub(crate) attempt: Attempt,
    pub(crate) outcome: HandOver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOver {
    /// It has ended.
    Done,
    /// It has to be released.
    NotDone,
    /// Nobody knows.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    /// The head of a line asks.
    Head(LockName),
    /// Somebody asks who is in doubt.
    Ask(RequestId),
    /// A caller waits no longer, or what a request may have been granted is over.
    GiveUp(RequestId),
    /// The last release of a name is long ago.
    Forget(LockName),
}

/// Why somebody leaves a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// They have the lock, so that whoever comes next has to wait.
    Granted,
    Other,
}

impl WaitQueue {
    pub(crate) fn new(can: &Capabilities, phase: GridPhase, observers: Observers) -> Self {
        Self {
            backend: can.backend,
            pending: HashMap::default(),
            lines: HashMap::default(),
            rotas: HashMap::default(),
            // Of the backend's places the last one is left to releases.
            batcher: Batcher::new(can.max_in_flight.saturating_sub(1), can.max_batch)
                .with_batch_from(can.batch_from)
                .with_room_for_urgent(),
            timers: Timers::new(),
            asked: 0,
            listening: false,
            was_busy: false,
            closing: false,
            ended: Vec::new(),
            hands_over: can.hands_over,
            phase,
            random: fastrand::Rng::new(),
            observers,
        }
    }

    /// Whether anybody has had to wait so far.
    pub(crate) fn was_busy(&self) -> bool {
        self.was_busy
    }

    /// Whether nothing is pending, queued or in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.batcher.is_idle()
    }

    pub(crate) fn enter(&mut self, request: Box<Request>, now: Duration) {
        let (id, retry) = (request.id, request.retry);
        if let Some(timeout) = request.timeout {
            self.timers.set(Due::GiveUp(id), now.saturating_add(timeout));
        }
        let name = request.claim.name.clone();
        let mut pending = PendingRequest {
            request,
            state: WaiterState::ENTERED,
            place: None,
            replaces: None,
            sent: now,
            failures: 0,
            error: None,
        };
        if retry == Retry::Never {
            self.pending.insert(id, pending);
            return self.ask(id, now);
        }
        let pace = self.pace();
        let line = self.lines.entry(name.clone()).or_default();
        let (before, behind) = (line.order.last_entry().map(|last| *last.get()), line.order.len());
        pending.place = Some(line.join(id, &pending.request));
        let soon = pace.next_ask(line.quickest(), line.asks, &Busy::default(), now, 0.5);
        let soon = soon.max(line.turn.ends()).max(line.holds_back.unwrap_or_default());
        let is_held_back = line.holds_back.is_some_and(|until| now < until);
        let is_ours = line.turn.is_ours(now);
        self.pending.insert(id, pending);
        let goes_along =
            before.is_some_and(|before| self.goes_along(id, behind) && self.is_asking(before));
        if before.is_none() {
            let rota = self.rotas.get(&name);
            let theirs = self.their_turn();
            let until = rota.and_then(|rota| rota.until(self.batcher.round_trip(), theirs, now));
            return self.ask_in_turn(&name, until, now);
        }
        if goes_along {
            return self.ask(id, now);
        }
        if is_held_back && is_ours && self.is_in_a_hurry(id, soon) {
            return self.ask_in_turn(&name, None, now);
        }
        // A line is as quick as the quickest who stands in it.
        let due = Due::Head(name);
        if self.timers.get(&due).is_some_and(|moment| soon < moment) {
            self.timers.set(due, soon);
        }
    }

    /// The caller has gone.
    pub(crate) fn leave(&mut self, id: RequestId, now: Duration) {
        if let Some(pending) = self.pending.get_mut(&id) {
            drop(pending.request.reply.take());
        }
        self.on(id, WaiterEvent::Abandoned, now);
    }

    /// A hint says that a name was released: its first waiter here asks when the turn is ours.
    pub(crate) fn heard(&mut self, name: &LockName, by: Releaser, now: Duration) {
        let is_told = by != Releaser::Unknown;
        // Nobody here cares about other names.
        let is_ours = by == Releaser::Own || self.lines.contains_key(name);
        if is_told && (is_ours || self.rotas.contains_key(name)) {
            self.rotas.entry(name.clone()).or_default().heard(by, now);
            self.timers.set(Due::Forget(name.clone()), now.saturating_add(LATELY));
        }
        let until = self.rotas.get(name).filter(|_| is_told).and_then(|rota| {
            let pause = rota.pause(self.batcher.round_trip(), now);
            (!pause.is_zero()).then(|| now.saturating_add(pause))
        });
        self.wake(name, until, now);
    }

    /// A name may have been released: its first waiter asks when it may.
    fn wake(&mut self, name: &LockName, until: Option<Duration>, now: Duration) {
        let Some(line) = self.lines.get_mut(name) else { return };
        if !line.turn.is_ours(now) {
            return;
        }
        line.asks = 0;
        // However many come in between, nobody holds back for longer than they were to at first.
        let before = line.holds_back.filter(|before| now < *before);
        let until = until.map(|until| before.map_or(until, |before| before.min(until)));
        self.ask_in_turn(name, until, now);
    }

    /// Lets the head of a line ask now, or hold back until then if it wants all of the lock and has the time.
    fn ask_in_turn(&mut self, name: &LockName, until: Option<Duration>, now: Duration) {
        let Some(line) = self.lines.get(name) else { return };
        let Some(head) = line.head() else { return };
        let share = self.pending.get(&head).map(|pending| pending.request.claim.share);
        let takes_all = share.is_some_and(|share| share.is_exclusive());
        let until = until.filter(|until| takes_all && !self.is_in_a_hurry(head, *until));
        if let Some(line) = self.lines.get_mut(name) {
            line.holds_back = until;
        }
        match until {
            Some(until) => self.timers.set(Due::Head(name.clone()), until),
            None => self.ask(head, now),
        }
    }

    /// Whether somebody may not wait long enough to ask again after `until`.
    fn is_in_a_hurry(&self, id: RequestId, until: Duration) -> bool {
        let gives_up = self.timers.get(&Due::GiveUp(id));
        gives_up.is_some_and(|gives_up| gives_up < until.saturating_add(self.their_turn()))
    }

    /// This process gives this name back, and hands it over to nobody here.
    pub(crate) fn gives_back(&mut self, name: &LockName, now: Duration) {
        if let Some(rota) = self.rotas.get_mut(name) {
            rota.gives_back(now);
        }
    }

    /// This process released this name: its first waiter here asks at once, unless it is the turn of others.
    pub(crate) fn released(&mut self, name: &LockName, now: Duration) {
        let until = now.saturating_add(self.their_turn());
        match self.lines.get_mut(name) {
            Some(line) if line.turn == Turn::TheirsOnceReleased => {
                line.turn = Turn::TheirsUntil(until);
                self.timers.set(Due::Head(name.clone()), until);
            }
            _ => self.wake(name, None, now),
        }
    }

    /// Lets whoever comes next take the place of a lease that is given back, and that has gone from one to the next here since
    /// then, if it has. Says whether somebody does: what becomes of the lease is told by [`ended`](Self::ended). Otherwise it
    /// is to be released, which [`released`](Self::released) hears of, and those who wait here may have to stand back after it.
    pub(crate) fn hand_over(
        &mut self,
        lease: &LeaseId,
        ours_since: Duration,
        now: Duration,
    ) -> bool {
        if !lease.share.is_exclusive() {
            return false;
        }
        // Else the claim would wait for what is on its way.
        let is_in_flight = self.batcher.is_in_flight(&lease.name);
        let longest = self.turns().ours;
        let Some(line) = self.lines.get_mut(&lease.name) else { return false };
        if now >= ours_since.saturating_add(longest) {
            // The caller releases it, and then others have a turn.
            (line.ours, line.turn) = (None, Turn::TheirsOnceReleased);
            return false;
        }
        line.ours = Some((lease.token, ours_since));
        // Hints make the turns of others shorter.
        self.was_busy = true;
        if !self.hands_over || self.closing || is_in_flight {
            return false;
        }
        let Some(head) = line.head() else { return false };
        let Some(pending) = self.pending.get_mut(&head) else { return false };
        let is_free =
            matches!(pending.state, WaiterState::Waiting(Step::Idle | Step::Queued, Doubt::None));
        if !is_free || pending.replaces.is_some() || pending.request.claim.share != lease.share {
            return false;
        }
        line.asks = 0;
        pending.replaces = Some(lease.clone());
        self.ask(head, now);
        true
    }

    /// What has become of leases that were to be handed over.
    pub(crate) fn ended(&mut self) -> Vec<HandOverEnded> {
        std::mem::take(&mut self.ended)
    }

    /// Hints may have been missed.
    pub(crate) fn wake_all(&mut self, now: Duration) {
        let names: Vec<LockName> = self.lines.keys().cloned().collect();
        for name in &names {
            self.wake(name, None, now);
        }
    }

    /// Whether hints of a release arrive.
    pub(crate) fn set_listening(&mut self, listening: bool, now: Duration) {
        self.listening = listening;
        if !listening {
            self.rotas.clear();
        }
        // Whoever settled into the slow pace of the better times asks now.
        self.wake_all(now);
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<Duration> {
        [self.timers.next(), self.batcher.next()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(due) = self.timers.pop(now) {
            match due {
                Due::Head(name) => {
                    let Some(line) = self.lines.get(&name) else { continue };
                    match line.turn {
                        // The release sets another moment.
                        Turn::TheirsOnceReleased => {}
                        Turn::TheirsUntil(until) if now < until => {
                            self.timers.set(Due::Head(name), until);
                        }
                        Turn::TheirsUntil(_) | Turn::Ours => {
                            if let Some(head) = line.head() {
                                self.ask(head, now);
                            }
                        }
                    }
                }
                Due::Ask(id) => self.ask(id, now),
                Due::GiveUp(id) => self.give_up(id, now),
                Due::Forget(name) => {
                    self.rotas.remove(&name);
                }
            }
        }
    }

    /// Ends the waiting of everybody with `error`.
    pub(crate) fn close(&mut self, error: &Error, now: Duration) {
        self.closing = true;
        let ids: Vec<RequestId> = self.pending.keys().copied().collect();
        for id in ids {
            let reply = self.pending.get_mut(&id).and_then(|pending| pending.request.reply.take());
            if let Some(reply) = reply {
                reply.send(Err(error.clone()));
            }
            self.on(id, WaiterEvent::Abandoned, now);
            if self.pending.contains_key(&id) {
                self.limit_settling(id, now);
            }
        }
    }

    /// The next batch of claims, to be sent at `now`. `join` serves a request from a lease that
    /// this process holds already.
    pub(crate) fn depart(
        &mut self,
        now: Duration,
        join: &dyn Fn(&Request) -> Option<Hold>,
    ) -> Option<ClaimBatch> {
        loop {
            let pending = &self.pending;
            let asked = self.batcher.depart(now, |id| pending.contains_key(id))?;
            let (requests, claims) =
                (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
            let mut batch = ClaimBatch { requests, claims, at: now };
            let mut settled = Vec::new();
            for (name, id) in asked {
                match self.claim(id, now, join) {
                    Some(claim) => {
                        batch.requests.push((name, id));
                        batch.claims.push(claim);
                    }
                    None => settled.push(name),
                }
            }
            self.batcher.done(&settled);
            if batch.claims.is_empty() {
                self.batcher.called_off();
                continue;
            }
            return Some(batch);
        }
    }

    /// Takes the answer to a batch, and hands out what was granted, and what is to be freed.
    pub(crate) fn arrive(
        &mut self,
        batch: &ClaimBatch,
        answer: Result<Vec<Verdict>>,
        now: Duration,
    ) -> (Vec<Grant>, Vec<GivenBack>) {
        let names = batch.requests.iter().map(|(name, _)| name);
        self.batcher.landed(names, batch.at, now);
        let alone = batch.requests.len() == 1;
        let answers: Vec<Result<Verdict>> = match answer {
            Ok(verdicts) => verdicts.into_iter().map(Ok).collect(),
            Err(error) => batch.requests.iter().map(|_| Err(error.clone())).collect(),
        };
        let granted = answers.iter().filter(|answer| matches!(answer, Ok(Verdict::Granted(_))));
        let (mut grants, mut unheard) = (Vec::with_capacity(granted.count()), Vec::new());
        for (((_, id), claim), answer) in batch.requests.iter().zip(&batch.claims).zip(answers) {
            if let Some(lease) = &claim.replaces {
                let outcome = match answer {
                    Ok(Verdict::Granted(_)) => HandOver::Done,
                    Ok(_) => HandOver::NotDone,
                    Err(_) => HandOver::Unknown,
                };
                self.ended.push(HandOverEnded { attempt: lease.attempt, outcome });
            }
            let (granted, given_back) = self.answered(*id, answer, alone, now);
            grants.extend(granted);
            unheard.extend(given_back);
        }
        // Both are in the order of names.
        let mut others = &grants[..];
        for asked in batch.requests.chunk_by(|(a, _), (b, _)| a == b) {
            let name = &asked[0].0;
            let granted =
                others.iter().take_while(|grant| grant.request.claim.name == *name).count();
            others = &others[granted..];
            // Where the lock is full again whoever comes next waits for another release.
            if granted > 0 && granted == asked.len() {
                self.follow(name, granted, now);
            }
        }
        (grants, unheard)
    }

    /// Whoever waits and can join the lease that was granted to `claim` just now, in order.
    pub(crate) fn joining(
        &mut self,
        claim: &Claim,
        now: Duration,
        join: &dyn Fn(&Request) -> Option<Hold>,
    ) -> Vec<(Box<Request>, Hold)> {
        let line = self.lines.get(&claim.name);
        let Some(of_owner) = line.and_then(|line| line.explicit.get(&claim.owner)) else {
            return Vec::new();
        };
        let ids: Vec<RequestId> = of_owner.values().copied().collect();
        ids.into_iter()
            .filter_map(|id| {
                let pending = self.pending.get(&id)?;
                if pending.state.is_asking() {
                    return None;
                }
                let hold = join(&pending.request)?;
                Some((self.remove(id, Exit::Granted, now)?, hold))
            })
            .collect()
    }

    /// Lets a request ask, as soon as a batch takes it along.
    fn ask(&mut self, id: RequestId, now: Duration) {
        self.on(id, WaiterEvent::Ask, now);
    }

    /// Tells a request what happened where its caller hears nothing of it.
    fn on(&mut self, id: RequestId, event: WaiterEvent, now: Duration) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let was_waiting = matches!(pending.state, WaiterState::Waiting(..));
        let (state, effects) = pending.state.on(event, now, pending.asks_once());
        pending.state = state;
        self.go_on(id, effects.next, now);
        if was_waiting && matches!(state, WaiterState::Settling(..)) {
            self.settle(id, now);
        }
    }

    /// Takes the answer to a claim. What is granted is given to the caller later, or given back where nobody has heard of it.
    fn answered(
        &mut self,
        id: RequestId,
        answer: Result<Verdict>,
        alone: bool,
        now: Duration,
    ) -> (Option<Grant>, Option<GivenBack>) {
        let backend = self.backend;
        let Some(pending) = self.pending.get_mut(&id) else { return (None, None) };
        let line = self.lines.get_mut(&pending.request.claim.name);
        let asks_once = pending.asks_once();
        let event = match &answer {
            Ok(Verdict::Granted(_)) if pending.is_late(now) => Answer::Late,
            Ok(Verdict::Granted(_)) => Answer::Granted,
            Ok(Verdict::Busy(_)) => Answer::Busy,
            Ok(Verdict::CapacityMismatch(_)) => Answer::Mismatch,
            Ok(Verdict::Ended | Verdict::Revoked(_)) => Answer::Ended,
            Ok(Verdict::Skipped) => Answer::Skipped,
            Err(error) if error.is_retryable() => Answer::Failed,
            Err(_) => Answer::Refused { alone },
        };
        let was_waiting = matches!(pending.state, WaiterState::Waiting(..));
        let (state, effects) = pending.state.on(WaiterEvent::Answered(event), now, asks_once);
        pending.state = state;
        if answer.is_ok() {
            pending.failures = 0;
            pending.error = None;
        }
        let mut unheard = None;
        let error = match answer {
            Ok(Verdict::Granted(_)) if effects.tell != Tell::Granted => None,
            Ok(Verdict::Granted(token)) => {
                let ours_since = line.and_then(|line| line.ours).map_or(now, |(_, since)| since);
                let request = self.remove(id, Exit::Granted, now);
                return (request.map(|request| Grant { request, token, ours_since }), None);
            }
            // Granted, unheard of, and revoked: others would wait for its end.
            Ok(Verdict::Revoked(token)) => {
                let claim = &pending.request.claim;
                let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
                let interest = Interest::Failure;
                unheard = Some(GivenBack { lease: claim.lease(token), until, interest });
                None
            }
            Ok(verdict @ (Verdict::Busy(_) | Verdict::Skipped)) => {
                let is_busy = matches!(verdict, Verdict::Busy(_));
                let busy = if let Verdict::Busy(busy) = verdict { busy } else { Busy::default() };
                let leads = line.as_ref().and_then(|line| line.head()) == Some(id);
                let lock = &pending.request.claim.name;
                if is_busy && pending.request.reply.is_some() && (leads || line.is_none()) {
                    self.observers.tell(observer::Event::Busy { lock, busy: &busy });
                }
                if leads && let Some(listener) = &pending.request.on_busy {
                    // Whoever does not hear of it has gone.
                    let _ = listener.send(busy.clone());
                }
                self.was_busy |= !asks_once;
                if let Some(line) = line.filter(|_| is_busy) {
                    let has_others = |(ours, _): &(Token, _)| {
                        busy.holder.as_ref().is_some_and(|holder| holder.token > *ours)
                    };
                    if line.ours.as_ref().is_some_and(has_others) {
                        line.ours = None;
                    }
                    line.busy = Some(busy);
                }
                None
            }
            Ok(Verdict::CapacityMismatch(capacity)) => Some(pending.mismatch(capacity, backend)),
            Ok(Verdict::Ended) => None,
            Err(error) => {
                let lock = &pending.request.claim.name;
                match event {
                    Answer::Failed => {
                        tracing::debug!(%lock, %error, "asking for a lock failed, will ask again");
                    }
                    _ if state == WaiterState::Done => tracing::warn!(
                        %lock, %error, "what became of a request for a lock that failed is not known"
                    ),
                    _ => {}
                }
                pending.error = Some(error.clone());
                Some(error.with_lock(lock))
            }
        };
        match (effects.tell, pending.request.reply.take(), error) {
            (Tell::Busy, Some(reply), _) => reply.send(Ok(None)),
            (Tell::Error, Some(reply), Some(error)) => reply.send(Err(error)),
            (_, reply, _) => pending.request.reply = reply,
        }
        self.go_on(id, effects.next, now);
        if was_waiting && matches!(state, WaiterState::Settling(..)) {
            self.settle(id, now);
        }
        (None, unheard)
    }

    fn go_on(&mut self, id: RequestId, next: Next, now: Duration) {
        let jitter = self.random.f64();
        let Some(pending) = self.pending.get_mut(&id) else { return };
        match next {
            Next::Nothing => {}
            Next::Queue => self.queue(id),
            Next::BeginAnew => {
                pending.request.claim.attempt = Attempt::new();
                self.queue(id);
            }
            Next::Rest => {
                let name = pending.request.claim.name.clone();
                let head = self.lines.get(&name).and_then(Line::head);
                if head == Some(id) {
                    self.rest(&name, now);
                } else if pending.state.doubt() != Doubt::None {
                    self.timers.set(Due::Ask(id), Pace::after_error(0, now, jitter));
                }
                // It asks again when those before it have the lock.
            }
            Next::BackOff => {
                let again = Pace::after_error(pending.failures, now, jitter);
                pending.failures = pending.failures.saturating_add(1);
                self.timers.set(Due::Ask(id), again);
            }
            Next::Forget => drop(self.remove(id, Exit::Other, now)),
        }
    }

    /// Puts a claim where the next batch finds it.
    fn queue(&mut self, id: RequestId) {
        let Some(pending) = self.pending.get(&id) else { return };
        let claim = &pending.request.claim;
        let company = match pending.state.doubt() {
            Doubt::Suspect => Company::Isolated,
            // It may join the lease that another one of its owner's is granted.
            _ if claim.owner.is_explicit() => Company::OtherNames,
            _ => Company::Any,
        };
        // A first answer is waited for, and so is that to whoever was woken up. Polls can wait for
        // each other, and whoever has gone waits for nothing.
        let is_poll = match pending.place {
            Some(_) => self.lines.get(&claim.name).is_some_and(|line| line.asks > 0),
            None => pending.request.reply.is_none(),
        };
        let haste = if is_poll { Haste::Patient } else { Haste::Urgent };
        let name = claim.name.clone();
        self.timers.cancel(&Due::Ask(id));
        if pending.place.is_some() && self.lines.get(&name).and_then(Line::head) == Some(id) {
            self.timers.cancel(&Due::Head(name.clone()));
        }
        self.asked += 1;
        self.batcher.push(name, id, self.asked, haste, company);
    }

    /// The claim of a request whose turn it is, unless it needs none any more.
    fn claim(
        &mut self,
        id: RequestId,
        now: Duration,
        join: &dyn Fn(&Request) -> Option<Hold>,
    ) -> Option<Claim> {
        let pace = self.pace();
        if self.comes_too_early(id) {
            self.on(id, WaiterEvent::Withdrawn, now);
            return None;
        }
        let pending = self.pending.get_mut(&id)?;
        // A lease that it can join is younger than its own last ask, so that it holds no other.
        if pending.replaces.is_none()
            && let Some(hold) = join(&pending.request)
        {
            let request = self.remove(id, Exit::Granted, now)?;
            request.fulfil(hold);
            return None;
        }
        pending.sent = now;
        let mut claim = pending.request.claim.clone();
        claim.replaces = pending.replaces.take();
        if let Some(line) = pending.place.and_then(|_| self.lines.get(&claim.name)) {
            claim.mark = Some(pace.mark(line.quickest()));
        }
        self.on(id, WaiterEvent::Sent, now);
        Some(claim)
    }

    /// Lets those ask who may have the lock beside as many as were granted it just now.
    fn follow(&mut self, name: &LockName, granted: usize, now: Duration) {
        let Some(line) = self.lines.get(name) else { return };
        let leaders: Vec<RequestId> = line
            .order
            .values()
            .copied()
            .take((MORE * granted).min(FOLLOWERS))
            .enumerate()
            .take_while(|(place, id)| self.goes_along(*id, granted + place))
            .map(|(_, id)| id)
            .collect();
        for id in leaders {
            if !self.is_asking(id) {
                self.ask(id, now);
            }
        }
    }

    /// Whether a request may ask along with those before it, so many, that have the lock or stand in its line: they and
    /// it take the same share, and together they fit.
    fn goes_along(&self, id: RequestId, before: usize) -> bool {
        let share = |id: RequestId| {
            let claim = &self.pending.get(&id)?.request.claim;
            (!claim.owner.is_explicit()).then_some(claim.share)
        };
        let Some(pending) = self.pending.get(&id) else { return false };
        let (Some(own), Some(place)) = (share(id), pending.place) else { return false };
        let Some(line) = self.lines.get(&pending.request.claim.name) else { return false };
        let taken = (before as u64 + 1).saturating_mul(own.weight().into());
        let previous = line.order.range(..place).next_back().map(|(_, id)| share(*id));
        taken <= own.capacity().into()
            && line.head().and_then(share) == Some(own)
            && previous.is_none_or(|previous| previous == Some(own))
    }

    /// Whether the head of the line was told that the lock is busy while this one behind it was about to ask.
    fn comes_too_early(&self, id: RequestId) -> bool {
        let Some(pending) = self.pending.get(&id) else { return false };
        if pending.place.is_none() || pending.state.doubt() != Doubt::None {
            return false;
        }
        let line = self.lines.get(&pending.request.claim.name);
        match line.and_then(Line::head) {
            Some(head) => head != id && !self.is_asking(head),
            None => false,
        }
    }

    fn is_asking(&self, id: RequestId) -> bool {
        self.pending.get(&id).is_some_and(|pending| pending.state.is_asking())
    }

    /// Makes the head of a line ask later, unless it asks now.
    fn rest(&mut self, name: &LockName, now: Duration) {
        let (pace, jitter) = (self.pace(), self.random.f64());
        let Some(line) = self.lines.get_mut(name) else { return };
        let Some(head) = line.head() else { return };
        if self.pending.get(&head).is_none_or(|pending| pending.state.is_asking()) {
            return;
        }
        let busy = line.busy.clone().unwrap_or_default();
        let again = match line.holds_back.filter(|until| now < *until) {
            // A hint came meanwhile.
            Some(until) => until,
            None => {
                let again = pace.next_ask(line.quickest(), line.asks, &busy, now, jitter);
                line.asks = line.asks.saturating_add(1);
                again
            }
        };
        self.timers.set(Due::Head(name.clone()), again);
    }

    fn give_up(&mut self, id: RequestId, now: Duration) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let Some(reply) = pending.request.reply.take() else {
            self.on(id, WaiterEvent::Expired, now);
            if self.is_asking(id) {
                // What is under way is waited for.
                self.timers.set(Due::GiveUp(id), now.saturating_add(OVERDUE));
            }
            return;
        };
        let line = pending.place.and_then(|_| self.lines.get(&pending.request.claim.name));
        reply.send(Err(pending.why_not(line, self.backend, now)));
        self.on(id, WaiterEvent::Abandoned, now);
    }

    /// Begins to find out what a request without a caller has, for as long as it can have anything.
    fn settle(&mut self, id: RequestId, now: Duration) {
        let Some(pending) = self.pending.get(&id) else { return };
        let (ttl, name) =
            (pending.request.claim.ttl.duration(), pending.request.claim.name.clone());
        let sent = pending.sent;
        match ttl {
            Some(ttl) => self.timers.set(Due::GiveUp(id), sent.saturating_add(ttl)),
            None => self.timers.cancel(&Due::GiveUp(id)),
        }
        self.unqueue(&name, id, Exit::Other, now);
    }

    /// A shutdown does not take longer than this.
    fn limit_settling(&mut self, id: RequestId, now: Duration) {
        let due = Due::GiveUp(id);
        let limit = now.saturating_add(PATIENCE);
        if self.timers.get(&due).is_none_or(|moment| moment > limit) {
            self.timers.set(due, limit);
        }
    }

    fn remove(&mut self, id: RequestId, exit: Exit, now: Duration) -> Option<Box<Request>> {
        let pending = self.pending.get(&id)?;
        let name = pending.request.claim.name.clone();
        self.timers.cancel(&Due::Ask(id));
        self.timers.cancel(&Due::GiveUp(id));
        self.unqueue(&name, id, exit, now);
        let pending = self.pending.remove(&id)?;
        let not_done =
            |lease: LeaseId| HandOverEnded { attempt: lease.attempt, outcome: HandOver::NotDone };
        self.ended.extend(pending.replaces.map(not_done));
        Some(pending.request)
    }

    /// Takes a request out of its line, if it stands in one. If it was the head, the next one is.
    fn unqueue(&mut self, name: &LockName, id: RequestId, exit: Exit, now: Duration) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let Some(place) = pending.place.take() else { return };
        let Some(line) = self.lines.get_mut(name) else { return };
        let was_head = line.head() == Some(id);
        line.leave(place, &pending.request);
        let Some(head) = line.head() else {
            self.lines.remove(name);
            self.timers.cancel(&Due::Head(name.clone()));
            return;
        };
        if !was_head {
            return;
        }
        match exit {
            // A release will tell. Until then it asks in its turn.
            Exit::Granted => {
                (line.asks, line.busy, line.holds_back) = (0, None, None);
                self.rest(name, now);
            }
            // The release that is on its way, or a timer, says when.
            Exit::Other if !line.turn.is_ours(now) => {
                if let Turn::TheirsUntil(until) = line.turn {
                    self.timers.set(Due::Head(name.clone()), until);
                }
            }
            // What it is about to hear is as good as what it would.
            Exit::Other if self.timers.get(&Due::Head(name.clone())).is_some() => {}
            Exit::Other if self.is_asking(head) => {}
            Exit::Other => self.ask(head, now),
        }
    }

    /// How long it takes others to hear of a release, and to ask.
    fn their_turn(&self) -> Duration {
        self.turns().theirs + self.batcher.round_trip() * 2
    }

    fn turns(&self) -> &'static Turns {
        if self.listening { &HINTED } else { &POLLED }
    }

    fn pace(&self) -> Pace {
        Pace { listening: self.listening, names: self.lines.len(), phase: self.phase }
    }
}

/// A batch of claims on its way.
#[derive(Debug)]
pub(crate) struct ClaimBatch {
    requests: Vec<(LockName, RequestId)>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) at: Duration,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::locks::lease::state::Terms;
    use crate::words::owner::Owner;

    const NOW: Duration = Duration::from_secs(1_000);

    fn request(id: u64, owner: &str) -> Box<Request> {
        let claim = Claim::new(LockName::new("x").unwrap());
        Box::new(Request {
            id: RequestId(id),
            claim: claim.with_owner(Owner::explicit(owner).unwrap()),
            terms: Terms::switched_off(),
            retry: Retry::Adaptive,
            timeout: None,
            on_busy: None,
            reply: None,
        })
    }

    #[test]
    fn a_grant_to_an_explicit_owner_looks_at_others_of_that_owner_alone() {
        let can = Capabilities::new("test");
        let mut queue = WaitQueue::new(&can, GridPhase::default(), Observers::default());
        for id in 0..1_000 {
            queue.enter(request(id, &format!("owner {}", id % 500)), NOW);
        }
        let looked_at = Cell::new(0);
        let join = |_: &Request| {
            looked_at.set(looked_at.get() + 1);
            None
        };
        assert!(queue.joining(&request(1_000, "owner 7").claim, NOW, &join).is_empty());
        assert_eq!(looked_at.get(), 2);
        assert!(queue.joining(&request(1_001, "another").claim, NOW, &join).is_empty());
        assert_eq!(looked_at.get(), 2);
        for id in 0..1_000 {
            queue.leave(RequestId(id), NOW);
        }
        assert!(queue.lines.is_empty());
    }
}
