//! MariaDB.

use std::ffi::OsString;

use anyhow::Result;

use crate::access::{Access, Family};
use crate::install::{MARIADB, MARIADB_TOOLS};
use crate::mysqld::{Mysqld, Product};
use crate::shared::Shared;

/// A throwaway MariaDB server.
pub type MariaDb = Mysqld<MariaDbProduct>;

/// What is MariaDB's own.
#[derive(Debug)]
pub enum MariaDbProduct {}

impl MariaDb {
    /// The server that all tests of this process share, started by the first who asks and removed when the process
    /// ends. Take a [`database`](Access::database) of your own from it, and change no setting of the server.
    ///
    /// Where `DATABASE_LOCKS_TEST_MARIADB_URL` is set this is that server.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); and when the URL in the environment is none.
    pub fn shared() -> Result<&'static Access> {
        static SHARED: Shared<MariaDb> = Shared::new();
        SHARED.get(Family::MySql, "DATABASE_LOCKS_TEST_MARIADB_URL", MariaDb::start)
    }
}

impl Product for MariaDbProduct {
    const NAME: &'static str = "mariadb";
    const SETTINGS: &'static [(&'static str, &'static str)] =
        &[("innodb_log_file_size", "32M"), ("aria_pagecache_buffer_size", "8M")];
    const WITHOUT_TLS: &'static [&'static str] = &["--skip-ssl"];
    const PREPARE_SQL: &'static str = "--extra-file=";

    fn server() -> Result<Vec<OsString>> {
        Ok(vec![MARIADB.find()?.join("mariadbd").into(), "--no-defaults".into()])
    }

    fn prepare() -> Result<Vec<OsString>> {
        Ok(vec![
            MARIADB_TOOLS.find()?.join("mariadb-install-db").into(),
            "--no-defaults".into(),
            // Makes no users besides root@localhost.
            "--auth-root-authentication-method=socket".into(),
            "--auth-root-socket-user=root".into(),
            "--skip-test-db".into(),
        ])
    }
}
