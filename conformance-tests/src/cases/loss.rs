//! How a holder learns that its lease has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use database_locks_core::{ErrorKind, Guard, Locks, LossReason};

use crate::context::{Context, LONG, Since, claim, list, obtain, soon, take};
use crate::faulty::{Fault, Verb};
use crate::harness::Outcome;

/// How long leases live here: what is lost is noticed by a renewal, within this time.
const TTL: Duration = Duration::from_secs(2);
/// How often a lease of [`LONG`] is renewed that must not expire, on any machine, before a renewal tells what became of
/// it.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn taken_lease_raises_the_signal(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let guard = here.lock(&name).ttl(TTL).auto_renew(false).acquire().await?;
    let taken = obtain(&there, &name).await?;
    assert!(guard.check().is_err(), "the holder must know before somebody else is granted it");
    assert_eq!(guard.remaining(), Some(Duration::ZERO), "nothing is left of a lost lease");
    let reason = soon("the loss is signalled", guard.lost()).await;
    assert!(matches!(reason, LossReason::Expired | LossReason::Taken), "not {reason:?}");
    assert!(taken.token() > guard.token(), "the successor must have the higher token");
    taken.release().await?;
    Ok(())
}

pub(crate) async fn forced_lease_raises_the_signal(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let guard = here.lock(&name).ttl(LONG).renew_before(LONG - RENEWED_EVERY).acquire().await?;
    force(&there, &guard).await?;
    let reason = soon("the loss is signalled", guard.lost()).await;
    assert_eq!(reason, LossReason::Forced, "the holder must learn why");
    assert!(!there.force_release(guard.lease().id()).await?, "it cannot be forced twice");
    let next = obtain(&there, &name).await?;
    assert!(!here.force_release(guard.lease().id()).await?, "force must not hit the next holder");
    next.check()?;
    let error = guard.release().await.map_err(|error| (error.kind(), error.loss()));
    assert_eq!(error, Err((ErrorKind::Lost, Some(LossReason::Forced))), "release must tell it");
    next.release().await?;
    Ok(())
}

pub(crate) async fn deleted_row_raises_the_signal(context: Context) -> Outcome {
    let locks = context.locks().await?;
    let name = context.name("one");
    let guard = locks.lock(&name).ttl(LONG).renew_before(LONG - RENEWED_EVERY).acquire().await?;
    context.harness().delete_row(&name).await?;
    let reason = soon("the loss is signalled", guard.lost()).await;
    assert_eq!(reason, LossReason::Deleted, "the holder must learn why");
    assert!(guard.check().is_err(), "the holder must not go on");
    Ok(())
}

pub(crate) async fn expired_lease_raises_the_signal(context: Context) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    faulty.always(Verb::Renew, Fault::Refuse);
    let guard = locks.lock(context.name("one")).ttl(TTL).acquire().await?;
    let reason = soon("the loss is signalled", guard.lost()).await;
    assert_eq!(reason, LossReason::Expired, "the holder must learn why");
    let error = guard.check().map_err(|error| (error.kind(), error.loss()));
    assert_eq!(error, Err((ErrorKind::Lost, Some(LossReason::Expired))), "check must tell it");
    Ok(())
}

pub(crate) async fn normal_release_raises_no_signal(context: Context) -> Outcome {
    let locks = context.locks().await?;
    let called = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&called);
    let request = locks.lock(context.name("one")).ttl(TTL);
    let guard = request.on_lost(move |_| seen.store(true, Ordering::SeqCst)).acquire().await?;
    let lease = guard.lease();
    guard.release().await?;
    let lost = tokio::time::timeout(TTL * 2, lease.lost()).await;
    assert!(lost.is_err(), "a lease that was released must not be called lost: {lost:?}");
    assert!(!called.load(Ordering::SeqCst), "the callback is for losses only");
    Ok(())
}

pub(crate) async fn late_subscriber_sees_the_signal(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let request = here.lock(context.name("one")).ttl(LONG).renew_before(LONG - RENEWED_EVERY);
    let guard = request.acquire().await?;
    force(&there, &guard).await?;
    let reason = soon("the loss is signalled", guard.lost()).await;
    let late = soon("who comes late is told", guard.lease().lost()).await;
    assert_eq!(late, reason, "who comes late must be told the same");
    let (tell, told) = tokio::sync::oneshot::channel();
    guard.on_lost(move |reason| {
        let _ = tell.send(reason);
    });
    assert_eq!(soon("a late callback runs", told).await?, reason, "and so must a callback");
    Ok(())
}

