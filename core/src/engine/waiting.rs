//! The waiting room: everybody in this process who wants a lock and does not have it yet.
//!
//! Waiters of a name queue first come, first served. The head of a queue asks the database, again and again,
//! and those behind it that take as much as it does, and could hold the lock beside it, ask along with it once: as long as
//! nobody has been told that the lock is busy. A request that asks once does not queue. No I/O here: requests in, batches
//! of claims out, verdicts in, grants out.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::backend::{Busy, Capabilities, Claim, Verdict};
use crate::engine::agenda::Agenda;
use crate::engine::hold::Hold;
use crate::engine::lane::{Company, Lane};
use crate::engine::pace::{Pace, Retry};
use crate::engine::request::{Reply, Request, RequestId};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Attempt, LeaseId, Token};
use crate::name::LockName;

/// For how long at most an unknown outcome of somebody who has gone is looked into.
const LONGEST_SETTLING: Duration = Duration::from_secs(60);
/// How many ask along with the head of a queue at most, and how many after each one that has the lock.
const FOLLOWERS: usize = 256;
const MORE: usize = 4;
/// How long an unanswered request may be out before its caller is told that the database is away,
/// and not only that the lock was not free.
const SILENCE: Duration = Duration::from_secs(1);

/// A claim that was granted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) request: Request,
    pub(crate) token: Token,
}

#[derive(Debug)]
pub(crate) struct WaitingRoom {
    backend: &'static str,
    pending: HashMap<RequestId, Pending>,
    queues: HashMap<LockName, VecDeque<RequestId>>,
    lane: Lane<RequestId>,
    agenda: Agenda<Due>,
    listening: bool,
}

#[derive(Debug)]
struct Pending {
    request: Request,
    stage: Stage,
    /// A hint came while it was asking: what it will hear may be out of date.
    again: bool,
    /// How often it was told that the lock is busy, since the last hint.
    asks: u32,
    failures: u32,
    marked_at: Option<Duration>,
    /// An earlier ask of this attempt had no answer, so that it may hold a lease.
    unsure: bool,
    last: Option<Result<Busy>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Queued,
    InFlight { since: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    Ask(RequestId),
    GiveUp(RequestId),
}

impl WaitingRoom {
    pub(crate) fn new(can: &Capabilities) -> Self {
        Self {
            backend: can.backend,
            pending: HashMap::new(),
            queues: HashMap::new(),
            lane: Lane::new(can.max_in_flight, can.max_batch).with_batch_from(can.batch_from),
            agenda: Agenda::new(),
            listening: false,
        }
    }

    /// Whether anybody waits for a lock that was busy.
    pub(crate) fn is_waited_in(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Whether nothing is pending, queued or in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.lane.is_idle()
    }

    pub(crate) fn enter(&mut self, request: Request, now: Duration) {
        let (id, name) = (request.id, request.claim.name.clone());
        if let Some(timeout) = request.timeout {
            self.agenda.set(Due::GiveUp(id), now.saturating_add(timeout));
        }
        let asks_once = request.retry == Retry::Never;
        self.pending.insert(
            id,
            Pending {
                request,
                stage: Stage::Idle,
                again: false,
                asks: 0,
                failures: 0,
                marked_at: None,
                unsure: false,
                last: None,
            },
        );
        if asks_once {
            return self.ask(id, Company::Any);
        }
        let queue = self.queues.entry(name).or_default();
        let before = queue.back().copied();
        let place = queue.len();
        queue.push_back(id);
        let goes_along = match before {
            None => true,
            Some(before) => self.goes_along(id, place) && self.is_asking(before),
        };
        if goes_along {
            self.ask(id, Company::Any);
        }
    }

    /// The caller has gone.
    pub(crate) fn leave(&mut self, id: RequestId, now: Duration) {
        drop(self.dismiss(id, now));
    }

    /// Somebody released this name, as far as we heard: its first waiter asks at once.
    pub(crate) fn wake(&mut self, name: &LockName) {
        let Some(&head) = self.queues.get(name).and_then(VecDeque::front) else { return };
        if let Some(pending) = self.pending.get_mut(&head) {
            pending.asks = 0;
        }
        self.ask(head, Company::Any);
    }

