//! What functions expand to: each `snapshots/NAME.rs` is as it is written, and
//! `snapshots/NAME.expanded.rs` what becomes of it.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test -p database-locks-macros --lib` writes the latter anew.

use std::path::Path;
use std::{env, fs};

use quote::ToTokens;
use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, ImplItemFn, ItemFn, Meta};

use crate::expand::expand;

macro_rules! snapshots {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                compare(stringify!($name));
            }
        )*

        #[test]
        fn no_snapshot_is_left_out() {
            let mut files: Vec<_> = fs::read_dir(folder())
                .unwrap()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let mut tested: Vec<_> =
                [$(stringify!($name)),*].iter().flat_map(|name| [format!("{name}.expanded.rs"), format!("{name}.rs")]).collect();
            tested.sort();
            assert_eq!(files, tested);
        }
    };
}

snapshots! { async_fn async_trait default_names kept options plain_fn tokio_main }

fn compare(name: &str) {
    let written = fs::read_to_string(folder().join(format!("{name}.rs"))).unwrap();
    let mut file = syn::parse_file(&written).unwrap();
    ExpandAll.visit_file_mut(&mut file);
    let expanded = prettyplease::unparse(&file);
    let snapshot = folder().join(format!("{name}.expanded.rs"));
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&snapshot, &expanded).unwrap();
    }
    let committed = fs::read_to_string(&snapshot).unwrap_or_default();
    assert!(expanded == committed, "{name} expands to something else:\n{expanded}");
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"))
}

struct ExpandAll;

impl VisitMut for ExpandAll {
    fn visit_item_fn_mut(&mut self, function: &mut ItemFn) {
        if let Some(locked) = take_locked(&mut function.attrs) {
            *function = expanded(&locked, function);
        }
        visit_mut::visit_item_fn_mut(self, function);
    }

    fn visit_impl_item_fn_mut(&mut self, function: &mut ImplItemFn) {
        if let Some(locked) = take_locked(&mut function.attrs) {
            *function = expanded(&locked, function);
        }
        visit_mut::visit_impl_item_fn_mut(self, function);
    }
}

fn take_locked(attributes: &mut Vec<Attribute>) -> Option<Attribute> {
    let at = attributes.iter().position(|attribute| attribute.path().is_ident("locked"))?;
    Some(attributes.remove(at))
}

fn expanded<F: ToTokens + syn::parse::Parse>(locked: &Attribute, function: &F) -> F {
    let options = match &locked.meta {
        Meta::List(list) => list.tokens.clone(),
        _ => Default::default(),
    };
    syn::parse2(expand(options, function.to_token_stream())).unwrap()
}
