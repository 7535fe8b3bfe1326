//! Locks in the memory of one process: exact, and made for unit tests.
//!
//! Every clone of a [`MemoryBackend`] is a client of the same store. By default leases live on the
//! machine's clock; with a [`ManualClock`] a test decides when time passes.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> database_locks_core::Result<()> {
//! use database_locks_core::Locks;
//! use database_locks_memory::MemoryBackend;
//!
//! let locks = Locks::new(MemoryBackend::new());
//! let guard = locks.lock("nightly").acquire().await?;
//! assert!(locks.lock("nightly").try_acquire().await?.is_none());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! Time that a test steps:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> database_locks_core::Result<()> {
//! use std::time::Duration;
//! use database_locks_core::Locks;
//! use database_locks_memory::{ManualClock, MemoryBackend};
//!
//! let clock = ManualClock::new();
//! let store = MemoryBackend::with_clock(clock.clone());
//! let (here, there) = (Locks::new(store.clone()), Locks::new(store));
//!
//! let ours = here.lock("nightly").auto_renew(false).acquire().await?;
//! assert!(there.lock("nightly").try_acquire().await?.is_none());
//! clock.advance(Duration::from_secs(11));
//! let theirs = there.lock("nightly").try_acquire().await?.expect("the lease has expired");
//! assert!(theirs.token() > ours.token());
//! # Ok(()) }
//! ```

mod backend;
mod clock;

pub use backend::MemoryBackend;
pub use clock::ManualClock;
