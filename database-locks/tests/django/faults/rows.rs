//! What the rows of the table do: their locks, how they come into being, and what their names are.

use std::time::Duration;

use database_locks::{Connect as _, ErrorKind, Locks};
use mysql_async::prelude::Queryable as _;
use serde_json::json;
use tokio_postgres::NoTls;

use super::{LONG, NAME, Scene, project, release, run};
use crate::Kind;
use crate::project::PATIENCE;

impl Scene {
    /// A plain connection, of Postgres.
    async fn client(&self) -> tokio_postgres::Client {
        let url = self.project.database.url();
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_does_not_wait_behind_a_row_lock() {
    let scene = Scene::after("row_lock", Kind::Postgres).await;
    assert_eq!(scene.seen, json!({ "row": "was waited for", "outcome": "entered" }));

    scene.another_has_it_soon().await;
    let mut client = scene.client().await;
    let transaction = client.transaction().await.unwrap();
    let lock_row = "select from database_locks_lock where name = 'ours' for update";
    assert_eq!(transaction.execute(lock_row, &[]).await.unwrap(), 1);

    // The transaction stays open all the while, and the database has long to answer.
    let options = Locks::builder().request_timeout(LONG);
    let patient = Locks::connect_with(scene.project.database.url(), options).await.unwrap();
    let tried = tokio::time::timeout(PATIENCE, patient.lock(NAME).try_acquire()).await;
    assert!(tried.expect("it must not wait").unwrap().is_none());
    let request = scene.here.lock(NAME).timeout(Duration::from_millis(100));
    assert_eq!(request.acquire().await.unwrap_err().kind(), ErrorKind::Timeout);
    release(scene.here.lock("another").try_acquire().await.unwrap()).await;

    transaction.rollback().await.unwrap();
    scene.another_has_it_soon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_changes_under_repeatable_read_is_no_error() {
    let project = project(Kind::Postgres);
    let isolation = format!(
        "alter database {} set default_transaction_isolation = 'repeatable read'",
        project.database.database_name()
    );
    project.database.sql(&isolation).unwrap();
    let seen = run("row_changed", &[], &project);
    assert_eq!(
        seen,
        json!({
            "row": "was waited for",
            "outcome": "OperationalError: could not serialize access due to concurrent update",
        })
    );

    let scene = Scene::adopt(project, seen).await;
    scene.another_has_it_soon().await;
    let mut client = scene.client().await;
    let transaction = client.transaction().await.unwrap();
    let change = "update database_locks_lock set expires_at = null where name = 'ours'";
    assert_eq!(transaction.execute(change, &[]).await.unwrap(), 1);
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let request = scene.here.lock(NAME).timeout(PATIENCE).on_wait(move |_| {
        let _ = told.send(());
    });
    let asking = tokio::spawn(request.acquire());
    waits.recv().await.unwrap();
    transaction.commit().await.unwrap();
    release(asking.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_creation_deadlocks_nobody_on_mysql() {
    first_creation_deadlocks_nobody(Kind::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_creation_deadlocks_nobody_on_mariadb() {
    first_creation_deadlocks_nobody(Kind::MariaDb).await;
}

async fn first_creation_deadlocks_nobody(kind: Kind) {
    let scene = Scene::after("first_creation", kind).await;
    let deadlock = "OperationalError: (1213, 'Deadlock found when trying to get lock; \
                    try restarting transaction')";
    assert_eq!(
        scene.seen,
        json!({
            "read committed": ["granted", "refused"],
            "repeatable read": [deadlock, "granted"],
        })
    );

    // Both of our clients come to where they create the row, held up there by a third who has looked
    // as those of the script have.
    let pool = mysql_async::Pool::new(scene.project.database.url());
    let mut third = pool.get_conn().await.unwrap();
    let look = format!(
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION; \
         SELECT name FROM database_locks_lock WHERE name = '{NAME}' FOR UPDATE"
    );
    third.query_drop(look).await.unwrap();

    let take = async |locks: &Locks| {
        let guard = locks.lock(NAME).ttl(LONG).timeout(PATIENCE).acquire().await.unwrap();
        let token = guard.token();
        guard.release().await.unwrap();
        token
    };
    let unblock = async {
        let mut observer = pool.get_conn().await.unwrap();
        let waiting = format!(
            "SELECT COUNT(*) FROM information_schema.innodb_trx t \
             JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id \
             WHERE p.db = '{}' AND t.trx_state = 'LOCK WAIT'",
            scene.project.database.database_name()
        );
        let both_wait = async {
            let mut seen = None;
            while seen != Some(2) {
                // InnoDB shows the same as before to whoever asks again within 100 ms.
                tokio::time::sleep(Duration::from_millis(150)).await;
                seen = observer.query_first::<u32, _>(&waiting).await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, both_wait).await.expect("both have to come to the row");
        third.query_drop("ROLLBACK").await.unwrap();
    };
    let (one, another, ()) = tokio::join!(take(&scene.here), take(&scene.there), unblock);
    assert_ne!(one, another, "each has a lease of its own, one after the other");
    drop(third);
    pool.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_creation_has_one_winner_on_postgres() {
    let scene = Scene::after("first_creation", Kind::Postgres).await;
    let race = ["granted", "refused"];
    assert_eq!(scene.seen, json!({ "read committed": race, "repeatable read": race }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_one_lock_only_if_their_bytes_are_equal_on_postgres() {
    names_are_compared_by_their_bytes(Kind::Postgres, [false, false, false]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_one_lock_only_if_their_bytes_are_equal_on_mysql() {
    // Its collations pad with spaces no more, unlike those of older versions.
    names_are_compared_by_their_bytes(Kind::MySql, [true, false, true]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_one_lock_only_if_their_bytes_are_equal_on_mariadb() {
    names_are_compared_by_their_bytes(Kind::MariaDb, [true, true, true]).await;
}

/// `are_one_there` tells of each of the others whether it is one lock with `Job` for Django.
async fn names_are_compared_by_their_bytes(kind: Kind, are_one_there: [bool; 3]) {
    let others = ["job", "job ", "j\u{f3}b"];
    let scene = Scene::after("names", kind).await;
    assert_eq!(scene.seen["Job"], "refused");
    for (other, is_one) in others.into_iter().zip(are_one_there) {
        assert_eq!(scene.seen[other], if is_one { "refused" } else { "granted" }, "{other:?}");
    }

    let mut guards = Vec::new();
    for name in ["Ours", "ours", "ours ", "\u{f3}urs"] {
        let guard = scene.here.lock(name).try_acquire().await.unwrap();
        guards.push(guard.unwrap_or_else(|| panic!("{name:?} is a lock of its own")));
        assert!(scene.there.lock(name).try_acquire().await.unwrap().is_none(), "{name:?}");
    }
    release(guards).await;
}
