//! One text packet of several statements, and what each of them answered.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

/// What one statement answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its rows, where it gives any.
    pub(crate) rows: Vec<Row>,
    /// How many rows it changed. Zero where it gives rows.
    pub(crate) affected: u64,
    /// What it set by `LAST_INSERT_ID(…)` or `AUTO_INCREMENT`. Zero where it gives rows.
    pub(crate) last_insert_id: u64,
}

/// Sends statements that `;` separates, in one packet, and reads one answer for each of them.
///
/// # Errors
///
/// The first error of any of them. The server does not run those after it, and does not undo
/// those before it.
///
/// # Cancel safety
///
/// None: the connection has to be closed.
pub(crate) async fn send(conn: &mut Conn, packet: &str) -> mysql_async::Result<Vec<Answer>> {
    let mut result = conn.query_iter(packet).await?;
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
