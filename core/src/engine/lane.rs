//! Group commit: while batches are in flight requests queue, and the next batch takes them all, in
//! name order, those of one name in the order in which they came. What is urgent goes by itself as long as
//! all names that queue could be in flight at once, or are too few for a batch to pay: it does not wait then
//! for what the others take.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

use crate::name::LockName;

/// A queue of requests of one verb.
#[derive(Debug)]
pub(crate) struct Lane<I> {
    queued: BTreeMap<LockName, VecDeque<Queued<I>>>,
    /// Names in flight, with how many requests: no other request for one of them leaves meanwhile.
    busy: HashMap<LockName, usize>,
    in_flight: usize,
    max_in_flight: usize,
    max_batch: usize,
    batch_from: usize,
    /// Where the last batch ended, so that early names do not starve late ones.
    last: Option<LockName>,
}

#[derive(Debug)]
struct Queued<I> {
    item: I,
    company: Company,
    is_urgent: bool,
}

/// Whether a request may share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// With any others.
    Any,
    /// With those of other names: what becomes of the others of its own may make it needless.
    OtherNames,
    /// With none: a batch that it was in failed, and one of them is to blame.
    Alone,
}

impl<I> Lane<I> {
    pub(crate) fn new(max_in_flight: usize, max_batch: usize) -> Self {
        Self {
            queued: BTreeMap::new(),
            busy: HashMap::new(),
            in_flight: 0,
            max_in_flight: max_in_flight.max(1),
            max_batch: max_batch.max(1),
            batch_from: 0,
            last: None,
        }
    }

    /// Urgent requests share no batch of fewer names than this.
    pub(crate) fn with_batch_from(mut self, names: usize) -> Self {
        self.batch_from = names;
        self
    }

    /// Takes a request that can wait for others to share a batch with.
    pub(crate) fn push(&mut self, name: LockName, item: I, company: Company) {
        self.queue(name, Queued { item, company, is_urgent: false });
    }

    /// Takes a request that goes by itself where there is room.
    pub(crate) fn push_urgent(&mut self, name: LockName, item: I, company: Company) {
        self.queue(name, Queued { item, company, is_urgent: true });
    }

    fn queue(&mut self, name: LockName, queued: Queued<I>) {
        self.queued.entry(name).or_default().push_back(queued);
    }

