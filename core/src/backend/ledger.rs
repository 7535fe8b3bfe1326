//! The one rule, as a pure model: all that is known of one name, and what a claim, a renewal and
//! a release do to it.
//!
//! A backend that can load and store a name's state as a whole (a map, a file, a key-value store
//! with transactions) needs nothing else. Backends that decide in SQL are tested against it.
//!
//! # The rule
//!
//! A lease **lives** until it expires, is released or is superseded. To a claim it **counts** while it
//! lives and, if it has expired, for the claim's grace beyond that. In the order of these lines, a claim
//!
//! 1. whose attempt is known already gets the same token and a fresh TTL while it holds that lease, is
//!    [`Revoked`](Verdict::Revoked) if it was revoked and lives, and [`Ended`](Verdict::Ended) otherwise;
//! 2. that is to [take the place](Claim::replaces) of a lease is granted if both are of all of the lock, with one
//!    capacity, and that lease is its holder's; else it is [`Skipped`](Verdict::Skipped);
//! 3. is a [`CapacityMismatch`](Verdict::CapacityMismatch) if a lease counts that is of another capacity;
//! 4. is [`Busy`](Verdict::Busy) if the weights that count and its own exceed the capacity. It names the
//!    lease that lives longest, and is asked again when the first of them ends;
//! 5. is busy without a holder if a heavier waiter has left a mark that has not run out;
//! 6. is granted, with the token `max(last + 1, µs since 1970)`.
//!
//! Leases of the claim's own explicit owner never count: a grant *supersedes* them. A grant also ends
//! for good what did not count, lest it live again when the clock is set back. A grant of all of the
//! lock forgets every other lease; a grant of a share remembers those that have ended, so that a late
//! replay of their attempts is refused, up to [`MOST_REMEMBERED`](Ledger::MOST_REMEMBERED).
//!
//! A busy claim with a [`mark`](Claim::mark) leaves it, unless a heavier one is there that has not run out, or one as heavy of
//! which at least half as long is left as the claim's would live.
//! The grant of a claim of at least that weight takes the weight away and leaves the mark, since others
//! may still wait: a release asks for a hint as long as any mark has not run out.
//!
//! A renewal and a release touch a lease only if attempt, token and owner match and it lives. A release frees
//! the name at once, or *keeps* it: then the lease ends for its holder, and the name stays taken until the lease
//! is as old as it says, if it is not by then. Or it *revokes* the lease: then it lives until its end, and its
//! holder may free it before. What is kept or revoked is not renewed, not superseded, and not granted again to
//! its own attempt. What is not to be touched was lost, for the first of these reasons that is true:
//!
//! | what is known | reason |
//! |---|---|
//! | it is kept | [`Released`](LossReason::Released) |
//! | it is revoked | [`Forced`](LossReason::Forced) |
//! | it was released, and its row bears the same owner's name | [`Forced`](LossReason::Forced) |
//! | it was released, and its row bears another name | [`Taken`](LossReason::Taken) |
//! | there is a newer lease of the same explicit owner | [`Superseded`](LossReason::Superseded) |
//! | nothing is known of the name | [`Deleted`](LossReason::Deleted) |
//! | there is a newer lease that does not fit beside it | [`Taken`](LossReason::Taken) |
//! | the lease is known, or a token as high as its own was granted | [`Expired`](LossReason::Expired) |
//! | anything else | [`Deleted`](LossReason::Deleted) |
//!
//! # Time
//!
//! Time is a [`Duration`] since an epoch of the backend's choice. It should not run backwards while
//! leases live (if it does, they live longer by as much), and is told apart from the wall clock, which
//! may, and which tokens begin at. A backend that holds a lock on the name's state reads the time after it
//! has the lock. One that reads, decides and then writes if the state is unchanged must also make sure
//! that the decision still [holds](Ledger::holds_until) when it is written: what was extended may have
//! expired meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use crate::backend::{
    Busy, Claim, Holder, How, LeaseInfo, Release, Released, Renewal, Renewed, Standing, Verdict,
};
use crate::words::data::Data;
use crate::words::identity::{Attempt, LeaseId, Token};
use crate::words::loss::LossReason;
use crate::words::name::LockName;
use crate::words::owner::Owner;
use crate::words::share::Share;
use crate::words::ttl::Ttl;

