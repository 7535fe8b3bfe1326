//! Listening for the backend's hints, as long as the engine lives.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::backend::{LockBackend, Wakeup};

/// How long to stay deaf after a stream has ended, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Passes the backend's hints on until nobody listens. Hints are only hints: polling goes on
/// whatever happens here.
pub(crate) async fn listen(backend: Arc<dyn LockBackend>, hints: mpsc::UnboundedSender<Wakeup>) {
    let mut pause = PAUSE.0;
    while !hints.is_closed() {
        match backend.wakeups().await {
            Ok(None) => return,
            Ok(Some(mut stream)) => {
                loop {
                    let hint = tokio::select! {
                        hint = stream.next() => hint,
                        () = hints.closed() => return,
                    };
                    let Some(hint) = hint else { break };
                    if hint == Wakeup::Listening {
                        pause = PAUSE.0;
                    }
                    if hints.send(hint).is_err() {
                        return;
                    }
                }
                if hints.send(Wakeup::Missed).is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no hints for now, polling goes on"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}
