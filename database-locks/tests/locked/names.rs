//! The default names, all forms of them.

use database_locks::memory::MemoryBackend;
use database_locks::{Error, Locks, async_trait, locked};

fn locks() -> Locks {
    Locks::new(MemoryBackend::new())
}

/// A function that mentions no `Self` and returns its lock's name.
macro_rules! named {
    (async fn $name:ident) => {
        #[locked(with = locks(), lease = lease)]
        async fn $name() -> Result<String, Error> {
            Ok(lease.name().to_string())
        }
    };
    ($visibility:vis fn $name:ident) => {
        #[locked(with = locks(), lease = lease)]
        $visibility fn $name() -> Result<String, Error> {
            Ok(lease.name().to_string())
        }
    };
}

named!(fn free);
named!(async fn asynchronous);

#[locked(with = locks(), lease = lease)]
fn generic<T, const N: usize>(_: [T; N]) -> Result<String, Error> {
    Ok(lease.name().to_string())
}

#[locked(with = locks(), lease = lease)]
fn r#type(_: impl Sized) -> Result<String, Error> {
    Ok(lease.name().to_string())
}

struct Report;
struct Import;
struct Page<T>(T);
struct Borrowed<'a>(&'a str);

impl Report {
    named!(fn associated);
    named!(async fn associated_async);

    #[locked(with = locks(), lease = lease)]
    fn method(&self) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }

    #[locked(with = locks(), lease = lease)]
    async fn async_method(self: Box<Self>) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }

    #[locked(with = locks(), lease = lease)]
    fn of_self(_: &Self) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

impl Import {
    named!(fn associated);

    #[locked(with = locks(), lease = lease)]
    fn method(&self) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

impl<T> Page<T> {
    named!(fn associated);

    #[locked(with = locks(), lease = lease)]
    async fn method(&self) -> Result<String, Error> {
        let _ = &self.0;
        Ok(lease.name().to_string())
    }
}

impl Borrowed<'_> {
    named!(fn associated);

    #[locked(with = locks(), lease = lease)]
    fn method(&self) -> Result<String, Error> {
        let _ = self.0;
        Ok(lease.name().to_string())
    }
}

trait Job {
    fn of_type() -> Result<String, Error>;

    #[locked(with = locks(), lease = lease)]
    fn of_default_type() -> Result<String, Error> {
        Ok(lease.name().to_string())
    }

    fn run(&self) -> Result<String, Error>;

    #[locked(with = locks(), lease = lease)]
    async fn by_default(&self) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

macro_rules! job {
    ($($for:ty),*) => {
        $(
            impl Job for $for {
                named!(fn of_type);

                #[locked(with = locks(), lease = lease)]
                fn run(&self) -> Result<String, Error> {
                    Ok(lease.name().to_string())
                }
            }
        )*
    };
}

job! { Report, Page<u8>, elsewhere::Report, u32, &Report, Vec<Report>, (u8, Import) }

trait Steps {
    fn nested() -> Result<String, Error>;
}

macro_rules! steps {
    ($($for:ty),*) => {
        $(
            impl Steps for $for {
                fn nested() -> Result<String, Error> {
                    named!(fn inside);
                    inside()
                }
            }
        )*
    };
}

steps! { Report, Import }

#[async_trait]
trait Boxed {
    async fn boxed(&self) -> Result<String, Error>;
    async fn boxed_of_type() -> Result<String, Error>;
}

#[async_trait]
impl Boxed for Report {
    #[locked(with = locks(), lease = lease)]
    async fn boxed(&self) -> Result<String, Error> {
        Ok(lease.name().to_string())
    }

    #[locked(with = locks(), lease = lease)]
    async fn boxed_of_type() -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

mod elsewhere {
    use super::{Error, Import, locked, locks};

    pub(super) struct Report;

    impl Report {
        named!(pub(super) fn associated);
    }

    impl Import {
        named!(pub(super) fn from_elsewhere);

