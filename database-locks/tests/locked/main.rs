//! `#[locked]` on the memory backend.

mod behaviour;
mod entry;
mod lints;
mod names;
mod shapes;
