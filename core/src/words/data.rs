//! A text that goes with a lease.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// What a holder tells of itself, such as the address of a leader: a text that goes with its lease.
///
/// Whoever lists leases sees it, and whoever finds the lock busy.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Data(Arc<str>);

impl Data {
    /// The longest text, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// A text as data.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for a text of more than [`Self::MAX_BYTES`], or with a NUL, which not
    /// every database stores.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, Error> {
        let text = text.into();
        if text.len() > Self::MAX_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "the data of a lease has {} bytes: give at most {}, for example a link to the rest",
                    text.len(),
                    Self::MAX_BYTES
                ),
            ));
        }
        if text.contains('\0') {
            let message = "the data of a lease has a NUL: leave it out";
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Data {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl From<Data> for String {
    fn from(data: Data) -> Self {
        data.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_a_short_text() {
        assert_eq!(Data::new("https://10.0.0.1:8080").unwrap().as_str(), "https://10.0.0.1:8080");
        assert_eq!(Data::new("").unwrap().to_string(), "");
        assert!(Data::new("x".repeat(Data::MAX_BYTES)).is_ok());
        for wrong in ["x".repeat(Data::MAX_BYTES + 1), "a\0b".to_owned()] {
            assert_eq!(Data::new(wrong).unwrap_err().kind(), ErrorKind::InvalidOption);
        }
    }
}
