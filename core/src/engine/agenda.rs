//! What is due when.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// At most one appointment for each key.
#[derive(Debug)]
pub(crate) struct Agenda<K> {
    order: BTreeSet<(Duration, K)>,
    moments: HashMap<K, Duration>,
}

impl<K: Copy + Ord + Hash> Agenda<K> {
    pub(crate) fn new() -> Self {
        Self { order: BTreeSet::new(), moments: HashMap::new() }
    }

    /// Makes `key` due at `moment`, instead of when it was due before.
    pub(crate) fn set(&mut self, key: K, moment: Duration) {
        self.cancel(key);
        self.moments.insert(key, moment);
        self.order.insert((moment, key));
    }

    pub(crate) fn cancel(&mut self, key: K) {
        if let Some(moment) = self.moments.remove(&key) {
            self.order.remove(&(moment, key));
        }
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(moment, _)| *moment)
    }

    /// Takes a key that is due at `now`, the earliest first.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<K> {
        let (moment, key) = *self.order.first()?;
        if moment > now {
            return None;
        }
        self.cancel(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_due_in_order_and_once() {
        let mut agenda = Agenda::new();
        let at = Duration::from_millis;
        agenda.set('a', at(30));
        agenda.set('b', at(10));
        agenda.set('c', at(20));
        agenda.set('a', at(5));
        agenda.cancel('c');
        assert_eq!(agenda.next(), Some(at(5)));
        assert_eq!(agenda.pop(at(4)), None);
        assert_eq!(agenda.pop(at(10)), Some('a'));
        assert_eq!(agenda.pop(at(10)), Some('b'));
        assert_eq!(agenda.pop(at(99)), None);
        assert_eq!(agenda.next(), None);
    }
}
