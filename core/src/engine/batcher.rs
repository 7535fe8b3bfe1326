//! Group commit: while batches are in flight requests queue, and the next batch takes them along, those of one
//! name in the order in which they came. What is urgent goes by itself as long as all of that could be in flight
//! at once, or is too little for a batch to pay: it does not wait then for what the others take. Batches of what is urgent take
//! half of the places as long as that is a matter of a moment.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use foldhash::HashMap;

use crate::words::name::LockName;

/// From this time of a round trip on the network is slow, and departures are spread over it.
const SLOW: Duration = Duration::from_millis(5);
/// How many requests that came later may leave before a patient one.
const OVERTAKING: u64 = 256;

/// Queues of requests of one verb, one for each name, of which batches are made.
#[derive(Debug)]
pub(crate) struct Batcher<I> {
    queues: HashMap<LockName, Queue<I>>,
    /// The names that can leave, by the order of what is first in their queues.
    urgent: BTreeSet<(u64, LockName)>,
    patient: BTreeSet<(u64, LockName)>,
    in_flight: usize,
    max_in_flight: usize,
    max_batch: usize,
    batch_from: usize,
    /// How many of those in flight only what is urgent may be.
    reserved: usize,
    round_trip: Duration,
    departed: Duration,
    /// When last there was more to send than could leave.
    saturated: Option<Duration>,
}

/// The requests for one name.
#[derive(Debug)]
struct Queue<I> {
    waiting: VecDeque<Queued<I>>,
    /// How many are in flight: no other one leaves meanwhile.
    in_flight: usize,
}

#[derive(Debug)]
struct Queued<I> {
    item: I,
    order: u64,
    haste: Haste,
    company: Company,
}

/// How soon a request has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// By itself, where there is room, and before what is patient.
    Urgent,
    /// It can wait for others to share a batch with.
    Patient,
}

/// Which other requests may be in the same batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// Any.
    Any,
    /// Those of other names: what becomes of the others of its own may make it needless.
    OtherNames,
    /// None: a batch that it was in failed, and one of them is to blame.
    Isolated,
}

impl<I> Batcher<I> {
    pub(crate) fn new(max_in_flight: usize, max_batch: usize) -> Self {
        Self {
            queues: HashMap::default(),
            urgent: BTreeSet::new(),
            patient: BTreeSet::new(),
            in_flight: 0,
            max_in_flight: max_in_flight.max(1),
            max_batch: max_batch.max(1),
            batch_from: 0,
            reserved: 0,
            round_trip: Duration::ZERO,
            departed: Duration::ZERO,
            saturated: None,
        }
    }

    /// What is urgent shares no batch of fewer names than this.
    pub(crate) fn with_batch_from(mut self, names: usize) -> Self {
        self.batch_from = names;
        self
    }

    /// Leaves the last place in flight to what is urgent, unless it is the only one.
    pub(crate) fn with_room_for_urgent(mut self) -> Self {
        self.reserved = usize::from(self.max_in_flight > 1);
        self
    }

    /// Takes a request. Those of a name leave as they came, and names by the `order` of their first.
    pub(crate) fn push(
        &mut self,
        name: LockName,
        item: I,
        order: u64,
        haste: Haste,
        company: Company,
    ) {
        let queue = self
            .queues
            .entry(name.clone())
            .or_insert_with(|| Queue { waiting: VecDeque::new(), in_flight: 0 });
        let is_first = queue.in_flight == 0 && queue.waiting.is_empty();
        queue.waiting.push_back(Queued { item, order, haste, company });
        if is_first {
            self.ready(haste).insert((order, name));
        }
    }

    /// When something can leave that must not yet.
    pub(crate) fn next(&self) -> Option<Duration> {
        let free = self.max_in_flight - self.in_flight;
        self.opens().filter(|_| free > 0 && self.turn(free).is_some())
    }

