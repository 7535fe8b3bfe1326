//! What is due when.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// At most one moment for each key.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    order: BTreeSet<(Duration, K)>,
    moments: HashMap<K, Duration>,
}

impl<K: Clone + Ord + Hash> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { order: BTreeSet::new(), moments: HashMap::new() }
    }

    /// Makes `key` due at `moment`, instead of when it was due before.
    pub(crate) fn set(&mut self, key: K, moment: Duration) {
        self.cancel(&key);
        self.moments.insert(key.clone(), moment);
        self.order.insert((moment, key));
    }

    pub(crate) fn cancel(&mut self, key: &K) {
        if let Some((key, moment)) = self.moments.remove_entry(key) {
            self.order.remove(&(moment, key));
        }
    }

    /// When `key` is due.
    pub(crate) fn get(&self, key: &K) -> Option<Duration> {
        self.moments.get(key).copied()
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(moment, _)| *moment)
    }

    /// Takes a key that is due at `now`, the earliest first.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<K> {
        let due = self.order.first().is_some_and(|(moment, _)| *moment <= now);
        let (_, key) = due.then(|| self.order.pop_first())??;
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
