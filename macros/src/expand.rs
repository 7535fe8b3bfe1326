//! From a function to one that does the same under a lock.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote_spanned};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::visit::Visit;
use syn::visit_mut::VisitMut;
use syn::{
    Block, Expr, ExprAsync, ExprBlock, ExprCall, ExprClosure, ExprLit, ExprPath, ExprReturn,
    GenericArgument, Ident, Item, Lit, Local, LocalInit, Pat, PathArguments, Stmt, Token, Type,
    TypeInfer, TypeParamBound, visit_mut,
};

use crate::default_name::default_name;
use crate::function::{self, Function};
use crate::options::Options;

/// The function under a lock. What cannot be one stays as it is, beside an error.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    match try_expand(options, item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let mut tokens = error.into_compile_error();
            tokens.extend(item);
            tokens
        }
    }
}

fn try_expand(options: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let mut function = Function::parse(item)?;
    let options: Options = syn::parse2(options)?;
    function.body = if function.signature.asyncness.is_some() {
        let output = checked_output(function.output(), &function)?;
        let request = request(&options, &function, &output, "lock");
        async_body(&options, &request, &output, &function.block())
    } else if let Some(body) = body_of_expanded(&options, &function)? {
        body
    } else {
        if let Some(future) = function.output().filter(|output| future_output(output).is_some()) {
            return Err(syn::Error::new_spanned(
                future,
                "the lock would be released before this future is done: write an `async fn`, or \
                 end in `async move { .. }` or `Box::pin(async move { .. })`",
            ));
        }
        let output = checked_output(function.output(), &function)?;
        plain_body(&options, &function, &output)?
    };
    Ok(function.into_token_stream())
}

fn async_body(
    options: &Options,
    request: &TokenStream,
    output: &Type,
    block: &TokenStream,
) -> TokenStream {
    let krate = &options.krate;
    let span = Span::mixed_site();
    let lease = lease(options);
    // An async closure whose output is annotated coerces only some of what it returns to that type;
    // one whose first `return` has the type coerces all.
    quote_spanned! {span=>
        let request = #request;
        match request
            .run(async move |#lease| {
                if let ::core::option::Option::Some(output) = ::core::option::Option::None::<#output> {
                    return output;
                }
                #block
            })
            .await
        {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => <#output as #krate::__locked::Output>::failed(error),
        }
    }
}

fn plain_body(options: &Options, function: &Function, output: &Type) -> syn::Result<TokenStream> {
    let krate = &options.krate;
    let span = Span::mixed_site();
    let request = request(options, function, output, "lock_blocking");
    if let Some(at) = options.find_await() {
        return Err(syn::Error::new_spanned(
            at,
            "`.await` needs an `async fn`, which this is not (or not any more: put `#[locked]` \
             above an attribute that makes a plain function of it)",
        ));
    }
    let (lease, block) = (lease(options), function.block());
    if let Ok(body) = syn::parse2::<Block>(block.clone())
        && let Some(call) = body.stmts.last().and_then(last_block_on)
    {
        return Err(syn::Error::new_spanned(
            call,
            "`#[locked]` does not know this form of `block_on`, and could not stop the work where the lock \
             is lost: put `#[locked]` above the attribute that writes it, or on the `async fn` whose \
             future this waits for",
        ));
    }
    Ok(quote_spanned! {span=>
        let request = #request;
        match request.run(move |#lease| -> #output #block) {
            ::core::result::Result::Ok(output) => output,
            ::core::result::Result::Err(error) => <#output as #krate::__locked::Output>::failed(error),
        }
    })
}