    /// The next batch, in name order, of what is `wanted` still; `None` where nothing can leave now. The batch is in
    /// flight until [`landed`](Self::landed) is told its names.
    pub(crate) fn depart(
        &mut self,
        now: Duration,
        mut wanted: impl FnMut(&I) -> bool,
    ) -> Option<Vec<(LockName, I)>> {
        if self.urgent.is_empty() && self.patient.is_empty() {
            return None;
        }
        let free = self.max_in_flight - self.in_flight;
        if free == 0 {
            self.saturated = Some(now);
            return None;
        }
        if self.opens().is_some_and(|opens| now < opens) {
            return None;
        }
        let mut batch = Vec::new();
        // What is not wanted any more may have been all of those whose turn it was.
        while batch.is_empty() {
            let haste = self.turn(free)?;
            batch = self.take(haste, free, &mut wanted);
        }
        batch.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.in_flight += 1;
        self.departed = now;
        Some(batch)
    }

    /// Takes those of this haste out of their queues that go together now, where there is room for so many batches.
    fn take(
        &mut self,
        haste: Haste,
        free: usize,
        wanted: &mut impl FnMut(&I) -> bool,
    ) -> Vec<(LockName, I)> {
        let are_few = haste == Haste::Urgent && self.are_few(free);
        let mut batch = Vec::with_capacity(if are_few { 1 } else { 4 });
        while batch.len() < self.max_batch
            && let Some((order, name)) = self.ready(haste).pop_first()
        {
            let Some(queue) = self.queues.get_mut(&name) else { continue };
            let company = queue.waiting.front().map_or(Company::Any, |first| first.company);
            let is_by_itself = are_few || company == Company::Isolated;
            if is_by_itself && !batch.is_empty() {
                self.ready(haste).insert((order, name));
                break;
            }
            while batch.len() < self.max_batch
                && let Some(next) = queue.waiting.pop_front_if(|next| {
                    let goes_along = (company, next.company) == (Company::Any, Company::Any);
                    queue.in_flight == 0 || goes_along
                })
            {
                if wanted(&next.item) {
                    batch.push((name.clone(), next.item));
                    queue.in_flight += 1;
                }
            }
            if queue.in_flight == 0 {
                self.unblock(&name);
            } else if is_by_itself {
                break;
            }
        }
        batch
    }

