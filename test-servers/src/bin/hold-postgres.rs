//! Starts a Postgres, prints its folder, and holds it until it is killed: for the test that nothing is left behind.

use std::io::Write as _;

use database_locks_test_servers::{Postgres, Result};

fn main() -> Result<()> {
    let server = Postgres::start()?;
    println!("{}", server.socket_dir().display());
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
