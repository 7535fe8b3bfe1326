use database_locks::{Error, locked};

#[locked]
const fn constant() -> Result<(), Error> {
    Ok(())
}

#[locked]
unsafe fn dangerous() -> Result<(), Error> {
    Ok(())
}

#[locked]
extern "C" fn foreign() -> Result<(), Error> {
    Ok(())
}

trait Job {
    #[locked]
    async fn run(&self) -> Result<(), Error>;
}

fn main() {}