    /// Hints may have been missed.
    pub(crate) fn wake_all(&mut self) {
        let names: Vec<LockName> = self.queues.keys().cloned().collect();
        for name in &names {
            self.wake(name);
        }
    }

    /// Whether hints of a release arrive.
    pub(crate) fn set_listening(&mut self, listening: bool) {
        self.listening = listening;
        // Whoever settled into the slow pace of the better times asks now.
        self.wake_all();
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.agenda.next()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Duration) {
        while let Some(due) = self.agenda.pop(now) {
            match due {
                Due::Ask(id) => {
                    let company = match self.pending.get(&id) {
                        Some(pending) if pending.is_suspect() => Company::Alone,
                        _ => Company::Any,
                    };
                    self.ask(id, company);
                }
                Due::GiveUp(id) => self.give_up(id, now),
            }
        }
    }

    /// Ends the waiting of everybody with `error`.
    pub(crate) fn close(&mut self, error: &Error, now: Duration) {
        let ids: Vec<RequestId> = self.pending.keys().copied().collect();
        for id in ids {
            if let Some(reply) = self.dismiss(id, now) {
                reply.send(Err(error.clone()));
            }
        }
    }

    /// The next batch of claims, to be sent at `now`. `join` serves a request from a lease that
    /// this process holds already.
    pub(crate) fn depart(
        &mut self,
        now: Duration,
        join: &dyn Fn(&Request) -> Option<Hold>,
    ) -> Option<Departure> {
        loop {
            let batch = self.lane.depart()?;
            let mut departure = Departure { requests: Vec::new(), claims: Vec::new(), at: now };
            let mut settled = Vec::new();
            for (name, id) in batch {
                match self.claim(id, now, join) {
                    Some(claim) => {
                        departure.requests.push((name, id));
                        departure.claims.push(claim);
                    }
                    None => settled.push(name),
                }
            }
            self.lane.skipped(&settled);
            if departure.claims.is_empty() {
                self.lane.landed([]);
                continue;
            }
            return Some(departure);
        }
    }

    /// Takes the answer to a batch, and hands out what was granted, and what is to be freed.
    pub(crate) fn arrive(
        &mut self,
        departure: &Departure,
        answer: Result<Vec<Verdict>>,
        now: Duration,
        jitter: &mut dyn FnMut() -> f64,
    ) -> (Vec<Grant>, Vec<LeaseId>) {
        self.lane.landed(departure.requests.iter().map(|(name, _)| name));
        let alone = departure.requests.len() == 1;
        let answers: Vec<Result<Verdict>> = match answer {
            Ok(verdicts) => verdicts.into_iter().map(Ok).collect(),
            Err(error) => departure.requests.iter().map(|_| Err(error.clone())).collect(),
        };
        let (mut grants, mut unheard) = (Vec::new(), Vec::new());
        for ((_, id), answer) in departure.requests.iter().zip(answers) {
            let Some(pending) = self.pending.get_mut(id) else { continue };
            pending.stage = Stage::Idle;
            let again = std::mem::take(&mut pending.again);
            match answer {
                Ok(Verdict::Granted(token)) => {
                    if let Some(request) = self.remove(*id) {
                        grants.push(Grant { request, token });
                    }
                }
                Ok(Verdict::Busy(busy)) => {
                    pending.unsure = false;
                    self.busy(*id, busy, again, now, jitter());
                }
                Ok(Verdict::Skipped) => self.busy(*id, Busy::default(), again, now, jitter()),
                Ok(Verdict::CapacityMismatch(capacity)) => {
                    let error = pending.mismatch(capacity, self.backend);
                    pending.unsure = false;
                    self.refuse(*id, error, now);
                }
                // The lease was granted, unheard of, and has ended since or may not be used: begin anew.
                Ok(verdict @ (Verdict::Ended | Verdict::Revoked(_))) => {
                    if let Verdict::Revoked(token) = verdict {
                        unheard.push(pending.request.claim.lease(token));
                    }
                    pending.unsure = false;
                    pending.request.claim.attempt = Attempt::new();
                    if pending.request.reply.is_none() {
                        self.remove(*id);
                    } else {
                        self.ask(*id, Company::Any);
                    }
                }
                Err(error) => self.failed(*id, error, alone, now, jitter()),
            }
        }
        // Those of one name come one after the other.
        for granted in grants.chunk_by(|a, b| a.request.claim.name == b.request.claim.name) {
            let name = &granted[0].request.claim.name;
            if !self.queues.contains_key(name) {
                continue;
            }
            let asked = departure.requests.iter().filter(|(asked, _)| asked == name).count();
            // Where the lock is full again whoever comes next waits for another release.
            if asked == granted.len() {
                self.follow(name, MORE * asked);
            }
        }
        (grants, unheard)
    }

