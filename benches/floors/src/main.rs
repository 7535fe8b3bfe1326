//! What the database itself can do: the statements that a lock could not do without, and the ways to lock that people
//! write by hand. None of them renews, fences, or says that a lock was lost.

mod mysql;
mod postgres;
mod sqlite;

use anyhow::{Result, bail};
use database_locks_bench_worker::{job, serve};

/// How often a lock that is held is asked for again, by those that poll.
const POLL: std::time::Duration = std::time::Duration::from_millis(25);
/// The TTL of those that have one, in seconds.
const TTL: i64 = 10;

#[tokio::main]
async fn main() -> Result<()> {
    let job = job()?;
    match job.system.as_str() {
        "pg-select" => serve(&job, postgres::Select::connect(&job).await?).await,
        "pg-update" => serve(&job, postgres::Update::connect(&job).await?).await,
        "pg-single" => serve(&job, postgres::Single::connect(&job).await?).await,
        "pg-single-unnamed" => serve(&job, postgres::Single::connect_unnamed(&job).await?).await,
        "pg-seed" => serve(&job, postgres::Seed::connect(&job).await?).await,
        "pg-advisory" => serve(&job, postgres::Advisory::connect(&job).await?).await,
        "my-select" => serve(&job, mysql::Select::connect(&job).await?).await,
        "my-update" => serve(&job, mysql::Update::connect(&job).await?).await,
        "my-single" => serve(&job, mysql::Single::connect(&job).await?).await,
        "my-seed" => serve(&job, mysql::Seed::connect(&job).await?).await,
        "my-get-lock" => serve(&job, mysql::GetLock::connect(&job).await?).await,
        "sqlite-naive" => serve(&job, sqlite::Naive::connect(&job).await?).await,
        other => bail!("there is no system {other:?} here"),
    }
}

/// Runs so many tasks at once, until all are done or one has failed.
async fn join<F: Future<Output = Result<()>>>(
    tasks: usize,
    task: impl Fn(usize) -> F,
) -> Result<()> {
    futures_util::future::try_join_all((0..tasks).map(task)).await?;
    Ok(())
}