/// All that is known of one name.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ledger {
    /// The highest token that was ever granted; 0 for none.
    pub token: u64,
    /// Leases that live, and some that have ended lately.
    pub entries: Vec<Entry>,
    /// The heaviest waiter.
    pub mark: Option<Mark>,
    /// When a lease of this name was last granted, renewed or released.
    pub touched: Duration,
}

/// A lease, alive or ended.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The acquire call that won it.
    pub attempt: Attempt,
    /// Its fencing token.
    pub token: Token,
    /// Who holds it.
    pub owner: Owner,
    /// What it takes.
    pub share: Share,
    /// When it was granted.
    pub granted_at: Duration,
    /// Until when it lives.
    pub until: Until,
    /// Whether its holder still has it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub standing: Standing,
    /// What its holder tells of itself.
    #[cfg_attr(feature = "serde", serde(default))]
    pub data: Option<Data>,
}

/// Until when a lease lives. Whoever stores it has to know each case.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Without end.
    Forever,
    /// Until this moment, exclusive. At zero it has ended for good: see [`Until::ENDED`].
    Expiry(Duration),
    /// It was released at this moment.
    Released(Duration),
}

/// "Somebody waits."
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mark {
    /// Until when the mark counts, exclusive.
    pub until: Duration,
    /// What the waiter wants to take; 0 once it got it, while others may still wait.
    pub weight: u32,
}

impl Mark {
    /// Somebody who wants to take `weight` waits until then.
    #[must_use]
    pub const fn new(until: Duration, weight: u32) -> Self {
        Self { until, weight }
    }
}

impl Ledger {
    /// With more leases than this that have ended, a grant of a share forgets the oldest of them…
    pub const MOST_REMEMBERED: usize = 64;
    /// … and keeps this many, so that a late replay of their attempts is refused.
    pub const LEAST_REMEMBERED: usize = 16;

