//! Postgres.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::access::{Access, Family};
use crate::clock;
use crate::folder::{Folder, random_hex};
use crate::install::{Account, POSTGRES};
use crate::postgres_version::{POSTGRES_VERSIONS, postgres_binaries};
use crate::process::{Durability, Launch, Process, Server, flag, run_tool};
use crate::shared::Shared;
#[cfg(feature = "tls")]
use crate::tls::{Tls, TlsFiles};

const SUPERUSER: &str = "postgres";

/// The database that a server has from the start.
const DATABASE: &str = "app";

/// Many clients come at once.
const SETTINGS: [(&str, &str); 1] = [("max_connections", "300")];

/// Settings for throwaway data, which has to survive no power cut.
const THROWAWAY: [(&str, &str); 1] = [("fsync", "off")];

/// A throwaway Postgres server, stopped and removed when dropped. It is used as the [`Access`] to its database
/// `app` as a superuser; [`Server`] has what can be done to the server itself.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    access: Access,
    #[cfg(feature = "tls")]
    tls: Option<TlsFiles>,
}

impl Postgres {
    /// Starts a server with default settings, of the highest version that is installed.
    ///
    /// # Errors
    ///
    /// When Postgres is not installed (the message says how to get it) or the server does not come up (the message
    /// has the end of its log).
    pub fn start() -> Result<Postgres> {
        Postgres::builder().start()
    }

    /// A server with settings of its own.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// The server that all tests of this process share, started by the first who asks and removed when the process
    /// ends. Take a [`database`](Access::database) of your own from it, and change no setting of the server.
    ///
    /// Where `DATABASE_LOCKS_TEST_POSTGRES_URL` is set this is that server.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); and when the URL in the environment is none.
    pub fn shared() -> Result<&'static Access> {
        static SHARED: Shared<Postgres> = Shared::new();
        SHARED.get(Family::Postgres, "DATABASE_LOCKS_TEST_POSTGRES_URL", Postgres::start)
    }

    /// As [`shared`](Self::shared), of one of [`POSTGRES_VERSIONS`]. `DATABASE_LOCKS_TEST_POSTGRES_18_URL` names another
    /// server instead, and so on.
    ///
    /// # Errors
    ///
    /// As [`shared`](Self::shared), and for another version.
    pub fn shared_of(
        major: u32,
        start: impl FnOnce() -> Result<Postgres>,
    ) -> Result<&'static Access> {
        static SHARED: [Shared<Postgres>; POSTGRES_VERSIONS.len()] =
            [const { Shared::new() }; POSTGRES_VERSIONS.len()];
        let place = POSTGRES_VERSIONS.iter().position(|version| *version == major);
        let place = place.with_context(|| format!("no tests run on postgres {major}"))?;
        let variable = format!("DATABASE_LOCKS_TEST_POSTGRES_{major}_URL");
        SHARED[place].get(Family::Postgres, &variable, start)
    }

    /// Where the server keeps its data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        data_dir(self.process.folder())
    }

    /// The folder of the server's Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.process.folder()
    }

    /// The certificate authorities of a server that was started with [`PostgresBuilder::tls`].
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_files(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }
}

impl Deref for Postgres {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Server for Postgres {
    fn process(&self) -> &Process {
        &self.process
    }
}

/// How to start a [`Postgres`].
#[derive(Debug, Default)]
#[must_use = "nothing is started before `start`"]
pub struct PostgresBuilder {
    version: Option<u32>,
    locale: Option<String>,
    durability: Durability,
    is_steppable: bool,
    settings: Vec<(String, String)>,
    #[cfg(feature = "tls")]
    tls: Tls,
}

impl PostgresBuilder {
    /// Takes this major version, one of [`POSTGRES_VERSIONS`], instead of the highest that is installed.
    pub fn version(mut self, major: u32) -> PostgresBuilder {
        self.version = Some(major);
        self
    }

    /// Lets databases compare text by this locale of ICU, such as `und`, instead of by bytes. Since version 15.
    pub fn icu_locale(mut self, locale: &str) -> PostgresBuilder {
        self.locale = Some(locale.to_owned());
        self
    }

