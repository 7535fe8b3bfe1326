//! The locks of the process: one test, since they are set once a process.

use database_locks::{ErrorKind, Locks, blocking, init, locks};
use database_locks_memory::MemoryBackend;

#[tokio::test]
async fn the_locks_of_the_process_are_set_once() {
    let error = locks().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("call database_locks::init(locks) first"), "{error}");

    let first = Locks::new(MemoryBackend::new());
    init(blocking::Locks::from(first.clone())).unwrap();
    let error = init(Locks::new(MemoryBackend::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("only once"), "{error}");

    let guard = first.lock("nightly").acquire().await.unwrap();
    let refused = locks().unwrap().lock("nightly").try_acquire().await.unwrap();
    assert!(refused.is_none(), "the first ones stay");
    guard.release().await.unwrap();
}
