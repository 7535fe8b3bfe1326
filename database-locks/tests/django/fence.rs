//! A transaction of Django's that is fenced by a lease of ours.

use database_locks::{Connect as _, Guard, Locks, migrate};
use serde_json::{Value, json};

use crate::Kind;
use crate::project::{Project, scripts};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_of_django_is_committed_only_under_a_lease_that_lives() {
    let project = Project::migrated(Kind::Postgres);
    migrate(project.database.url()).await.unwrap();
    project.database.sql("create table work (n int)").unwrap();
    let locks = Locks::connect(project.database.url()).await.unwrap();
    let guard = locks.lock("nightly").acquire().await.unwrap();
    // Outside of a transaction it would protect nothing.
    assert_eq!(work(&project, &guard), json!({ "outside": "25P01", "inside": "committed" }));
    assert!(locks.force_release(guard.lease().id()).await.unwrap());
    assert_eq!(work(&project, &guard), json!({ "outside": "25P01", "inside": "55000" }));
    assert_eq!(project.database.sql("select count(*) from work").unwrap().trim(), "1");
}

fn work(project: &Project, guard: &Guard) -> Value {
    let arguments = [guard.name().as_str().to_owned(), guard.token().to_string()];
    let output = project.python().arg(scripts().join("fence.py")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}
