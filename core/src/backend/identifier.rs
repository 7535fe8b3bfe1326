//! Names of tables and schemas, as users may choose them on every backend.

use crate::error::{Error, ErrorKind, Result};

/// Checks the name of a table or a schema (`what`) that has to leave room for a backend's suffixes:
/// it matches `[A-Za-z_][A-Za-z0-9_]*` and has at most `longest` bytes. Nothing in it needs escaping.
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`], which says what to give.
pub fn check(what: &str, name: &str, longest: usize) -> Result<()> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts
        && name.len() <= longest
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidOption,
        format!(
            "the {what} name {name:?} cannot be used: give 1 to {longest} ASCII letters, digits and \
             underscores, not starting with a digit"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_escaping_passes() {
        for name in ["locks", "_locks2", "Order", &"x".repeat(10)] {
            check("table", name, 10).unwrap();
        }
        for name in ["", "1a", "a b", "a\"b", "a.b", "schloß", &"x".repeat(11)] {
            let error = check("table", name, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{name}");
            assert!(error.to_string().contains("1 to 10"), "{error}");
        }
    }
}
