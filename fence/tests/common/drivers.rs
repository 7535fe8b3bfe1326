//! The drivers.

use deadpool_postgres::{Manager, Pool};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, TxOpts};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio_postgres::NoTls;

use super::Driver;

/// What a driver does as tokio-postgres does it, whose client it holds.
macro_rules! as_of_tokio_postgres {
    () => {
        async fn run(&mut self, sql: &str) {
            self.0.batch_execute(sql).await.unwrap();
        }

        async fn number(&mut self, sql: &str) -> i64 {
            self.0.query_one(sql, &[]).await.unwrap().get(0)
        }

        async fn begin(&mut self) -> Self::Tx<'_> {
            self.0.transaction().await.unwrap()
        }

        async fn write(tx: &mut Self::Tx<'_>, sql: &str) -> Result<(), String> {
            tx.batch_execute(sql).await.map_err(|error| error.to_string())
        }

        async fn commit(tx: Self::Tx<'_>) -> Result<(), String> {
            tx.commit().await.map_err(|error| error.to_string())
        }

        async fn rollback(tx: Self::Tx<'_>) {
            tx.rollback().await.unwrap();
        }
    };
}

pub struct TokioPostgres(pub tokio_postgres::Client);

impl Driver for TokioPostgres {
    type Tx<'a> = tokio_postgres::Transaction<'a>;

    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    as_of_tokio_postgres!();
}

pub struct Deadpool(deadpool_postgres::Object);

impl Driver for Deadpool {
    type Tx<'a> = deadpool_postgres::Transaction<'a>;

    async fn connect(url: &str) -> Self {
        let manager = Manager::new(url.parse().unwrap(), NoTls);
        Self(Pool::builder(manager).build().unwrap().get().await.unwrap())
    }

    as_of_tokio_postgres!();
}

pub struct MysqlAsync(pub Conn);

impl Driver for MysqlAsync {
    type Tx<'a> = mysql_async::Transaction<'a>;

    async fn connect(url: &str) -> Self {
        Self(Conn::new(Opts::from_url(url).unwrap()).await.unwrap())
    }

    async fn run(&mut self, sql: &str) {
        self.0.query_drop(sql).await.unwrap();
    }

    async fn number(&mut self, sql: &str) -> i64 {
        self.0.query_first(sql).await.unwrap().unwrap()
    }

    async fn begin(&mut self) -> Self::Tx<'_> {
        self.0.start_transaction(TxOpts::default()).await.unwrap()
    }

    async fn write(tx: &mut Self::Tx<'_>, sql: &str) -> Result<(), String> {
        tx.query_drop(sql).await.map_err(|error| error.to_string())
    }

    async fn commit(tx: Self::Tx<'_>) -> Result<(), String> {
        tx.commit().await.map_err(|error| error.to_string())
    }

    async fn rollback(tx: Self::Tx<'_>) {
        tx.rollback().await.unwrap();
    }
}

macro_rules! sqlx_driver {
    ($driver:ident, $database:ident, $connection:ty) => {
        pub struct $driver(pub $connection);

        impl Driver for $driver {
            type Tx<'a> = sqlx::Transaction<'a, sqlx::$database>;

            async fn connect(url: &str) -> Self {
                Self(<$connection>::connect(url).await.unwrap())
            }

            async fn run(&mut self, sql: &str) {
                sqlx::query(AssertSqlSafe(sql)).execute(&mut self.0).await.unwrap();
            }

            async fn number(&mut self, sql: &str) -> i64 {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.0).await.unwrap()
            }

            async fn begin(&mut self) -> Self::Tx<'_> {
                self.0.begin().await.unwrap()
            }

            async fn write(tx: &mut Self::Tx<'_>, sql: &str) -> Result<(), String> {
                let done = sqlx::query(AssertSqlSafe(sql)).execute(&mut **tx).await;
                done.map(drop).map_err(|error| error.to_string())
            }

            async fn commit(tx: Self::Tx<'_>) -> Result<(), String> {
                tx.commit().await.map_err(|error| error.to_string())
            }

            async fn rollback(tx: Self::Tx<'_>) {
                tx.rollback().await.unwrap();
            }
        }
    };
}

sqlx_driver!(SqlxPostgres, Postgres, sqlx::PgConnection);
sqlx_driver!(SqlxMysql, MySql, sqlx::MySqlConnection);
sqlx_driver!(SqlxSqlite, Sqlite, sqlx::SqliteConnection);
