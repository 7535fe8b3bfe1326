//! What is due when.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::time::Duration;

use foldhash::HashMap;

/// What is due when, of keys that keep the moment themselves.
#[derive(Debug)]
pub(crate) struct Agenda<K>(BTreeSet<(Duration, K)>);

impl<K: Ord> Agenda<K> {
    pub(crate) fn new() -> Self {
        Self(BTreeSet::new())
    }

    /// Makes `key` due at `moment`, if at all, instead of when it `was` due before.
    pub(crate) fn set(&mut self, key: K, was: &mut Option<Duration>, moment: Option<Duration>) {
        let key = match was.take() {
            Some(before) => {
                let entry = (before, key);
                self.0.remove(&entry);
                entry.1
            }
            None => key,
        };
        *was = moment;
        self.0.extend(moment.map(|moment| (moment, key)));
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.0.first().map(|(moment, _)| *moment)
    }

    /// Takes a key that is due at `now`, the earliest first.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<K> {
        let due = self.next().is_some_and(|moment| moment <= now);
        due.then(|| self.0.pop_first()).flatten().map(|(_, key)| key)
    }
}

/// What is due when: at most one moment for each key.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    agenda: Agenda<K>,
    moments: HashMap<K, Duration>,
}

impl<K: Clone + Ord + Hash> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { agenda: Agenda::new(), moments: HashMap::default() }
    }

    /// Makes `key` due at `moment`, instead of when it was due before.
    pub(crate) fn set(&mut self, key: K, moment: Duration) {
        let mut was = self.moments.insert(key.clone(), moment);
        self.agenda.set(key, &mut was, Some(moment));
    }

    pub(crate) fn cancel(&mut self, key: &K) {
        if let Some((key, moment)) = self.moments.remove_entry(key) {
            self.agenda.set(key, &mut Some(moment), None);
        }
    }

    /// When `key` is due.
    pub(crate) fn get(&self, key: &K) -> Option<Duration> {
        self.moments.get(key).copied()
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.agenda.next()
    }

    /// Takes a key that is due at `now`, the earliest first.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<K> {
        let key = self.agenda.pop(now)?;
        self.moments.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_due_in_order_and_once() {
        let mut timers = Timers::new();
        let at = Duration::from_millis;
        timers.set('a', at(30));
        timers.set('b', at(10));
        timers.set('c', at(20));
        timers.set('a', at(5));
        timers.cancel(&'c');
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(timers.pop(at(4)), None);
        assert_eq!(timers.pop(at(10)), Some('a'));
        assert_eq!(timers.pop(at(10)), Some('b'));
        assert_eq!(timers.pop(at(99)), None);
        assert_eq!(timers.next(), None);
    }
}
