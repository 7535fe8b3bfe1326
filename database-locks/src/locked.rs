//! The manual of `#[locked]`.

/// Runs a function under a lock.
pub use database_locks_macros::locked;
