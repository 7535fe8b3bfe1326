//! Values as literals that need no escaping, whatever the session's settings are.

use std::fmt::Write as _;

/// Text, as bytes where the column has bytes, and by the column's collation where it has text.
pub(crate) fn text(text: &str) -> String {
    format!("_utf8mb4 {}", hex(text.as_bytes()))
}

/// Bytes as a literal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    format!("x'{}'", digits(bytes))
}

/// Bytes as hexadecimal digits.
pub(crate) fn digits(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
