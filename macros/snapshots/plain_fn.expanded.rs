fn nightly(day: u32) -> Result<u32, database_locks::Error> {
    let request = ::database_locks::__locked::lock_blocking(
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
    match request.run(move |_| -> Result<u32, database_locks::Error> { count(day) }) {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <Result<
                u32,
                database_locks::Error,
            > as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
