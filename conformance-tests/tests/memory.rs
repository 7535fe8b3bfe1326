//! The suite against the memory backend, on a clock that runs by itself and that cases step.

use std::sync::Arc;

use database_locks_conformance::{Client, Harness, Outcome, async_trait};
use database_locks_core::LockName;
use database_locks_memory::MemoryBackend;

struct Memory(MemoryBackend);

#[async_trait]
impl Harness for Memory {
    async fn fresh() -> Outcome<Self> {
        Ok(Self(MemoryBackend::new()))
    }

    async fn client(&self) -> Outcome<Client> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn delete_row(&self, name: &LockName) -> Outcome {
        self.0.forget(name);
        Ok(())
    }
}

database_locks_conformance::suite!(Memory);
