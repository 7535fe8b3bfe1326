use database_locks::{Error, locked};

#[locked(ttl = "30 parsecs")]
fn no_unit_of_time() -> Result<(), Error> {
    Ok(())
}

#[locked(timeout = "5")]
async fn no_unit() -> Result<(), Error> {
    Ok(())
}

#[locked(renew_before = 5)]
fn number() -> Result<(), Error> {
    Ok(())
}

#[locked(retry = 0.5)]
fn fraction() -> Result<(), Error> {
    Ok(())
}

#[locked(retry = "sometimes")]
fn no_retry() -> Result<(), Error> {
    Ok(())
}

#[locked(timeout = "infinite")]
fn infinite() -> Result<(), Error> {
    Ok(())
}

#[locked(grace = "18446744073709551615s 1000ms")]
fn too_long() -> Result<(), Error> {
    Ok(())
}

#[locked(margin = true)]
fn truth() -> Result<(), Error> {
    Ok(())
}

fn main() {}