    /// The next batch, in name order, or `None` where nothing can leave now. The batch is in
    /// flight until [`landed`](Self::landed) is told its names.
    pub(crate) fn depart(&mut self) -> Option<Vec<(LockName, I)>> {
        if self.in_flight >= self.max_in_flight || self.queued.is_empty() {
            return None;
        }
        let mut names = Vec::new();
        let mut room = self.max_batch;
        let free = self.max_in_flight - self.in_flight;
        let most = free.max(self.batch_from.saturating_sub(1));
        let can_leave = self.queued.keys().filter(|name| !self.busy.contains_key(name));
        let are_few = can_leave.take(most + 1).count() <= most;
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
            if self.busy.contains_key(name) {
                continue;
            }
            let Some(first) = queue.front() else { continue };
            let goes_by_itself = first.company == Company::Alone || first.is_urgent && are_few;
            if goes_by_itself && !names.is_empty() {
                // The next batch begins with it.
                break;
            }
            let together = queue.iter().take_while(|queued| queued.company == Company::Any);
            let items = together.count().clamp(1, room);
            names.push((name.clone(), items));
            room -= items;
            if goes_by_itself || room == 0 {
                break;
            }
        }
        self.last = names.last().map(|(name, _)| name.clone());
        names.sort();
        let mut batch = Vec::with_capacity(self.max_batch - room);
        for (name, items) in names {
            let Some(queue) = self.queued.get_mut(&name) else { continue };
            batch.extend(queue.drain(..items).map(|queued| (name.clone(), queued.item)));
            if queue.is_empty() {
                self.queued.remove(&name);
            }
            self.busy.insert(name, items);
        }
        if batch.is_empty() {
            return None;
        }
        self.in_flight += 1;
        Some(batch)
    }

    /// A batch is back that departed with requests of these names, one or more of each.
    pub(crate) fn landed<'a>(&mut self, names: impl IntoIterator<Item = &'a LockName>) {
        self.in_flight -= 1;
        self.skipped(names);
    }

    /// Requests of these names, in a batch that just departed, turned out to be needless.
    pub(crate) fn skipped<'a>(&mut self, names: impl IntoIterator<Item = &'a LockName>) {
        for name in names {
            if let Some(items) = self.busy.get_mut(name) {
                *items -= 1;
                if *items == 0 {
                    self.busy.remove(name);
                }
            }
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

    fn urgent(max_in_flight: usize, items: &[&str]) -> Lane<usize> {
        let mut lane = Lane::new(max_in_flight, 10);
        for (i, item) in items.iter().enumerate() {
            lane.push_urgent(name(item), i, Company::Any);
        }
        lane
    }

    fn names(batch: &[(LockName, usize)]) -> Vec<&str> {
        batch.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_batch_has_all_of_a_name_in_order() {
        let mut lane = lane(2, 10, &["b", "a", "b", "c"]);
        let batch = lane.depart().unwrap();
        assert_eq!(batch, [(name("a"), 1), (name("b"), 0), (name("b"), 2), (name("c"), 3)]);
        lane.push(name("b"), 4, Company::Any);
        lane.skipped(&[name("b")]);
        assert_eq!(lane.depart(), None, "b is in flight");
        lane.landed(&[name("a"), name("b"), name("c")]);
        assert_eq!(lane.depart().unwrap(), [(name("b"), 4)]);
        lane.landed(&[name("b")]);
        assert!(lane.is_idle());
    }

    #[test]
    fn who_wants_other_names_alone_is_the_only_one_of_its_own() {
        let mut lane = lane(1, 10, &["a", "a"]);
        lane.push(name("a"), 2, Company::OtherNames);
        lane.push(name("a"), 3, Company::Any);
        lane.push(name("b"), 4, Company::OtherNames);
        let batches: Vec<Vec<usize>> = std::iter::from_fn(|| {
            let batch = lane.depart()?;
            lane.landed(batch.iter().map(|(name, _)| name));
            Some(batch.into_iter().map(|(_, item)| item).collect())
        })
        .collect();
        assert_eq!(batches, [vec![0, 1, 4], vec![2], vec![3]]);
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
    fn urgent_names_go_side_by_side_as_long_as_all_of_them_can() {
        let mut lane = urgent(3, &["a", "b", "b", "c"]);
        let batches: Vec<_> = std::iter::from_fn(|| lane.depart()).collect();
        let batches: Vec<_> = batches.iter().map(|batch| names(batch).join("")).collect();
        assert_eq!(batches, ["a", "bb", "c"]);
        let mut lane = urgent(2, &["a", "b", "c"]);
        assert_eq!(lane.depart().unwrap().len(), 3);
    }

    #[test]
    fn too_few_urgent_names_for_a_batch_go_one_by_one() {
        let mut lane = urgent(1, &["a", "b", "c", "d"]).with_batch_from(3);
        let mut batches = Vec::new();
        while let Some(batch) = lane.depart() {
            batches.push(names(&batch).join(""));
            lane.landed(batch.iter().map(|(name, _)| name));
            if batches.len() == 1 {
                lane.push_urgent(name("e"), 0, Company::Any);
                lane.push_urgent(name("f"), 0, Company::Any);
            }
        }
        assert_eq!(batches, ["abcd", "e", "f"]);
    }

    #[test]
    fn names_in_flight_do_not_make_the_others_many() {
        let mut lane = lane(3, 10, &["a", "b", "c"]);
        lane.depart().unwrap();
        for text in ["a", "b", "c", "d", "e"] {
            lane.push_urgent(name(text), 0, Company::Any);
        }
        let batches: Vec<_> = std::iter::from_fn(|| lane.depart()).collect();
        let batches: Vec<_> = batches.iter().map(|batch| names(batch).join("")).collect();
        assert_eq!(batches, ["d", "e"]);
    }

    #[test]
    fn what_can_wait_shares_a_batch_however_few_there_are() {
        let mut lane = lane(4, 10, &["b", "c", "d"]).with_batch_from(9);
        lane.push_urgent(name("a"), 3, Company::Any);
        let batches: Vec<_> = std::iter::from_fn(|| lane.depart()).collect();
        let batches: Vec<_> = batches.iter().map(|batch| names(batch).join("")).collect();
        assert_eq!(batches, ["a", "bcd"]);
    }

    #[test]
    fn late_names_are_not_starved_by_early_ones() {
        let mut lane = lane(1, 2, &["a", "b", "c", "a", "a", "a", "b"]);
        let mut seen = Vec::new();
        while let Some(batch) = lane.depart() {
            seen.push(names(&batch).join(""));
            lane.landed(batch.iter().map(|(name, _)| name));
        }
        assert_eq!(seen, ["aa", "bb", "ac", "a"]);
    }

    #[test]
    fn who_must_be_alone_is() {
        let mut lane = Lane::new(1, 10);
        for (text, company) in
            [("a", Company::Any), ("b", Company::Alone), ("c", Company::Any), ("d", Company::Alone)]
        {
            lane.push(name(text), 0, company);
        }
        let mut batches = Vec::new();
        while let Some(batch) = lane.depart() {
            batches.push(names(&batch).join(""));
            lane.landed(batch.iter().map(|(name, _)| name));
        }
        assert_eq!(batches, ["a", "b", "c", "d"]);
    }
}
