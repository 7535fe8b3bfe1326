//! `PgBouncer`, a connection pooler in front of a Postgres.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;

use crate::access::Access;
use crate::folder::Folder;
use crate::install::{Account, PGBOUNCER};
use crate::postgres::Postgres;
use crate::process::{Launch, Process, Server};

/// When a client's connection to the server goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// After each transaction: the session's state (LISTEN, advisory locks, prepared statements) is nobody's.
    Transaction,
    /// After each statement; transactions are refused.
    Statement,
}

impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        })
    }
}

/// A throwaway `PgBouncer`, stopped and removed when dropped. It serves every database and every user of the Postgres
/// behind it, with four connections for each pair of them. It is used as the [`Access`] through it; [`Server`] has
/// what can be done to the pooler itself.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    access: Access,
}

impl PgBouncer {
    /// Starts a pooler in front of a Postgres, which has to outlive it to be of use.
    ///
    /// # Errors
    ///
    /// When `PgBouncer` is not installed (the message says how to get it) or does not come up (the message has the end
    /// of its log).
    pub fn start(postgres: &Access, mode: PoolMode) -> Result<PgBouncer> {
        let program = PGBOUNCER.find()?.join("pgbouncer");
        let folder = Folder::create("pgbouncer", Account::ordinary(&["postgres"])?)?;
        folder.write("users", &postgres.pgbouncer_user())?;
        let process = Process::start_on_free_port(folder, |folder, port| {
            Ok(Launch {
                program: program.clone(),
                arguments: vec![
                    folder
                        .write("ini", &configuration(folder.path(), postgres, port, mode))?
                        .into(),
                ],
                ready: "process up",
                stop: Signal::SIGTERM,
            })
        })?;
        Ok(PgBouncer { access: postgres.at_port(process.port()), process })
    }

    /// The pooler in transaction mode that all tests of this process share, in front of [`Postgres::shared`].
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start) and [`Postgres::shared`].
    pub fn shared() -> Result<&'static Access> {
        static SHARED: OnceLock<Result<PgBouncer, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            Postgres::shared()
                .and_then(|postgres| PgBouncer::start(postgres, PoolMode::Transaction))
                .map_err(|error| format!("{error:#}"))
        });
        shared.as_deref().map_err(|message| anyhow!(message.clone()))
    }
}

fn configuration(folder: &Path, postgres: &Access, port: u16, mode: PoolMode) -> String {
    let (folder, user) = (folder.display(), postgres.user());
    let (host, server_port) = postgres.host_and_port();
    format!(
        "[databases]\n* = host={host} port={server_port}\n\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {folder}\n\
         auth_type = scram-sha-256\nauth_file = {folder}/users\nauth_user = {user}\n\
         pool_mode = {mode}\ndefault_pool_size = 4\nmax_client_conn = 1000\n"
    )
}

impl Deref for PgBouncer {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Server for PgBouncer {
    fn process(&self) -> &Process {
        &self.process
    }
}
