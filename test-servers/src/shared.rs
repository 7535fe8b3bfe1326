//! The server that all tests of a process share.

use std::env;
use std::ops::Deref;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::access::{Access, Family};

/// A server that is started by the first who asks, and removed by its watchdog when the process ends; or one that the
/// environment names.
pub(crate) struct Shared<S>(OnceLock<Result<Source<S>, String>>);

enum Source<S> {
    Given(Access),
    Started(Box<S>),
}

impl<S: Deref<Target = Access>> Shared<S> {
    pub(crate) const fn new() -> Shared<S> {
        Shared(OnceLock::new())
    }

    /// The server at the URL in the environment's `variable`, where that is set, or else what `start` starts.
    pub(crate) fn get(
        &'static self,
        family: Family,
        variable: &str,
        start: impl FnOnce() -> Result<S>,
    ) -> Result<&'static Access> {
        let shared = self.0.get_or_init(|| {
            let source = match env::var(variable) {
                Ok(url) if !url.is_empty() => Access::parse(family, &url).map(Source::Given),
                _ => start().map(|server| Source::Started(Box::new(server))),
            };
            source.map_err(|error| format!("{error:#}"))
        });
        match shared {
            Ok(Source::Given(access)) => Ok(access),
            Ok(Source::Started(server)) => Ok(server),
            Err(message) => Err(anyhow!(message.clone())),
        }
    }
}
