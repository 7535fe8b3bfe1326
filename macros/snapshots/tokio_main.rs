#[locked("main", with = Locks::connect(URL).await?)]
fn main() -> anyhow::Result<()> {
    let body = async { work().await };
    #[allow(clippy::expect_used, clippy::diverging_sub_expression, clippy::needless_return)]
    {
        return tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("Failed building the Runtime")
            .block_on(body);
    }
}
