//! MySQL.

use std::ffi::OsString;

use anyhow::Result;

use crate::access::{Access, Family};
use crate::mysql_program::MySqlProgram;
use crate::mysqld::{Mysqld, Product};
use crate::shared::Shared;

/// A throwaway MySQL server, without a binary log (see the setting `log_bin`) and without the X protocol.
///
/// As MySQL does by itself, it makes a certificate that nobody can verify where it is given none: also with `Tls::Off`
/// it offers TLS. With the setting `tls_version` empty it does not, but then [`Access::sql`] cannot log in.
pub type MySql = Mysqld<MySqlProduct>;

/// What is MySQL's own.
#[derive(Debug)]
pub enum MySqlProduct {}

impl MySql {
    /// The server that all tests of this process share, started by the first who asks and removed when the process
    /// ends. Take a [`database`](Access::database) of your own from it, and change no setting of the server.
    ///
    /// Where `DATABASE_LOCKS_TEST_MYSQL_URL` is set this is that server.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); and when the URL in the environment is none.
    pub fn shared() -> Result<&'static Access> {
        static SHARED: Shared<MySql> = Shared::new();
        SHARED.get(Family::MySql, "DATABASE_LOCKS_TEST_MYSQL_URL", MySql::start)
    }
}

impl Product for MySqlProduct {
    const NAME: &'static str = "mysql";
    const SETTINGS: &'static [(&'static str, &'static str)] = &[
        ("mysqlx", "OFF"),
        ("disable_log_bin", "ON"),
        ("innodb_redo_log_capacity", "64M"),
        // The folder that is built in belongs to an installation.
        ("secure_file_priv", "NULL"),
    ];
    // MariaDB's client cannot log in without TLS, unless somebody with the same name and password has done so before.
    const WITHOUT_TLS: &'static [&'static str] = &[];
    const PREPARE_SQL: &'static str = "--init-file=";

    fn server() -> Result<Vec<OsString>> {
        Ok(MySqlProgram::find()?.command())
    }

    fn prepare() -> Result<Vec<OsString>> {
        let mut command = Self::server()?;
        command.push("--initialize-insecure".into());
        Ok(command)
    }
}
