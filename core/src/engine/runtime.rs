//! Where an engine runs.

use std::future::Future;
use std::sync::mpsc;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::engine::driver::shut_down;
use crate::error::{Error, ErrorKind, Result};

/// A tokio runtime for an engine.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) handle: Handle,
    /// Kept by the engine: its end ends the thread.
    pub(crate) alive: Option<oneshot::Sender<()>>,
}

impl Runtime {
    /// A thread with a runtime of its own, so that a blocked executor, a finished `block_on` or
    /// another async runtime cannot starve renewals.
    pub(crate) fn own_thread() -> Result<Self> {
        Self::on_thread(|body| {
            thread::Builder::new().name("database-locks".to_owned()).spawn(body).map(drop)
        })
    }

    fn on_thread(spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>) -> Result<Self> {
        let (alive, ended) = oneshot::channel::<()>();
        let (sender, started) = mpsc::sync_channel(1);
        // Made on its thread: where there is none, a runtime would be dropped on the caller's, who may be async.
        let body = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = sender.send(Ok(runtime.handle().clone()));
                let _ = runtime.block_on(ended);
            }
            Err(error) => drop(sender.send(Err(error))),
        };
        let handle = spawn(Box::new(body))
            .and_then(|()| started.recv().map_err(io::Error::other)?)
            .map_err(|error| {
                let why = "no thread and runtime for the engine could be had";
                Error::new(ErrorKind::Backend, why).with_source(error)
            })?;
        Ok(Self { handle, alive: Some(alive) })
    }

    /// The runtime that the caller is on.
    pub(crate) fn current() -> Result<Self> {
        let handle = Handle::try_current().map_err(|error| {
            let why = "on_current_runtime: there is no tokio runtime here";
            Error::new(ErrorKind::InvalidOption, why).with_source(error)
        })?;
        Ok(Self { handle, alive: None })
    }

    /// Runs a future where the engine will run.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.handle.spawn(future).await.unwrap_or_else(|_| Err(shut_down()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_thread_is_an_error_where_the_caller_is_async_too() {
        let error = Runtime::on_thread(|_| Err(io::ErrorKind::WouldBlock.into())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    }
}
