//! The words of the contract: what is parsed once, and valid from then on.

pub(crate) mod data;
pub mod duration;
pub(crate) mod identity;
pub(crate) mod loss;
pub(crate) mod name;
pub(crate) mod owner;
pub(crate) mod share;
pub(crate) mod ttl;