    /// Decides a claim. `micros` is the server's wall clock in µs since 1970, for the token.
    pub fn acquire(&mut self, claim: &Claim, now: Duration, micros: u64) -> Verdict {
        let share = claim.share;
        if let Some(entry) = self.entries.iter_mut().find(|e| e.attempt == claim.attempt) {
            if !entry.until.is_alive(now) || entry.standing == Standing::Kept {
                return Verdict::Ended;
            }
            if entry.standing == Standing::Revoked {
                return Verdict::Revoked(entry.token);
            }
            entry.until = Until::after(claim.ttl, now);
            self.touched = now;
            return Verdict::Granted(entry.token);
        }

        if let Some(lease) = &claim.replaces {
            let is_whole = share.is_exclusive() && lease.share == share;
            let is_ours = lease.attempt != Attempt::FOREIGN;
            let is_held = self.find(lease).is_some_and(|entry| entry.is_held(now));
            return match is_whole && is_ours && is_held {
                true => self.grant(claim, now, micros),
                false => Verdict::Skipped,
            };
        }

        let in_the_way: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| e.until.counts(now, claim.grace) && !e.is_superseded_by(claim))
            .collect();
        if let Some(other) = in_the_way.iter().find(|e| e.share.capacity() != share.capacity()) {
            return Verdict::CapacityMismatch(other.share.capacity());
        }
        let taken: u64 = in_the_way.iter().map(|e| u64::from(e.share.weight())).sum();
        let fits = taken + u64::from(share.weight()) <= u64::from(share.capacity());
        let stands_back =
            self.mark.is_some_and(|mark| mark.until > now && mark.weight > share.weight());
        if !fits || stands_back {
            let busy = busy(&in_the_way, claim.grace, now, fits);
            self.leave_mark(claim, now);
            return Verdict::Busy(busy);
        }
        self.grant(claim, now, micros)
    }

    fn grant(&mut self, claim: &Claim, now: Duration, micros: u64) -> Verdict {
        let share = claim.share;
        self.token = micros.max(self.token + 1);
        self.touched = now;
        self.make_room(claim, now);
        self.entries.push(Entry {
            attempt: claim.attempt,
            token: Token::new(self.token),
            owner: claim.owner.clone(),
            share,
            granted_at: now,
            until: Until::after(claim.ttl, now),
            standing: Standing::Held,
            data: claim.data.clone(),
        });
        if let Some(mark) = &mut self.mark
            && mark.weight <= share.weight()
        {
            mark.weight = 0;
        }
        Verdict::Granted(Token::new(self.token))
    }

    /// Extends a lease that is alive and that its holder still has.
    pub fn renew(&mut self, renewal: &Renewal, now: Duration) -> Renewed {
        match self.find(&renewal.lease) {
            Some(entry) if entry.is_held(now) => {
                entry.until = Until::after(renewal.ttl, now);
                self.touched = now;
                Renewed::Alive
            }
            _ => Renewed::Lost(self.why_lost(&renewal.lease, now)),
        }
    }

    /// Ends a lease, or what its holder has of it. Answers also whether a hint is due, because somebody waits.
    pub fn release(&mut self, Release { lease, how }: &Release, now: Duration) -> (Released, bool) {
        let Some(entry) = self.find(lease).filter(|entry| entry.until.is_alive(now)) else {
            return (Released::Lost(self.why_lost(lease, now)), false);
        };
        match *how {
            How::Free => entry.until = Until::Released(now),
            How::Keep { until_age } => {
                let end = entry.granted_at.saturating_add(until_age);
                entry.standing = Standing::Kept;
                entry.until = if end > now { Until::Expiry(end) } else { Until::Released(now) };
            }
            How::Revoke if entry.standing == Standing::Held => entry.standing = Standing::Revoked,
            How::Revoke => {}
        }
        self.touched = now;
        (Released::Done, *how != How::Revoke && self.is_waited_for(now))
    }

    /// The live leases, by attempt.
    #[must_use]
    pub fn list(&self, name: &LockName, now: Duration) -> Vec<LeaseInfo> {
        let mut live: Vec<&Entry> = self.entries.iter().filter(|e| e.until.is_alive(now)).collect();
        live.sort_by_key(|e| e.attempt);
        live.into_iter()
            .map(|e| LeaseInfo {
                lease: LeaseId {
                    name: name.clone(),
                    attempt: e.attempt,
                    token: e.token,
                    owner: e.owner.clone(),
                    share: e.share,
                },
                held_for: now.saturating_sub(e.granted_at),
                remaining: e.until.remaining(now),
                waited_for: self.is_waited_for(now),
                standing: e.standing,
                data: e.data.clone(),
            })
            .collect()
    }

    /// Until when what was decided of it holds, exclusive, if it was `before` at `now`; `None` without end.
    ///
    /// For stores that decide first and write later, if nothing has changed: what is extended must still
    /// be alive when it is written, and what is granted too.
    #[must_use]
    pub fn holds_until(&self, before: &Self, now: Duration) -> Option<Duration> {
        let expiry = |entry: &Entry| match entry.until {
            Until::Expiry(at) if at > now => Some(at),
            _ => None,
        };
        let was: HashMap<_, _> = before.entries.iter().map(|e| ((e.attempt, e.token), e)).collect();
        self.entries
            .iter()
            .map(|entry| (entry, was.get(&(entry.attempt, entry.token))))
            .filter(|(entry, was)| was.is_none_or(|was| was != entry))
            .filter(|(entry, _)| !matches!(entry.until, Until::Released(_) | Until::ENDED))
            .flat_map(|(entry, was)| [expiry(entry), was.and_then(|was| expiry(was))])
            .flatten()
            .min()
    }

    /// Whether [`clean_up`](crate::LockBackend::clean_up) may forget this name. `micros` as in
    /// [`acquire`](Self::acquire).
    #[must_use]
    pub fn is_idle(&self, idle: Duration, now: Duration, micros: u64) -> bool {
        let idle_micros = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX);
        !self.entries.iter().any(|e| e.until.counts(now, idle))
            && !self.is_waited_for(now)
            && now.saturating_sub(self.touched) >= idle
            && self.token.saturating_add(idle_micros) <= micros
    }

    /// Ends for good what `claim` was granted in spite of: what it supersedes, and what counted as dead,
    /// lest it rise when the clock is set back. All of it is forgotten once the lock is granted to one
    /// alone, as where a single row decides.
    fn make_room(&mut self, claim: &Claim, now: Duration) {
        if claim.share.is_exclusive() {
            self.entries.clear();
            return;
        }
        let counts = |e: &Entry| e.until.counts(now, claim.grace);
        let ended = self.entries.iter().filter(|e| !counts(e)).count();
        let mut surplus = match ended > Self::MOST_REMEMBERED {
            true => ended - Self::LEAST_REMEMBERED,
            false => 0,
        };
        // The oldest come first.
        self.entries.retain(|e| {
            let stays = counts(e) || surplus == 0;
            surplus -= usize::from(!stays);
            stays
        });
        for entry in &mut self.entries {
            let is_over = !counts(entry) || entry.is_superseded_by(claim);
            if is_over && !matches!(entry.until, Until::Released(_)) {
                entry.until = Until::ENDED;
            }
        }
    }

    fn find(&mut self, lease: &LeaseId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| {
            e.attempt == lease.attempt && e.token == lease.token && e.owner == lease.owner
        })
    }

    fn why_lost(&self, lease: &LeaseId, now: Duration) -> LossReason {
        let known = self.entries.iter().find(|e| e.attempt == lease.attempt);
        match known.filter(|e| e.until.is_alive(now)).map(|e| e.standing) {
            Some(Standing::Kept) => return LossReason::Released,
            Some(Standing::Revoked) => return LossReason::Forced,
            Some(Standing::Held) | None => {}
        }
        if let Some(entry) = known
            && let Until::Released(_) = entry.until
        {
            // Somebody who shares the table without knowing of attempts has come and gone, and has
            // left a name.
            let is_renamed = entry.owner.label() != lease.owner.label();
            return if is_renamed { LossReason::Taken } else { LossReason::Forced };
        }
        let newer = || self.entries.iter().filter(|e| e.token > lease.token);
        if newer().any(|e| e.owner.supersedes(&lease.owner)) {
            LossReason::Superseded
        } else if self.token == 0 {
            LossReason::Deleted
        } else if newer().any(|e| !fits_beside(e.share, lease.share)) {
            LossReason::Taken
        } else if self.entries.iter().any(|e| e.attempt == lease.attempt && !e.until.is_alive(now))
            || self.token >= lease.token.get()
        {
            LossReason::Expired
        } else {
            LossReason::Deleted
        }
    }

    fn is_waited_for(&self, now: Duration) -> bool {
        self.mark.is_some_and(|mark| mark.until > now)
    }

    /// Leaves the claim's mark, unless a heavier one stands, or one as heavy of which more than half is left: whoever waits
    /// asks often, and is not to write each time.
    fn leave_mark(&mut self, claim: &Claim, now: Duration) {
        let Some(length) = claim.mark else { return };
        let weight = claim.share.weight();
        let stands = self.mark.is_some_and(|mark| {
            mark.until > now
                && (mark.weight > weight
                    || mark.weight == weight && mark.until.saturating_sub(now) >= length / 2)
        });
        if !stands {
            self.mark = Some(Mark { until: now.saturating_add(length), weight });
        }
    }
}

