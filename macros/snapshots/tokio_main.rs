#[locked("main", with = Locks::connect(URL).await?)]
fn main() -> anyhow::Result<()> {
    let body = async { work().await };
    let body = {
        if false {
            let _: &dyn ::core::future::Future<Output = anyhow::Result<()>> = &body;
        }
        body
    };
    #[allow(clippy::expect_used, clippy::diverging_sub_expression, clippy::needless_return)]
    {
        use tokio::runtime::Builder;
        return Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("Failed building the Runtime")
            .block_on(body);
    }
}
