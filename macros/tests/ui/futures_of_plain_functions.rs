use std::future::Future;
use std::pin::Pin;

use database_locks::{Error, locked};

#[locked("name", with = database_locks::Locks::connect("memory:").await?)]
fn awaits() -> Result<(), Error> {
    Ok(())
}

#[locked]
fn returns_future() -> impl Future<Output = Result<(), Error>> {
    std::future::ready(Ok(()))
}

#[locked]
fn returns_box() -> Pin<Box<dyn Future<Output = Result<(), Error>>>> {
    Box::pin(std::future::ready(Ok(())))
}

#[locked("name")]
fn returns_before(skip: bool) -> Pin<Box<dyn Future<Output = Result<(), Error>>>> {
    let returned_inside = || return;
    returned_inside();
    if skip {
        return Box::pin(async { Ok(()) });
    }
    Box::pin(async move { Ok(()) })
}

fn main() {}
