//! Listening for the backend's hints, as long as the engine lives.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use crate::backend::{LockBackend, Wakeup};
use crate::error::Result;

/// How long to stay deaf after a stream has ended, at first and at most, give or take a half.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Passes the backend's hints on until nobody listens. Hints are only hints: polling goes on
/// whatever happens here.
pub(crate) async fn listen(backend: Arc<dyn LockBackend>, hints: mpsc::UnboundedSender<Wakeup>) {
    let mut listener = Listener { backend, hints, pause: PAUSE.0, is_heard: false };
    let mut is_told = false;
    loop {
        match AssertUnwindSafe(listener.hear()).catch_unwind().await {
            Ok(Ok(Heard::All)) => return,
            Ok(Ok(Heard::Stream)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no hints for now, polling goes on"),
            Err(_panic) if !is_told => {
                is_told = true;
                tracing::warn!(
                    "the backend panicked while it listened for hints: this is a defect of it, \
                     polling goes on"
                );
            }
            Err(_panic) => tracing::debug!("the backend panicked again, polling goes on"),
        }
        if std::mem::take(&mut listener.is_heard) {
            let _ = listener.hints.send(Wakeup::Missed);
        }
        if listener.hints.is_closed() {
            return;
        }
        listener.rest().await;
    }
}

struct Listener {
    backend: Arc<dyn LockBackend>,
    hints: mpsc::UnboundedSender<Wakeup>,
    pause: Duration,
    /// Whether the engine relies on hints: one has come since it was told that some were missed.
    is_heard: bool,
}

/// Why nothing is heard any more.
enum Heard {
    /// There are no hints, or nobody wants them.
    All,
    /// The stream has ended.
    Stream,
}

impl Listener {
    /// Passes on the hints of one stream.
    async fn hear(&mut self) -> Result<Heard> {
        let Some(mut stream) = self.backend.wakeups().await? else { return Ok(Heard::All) };
        loop {
            let hint = tokio::select! {
                hint = stream.next() => hint,
                () = self.hints.closed() => return Ok(Heard::All),
            };
            let Some(hint) = hint else { return Ok(Heard::Stream) };
            if hint == Wakeup::Listening {
                self.pause = PAUSE.0;
            }
            self.is_heard = true;
            if self.hints.send(hint).is_err() {
                return Ok(Heard::All);
            }
        }
    }

    /// Not as long as others do, whose server went away at the same time.
    async fn rest(&mut self) {
        tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{
        Capabilities, Claim, LeaseInfo, ListQuery, Release, Released, Renewal, Renewed, Verdict,
        Wakeups,
    };
    use crate::clock::Clock;

    /// Ends each stream at once, and tells when it was asked for one.
    #[derive(Debug)]
    struct Ending(mpsc::UnboundedSender<Duration>, Clock);

    #[async_trait::async_trait]
    impl LockBackend for Ending {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new("ending")
        }

        async fn acquire(&self, _: &[Claim]) -> Result<Vec<Verdict>> {
            Ok(Vec::new())
        }

        async fn renew(&self, _: &[Renewal]) -> Result<Vec<Renewed>> {
            Ok(Vec::new())
        }

        async fn release(&self, _: &[Release]) -> Result<Vec<Released>> {
            Ok(Vec::new())
        }

        async fn list(&self, _: &ListQuery) -> Result<Vec<LeaseInfo>> {
            Ok(Vec::new())
        }

        async fn clean_up(&self, _: Duration) -> Result<u64> {
            Ok(0)
        }

        async fn wakeups(&self) -> Result<Option<Wakeups>> {
            let _ = self.0.send(self.1.now());
            Ok(Some(Wakeups::new(futures_util::stream::empty())))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn processes_do_not_all_come_back_at_the_same_moments() {
        let (clock, mut processes) = (Clock::of_tokio(), Vec::new());
        for _ in 0..2 {
            let (sender, mut asked) = mpsc::unbounded_channel();
            let (hints, hears) = mpsc::unbounded_channel();
            let task = tokio::spawn(listen(Arc::new(Ending(sender, clock)), hints));
            processes.push(async move {
                let mut moments = Vec::new();
                while moments.len() < 6 {
                    moments.extend(asked.recv().await);
                }
                drop(hears);
                task.await.unwrap();
                moments
            });
        }
        let second = processes.pop().unwrap();
        let (first, second) = tokio::join!(processes.pop().unwrap(), second);
        assert_ne!(first, second);
    }
}
