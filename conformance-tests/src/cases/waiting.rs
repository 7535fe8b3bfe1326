//! Waiting for a lock, and ceasing to.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use database_locks_core::{ErrorKind, Release, Released, Releaser, Ttl, Wakeup};
use futures_util::StreamExt as _;

use crate::context::{
    Context, LONG, PATIENCE, Since, claim, list, obtain, refuse, soon, take, until_none_lives,
};
use crate::faulty::{Fault, Verb};
use crate::harness::{Outcome, Stop};

pub(crate) async fn timeout_is_bounded_below_and_above(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let guard = here.lock(&name).ttl(LONG).acquire().await?;
    for timeout in [Duration::ZERO, Duration::from_millis(300)] {
        let start = Instant::now();
        let error = there.lock(&name).timeout(timeout).acquire().await.map(drop);
        let took = start.elapsed();
        let kind = error.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::Timeout), "the lock is held: it must time out");
        assert!(took >= timeout, "it must wait for {timeout:?}, but gave up after {took:?}");
        assert!(took < PATIENCE, "it must give up after {timeout:?}, but took {took:?}");
    }
    guard.release().await?;
    Ok(())
}

pub(crate) async fn released_lock_wakes_a_waiter_promptly(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    // From the same process, and from another.
    for waiting in [&here, &there] {
        let guard = here.lock(&name).ttl(LONG).acquire().await?;
        let mut waiter = Box::pin(waiting.lock(&name).ttl(LONG).acquire());
        let early = tokio::time::timeout(Duration::from_millis(100), &mut waiter).await;
        assert!(early.is_err(), "a waiter must wait while the lock is held");
        guard.release().await?;
        soon("the waiter is woken", waiter).await?.release().await?;
    }
    Ok(())
}

pub(crate) async fn hints_tell_of_what_was_freed_or_kept(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let (Some(mut hints), Some(mut own_hints)) = (there.wakeups().await?, here.wakeups().await?)
    else {
        return Err(Stop::Skipped("the backend has no hints".to_owned()));
    };
    for hints in [&mut hints, &mut own_hints] {
        // Where something is in between that lets no hint through, none is waited for.
        let listening = hints.next();
        let Ok(Some(Wakeup::Listening)) = tokio::time::timeout(PATIENCE, listening).await else {
            return Err(Stop::Skipped("no hints were seen to arrive".to_owned()));
        };
    }
    // A large batch may be decided in another way than a single item.
    for (text, keep, size) in [("freed", false, 1), ("kept", true, 1), ("freed", false, 5)] {
        let mut releases = Vec::new();
        for i in 0..size {
            let name = context.name(&format!("{text} {size} {i}"));
            let lease = take(&here, &claim(&name)).await?;
            refuse(&there, &claim(&name).with_mark(LONG)).await?;
            releases.push(match keep {
                true => Release::keep(lease, LONG * 2),
                false => Release::free(lease),
            });
        }
        assert_eq!(here.release(&releases).await?, vec![Released::Done; size]);
        for (hints, is_own) in [(&mut hints, false), (&mut own_hints, true)] {
            let mut untold: BTreeSet<_> = releases.iter().map(|r| r.lease.name.clone()).collect();
            let told = async {
                while let Some(hint) = hints.next().await {
                    if let Wakeup::Released { name, by } = hint
                        && untold.remove(&name)
                    {
                        let is_true = match by {
                            Releaser::Own => is_own,
                            Releaser::Other(_) => !is_own,
                            _ => true,
                        };
                        assert!(is_true, "{name} was released by another client than {by:?}");
                    }
                    if untold.is_empty() {
                        return;
                    }
                }
                panic!("the stream of hints ended");
            };
            soon(&format!("hints tell of {size} that were {text}"), told).await;
        }
    }
    Ok(())
}

pub(crate) async fn mark_is_written_again_before_it_runs_out(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    take(&here, &claim(&name)).await?;
    let mark = Duration::from_secs(3);
    refuse(&there, &claim(&name).with_mark(mark)).await?;
    // More than half of it is over, and so again after the next ask.
    let most = mark * 3 / 5;
    context.harness().pass(most).await?;
    let asked = Since::now();
    refuse(&there, &claim(&name).with_mark(mark)).await?;
    let was_quick = asked.within(mark / 8);
    context.harness().pass(most).await?;
    let passed = Since::now();
    let listed = list(&here, name.as_str()).await?;
    // Whether time passes by itself or is set, the second mark cannot have run out.
    if was_quick && passed.within(mark / 8) && asked.within(mark) {
        assert!(listed.iter().all(|info| info.waited_for), "the mark ran out: {listed:?}");
    }
    Ok(())
}

