//! The faults of django-database-locks: each shown on the real package by a script of
//! `python/faults`, and then, by the same steps on the same table, absent here.

mod clock;
mod holding;
mod renewal;
mod rows;

use std::time::Duration;

use database_locks::{Connect, Guard, Locks, migrate};
use serde_json::Value;

use crate::Kind;
use crate::project::{PATIENCE, Project, scripts};

/// The name of our lock. The scripts use others.
const NAME: &str = "ours";
/// Far longer than any test: what is free before then was not left to expire.
const LONG: Duration = Duration::from_hours(1);
/// A table that Django has made, on which a fault was shown, and that is ours now as well.
struct Scene {
    /// What the script saw.
    seen: Value,
    here: Locks,
    /// Another process, as far as a database can tell.
    there: Locks,
    project: Project,
}

impl Scene {
    /// What is left after a script.
    async fn after(script: &str, kind: Kind) -> Self {
        let project = project(kind);
        let seen = run(script, &[], &project);
        Self::adopt(project, seen).await
    }

    async fn adopt(project: Project, seen: Value) -> Self {
        let url = project.database.url();
        migrate(url).await.unwrap();
        let here = Locks::connect(url).await.unwrap();
        let there = Locks::connect(url).await.unwrap();
        Self { seen, here, there, project }
    }

    /// Whether somebody else gets our lock by asking once.
    async fn another_gets_it(&self) -> bool {
        let guard = self.there.lock(NAME).try_acquire().await.unwrap();
        let is_granted = guard.is_some();
        release(guard).await;
        is_granted
    }

    /// Somebody else gets our lock, once a release that is under way has arrived.
    async fn another_has_it_soon(&self) {
        let guard = self.there.lock(NAME).timeout(PATIENCE).acquire().await.unwrap();
        guard.release().await.unwrap();
    }
}

/// A project whose tables the first script makes.
fn project(kind: Kind) -> Project {
    Project::without_tables(kind.shared().unwrap().database().unwrap())
}

/// Runs a script, and gives what it saw.
fn run(script: &str, arguments: &[&str], project: &Project) -> Value {
    let script = scripts().join("faults").join(script).with_extension("py");
    let output = project.python().arg(&script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} ended with {}: {said}", script.display(), output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn release(guards: impl IntoIterator<Item = Guard>) {
    for guard in guards {
        guard.release().await.unwrap();
    }
}