        #[locked(with = locks(), lease = lease)]
        pub(super) fn method_from_elsewhere(&self) -> Result<String, Error> {
            Ok(lease.name().to_string())
        }
    }
}

fn assert_name(name: Result<String, Error>, expected: &str) {
    assert_eq!(name.map_err(|error| error.kind()), Ok(format!("locked::names::{expected}")));
}

async fn assert_async_name(name: impl Future<Output = Result<String, Error>>, expected: &str) {
    assert_name(name.await, expected);
}

#[test]
fn functions() {
    assert_name(free(), "free");
    assert_name(generic([Report]), "generic");
    assert_name(r#type(Report), "type");

    named!(fn nested);
    assert_name(nested(), "functions::nested");
    let inside = || {
        named!(fn nested);
        nested()
    };
    assert_name(inside(), "functions::nested");

    assert_name(
        Report::nested(),
        "<<locked::names::Report as locked::names::Steps>::nested>::inside",
    );
    assert_name(
        Import::nested(),
        "<<locked::names::Import as locked::names::Steps>::nested>::inside",
    );
}

#[test]
fn associated_functions() {
    assert_name(Report::associated(), "Report::associated");
    assert_name(Import::associated(), "Import::associated");
    assert_name(Report::of_self(&Report), "Report::of_self");
    assert_name(Page::<fn(u8) -> Report>::associated(), "Page::associated");
    assert_name(Borrowed::associated(), "Borrowed::associated");
    assert_name(elsewhere::Report::associated(), "elsewhere::Report::associated");
    assert_name(Import::from_elsewhere(), "elsewhere::<locked::names::Import>::from_elsewhere");
}

#[test]
fn methods() {
    assert_name(Report.method(), "Report::method");
    assert_name(Import.method(), "Import::method");
    assert_name(Borrowed("").method(), "Borrowed::method");
    assert_name(
        Import.method_from_elsewhere(),
        "elsewhere::<locked::names::Import>::method_from_elsewhere",
    );
}

#[test]
fn functions_of_traits() {
    assert_name(Report.run(), "Report::run");
    assert_name(Page(1_u8).run(), "Page::run");
    assert_name(elsewhere::Report.run(), "<locked::names::elsewhere::Report>::run");
    assert_name(1_u32.run(), "<u32>::run");
    assert_name(Job::run(&&Report), "<&locked::names::Report>::run");
    assert_name(vec![Report].run(), "<alloc::vec::Vec>::run");
    assert_name((1_u8, Import).run(), "<(u8, locked::names::Import)>::run");

    assert_name(<Report as Job>::of_type(), "Report::of_type");
    assert_name(Page::<u8>::of_type(), "Page::of_type");
    assert_name(elsewhere::Report::of_type(), "<locked::names::elsewhere::Report>::of_type");
    assert_name(u32::of_type(), "<u32>::of_type");
    assert_name(<&Report>::of_type(), "<&locked::names::Report>::of_type");
    assert_name(Vec::<Report>::of_type(), "<alloc::vec::Vec>::of_type");
    assert_name(<(u8, Import)>::of_type(), "<(u8, locked::names::Import)>::of_type");

    assert_name(Report::of_default_type(), "Report::of_default_type");
    assert_name(u32::of_default_type(), "<u32>::of_default_type");
}

#[tokio::test]
async fn async_functions() {
    assert_async_name(asynchronous(), "asynchronous").await;
    assert_async_name(Report::associated_async(), "Report::associated_async").await;
    assert_async_name(Box::new(Report).async_method(), "Report::async_method").await;
    assert_async_name(Page('c').method(), "Page::method").await;
    assert_async_name(Report.by_default(), "Report::by_default").await;
    assert_async_name(Page(1).by_default(), "Page::by_default").await;
    assert_async_name(
        elsewhere::Report.by_default(),
        "<locked::names::elsewhere::Report>::by_default",
    )
    .await;
    assert_async_name(Report.boxed(), "Report::boxed").await;
    assert_async_name(Report::boxed_of_type(), "Report::boxed_of_type").await;
}
