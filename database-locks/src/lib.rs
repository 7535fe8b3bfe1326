//! placeholder
pub use database_locks_core::*;