    /// Whoever waits for `name` and can join the lease that was granted just now, in order.
    pub(crate) fn joining(
        &mut self,
        name: &LockName,
        join: &dyn Fn(&Request) -> Option<Hold>,
    ) -> Vec<(Request, Hold)> {
        let Some(queue) = self.queues.get(name) else { return Vec::new() };
        let ids: Vec<RequestId> = queue.iter().copied().collect();
        ids.into_iter()
            .filter_map(|id| {
                let pending = self.pending.get(&id)?;
                if pending.stage != Stage::Idle {
                    return None;
                }
                let hold = join(&pending.request)?;
                Some((self.remove(id)?, hold))
            })
            .collect()
    }

    /// Lets those ask, at most so many, who may have the lock beside those that have it now.
    fn follow(&mut self, name: &LockName, most: usize) {
        let Some(queue) = self.queues.get(name) else { return };
        let leaders = queue.iter().copied().enumerate().take(most.min(FOLLOWERS));
        let leaders: Vec<RequestId> = leaders
            .take_while(|(place, id)| self.goes_along(*id, *place))
            .map(|(_, id)| id)
            .collect();
        for id in leaders {
            if !self.is_asking(id) {
                self.ask(id, Company::Any);
            }
        }
    }

    /// Whether a request at this place of its queue may ask along with the head: all before it and it itself
    /// take the same share, and together they fit.
    fn goes_along(&self, id: RequestId, place: usize) -> bool {
        let share = |id: &RequestId| {
            let claim = &self.pending.get(id)?.request.claim;
            (!claim.owner.is_explicit()).then_some((claim.share, &claim.name))
        };
        let Some((own, name)) = share(&id) else { return false };
        let Some(queue) = self.queues.get(name) else { return false };
        let taken = (place as u64 + 1).saturating_mul(own.weight().into());
        let head = queue.front().and_then(share).map(|(share, _)| share);
        let before = place.checked_sub(1).and_then(|place| queue.get(place)).map(share);
        taken <= own.capacity().into()
            && head == Some(own)
            && before.is_none_or(|before| before.map(|(share, _)| share) == Some(own))
    }

    /// Whether the head of the queue was told that the lock is busy while this one behind it was about to ask.
    fn comes_too_early(&self, id: RequestId) -> bool {
        let Some(pending) = self.pending.get(&id).filter(|pending| !pending.unsure) else {
            return false;
        };
        let queue = self.queues.get(&pending.request.claim.name);
        match queue.and_then(VecDeque::front) {
            Some(head) if *head != id => !self.leads(id) && !self.is_asking(*head),
            _ => false,
        }
    }

    /// Whether a request is the first of its queue, or stands in none.
    fn leads(&self, id: RequestId) -> bool {
        let Some(pending) = self.pending.get(&id) else { return false };
        if pending.request.reply.is_none() || pending.request.retry == Retry::Never {
            return true;
        }
        let queue = self.queues.get(&pending.request.claim.name);
        queue.and_then(VecDeque::front) == Some(&id)
    }

    fn is_asking(&self, id: RequestId) -> bool {
        self.pending.get(&id).is_some_and(|pending| pending.stage != Stage::Idle)
    }

