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
//! - [`init`] sets the locks that a process has by default, and [`locks()`] gives them.
//! - [`LockBackend`] is the contract, [`ledger`] its rule as a pure model. [`hosts`] chooses between
//!   several hosts of one database.
//! - `key_value` makes a backend of any store that can compare and set (feature `key-value`; the feature
//!   `serde` alone lets a ledger be written and read).

mod callbacks;
mod disabled;
mod engine;
mod guard;
mod lease;
mod lock;
mod locked;
mod locks;
mod rwlock;
mod semaphore;

pub mod backend;
pub mod blocking;
pub mod clock;
pub mod data;
pub mod duration;
pub mod error;
pub mod hosts;
pub mod identifier;
pub mod identity;
#[cfg(feature = "key-value")]
pub mod key_value;
pub mod ledger;
pub mod loss;
pub mod name;
pub mod observer;
pub mod owner;
pub mod process;
pub mod share;
pub mod ttl;

pub use async_trait::async_trait;
pub use backend::{
    Busy, Capabilities, Claim, Holder, How, LeaseInfo, ListQuery, LockBackend, Release, Released,
    Renewal, Renewed, Standing, Verdict, Wakeup, Wakeups,
};
pub use data::Data;
pub use duration::parse_duration;
pub use engine::backoff::Retry;
pub use error::{Error, ErrorKind, Result};
pub use guard::Guard;
pub use identity::{Attempt, LeaseId, Token};
pub use lease::{Ended, Lease};
pub use lock::LockRequest;
pub use locks::{Locks, LocksBuilder};
pub use loss::LossReason;
pub use name::LockName;
pub use observer::Observer;
pub use owner::Owner;
pub use process::{init, locks};
pub use rwlock::RwLock;
pub use semaphore::Semaphore;
pub use share::Share;
pub use ttl::{FiniteTtl, Ttl};

/// What `#[locked]` expands to: no part of the API, and of a name that no user's own can meet.
#[doc(hidden)]
pub mod __locked {
    pub use crate::locked::{
        AsyncLocks, BlockingLocks, Output, function_name, lock, lock_blocking, method_name,
    };
}
