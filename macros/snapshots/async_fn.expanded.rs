async fn nightly(day: u32) -> Result<u32, database_locks::Error> {
    let request = ::database_locks::__locked::lock(
        &match ::database_locks::locks() {
            ::core::result::Result::Ok(locks) => locks,
            ::core::result::Result::Err(error) => {
                return <Result<
                    u32,
                    database_locks::Error,
                > as ::database_locks::__locked::Output>::failed(error);
            }
        },
        &("nightly"),
    );
    match request
        .run(async move |_| {
            if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                Result<u32, database_locks::Error>,
            > {
                return output;
            }
            { count(day).await }
        })
        .await
    {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <Result<
                u32,
                database_locks::Error,
            > as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
