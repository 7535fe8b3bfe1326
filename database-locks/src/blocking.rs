//! Locks for code without async.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # fn main() -> database_locks::Result<()> {
//! use std::time::Duration;
//! use database_locks::Result;
//! use database_locks::blocking::{Connect, Locks};
//!
//! # let url = "memory:";
//! let locks = Locks::connect(url)?; // postgres://..., mysql://..., sqlite:PATH
//!
//! let guard = locks.lock("nightly").timeout(Duration::from_secs(5)).acquire()?;
//! println!("one of us works, under token {}", guard.token());
//! guard.release()?;
//!
//! let pages = locks.lock("nightly").run(|lease| -> Result<u32> {
//!     let mut pages = 0;
//!     while pages < 10 {
//!         lease.check()?; // Lost? Then stop here.
//!         pages += 1;
//!     }
//!     Ok(pages)
//! })??;
//! # assert_eq!(pages, 10);
//! locks.shutdown()?;
//! # Ok(()) }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! What it needs of its surroundings, and where it refuses to wait, stands in
//! [`database_locks_core::blocking`].

#[doc(inline)]
pub use database_locks_core::blocking::*;
use database_locks_core::{LocksBuilder, Result};

use crate::connect::Target;

/// Makes [`Locks`] from a URL: the twin of [`crate::Connect`], for the same URLs.
pub trait Connect: Sized {
    /// Connects with the default options, and checks that the database answers.
    ///
    /// # Errors
    ///
    /// As [`crate::Connect::connect`], and
    /// [on an async worker](database_locks_core::blocking#not-on-an-async-worker).
    fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, LocksBuilder::default())
    }

    /// Connects with options of one's own.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    fn connect_with(url: &str, options: LocksBuilder) -> Result<Self>;
}

impl Connect for Locks {
    fn connect_with(url: &str, options: LocksBuilder) -> Result<Self> {
        Self::open(options, Target::parse(url)?.connect())
    }
}

/// Creates the tables that the locks behind `url` need, or brings them up to date: the twin of
/// [`crate::migrate`].
///
/// # Errors
///
/// As there, and [on an async worker](database_locks_core::blocking#not-on-an-async-worker).
pub fn migrate(url: &str) -> Result<()> {
    block_on(Target::parse(url)?.migrate())
}
