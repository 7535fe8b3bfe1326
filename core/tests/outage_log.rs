//! What the log says of an outage: not more the more wait. A program of its own, since all that is logged in it is heard.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_conformance::{Fault, FaultyBackend, Verb};
use database_locks_core::{Locks, LossReason};
use database_locks_memory::MemoryBackend;
use tokio::time::sleep;
use tracing::Level;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const VERBS: [Verb; 3] = [Verb::Acquire, Verb::Renew, Verb::Release];

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn take(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn one_line_an_outage_and_one_when_it_is_over() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(Level::WARN)
        .with_ansi(false)
        .init();
    let faulty = FaultyBackend::new(Arc::new(MemoryBackend::new()));
    let options = Locks::builder().on_current_runtime().forget_idle(SECOND);
    let locks = options.build(faulty.clone()).unwrap();
    let mut kept = Vec::new();
    let mut lost = Vec::new();
    for i in 0..100 {
        kept.push(locks.lock(format!("kept {i}")).ttl(HOUR).acquire().await.unwrap());
        lost.push(locks.lock(format!("lost {i}")).acquire().await.unwrap());
    }
    assert_eq!(log.take(), Vec::<String>::new());

    for verb in [&VERBS[..], &[Verb::CleanUp]].concat() {
        faulty.always(verb, Fault::Refuse);
    }
    let asking: Vec<_> =
        (0..100).map(|i| tokio::spawn(locks.lock(format!("new {i}")).acquire())).collect();
    let released: Vec<_> = kept.into_iter().map(|guard| tokio::spawn(guard.release())).collect();
    for guard in &lost {
        assert_eq!(guard.lost().await, LossReason::Expired);
    }
    sleep(30 * SECOND).await;
    let lines = log.take();
    let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(of("the database does not answer"), 1, "{lines:#?}");
    assert_eq!(of("lease lost"), 100, "{lines:#?}");
    assert_eq!(of("cannot forget idle names"), 1, "{lines:#?}");
    assert_eq!(lines.len(), 102, "{lines:#?}");

    // Some requests get through, and some do not: it is still the same outage.
    for _ in 0..20 {
        for verb in VERBS {
            faulty.heal(verb);
            faulty.once(verb, Fault::Refuse);
        }
        sleep(SECOND).await;
        drop(locks.lock("other").acquire().await.unwrap());
    }
    assert_eq!(log.take(), Vec::<String>::new());

    for verb in VERBS {
        faulty.heal(verb);
    }
    for asking in asking {
        drop(asking.await.unwrap().unwrap());
    }
    for released in released {
        released.await.unwrap().unwrap();
    }
    sleep(10 * SECOND).await;
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("the database answers again"), "{lines:?}");

    // The next one is another.
    faulty.once(Verb::Acquire, Fault::Refuse);
    drop(locks.lock("x").acquire().await.unwrap());
    sleep(10 * SECOND).await;
    let lines = log.take();
    assert_eq!(lines.len(), 2, "{lines:#?}");
}
