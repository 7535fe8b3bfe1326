//! What stands in for a database while locks are switched off: everybody gets everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use crate::async_trait;
use crate::backend::{
    Capabilities, Claim, LeaseInfo, ListQuery, LockBackend, Release, Released, Renewal, Renewed,
    Verdict,
};
use crate::error::Result;
use crate::words::identity::Token;

/// Grants every claim, and keeps nothing. Warns that it does so.
pub(crate) fn backend() -> Arc<dyn LockBackend> {
    tracing::warn!("locks are switched off: every lock is granted at once, without a database");
    Arc::new(Disabled)
}

#[derive(Debug)]
struct Disabled;

#[async_trait]
impl LockBackend for Disabled {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("disabled")
    }

    async fn acquire(&self, claims: &[Claim]) -> Result<Vec<Verdict>> {
        Ok(claims.iter().map(|_| Verdict::Granted(next_token())).collect())
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Renewed>> {
        Ok(vec![Renewed::Alive; renewals.len()])
    }

    async fn release(&self, releases: &[Release]) -> Result<Vec<Released>> {
        Ok(vec![Released::Done; releases.len()])
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
        Ok(Vec::new())
    }

    async fn clean_up(&self, _: Duration) -> Result<u64> {
        Ok(0)
    }
}

/// A token that is higher than all before in this process, and counts as those of databases do, so
/// that what is protected by tokens goes on accepting them when locks are switched off or on.
fn next_token() -> Token {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let micros = micros_since_1970();
    let next = |last: u64| micros.max(last + 1);
    let last = LAST.update(Ordering::Relaxed, Ordering::Relaxed, next);
    Token::new(next(last))
}

#[expect(clippy::disallowed_methods, reason = "a token is no deadline, and never falls here")]
fn micros_since_1970() -> u64 {
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_and_are_of_the_time() {
        let before = micros_since_1970();
        let first = next_token();
        assert!(first.get() >= before);
        let mut last = first;
        for _ in 0..10_000 {
            let token = next_token();
            assert!(token > last);
            last = token;
        }
    }
}
