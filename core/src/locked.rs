//! What functions under the attribute `#[locked]` of `database-locks` are made of. Public only for
//! its expansions, and changed without notice. Here, and not beside the attribute, since only the crate of [`Locks`] may say
//! both what these are and what dereferences to them.

use std::ops::Deref;

use crate::blocking;
use crate::error::Error;
use crate::locks::Locks;
use crate::locks::request::LockRequest;

/// What a function under `#[locked]` returns: a `Result` whose error can be made of an
/// [`Error`](crate::Error), so that the caller learns that the lock was not obtained, or lost.
///
/// `database_locks::Error` itself is one, and so are `anyhow::Error`,
/// `Box<dyn Error + Send + Sync>`, and an enum of your own with a variant of `#[from]`.
#[diagnostic::on_unimplemented(
    message = "a `#[locked]` function has to return a `Result` whose error can hold `database_locks::Error`",
    label = "the lock may not be obtained, or be lost, and this cannot say so",
    note = "return `Result<.., database_locks::Error>`, `anyhow::Result<..>`, or a `Result` whose error implements `From<database_locks::Error>`"
)]
pub trait Output {
    /// What is returned if the lock is not obtained, or is lost.
    fn failed(error: Error) -> Self;
}

#[diagnostic::do_not_recommend]
impl<T, E: From<Error>> Output for Result<T, E> {
    fn failed(error: Error) -> Self {
        Err(error.into())
    }
}

/// What `with = ...` takes in an async function.
#[diagnostic::on_unimplemented(
    message = "`with` takes `database_locks::Locks`, not `{Self}`",
    label = "these are no `Locks`",
    note = "give `Locks`, or what dereferences to them; plain functions take `database_locks::blocking::Locks` too"
)]
pub trait AsyncLocks {
    /// As [`Locks::lock`].
    fn request(&self, name: &str) -> LockRequest;
}

impl AsyncLocks for Locks {
    fn request(&self, name: &str) -> LockRequest {
        self.lock(name)
    }
}

#[diagnostic::do_not_recommend]
impl<L: Deref<Target: AsyncLocks> + ?Sized> AsyncLocks for L {
    fn request(&self, name: &str) -> LockRequest {
        (**self).request(name)
    }
}

/// What `with = ...` takes in a plain function.
#[diagnostic::on_unimplemented(
    message = "`with` takes `database_locks::blocking::Locks` or `database_locks::Locks`, not `{Self}`",
    label = "these are no `Locks`",
    note = "give `Locks`, or what dereferences to them"
)]
pub trait BlockingLocks {
    /// As [`blocking::Locks::lock`].
    fn request(&self, name: &str) -> blocking::LockRequest;
}

impl BlockingLocks for blocking::Locks {
    fn request(&self, name: &str) -> blocking::LockRequest {
        self.lock(name)
    }
}

impl BlockingLocks for Locks {
    fn request(&self, name: &str) -> blocking::LockRequest {
        self.lock(name).into()
    }
}

#[diagnostic::do_not_recommend]
impl<L: Deref<Target: BlockingLocks> + ?Sized> BlockingLocks for L {
    fn request(&self, name: &str) -> blocking::LockRequest {
        (**self).request(name)
    }
}

/// The request of an async function.
pub fn lock(locks: &impl AsyncLocks, name: &(impl AsRef<str> + ?Sized)) -> LockRequest {
    locks.request(name.as_ref())
}

/// The request of a plain function.
pub fn lock_blocking(
    locks: &impl BlockingLocks,
    name: &(impl AsRef<str> + ?Sized),
) -> blocking::LockRequest {
    locks.request(name.as_ref())
}

/// The default name of a function of which it is known that `Self` exists in it:
/// `module::path::Type::function`.
///
/// `module` is `module_path!()`, and `of_self` what [`std::any::type_name`] says of `Self`. Of the
/// latter no more is relied on than that it is a path that ends in the type's name, and that what is
/// in angle brackets behind a name is not of it.
///
/// A type of another module is named with its whole path in angle brackets, since two of these may
/// have one name.
#[must_use]
pub fn method_name(module: &str, of_self: &str, function: &str) -> String {
    let path = without_generics(of_self);
    match path.rsplit_once("::") {
        Some((parent, name)) if parent == module => format!("{module}::{name}::{function}"),
        _ => format!("{module}::<{path}>::{function}"),
    }
}

/// The default name of any other function: `module::path::function`, or as [`method_name`] says if
/// it turns out to belong to a type.
///
/// `inside` is what [`std::any::type_name`] says of a closure inside the function. That is where a
/// function that does not mention `Self` shows whether it has one, in one of the forms
/// `module::function`, `module::Type::function`, `<Type as Trait>::function`,
/// `module::<impl Type>::function` and `module::<impl Trait for Type>::function`, with `{{closure}}`
/// behind. In a form that is none of these, it counts as belonging to no type.
#[must_use]
pub fn function_name(module: &str, function: &str, inside: &str) -> String {
    match owner(inside) {
        Some(owner) if without_generics(owner) != module => method_name(module, owner, function),
        _ => format!("{module}::{function}"),
    }
}

/// What a function belongs to: its module, its type or the function that it is nested in.
fn owner(inside: &str) -> Option<&str> {
    let (owner, _function) = split_last(without_closures(inside))?;
    let last = split_last(owner).map_or(owner, |(_, last)| last);
    let Some(quoted) = last.strip_prefix('<').and_then(|last| last.strip_suffix('>')) else {
        return Some(without_closures(owner));
    };
    Some(match quoted.strip_prefix("impl ") {
        Some(implementation) => {
            find_outside(implementation, " for ").map_or(implementation, |(_, of)| of)
        }
        None => find_outside(quoted, " as ").map_or(quoted, |(of, _)| of),
    })
}

