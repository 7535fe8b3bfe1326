//! A lock backend on Redis: all that a store with compare-and-set needs.
//!
//! Run Redis with `appendonly yes` and `appendfsync always`: what was granted must survive a restart.

use std::time::Duration;

use database_locks_core::key_value::{KeyValue, KeyValueBackend, Loaded, Stored, Write};
use database_locks_core::{Capabilities, Error, ErrorKind, LockName, Locks, Result, async_trait};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisError};
use tokio::sync::Mutex;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let store = RedisStore::open(&url, "locks")?;
    let locks = Locks::new(KeyValueBackend::new(store));
    let guard = locks.lock("nightly").timeout(Duration::from_secs(30)).acquire().await?;
    println!("only one of me, under token {}", guard.token());
    guard.release().await
}

/// Writes a value if that still holds. The first key has the values, the second the names in order.
const STORE: &str = "
local name, version, before, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local stored = redis.call('HGET', KEYS[1], name) or ''
if stored ~= version or before ~= '' and time[1] * 1000000 + time[2] >= tonumber(before) then
  return false
elseif value == '' then
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
else
  redis.call('HSET', KEYS[1], name, value)
  redis.call('ZADD', KEYS[2], 0, name)
end
return true";

/// Values in two keys of a Redis.
#[derive(Debug)]
pub struct RedisStore {
    client: Client,
    values: String,
    names: String,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Values in the keys `prefix:values` and `prefix:names`.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for a URL that cannot be used.
    pub fn open(url: &str, prefix: &str) -> Result<Self> {
        let client = Client::open(url)
            .map_err(|error| Error::new(ErrorKind::InvalidOption, format!("bad URL: {error}")))?;
        let (values, names) = (format!("{prefix}:values"), format!("{prefix}:names"));
        Ok(Self { client, values, names, connection: Mutex::default() })
    }

    /// Asks on the connection of the last time, and if that has ended and it is a question that `repeats`,
    /// on a new one. A connection whose request is given up goes with it.
    async fn ask<T: FromRedisValue>(&self, request: &Pipeline, repeats: bool) -> Result<T> {
        let mut kept = self.connection.lock().await.take();
        loop {
            let is_new = kept.is_none();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    // The engine has a timeout of its own.
                    let config = AsyncConnectionConfig::new().set_response_timeout(None);
                    let new = self.client.get_multiplexed_async_connection_with_config(&config);
                    new.await.map_err(failed)?
                }
            };
            match request.query_async(&mut connection).await {
                Ok(answer) => {
                    *self.connection.lock().await = Some(connection);
                    return Ok(answer);
                }
                Err(error) if is_new || !repeats => return Err(failed(error)),
                Err(_) => {}
            }
        }
    }
}

#[async_trait]
impl KeyValue for RedisStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("redis")
    }

    async fn load(&self, names: &[LockName]) -> Result<Loaded> {
        let names: Vec<&str> = names.iter().map(LockName::as_str).collect();
        let mut request = redis::pipe();
        request.atomic().cmd("HMGET").arg(&self.values).arg(names).cmd("TIME");
        let (values, (seconds, micros)): (Vec<Option<String>>, (u64, u64)) =
            self.ask(&request, true).await?;
        let stored = |value: String| Stored::versioned_by_itself(value);
        Ok(Loaded::new(
            Duration::from_secs(seconds) + Duration::from_micros(micros),
            values.into_iter().map(|value| value.map(stored)).collect(),
        ))
    }

    async fn store(&self, writes: &[Write]) -> Result<Vec<bool>> {
        let mut request = redis::pipe();
        for write in writes {
            let before = write.before.map(|before| before.as_micros().to_string());
            request.cmd("EVAL").arg(STORE).arg(2).arg(&self.values).arg(&self.names);
            request.arg(write.name.as_str()).arg(write.version.as_deref().unwrap_or(""));
            request.arg(before.unwrap_or_default()).arg(write.value.as_deref().unwrap_or(""));
        }
        // A write that was heard after all would not hold a second time.
        self.ask(&request, false).await
    }

    async fn names(&self, first: &str, limit: usize) -> Result<Vec<LockName>> {
        let mut request = redis::pipe();
        request.cmd("ZRANGEBYLEX").arg(&self.names).arg(format!("[{first}")).arg("+");
        request.arg("LIMIT").arg(0).arg(limit);
        let (names,): (Vec<String>,) = self.ask(&request, true).await?;
        names.into_iter().map(LockName::new).collect()
    }
}

fn failed(error: RedisError) -> Error {
    let kind = match error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
        true => ErrorKind::Unavailable,
        false => ErrorKind::Backend,
    };
    Error::new(kind, format!("{error}: check the Redis")).with_backend("redis").with_source(error)
}
