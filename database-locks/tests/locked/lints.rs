//! The expansion meets no names of the user's, and brings no warnings into the user's code.

#![warn(clippy::pedantic, clippy::nursery, clippy::unwrap_used, clippy::shadow_unrelated)]
#![warn(unused_qualifications, unused_results, let_underscore_drop, single_use_lifetimes)]
#![warn(unreachable_code, unused_mut, unused_parens, unused_braces, elided_lifetimes_in_paths)]

use database_locks as renamed;
use database_locks::memory::MemoryBackend;

type Done<T> = Result<T, database_locks::Error>;

mod shadowed {
    //! All that an expansion could mean by mistake.
    #![allow(
        dead_code,
        unused_macros,
        clippy::missing_const_for_fn,
        reason = "they only stand in the way"
    )]

    use super::{Done, MemoryBackend};

    struct Result;
    struct Option;
    struct Ok;
    struct Err;
    struct Some;
    struct None;
    struct Output;
    struct Locks;
    struct Lease;
    fn request() {}
    fn lease() {}
    fn locks() {}
    fn guard() {}
    fn output() {}
    fn error() {}
    mod core {}
    mod std {}
    mod database_locks {}
    fn lock() {}
    fn run() {}
    macro_rules! module_path {
        () => {
            compile_error!("mine")
        };
    }

    trait Everything {
        fn run(&self) {}
        fn lock(&self) {}
        fn failed(&self) {}
        fn request(&self) {}
    }
    impl<T: ?Sized> Everything for T {}

    pub(super) fn all() -> ::database_locks::Locks {
        ::database_locks::Locks::new(MemoryBackend::new())
    }

    #[::database_locks::locked(with = all(), ttl = "1s")]
    pub(super) async fn asynchronous() -> Done<u8> {
        Done::Ok(1)
    }

    #[::database_locks::locked(with = all(), retry = "never")]
    pub(super) fn plain() -> Done<u8> {
        Done::Ok(1)
    }
}

/// What an expansion calls its own may be an argument's name.
#[renamed::locked("own names", with = locks, crate = renamed)]
async fn own_names(
    locks: &renamed::Locks,
    request: u8,
    output: u8,
    error: u8,
    lease: u8,
) -> Done<u8> {
    tokio::task::yield_now().await;
    Ok(request + output + error + lease)
}

#[renamed::locked("own names", with = locks, lease = request)]
fn own_names_plainly(locks: &renamed::Locks, output: u8, error: u8) -> Done<u8> {
    request.check()?;
    Ok(output + error)
}

#[renamed::locked("diverging", with = locks)]
async fn diverging(locks: &renamed::Locks, by: u8) -> Done<u8> {
    loop {
        tokio::task::yield_now().await;
        if by > 0 {
            return Ok(by);
        }
    }
}

#[renamed::locked("mutable", with = locks)]
fn mutable(locks: &renamed::Locks, mut count: u8, (mut text, _): (String, u8)) -> Done<String> {
    use std::fmt::Write as _;

    while count > 0 {
        count -= 1;
        let _ = write!(text, "{count}");
    }
    Ok(text)
}

macro_rules! job {
    ($name:ident, $lock:expr, $ttl:literal, $timeout:expr, $retry:expr) => {
        #[renamed::locked($lock, with = locks, ttl = $ttl, timeout = $timeout, retry = $retry)]
        async fn $name(locks: &renamed::Locks, request: u8) -> Done<u8> {
            tokio::task::yield_now().await;
            Ok(request)
        }
    };
}

job!(by_macro, "by macro", "30s", "5s", false);

#[tokio::test]
async fn names_of_the_users_are_left_alone() -> Done<()> {
    let locks = shadowed::all();
    assert_eq!(shadowed::asynchronous().await?, 1);
    assert_eq!(own_names(&locks, 1, 2, 3, 4).await?, 10);
    assert_eq!(diverging(&locks, 5).await?, 5);
    assert_eq!(by_macro(&locks, 6).await?, 6);
    Ok(())
}

#[test]
fn names_of_the_users_are_left_alone_in_plain_functions() -> Done<()> {
    let locks = shadowed::all();
    assert_eq!(shadowed::plain()?, 1);
    assert_eq!(own_names_plainly(&locks, 2, 3)?, 5);
    assert_eq!(mutable(&locks, 2, ("x".to_owned(), 0))?, "x10");
    Ok(())
}
