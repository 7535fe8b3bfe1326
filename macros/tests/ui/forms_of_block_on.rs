//! Attributes that make a plain function of an async one in a form that is not known.

use std::future::Future;

use database_locks::{Error, locked};

struct Runtime;

impl Runtime {
    fn block_on<F: Future>(&self, _: F) -> F::Output {
        unimplemented!()
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    Runtime.block_on(future)
}

/// As tokio's attributes may write it one day.
#[locked]
fn another_name() -> Result<u32, Error> {
    let future = async { Ok(1) };
    {
        return Runtime.block_on(future);
    }
}

/// What is done beside the future has to be under the lock, too.
#[locked]
fn something_beside() -> Result<u32, Error> {
    let body = async { Ok(1) };
    another_name()?;
    {
        return Runtime.block_on(body);
    }
}

/// As the attributes of other runtimes write it.
#[locked]
fn by_a_function() -> Result<u32, Error> {
    async fn by_a_function() -> Result<u32, Error> {
        Ok(1)
    }
    crate::block_on(async { by_a_function().await })
}

#[locked]
fn by_hand() -> Result<u32, Error> {
    Runtime.block_on(async { Ok(1) }).map(|one: u32| one + 1)
}

/// The work goes on after it.
#[locked]
fn in_the_middle() -> Result<u32, Error> {
    let one = Runtime.block_on(async { 1 });
    Ok(one)
}

fn main() {}
