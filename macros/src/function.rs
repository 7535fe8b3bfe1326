//! A function as it was written: its signature taken apart, its body left as it is.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, TokenStreamExt as _};
use syn::parse::{Parse, ParseStream};
use syn::{AttrStyle, Attribute, ReturnType, Signature, Token, Type, Visibility, braced, token};

pub(crate) struct Function {
    attributes: Vec<Attribute>,
    visibility: Visibility,
    pub(crate) signature: Signature,
    brace: token::Brace,
    pub(crate) body: TokenStream,
}

impl Function {
    /// The function, or why it cannot wait for a lock.
    pub(crate) fn parse(item: TokenStream) -> syn::Result<Self> {
        let function: Self = syn::parse2(item)?;
        let Signature { constness, unsafety, abi, .. } = &function.signature;
        if let Some(token) = constness {
            return error(token, "a `const fn` cannot wait for a lock: remove `const`");
        }
        if let Some(token) = unsafety {
            return error(
                token,
                "an `unsafe fn` cannot be `#[locked]`: call it from a safe function that is",
            );
        }
        if let Some(abi) = abi {
            return error(
                abi,
                "an `extern fn` cannot be `#[locked]`: call a function that is from it",
            );
        }
        Ok(function)
    }

    /// The body in its braces.
    pub(crate) fn block(&self) -> TokenStream {
        let mut block = TokenStream::new();
        of_the_expansion(self.brace).surround(&mut block, |block| self.body.to_tokens(block));
        block
    }

    /// What the signature says is returned.
    pub(crate) fn output(&self) -> Option<&Type> {
        match &self.signature.output {
            ReturnType::Default => None,
            ReturnType::Type(_, output) => Some(output),
        }
    }
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut attributes = input.call(Attribute::parse_outer)?;
        let rest = input.fork();
        let (Ok(visibility), Ok(signature)) = (input.parse(), input.parse()) else {
            return Err(rest.error(
                "`#[locked]` belongs on a function or a method; on a type or an `impl`, put it on \
                 each function in it that needs the lock",
            ));
        };
        if input.peek(Token![;]) {
            return error(
                &signature,
                "`#[locked]` needs a body: put it on the functions that implement this one",
            );
        }
        let body;
        let brace = braced!(body in input);
        attributes.extend(body.call(Attribute::parse_inner)?);
        Ok(Self { attributes, visibility, signature, brace, body: body.parse()? })
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let outer = |attribute: &&Attribute| matches!(attribute.style, AttrStyle::Outer);
        tokens.append_all(self.attributes.iter().filter(outer));
        self.visibility.to_tokens(tokens);
        self.signature.to_tokens(tokens);
        self.brace.surround(tokens, |tokens| {
            tokens.append_all(self.attributes.iter().filter(|attribute| !outer(attribute)));
            self.body.to_tokens(tokens);
        });
    }
}

/// Braces that errors point to, but that no lint takes for the user's.
pub(crate) fn of_the_expansion(brace: token::Brace) -> token::Brace {
    token::Brace(Span::mixed_site().located_at(brace.span.join()))
}

fn error<T>(at: impl ToTokens, message: &str) -> syn::Result<T> {
    Err(syn::Error::new_spanned(at, message))
}
