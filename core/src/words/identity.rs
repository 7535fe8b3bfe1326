//! What tells one lease from another: the attempt that asked for it, and its token.

use std::fmt;

use uuid::Uuid;

use crate::words::name::LockName;
use crate::words::owner::Owner;
use crate::words::share::Share;

/// A random id (UUID v7), one for each acquire call and reused for that call's retries.
///
/// It is the identity of the lease that it wins: host and process are only a label.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(Uuid);

impl Attempt {
    /// In place of the attempt of a lease that another client has written, such as a Django app that shares
    /// the table: such leases have no identity.
    pub const FOREIGN: Self = Self(Uuid::nil());

    /// A new attempt, unlike any other.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default should be the same each time")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// An attempt that was stored.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The attempt as it is stored.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fencing token: a number that grows with every grant of a name.
///
/// Pass it along with what the work writes, and let the protected resource refuse a token that is
/// lower than one it has seen. It fits a signed 64-bit column.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// A token that was stored.
    #[must_use]
    pub const fn new(token: u64) -> Self {
        Self(token)
    }

    /// The token as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which lease exactly: what renewal and release must match, all of it, to touch a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LeaseId {
    /// The lock.
    pub name: LockName,
    /// The acquire call that won it.
    pub attempt: Attempt,
    /// Its fencing token.
    pub token: Token,
    /// Who holds it.
    pub owner: Owner,
    /// What it takes of the lock.
    pub share: Share,
}

impl LeaseId {
    /// The lease that `attempt` won.
    #[must_use]
    pub const fn new(
        name: LockName,
        attempt: Attempt,
        token: Token,
        owner: Owner,
        share: Share,
    ) -> Self {
        Self { name, attempt, token, owner, share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_differ_and_survive_storage() {
        let (a, b) = (Attempt::new(), Attempt::new());
        assert_ne!(a, b);
        assert_eq!(Attempt::from_uuid(a.as_uuid()), a);
    }
}
