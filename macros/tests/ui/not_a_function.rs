use database_locks::locked;

#[locked]
struct Report;

#[locked("report")]
impl Report {}

#[locked]
trait Job {}

#[locked]
const DAYS: u32 = 7;

#[locked]
mod reports {}

fn main() {
    let _ = Report;
}
