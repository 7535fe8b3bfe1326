//! What is written in the attribute's parentheses.

use std::time::Duration;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, quote_spanned};
use syn::ext::IdentExt as _;
use syn::parse::{Parse, ParseStream};
use syn::visit::{self, Visit};
use syn::{
    Expr, ExprAsync, ExprAwait, ExprClosure, ExprGroup, ExprLit, ExprParen, Ident, Lit, LitStr,
    Path, Token, parse_quote,
};

pub(crate) struct Options {
    /// An expression for the lock's name.
    pub(crate) name: Option<Expr>,
    /// An expression for the locks to use.
    pub(crate) with: Option<Expr>,
    /// What the body calls its lease.
    pub(crate) lease: Option<Ident>,
    /// Where `database-locks` is found.
    pub(crate) krate: Path,
    /// The options that are methods of a request, in the order in which they are written.
    pub(crate) methods: Vec<Method>,
}

pub(crate) struct Method {
    pub(crate) name: Ident,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Expression(Expr),
    Duration(Duration),
    InfiniteTtl,
    RetryEvery(Duration),
    RetryNever,
    RetryAdaptive,
}

/// The options that are methods of a request.
const METHODS: [&str; 10] = [
    "timeout",
    "ttl",
    "renew_before",
    "auto_renew",
    "owner",
    "grace",
    "margin",
    "retry",
    "on_wait",
    "on_lost",
];
const OTHERS: [&str; 3] = ["with", "lease", "crate"];

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut options = Self {
            name: None,
            with: None,
            lease: None,
            krate: parse_quote!(::database_locks),
            methods: Vec::new(),
        };
        if !input.is_empty() && !is_option(input) {
            options.name = Some(input.parse()?);
            next(input)?;
        }
        let mut given: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            if !is_option(input) {
                return Err(input.error("expected `option = value`; the name comes first"));
            }
            let option = input.call(Ident::parse_any)?;
            input.parse::<Token![=]>()?;
            if given.contains(&option) {
                return Err(syn::Error::new(option.span(), format!("`{option}` is given twice")));
            }
            options.set(&option, input)?;
            given.push(option);
            next(input)?;
        }
        Ok(options)
    }
}

impl Options {
    /// An `.await` that whoever evaluates the expressions would have to be async for.
    pub(crate) fn find_await(&self) -> Option<&ExprAwait> {
        let mut find = FindAwait(None);
        let methods = self.methods.iter().filter_map(|method| match &method.value {
            Value::Expression(expression) => Some(expression),
            _ => None,
        });
        for expression in self.with.iter().chain(&self.name).chain(methods) {
            find.visit_expr(expression);
        }
        find.0
    }

    fn set(&mut self, option: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        match option.to_string().as_str() {
            "with" => self.with = Some(input.parse()?),
            "lease" => self.lease = Some(input.parse()?),
            "crate" => self.krate = input.call(Path::parse_mod_style)?,
            method if METHODS.contains(&method) => {
                let value = Value::of(method, input.parse()?)?;
                self.methods.push(Method { name: option.clone(), value });
            }
            "name" => {
                let message = "the name comes first, without `name =`: `#[locked(\"nightly\")]`";
                return Err(syn::Error::new(option.span(), message));
            }
            _ => {
                let known: Vec<_> =
                    METHODS.iter().chain(&OTHERS).map(|known| format!("`{known}`")).collect();
                let message = format!("there is no such option; there are {}", known.join(", "));
                return Err(syn::Error::new(option.span(), message));
            }
        }
        Ok(())
    }
}

impl Value {
    fn of(option: &str, expression: Expr) -> syn::Result<Self> {
        let Expr::Lit(ExprLit { lit, .. }) = without_groups(&expression) else {
            return Ok(Self::Expression(expression));
        };
        match (option, lit) {
            ("timeout" | "ttl" | "renew_before" | "grace" | "margin" | "retry", lit) => match lit {
                Lit::Str(text) => Self::of_text(option, text),
                Lit::Bool(retry) if option == "retry" => {
                    Ok(if retry.value { Self::RetryAdaptive } else { Self::RetryNever })
                }
                _ => Err(syn::Error::new_spanned(
                    lit,
                    "a duration has a unit: write for example \"250ms\", \"30s\" or \"1m30s\"",
                )),
            },
            _ => Ok(Self::Expression(expression)),
        }
    }

    fn of_text(option: &str, text: &LitStr) -> syn::Result<Self> {
        Ok(match (option, text.value().as_str()) {
            ("ttl", "infinite" | "none") => Self::InfiniteTtl,
            ("retry", "never") => Self::RetryNever,
            ("retry", "adaptive") => Self::RetryAdaptive,
            ("retry", _) => Self::RetryEvery(duration(text)?),
            _ => Self::Duration(duration(text)?),
        })
    }

    pub(crate) fn tokens(&self, krate: &Path) -> TokenStream {
        let span = Span::mixed_site();
        match self {
            Self::Expression(expression) => expression.to_token_stream(),
            Self::Duration(duration) => duration_tokens(*duration),
            Self::InfiniteTtl => quote_spanned!(span=> #krate::Ttl::Infinite),
            Self::RetryEvery(interval) => {
                let interval = duration_tokens(*interval);
                quote_spanned!(span=> #krate::Retry::Every(#interval))
            }
            Self::RetryNever => quote_spanned!(span=> #krate::Retry::Never),
            Self::RetryAdaptive => quote_spanned!(span=> #krate::Retry::Adaptive),
        }
    }
}

struct FindAwait<'a>(Option<&'a ExprAwait>);

impl<'a> Visit<'a> for FindAwait<'a> {
    fn visit_expr_await(&mut self, found: &'a ExprAwait) {
        self.0 = Some(found);
    }

    fn visit_expr_async(&mut self, _: &'a ExprAsync) {}

    fn visit_expr_closure(&mut self, closure: &'a ExprClosure) {
        if closure.asyncness.is_none() {
            visit::visit_expr_closure(self, closure);
        }
    }
}

/// What a macro of the user's hands over is in an invisible group.
fn without_groups(mut expression: &Expr) -> &Expr {
    while let Expr::Group(ExprGroup { expr, .. }) | Expr::Paren(ExprParen { expr, .. }) = expression
    {
        expression = expr;
    }
    expression
}

fn is_option(input: ParseStream<'_>) -> bool {
    input.peek(Ident::peek_any)
        && input.peek2(Token![=])
        && !input.peek2(Token![==])
        && !input.peek2(Token![=>])
}

fn next(input: ParseStream<'_>) -> syn::Result<()> {
    if !input.is_empty() {
        input.parse::<Token![,]>()?;
    }
    Ok(())
}

fn duration(text: &LitStr) -> syn::Result<Duration> {
    let value = text.value();
    let error = |why: &dyn std::fmt::Display| {
        let message = format!("not a duration: {why}; write for example \"250ms\" or \"1m30s\"");
        syn::Error::new(text.span(), message)
    };
    // The parser panics where a sum overflows.
    let longest_number = value.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if value.len() > 64 || longest_number.is_some_and(|digits| digits > 9) {
        return Err(error(&"too long"));
    }
    humantime::parse_duration(&value).map_err(|why| error(&why))
}

fn duration_tokens(duration: Duration) -> TokenStream {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let span = Span::mixed_site();
    if nanos == 0 {
        quote_spanned!(span=> ::core::time::Duration::from_secs(#seconds))
    } else {
        quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanos))
    }
}
