//! Fencing tokens for what is no SQL.

use std::sync::atomic::{AtomicU64, Ordering};

use database_locks_core::{Error, ErrorKind, Result, Token};

/// The highest fencing token that was seen: refuses all that are lower. For whoever writes to a file, a remote object or a
/// device on behalf of holders of a lock, and keeps this next to it.
///
/// ```
/// use database_locks_fence::HighWaterMark;
/// # use database_locks_core::Token;
/// # fn main() -> database_locks_core::Result<()> {
/// # let (earlier, later) = (Token::new(41), Token::new(42));
/// let mark = HighWaterMark::new();
/// mark.admit(later)?;
/// mark.admit(later)?; // the same holder once more
/// assert!(mark.admit(earlier).is_err()); // a holder that was paused, and whose lock somebody else has had since
///
/// let stored = mark.highest(); // write it where the data is, …
/// let mark = stored.map_or_else(HighWaterMark::new, HighWaterMark::restored); // … and begin with it
/// assert!(mark.admit(earlier).is_err());
/// # Ok(()) }
/// ```
///
/// # What it promises
///
/// Once a token was admitted, no lower one is, by this mark and by those that are restored from it.
///
/// # What it does not
///
/// - **It does not know of leases.** A holder whose lease has ended is admitted until a later holder's token was seen: let
///   each holder be admitted before it reads what it is to change.
/// - **To admit is not to write.** A writer that is paused between the two writes late. Do both under one mutex, or let the
///   store compare the token in the same step as it writes, for example by a conditional put.
/// - **It guards what goes through it.** Several processes that write to one file need one of them to do so for all, or
///   the token in the file and a lock of the file around both.
/// - **It forgets what was not stored.** Store the [`highest`](Self::highest) token no later than what was written under
///   it; a mark that begins anew admits every token.
/// - **It is for one lock.** Tokens of different names say nothing of each other.
/// - **It is for whole locks and for writers.** Readers and permits that are held at the same time have different tokens.
#[derive(Debug, Default)]
pub struct HighWaterMark(AtomicU64);

impl HighWaterMark {
    /// A mark that has seen no token, and admits any.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A mark that has seen `token`.
    #[must_use]
    pub const fn restored(token: Token) -> Self {
        Self(AtomicU64::new(token.get()))
    }

    /// Admits a token that is not lower than all before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] for a lower one: somebody else has had the lock since.
    pub fn admit(&self, token: Token) -> Result<()> {
        let highest = self.0.fetch_max(token.get(), Ordering::AcqRel);
        if highest <= token.get() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Lost,
            format!(
                "the token {token} is lower than {highest}, which was seen before: write nothing, because somebody else \
                 has had the lock since"
            ),
        ))
    }

    /// The highest token that was admitted, to be stored.
    #[must_use]
    pub fn highest(&self) -> Option<Token> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            token => Some(Token::new(token)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn lower_tokens_are_refused_and_equal_ones_are_not() {
        let mark = HighWaterMark::new();
        assert_eq!(mark.highest(), None);
        for token in [5, 5, 7] {
            mark.admit(Token::new(token)).unwrap();
        }
        let error = mark.admit(Token::new(6)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
        assert_eq!(mark.highest(), Some(Token::new(7)), "a refused token leaves the mark");

        let restored = HighWaterMark::restored(Token::new(7));
        restored.admit(Token::new(6)).unwrap_err();
        restored.admit(Token::new(7)).unwrap();
    }

    #[test]
    fn of_tokens_that_come_at_once_none_is_admitted_after_a_higher_one() {
        let mark = HighWaterMark::new();
        thread::scope(|scope| {
            for first in 1..=4 {
                let mark = &mark;
                scope.spawn(move || {
                    for token in (first..10_000).step_by(4) {
                        let before = mark.highest();
                        let admitted = mark.admit(Token::new(token)).is_ok();
                        assert!(!admitted || before <= Some(Token::new(token)));
                        assert!(mark.highest() >= Some(Token::new(token)));
                    }
                });
            }
        });
        assert_eq!(mark.highest(), Some(Token::new(9_999)));
    }
}
