//! The list of cases, once, and what runs them.

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::cases;
use crate::context::Context;
use crate::harness::{Harness, Outcome, Stop};

/// How long a case may take before it counts as stuck. The slowest takes seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// Hands the list of all cases to the macro `$callback`, after `$arguments`.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_all_cases {
    ($callback:ident $(, $arguments:tt)*) => {
        $crate::$callback! {
            $($arguments)*
CASELIST
        }
    };
}

/// Writes one `#[test]` for each case.
#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ([$harness:ty] $($group:ident { $($case:ident,)* })*) => {
        type HarnessOfSuite = $harness;
        $(
            mod $group {
                $(
                    #[test]
                    fn $case() {
                        $crate::test::<super::HarnessOfSuite>(stringify!($group), stringify!($case));
                    }
                )*
            }
        )*
    };
}

macro_rules! table {
    ($($group:ident { $($case:ident,)* })*) => {
        &[$($(Case {
            group: stringify!($group),
            name: stringify!($case),
            run: |context| cases::$group::$case(context).boxed(),
        },)*)*]
    };
}
