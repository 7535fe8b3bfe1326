//! The table that Django made, once it is ours as well.

use database_locks::{Connect, Locks, migrate};
use serde_json::json;

use crate::project::Project;
use crate::{Kind, on_each_server};

on_each_server!(django_goes_on_with_the_table_that_it_made);

async fn django_goes_on_with_the_table_that_it_made(kind: Kind) {
    let project = Project::migrated(kind);
    let mut django = project.worker();
    // A renewal that is late takes the lock again after it was left.
    let once = json!({"auto_renew": false, "lock_ttl": 1000, "retry": null});
    django.enter("before", once.clone()).unwrap();
    django.enter("free", once.clone()).unwrap();
    django.exit("free").unwrap();
    let rows = django.ask(&json!({"do": "rows"})).unwrap();

    for _ in 0..2 {
        migrate(project.database.url()).await.unwrap();
        assert_eq!(django.ask(&json!({"do": "rows"})).unwrap(), rows);
    }
    assert_eq!(project.django(&["makemigrations", "--check"]), "No changes detected\n");
    assert!(project.django(&["migrate"]).contains("No migrations to apply."));

    let locks = Locks::connect(project.database.url()).await.unwrap();
    assert!(locks.lock("before").try_acquire().await.unwrap().is_none());
    let guard = locks.lock("free").acquire().await.unwrap();
    let raised = django.enter("free", once.clone()).unwrap_err();
    assert_eq!((&*raised.kind, &*raised.message), ("LockException", "failed to acquire lock"));
    guard.release().await.unwrap();

    django.exit("before").unwrap();
    django.enter("free", once.clone()).unwrap();
    django.enter("new", once).unwrap();
    for name in ["free", "new"] {
        assert!(locks.lock(name).try_acquire().await.unwrap().is_none(), "{name}");
        django.exit(name).unwrap();
    }
    assert_eq!(django.lost, 0);
}
