//! `#[locked]` on the memory backend.
mod shapes;
