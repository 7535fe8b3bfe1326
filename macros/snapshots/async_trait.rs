impl Job for Report {
    #[locked("job", with = self.locks)]
    fn run<'life0, 'async_trait>(
        &'life0 self,
        __arg1: (u8, u8),
    ) -> ::core::pin::Pin<
        Box<dyn ::core::future::Future<Output = Result<u8, Error>> + ::core::marker::Send + 'async_trait>,
    >
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            if let ::core::option::Option::Some(__ret) = ::core::option::Option::None::<Result<u8, Error>> {
                #[allow(unreachable_code)]
                return __ret;
            }
            let __self = self;
            let (a, b) = __arg1;
            let __ret: Result<u8, Error> = { Ok(__self.sum(a, b)) };
            #[allow(unreachable_code)]
            __ret
        })
    }
}

#[locked("future")]
fn future(text: &str) -> impl Future<Output = Result<usize, Error>> {
    let length = text.len();
    async move { Ok(length) }
}
