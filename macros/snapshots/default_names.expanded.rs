async fn free() -> anyhow::Result<()> {
    let request = ::database_locks::__locked::lock(
        &match ::database_locks::locks() {
            ::core::result::Result::Ok(locks) => locks,
            ::core::result::Result::Err(error) => {
                return <anyhow::Result<
                    (),
                > as ::database_locks::__locked::Output>::failed(error);
            }
        },
        &::database_locks::__locked::function_name(
            ::core::module_path!(),
            "free",
            ::core::any::type_name_of_val(&|| ()),
        ),
    );
    match request
        .run(async move |_| {
            if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                anyhow::Result<()>,
            > {
                return output;
            }
            { Ok(()) }
        })
        .await
    {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
impl Report {
    async fn method(&self) -> anyhow::Result<()> {
        let request = ::database_locks::__locked::lock(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <anyhow::Result<
                        (),
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &::database_locks::__locked::method_name(
                ::core::module_path!(),
                ::core::any::type_name::<Self>(),
                "method",
            ),
        );
        match request
            .run(async move |_| {
                if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                    anyhow::Result<()>,
                > {
                    return output;
                }
                { Ok(()) }
            })
            .await
        {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => {
                <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
            }
        }
    }
    fn constructor() -> Result<Self, Error> {
        let request = ::database_locks::__locked::lock_blocking(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <Result<
                        Self,
                        Error,
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &::database_locks::__locked::method_name(
                ::core::module_path!(),
                ::core::any::type_name::<Self>(),
                "constructor",
            ),
        );
        match request.run(move |_| -> Result<Self, Error> { Ok(Self) }) {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => {
                <Result<
                    Self,
                    Error,
                > as ::database_locks::__locked::Output>::failed(error)
            }
        }
    }
    async fn r#type() -> anyhow::Result<()> {
        let request = ::database_locks::__locked::lock(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <anyhow::Result<
                        (),
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &::database_locks::__locked::function_name(
                ::core::module_path!(),
                "type",
                ::core::any::type_name_of_val(&|| ()),
            ),
        );
        match request
            .run(async move |_| {
                if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                    anyhow::Result<()>,
                > {
                    return output;
                }
                { Ok(()) }
            })
            .await
        {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => {
                <anyhow::Result<()> as ::database_locks::__locked::Output>::failed(error)
            }
        }
    }
}
