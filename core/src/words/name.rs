//! Lock names: parsed once, compared byte by byte ever after.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// The name of a lock: 1 to 255 bytes of UTF-8 without control characters.
///
/// Two names are one lock if and only if their bytes are equal, on every backend: case, accents,
/// trailing spaces and Unicode normalisation all count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(Arc<str>);

impl LockName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidName`] for an empty name, one longer than [`Self::MAX_BYTES`], and one
    /// that holds a control character (Unicode's `Cc`, NUL among them).
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        let invalid = |why: String| Err(Error::new(ErrorKind::InvalidName, why));
        if name.is_empty() {
            return invalid("a lock name is empty: give it 1 to 255 bytes".to_owned());
        }
        if name.len() > Self::MAX_BYTES {
            let (start, _) = name.split_at(name.floor_char_boundary(32));
            return invalid(format!(
                "the lock name that starts with {start:?} has {} bytes: at most {} are allowed; \
                 hash what is longer",
                name.len(),
                Self::MAX_BYTES
            ));
        }
        if let Some(control) = name.chars().find(|c| c.is_control()) {
            return invalid(format!(
                "the lock name {name:?} holds the control character {control:?}: remove it"
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for LockName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_lock_can_have() {
        let long = "x".repeat(256);
        let long_in_bytes = "é".repeat(128);
        for bad in ["", &long, &long_in_bytes, "a\0b", "a\nb", "\u{7f}", "\u{85}"] {
            let error = LockName::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn names_that_are_different_locks() {
        let names = ["Job", "job", "job ", "jób", "jo\u{301}b", "%", "'; DROP TABLE x", "🔒"];
        for (i, a) in names.iter().enumerate() {
            for (j, b) in names.iter().enumerate() {
                assert_eq!(LockName::new(a).unwrap() == LockName::new(b).unwrap(), i == j);
            }
        }
        assert_eq!(LockName::new("x".repeat(255)).unwrap().as_str().len(), 255);
    }
}
