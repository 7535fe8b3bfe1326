//! The manual of `#[locked]`, where its examples can compile.

/// Makes a function one that runs under a lock: it waits for the lock, does its work, and releases
/// the lock however it ends, be it by `return`, `?`, a panic or a dropped future.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> database_locks::Result<()> {
/// use database_locks::{Connect, Error, Locks, locked};
///
/// #[locked("nightly", timeout = "5s", ttl = "30s")]
/// async fn nightly(day: u32) -> Result<u32, Error> {
///     count(day).await
/// }
///
/// # async fn count(day: u32) -> Result<u32, Error> { Ok(day) }
/// # let url = "memory:";
/// database_locks::init(Locks::connect(url).await?)?; // once, at the start of the program
/// assert_eq!(nightly(7).await?, 7);
/// # Ok(()) }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
///
/// That is what one would write by hand as
/// `database_locks::locks()?.lock("nightly")….run(async move |_| count(day).await).await?`, and costs
/// the same. Attributes, generics, lifetimes, `impl Trait`, visibility and documentation of the
/// function are kept; its future is `Send` where it was before.
///
/// # Async and plain functions
///
/// The future of an **async function** drops its work at the next await point once the lease is
/// [lost](crate::Guard::run), and then returns an error. A **plain function** takes the lock by
/// [`blocking`](crate::blocking): its thread waits, and nothing interrupts its work. Give it a
/// `lease`, and [`check`](crate::Lease::check) that before each step that must not overlap with
/// another holder's work. Called on an async worker, a plain function returns an error of kind
/// [`InvalidOption`](crate::ErrorKind::InvalidOption) once its options are evaluated, and does nothing.
///
/// The arguments of the function live in the work, and so end before the lock is released; those
/// that the work does not mention end after it.
///
/// A lock is not re-entrant: a function that calls itself, or another one with the same lock, waits
/// for itself.
///
/// # What the function returns
///
/// A `Result` whose error implements `From<database_locks::Error>`: that one itself,
/// `anyhow::Error`, `Box<dyn Error + Send + Sync>`, or an enum of your own with a variant for it.
/// Aliases of such types are as good. What the function returns by itself it returns as it is.
///
/// # Which lock
///
/// The first argument, without a name, is the **name of the lock**: any expression that is
/// `AsRef<str>`. It sees the function's arguments, as the options' expressions do. Like `with` and
/// `owner` it is only borrowed:
///
/// ```
/// # use database_locks::{Error, Locks, locked};
/// #[locked(format!("account-{account}"), with = locks, owner = teller)]
/// async fn book(locks: &Locks, account: u64, teller: &str) -> Result<(), Error> {
/// #   let _ = teller;
///     // ...
///     Ok(())
/// }
/// ```
///
/// Without it, the name is `module::path::function`, and `module::path::Type::function` for methods
/// and associated functions. In particular:
///
/// - `Type` is the type that is implemented, also in the `impl` of a trait, and in a trait's own
///   default body the type that it is called on. It stands without generic arguments: `Page<u8>`
///   and `Page<u16>` share a lock, as do functions of one name in two `impl`s of one type.
/// - A type of another module than the function's is written with its path,
///   `module::path::<other::path::Type>::function`, so that two types of one name do not meet.
/// - A function inside a function is `module::path::outer::function`, also where it stands in one of
///   several blocks. What is around it is written in angle brackets if it lies deeper, as in
///   `module::path::<module::path::Type::outer>::function`.
///
/// The module is `module_path!()`, which starts with the crate's name. The type is taken from
/// [`std::any::type_name`], whose output Rust does not promise to keep from version to version,
/// though it has long been kept. So **name the lock** where differently built programs have to
/// exclude each other, and where the function may be renamed or moved one day. A default name of
/// more than 255 bytes is the error that any such name is.
///
/// # Options
///
/// Each is given once, in any order, as `option = value`. They are evaluated when the function is
/// called, before the lock is asked for, in the order in which they are written, though `with` and
/// the name come first. In an async function they may `.await`, and in all they may use `?`.
///
/// A duration is a text such as `"250ms"`, `"30s"` or `"1m30s"`, checked when the function is
/// compiled, or an expression of type [`Duration`](std::time::Duration).
///
/// | option | value | default |
/// |---|---|---|
/// | `with` | the [`Locks`](crate::Locks) to use, or a reference, an `Arc` or a `LazyLock` of them; in plain functions [`blocking::Locks`](crate::blocking::Locks) too | [`locks()`](crate::locks()), which [`init`](crate::init) has set |
/// | `lease` | a name for the [`Lease`](crate::Lease) in the body, for `lease.check()` and `lease.token()` | none |
/// | `timeout` | a duration: [waits](crate::LockRequest::timeout) no longer for the lock | waits for as long as it takes |
/// | `ttl` | a duration of 100 ms to 24 h, `"infinite"` or `"none"`, or what [`ttl`](crate::LockRequest::ttl) takes | that of the locks, 10 s |
/// | `renew_before` | a duration: renews [at the latest](crate::LockRequest::renew_before) so long before expiry | that of the locks, 2 s or half the TTL |
/// | `auto_renew` | a `bool`: whether the lease is [renewed](crate::LockRequest::auto_renew) | `true` |
/// | `owner` | an `AsRef<str>`: an [explicit owner](crate::LockRequest::owner), whose calls do not exclude each other | none: every call excludes every other |
/// | `retry` | a duration to [ask again](crate::Retry) after, `"never"` or `false`, `"adaptive"` or `true`, or a [`Retry`](crate::Retry) | `"adaptive"` |
/// | `grace` | a duration: [respects](crate::LockRequest::grace) an expired lease for so long | that of the locks, 0 s |
/// | `margin` | a duration: [gives up](crate::LockRequest::margin) so long before the server's expiry | a fiftieth of the TTL, 5 ms to 1 s |
/// | `on_wait` | a callback `FnMut(&Busy)`: [the lock is busy](crate::LockRequest::on_wait) | none |
/// | `on_lost` | a callback `FnOnce(LossReason)`: [the lease is lost](crate::LockRequest::on_lost) | none |
/// | `crate` | a path under which this crate is found | `::database_locks` |
///
/// # Methods and traits
///
/// Methods of types, of traits' `impl`s and default bodies of traits take the attribute; a method
/// without a body does not. Native `async fn`s of traits are as good as those under
/// `#[async_trait]`.
///
/// ```
/// use database_locks::{Error, Locks, async_trait, locked};
///
/// struct Report {
///     locks: Locks,
///     pages: Vec<String>,
/// }
///
/// impl Report {
///     #[locked("report", with = self.locks, lease = lease)]
///     fn print(&mut self, page: &str) -> Result<u64, Error> {
///         lease.check()?;
///         self.pages.push(page.to_owned());
///         Ok(lease.token().get())
///     }
/// }
///
/// #[async_trait]
/// trait Job {
///     async fn run(&self) -> Result<(), Error>;
/// }
///
/// #[async_trait]
/// impl Job for Report {
///     #[locked(with = self.locks, ttl = "1m")]
///     async fn run(&self) -> Result<(), Error> {
///         Ok(())
///     }
/// }
/// ```
///
/// # `main` and other attributes
///
/// `main` and tests under `#[tokio::main]` and `#[tokio::test]` take the attribute above or below
/// that one, and `with` can connect:
///
/// ```
/// # #[cfg(feature = "memory")] mod program {
/// use database_locks::{Connect, Error, Locks, locked};
///
/// #[tokio::main(flavor = "current_thread")]
/// #[locked("nightly", with = Locks::connect("memory:").await?, timeout = "5s")]
/// # pub
/// async fn main() -> Result<(), Error> {
///     println!("one of us works");
///     Ok(())
/// }
/// # }
/// # #[cfg(feature = "memory")] fn main() { program::main().unwrap() }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
///
/// Other attributes that make a plain function of an async one belong below `#[locked]`, so that it
/// sees the function first: a plain function that ends in a `block_on(..)` is refused, since its work could not be stopped where
/// the lock is lost. A plain function that ends in `async move { .. }` or
/// `Box::pin(async move { .. })` and returns that future is treated as an async one: the lock is held
/// while that block runs, and there may be no `return` before it. Of several `#[locked]` on one
/// function, the lowest one's lock is taken first.
///
/// `const`, `unsafe` and `extern` functions are refused, and so are types and whole `impl`s.
///
/// # Errors
///
/// The function returns, made into its own error,
///
/// - those of [`acquire`](crate::LockRequest::acquire), before any of its work is done:
///   [`Timeout`](crate::ErrorKind::Timeout), [`Unavailable`](crate::ErrorKind::Unavailable),
///   [`InvalidName`](crate::ErrorKind::InvalidName),
///   [`InvalidOption`](crate::ErrorKind::InvalidOption) and others;
/// - [`Lost`](crate::ErrorKind::Lost) if the lease was lost before the work was done. What the work
///   returned, if it did, is dropped then;
/// - [`InvalidOption`](crate::ErrorKind::InvalidOption) if there is no `with` and
///   [`init`](crate::init) was not called.
///
/// # Cancel safety
///
/// Dropping the future of an async function drops its work, or its place in the queue, and releases
/// the lock soon after. Whether the work itself may be cut off is up to it.
pub use database_locks_macros::locked;
