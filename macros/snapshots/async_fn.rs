#[locked("nightly")]
async fn nightly(day: u32) -> Result<u32, database_locks::Error> {
    count(day).await
}
