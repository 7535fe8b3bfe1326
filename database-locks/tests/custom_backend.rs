//! The suite against the example of a custom backend.

use std::sync::Arc;

use database_locks_conformance::{Client, Harness, Outcome, async_trait};
use database_locks_core::key_value::KeyValueBackend;
use tempfile::TempDir;

#[path = "../examples/custom_backend.rs"]
#[expect(dead_code, unreachable_pub, reason = "the example is a program of its own")]
mod custom_backend;

struct Files(TempDir);

#[async_trait]
impl Harness for Files {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(KeyValueBackend::new(custom_backend::FileStore::open(self.0.path())?)))
    }
}

database_locks_conformance::suite!(Files);
