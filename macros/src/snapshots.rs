//! What functions expand to: each `snapshots/NAME.rs` is one as it is written, and
//! `snapshots/NAME.expanded.rs` what becomes of it.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test -p database-locks-macros` writes the latter anew; read the
//! difference before you commit it.
