use database_locks::locked;

type Unit = ();

#[locked]
async fn number() -> u32 {
    1
}

#[locked]
fn number_plainly() -> u32 {
    1
}

#[locked("alias")]
fn alias() -> Unit {}

#[locked]
fn option() -> Option<Vec<u8>> {
    None
}

fn main() {}
