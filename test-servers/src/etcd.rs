//! etcd.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::folder::Folder;
use crate::install::{Account, ETCD};
use crate::process::{Launch, Process, Server, flag, free_port};

/// A throwaway etcd of one node, stopped and removed when dropped. It flushes each write, as etcd always does.
/// [`Server`] has what can be done to it.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    url: String,
}

impl Etcd {
    /// Starts a server with default settings.
    ///
    /// # Errors
    ///
    /// When etcd is not installed (the message says how to get it) or the server does not come up (the message has
    /// the end of its log).
    pub fn start() -> Result<Etcd> {
        let program = ETCD.find()?.join("etcd");
        let folder = Folder::create("etcd", Account::ordinary(&["etcd"])?)?;
        let process = Process::start_on_free_port(folder, |folder, port| {
            let clients = loopback(port);
            // Nobody comes to it, but a node has to have one.
            let peers = loopback(free_port()?);
            Ok(Launch {
                program: program.clone(),
                arguments: vec![
                    "--name=node".into(),
                    flag("--data-dir=", folder.path().join("data")),
                    flag("--listen-client-urls=", &clients),
                    flag("--advertise-client-urls=", &clients),
                    flag("--listen-peer-urls=", &peers),
                    flag("--initial-advertise-peer-urls=", &peers),
                    flag("--initial-cluster=node=", &peers),
                ],
                ready: "ready to serve client requests",
                stop: Signal::SIGTERM,
            })
        })?;
        Ok(Etcd { url: loopback(process.port()), process })
    }

    /// `http://127.0.0.1:PORT`. It asks for no password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Server for Etcd {
    fn process(&self) -> &Process {
        &self.process
    }
}

fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
