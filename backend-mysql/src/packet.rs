//! What is sent at once, and what each of its statements answered.

use mysql_async::prelude::{Protocol, Queryable};
use mysql_async::{Conn, Params, QueryResult, Row};

/// What one statement answered.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Its rows, where it gives any.
    pub(crate) rows: Vec<Row>,
    /// How many rows it changed. Zero where it gives rows.
    pub(crate) affected: u64,
    /// What it set by `LAST_INSERT_ID(…)` or `AUTO_INCREMENT`. Zero where it gives rows.
    pub(crate) last_insert_id: u64,
}

/// What takes one round trip.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Request<'r> {
    /// Statements that `;` separates.
    Packet(&'r str),
    /// One statement, which is prepared the first time that a connection gets it.
    Prepared(&'r str, &'r Params),
}

/// Sends a request, and reads one answer for each of its statements.
///
/// # Errors
///
/// The first error of any of them. The server does not run those after it, and does not undo
/// those before it.
///
/// # Cancel safety
///
/// None: the connection has to be closed.
pub(crate) async fn send(
    conn: &mut Conn,
    request: Request<'_>,
) -> mysql_async::Result<Vec<Answer>> {
    match request {
        Request::Packet(packet) => answers(conn.query_iter(packet).await?).await,
        Request::Prepared(statement, params) => {
            answers(conn.exec_iter(statement, params).await?).await
        }
    }
}

async fn answers<P: Protocol>(
    mut result: QueryResult<'_, '_, P>,
) -> mysql_async::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    while let Some(columns) = result.columns() {
        // To ask for the next row goes on to the next statement where there is no row left, and
        // these two are lost then.
        let (affected, last_insert_id) = match columns.is_empty() {
            true => (result.affected_rows(), result.last_insert_id().unwrap_or(0)),
            false => (0, 0),
        };
        let mut rows = Vec::new();
        while let Some(row) = result.next().await? {
            rows.push(row);
        }
        answers.push(Answer { rows, affected, last_insert_id });
    }
    // An error after the first statement ends the loop like the last answer, but is still pending.
    result.drop_result().await?;
    Ok(answers)
}
