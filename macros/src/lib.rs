//! The attribute `#[locked]` of the crate `database-locks`, which re-exports and documents it.

mod default_name;
mod expand;
mod function;
mod options;
#[cfg(test)]
mod snapshots;

use proc_macro::TokenStream;

/// Runs a function under a lock: see `database_locks::locked`, which this is.
#[proc_macro_attribute]
pub fn locked(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(options.into(), item.into()).into()
}
