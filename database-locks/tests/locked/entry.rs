//! Where programs start: `main` and a command's handler.

use clap::Parser;
use database_locks::memory::MemoryBackend;
use database_locks::{Connect, Error, Locks, blocking, locked};

mod below {
    use super::{Connect, Error, Locks, locked};

    /// Here `#[tokio::main]` makes a plain function of it before `#[locked]` sees it.
    #[tokio::main(flavor = "current_thread")]
    #[locked("main", with = Locks::connect("memory:").await?, lease = lease)]
    pub(super) async fn main() -> Result<String, Error> {
        tokio::task::yield_now().await;
        lease.check()?;
        Ok(lease.name().to_string())
    }

    #[tokio::main]
    #[locked(with = Locks::connect("memory:").await?, lease = lease)]
    pub(super) async fn by_default() -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

mod above {
    use super::{Connect, Error, Locks, locked};

    #[locked("main", with = Locks::connect("memory:").await?, lease = lease)]
    #[tokio::main]
    pub(super) async fn main() -> Result<String, Error> {
        tokio::task::yield_now().await;
        lease.check()?;
        Ok(lease.name().to_string())
    }

    #[locked(with = Locks::connect("memory:").await?, lease = lease)]
    #[tokio::main]
    pub(super) async fn by_default() -> Result<String, Error> {
        Ok(lease.name().to_string())
    }
}

#[test]
fn main_under_tokio_in_both_orders() {
    assert_eq!(below::main().unwrap(), "main");
    assert_eq!(above::main().unwrap(), "main");
    assert_eq!(below::by_default().unwrap(), "locked::entry::below::by_default");
    assert_eq!(above::by_default().unwrap(), "locked::entry::above::by_default");
}

fn open() -> Result<blocking::Locks, Error> {
    Ok(Locks::new(MemoryBackend::new()).into())
}

#[locked(with = open()?, lease = lease)]
fn main() -> anyhow::Result<String> {
    Ok(lease.name().to_string())
}

#[test]
fn a_plain_main() {
    assert_eq!(main().unwrap(), "locked::entry::main");
}

#[tokio::test]
#[locked("test", with = Locks::connect("memory:").await?)]
async fn a_test_under_tokio() -> Result<(), Error> {
    tokio::task::yield_now().await;
    Ok(())
}

#[derive(Parser)]
struct Command {
    #[arg(long)]
    day: u32,
}

#[locked(format!("report-{}", command.day), with = locks, lease = lease)]
async fn handle(locks: &Locks, command: Command) -> Result<String, Error> {
    Ok(format!("{} for {}", lease.name(), command.day))
}

#[locked(format!("report-{}", command.day), with = locks, lease = lease)]
fn handle_plainly(locks: &Locks, command: Command) -> Result<String, Error> {
    Ok(format!("{} for {}", lease.name(), command.day))
}

#[test]
fn the_handler_of_a_command() {
    let command = || Command::parse_from(["report", "--day", "7"]);
    let locks = Locks::new(MemoryBackend::new());
    assert_eq!(handle_plainly(&locks, command()).unwrap(), "report-7 for 7");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(handle(&locks, command())).unwrap(), "report-7 for 7");
}
