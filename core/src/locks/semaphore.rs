//! A number of permits, shared by everybody.

use crate::error::Result;
use crate::locks::request::{LockRequest, Requests};
use crate::words::name::LockName;
use crate::words::share::Share;

/// A semaphore, made by [`Locks::semaphore`](crate::Locks::semaphore).
///
/// All who use a name at one time must give the same capacity: another is refused with
/// [`ErrorKind::CapacityMismatch`](crate::ErrorKind::CapacityMismatch) while permits are held.
#[derive(Debug, Clone)]
#[must_use = "choose how many permits()"]
pub struct Semaphore {
    requests: Requests,
    name: Result<LockName>,
    capacity: u32,
}

impl Semaphore {
    pub(crate) fn new(requests: Requests, name: Result<LockName>, capacity: u32) -> Self {
        Self { requests, name, capacity }
    }

    /// Asks for `permits` of the capacity, at least one.
    pub fn permits(&self, permits: u32) -> LockRequest {
        self.requests.request(self.name.clone(), Share::new(permits, self.capacity))
    }
}
