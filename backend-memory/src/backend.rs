use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use database_locks_core::ledger::Ledger;
use database_locks_core::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, LockName, Release, Released, Releaser,
    Renewal, Renewed, Result, Verdict, Wakeup, Wakeups, async_trait,
};
use futures_util::stream;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::clock::{Clock, ManualClock};

/// How many hints a slow listener may be behind before it is told that it missed some.
const HINTS: usize = 1_024;

/// A lock backend in memory. Clones are clients of the same store.
#[derive(Debug)]
pub struct MemoryBackend {
    clock: Clock,
    names: Arc<Mutex<BTreeMap<LockName, Ledger>>>,
    /// Which name was released by which client.
    hints: broadcast::Sender<(LockName, u64)>,
    client: u64,
}

impl Clone for MemoryBackend {
    fn clone(&self) -> Self {
        Self {
            clock: self.clock.clone(),
            names: Arc::clone(&self.names),
            hints: self.hints.clone(),
            client: next_client(),
        }
    }
}

impl MemoryBackend {
    /// An empty store whose leases live on the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::on(Clock::Boot)
    }

    /// An empty store whose leases live on `clock`.
    #[must_use]
    pub fn with_clock(clock: ManualClock) -> Self {
        Self::on(Clock::Manual(clock))
    }

    /// Forgets all about a name, as somebody might who deletes a row.
    pub fn forget(&self, name: &LockName) {
        self.names().remove(name);
    }

    fn on(clock: Clock) -> Self {
        let (names, hints) = (Arc::default(), broadcast::Sender::new(HINTS));
        Self { clock, names, hints, client: next_client() }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<LockName, Ledger>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_client() -> u64 {
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    CLIENTS.fetch_add(1, Ordering::Relaxed)
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl LockBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("memory").with_hand_over(true)
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        let mut names = self.names();
        let (now, micros) = (self.clock.now(), self.clock.micros());
        Ok(claims
            .iter()
            .map(|claim| names.entry(claim.name.clone()).or_default().acquire(claim, now, micros))
            .collect())
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        let mut names = self.names();
        let now = self.clock.now();
        Ok(renewals
            .iter()
            .map(|renewal| match names.get_mut(&renewal.lease.name) {
                Some(ledger) => ledger.renew(renewal, now),
                None => Ledger::default().renew(renewal, now),
            })
            .collect())
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        let mut names = self.names();
        let now = self.clock.now();
        Ok(releases
            .iter()
            .map(|release| match names.get_mut(&release.lease.name) {
                Some(ledger) => {
                    let (released, hint) = ledger.release(release, now);
                    if hint {
                        // Nobody listening is fine: hints are only hints.
                        let _ = self.hints.send((release.lease.name.clone(), self.client));
                    }
                    released
                }
                None => Ledger::default().release(release, now).0,
            })
            .collect())
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<LeaseInfo>> {
        let now = self.clock.now();
        Ok(self
            .names()
            .iter()
            .filter(|(name, _)| name.as_str().starts_with(&query.prefix))
            .flat_map(|(name, ledger)| ledger.list(name, now))
            .filter(|info| {
                query.after.as_ref().is_none_or(|(name, attempt)| {
                    (&info.lease.name, &info.lease.attempt) > (name, attempt)
                })
            })
            .take(query.limit as usize)
            .collect())
    }

    async fn clean_up(&self, idle: Duration) -> Result<u64> {
        let mut names = self.names();
        let (now, micros) = (self.clock.now(), self.clock.micros());
        let before = names.len();
        names.retain(|_, ledger| !ledger.is_idle(idle, now, micros));
        Ok((before - names.len()) as u64)
    }

    async fn wakeups(&self) -> Result<Option<Wakeups>> {
        let own = self.client;
        let hints =
            stream::unfold((self.hints.subscribe(), true), move |(mut hints, first)| async move {
                let hint = if first {
                    Wakeup::Listening
                } else {
                    match hints.recv().await {
                        Ok((name, by)) if by == own => Wakeup::Released { name, by: Releaser::Own },
                        Ok((name, by)) => Wakeup::Released { name, by: Releaser::Other(by) },
                        Err(RecvError::Lagged(_)) => Wakeup::Missed,
                        Err(RecvError::Closed) => return None,
                    }
                };
                Some((hint, (hints, false)))
            });
        Ok(Some(Wakeups::new(hints)))
    }
}