    /// Keeps the settings on which durability depends at Postgres's own defaults, for tests and benchmarks that are
    /// about it. Otherwise what is committed survives the server's end, and not a power cut.
    pub fn durable(mut self) -> PostgresBuilder {
        self.durability = Durability::Durable;
        self
    }

    /// Gives it a wall clock that [`step_clock`](Server::step_clock) sets.
    pub fn steppable(mut self) -> PostgresBuilder {
        self.is_steppable = true;
        self
    }

    /// Sets a parameter of `postgresql.conf`.
    pub fn setting(mut self, name: &str, value: &str) -> PostgresBuilder {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the server speaks TLS. Its certificate, made for this server alone, is for `localhost` and `127.0.0.1`.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> PostgresBuilder {
        self.tls = tls;
        self
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// As [`Postgres::start`]; and when Postgres refuses a setting.
    pub fn start(mut self) -> Result<Postgres> {
        let binaries = match self.version {
            Some(major) => postgres_binaries(major)?,
            None => POSTGRES.find()?,
        };
        let folder = Folder::create("postgres", Account::ordinary(&["postgres"])?)?;
        if self.is_steppable {
            clock::install(&folder)?;
        }
        let password = random_hex(16)?;
        let password_file = folder.write("password", &password)?;
        let mut arguments = vec![
            flag("--pgdata=", data_dir(folder.path())),
            flag("--pwfile=", password_file),
            flag("--username=", SUPERUSER),
            "--auth=scram-sha-256".into(),
            "--encoding=UTF8".into(),
            "--locale=C".into(),
            "--no-sync".into(),
        ];
        if let Some(locale) = &self.locale {
            arguments.extend(["--locale-provider=icu".into(), flag("--icu-locale=", locale)]);
        }
        run_tool(&folder, &binaries.join("initdb"), &arguments)?;
        #[cfg(feature = "tls")]
        let (tls, plain_connections) = {
            let files = self.tls.write_files(&folder)?;
            if let Some(files) = &files {
                self = self
                    .setting("ssl", "on")
                    .setting("ssl_cert_file", &files.certificate())
                    .setting("ssl_key_file", &files.key());
            }
            (files, self.tls != Tls::Required)
        };
        #[cfg(not(feature = "tls"))]
        let plain_connections = true;
        let host = if plain_connections { "host" } else { "hostssl" };
        folder.write(
            "data/pg_hba.conf",
            &format!(
                "local all all scram-sha-256\n\
                 {host} all all 127.0.0.1/32 scram-sha-256\n\
                 {host} replication all 127.0.0.1/32 scram-sha-256\n"
            ),
        )?;
        let own = SETTINGS.iter().chain(self.durability.settings(&THROWAWAY));
        let own = own.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        // What stands last in the file counts.
        self.settings.splice(0..0, own);
        folder.write("data/postgresql.conf", &settings_file(&self.settings))?;

        let program = binaries.join("postgres");
        let process = Process::start_on_free_port(folder, |folder, port| {
            Ok(Launch {
                program: program.clone(),
                arguments: vec![
                    "-D".into(),
                    data_dir(folder.path()).into(),
                    "-c".into(),
                    format!("port={port}").into(),
                    "-c".into(),
                    "listen_addresses=127.0.0.1".into(),
                    "-c".into(),
                    flag("unix_socket_directories=", folder.path()),
                ],
                ready: "system is ready to accept",
                // "Fast": ends sessions and writes a checkpoint.
                stop: Signal::SIGINT,
            })
        })?;
        let maintenance =
            Access::local(Family::Postgres, process.port(), SUPERUSER, &password, "postgres")?;
        maintenance.sql(&format!("CREATE DATABASE {DATABASE} TEMPLATE template0"))?;
        Ok(Postgres {
            access: maintenance.in_database(DATABASE),
            process,
            #[cfg(feature = "tls")]
            tls,
        })
    }
}

fn data_dir(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn settings_file(settings: &[(String, String)]) -> String {
    settings
        .iter()
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
        .collect()
}
