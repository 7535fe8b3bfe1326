//! Group commit: while batches are in flight requests queue, and the next batch takes them all,
//! in name order, each name once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound;

use crate::name::LockName;

/// A queue of requests of one verb.
#[derive(Debug)]
pub(crate) struct Lane<I> {
    queued: BTreeMap<LockName, VecDeque<Queued<I>>>,
    /// Names in flight: no second request for one of them leaves meanwhile.
    busy: HashSet<LockName>,
    in_flight: usize,
    max_in_flight: usize,
    max_batch: usize,
    /// Where the last batch ended, so that early names do not starve late ones.
    last: Option<LockName>,
}

#[derive(Debug)]
struct Queued<I> {
    item: I,
    company: Company,
}

/// Whether a request may share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// With any others.
    Any,
    /// With none: a batch that it was in failed, and one of them is to blame.
    Alone,
}

impl<I> Lane<I> {
    pub(crate) fn new(max_in_flight: usize, max_batch: usize) -> Self {
        Self {
            queued: BTreeMap::new(),
            busy: HashSet::new(),
            in_flight: 0,
            max_in_flight,
            max_batch,
            last: None,
        }
    }

    pub(crate) fn push(&mut self, name: LockName, item: I, company: Company) {
        self.queued.entry(name).or_default().push_back(Queued { item, company });
    }

    /// The next batch, in name order, or `None` where nothing can leave now. The batch is in
    /// flight until [`landed`](Self::landed) is told its names.
    pub(crate) fn depart(&mut self) -> Option<Vec<(LockName, I)>> {
        if self.in_flight >= self.max_in_flight || self.queued.is_empty() {
            return None;
        }
        let mut names = Vec::new();
        let after = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let upto = match &after {
            Bound::Excluded(last) => Bound::Included(last.clone()),
            _ => Bound::Excluded(LockName::lowest()),
        };
        let rounds = self
            .queued
            .range((after, Bound::Unbounded))
            .chain(self.queued.range((Bound::Unbounded, upto)));
        for (name, queue) in rounds {
            if self.busy.contains(name) {
                continue;
            }
            let alone = queue.front().is_some_and(|q| q.company == Company::Alone);
            if alone && !names.is_empty() {
                // The next batch begins with it.
                break;
            }
            names.push(name.clone());
            if alone || names.len() == self.max_batch {
                break;
            }
        }
        self.last = names.last().cloned();
        names.sort();
        let batch: Vec<(LockName, I)> = names
            .into_iter()
            .filter_map(|name| {
                let queue = self.queued.get_mut(&name)?;
                let item = queue.pop_front()?.item;
                if queue.is_empty() {
                    self.queued.remove(&name);
                }
                self.busy.insert(name.clone());
                Some((name, item))
            })
            .collect();
        if batch.is_empty() {
            return None;
        }
        self.in_flight += 1;
        Some(batch)
    }

    /// A batch that departed with these names is back.
    pub(crate) fn landed<'a>(&mut self, names: impl IntoIterator<Item = &'a LockName>) {
        self.in_flight -= 1;
        for name in names {
            self.busy.remove(name);
        }
    }

    /// These names of a batch that just departed turned out to need no request.
    pub(crate) fn skipped(&mut self, names: &[LockName]) {
        for name in names {
            self.busy.remove(name);
        }
    }

    /// Whether nothing is queued or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.queued.is_empty() && self.in_flight == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    fn lane(max_in_flight: usize, max_batch: usize, items: &[&str]) -> Lane<usize> {
        let mut lane = Lane::new(max_in_flight, max_batch);
        for (i, item) in items.iter().enumerate() {
            lane.push(name(item), i, Company::Any);
        }
        lane
    }

    fn names(batch: &[(LockName, usize)]) -> Vec<&str> {
        batch.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_batch_has_each_name_once_in_order() {
        let mut lane = lane(4, 10, &["b", "a", "b", "c"]);
        assert_eq!(names(&lane.depart().unwrap()), ["a", "b", "c"]);
        assert_eq!(lane.depart(), None, "b is in flight");
        lane.landed(&[name("a"), name("b"), name("c")]);
        assert_eq!(lane.depart().unwrap(), [(name("b"), 2)]);
        lane.landed(&[name("b")]);
        assert!(lane.is_idle());
    }

    #[test]
    fn what_comes_meanwhile_leaves_together() {
        let mut lane = lane(1, 10, &["a"]);
        let first = lane.depart().unwrap();
        lane.push(name("b"), 7, Company::Any);
        lane.push(name("c"), 8, Company::Any);
        assert_eq!(lane.depart(), None, "one batch at a time");
        lane.landed(first.iter().map(|(name, _)| name));
        assert_eq!(lane.depart().unwrap().len(), 2);
    }

    #[test]
    fn late_names_are_not_starved_by_early_ones() {
        let mut lane = lane(1, 2, &["a", "b", "c", "d", "a", "b"]);
        let mut seen = Vec::new();
        while let Some(batch) = lane.depart() {
            seen.extend(batch.iter().map(|(name, _)| name.to_string()));
            lane.landed(batch.iter().map(|(name, _)| name));
        }
        assert_eq!(seen, ["a", "b", "c", "d", "a", "b"]);
    }

    #[test]
    fn who_must_be_alone_is() {
        let mut lane = Lane::new(4, 10);
        for (text, company) in
            [("a", Company::Any), ("b", Company::Alone), ("c", Company::Any), ("d", Company::Alone)]
        {
            lane.push(name(text), 0, company);
        }
        let mut batches = Vec::new();
        while let Some(batch) = lane.depart() {
            batches.push(names(&batch).join(""));
        }
        assert_eq!(batches, ["a", "b", "c", "d"]);
    }
}