    fn ask(&mut self, id: RequestId, company: Company) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        match pending.stage {
            Stage::Idle => {
                pending.stage = Stage::Queued;
                self.agenda.cancel(Due::Ask(id));
                let claim = &pending.request.claim;
                let company = match company {
                    // It may join the lease that another one of its owner's is granted.
                    Company::Any if claim.owner.is_explicit() => Company::OtherNames,
                    _ => company,
                };
                // A first answer is waited for, and so is that to whoever was woken up. Polls can wait for
                // each other.
                match pending.asks {
                    0 => self.lane.push_urgent(claim.name.clone(), id, company),
                    _ => self.lane.push(claim.name.clone(), id, company),
                }
            }
            Stage::Queued => {}
            Stage::InFlight { .. } => pending.again = true,
        }
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
            self.pending.get_mut(&id)?.stage = Stage::Idle;
            return None;
        }
        let pending = self.pending.get_mut(&id)?;
        // A lease that it can join is younger than its own last ask, so that it holds no other.
        if let Some(hold) = join(&pending.request) {
            let request = self.remove(id)?;
            request.fulfil(hold);
            return None;
        }
        pending.stage = Stage::InFlight { since: now };
        let mut claim = pending.request.claim.clone();
        if pending.request.retry != Retry::Never && pending.request.reply.is_some() {
            claim.mark = pace.mark(pending.request.retry, pending.marked_at, now);
            if claim.mark.is_some() {
                pending.marked_at = Some(now);
            }
        }
        Some(claim)
    }

    fn busy(&mut self, id: RequestId, busy: Busy, again: bool, now: Duration, jitter: f64) {
        let (pace, leads) = (self.pace(), self.leads(id));
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.failures = 0;
        if !leads && !pending.unsure && !again {
            // It asks again when those before it have the lock.
            pending.last = Some(Ok(busy));
            return;
        }
        if pending.request.reply.is_some() && pending.request.retry == Retry::Never {
            if let Some(reply) = self.dismiss(id, now) {
                reply.send(Ok(None));
            }
            return;
        }
        if pending.request.reply.is_none() && !pending.unsure {
            self.remove(id);
            return;
        }
        if pending.request.reply.is_some()
            && let Some(on_wait) = &mut pending.request.on_wait
        {
            // A panic of the user's must not end the engine.
            if catch_unwind(AssertUnwindSafe(|| on_wait(&busy))).is_err() {
                pending.request.on_wait = None;
            }
        }
        let next = pace.next_ask(pending.request.retry, pending.asks, &busy, now, jitter);
        pending.asks = pending.asks.saturating_add(1);
        pending.last = Some(Ok(busy));
        if again {
            self.ask(id, Company::Any);
        } else {
            self.agenda.set(Due::Ask(id), next);
        }
    }

    fn failed(&mut self, id: RequestId, error: Error, alone: bool, now: Duration, jitter: f64) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        if !error.is_retryable() && alone {
            return self.refuse(id, error, now);
        }
        if error.is_retryable() {
            tracing::warn!(
                lock = %pending.request.claim.name, %error, "asking for a lock failed, will ask again"
            );
        }
        pending.unsure = true;
        let next = Pace::after_error(pending.failures, now, jitter);
        pending.failures = pending.failures.saturating_add(1);
        let suspect = !error.is_retryable();
        pending.last = Some(Err(error));
        if suspect {
            self.ask(id, Company::Alone);
        } else {
            self.agenda.set(Due::Ask(id), next);
        }
    }

    fn refuse(&mut self, id: RequestId, error: Error, now: Duration) {
        let Some(pending) = self.pending.get(&id) else { return };
        let name = pending.request.claim.name.clone();
        match self.dismiss(id, now) {
            Some(reply) => {
                reply.send(Err(error.with_lock(&name)));
            }
            None => {
                self.remove(id);
            }
        }
    }

    fn give_up(&mut self, id: RequestId, now: Duration) {
        let Some(pending) = self.pending.get(&id) else { return };
        let why = pending.why_not(self.backend, now);
        if let Some(reply) = self.dismiss(id, now) {
            reply.send(Err(why));
        } else if self.is_in_flight(id) {
            // What is under way is waited for: it may be a grant.
            self.agenda.set(Due::GiveUp(id), now.saturating_add(SILENCE));
        } else {
            self.remove(id);
        }
    }

    fn is_in_flight(&self, id: RequestId) -> bool {
        self.pending.get(&id).is_some_and(|p| matches!(p.stage, Stage::InFlight { .. }))
    }

    /// Takes a request out, unless its outcome is unknown: then it stays, without its caller, to
    /// be settled, and what it may be granted is released.
    fn dismiss(&mut self, id: RequestId, now: Duration) -> Option<Reply> {
        let pending = self.pending.get_mut(&id)?;
        // Whoever was told already is being settled already.
        let reply = pending.request.reply.take()?;
        let in_flight = matches!(pending.stage, Stage::InFlight { .. });
        if in_flight || pending.unsure {
            let ttl = pending.request.claim.ttl.duration().unwrap_or(LONGEST_SETTLING);
            let until = now.saturating_add(ttl.min(LONGEST_SETTLING));
            let name = pending.request.claim.name.clone();
            if !in_flight {
                let suspect = pending.is_suspect();
                self.ask(id, if suspect { Company::Alone } else { Company::Any });
            }
            self.unqueue(&name, id);
            self.agenda.set(Due::GiveUp(id), until);
        } else {
            self.remove(id);
        }
        Some(reply)
    }

    fn remove(&mut self, id: RequestId) -> Option<Request> {
        let pending = self.pending.remove(&id)?;
        self.agenda.cancel(Due::Ask(id));
        self.agenda.cancel(Due::GiveUp(id));
        self.unqueue(&pending.request.claim.name, id);
        Some(pending.request)
    }

    /// Takes a request out of its queue; if it was the head, the next one asks.
    fn unqueue(&mut self, name: &LockName, id: RequestId) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let was_head = queue.front() == Some(&id);
        if was_head {
            queue.pop_front();
        } else {
            queue.retain(|waiting| *waiting != id);
        }
        match queue.front().copied() {
            None => {
                self.queues.remove(name);
            }
            Some(head) if was_head => {
                if let Some(pending) = self.pending.get_mut(&head) {
                    // The one before it has taken the weight of the mark away.
                    pending.marked_at = None;
                }
                // What it is about to hear is as good.
                if !self.is_asking(head) {
                    self.ask(head, Company::Any);
                }
            }
            Some(_) => {}
        }
    }

    fn pace(&self) -> Pace {
        Pace { listening: self.listening, names: self.queues.len() }
    }
}