/// The request with its options. All expressions stand in the function itself, before the work, so
/// that they see its arguments, and may `.await` where the function is async.
fn request(options: &Options, function: &Function, output: &Type, lock: &str) -> TokenStream {
    let krate = &options.krate;
    let span = Span::mixed_site();
    let lock = Ident::new(lock, span);
    let locks = match &options.with {
        Some(with) => borrowed(with),
        None => quote_spanned! {span=>
            &match #krate::locks() {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => {
                    return <#output as #krate::__locked::Output>::failed(error);
                }
            }
        },
    };
    let name = match &options.name {
        Some(name) => borrowed(name),
        None => {
            let name = default_name(krate, &function.signature);
            quote_spanned!(span=> &#name)
        }
    };
    let methods = options.methods.iter().map(|method| {
        let (name, value) = (&method.name, method.value.tokens(krate));
        let value = if name == "owner" { borrowed(value) } else { value };
        quote_spanned!(span=> .#name(#value))
    });
    quote_spanned!(span=> #krate::__locked::#lock(#locks, #name) #(#methods)*)
}

/// A reference to what the user's expression gives, so that the body can use it, too. The compiler
/// points to the expression if it is of a wrong type.
fn borrowed(expression: impl ToTokens) -> TokenStream {
    quote_spanned!(Span::mixed_site().located_at(expression.span())=> &(#expression))
}

fn lease(options: &Options) -> TokenStream {
    match &options.lease {
        Some(lease) => lease.to_token_stream(),
        None => quote_spanned!(Span::mixed_site()=> _),
    }
}

/// The body of a plain function that another attribute has made of an async one: the lock goes
/// around what was the async function's body. `None` if it is not one of the known forms:
///
/// - `Box::pin(async move { ... })` or `async move { ... }` at the end, returning a future, as
///   `#[async_trait]` writes it;
/// - `let body = async { ... };` at the start and `return runtime.block_on(body);` at the end, as
///   `#[tokio::main]` and `#[tokio::test]` write it. There may be nothing beside that does anything,
///   since it would not be under the lock.
fn body_of_expanded(options: &Options, function: &Function) -> syn::Result<Option<TokenStream>> {
    let Ok(mut block) = syn::parse2::<Block>(function.block()) else {
        return Ok(None);
    };
    if let Some(future) = function.output().and_then(future_output)
        && let Some((before, inner)) = returned_async_block(&mut block)
    {
        if let Some(other) = find_return(before) {
            return Err(syn::Error::new_spanned(
                other,
                "this future would not be under the lock: only the `async` block at the end is, so \
                 do this inside it",
            ));
        }
        let output = checked_output(Some(&future), function)?;
        lock_async_trait(options, function, &output, inner);
    } else if let Some(inner) = blocked_on_async_block(&mut block) {
        let output = checked_output(function.output(), function)?;
        let request = request(options, function, &output, "lock");
        lock_block(&mut inner.block, options, &request, &output);
    } else {
        return Ok(None);
    }
    Ok(Some(block.stmts.iter().map(ToTokens::to_token_stream).collect()))
}

/// Puts the lock into an async block, around what `#[async_trait]` made of the function's body where
/// it can be told from the unpacking of the arguments, and around all of it elsewhere.
fn lock_async_trait(options: &Options, function: &Function, output: &Type, inner: &mut ExprAsync) {
    let statements = &mut inner.block.stmts;
    let mut request = request(options, function, output, "lock");
    let renames_self = statements
        .iter()
        .any(|statement| matches!(statement, Stmt::Local(local) if declares(local, "__self")));
    if let [.., Stmt::Local(local), Stmt::Expr(_, None)] = &mut statements[..]
        && declares(local, "__ret")
        && let Some(LocalInit { expr, .. }) = &mut local.init
        && let Expr::Block(body) = &mut **expr
    {
        if renames_self {
            request = rename_self(request);
        }
        lock_block(&mut body.block, options, &request, output);
    } else {
        lock_block(&mut inner.block, options, &request, output);
    }
}

fn lock_block(block: &mut Block, options: &Options, request: &TokenStream, output: &Type) {
    block.brace_token = function::of_the_expansion(block.brace_token);
    let locked = async_body(options, request, output, &block.to_token_stream());
    block.stmts = vec![Stmt::Expr(Expr::Verbatim(locked), None)];
}

fn find_return(statements: &[Stmt]) -> Option<&ExprReturn> {
    let mut find = FindReturn(None);
    statements
        .iter()
        .filter(|statement| !does_nothing(statement))
        .for_each(|statement| find.visit_stmt(statement));
    find.0
}

/// A `return` of the function itself.
struct FindReturn<'a>(Option<&'a ExprReturn>);

impl<'a> Visit<'a> for FindReturn<'a> {
    fn visit_expr_return(&mut self, found: &'a ExprReturn) {
        self.0 = Some(found);
    }

    fn visit_expr_async(&mut self, _: &'a ExprAsync) {}

    fn visit_expr_closure(&mut self, _: &'a ExprClosure) {}

    fn visit_item(&mut self, _: &'a Item) {}
}

fn declares(local: &Local, name: &str) -> bool {
    let pattern = match &local.pat {
        Pat::Type(typed) => &typed.pat,
        pattern => pattern,
    };
    matches!(pattern, Pat::Ident(declared) if declared.ident == name)
}

/// What the attribute's expressions call `self` is called `__self` after the arguments' unpacking.
fn rename_self(tokens: TokenStream) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Ident(ident) if ident == "self" => {
                TokenTree::Ident(Ident::new("__self", ident.span()))
            }
            TokenTree::Group(group) => {
                let mut renamed =
                    proc_macro2::Group::new(group.delimiter(), rename_self(group.stream()));
                renamed.set_span(group.span());
                TokenTree::Group(renamed)
            }
            token => token,
        })
        .collect()
}

/// The async block at the end, and what stands before it.
fn returned_async_block(block: &mut Block) -> Option<(&[Stmt], &mut ExprAsync)> {
    let (last, before) = block.stmts.split_last_mut()?;
    match last {
        Stmt::Expr(Expr::Async(inner), None) => Some((before, inner)),
        Stmt::Expr(Expr::Call(ExprCall { func, args, .. }), None) => {
            match (&**func, args.first_mut()) {
                (Expr::Path(ExprPath { path, .. }), Some(Expr::Async(inner)))
                    if path.segments.last().is_some_and(|last| last.ident == "pin") =>
                {
                    Some((before, inner))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn blocked_on_async_block(block: &mut Block) -> Option<&mut ExprAsync> {
    let [Stmt::Local(first), between @ .., Stmt::Expr(Expr::Block(last), _)] = &mut block.stmts[..]
    else {
        return None;
    };
    let (Stmt::Expr(Expr::Return(ExprReturn { expr: Some(returned), .. }), _), items) =
        last.block.stmts.split_last()?
    else {
        return None;
    };
    let Expr::MethodCall(call) = &**returned else { return None };
    let Some(LocalInit { expr, .. }) = &mut first.init else { return None };
    match &mut **expr {
        Expr::Async(inner)
            if matches!(&first.pat, Pat::Ident(body) if body.ident == "body")
                && between.iter().all(does_nothing)
                && items.iter().all(|item| matches!(item, Stmt::Item(_)))
                && call.method == "block_on"
                && call.args.iter().all(is_body) =>
        {
            Some(inner)
        }
        _ => None,
    }
}

/// The name of a `block_on(..)` that a body ends in.
fn last_block_on(last: &Stmt) -> Option<&Ident> {
    match last {
        Stmt::Expr(expression, _) => block_on(expression),
        _ => None,
    }
}

fn block_on(expression: &Expr) -> Option<&Ident> {
    match expression {
        Expr::MethodCall(call) if call.method == "block_on" => Some(&call.method),
        // What is done with its output.
        Expr::MethodCall(call) => block_on(&call.receiver),
        Expr::Call(ExprCall { func, .. }) => match &**func {
            Expr::Path(path) => {
                let name = path.path.segments.last().map(|last| &last.ident);
                name.filter(|name| *name == "block_on")
            }
            _ => None,
        },
        Expr::Try(tried) => block_on(&tried.expr),
        Expr::Paren(inner) => block_on(&inner.expr),
        Expr::Return(ExprReturn { expr: Some(returned), .. }) => block_on(returned),
        Expr::Block(ExprBlock { block, .. }) => block.stmts.last().and_then(last_block_on),
        _ => None,
    }
}

/// Whether a statement only gives the future another type or pins it.
fn does_nothing(statement: &Stmt) -> bool {
    match statement {
        Stmt::Expr(Expr::If(check), _) => {
            matches!(&*check.cond, Expr::Lit(ExprLit { lit: Lit::Bool(run), .. }) if !run.value)
        }
        Stmt::Local(Local { init: Some(LocalInit { expr, .. }), .. }) => is_body(expr),
        Stmt::Macro(call) => call.mac.path.segments.last().is_some_and(|last| last.ident == "pin"),
        _ => false,
    }
}

/// Whether an expression only hands the future on.
fn is_body(expression: &Expr) -> bool {
    match expression {
        Expr::Path(path) => path.path.is_ident("body"),
        Expr::Block(ExprBlock { block, .. }) => match &block.stmts[..] {
            [before @ .., Stmt::Expr(last, None)] => {
                before.iter().all(does_nothing) && is_body(last)
            }
            _ => false,
        },
        _ => false,
    }
}

/// The type that the body returns, with `_` for what a body cannot name, if it may hold an error.
fn checked_output(output: Option<&Type>, function: &Function) -> syn::Result<Type> {
    const WRITE: &str = "a `#[locked]` function returns a `Result`, since the lock may not be \
                         obtained, or be lost: write `-> Result<";
    let says = |rest: &str| format!("{WRITE}{rest}, database_locks::Error>`");
    match output {
        None => Err(syn::Error::new_spanned(&function.signature.ident, says("()"))),
        Some(Type::Tuple(unit)) if unit.elems.is_empty() => {
            Err(syn::Error::new_spanned(unit, says("()")))
        }
        Some(never @ Type::Never(_)) => {
            Err(syn::Error::new_spanned(never, says("std::convert::Infallible")))
        }
        Some(hidden @ Type::ImplTrait(_)) => Err(syn::Error::new_spanned(hidden, says("impl .."))),
        Some(output) => {
            let mut output = output.clone();
            NameNoHidden.visit_type_mut(&mut output);
            Ok(output)
        }
    }
}

struct NameNoHidden;

impl VisitMut for NameNoHidden {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::ImplTrait(hidden) = ty {
            *ty = Type::Infer(TypeInfer { underscore_token: Token![_](hidden.impl_token.span) });
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}

/// What a future gives, where `output` is one: `impl Future<Output = ..>` or a pinned box of one.
fn future_output(output: &Type) -> Option<Type> {
    match output {
        Type::ImplTrait(hidden) => output_of_bounds(&hidden.bounds),
        Type::TraitObject(object) => output_of_bounds(&object.bounds),
        Type::Path(path) => {
            let last = path.path.segments.last()?;
            let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
            match arguments.args.first()? {
                GenericArgument::Type(inner) if last.ident == "Pin" || last.ident == "Box" => {
                    future_output(inner)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn output_of_bounds(bounds: &Punctuated<TypeParamBound, Token![+]>) -> Option<Type> {
    bounds.iter().find_map(|bound| {
        let TypeParamBound::Trait(bound) = bound else { return None };
        let last = bound.path.segments.last().filter(|last| last.ident == "Future")?;
        let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        arguments.args.iter().find_map(|argument| match argument {
            GenericArgument::AssocType(given) if given.ident == "Output" => Some(given.ty.clone()),
            _ => None,
        })
    })
}
