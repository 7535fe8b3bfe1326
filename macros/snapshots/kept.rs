/// Documentation.
#[inline]
#[locked("kept")]
#[must_use]
pub(crate) async fn kept<'a, T: ?Sized, const N: usize>(
    #[allow(unused)] first: &'a T,
    (mut second, _): (impl Display, u8),
) -> Result<(&'a T, impl Iterator<Item = u8> + use<'a, T, N>), Error>
where
    T: Debug + 'a,
{
    #![allow(unused_mut)]
    fn inside() {}
    Ok((first, [0].into_iter()))
}