impl Entry {
    /// A lease that was granted at `granted_at` and lives without end.
    #[must_use]
    pub const fn new(
        attempt: Attempt,
        token: Token,
        owner: Owner,
        share: Share,
        granted_at: Duration,
    ) -> Self {
        let (until, standing, data) = (Until::Forever, Standing::Held, None);
        Self { attempt, token, owner, share, granted_at, until, standing, data }
    }

    fn is_held(&self, now: Duration) -> bool {
        self.standing == Standing::Held && self.until.is_alive(now)
    }

    fn is_superseded_by(&self, claim: &Claim) -> bool {
        self.standing == Standing::Held && claim.owner.supersedes(&self.owner)
    }
}

impl Until {
    /// Of a lease whose place was given away: it ended before all time, whatever a clock says later.
    pub const ENDED: Self = Self::Expiry(Duration::ZERO);

    fn after(ttl: Ttl, now: Duration) -> Self {
        match ttl {
            Ttl::Infinite => Self::Forever,
            Ttl::Finite(ttl) => Self::Expiry(now.saturating_add(ttl.get())),
        }
    }

    /// Whether the holder still has the lease.
    fn is_alive(self, now: Duration) -> bool {
        self.counts(now, Duration::ZERO)
    }

    /// Whether others have to respect the lease.
    fn counts(self, now: Duration, grace: Duration) -> bool {
        match self {
            Self::Forever => true,
            Self::Expiry(at) => at > Duration::ZERO && at.saturating_add(grace) > now,
            Self::Released(_) => false,
        }
    }

