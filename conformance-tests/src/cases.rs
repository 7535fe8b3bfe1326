//! The cases, a file a group.

pub(crate) mod connections;
pub(crate) mod exclusive;
pub(crate) mod fencing;
pub(crate) mod hand_over;
pub(crate) mod inspection;
pub(crate) mod kept_and_revoked;
pub(crate) mod lease;
pub(crate) mod loss;
pub(crate) mod model;
pub(crate) mod names;
pub(crate) mod owner;
pub(crate) mod release;
pub(crate) mod shared_and_permits;
pub(crate) mod store;
pub(crate) mod stress;
pub(crate) mod time;
pub(crate) mod waiting;
