//! The backend as its users see it, in one process.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use database_locks_core::{
    Claim, ErrorKind, LeaseId, LockBackend, LockName, Release, Released, Ttl, Verdict,
};
use database_locks_sqlite::{SqliteBackend, SqliteConfig};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Barrier;

fn claim(name: &str) -> Claim {
    Claim::new(LockName::new(name).unwrap()).with_ttl(Ttl::new(Duration::from_mins(1)).unwrap())
}

async fn acquire(backend: &SqliteBackend, claim: &Claim) -> Verdict {
    backend.acquire(std::slice::from_ref(claim)).await.unwrap().remove(0)
}

async fn open(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hundred_tasks_on_two_backends_never_overlap_and_never_see_a_locked_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locks.db");
    let backends = [
        Arc::new(SqliteBackend::connect(path.clone()).await.unwrap()),
        Arc::new(SqliteBackend::connect(path).await.unwrap()),
    ];
    let inside = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..100)
        .map(|i| {
            let (backend, inside) = (Arc::clone(&backends[i % 2]), Arc::clone(&inside));
            tokio::spawn(async move {
                let claim = claim("one");
                let token = loop {
                    match acquire(&backend, &claim).await {
                        Verdict::Granted(token) => break token,
                        _ => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                let lease = claim.lease(token);
                assert_eq!(
                    backend.release(&[Release::free(lease)]).await.unwrap(),
                    [Released::Done]
                );
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn file_is_put_into_wal_mode_while_others_look_at_it_all_the_time() {
    for round in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.db");
        fs::write(&path, "").unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let ready = Arc::new(Barrier::new(5));
        let watchers: Vec<_> = (0..4)
            .map(|_| {
                let (path, done) = (path.clone(), Arc::clone(&done));
                let ready = Arc::clone(&ready);
                tokio::spawn(async move {
                    let mut watcher = open(&path).await;
                    ready.wait().await;
                    while !done.load(Ordering::SeqCst) {
                        sqlx::raw_sql("SELECT count(*) FROM sqlite_schema")
                            .execute(&mut watcher)
                            .await
                            .unwrap();
                    }
                })
            })
            .collect();
        ready.wait().await;
        let connects: Vec<_> =
            (0..4).map(|_| tokio::spawn(SqliteBackend::connect(path.clone()))).collect();
        let mut results = Vec::new();
        for connect in connects {
            results.push(connect.await.unwrap());
        }
        done.store(true, Ordering::SeqCst);
        for watcher in watchers {
            watcher.await.unwrap();
        }
        for result in results {
            result.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        assert_eq!(fs::read(&path).unwrap()[18..20], [2, 2], "not in WAL mode");
    }
}

#[tokio::test]
async fn places_that_cannot_serve_are_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("text"), "This is no database, though it is longer than a header. ".repeat(20))
        .unwrap();
    fs::write(at("linked"), "").unwrap();
    fs::hard_link(at("linked"), at("link")).unwrap();
    for (path, kind, word) in [
        (at("missing/locks.db"), ErrorKind::InvalidOption, "create it"),
        (folder.path().to_owned(), ErrorKind::InvalidOption, "name a file in it"),
        (at("text"), ErrorKind::InvalidOption, "not a database"),
        (at("link"), ErrorKind::Unsupported, "hard links"),
    ] {
        let error = SqliteBackend::connect(path.clone()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!((error.backend(), error.operation()), (Some("sqlite"), Some("connect")));
    }
    let text = fs::read_to_string(at("text")).unwrap();
    assert!(text.starts_with("This is"), "a file that is no database was written to");
}

#[tokio::test]
async fn file_that_stays_locked_is_unavailable_and_then_serves_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locks.db");
    let config = SqliteConfig::new(&path).with_busy_timeout(Duration::from_millis(50));
    let backend = SqliteBackend::connect(config).await.unwrap();
    let mut other = open(&path).await;
    let writing = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = backend.acquire(&[claim("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    writing.rollback().await.unwrap();
    assert!(matches!(acquire(&backend, &claim("a")).await, Verdict::Granted(_)));
}

#[tokio::test]
async fn dropped_tables_are_an_error_once_and_then_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locks.db");
    let backend = SqliteBackend::connect(path.clone()).await.unwrap();
    let mut other = open(&path).await;
    sqlx::raw_sql("DROP TABLE database_locks_lock; DROP TABLE database_locks_lock_lease")
        .execute(&mut other)
        .await
        .unwrap();
    let error = backend.acquire(&[claim("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated);
    backend.migrate().await.unwrap();
    assert!(matches!(acquire(&backend, &claim("a")).await, Verdict::Granted(_)));
}

#[tokio::test]
async fn tables_of_somebody_else_are_not_migrated_and_other_names_are_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let mut app =
        SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap();
    sqlx::raw_sql("CREATE TABLE database_locks_lock (id INTEGER PRIMARY KEY, locked_by TEXT)")
        .execute(&mut app)
        .await
        .unwrap();
    let theirs = SqliteBackend::connect(path.clone()).await.unwrap();
    let error = theirs.acquire(&[claim("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMigrated);
    assert!(error.to_string().contains("?table="), "{error}");

    let url = format!("sqlite:{}?table=Own", path.display());
    let own = SqliteBackend::connect(SqliteConfig::from_url(&url).unwrap()).await.unwrap();
    assert!(matches!(acquire(&own, &claim("a")).await, Verdict::Granted(_)));
    let url = format!("sqlite:{}?table=other", path.display());
    let other = SqliteBackend::connect(SqliteConfig::from_url(&url).unwrap()).await.unwrap();
    assert!(matches!(acquire(&other, &claim("a")).await, Verdict::Granted(_)));
}

#[tokio::test]
async fn more_items_than_a_statement_takes_are_decided_in_one_batch() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::connect(folder.path().join("locks.db")).await.unwrap();
    let claims: Vec<Claim> = (0..4_000).map(|i| claim(&format!("lock {i}"))).collect();
    let verdicts = backend.acquire(&claims).await.unwrap();
    let leases: Vec<LeaseId> = claims
        .iter()
        .zip(verdicts)
        .map(|(claim, verdict)| match verdict {
            Verdict::Granted(token) => claim.lease(token),
            other => panic!("{other:?}"),
        })
        .collect();
    let released = backend.release(&Release::free_all(&leases)).await.unwrap();
    assert!(released.iter().all(|answer| *answer == Released::Done));
    assert_eq!(released.len(), 4_000);
}