pub(crate) async fn waiting_survives_hints_that_never_come(context: Context) -> Outcome {
    let (faulty, deaf) = context.faulty_locks().await?;
    faulty.always(Verb::Wakeups, Fault::HangAnswer);
    let there = context.locks().await?;
    let name = context.name("one");
    let guard = there.lock(&name).ttl(LONG).acquire().await?;
    let mut waiter = Box::pin(deaf.lock(&name).ttl(LONG).acquire());
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiter).await;
    assert!(early.is_err(), "a waiter must wait while the lock is held");
    guard.release().await?;
    soon("polling finds what no hint told", waiter).await?.release().await?;
    Ok(())
}

pub(crate) async fn waiters_are_served_first_come_first_served(context: Context) -> Outcome {
    let locks = context.locks().await?;
    let name = context.name("one");
    let guard = locks.lock(&name).ttl(LONG).acquire().await?;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for i in 0..8 {
        let (request, served) = (locks.lock(&name).ttl(LONG), Arc::clone(&served));
        let mut waiter = Box::pin(async move {
            let guard = request.acquire().await?;
            served.lock().unwrap_or_else(PoisonError::into_inner).push(i);
            guard.release().await
        });
        // The first poll is what queues it.
        assert!(!poll_once(waiter.as_mut()).await, "the lock is held: waiter {i} must wait");
        waiters.push(tokio::spawn(waiter));
    }
    guard.release().await?;
    for waiter in waiters {
        soon("each waiter is served", waiter).await??;
    }
    let served = served.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(served, (0..8).collect::<Vec<_>>(), "who came first must be served first");
    Ok(())
}

pub(crate) async fn cancelled_waiter_holds_nothing(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let guard = there.lock(&name).ttl(LONG).acquire().await?;
    let mut first = Box::pin(here.lock(&name).ttl(Ttl::Infinite).acquire());
    let second = here.lock(&name).ttl(LONG);
    assert!(!poll_once(first.as_mut()).await, "the lock is held: the first must wait");
    let second = tokio::spawn(second.acquire());
    tokio::task::yield_now().await;
    drop(first);
    guard.release().await?;
    soon("the second is served", second).await??.release().await?;
    until_none_lives(&context.client().await?, &context.prefix()).await?;
    Ok(())
}

pub(crate) async fn already_cancelled_request_asks_for_nothing(context: Context) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    let name = context.name("one");
    drop(locks.lock(&name).ttl(Ttl::Infinite).acquire());
    drop(locks.lock(&name).ttl(Ttl::Infinite).try_acquire());
    // The engine serves in order: what it does for the next one, it does after those.
    obtain(&locks, &context.name("next")).await?.release().await?;
    assert_eq!(faulty.begun(Verb::Acquire), 1, "a future that was never polled must not ask");
    assert_eq!(list(&context.client().await?, name.as_str()).await?, [], "nothing may be held");
    Ok(())
}

pub(crate) async fn dropped_acquire_leaks_nothing_at_any_await_point(context: Context) -> Outcome {
    let (faulty, here) = context.faulty_locks().await?;
    let there = context.locks().await?;
    let pause = Duration::from_millis(40);
    let faults = [
        None,
        Some(Fault::Refuse),
        Some(Fault::LoseAnswer),
        Some(Fault::Delay(pause)),
        Some(Fault::DelayAnswer(pause)),
    ];
    for (f, fault) in faults.into_iter().enumerate() {
        for polls in 1..=6 {
            let name = context.name(&format!("{f} {polls}"));
            let begun = faulty.begun(Verb::Acquire);
            if let Some(fault) = fault {
                faulty.once(Verb::Acquire, fault);
            }
            // Without end, so that a leak does not mend itself.
            let mut acquire = Box::pin(here.lock(&name).ttl(Ttl::Infinite).acquire());
            for poll in 0..polls {
                if poll_once(acquire.as_mut()).await {
                    break;
                }
                match poll {
                    // Right after it was queued; once the call is under way; and later and later.
                    0 => {}
                    1 => {
                        soon("it is asked for", faulty.until_begun(Verb::Acquire, begun + 1)).await
                    }
                    _ => tokio::time::sleep(pause / 3).await,
                }
            }
            drop(acquire);
            faulty.heal(Verb::Acquire);
            obtain(&there, &name).await?.release().await?;
        }
    }
    // What was late must have been given back too.
    obtain(&here, &context.name("last")).await?.release().await?;
    soon("all calls are answered", faulty.until_quiet(Verb::Acquire)).await;
    until_none_lives(&context.client().await?, &context.prefix()).await?;
    Ok(())
}

/// Polls once, and answers whether the future has completed. What it completed with is dropped.
async fn poll_once<T>(mut future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}
