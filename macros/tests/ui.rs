//! What the compiler says of each wrong use: `ui/NAME.rs` and, of the declared Rust version,
//! `ui/NAME.stderr`.
//!
//! `TRYBUILD=overwrite cargo test -p database-locks-macros --test ui` writes the latter anew.

#[test]
fn wrong_uses_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
