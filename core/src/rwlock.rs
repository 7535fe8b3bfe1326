//! Many readers or one writer.

use crate::error::Result;
use crate::lock::LockRequest;
use crate::locks::Locks;
use crate::name::LockName;
use crate::share::Share;

/// A lock that many readers or one writer can hold, made by [`Locks::rwlock`].
///
/// A writer is the same as an exclusive lock of that name. While a writer waits, new readers
/// stand back.
#[derive(Debug, Clone)]
#[must_use = "choose read() or write()"]
pub struct RwLock {
    locks: Locks,
    name: Result<LockName>,
}

impl RwLock {
    pub(crate) fn new(locks: Locks, name: Result<LockName>) -> Self {
        Self { locks, name }
    }

    /// Asks to hold it beside other readers.
    pub fn read(&self) -> LockRequest {
        self.locks.request(self.name.clone(), Ok(Share::ONE))
    }

    /// Asks to hold it alone.
    pub fn write(&self) -> LockRequest {
        self.locks.request(self.name.clone(), Ok(Share::ALL))
    }
}
