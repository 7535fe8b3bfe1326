//! Many readers or one writer.

use crate::error::Result;
use crate::locks::request::{LockRequest, Requests};
use crate::words::name::LockName;
use crate::words::share::Share;

/// A lock that many readers or one writer can hold, made by [`Locks::rwlock`](crate::Locks::rwlock).
///
/// A writer is the same as an exclusive lock of that name. While a writer waits, new readers
/// stand back.
#[derive(Debug, Clone)]
#[must_use = "choose read() or write()"]
pub struct RwLock {
    requests: Requests,
    name: Result<LockName>,
}

impl RwLock {
    pub(crate) fn new(requests: Requests, name: Result<LockName>) -> Self {
        Self { requests, name }
    }

    /// Asks to hold it beside other readers.
    pub fn read(&self) -> LockRequest {
        self.requests.request(self.name.clone(), Ok(Share::ONE))
    }

    /// Asks to hold it alone.
    pub fn write(&self) -> LockRequest {
        self.requests.request(self.name.clone(), Ok(Share::ALL))
    }
}