fn without_closures(mut path: &str) -> &str {
    while let Some((rest, last)) = split_last(path)
        && last.starts_with('{')
    {
        path = rest;
    }
    path
}

/// A path without its last segment, and that segment.
fn split_last(path: &str) -> Option<(&str, &str)> {
    let mut split = None;
    let mut rest = path;
    while let Some((_, behind)) = find_outside(rest, "::") {
        split = Some((&path[..path.len() - behind.len() - 2], behind));
        rest = behind;
    }
    split
}

/// What is before and behind the first `separator` that is outside of all brackets.
fn find_outside<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let depths = depths(text);
    text.match_indices(separator)
        .find(|(at, _)| depths[*at] == 0)
        .map(|(at, _)| (&text[..at], &text[at + separator.len()..]))
}

/// A path without generic arguments, which stand behind a name. Brackets elsewhere are around a type
/// that is part of the path, and stay.
fn without_generics(path: &str) -> String {
    let mut without = String::new();
    let mut brackets = Vec::new();
    let mut before = None;
    for c in path.chars() {
        if c == '<' {
            brackets.push(before.is_some_and(|c: char| c.is_alphanumeric() || c == '_'));
        }
        if !brackets.contains(&true) {
            without.push(c);
        }
        if c == '>' && before != Some('-') {
            brackets.pop();
        }
        before = Some(c);
    }
    without
}

/// How deep in angle brackets each byte of `path` is, opening brackets included. The arrow of a
/// function's type closes none.
fn depths(path: &str) -> Vec<usize> {
    let mut depth = 0_usize;
    let mut before = 0;
    path.bytes()
        .map(|byte| {
            match byte {
                b'<' => depth += 1,
                b'>' if before != b'-' => depth = depth.saturating_sub(1),
                _ => {}
            }
            before = byte;
            depth
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_by_module_type_and_function() {
        for (of_self, name) in [
            ("app::jobs::Report", "app::jobs::Report::run"),
            ("app::jobs::Report<alloc::vec::Vec<app::A>>", "app::jobs::Report::run"),
            ("app::jobs::Report<fn(u8) -> app::A>", "app::jobs::Report::run"),
            ("app::jobs::Report<'_>", "app::jobs::Report::run"),
            ("app::other::Report", "app::jobs::<app::other::Report>::run"),
            ("app::jobs::main::Report", "app::jobs::<app::jobs::main::Report>::run"),
            ("alloc::vec::Vec<app::jobs::Report>", "app::jobs::<alloc::vec::Vec>::run"),
            ("&app::jobs::Report", "app::jobs::<&app::jobs::Report>::run"),
            ("fn(u8) -> app::A<u8>", "app::jobs::<fn(u8) -> app::A>::run"),
            ("u32", "app::jobs::<u32>::run"),
        ] {
            assert_eq!(method_name("app::jobs", of_self, "run"), name, "{of_self}");
        }
    }

    #[test]
    fn functions_are_named_by_what_they_belong_to() {
        for (inside, name) in [
            ("app::jobs::run::{{closure}}", "app::jobs::run"),
            ("app::jobs::run::{{closure}}::{{closure}}", "app::jobs::run"),
            ("app::jobs::run<app::A, 3>::{{closure}}", "app::jobs::run"),
            ("app::jobs::outer::run::{{closure}}", "app::jobs::outer::run"),
            ("app::jobs::outer::{{closure}}::run::{{closure}}", "app::jobs::outer::run"),
            ("app::jobs::Report::run::{{closure}}", "app::jobs::Report::run"),
            ("app::jobs::Report<fn(u8) -> app::A>::run<u8>::{{closure}}", "app::jobs::Report::run"),
            ("<app::jobs::Report as app::jobs::Job>::run::{{closure}}", "app::jobs::Report::run"),
            ("<app::jobs::Report<<A as B>::C> as D>::run::{{closure}}", "app::jobs::Report::run"),
            (
                "app::jobs::<impl app::a::Report>::run::{{closure}}",
                "app::jobs::<app::a::Report>::run",
            ),
            (
                "app::jobs::<impl app::Job<app::X> for app::a::Report<u8>>::run::{{closure}}",
                "app::jobs::<app::a::Report>::run",
            ),
            ("app::jobs::_::<impl app::jobs::Report>::run::{{closure}}", "app::jobs::Report::run"),
            ("<(u8, app::A) as app::Job>::run::{{closure}}", "app::jobs::<(u8, app::A)>::run"),
            (
                "app::jobs::Report<u8>::outer::run::{{closure}}",
                "app::jobs::<app::jobs::Report::outer>::run",
            ),
            (
                "<app::jobs::Report<u8> as app::Job<u8>>::outer::run::{{closure}}",
                "app::jobs::<<app::jobs::Report as app::Job>::outer>::run",
            ),
            (
                "app::jobs::<impl app::a::Report<u8>>::outer::run::{{closure}}",
                "app::jobs::<app::jobs::<impl app::a::Report>::outer>::run",
            ),
            ("something else", "app::jobs::run"),
            ("", "app::jobs::run"),
            ("<<<", "app::jobs::run"),
        ] {
            assert_eq!(function_name("app::jobs", "run", inside), name, "{inside}");
        }
    }
}
