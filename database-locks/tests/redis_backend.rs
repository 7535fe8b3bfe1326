//! The suite against the example of a backend on Redis.

use std::sync::{Arc, OnceLock};

use database_locks_conformance::{Client, Harness, Outcome, Stop, async_trait};
use database_locks_core::key_value::KeyValueBackend;
use database_locks_test_servers::{Redis, RedisDurability};
use uuid::Uuid;

#[path = "../examples/redis_backend.rs"]
#[expect(dead_code, unreachable_pub, reason = "the example is a program of its own")]
mod redis_backend;

/// Keys of its own for each case, on one server.
struct Keys(&'static Redis, String);

#[async_trait]
impl Harness for Keys {
    async fn fresh() -> Outcome<Self> {
        static SERVER: OnceLock<Result<Redis, String>> = OnceLock::new();
        let start = || Redis::builder().durability(RedisDurability::Always).start();
        let server = SERVER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
        let server = server.as_ref().map_err(Stop::failed)?;
        Ok(Self(server, Uuid::new_v4().to_string()))
    }

    async fn client(&self) -> Outcome<Client> {
        let Self(server, prefix) = self;
        Ok(Arc::new(KeyValueBackend::new(redis_backend::RedisStore::open(server.url(), prefix)?)))
    }
}

database_locks_conformance::suite!(Keys);