    /// A batch is back that departed at `sent` with requests of these names, one or more of each.
    pub(crate) fn landed<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a LockName>,
        sent: Duration,
        now: Duration,
    ) {
        self.in_flight -= 1;
        let took = now.saturating_sub(sent);
        self.round_trip = self.round_trip * 7 / 8 + took / 8;
        self.done(names);
    }

    /// Requests of these names, in a batch that departed, are answered or need no answer.
    pub(crate) fn done<'a>(&mut self, names: impl IntoIterator<Item = &'a LockName>) {
        for name in names {
            let Some(queue) = self.queues.get_mut(name) else { continue };
            queue.in_flight -= 1;
            if queue.in_flight == 0 {
                self.unblock(name);
            }
        }
    }

    /// Lets the next requests for a name leave of which none is in flight.
    fn unblock(&mut self, name: &LockName) {
        let Some(queue) = self.queues.get(name) else { return };
        match queue.waiting.front().map(|first| (first.haste, first.order)) {
            Some((haste, order)) => {
                self.ready(haste).insert((order, name.clone()));
            }
            None => {
                self.queues.remove(name);
            }
        }
    }

    /// All of a batch that departed turned out to be needless.
    pub(crate) fn called_off(&mut self) {
        self.in_flight -= 1;
    }

    /// How long a batch takes from its departure to its answer, smoothed.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Whether a request for this name is in flight.
    pub(crate) fn is_in_flight(&self, name: &LockName) -> bool {
        self.queues.get(name).is_some_and(|queue| queue.in_flight > 0)
    }

    /// Whether nothing is queued or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.in_flight == 0
    }

    fn ready(&mut self, haste: Haste) -> &mut BTreeSet<(u64, LockName)> {
        match haste {
            Haste::Urgent => &mut self.urgent,
            Haste::Patient => &mut self.patient,
        }
    }

    /// Whose turn it is, where there is room for so many.
    fn turn(&self, free: usize) -> Option<Haste> {
        let first = |ready: &BTreeSet<(u64, LockName)>| ready.first().map(|(order, _)| *order);
        match (first(&self.urgent), first(&self.patient)) {
            (Some(urgent), Some(patient)) if patient.saturating_add(OVERTAKING) < urgent => {
                Some(Haste::Patient)
            }
            (Some(_), _) => Some(Haste::Urgent),
            (None, Some(_)) if free > self.reserved => Some(Haste::Patient),
            (None, _) => None,
        }
    }

    /// Whether what is urgent goes by itself, where there is room for so many.
    fn are_few(&self, free: usize) -> bool {
        self.urgent.len() <= free.max(self.batch_from.saturating_sub(1))
    }

    /// Until when the next departure waits for company, or where batches would bunch.
    fn opens(&self) -> Option<Duration> {
        match self.round_trip < SLOW {
            true => self.is_crowded().then(|| self.departed.saturating_add(SLOW)),
            false => self.spread(),
        }
    }

    /// Whether what is urgent waits for more of it: two large batches are through sooner than four small ones, and one is
    /// made up while the other is at work.
    fn is_crowded(&self) -> bool {
        let are_places_taken = self.in_flight >= self.max_in_flight.div_ceil(2);
        let is_full = self.urgent.len() >= self.max_batch;
        are_places_taken && !is_full && !self.are_few(self.max_in_flight - self.in_flight)
    }

    /// Until when batches would bunch: all connections were taken a moment ago, and what leaves together comes back
    /// together.
    fn spread(&self) -> Option<Duration> {
        let saturated = self.saturated?;
        let is_recent = self.departed < saturated.saturating_add(self.round_trip * 2);
        let spread = self.round_trip / u32::try_from(self.max_in_flight).unwrap_or(u32::MAX);
        (self.in_flight > 0 && is_recent).then(|| self.departed.saturating_add(spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    /// A batcher of items that are numbers, their own order.
    struct Queues {
        batcher: Batcher<u64>,
        pushed: u64,
    }

    impl Queues {
        fn new(max_in_flight: usize, max_batch: usize) -> Self {
            Self { batcher: Batcher::new(max_in_flight, max_batch), pushed: 0 }
        }

        fn push(&mut self, text: &str, haste: Haste, company: Company) {
            self.batcher.push(name(text), self.pushed, self.pushed, haste, company);
            self.pushed += 1;
        }

        fn patient(mut self, items: &[&str]) -> Self {
            for item in items {
                self.push(item, Haste::Patient, Company::Any);
            }
            self
        }

        fn urgent(mut self, items: &[&str]) -> Self {
            for item in items {
                self.push(item, Haste::Urgent, Company::Any);
            }
            self
        }

        fn depart(&mut self) -> Option<Vec<(LockName, u64)>> {
            self.batcher.depart(NOW, |_| true)
        }

        fn land(&mut self, batch: &[(LockName, u64)]) {
            self.batcher.landed(batch.iter().map(|(name, _)| name), NOW, NOW);
        }

        /// What leaves while nothing comes back.
        fn side_by_side(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.depart()).map(|batch| names(&batch)).collect()
        }

        /// What leaves while each batch comes back at once.
        fn one_by_one(&mut self) -> Vec<String> {
            let mut batches = Vec::new();
            while let Some(batch) = self.depart() {
                self.land(&batch);
                batches.push(names(&batch));
            }
            batches
        }
    }

    fn names(batch: &[(LockName, u64)]) -> String {
        batch.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_batch_has_all_of_a_name_in_order() {
        let mut queues = Queues::new(3, 10).patient(&["b", "a", "b", "c"]);
        let batch = queues.depart().unwrap();
        assert_eq!(batch, [(name("a"), 1), (name("b"), 0), (name("b"), 2), (name("c"), 3)]);
        queues.push("b", Haste::Patient, Company::Any);
        queues.batcher.done(&[name("b")]);
        assert_eq!(queues.depart(), None, "b is in flight");
        queues.batcher.landed(&[name("a"), name("b"), name("c")], NOW, NOW);
        let batch = queues.depart().unwrap();
        assert_eq!(batch, [(name("b"), 4)]);
        queues.land(&batch);
        assert!(queues.batcher.is_idle());
    }

    #[test]
    fn who_wants_other_names_alone_is_the_only_one_of_its_own() {
        let mut queues = Queues::new(1, 10).patient(&["a", "a"]);
        queues.push("a", Haste::Patient, Company::OtherNames);
        queues.push("a", Haste::Patient, Company::Any);
        queues.push("b", Haste::Patient, Company::OtherNames);
        assert_eq!(queues.one_by_one(), ["aab", "a", "a"]);
    }

    #[test]
    fn what_comes_meanwhile_leaves_together() {
        let mut queues = Queues::new(1, 10).patient(&["a"]);
        let first = queues.depart().unwrap();
        let mut queues = queues.patient(&["b", "c"]);
        assert_eq!(queues.depart(), None, "one batch at a time");
        queues.land(&first);
        assert_eq!(names(&queues.depart().unwrap()), "bc");
    }

    #[test]
    fn urgent_names_go_side_by_side_as_long_as_all_of_them_can() {
        let mut queues = Queues::new(3, 10).urgent(&["a", "b", "b", "c"]);
        assert_eq!(queues.side_by_side(), ["a", "bb", "c"]);
        let mut queues = Queues::new(2, 10).urgent(&["a", "b", "c"]);
        assert_eq!(queues.side_by_side(), ["abc"]);
    }

    #[test]
    fn batches_of_what_is_urgent_leave_half_of_the_places() {
        let mut queues = Queues::new(4, 10).urgent(&["a", "b", "c", "d", "e"]);
        let first = queues.depart().unwrap();
        let mut queues = queues.urgent(&["f", "g", "h", "i"]);
        assert_eq!(names(&queues.depart().unwrap()), "fghi");
        let mut queues = queues.urgent(&["j", "k", "l", "m"]);
        assert_eq!(queues.depart(), None, "they wait for company");
        queues.land(&first);
        assert_eq!(names(&queues.depart().unwrap()), "jklm");
        let mut queues = queues.urgent(&["n"]);
        assert_eq!(queues.side_by_side(), ["n"], "one of few goes by itself");
        let mut queues = queues.urgent(&["o", "p"]);
        assert_eq!(queues.batcher.next(), Some(NOW + SLOW));
        let late = queues.batcher.depart(NOW + SLOW, |_| true).unwrap();
        assert_eq!(names(&late), "op", "others may hang");
    }

    #[test]
    fn too_few_urgent_names_for_a_batch_go_one_by_one() {
        let mut queues = Queues::new(1, 10).urgent(&["a", "b", "c", "d"]);
        queues.batcher.batch_from = 3;
        let first = queues.depart().unwrap();
        assert_eq!(names(&first), "abcd");
        queues.land(&first);
        assert_eq!(queues.urgent(&["e", "f"]).one_by_one(), ["e", "f"]);
    }

    #[test]
    fn names_in_flight_do_not_make_the_others_many() {
        let mut queues = Queues::new(3, 10).urgent(&["a", "b", "c", "d"]);
        queues.depart().unwrap();
        let mut queues = queues.urgent(&["a", "b", "c", "d", "e"]);
        assert_eq!(queues.side_by_side(), ["e"]);
    }

    #[test]
    fn what_is_urgent_goes_first_and_by_itself() {
        let mut queues = Queues::new(4, 10).patient(&["f", "g"]).urgent(&["a", "b", "c", "d", "e"]);
        assert_eq!(queues.side_by_side(), ["abcde", "fg"]);
        // Though not for ever.
        let mut queues = Queues::new(1, 1).patient(&["f"]);
        queues.pushed = OVERTAKING;
        assert_eq!(queues.urgent(&["a", "b"]).one_by_one(), ["a", "f", "b"]);
        // Nor where only the place is free that is reserved.
        let mut queues = Queues::new(2, 1).patient(&["f"]);
        queues.batcher = queues.batcher.with_room_for_urgent();
        queues.pushed = OVERTAKING;
        assert_eq!(queues.urgent(&["a", "b", "c"]).side_by_side(), ["a", "f"]);
    }

    #[test]
    fn the_last_place_is_left_to_what_is_urgent() {
        let mut queues = Queues::new(2, 1).patient(&["a", "b"]);
        queues.batcher = queues.batcher.with_room_for_urgent();
        assert_eq!(queues.side_by_side(), ["a"]);
        assert_eq!(queues.urgent(&["c"]).side_by_side(), ["c"]);
        let mut queues = Queues::new(1, 1).patient(&["a"]);
        queues.batcher = queues.batcher.with_room_for_urgent();
        assert_eq!(queues.side_by_side(), ["a"], "there is one place only");
    }

    #[test]
    fn who_came_first_leaves_first() {
        let mut queues = Queues::new(1, 2).patient(&["c", "b", "a", "c", "c", "d"]);
        assert_eq!(queues.one_by_one(), ["cc", "ab", "cd"]);
    }

    #[test]
    fn who_is_isolated_goes_alone() {
        let mut queues = Queues::new(1, 10);
        for (text, company) in [
            ("a", Company::Any),
            ("b", Company::Isolated),
            ("c", Company::Any),
            ("d", Company::Isolated),
        ] {
            queues.push(text, Haste::Patient, company);
        }
        assert_eq!(queues.one_by_one(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn what_is_not_wanted_any_more_takes_no_turn() {
        let mut queues = Queues::new(1, 10);
        for _ in 0..5 {
            queues.push("a", Haste::Urgent, Company::OtherNames);
        }
        queues.push("b", Haste::Urgent, Company::Any);
        let batch = queues.batcher.depart(NOW, |item| *item >= 4).unwrap();
        assert_eq!(batch.iter().map(|(_, item)| *item).collect::<Vec<_>>(), [4, 5]);
        queues.land(&batch);
        assert!(queues.batcher.is_idle());
    }

    #[test]
    fn whoever_has_gone_keeps_nobody_from_leaving() {
        let mut queues = Queues::new(1, 10).patient(&["x"]).urgent(&["y"]);
        let batch = queues.batcher.depart(NOW, |item| *item == 0).unwrap();
        assert_eq!(names(&batch), "x");
        queues.land(&batch);
        let mut queues = queues.patient(&["x"]).urgent(&["y"]);
        assert_eq!(queues.batcher.depart(NOW, |_| false), None);
        assert!(queues.batcher.is_idle());
    }

    #[test]
    fn over_a_slow_network_departures_are_spread() {
        let at = Duration::from_millis;
        let mut batcher = Batcher::new(4, 100);
        let mut push = {
            let mut pushed = 0;
            move |batcher: &mut Batcher<u64>| {
                let text = format!("{pushed}");
                batcher.push(name(&text), pushed, pushed, Haste::Urgent, Company::Any);
                pushed += 1;
            }
        };
        // One arrives each millisecond, and an answer takes 48 of them.
        let mut flying = VecDeque::<(u64, Vec<(LockName, u64)>)>::new();
        let mut departures = Vec::new();
        for now in 0..2_000 {
            push(&mut batcher);
            while flying.front().is_some_and(|(sent, _)| now - sent >= 48) {
                let (sent, batch) = flying.pop_front().unwrap();
                batcher.landed(batch.iter().map(|(name, _)| name), at(sent), at(now));
            }
            while let Some(batch) = batcher.depart(at(now), |_| true) {
                departures.push((now, batch.len()));
                flying.push_back((now, batch));
            }
        }
        let late: Vec<_> = departures.iter().filter(|(now, _)| *now > 1_000).collect();
        let longest = late.iter().map(|(_, items)| *items).max().unwrap();
        assert!(longest <= 16, "as many as come in a quarter of a round trip: {late:?}");
    }
}
