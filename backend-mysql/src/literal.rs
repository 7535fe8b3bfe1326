//! Values as literals that need no escaping, whatever the session's settings are.

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
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        digits.push(char::from(DIGITS[usize::from(byte >> 4)]));
        digits.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    digits
}
