//! What MariaDB and MySQL have in common.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::access::{Access, Family};
use crate::clock;
use crate::folder::{Folder, random_hex};
use crate::install::Account;
use crate::process::{Durability, Launch, Process, Server, flag, run_tool};
#[cfg(feature = "tls")]
use crate::tls::{Tls, TlsFiles};

const SUPERUSER: &str = "root";

/// The database that a server has from the start.
const DATABASE: &str = "app";

/// There is little data, and many clients come at once.
const SETTINGS: [(&str, &str); 4] = [
    ("innodb_buffer_pool_size", "64M"),
    ("key_buffer_size", "1M"),
    ("performance_schema", "OFF"),
    ("max_connections", "300"),
];

/// Settings for throwaway data on a busy machine: nothing has to survive a power cut (what is committed does survive
/// the server's end by `kill -9`). Native I/O is of little use here, and the kernel's limits on it are shared by all
/// servers of the machine.
const THROWAWAY: [(&str, &str); 3] = [
    ("innodb_flush_log_at_trx_commit", "2"),
    ("innodb_flush_method", "nosync"),
    ("innodb_use_native_aio", "OFF"),
];

/// What a product of the MySQL family does in its own way.
pub trait Product: fmt::Debug + Send + Sync + 'static {
    /// What it is called in the name of a server's folder.
    const NAME: &'static str;
    /// Settings besides those of the family.
    const SETTINGS: &'static [(&'static str, &'static str)];
    /// What keeps a server that was given no certificate from speaking TLS, where anything has to.
    const WITHOUT_TLS: &'static [&'static str];
    /// The argument, up to its value, that has the preparing program run a file of SQL.
    const PREPARE_SQL: &'static str;

    /// The server's program, and the arguments that come before all others.
    ///
    /// # Errors
    ///
    /// When it is not installed.
    fn server() -> Result<Vec<OsString>>;

    /// The program that prepares an empty data folder with a user root without a password, and its first arguments.
    ///
    /// # Errors
    ///
    /// When it is not installed.
    fn prepare() -> Result<Vec<OsString>>;
}

/// A throwaway server, stopped and removed when dropped: a [`MariaDb`](crate::MariaDb) or a [`MySql`](crate::MySql).
/// It is used as the [`Access`] to its database `app` as the superuser `root`; [`Server`] has what can be done to the
/// server itself.
///
/// Character sets, collations, SQL mode and isolation are the product's own defaults, unlike those that a distribution
/// configures: latin1 on MariaDB up to 11.5, and utf8mb4 later and on MySQL.
pub struct Mysqld<P> {
    process: Process,
    access: Access,
    #[cfg(feature = "tls")]
    tls: Option<TlsFiles>,
    product: PhantomData<P>,
}

impl<P: Product> Mysqld<P> {
    /// Starts a server with default settings.
    ///
    /// # Errors
    ///
    /// When it is not installed (the message says how to get it) or does not come up (the message has the end of its
    /// log).
    pub fn start() -> Result<Mysqld<P>> {
        Self::builder().start()
    }

    /// A server with settings of its own.
    pub fn builder() -> MysqldBuilder<P> {
        MysqldBuilder {
            durability: Durability::default(),
            is_steppable: false,
            settings: Vec::new(),
            #[cfg(feature = "tls")]
            tls: Tls::Off,
            product: PhantomData,
        }
    }

    /// The server's Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(self.process.folder())
    }

    /// The certificate authorities of a server that was started with [`MysqldBuilder::tls`].
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_files(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }
}

impl<P> Deref for Mysqld<P> {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl<P> Server for Mysqld<P> {
    fn process(&self) -> &Process {
        &self.process
    }
}

impl<P> Drop for Mysqld<P> {
    fn drop(&mut self) {
        // Nobody needs what an orderly end would save.
        let _ = self.stop_hard();
    }
}

impl<P: Product> fmt::Debug for Mysqld<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(P::NAME).field(&self.access).finish()
    }
}

/// How to start a [`Mysqld`].
#[derive(Debug)]
#[must_use = "nothing is started before `start`"]
pub struct MysqldBuilder<P> {
    durability: Durability,
    is_steppable: bool,
    settings: Vec<(String, String)>,
    #[cfg(feature = "tls")]
    tls: Tls,
    product: PhantomData<P>,
}

impl<P: Product> MysqldBuilder<P> {
    /// Keeps the settings on which durability depends at the product's own defaults, for tests and benchmarks that are
    /// about it. Otherwise what is committed survives the server's end, and not a power cut. The binary log is another
    /// matter: a server has none unless the setting `log_bin` asks for it.
    pub fn durable(mut self) -> MysqldBuilder<P> {
        self.durability = Durability::Durable;
        self
    }

    /// Gives it a wall clock that [`step_clock`](Server::step_clock) sets.
    pub fn steppable(mut self) -> MysqldBuilder<P> {
        self.is_steppable = true;
        self
    }