impl Pending {
    /// Whether it may be what made a batch fail.
    fn is_suspect(&self) -> bool {
        matches!(&self.last, Some(Err(error)) if !error.is_retryable())
    }

    fn mismatch(&self, held: u32, backend: &'static str) -> Error {
        let claim = &self.request.claim;
        Error::new(
            ErrorKind::CapacityMismatch,
            format!(
                "it is held with a capacity of {held}, and {} was asked for: use one capacity \
                 (or one kind of lock) for one name",
                claim.share.capacity()
            ),
        )
        .with_lock(&claim.name)
        .with_backend(backend)
        .with_operation("acquire")
    }

    /// Why the caller has to go without.
    fn why_not(&self, backend: &'static str, now: Duration) -> Error {
        let silent = matches!(self.stage, Stage::InFlight { since }
            if now.saturating_sub(since) >= SILENCE);
        let error = match &self.last {
            Some(Err(error)) if error.is_retryable() => Error::new(
                ErrorKind::Unavailable,
                format!("the database could not be asked within the timeout: {error}"),
            )
            .with_source(error.clone()),
            _ if silent || self.request.retry == Retry::Never => Error::new(
                ErrorKind::Unavailable,
                "the database did not answer within the timeout: check that it is reachable",
            ),
            Some(Ok(Busy { holder: Some(holder), .. })) => Error::new(
                ErrorKind::Timeout,
                format!(
                    "not obtained within the timeout: {} holds it under token {}",
                    holder.owner, holder.token
                ),
            ),
            _ => Error::new(ErrorKind::Timeout, "not obtained within the timeout"),
        };
        error.with_lock(&self.request.claim.name).with_backend(backend).with_operation("acquire")
    }
}

/// A batch of claims on its way.
#[derive(Debug)]
pub(crate) struct Departure {
    requests: Vec<(LockName, RequestId)>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) at: Duration,
}
