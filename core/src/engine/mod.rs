//! The engine: group commit, the wait queue and the renewals, on a thread of its own.

pub(crate) mod backoff;
mod batcher;
mod clean_up;
mod driver;
mod hints;
pub(crate) mod hold;
mod line;
mod outage_log;
mod pending;
mod releases;
mod renewals;
pub(crate) mod request;
mod rota;
pub(crate) mod runtime;
mod timers;
mod wait_queue;
mod waiter;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::{Busy, LockBackend};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::health::Health;
use crate::observer::{Event, Observers};

use self::driver::{Command, Driver, shut_down};
use self::hold::Hold;
use self::request::{Reply, Request, RequestId};
use self::runtime::Runtime;

/// A running engine, as its users see it. It ends when they have all gone, and the last lease is
/// released.
#[derive(Debug)]
pub(crate) struct Engine {
    backend: Arc<dyn LockBackend>,
    clock: Clock,
    runtime: Handle,
    request_timeout: Duration,
    commands: mpsc::UnboundedSender<Command>,
    observers: Observers,
    next_id: AtomicU64,
}

impl Engine {
    pub(crate) fn start(
        runtime: Runtime,
        backend: Arc<dyn LockBackend>,
        request_timeout: Duration,
        forget_idle: Option<Duration>,
        observers: Observers,
    ) -> Self {
        observers.tell(Event::Started { backend: backend.capabilities().backend });
        let (commands, receiver) = mpsc::unbounded_channel();
        let Runtime { handle: runtime, alive } = runtime;
        let clock = match alive {
            Some(_) => Clock::Boot,
            None => Clock::of_tokio(),
        };
        let driver =
            Driver::new(Arc::clone(&backend), clock, request_timeout, receiver, observers.clone());
        let cleaned = Arc::clone(&backend);
        runtime.spawn(async move {
            // Ends with the engine.
            let beside = forget_idle.map(|idle| {
                let mut beside = JoinSet::new();
                beside.spawn(clean_up::repeat(cleaned, idle, request_timeout));
                beside
            });
            driver.run().await;
            drop(beside);
            drop(alive);
        });
        Self {
            backend,
            clock,
            runtime,
            request_timeout,
            commands,
            observers,
            next_id: AtomicU64::new(0),
        }
    }

    pub(crate) fn backend(&self) -> &dyn LockBackend {
        &*self.backend
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn health(&self) -> Health {
        self.observers.vitals().look(self.clock.now(), !self.commands.is_closed())
    }

    pub(crate) fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for a lock, and waits for the answer. Calls `on_wait` each time that it is busy.
    ///
    /// Cancel safe: a request whose future is dropped is taken back, and what it may have been
    /// granted meanwhile is released.
    pub(crate) async fn request(
        &self,
        mut request: Request,
        on_wait: Option<OnWait>,
    ) -> Result<Option<Hold>> {
        if self.commands.is_closed() {
            // Before observers hear of it: nobody may be left to hear what comes next.
            return Err(shut_down());
        }
        let (caller, mut answer) = oneshot::channel();
        let mut busy = on_wait.map(|on_wait| {
            let (listener, busy) = mpsc::unbounded_channel();
            request.on_busy = Some(listener);
            (on_wait, busy)
        });
        let (name, observers) = (request.claim.name.clone(), self.observers.clone());
        request.reply = Some(Reply::new(caller, name, self.clock, observers));
        let leave = LeaveOnDrop { engine: self, id: request.id };
        self.commands.send(Command::Enter(Box::new(request))).map_err(|_| shut_down())?;
        let answer = loop {
            tokio::select! {
                biased;
                Some(now) = hear(&mut busy) => {
                    if let Some((on_wait, _)) = &mut busy {
                        on_wait(&now);
                    }
                }
                answer = &mut answer => break answer.unwrap_or_else(|_| Err(shut_down())),
            }
        };
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
            Err(error) if error.is_panic() => {
                let why = "the backend panicked: this is a defect of it";
                Err(Error::new(ErrorKind::Backend, why).with_operation(operation))
            }
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

/// What is called when a waiter is told that its lock is busy.
pub(crate) type OnWait = Box<dyn FnMut(&Busy) + Send>;

/// The next time that the lock was busy. Nothing where nobody wants to know, or the engine tells no more.
async fn hear(busy: &mut Option<(OnWait, mpsc::UnboundedReceiver<Busy>)>) -> Option<Busy> {
    match busy {
        Some((_, busy)) => busy.recv().await,
        None => None,
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
