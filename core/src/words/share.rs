//! What a claim takes, and of how much: the two numbers that the one rule needs.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// What a claim takes of a name (`weight`), and how much the name has (`capacity`).
///
/// A claim is granted if and only if the live weights of its name plus its own are within the
/// capacity. Every kind of lock is a share: an exclusive lock and a writer take [`Share::ALL`], a
/// reader takes [`Share::ONE`], permits of a semaphore take `n` of its size. Backends see only
/// the numbers.
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Stored", into = "Stored")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Share {
    weight: u32,
    capacity: u32,
}

impl Share {
    /// The capacity of exclusive and read-write locks: the largest number that a signed 32-bit
    /// column holds.
    pub const FULL: u32 = i32::MAX.unsigned_abs();
    /// An exclusive lock or a writer: `FULL` of `FULL`.
    pub const ALL: Self = Self { weight: Self::FULL, capacity: Self::FULL };
    /// A reader: 1 of `FULL`.
    pub const ONE: Self = Self { weight: 1, capacity: Self::FULL };

    /// `weight` of `capacity`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] unless `1 <= weight <= capacity <= FULL`.
    pub fn new(weight: u32, capacity: u32) -> Result<Self, Error> {
        if capacity == 0 || capacity > Self::FULL {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("the capacity is {capacity}: give 1 to {}", Self::FULL),
            ));
        }
        if weight == 0 || weight > capacity {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("the number of permits is {weight}: give 1 to the capacity, {capacity}"),
            ));
        }
        Ok(Self { weight, capacity })
    }

    /// What the claim takes.
    #[must_use]
    pub const fn weight(self) -> u32 {
        self.weight
    }

    /// Of how much.
    #[must_use]
    pub const fn capacity(self) -> u32 {
        self.capacity
    }

    /// Whether nobody else fits beside this claim, so that the name's row alone can decide it.
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        self.weight == self.capacity
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("exclusive"),
            Self::ONE => f.write_str("shared"),
            Self { weight, capacity } => write!(f, "{weight} of {capacity}"),
        }
    }
}

/// A share as it is written.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    weight: u32,
    capacity: u32,
}

#[cfg(feature = "serde")]
impl From<Share> for Stored {
    fn from(Share { weight, capacity }: Share) -> Self {
        Self { weight, capacity }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Stored> for Share {
    type Error = Error;

    fn try_from(Stored { weight, capacity }: Stored) -> Result<Self, Error> {
        Self::new(weight, capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stay_within_capacities() {
        for (weight, capacity) in [(0, 1), (2, 1), (0, 0), (1, Share::FULL + 1), (1, u32::MAX)] {
            let error = Share::new(weight, capacity).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{weight} of {capacity}");
        }
        assert!(Share::new(3, 3).unwrap().is_exclusive());
        assert!(!Share::new(2, 3).unwrap().is_exclusive());
        assert_eq!(Share::new(Share::FULL, Share::FULL).unwrap(), Share::ALL);
    }
}
