use database_locks::locked;

#[derive(Debug)]
enum Failure {
    Own,
}

#[locked]
async fn own() -> Result<u32, Failure> {
    Err(Failure::Own)
}

#[locked]
fn text() -> Result<u32, String> {
    Err("no".to_owned())
}

#[locked]
async fn generic<E>() -> Result<u32, E> {
    Ok(1)
}

fn main() {}
