//! Redis.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::folder::Folder;
use crate::install::{Account, REDIS};
use crate::process::{Launch, Process, Server};

/// A throwaway Redis, stopped and removed when dropped. [`Server`] has what can be done to it.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    url: String,
}

/// When a Redis brings what it was told to its disk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum RedisDurability {
    /// Never: a server that starts again is empty.
    Never,
    /// Once a second, as Redis does by default where it keeps a log: a crash of the host may cost the last second.
    #[default]
    EverySecond,
    /// Before it answers.
    Always,
}

impl Redis {
    /// Starts a server that flushes its log once a second.
    ///
    /// # Errors
    ///
    /// When Redis is not installed (the message says how to get it) or the server does not come up (the message has
    /// the end of its log).
    pub fn start() -> Result<Redis> {
        Redis::builder().start()
    }

    /// A server with settings of its own.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// `redis://127.0.0.1:PORT`. It asks for no password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Server for Redis {
    fn process(&self) -> &Process {
        &self.process
    }
}

/// How to start a [`Redis`].
#[derive(Debug, Default)]
#[must_use = "nothing is started before `start`"]
pub struct RedisBuilder {
    durability: RedisDurability,
}

impl RedisBuilder {
    /// When the server brings what it was told to its disk.
    pub fn durability(mut self, durability: RedisDurability) -> RedisBuilder {
        self.durability = durability;
        self
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// As [`Redis::start`].
    pub fn start(self) -> Result<Redis> {
        let program = REDIS.find()?.join("redis-server");
        let folder = Folder::create("redis", Account::ordinary(&["redis"])?)?;
        folder.make_private_dir("data")?;
        let process = Process::start_on_free_port(folder, |folder, port| {
            let settings = configuration(port, self.durability);
            Ok(Launch {
                program: program.clone(),
                arguments: vec![folder.write("conf", &settings)?.into()],
                ready: "Ready to accept connections",
                stop: Signal::SIGTERM,
            })
        })?;
        Ok(Redis { url: format!("redis://127.0.0.1:{}", process.port()), process })
    }
}

/// Relative to the server's folder. Snapshots beside the log would only cost time.
fn configuration(port: u16, durability: RedisDurability) -> String {
    let log = match durability {
        RedisDurability::Never => "appendonly no",
        RedisDurability::EverySecond => "appendonly yes\nappendfsync everysec",
        RedisDurability::Always => "appendonly yes\nappendfsync always",
    };
    format!("bind 127.0.0.1\nport {port}\ndaemonize no\ndir data\nsave \"\"\n{log}\n")
}
