//! The engine: group commit, the waiting room and the heartbeat, on a thread of its own.

mod actor;
mod agenda;
mod clean_up;
mod heartbeat;
mod hints;
pub(crate) mod hold;
mod lane;
pub(crate) mod pace;
mod releases;
pub(crate) mod request;
mod waiting;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::LockBackend;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::status::Status;

use self::actor::{Actor, Command, shut_down};
use self::hold::Hold;
use self::request::{Reply, Request, RequestId};

/// Where an engine runs.
#[derive(Debug)]
pub(crate) struct Home {
    runtime: Handle,
    /// Kept by the engine: its end ends the thread.
    alive: Option<oneshot::Sender<()>>,
}

impl Home {
    /// A thread with a runtime of its own, so that a blocked executor, a finished `block_on` or
    /// another async runtime cannot starve renewals.
    pub(crate) fn own_thread() -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let no_engine = |error| {
            Error::new(ErrorKind::Backend, "no thread and runtime for the engine could be had")
                .with_source(error)
        };
        let runtime = runtime.map_err(no_engine)?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("database-locks".to_owned())
            .spawn(move || {
                let _ = runtime.block_on(ended);
            })
            .map_err(no_engine)?;
        Ok(Self { runtime: handle, alive: Some(alive) })
    }

    /// The runtime that the caller is on.
    pub(crate) fn current_runtime() -> Result<Self> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(
                ErrorKind::InvalidOption,
                "on_current_runtime: there is no tokio runtime here",
            )
            .with_source(error)
        })?;
        Ok(Self { runtime, alive: None })
    }

    /// Runs a future where the engine will run.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.runtime.spawn(future).await.unwrap_or_else(|_| Err(shut_down()))
    }
}

/// A running engine, as its users see it. It ends when they have all gone, and the last lease is
/// released.
#[derive(Debug)]
pub(crate) struct Engine {
    backend: Arc<dyn LockBackend>,
    runtime: Handle,
    request_timeout: Duration,
    commands: mpsc::UnboundedSender<Command>,
    status: Status,
    next_id: AtomicU64,
}

impl Engine {
    pub(crate) fn start(
        home: Home,
        backend: Arc<dyn LockBackend>,
        request_timeout: Duration,
        forget_idle: Option<Duration>,
        status: Status,
    ) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let Home { runtime, alive } = home;
        let clock = match alive {
            Some(_) => Clock::Boot,
            None => Clock::of_tokio(),
        };
        let actor =
            Actor::new(Arc::clone(&backend), clock, request_timeout, receiver, status.clone());
        let cleaned = Arc::clone(&backend);
        runtime.spawn(async move {
            // Ends with the engine.
            let beside = forget_idle.map(|idle| {
                let mut beside = JoinSet::new();
                beside.spawn(clean_up::repeat(cleaned, idle, request_timeout));
                beside
            });
            actor.run().await;
            drop(beside);
            drop(alive);
        });
        Self { backend, runtime, request_timeout, commands, status, next_id: AtomicU64::new(0) }
    }

    pub(crate) fn backend(&self) -> &dyn LockBackend {
        &*self.backend
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(crate) fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for a lock, and waits for the answer.
    ///
    /// Cancel safe: a request whose future is dropped is taken back, and what it may have been
    /// granted meanwhile is released.
    pub(crate) async fn request(&self, mut request: Request) -> Result<Option<Hold>> {
        if self.commands.is_closed() {
            // Before the status counts it as waiting: nobody may be left to write what comes next.
            return Err(shut_down());
        }
        let (caller, answer) = oneshot::channel();
        request.reply = Some(Reply::new(caller, self.status.waiting()));
        let leave = LeaveOnDrop { engine: self, id: request.id };
        self.commands.send(Command::Enter(Box::new(request))).map_err(|_| shut_down())?;
        let answer = answer.await.unwrap_or_else(|_| Err(shut_down()));
        // Answered: nothing is left to take back.
        std::mem::forget(leave);
        answer
    }

    /// Makes one call of the backend, where the engine runs.
    pub(crate) async fn call<T, F, C>(&self, operation: &'static str, call: C) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        C: FnOnce(Arc<dyn LockBackend>) -> F,
    {
        if self.commands.is_closed() {
            return Err(shut_down());
        }
        let (future, time) = (call(Arc::clone(&self.backend)), self.request_timeout);
        let task = self.runtime.spawn(async move { tokio::time::timeout(time, future).await });
        match task.await {
            Ok(Ok(answer)) => answer.map_err(|error| error.with_operation(operation)),
            Ok(Err(_elapsed)) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the database did not answer within {time:?}: check that it is reachable"),
            )
            .with_operation(operation)),
            Err(_) => Err(shut_down()),
        }
    }

    /// Ends everything, and waits until all is flushed.
    pub(crate) async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown(reply)).is_ok() {
            let _ = done.await;
        }
    }
}

struct LeaveOnDrop<'a> {
    engine: &'a Engine,
    id: RequestId,
}

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.engine.commands.send(Command::Leave(self.id));
    }
}
