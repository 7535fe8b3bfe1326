//! Starts a server, prints its port and its folder, and holds it until it is killed: for the tests that nothing is left
//! behind.

use std::io::Write as _;

use anyhow::bail;
use database_locks_test_servers::{Etcd, Galera, MariaDb, MySql, Postgres, Redis, Result, Server};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("postgres") => hold(&[&Postgres::start()?]),
        Some("mariadb") => hold(&[&MariaDb::start()?]),
        Some("mysql") => hold(&[&MySql::start()?]),
        Some("redis") => hold(&[&Redis::start()?]),
        Some("etcd") => hold(&[&Etcd::start()?]),
        Some("galera") => {
            let cluster = Galera::start()?;
            hold(&[cluster.node(0), cluster.node(1), cluster.node(2)])
        }
        _ => bail!("the argument is the server to hold"),
    }
}

/// An empty line ends what is printed.
fn hold(servers: &[&dyn Server]) -> ! {
    for server in servers {
        println!("{} {}", server.port(), server.folder().display());
    }
    println!();
    let _ = std::io::stdout().flush();
    loop {
        std::thread::park();
    }
}
