//! The compiler speaks of the body as it does without the attribute.

use database_locks::{Error, locked};

struct Failure;

impl From<Error> for Failure {
    fn from(_: Error) -> Self {
        Self
    }
}

#[locked]
async fn mismatch() -> Result<u32, Error> {
    Ok("text")
}

#[locked]
fn mismatch_in_return(flag: bool) -> Result<u32, Error> {
    if flag {
        return Ok("text");
    }
    Ok(1)
}

#[locked]
async fn no_output() -> Result<u32, Error> {
    let _one = 1;
}

#[locked]
async fn unknown_error(text: &str) -> Result<u32, Failure> {
    Ok(text.parse::<u32>()?)
}

#[locked]
async fn immutable(count: u32) -> Result<u32, Error> {
    count += 1;
    Ok(count)
}

fn main() {}
