#[locked(
    format!("report-{page}"),
    with = Locks::connect(url).await?,
    timeout = "5s",
    ttl = "infinite",
    renew_before = "1m 30s",
    auto_renew = page > 0,
    owner = "me",
    grace = "250ms",
    margin = MARGIN,
    retry = "500ms",
    on_wait = |busy| println!("{busy:?}"),
    on_lost = |reason| println!("{reason}"),
    lease = lease,
    crate = my::reexport,
)]
async fn asynchronous(url: &str, page: u32) -> anyhow::Result<Token> {
    Ok(lease.token())
}

#[locked(with = &state.locks, ttl = page.ttl(), retry = false)]
fn plain(state: &State, page: &Page) -> anyhow::Result<()> {
    Ok(())
}

#[locked("adaptive", ttl = "none", retry = "never")]
fn words() -> anyhow::Result<()> {
    Ok(())
}

#[locked("adaptive", retry = "adaptive")]
fn more_words() -> anyhow::Result<()> {
    Ok(())
}
