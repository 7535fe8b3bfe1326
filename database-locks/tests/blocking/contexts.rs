//! Where a thread may wait, and where it is told that it must not.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use database_locks::blocking::{self, Locks};
use database_locks::{ErrorKind, ListQuery, Result, Ttl};
use database_locks_memory::MemoryBackend;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, block_in_place, spawn_blocking};

use super::{LONG, locks, on_a_thread};

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Takes a lock here, and gives it back.
fn lock() -> Result<()> {
    locks().lock("x").acquire()?.release()
}

#[track_caller]
fn refused<T>(result: Result<T>) {
    let error = result.err().expect("it must not wait here");
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("spawn_blocking"), "{error}");
}

#[test]
fn async_workers_are_refused() {
    on_a_thread(|| {
        let many = multi_thread();
        refused(many.block_on(async { tokio::spawn(async { lock() }).await.unwrap() }));
        refused(many.block_on(async { lock() }));
        refused(many.handle().block_on(async { lock() }));

        let one = current_thread();
        refused(one.block_on(async { tokio::spawn(async { lock() }).await.unwrap() }));
        refused(one.block_on(async { lock() }));

        let local = LocalSet::new();
        refused(local.block_on(&one, async { lock() }));
        refused(one.block_on(
            local.run_until(async { tokio::task::spawn_local(async { lock() }).await.unwrap() }),
        ));
        // A block_on makes an async worker of a thread that may wait.
        let handle = many.handle().clone();
        refused(many.block_on(async {
            spawn_blocking(move || handle.block_on(async { lock() })).await.unwrap()
        }));
    });
}

#[test]
fn threads_that_may_wait_do() {
    on_a_thread(|| {
        lock().unwrap();
        let many = multi_thread();
        many.block_on(async { spawn_blocking(lock).await.unwrap() }).unwrap();
        let in_place = async { block_in_place(lock) };
        many.block_on(async { tokio::spawn(in_place).await.unwrap() }).unwrap();
        many.block_on(async { block_in_place(lock) }).unwrap();
        let entered = many.enter();
        lock().unwrap();
        drop(entered);
        // Not told, but the engine has a thread of its own.
        many.block_on(tokio::task::unconstrained(async { lock() })).unwrap();

        let one = current_thread();
        one.block_on(async { spawn_blocking(lock).await.unwrap() }).unwrap();
        let _entered = one.enter();
        lock().unwrap();
    });
}

#[test]
fn every_method_that_waits_refuses_and_does_nothing() {
    let locks = locks();
    let held = locks.lock("held").acquire().unwrap();
    let request = || locks.lock("x").timeout(Duration::ZERO);
    let worker = current_thread();
    worker.block_on(async {
        refused(request().acquire());
        refused(request().try_acquire());
        refused(request().run(|_| panic!("the work must not begin")));
        refused(locks.list(""));
        refused(locks.list_page(ListQuery::default()));
        refused(locks.force_release(held.lease().id()));
        refused(locks.clean_up(Duration::ZERO));
        refused(locks.shutdown());
        refused(held.wait_lost(Duration::ZERO));
        refused(held.lease().wait_lost(Duration::ZERO));
        refused(blocking::block_on(async { Ok(()) }));
        refused(Locks::open(database_locks::Locks::builder(), async {
            Ok(Arc::new(MemoryBackend::new()) as _)
        }));
        #[cfg(feature = "sqlite")]
        {
            use database_locks::blocking::Connect;

            refused(Locks::connect("sqlite:/nowhere/locks.db"));
            refused(blocking::migrate("sqlite:/nowhere/locks.db"));
        }
    });
    held.check().unwrap();
    let names: Vec<_> = locks.list("").unwrap().into_iter().map(|info| info.lease.name).collect();
    assert_eq!(names, [held.name().clone()]);
}

#[test]
fn a_guard_that_cannot_be_released_on_a_worker_is_dropped() {
    let locks = locks();
    let [released, dropped] = ["a", "b"].map(|name| locks.lock(name).acquire().unwrap());
    current_thread().block_on(async {
        refused(released.release());
        drop(dropped);
    });
    for name in ["a", "b"] {
        locks.lock(name).timeout(LONG).acquire().unwrap().release().unwrap();
    }
}

#[test]
fn callbacks_may_wait() {
    let locks = locks();
    let held = locks.lock("x").ttl(Ttl::MIN).acquire().unwrap();

    let (waited, answers) = mpsc::channel();
    let reader = locks.clone();
    let request = locks.lock("x").on_wait(move |_| {
        let _ = waited.send((thread::current().id(), reader.list("").map(drop)));
    });
    let waiter = thread::spawn(|| {
        request.acquire()?.release()?;
        Ok::<_, database_locks::Error>(thread::current().id())
    });
    let (called_on, answer) = answers.recv_timeout(LONG).unwrap();
    answer.unwrap();

    let (lost, answers) = mpsc::channel();
    let reader = locks.clone();
    held.on_lost(move |_| {
        let _ = lost.send(reader.list("").map(drop));
    });
    assert!(locks.force_release(held.lease().id()).unwrap());
    let waited_on = on_a_thread(|| waiter.join().unwrap()).unwrap();
    assert_eq!(called_on, waited_on, "it is the caller's own");
    answers.recv_timeout(LONG).unwrap().unwrap();
}

#[test]
fn a_refusal_is_no_panic() {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    const THREAD: &str = "refused here";
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some(THREAD) {
            PANICKED.store(true, Ordering::Relaxed);
        }
        before(info);
    }));
    let thread = thread::Builder::new().name(THREAD.to_owned());
    let thread = thread.spawn(|| current_thread().block_on(async { lock() })).unwrap();
    refused(thread.join().unwrap());
    assert!(!PANICKED.load(Ordering::Relaxed));
}

#[test]
fn an_engine_on_the_callers_runtime_moves_while_that_runtime_does() {
    on_a_thread(|| {
        let options = database_locks::Locks::builder().on_current_runtime();
        let opened = || Locks::open(options, async { Ok(Arc::new(MemoryBackend::new()) as _) });
        current_thread()
            .block_on(async {
                let work = || opened()?.lock("x").acquire()?.release();
                spawn_blocking(work).await.unwrap()
            })
            .unwrap();
    });
    let options = database_locks::Locks::builder().on_current_runtime();
    let nowhere = Locks::open(options, async { Ok(Arc::new(MemoryBackend::new()) as _) });
    assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::InvalidOption);
}
