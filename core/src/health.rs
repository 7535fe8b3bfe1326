//! How the locks of a process are, as far as it knows without asking.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Error;

/// How a [`Locks`](crate::Locks) is: see [`Locks::health`](crate::Locks::health).
///
/// What is told of the database is what came of the requests that this process has sent to claim, renew and release
/// locks. As long as it wants nothing it hears of no outage, and of no end of one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// Whether locks can be asked for: false after a [shutdown](crate::Locks::shutdown), or a panic of the backend.
    pub running: bool,
    /// The outage of the database that goes on. None if the last request was answered, or nothing was asked yet.
    pub outage: Option<Outage>,
    /// How long ago the database last answered a request. None if it has not yet.
    pub answered: Option<Duration>,
    /// How many leases are held. One that several guards of one owner share counts once, and one that is lost no more.
    pub held: usize,
    /// How many requests wait: for others who hold the lock, or for the database.
    pub waiting: usize,
    /// Whether the database tells of releases, so that waiting takes no polling. It is not asked to before anybody has had to
    /// wait, and not every backend can.
    pub listening: bool,
}

impl Health {
    /// Whether locks can be had from here, as far as is known: they are [running](Self::running), and no
    /// [outage](Self::outage) goes on.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.running && self.outage.is_none()
    }
}

/// The database does not answer, or answers with errors that pass.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outage {
    /// How long ago the first request failed that was not followed by an answer.
    pub lasted: Duration,
    /// What the last request failed with.
    pub error: Error,
}

/// What [`Health`] is made of, kept up to date by those who know.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    held: AtomicUsize,
    waiting: AtomicUsize,
    listening: AtomicBool,
    database: Mutex<Database>,
}

#[derive(Debug, Default)]
struct Database {
    answered_at: Option<Duration>,
    /// Since when it is away, and the last error.
    away: Option<(Duration, Error)>,
}

impl Vitals {
    pub(crate) fn begin_hold(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_hold(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn begin_wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    /// A request had no answer. Says whether the one before had.
    pub(crate) fn failed(&self, error: &Error, now: Duration) -> bool {
        let mut database = self.database();
        let since = database.away.as_ref().map(|(since, _)| *since);
        database.away = Some((since.unwrap_or(now), error.clone()));
        since.is_none()
    }

    /// A request was answered. Says whether the one before was not.
    pub(crate) fn answered(&self, now: Duration) -> bool {
        let mut database = self.database();
        database.answered_at = Some(now);
        database.away.take().is_some()
    }

    pub(crate) fn look(&self, now: Duration, running: bool) -> Health {
        let database = self.database();
        let outage = database.away.as_ref().map(|(since, error)| Outage {
            lasted: now.saturating_sub(*since),
            error: error.clone(),
        });
        Health {
            running,
            outage,
            answered: database.answered_at.map(|moment| now.saturating_sub(moment)),
            held: self.held.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            listening: self.listening.load(Ordering::Relaxed),
        }
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
