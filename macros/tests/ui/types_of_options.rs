use database_locks::{Error, blocking, locked};

#[locked("name", with = "postgres://localhost/app")]
async fn url() -> Result<(), Error> {
    Ok(())
}

#[locked("name", with = locks)]
async fn blocking_in_async(locks: &blocking::Locks) -> Result<(), Error> {
    Ok(())
}

#[locked("name", with = 1)]
fn number() -> Result<(), Error> {
    Ok(())
}

#[locked(7)]
fn name() -> Result<(), Error> {
    Ok(())
}

fn main() {}
