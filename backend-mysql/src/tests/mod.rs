//! What this crate does without its verbs, against real servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connections;
mod galera;
mod sessions;
mod tls;

use database_locks_test_servers::{Access, Mysqld, Product, Server as _};
use mysql_async::FromRowError;
use mysql_async::prelude::FromRow;

use crate::config::MysqlConfig;
use crate::packet::Answer;
use crate::pool::{Connections, InUse};

/// The connections that a URL leads to.
fn connections(url: &str) -> Connections {
    Connections::new(&MysqlConfig::from_url(url).unwrap()).unwrap()
}

/// The rows of an answer.
fn rows<T: FromRow>(answer: Answer) -> Vec<T> {
    let rows: Result<Vec<T>, FromRowError> =
        answer.rows.into_iter().map(FromRow::from_row_opt).collect();
    rows.unwrap()
}

/// What a statement that gives one row gives.
async fn one<T: FromRow>(connection: InUse, statement: &str) -> T {
    let answer = connection.run(statement).await.unwrap().pop().unwrap();
    rows(answer).pop().unwrap()
}

/// An ordinary user of the server, whom `init_connect` spares nothing.
fn ordinary_user<P: Product>(server: &Mysqld<P>) -> Access {
    server
        .sql("CREATE USER ordinary IDENTIFIED BY 'hunter2'; GRANT ALL ON app.* TO ordinary")
        .unwrap();
    server.as_user("ordinary", "hunter2")
}

/// The URL of several servers, as the user of the first of them.
fn url_of(access: &Access, ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let (credentials, _) = access.url().rsplit_once('@').unwrap();
    format!("{credentials}@{}/{}", hosts.join(","), access.database_name())
}

/// A port that nobody listens on, as the server that had it is gone.
fn dead_port<P: Product>() -> u16 {
    Mysqld::<P>::start().unwrap().port()
}
