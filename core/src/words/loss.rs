//! Why a lease ends before its holder releases it.

use std::fmt;

/// Why a lease ended other than by its holder's release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// It was not renewed in time, and nobody has taken the lock since.
    Expired,
    /// It was not renewed in time, and somebody else has taken the lock.
    Taken,
    /// The same explicit owner took the lock from another place.
    Superseded,
    /// Somebody released it by force, or revoked it.
    Forced,
    /// The lock's row was deleted.
    Deleted,
    /// This process shut its locks down.
    Shutdown,
    /// Its own holder released it: what a view of the lease reports that outlives its guard.
    Released,
}

impl LossReason {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Expired,
        Self::Taken,
        Self::Superseded,
        Self::Forced,
        Self::Deleted,
        Self::Shutdown,
        Self::Released,
    ];

    /// In one word, for labels and fields.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Taken => "taken",
            Self::Superseded => "superseded",
            Self::Forced => "forced",
            Self::Deleted => "deleted",
            Self::Shutdown => "shutdown",
            Self::Released => "released",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "it expired before it could be renewed",
            Self::Taken => "it expired, and somebody else has taken the lock",
            Self::Superseded => "the same owner took the lock from another place",
            Self::Forced => "it was revoked, or released by force",
            Self::Deleted => "the lock's row was deleted from the database",
            Self::Shutdown => "the locks of this process were shut down",
            Self::Released => "its holder released it",
        })
    }
}
