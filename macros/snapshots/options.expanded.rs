async fn asynchronous(url: &str, page: u32) -> anyhow::Result<Token> {
    let request = my::reexport::__locked::lock(
            &(Locks::connect(url).await?),
            &(format!("report-{page}")),
        )
        .timeout(::core::time::Duration::from_secs(5u64))
        .ttl(my::reexport::Ttl::Infinite)
        .renew_before(::core::time::Duration::from_secs(90u64))
        .auto_renew(page > 0)
        .owner(&("me"))
        .grace(::core::time::Duration::new(0u64, 250000000u32))
        .margin(MARGIN)
        .retry(
            my::reexport::Retry::Every(::core::time::Duration::new(0u64, 500000000u32)),
        )
        .on_wait(|busy| println!("{busy:?}"))
        .on_lost(|reason| println!("{reason}"));
    match request
        .run(async move |lease| {
            if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                anyhow::Result<Token>,
            > {
                return output;
            }
            { Ok(lease.token()) }
        })
        .await
    {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <anyhow::Result<Token> as my::reexport::__locked::Output>::failed(error)
        }
    }
}
fn plain(state: &State, page: &Page) -> anyhow::Result<()> {
    let request = ::database_locks::__locked::lock_blocking(
            &(&state.locks),
            &::database_locks::__locked::function_name(
                ::core::module_path!(),
                "plain",
                ::core::any::type_name_of_val(&|| ()),
            ),
        )
        .ttl(page.ttl())
        .retry(::database_locks::Retry::Never);
    match request.run(move |_| -> anyhow::Result<()> { Ok(()) }) {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
fn words() -> anyhow::Result<()> {
    let request = ::database_locks::__locked::lock_blocking(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <anyhow::Result<
                        (),
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &("adaptive"),
        )
        .ttl(::database_locks::Ttl::Infinite)
        .retry(::database_locks::Retry::Never);
    match request.run(move |_| -> anyhow::Result<()> { Ok(()) }) {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
fn more_words() -> anyhow::Result<()> {
    let request = ::database_locks::__locked::lock_blocking(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <anyhow::Result<
                        (),
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &("adaptive"),
        )
        .retry(::database_locks::Retry::Adaptive);
    match request.run(move |_| -> anyhow::Result<()> { Ok(()) }) {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
