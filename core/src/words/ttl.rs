//! How long the server keeps a lease alive.

use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::words::duration::parse_duration;

/// How long a lease lives on the server without being renewed: 100 ms to 24 h, or without end.
///
/// Options that take a TTL take a [`Duration`] too, and check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ttl {
    /// The lease ends only by release, or by force: if its holder crashes, somebody must force it.
    Infinite,
    /// The lease ends this long after its last renewal.
    Finite(FiniteTtl),
}

/// A duration that is known to be a valid TTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiniteTtl(Duration);

impl FiniteTtl {
    /// The duration itself.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Ttl {
    /// The shortest TTL.
    pub const MIN: Duration = Duration::from_millis(100);
    /// The longest TTL that ends at all.
    pub const MAX: Duration = Duration::from_hours(24);
    /// What a lock gets that says nothing else: 10 s.
    pub const DEFAULT: Self = Self::Finite(FiniteTtl(Duration::from_secs(10)));

    /// A TTL of `ttl`, to the microsecond: what is finer is cut off.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] outside [`Self::MIN`] to [`Self::MAX`].
    pub fn new(ttl: Duration) -> Result<Self, Error> {
        if ttl < Self::MIN || ttl > Self::MAX {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "the TTL is {ttl:?}: give 100 ms to 24 h, or infinite for a lease that never \
                     expires"
                ),
            ));
        }
        Ok(Self::Finite(FiniteTtl(Duration::new(ttl.as_secs(), ttl.subsec_micros() * 1_000))))
    }

    /// The duration, or `None` where the lease never expires.
    #[must_use]
    pub const fn duration(self) -> Option<Duration> {
        match self {
            Self::Infinite => None,
            Self::Finite(ttl) => Some(ttl.0),
        }
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<Duration> for Ttl {
    type Error = Error;

    fn try_from(ttl: Duration) -> Result<Self, Error> {
        Self::new(ttl)
    }
}

/// `infinite` or `none`, in any case, or what [`parse_duration`] takes.
impl FromStr for Ttl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let word = text.trim();
        if word.eq_ignore_ascii_case("infinite") || word.eq_ignore_ascii_case("none") {
            return Ok(Self::Infinite);
        }
        Self::new(parse_duration(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_and_nothing_overflows() {
        for bad in
            [Duration::ZERO, Duration::from_millis(99), Duration::from_hours(25), Duration::MAX]
        {
            let error = Ttl::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{bad:?}");
        }
        assert_eq!(Ttl::new(Ttl::MIN).unwrap().duration(), Some(Ttl::MIN));
        assert_eq!(Ttl::new(Ttl::MAX).unwrap().duration(), Some(Ttl::MAX));
        assert_eq!(Ttl::Infinite.duration(), None);
    }

    #[test]
    fn what_no_server_column_holds_is_cut_off() {
        let ttl = Ttl::new(Duration::from_nanos(100_000_999)).unwrap();
        assert_eq!(ttl.duration(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_ttl_can_be_written() {
        for text in ["infinite", "None", " INFINITE "] {
            assert_eq!(text.parse::<Ttl>().unwrap(), Ttl::Infinite, "{text:?}");
        }
        for (text, millis) in [("10", 10_000), ("0.5", 500), ("1m30s", 90_000)] {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!(ttl.duration(), Some(Duration::from_millis(millis)), "{text:?}");
        }
        for text in ["", "0", "99ms", "25h", "-1s", "never"] {
            assert_eq!(
                text.parse::<Ttl>().unwrap_err().kind(),
                ErrorKind::InvalidOption,
                "{text:?}"
            );
        }
    }
}