    /// Sets an option of the server, such as `init_connect`.
    pub fn setting(mut self, name: &str, value: &str) -> MysqldBuilder<P> {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the server speaks TLS. Its certificate, made for this server alone, is for `localhost` and `127.0.0.1`.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> MysqldBuilder<P> {
        self.tls = tls;
        self
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// As [`Mysqld::start`]; and when the server refuses a setting.
    #[cfg_attr(not(feature = "tls"), expect(unused_mut, reason = "only TLS adds settings"))]
    pub fn start(mut self) -> Result<Mysqld<P>> {
        let folder = Folder::create(P::NAME, Account::ordinary(&["mysql"])?)?;
        if self.is_steppable {
            clock::install(&folder)?;
        }
        let password = random_hex(16)?;
        prepare_data::<P>(&folder, &password)?;
        #[cfg(feature = "tls")]
        let tls = self.tls.write_files(&folder)?;
        #[cfg(feature = "tls")]
        if let Some(files) = &tls {
            let required = if self.tls == Tls::Required { "ON" } else { "OFF" };
            self = self
                .setting("ssl_ca", &files.authority().display().to_string())
                .setting("ssl_cert", &files.certificate())
                .setting("ssl_key", &files.key())
                .setting("require_secure_transport", required);
        }
        #[cfg(feature = "tls")]
        let speaks_tls = tls.is_some();
        #[cfg(not(feature = "tls"))]
        let speaks_tls = false;
        let process = Process::start_on_free_port(folder, |folder, port| {
            let mut launch = launch::<P>(folder.path(), port, self.durability)?;
            if !speaks_tls {
                launch.arguments.extend(P::WITHOUT_TLS.iter().map(OsString::from));
            }
            launch.arguments.extend(options(&self.settings));
            Ok(launch)
        })?;
        Ok(Mysqld {
            access: superuser(process.port(), &password)?,
            process,
            #[cfg(feature = "tls")]
            tls,
            product: PhantomData,
        })
    }
}

/// Fills the data folder of a server, with a superuser who may enter from anywhere, and the database.
pub(crate) fn prepare_data<P: Product>(folder: &Folder, password: &str) -> Result<()> {
    // MariaDB's preparing program knows of users only after they were loaded.
    let sql = format!(
        "FLUSH PRIVILEGES;\n\
         RENAME USER {SUPERUSER}@localhost TO {SUPERUSER}@'%';\n\
         ALTER USER {SUPERUSER}@'%' IDENTIFIED BY '{password}';\n\
         CREATE DATABASE {DATABASE};\n"
    );
    let command = P::prepare()?;
    let (program, first) = command.split_first().context("a command is a program and more")?;
    let mut arguments = first.to_vec();
    arguments.extend(own_arguments::<P>(folder.path(), Durability::Throwaway));
    arguments.push(flag(P::PREPARE_SQL, folder.write("prepare.sql", &sql)?));
    run_tool(folder, Path::new(program), &arguments)
}

/// How to start a server whose data is there, on a port.
pub(crate) fn launch<P: Product>(
    folder: &Path,
    port: u16,
    durability: Durability,
) -> Result<Launch> {
    let command = P::server()?;
    let (program, first) = command.split_first().context("a command is a program and more")?;
    let mut arguments = first.to_vec();
    arguments.extend(own_arguments::<P>(folder, durability));
    arguments.push("--bind-address=127.0.0.1".into());
    arguments.push("--skip-name-resolve".into());
    arguments.push(format!("--port={port}").into());
    Ok(Launch {
        program: program.into(),
        arguments,
        ready: "ready for connections.",
        // Ends sessions, and leaves nothing to recover.
        stop: Signal::SIGTERM,
    })
}

/// Options as arguments. Of two with the same name the later counts.
pub(crate) fn options(settings: &[(String, String)]) -> impl Iterator<Item = OsString> {
    settings.iter().map(|(name, value)| format!("--{name}={value}").into())
}

/// The superuser's way into the database that every server has.
pub(crate) fn superuser(port: u16, password: &str) -> Result<Access> {
    Access::local(Family::MySql, port, SUPERUSER, password, DATABASE)
}

pub(crate) fn data_dir(folder: &Path) -> PathBuf {
    folder.join("data")
}

pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// What keeps a server in its folder, and the settings.
fn own_arguments<P: Product>(folder: &Path, durability: Durability) -> Vec<OsString> {
    let mut arguments = vec![
        flag("--datadir=", data_dir(folder)),
        flag("--tmpdir=", folder),
        flag("--socket=", socket(folder)),
        flag("--pid-file=", folder.join("mysqld.pid")),
    ];
    for (name, value) in SETTINGS.iter().chain(durability.settings(&THROWAWAY)).chain(P::SETTINGS) {
        arguments.push(format!("--{name}={value}").into());
    }
    arguments
}
