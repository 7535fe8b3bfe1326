use database_locks::{Error, locked};

#[locked(tll = "30s")]
fn unknown() -> Result<(), Error> {
    Ok(())
}

#[locked("name", ttl = "30s", timeout = "1s", ttl = "20s")]
fn repeated() -> Result<(), Error> {
    Ok(())
}

#[locked(ttl = "30s", "name")]
fn name_behind() -> Result<(), Error> {
    Ok(())
}

#[locked("name", "another")]
fn two_names() -> Result<(), Error> {
    Ok(())
}

#[locked(name = "nightly")]
fn name_as_option() -> Result<(), Error> {
    Ok(())
}

#[locked("name", auto_renew)]
fn no_value() -> Result<(), Error> {
    Ok(())
}

#[locked("name" ttl = "30s")]
fn no_comma() -> Result<(), Error> {
    Ok(())
}

#[locked(lease = "lease")]
fn no_identifier() -> Result<(), Error> {
    Ok(())
}

fn main() {}
