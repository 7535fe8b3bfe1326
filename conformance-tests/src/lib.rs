//! The suite that holds a lock backend to its contract: one named test for each case.
//!
//! Whoever implements [`LockBackend`](database_locks_core::LockBackend) brings a [`Harness`], a
//! fresh store and clients of it, and writes one line:
//!
//! ```
//! use std::time::Duration;
//!
//! use database_locks_conformance::{Client, Harness, Outcome, async_trait};
//! use database_locks_core::LockName;
//! use database_locks_memory::MemoryBackend;
//!
//! struct Memory(MemoryBackend);
//!
//! #[async_trait]
//! impl Harness for Memory {
//!     async fn fresh() -> Outcome<Self> {
//!         Ok(Self(MemoryBackend::new()))
//!     }
//!
//!     async fn client(&self) -> Outcome<Client> {
//!         Ok(std::sync::Arc::new(self.0.clone()))
//!     }
//!
//!     // A faculty that the store happens to have: it enables two more cases.
//!     async fn delete_row(&self, name: &LockName) -> Outcome {
//!         self.0.forget(name);
//!         Ok(())
//!     }
//! }
//!
//! database_locks_conformance::suite!(Memory);
//!
//! // What the line writes is `#[test]`s. The same cases can be run by hand:
//! use database_locks_conformance::{Report, cases};
//! for case in cases().iter().filter(|case| case.group() == "fencing") {
//!     if let Report::Failed(why) = case.run::<Memory>() {
//!         panic!("{case}: {why}");
//!     }
//! }
//! ```
//!
//! Each test runs on a tokio runtime of its own, so that the crate which uses the suite needs no
//! runtime for it. Names are random, stores are a case's own, and tests may run at once.
//!
//! # Which cases run
//!
//! All that your backend's [capabilities](database_locks_core::Capabilities) and your harness's
//! faculties allow. Every method of [`Harness`] with a default is such a faculty, and its
//! documentation names the cases that it enables. A case that does not apply prints why it was
//! skipped, on standard error, past the capture of the test runner. A server that is missing is
//! not a reason to skip: let [`Harness::fresh`] fail with a text that says how to get it.
//!
//! # How cases judge
//!
//! A case panics, with what was expected, where the backend breaks its contract, and fails where a
//! call that should have worked returns an error. No case asserts a tight timing: what must come
//! to pass is waited for, and what must not have expired yet is judged only where so little time
//! has passed that it cannot have.
//!
//! # Faults
//!
//! [`FaultyBackend`] stands in front of any backend and refuses calls, loses answers, hangs or
//! delays as a test says. The suite uses it, so that a harness need not bring such faults, and so
//! can your own tests.
//!
//! # The cases
//!
#![doc = include_str!("../cases.md")]

mod cases;
mod context;
mod faulty;
mod harness;
mod process;
mod suite;

pub use database_locks_core::async_trait;
pub use faulty::{Fault, FaultyBackend, Verb};
pub use harness::{
    Client, ClientOption, ClockStep, Harness, Isolation, Outcome, RowLock, ServerEnd, ShiftedBy,
    Stop, TableNames,
};
pub use suite::{Case, Report, cases, test};

/// Writes one `#[test]` for each case of the suite, in modules named like its groups, against a
/// [`Harness`].
///
/// One module of your tests can hold one suite. For several, give each a module:
///
/// ```ignore
/// mod postgres { database_locks_conformance::suite!(super::Postgres); }
/// mod pgbouncer { database_locks_conformance::suite!(super::BehindPgbouncer); }
/// ```
#[macro_export]
macro_rules! suite {
    ($harness:ty) => {
        $crate::__for_all_cases!(__tests, [$harness]);
    };
}
