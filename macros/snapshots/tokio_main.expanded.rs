fn main() -> anyhow::Result<()> {
    let body = async {
        let request = ::database_locks::__locked::lock(
            &(Locks::connect(URL).await?),
            &("main"),
        );
        match request
            .run(async move |_| {
                if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                    anyhow::Result<()>,
                > {
                    return output;
                }
                { work().await }
            })
            .await
        {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => {
                <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
            }
        }
    };
    let body = {
        if false {
            let _: &dyn ::core::future::Future<Output = anyhow::Result<()>> = &body;
        }
        body
    };
    #[allow(
        clippy::expect_used,
        clippy::diverging_sub_expression,
        clippy::needless_return
    )]
    {
        use tokio::runtime::Builder;
        return Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("Failed building the Runtime")
            .block_on(body);
    }
}
