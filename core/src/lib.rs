//! Leases that hold: the contract of a lock backend, the engine that drives it, and the guards
//! that users hold.
//!
//! Applications use the crate `database-locks`, which adds the backends and `connect(url)`. This
//! crate is for whoever writes a backend: implement [`LockBackend`], and hold it to the suite in
//! `database-locks-conformance`.
//!
//! - [`Locks`] is the entrance, [`LockRequest`] a request with its options, [`Guard`] a lock that
//!   is held, and [`Lease`] a view of it to hand around.
//! - [`blocking`] has their twins for code without async.
//! - [`LockBackend`] is the contract, [`ledger`] its rule as a pure model. [`hosts`] chooses between
//!   several hosts of one database, and [`fence`] is what a user's own transaction runs to be protected by a lease.
//! - `key_value` makes a backend of any store that can compare and set (feature `key-value`; the feature
//!   `serde` alone lets a ledger be written and read).

mod callbacks;
mod engine;
mod health;
mod locked;
mod locks;
mod spans;
mod words;

pub mod backend;
pub mod blocking;
pub mod clock;
pub mod error;
pub mod observer;

pub use async_trait::async_trait;
#[cfg(feature = "key-value")]
pub use backend::key_value;
pub use backend::{
    Busy, Capabilities, Claim, Holder, How, LeaseInfo, ListQuery, LockBackend, Release, Released,
    Releaser, Renewal, Renewed, Standing, Verdict, Wakeup, Wakeups,
};
pub use backend::{fence, hosts, identifier, ledger};
pub use engine::backoff::Retry;
pub use error::{Error, ErrorKind, Result};
pub use health::{Health, Outage};
pub use locks::guard::Guard;
pub use locks::lease::{Ended, Lease};
pub use locks::request::LockRequest;
pub use locks::rwlock::RwLock;
pub use locks::semaphore::Semaphore;
pub use locks::{Locks, LocksBuilder};
pub use observer::Observer;
pub use words::data::Data;
pub use words::duration::{self, parse_duration};
pub use words::identity::{Attempt, LeaseId, Token};
pub use words::loss::LossReason;
pub use words::name::LockName;
pub use words::owner::Owner;
pub use words::share::Share;
pub use words::ttl::{FiniteTtl, Ttl};

/// What `#[locked]` expands to: no part of the API, and of a name that no user's own can meet.
#[doc(hidden)]
pub mod __locked {
    pub use crate::locked::{
        AsyncLocks, BlockingLocks, Output, function_name, lock, lock_blocking, method_name,
    };
}