pub(crate) async fn transient_error_is_survived(context: Context) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    for fault in [Fault::Refuse, Fault::LoseAnswer, Fault::Refuse] {
        faulty.once(Verb::Renew, fault);
    }
    let ttl = TTL * 3;
    let guard = locks.lock(context.name("one")).ttl(ttl).renew_before(ttl * 9 / 10);
    let guard = guard.acquire().await?;
    soon("it is renewed again", faulty.until_begun(Verb::Renew, 5)).await;
    guard.check()?;
    assert!(guard.remaining() > Some(Duration::ZERO), "the lease must go on");
    guard.release().await?;
    Ok(())
}

pub(crate) async fn hung_renewal_still_signals_before_expiry(context: Context) -> Outcome {
    for fault in [Fault::Hang, Fault::HangAnswer] {
        let (faulty, locks) = context.faulty_locks().await?;
        let there = context.client().await?;
        let name = context.name(&format!("{fault:?}"));
        faulty.always(Verb::Renew, fault);
        let since = Since::now();
        let guard = locks.lock(&name).ttl(TTL).acquire().await?;
        soon("a renewal hangs", faulty.until_begun(Verb::Renew, 1)).await;
        let reason = soon("the loss is signalled", guard.lost()).await;
        let listed = list(&there, name.as_str()).await?;
        assert_eq!(reason, LossReason::Expired, "the holder must learn why");
        if since.within(TTL) {
            assert_eq!(listed.len(), 1, "the holder must give up before the server does");
        }
    }
    Ok(())
}

pub(crate) async fn no_renewal_after_release(context: Context) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    let guard = locks.lock(context.name("one")).ttl(TTL).acquire().await?;
    soon("it is renewed", faulty.until_begun(Verb::Renew, 1)).await;
    guard.release().await?;
    let renewals = faulty.begun(Verb::Renew);
    // Twice as long as a renewal would be away.
    tokio::time::sleep(TTL * 2).await;
    assert_eq!(faulty.begun(Verb::Renew), renewals, "no renewal may run after release");
    Ok(())
}

pub(crate) async fn lost_lease_is_never_acquired_again_silently(context: Context) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    let name = context.name("one");
    faulty.always(Verb::Renew, Fault::Refuse);
    let guard = locks.lock(&name).ttl(TTL).acquire().await?;
    soon("the loss is signalled", guard.lost()).await;
    faulty.heal(Verb::Renew);
    let asked = faulty.begun(Verb::Acquire);
    context.outlive(TTL).await?;
    let client = context.client().await?;
    take(&client, &claim(&name)).await?;
    assert_eq!(faulty.begun(Verb::Acquire), asked, "a lost lease must not be asked for again");
    assert!(guard.check().is_err(), "what is lost stays lost");
    Ok(())
}

pub(crate) async fn run_drops_the_work(context: Context) -> Outcome {
    struct Work(Arc<AtomicBool>);
    impl Drop for Work {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (faulty, locks) = context.faulty_locks().await?;
    faulty.always(Verb::Renew, Fault::Hang);
    let dropped = Arc::new(AtomicBool::new(false));
    let work = Work(Arc::clone(&dropped));
    let run = locks.lock(context.name("one")).ttl(TTL).run(async move |_| {
        let _work = work;
        std::future::pending::<()>().await;
    });
    let outcome = soon("the work is dropped", run).await.map_err(|error| error.kind());
    assert_eq!(outcome, Err(ErrorKind::Lost), "who runs the work must be told");
    assert!(dropped.load(Ordering::SeqCst), "the work must be gone when `run` returns");
    Ok(())
}

pub(crate) async fn callback_runs_once(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let calls = Arc::new(AtomicUsize::new(0));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let count = Arc::clone(&calls);
    let request = here.lock(context.name("one")).ttl(LONG).renew_before(LONG - RENEWED_EVERY);
    let request = request.on_lost(move |reason| {
        count.fetch_add(1, Ordering::SeqCst);
        let _ = tell.send(reason);
    });
    let guard = request.acquire().await?;
    force(&there, &guard).await?;
    let reason = soon("the callback runs", told.recv()).await;
    assert_eq!(reason, Some(LossReason::Forced), "the callback must be told why");
    // It has been dropped, so that it cannot run again, once its sender is gone.
    assert_eq!(soon("the callback is dropped", told.recv()).await, None, "it must run once");
    drop(guard.release().await);
    assert_eq!(calls.load(Ordering::SeqCst), 1, "the callback must run once");
    obtain(&there, &context.name("one")).await?.release().await?;
    Ok(())
}

async fn force(locks: &Locks, guard: &Guard) -> Outcome {
    let listed = locks.list(guard.name().as_str()).await?;
    assert_eq!(listed.len(), 1, "the lease must be listed");
    assert_eq!(&listed[0].lease, guard.lease().id(), "the list must name the lease");
    assert!(listed[0].remaining.is_some_and(|left| left <= LONG), "the list must say what is left");
    assert!(locks.force_release(&listed[0].lease).await?, "a live lease must be ended by force");
    Ok(())
}
