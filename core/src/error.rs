//! One public error: a kind to match on, and a message that says what to do.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::words::loss::LossReason;

/// What every fallible call of this library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one word that code can match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The lock was not obtained within the time that the caller gave, or not at once by a try
    /// that had to report an error.
    Timeout,
    /// The lease ended before it was released; the reason is in [`Error::loss`], where it is known.
    Lost,
    /// The lock is held with another capacity than the one asked for.
    CapacityMismatch,
    /// A name that no lock can have.
    InvalidName,
    /// An option, a URL or a setting that cannot be used as it was given.
    InvalidOption,
    /// The database could not be reached, or gave up in the middle: worth another try.
    Unavailable,
    /// This backend, or this build of the library, cannot do what was asked.
    Unsupported,
    /// The tables are not there, or are of an older version.
    NotMigrated,
    /// The database refused the credentials, or the user lacks a right.
    Permission,
    /// Anything else that the database reported.
    Backend,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::CapacityMismatch => "capacity mismatch",
            Self::InvalidName => "invalid name",
            Self::InvalidOption => "invalid option",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::NotMigrated => "not migrated",
            Self::Permission => "permission",
            Self::Backend => "backend",
        })
    }
}

/// An error of this library: what happened, to which lock, on which backend, and what to do.
///
/// Cheap to clone, because one failed batch is told to everybody who was in it. The message never
/// holds a password: backends redact their URLs.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    loss: Option<LossReason>,
    lock: Option<Arc<str>>,
    backend: Option<&'static str>,
    operation: Option<&'static str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`. Messages are lower case, without a full stop, and say what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            loss: None,
            lock: None,
            backend: None,
            operation: None,
            source: None,
        }))
    }

    /// The error of a holder whose lease ended for `reason`.
    #[must_use]
    pub fn lost(reason: LossReason) -> Self {
        let mut error = Self::new(ErrorKind::Lost, format!("the lease was lost: {reason}"));
        error.0.loss = Some(reason);
        error
    }

    /// Names the lock that the error is about.
    #[must_use]
    pub fn with_lock(mut self, name: impl AsRef<str>) -> Self {
        self.0.lock.get_or_insert_with(|| name.as_ref().into());
        self
    }

    /// Names the backend that the error comes from, for example `"postgres"`.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        self.0.backend.get_or_insert(backend);
        self
    }

    /// Names what was being done, for example `"acquire"`.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Keeps the driver's own error as the source.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// What went wrong, in one word.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened and what to do, without the names that [`Display`](fmt::Display) puts in
    /// front.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// Why the lease ended, where the kind is [`ErrorKind::Lost`] and it is known: not by a fence that found it dead.
    #[must_use]
    pub fn loss(&self) -> Option<LossReason> {
        self.0.loss
    }

    /// The lock that the error is about, where it is about one.
    #[must_use]
    pub fn lock(&self) -> Option<&str> {
        self.0.lock.as_deref()
    }

    /// The backend that the error comes from, where it comes from one.
    #[must_use]
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// What was being done when it happened.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Whether the same call may well succeed later, unchanged.
    ///
    /// True of [`ErrorKind::Unavailable`] and [`ErrorKind::Timeout`]. The engine itself repeats
    /// what is `Unavailable` until the caller's timeout; the outcome of the failed call counts as
    /// unknown, and is asked again under the same attempt.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(lock) = &self.0.lock {
            write!(f, "lock {lock:?}: ")?;
        }
        match (self.0.backend, self.0.operation) {
            (Some(backend), Some(operation)) => write!(f, "{backend} {operation}: ")?,
            (Some(one), None) | (None, Some(one)) => write!(f, "{one}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("lock", &self.0.lock)
            .field("backend", &self.0.backend)
            .field("operation", &self.0.operation)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Lets options take a value that is already proven, where they also parse one.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_lock_backend_and_operation() {
        let error = Error::new(ErrorKind::Unavailable, "the connection was cut")
            .with_lock("nightly")
            .with_backend("postgres")
            .with_operation("acquire");
        assert_eq!(
            error.to_string(),
            r#"lock "nightly": postgres acquire: the connection was cut"#
        );
        assert!(error.is_retryable());
    }

    #[test]
    fn source_is_kept() {
        let error = Error::new(ErrorKind::Backend, "no")
            .with_source(std::io::Error::other("the driver's word"));
        assert_eq!(error.source().unwrap().to_string(), "the driver's word");
    }

    #[test]
    fn error_is_small_and_shareable() {
        fn shareable<T: Send + Sync + Clone + 'static>() {}
        shareable::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
