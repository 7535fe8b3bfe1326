//! Those who wait for one name, in the order in which they came.

use std::collections::BTreeMap;
use std::time::Duration;

use foldhash::HashMap;

use crate::backend::Busy;
use crate::engine::backoff::{Quickest, Retry};
use crate::engine::request::{Request, RequestId};
use crate::words::identity::Token;
use crate::words::owner::Owner;

/// Those who wait for one name.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) order: BTreeMap<u64, RequestId>,
    pub(crate) arrived: u64,
    /// How many ask at which interval, and how many at the pace that suits the backend.
    pub(crate) intervals: BTreeMap<Duration, usize>,
    pub(crate) adaptive: usize,
    /// Those that may join a lease of their owner's, by that owner.
    pub(crate) explicit: HashMap<Owner, BTreeMap<u64, RequestId>>,
    /// How often its head was put off since the last hint or grant.
    pub(crate) asks: u32,
    /// Who was said to hold the lock last.
    pub(crate) busy: Option<Busy>,
    /// The last lease that was given back here while somebody stood in this line, and since when the lock had gone from one to
    /// the next here: if nobody else has had it since, whoever has it next continues.
    pub(crate) ours: Option<(Token, Duration)>,
    /// Until when its head holds back for processes that have not had the lock as lately. It asks at once where that has passed.
    pub(crate) holds_back: Option<Duration>,
    /// Which process's turn it is.
    pub(crate) turn: Turn,
}

/// Whose turn it is to have a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Turn {
    /// This process's: the head of the line may ask.
    #[default]
    Ours,
    /// That of others, once this process has released the lock, which is on its way.
    TheirsOnceReleased,
    /// That of others, until then.
    TheirsUntil(Duration),
}

impl Turn {
    /// When it is this process's, or was.
    pub(crate) fn ends(self) -> Duration {
        match self {
            Self::Ours => Duration::ZERO,
            Self::TheirsUntil(until) => until,
            Self::TheirsOnceReleased => Duration::MAX,
        }
    }

    pub(crate) fn is_ours(self, now: Duration) -> bool {
        now >= self.ends()
    }
}

impl Line {
    /// Puts somebody at the end, and says where that is.
    pub(crate) fn join(&mut self, id: RequestId, request: &Request) -> u64 {
        self.arrived += 1;
        self.order.insert(self.arrived, id);
        let owner = &request.claim.owner;
        if owner.is_explicit() {
            self.explicit.entry(owner.clone()).or_default().insert(self.arrived, id);
        }
        match request.retry {
            Retry::Every(interval) => *self.intervals.entry(interval).or_default() += 1,
            Retry::Adaptive | Retry::Never => self.adaptive += 1,
        }
        self.arrived
    }

    pub(crate) fn leave(&mut self, place: u64, request: &Request) {
        self.order.remove(&place);
        if let Some(of_owner) = self.explicit.get_mut(&request.claim.owner) {
            of_owner.remove(&place);
            if of_owner.is_empty() {
                self.explicit.remove(&request.claim.owner);
            }
        }
        match request.retry {
            Retry::Every(interval) => {
                if let Some(count) = self.intervals.get_mut(&interval) {
                    *count -= 1;
                    if *count == 0 {
                        self.intervals.remove(&interval);
                    }
                }
            }
            Retry::Adaptive | Retry::Never => self.adaptive -= 1,
        }
    }

    pub(crate) fn head(&self) -> Option<RequestId> {
        self.order.first_key_value().map(|(_, id)| *id)
    }

    /// How soon the quickest asks again.
    pub(crate) fn quickest(&self) -> Quickest {
        Quickest {
            interval: self.intervals.first_key_value().map(|(interval, _)| *interval),
            adaptive: self.adaptive > 0,
        }
    }
}
