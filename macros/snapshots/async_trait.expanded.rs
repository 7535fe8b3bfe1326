impl Job for Report {
    fn run<'life0, 'async_trait>(
        &'life0 self,
        __arg1: (u8, u8),
    ) -> ::core::pin::Pin<
        Box<
            dyn ::core::future::Future<
                Output = Result<u8, Error>,
            > + ::core::marker::Send + 'async_trait,
        >,
    >
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            if let ::core::option::Option::Some(__ret) = ::core::option::Option::None::<
                Result<u8, Error>,
            > {
                #[allow(unreachable_code)] return __ret;
            }
            let __self = self;
            let (a, b) = __arg1;
            let __ret: Result<u8, Error> = {
                let request = ::database_locks::__locked::lock(
                    &(__self.locks),
                    &("job"),
                );
                match request
                    .run(async move |_| {
                        if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                            Result<u8, Error>,
                        > {
                            return output;
                        }
                        { Ok(__self.sum(a, b)) }
                    })
                    .await
                {
                    ::core::result::Result::Ok(output) => output,
                    ::core::result::Result::Err(error) => {
                        <Result<
                            u8,
                            Error,
                        > as ::database_locks::__locked::Output>::failed(error)
                    }
                }
            };
            #[allow(unreachable_code)] __ret
        })
    }
}
fn future(text: &str) -> impl Future<Output = Result<usize, Error>> {
    let length = text.len();
    async move {
        let request = ::database_locks::__locked::lock(
            &match ::database_locks::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <Result<
                        usize,
                        Error,
                    > as ::database_locks::__locked::Output>::failed(error);
                }
            },
            &("future"),
        );
        match request
            .run(async move |_| {
                if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                    Result<usize, Error>,
                > {
                    return output;
                }
                { Ok(length) }
            })
            .await
        {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => {
                <Result<
                    usize,
                    Error,
                > as ::database_locks::__locked::Output>::failed(error)
            }
        }
    }
}
