//! `#[locked]` without `with`: one test, since the locks of a process are set once.

use database_locks::memory::MemoryBackend;
use database_locks::{Error, ErrorKind, Locks, init, locked};

#[locked("nightly", lease = lease)]
async fn asynchronous() -> Result<u64, Error> {
    Ok(lease.token().get())
}

#[locked("nightly", lease = lease)]
fn plain() -> Result<u64, Error> {
    Ok(lease.token().get())
}

#[test]
fn the_locks_of_the_process_are_used_once_they_are_set() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for error in [runtime.block_on(asynchronous()).unwrap_err(), plain().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        let message = error.to_string();
        assert!(message.contains("database_locks::init(locks)"), "{message}");
        assert!(message.contains("#[locked(with = ...)]"), "{message}");
    }

    init(Locks::new(MemoryBackend::new())).unwrap();
    let first = runtime.block_on(asynchronous()).unwrap();
    assert!(plain().unwrap() > first, "one store gives growing tokens");
}
