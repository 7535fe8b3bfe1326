//! The faults of django-database-locks: each shown on the real package by a script of
//! `python/faults`, and then, by the same steps on the same table, absent here.

mod clock;
mod holding;
mod renewal;
mod rows;

use std::time::Duration;

use database_locks::{Connect, Guard, Locks, migrate};
use database_locks_test_servers::{Access, Database};
use serde_json::Value;

use crate::project;

/// The name of our lock. The scripts use others.
const NAME: &str = "ours";
/// Far longer than any test: what is free before then was not left to expire.
const LONG: Duration = Duration::from_hours(1);
/// Generous: it only has to end on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A table that Django has made, on which a fault was shown, and that is ours now as well.
struct Scene {
    /// What the script saw.
    seen: Value,
    here: Locks,
    /// Another process, as far as a database can tell.
    there: Locks,
    database: Database,
}

impl Scene {
    /// What is left after a script.
    async fn after(script: &str, server: &Access) -> Self {
        Self::after_with(script, &[], server).await
    }

    async fn after_with(script: &str, arguments: &[&str], server: &Access) -> Self {
        let database = server.database().unwrap();
        let seen = project::fault(&database, script, arguments);
        migrate(database.url()).await.unwrap();
        let here = Locks::connect(database.url()).await.unwrap();
        let there = Locks::connect(database.url()).await.unwrap();
        Self { seen, here, there, database }
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

async fn release(guards: impl IntoIterator<Item = Guard>) {
    for guard in guards {
        guard.release().await.unwrap();
    }
}
