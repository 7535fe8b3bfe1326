//! Who holds a lock, for people to read.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// Who holds a lease.
///
/// By default a label that people read, `hostname.pid`. An owner that the user names explicitly
/// also carries a rule: a claim by the same explicit owner supersedes that owner's live lease,
/// with a higher token, instead of waiting for it.
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Stored", into = "Stored")
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    label: Arc<str>,
    explicit: bool,
}

impl Owner {
    /// The longest label, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// `hostname.pid`: only a label, so that two claims of one process exclude each other.
    #[must_use]
    pub fn of_this_process() -> Self {
        let host = gethostname::gethostname();
        let host: String =
            host.to_string_lossy().chars().filter(|c| !c.is_control()).take(60).collect();
        Self { label: format!("{host}.{}", std::process::id()).into(), explicit: false }
    }

    /// An owner that the user names, and that supersedes itself.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for an empty label, one longer than [`Self::MAX_BYTES`], and
    /// one that holds a control character.
    pub fn explicit(label: impl AsRef<str>) -> Result<Self, Error> {
        Self::parse(label.as_ref(), true)
    }

    /// A label for people to read, that carries no rule.
    ///
    /// # Errors
    ///
    /// As [`Self::explicit`].
    pub fn label_only(label: impl AsRef<str>) -> Result<Self, Error> {
        Self::parse(label.as_ref(), false)
    }

    /// An owner as it was stored, perhaps by somebody who stores what is no owner here: control
    /// characters are left out, and what is too long is cut.
    ///
    /// For backends that share their table with others.
    #[must_use]
    pub fn lossy(label: &str, explicit: bool) -> Self {
        let mut label: String = label.chars().filter(|c| !c.is_control()).collect();
        label.truncate(label.floor_char_boundary(Self::MAX_BYTES));
        let label = if label.is_empty() { "unknown" } else { &label };
        Self { label: label.into(), explicit }
    }

    fn parse(label: &str, explicit: bool) -> Result<Self, Error> {
        if label.is_empty() || label.len() > Self::MAX_BYTES || label.contains(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "the owner has {} bytes: give 1 to {} of text without control characters",
                    label.len(),
                    Self::MAX_BYTES
                ),
            ));
        }
        Ok(Self { label: label.into(), explicit })
    }

    /// The owner as text.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether the user named this owner, so that it supersedes itself.
    #[must_use]
    pub const fn is_explicit(&self) -> bool {
        self.explicit
    }

    /// Whether a claim by `self` takes over a live lease of `holder` instead of waiting for it.
    #[must_use]
    pub fn supersedes(&self, holder: &Self) -> bool {
        self.explicit && holder.explicit && self.label == holder.label
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// An owner as it is written.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    label: String,
    explicit: bool,
}

#[cfg(feature = "serde")]
impl From<Owner> for Stored {
    fn from(owner: Owner) -> Self {
        Self { label: owner.label.as_ref().to_owned(), explicit: owner.explicit }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Stored> for Owner {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self, Error> {
        Self::parse(&stored.label, stored.explicit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_owner_supersedes_itself() {
        let process = Owner::of_this_process();
        let alice = Owner::explicit("alice").unwrap();
        assert!(alice.supersedes(&alice.clone()));
        assert!(!alice.supersedes(&Owner::explicit("bob").unwrap()));
        assert!(!alice.supersedes(&Owner::label_only("alice").unwrap()));
        assert!(!process.supersedes(&process));
        assert!(process.label().ends_with(&std::process::id().to_string()));
    }

    #[test]
    fn what_others_have_stored_is_made_readable() {
        assert_eq!(Owner::lossy("a\nb", false).label(), "ab");
        assert_eq!(Owner::lossy("", false).label(), "unknown");
        assert_eq!(Owner::lossy(&"é".repeat(200), false).label(), "é".repeat(127));
        assert_eq!(Owner::lossy("alice", true), Owner::explicit("alice").unwrap());
    }

    #[test]
    fn labels_are_checked() {
        for bad in ["", "a\nb", &"x".repeat(256)] {
            let error = Owner::explicit(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
    }
}
