use database_locks::locked;

#[locked]
async fn nothing() {}

#[locked]
fn nothing_plainly() {}

#[locked]
async fn unit() -> () {}

#[locked]
fn never() -> ! {
    loop {}
}

#[locked]
async fn hidden() -> impl Iterator<Item = u8> {
    std::iter::empty()
}

fn main() {}
