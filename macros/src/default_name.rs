//! The name of a lock that is given none.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens as _, quote_spanned};
use syn::ext::IdentExt as _;
use syn::{Path, Signature};

/// An expression for `module::path::Type::function`.
///
/// Which type a function belongs to, its own tokens do not say. Where they prove that there is a
/// `Self`, it is asked; elsewhere a closure is, since its type carries where it stands.
pub(crate) fn default_name(krate: &Path, signature: &Signature) -> TokenStream {
    let function = signature.ident.unraw().to_string();
    if signature.receiver().is_some() || mentions_self(signature.to_token_stream()) {
        quote_spanned! {Span::mixed_site()=>
            #krate::__locked::method_name(
                ::core::module_path!(),
                ::core::any::type_name::<Self>(),
                #function,
            )
        }
    } else {
        quote_spanned! {Span::mixed_site()=>
            #krate::__locked::function_name(
                ::core::module_path!(),
                #function,
                ::core::any::type_name_of_val(&|| ()),
            )
        }
    }
}

fn mentions_self(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "Self",
        TokenTree::Group(group) => mentions_self(group.stream()),
        _ => false,
    })
}