    fn remaining(self, now: Duration) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::Expiry(at) => Some(at.saturating_sub(now)),
            Self::Released(_) => Some(Duration::ZERO),
        }
    }
}

fn fits_beside(a: Share, b: Share) -> bool {
    a.capacity() == b.capacity()
        && u64::from(a.weight()) + u64::from(b.weight()) <= u64::from(a.capacity())
}

fn busy(in_the_way: &[&Entry], grace: Duration, now: Duration, stands_back: bool) -> Busy {
    if stands_back {
        return Busy::default();
    }
    // The longest-lived of the holders: it is the one that waiters wait for in the end.
    let holder = in_the_way.iter().max_by_key(|e| match e.until {
        Until::Forever => Duration::MAX,
        Until::Expiry(at) | Until::Released(at) => at,
    });
    Busy {
        holder: holder.map(|e| Holder {
            owner: e.owner.clone(),
            token: e.token,
            held_for: now.saturating_sub(e.granted_at),
            remaining: e.until.remaining(now),
            standing: e.standing,
            data: e.data.clone(),
        }),
        retry_after: in_the_way
            .iter()
            .filter_map(|e| e.until.remaining(now.saturating_sub(grace)))
            .min(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: u64 = 1_000_000;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(share: Share) -> Claim {
        Claim::new(LockName::new("x").unwrap())
            .with_share(share)
            .with_ttl(Ttl::new(at(10)).unwrap())
    }

    fn granted(ledger: &mut Ledger, claim: &Claim, now: u64) -> LeaseId {
        match ledger.acquire(claim, at(now), MICROS) {
            Verdict::Granted(token) => claim.lease(token),
            other => panic!("not granted: {other:?}"),
        }
    }

    fn is_busy(ledger: &mut Ledger, claim: &Claim, now: u64) -> bool {
        matches!(ledger.acquire(claim, at(now), MICROS), Verdict::Busy(_))
    }

    #[test]
    fn weights_of_the_living_stay_within_the_capacity() {
        let mut ledger = Ledger::default();
        let two = claim(Share::new(2, 3).unwrap());
        let lease = granted(&mut ledger, &two, 0);
        assert!(is_busy(&mut ledger, &claim(Share::new(2, 3).unwrap()), 1));
        granted(&mut ledger, &claim(Share::new(1, 3).unwrap()), 1);
        assert_eq!(ledger.acquire(&claim(Share::ALL), at(1), MICROS), Verdict::CapacityMismatch(3));
        assert_eq!(ledger.release(&Release::free(lease.clone()), at(2)), (Released::Done, false));
        granted(&mut ledger, &claim(Share::new(2, 3).unwrap()), 2);
        // All have expired at 12: the capacity may change.
        granted(&mut ledger, &claim(Share::ALL), 12);
    }

    #[test]
    fn replays_get_the_same_token_while_alive_and_nothing_after() {
        let mut ledger = Ledger::default();
        let first = claim(Share::ALL);
        let lease = granted(&mut ledger, &first, 0);
        assert_eq!(granted(&mut ledger, &first, 5), lease);
        // The replay at 5 was a fresh TTL.
        assert!(is_busy(&mut ledger, &claim(Share::ALL), 14));
        assert_eq!(ledger.acquire(&first, at(15), MICROS), Verdict::Ended);
        let second = granted(&mut ledger, &claim(Share::ALL), 15);
        assert!(second.token > lease.token);
        let renewal = Renewal { lease: lease.clone(), ttl: first.ttl };
        assert_eq!(ledger.renew(&renewal, at(16)), Renewed::Lost(LossReason::Taken));
        assert_eq!(
            ledger.release(&Release::free(lease.clone()), at(16)).0,
            Released::Lost(LossReason::Taken)
        );
    }

    #[test]
    fn what_has_ended_is_not_remembered_without_bound() {
        let mut ledger = Ledger::default();
        for _ in 0..100 {
            let lease = granted(&mut ledger, &claim(Share::ONE), 0);
            ledger.release(&Release::free(lease.clone()), at(0));
        }
        let most = Ledger::MOST_REMEMBERED + 2;
        assert!(ledger.entries.len() <= most, "{}", ledger.entries.len());
        granted(&mut ledger, &claim(Share::ALL), 100);
        assert_eq!(ledger.entries.len(), 1);
    }

    #[test]
    fn a_superseded_share_is_dead_and_its_weight_is_free() {
        let mut ledger = Ledger::default();
        let bob = |weight| Claim {
            owner: Owner::explicit("bob").unwrap(),
            ..claim(Share::new(weight, 5).unwrap())
        };
        let old = granted(&mut ledger, &bob(5), 0);
        granted(&mut ledger, &bob(3), 1);
        let renewal = Renewal { lease: old, ttl: Ttl::DEFAULT };
        assert_eq!(ledger.renew(&renewal, at(2)), Renewed::Lost(LossReason::Superseded));
        granted(&mut ledger, &claim(Share::new(2, 5).unwrap()), 2);
        assert!(is_busy(&mut ledger, &claim(Share::new(1, 5).unwrap()), 2));
    }

    #[test]
    fn what_a_grant_counted_as_dead_stays_dead_when_the_clock_is_set_back() {
        let mut ledger = Ledger::default();
        let permit = || claim(Share::new(1, 2).unwrap());
        let old = [granted(&mut ledger, &permit(), 0), granted(&mut ledger, &permit(), 0)];
        // The clock jumps ahead, and their places are given away; then it is put right.
        let new = [granted(&mut ledger, &permit(), 11), granted(&mut ledger, &permit(), 11)];
        for lease in old {
            let renewal = Renewal { lease, ttl: Ttl::DEFAULT };
            assert_eq!(ledger.renew(&renewal, at(2)), Renewed::Lost(LossReason::Expired));
        }
        for lease in new {
            let renewal = Renewal { lease, ttl: Ttl::DEFAULT };
            assert_eq!(ledger.renew(&renewal, at(2)), Renewed::Alive);
        }
        let careful = Claim { grace: at(100), ..permit() };
        assert!(is_busy(&mut ledger, &careful, 2));
        assert_eq!(ledger.list(&LockName::new("x").unwrap(), at(2)).len(), 2);
    }

    #[test]
    fn what_was_decided_holds_while_what_it_extends_and_grants_is_alive() {
        let mut ledger = Ledger::default();
        let lease = granted(&mut ledger, &claim(Share::ALL), 0);
        assert_eq!(ledger.holds_until(&Ledger::default(), at(0)), Some(at(10)));
        let before = ledger.clone();
        let ttl = Ttl::new(at(60)).unwrap();
        assert_eq!(ledger.renew(&Renewal { lease: lease.clone(), ttl }, at(5)), Renewed::Alive);
        assert_eq!(ledger.holds_until(&before, at(5)), Some(at(10)), "it may have expired by then");
        let before = ledger.clone();
        assert_eq!(ledger.release(&Release::free(lease.clone()), at(6)).0, Released::Done);
        assert_eq!(ledger.holds_until(&before, at(6)), None);
    }

    #[test]
    fn lighter_claims_stand_back_for_a_heavier_waiter_until_it_is_served() {
        let mut ledger = Ledger::default();
        let reader = granted(&mut ledger, &claim(Share::ONE), 0);
        let writer = Claim { mark: Some(at(5)), ..claim(Share::ALL) };
        assert!(is_busy(&mut ledger, &writer, 1));
        assert!(is_busy(&mut ledger, &claim(Share::ONE), 2), "a reader stands back");
        assert_eq!(ledger.release(&Release::free(reader.clone()), at(3)), (Released::Done, true));
        let writing = granted(&mut ledger, &writer, 3);
        ledger.release(&Release::free(writing.clone()), at(4));
        granted(&mut ledger, &claim(Share::ONE), 4);
    }

    #[test]
    fn a_lease_that_ended_under_another_name_was_taken() {
        let mut ledger = Ledger::default();
        let lease = granted(&mut ledger, &claim(Share::ALL), 0);
        ledger.entries[0].until = Until::Released(at(1));
        assert_eq!(
            ledger.release(&Release::free(lease.clone()), at(2)).0,
            Released::Lost(LossReason::Forced)
        );
        ledger.entries[0].owner = Owner::label_only("somebody else").unwrap();
        assert_eq!(
            ledger.release(&Release::free(lease.clone()), at(2)).0,
            Released::Lost(LossReason::Taken)
        );
    }

    #[test]
    fn a_kept_lease_counts_until_its_age_whatever_its_ttl() {
        for (age, end) in [(3, 3), (30, 30)] {
            let mut ledger = Ledger::default();
            let lease = granted(&mut ledger, &claim(Share::ALL), 0);
            let keep = Release::keep(lease.clone(), at(age));
            for now in [1, 2] {
                assert_eq!(ledger.release(&keep, at(now)).0, Released::Done);
            }
            let renewal = Renewal { lease: lease.clone(), ttl: Ttl::DEFAULT };
            assert_eq!(ledger.renew(&renewal, at(2)), Renewed::Lost(LossReason::Released));
            assert!(is_busy(&mut ledger, &claim(Share::ALL), end - 1));
            granted(&mut ledger, &claim(Share::ALL), end);
        }
        let mut ledger = Ledger::default();
        let lease = granted(&mut ledger, &claim(Share::ALL), 0);
        assert_eq!(ledger.release(&Release::keep(lease, at(3)), at(3)).0, Released::Done);
        assert!(ledger.list(&LockName::new("x").unwrap(), at(3)).is_empty(), "it is old enough");
    }

    #[test]
    fn a_revoked_lease_may_still_be_freed_or_kept_by_its_holder() {
        for how in [How::Free, How::Keep { until_age: at(5) }] {
            let mut ledger = Ledger::default();
            let lease = granted(&mut ledger, &claim(Share::ALL), 0);
            let revoke = Release::revoke(lease.clone());
            assert_eq!(ledger.release(&revoke, at(1)).0, Released::Done);
            assert!(is_busy(&mut ledger, &claim(Share::ALL), 2));
            assert_eq!(ledger.release(&Release { lease, how }, at(2)).0, Released::Done);
            // Nobody takes a kept lease for revoked, which its holder might still free.
            assert_eq!(ledger.release(&revoke, at(2)).0 == Released::Done, how != How::Free);
            let standing = ledger.entries[0].standing;
            assert_eq!(standing == Standing::Kept, how != How::Free);
            granted(&mut ledger, &claim(Share::ALL), if how == How::Free { 2 } else { 5 });
        }
    }

    #[test]
    fn a_release_of_what_somebody_waits_for_asks_for_a_hint_unless_it_revokes() {
        for (how, hint) in
            [(How::Free, true), (How::Keep { until_age: at(5) }, true), (How::Revoke, false)]
        {
            let mut ledger = Ledger::default();
            let lease = granted(&mut ledger, &claim(Share::ALL), 0);
            assert!(is_busy(&mut ledger, &claim(Share::ALL).with_mark(at(5)), 1));
            assert_eq!(ledger.release(&Release { lease, how }, at(2)), (Released::Done, hint));
        }
    }

    #[test]
    fn grace_holds_back_whoever_asks_for_it() {
        let mut ledger = Ledger::default();
        granted(&mut ledger, &claim(Share::ALL), 0);
        let careful = Claim { grace: at(3), ..claim(Share::ALL) };
        assert!(is_busy(&mut ledger, &careful, 12));
        granted(&mut ledger, &careful, 13);
    }
}
