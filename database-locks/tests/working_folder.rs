//! A test that changes the working folder, and so is alone in its process.

use std::sync::Arc;

use database_locks::memory::MemoryBackend;
use database_locks::{Locks, StatusFile};

#[tokio::test]
async fn a_later_change_of_the_working_folder_does_not_move_the_status_file() {
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(folder.path()).unwrap();
    let store = Arc::new(MemoryBackend::new());
    let locks = Locks::builder()
        .observer(StatusFile::open("status").unwrap())
        .build(store.clone())
        .unwrap();
    std::env::set_current_dir("/").unwrap();
    // The same file under another name: what one of them holds, both show.
    let path = folder.path().join("status");
    let others = Locks::builder().observer(StatusFile::open(&path).unwrap()).build(store).unwrap();
    let _held = others.lock("x").acquire().await.unwrap();
    locks.shutdown().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
    others.shutdown().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "0");
}
