//! The transactions that can be fenced, and what their drivers do for it.

use database_locks_core::Result;
use database_locks_core::fence::{Dialect, Statement};

/// A transaction of a driver that this crate knows. Each is there with the feature of its name:
///
/// | feature | transaction |
/// |---|---|
/// | `tokio-postgres` | `tokio_postgres::Transaction` |
/// | `deadpool-postgres` | `deadpool_postgres::Transaction` |
/// | `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite` | `sqlx::Transaction` of this database |
/// | `mysql_async` | `mysql_async::Transaction` |
///
/// For any other driver there is [`Lease::fence_sql`](database_locks_core::Lease::fence_sql).
pub trait Transaction: Driver {}

impl<T: Driver> Transaction for T {}

/// What a driver does for a fence.
pub trait Driver: Send {
    /// Whose SQL it speaks.
    const DIALECT: Dialect;

    /// Executes a statement, and tells how many rows it returned or changed.
    fn execute(&mut self, statement: &Statement) -> impl Future<Output = Result<u64>> + Send;

    /// Whether a query gives a row.
    fn finds(&mut self, query: &Statement) -> impl Future<Output = Result<bool>> + Send {
        async { Ok(self.execute(query).await? > 0) }
    }
}

#[cfg(feature = "tokio-postgres")]
mod tokio_postgres {
    use database_locks_core::fence::FenceParam;
    use tokio_postgres::Error;
    use tokio_postgres::types::{ToSql, Type};

    use super::{Dialect, Driver, Result, Statement};
    use crate::error;

    const DIALECT: Dialect = Dialect::Postgres;

    impl Driver for tokio_postgres::Transaction<'_> {
        const DIALECT: Dialect = DIALECT;

        async fn execute(&mut self, statement: &Statement) -> Result<u64> {
            let params: Vec<(&(dyn ToSql + Sync), Type)> = statement
                .params()
                .iter()
                .map(|param| match param {
                    FenceParam::Text(text) => (text as _, Type::TEXT),
                    FenceParam::Integer(number) => (number as _, Type::INT8),
                    FenceParam::Bytes(bytes) => (bytes as _, Type::BYTEA),
                })
                .collect();
            // One round trip, and nothing stays prepared, so that it passes any pooler.
            let rows = self.query_typed(statement.sql(), &params).await.map_err(failed)?;
            Ok(rows.len() as u64)
        }
    }

    #[cfg(feature = "deadpool-postgres")]
    impl Driver for deadpool_postgres::Transaction<'_> {
        const DIALECT: Dialect = DIALECT;

        async fn execute(&mut self, statement: &Statement) -> Result<u64> {
            let inner: &mut tokio_postgres::Transaction<'_> = self;
            inner.execute(statement).await
        }
    }

    fn failed(error: Error) -> database_locks_core::Error {
        match error.as_db_error().cloned() {
            Some(reported) => {
                error::failed(DIALECT, Some(reported.code().code()), reported.message(), error)
            }
            None => error::failed(DIALECT, None, &error.to_string(), error),
        }
    }
}

#[cfg(feature = "mysql_async")]
mod mysql_async {
    use database_locks_core::fence::FenceParam;
    use mysql_async::prelude::Queryable as _;
    use mysql_async::{Error, Params, Row, Value};

    use super::{Dialect, Driver, Result, Statement};
    use crate::error;

    const DIALECT: Dialect = Dialect::MySql;

    impl Driver for mysql_async::Transaction<'_> {
        const DIALECT: Dialect = DIALECT;

        async fn execute(&mut self, statement: &Statement) -> Result<u64> {
            self.exec_drop(statement.sql(), params(statement)).await.map_err(failed)?;
            Ok(self.affected_rows())
        }

        async fn finds(&mut self, query: &Statement) -> Result<bool> {
            let row: Option<Row> =
                self.exec_first(query.sql(), params(query)).await.map_err(failed)?;
            Ok(row.is_some())
        }
    }

    fn params(statement: &Statement) -> Params {
        let values = statement.params().iter().map(|param| match param {
            FenceParam::Text(text) => Value::from(text),
            FenceParam::Integer(number) => Value::from(number),
            FenceParam::Bytes(bytes) => Value::from(bytes),
        });
        Params::Positional(values.collect())
    }

    fn failed(error: Error) -> database_locks_core::Error {
        let code = match &error {
            Error::Server(reported) => Some(reported.code.to_string()),
            _ => None,
        };
        error::failed(DIALECT, code.as_deref(), &error.to_string(), error)
    }
}

#[cfg(any(feature = "sqlx-mysql", feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
mod sqlx {
    use database_locks_core::fence::FenceParam;
    use sqlx::error::DatabaseError;
    use sqlx::{AssertSqlSafe, Error};

    use super::{Dialect, Driver, Result, Statement};
    use crate::error;

    /// A driver for one of the databases, whose codes are had by `$code`.
    macro_rules! driver {
        ($feature:literal, $database:ty, $dialect:expr, $code:expr) => {
            #[cfg(feature = $feature)]
            impl Driver for sqlx::Transaction<'_, $database> {
                const DIALECT: Dialect = $dialect;

                async fn execute(&mut self, statement: &Statement) -> Result<u64> {
                    let done = query!($database, statement).execute(&mut **self).await;
                    done.map(|done| done.rows_affected())
                        .map_err(|error| failed($dialect, error, $code))
                }

                async fn finds(&mut self, query: &Statement) -> Result<bool> {
                    let found = query!($database, query).fetch_optional(&mut **self).await;
                    found.map(|row| row.is_some()).map_err(|error| failed($dialect, error, $code))
                }
            }
        };
    }

    macro_rules! query {
        ($database:ty, $statement:expr) => {{
            let mut query = sqlx::query::<$database>(AssertSqlSafe($statement.sql()));
            for param in $statement.params() {
                query = match param {
                    FenceParam::Text(text) => query.bind(text.clone()),
                    FenceParam::Integer(number) => query.bind(*number),
                    FenceParam::Bytes(bytes) => query.bind(bytes.clone()),
                };
            }
            query
        }};
    }

    driver!("sqlx-postgres", sqlx::Postgres, Dialect::Postgres, |error| {
        error.code().map(|code| code.into_owned())
    });
    driver!("sqlx-mysql", sqlx::MySql, Dialect::MySql, |error| {
        // Its code is an SQLSTATE, which is one for all kinds of errors.
        let error = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?;
        Some(error.number().to_string())
    });
    driver!("sqlx-sqlite", sqlx::Sqlite, Dialect::Sqlite, |error| {
        error.code().map(|code| code.into_owned())
    });

    fn failed(
        dialect: Dialect,
        error: Error,
        code: fn(&dyn DatabaseError) -> Option<String>,
    ) -> database_locks_core::Error {
        let reported = error.as_database_error();
        let code = reported.and_then(code);
        let said = reported.map_or_else(|| error.to_string(), |said| said.message().to_owned());
        error::failed(dialect, code.as_deref(), &said, error)
    }
}
