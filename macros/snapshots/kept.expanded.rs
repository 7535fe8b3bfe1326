/// Documentation.
#[inline]
#[must_use]
pub(crate) async fn kept<'a, T: ?Sized, const N: usize>(
    #[allow(unused)]
    first: &'a T,
    (mut second, _): (impl Display, u8),
) -> Result<(&'a T, impl Iterator<Item = u8> + use<'a, T, N>), Error>
where
    T: Debug + 'a,
{
    #![allow(unused_mut)]
    let request = ::database_locks::__locked::lock(
        &match ::database_locks::locks() {
            ::core::result::Result::Ok(locks) => locks,
            ::core::result::Result::Err(error) => {
                return <Result<
                    (&'a T, _),
                    Error,
                > as ::database_locks::__locked::Output>::failed(error);
            }
        },
        &("kept"),
    );
    match request
        .run(async move |_| {
            if let ::core::option::Option::Some(output) = ::core::option::Option::None::<
                Result<(&'a T, _), Error>,
            > {
                return output;
            }
            {
                fn inside() {}
                Ok((first, [0].into_iter()))
            }
        })
        .await
    {
        ::core::result::Result::Ok(output) => output,
        ::core::result::Result::Err(error) => {
            <Result<
                (&'a T, _),
                Error,
            > as ::database_locks::__locked::Output>::failed(error)
        }
    }
}
