//! core
pub mod backend;
pub mod clock;
pub mod error;
pub mod identity;
pub mod ledger;
pub mod name;
pub mod owner;
pub mod share;
pub mod ttl;

pub use async_trait::async_trait;
pub use backend::{
    Busy, Capabilities, Claim, Holder, LeaseInfo, ListQuery, LockBackend, LossReason, Released,
    Renewal, Renewed, Verdict, Wakeup, Wakeups,
};
pub use error::{Error, ErrorKind, Result};
pub use identity::{Attempt, LeaseId, Token};
pub use name::LockName;
pub use owner::Owner;
pub use share::Share;
pub use ttl::{FiniteTtl, Ttl};
