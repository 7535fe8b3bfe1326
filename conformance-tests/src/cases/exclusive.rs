//! One holder at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use database_locks_core::{LeaseId, Owner, Release, Released, Renewal, Renewed, Verdict};
use futures_util::future::try_join_all;

use crate::context::{
    Context, LONG, PATIENCE, ask, claim, free, keep, lease_of, list, only, refuse, soon, take, ttl,
};
use crate::harness::{Outcome, Stop};

pub(crate) async fn second_claim_is_busy_and_names_the_holder_and_what_is_left(
    context: Context,
) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let owner = Owner::label_only("the first of them")?;
    let lease = take(&here, &claim(&name).with_owner(owner.clone())).await?;

    for client in [&here, &there] {
        let Verdict::Busy(busy) = ask(client, &claim(&name)).await? else {
            panic!("a second claim of a held lock must be busy")
        };
        let holder = busy.holder.ok_or_else(|| Stop::failed("busy must name the holder"))?;
        assert_eq!(holder.owner.label(), owner.label(), "busy must name the owner who holds it");
        assert_eq!(holder.token, lease.token, "busy must name the token under which it is held");
        assert!(holder.held_for < LONG, "held for {:?} is too long", holder.held_for);
        for left in [holder.remaining, busy.retry_after] {
            let left = left.ok_or_else(|| Stop::failed("busy must say how long is left"))?;
            assert!(
                left <= LONG && left > LONG - PATIENCE * 4,
                "what is left of {LONG:?} right after the grant cannot be {left:?}"
            );
        }
    }
    keep(&here, &lease).await?;
    Ok(())
}

pub(crate) async fn other_names_are_independent(context: Context) -> Outcome {
    let client = context.client().await?;
    let (one, two) = (context.name("one"), context.name("two"));
    let first = take(&client, &claim(&one)).await?;
    let second = take(&client, &claim(&two)).await?;
    free(&client, &first).await?;
    refuse(&client, &claim(&two)).await?;
    keep(&client, &second).await?;
    Ok(())
}

pub(crate) async fn lock_is_free_right_after_release_ten_times(context: Context) -> Outcome {
    let clients = context.clients(2).await?;
    let name = context.name("one");
    for round in 0..10 {
        let client = &clients[round % 2];
        let lease = take(client, &claim(&name)).await?;
        free(client, &lease).await?;
    }
    Ok(())
}

pub(crate) async fn first_creation_race_has_one_winner_and_no_error(context: Context) -> Outcome {
    let clients = context.clients(6).await?;
    for round in 0..20 {
        let name = context.name(&format!("round {round}"));
        let race = clients.iter().map(|client| {
            let (client, claim) = (Arc::clone(client), claim(&name));
            tokio::spawn(async move { ask(&client, &claim).await })
        });
        let mut winners = 0;
        for verdict in try_join_all(race).await? {
            match verdict? {
                Verdict::Granted(_) => winners += 1,
                Verdict::Busy(_) | Verdict::Skipped => {}
                other => panic!("a race for a new name must be won or busy, but is {other:?}"),
            }
        }
        assert_eq!(winners, 1, "a race for a new name must have exactly one winner");
    }
    Ok(())
}

pub(crate) async fn many_clients_never_hold_it_at_once(context: Context) -> Outcome {
    let clients = context.clients(6).await?;
    let name = context.name("one");
    let holders = Arc::new(AtomicUsize::new(0));
    let grants = Arc::new(AtomicUsize::new(0));
    let workers = clients.into_iter().map(|client| {
        let (name, holders, grants) = (name.clone(), Arc::clone(&holders), Arc::clone(&grants));
        tokio::spawn(async move {
            let mut claim = claim(&name);
            while grants.load(Ordering::SeqCst) < 60 {
                match ask(&client, &claim).await {
                    Ok(verdict @ Verdict::Granted(_)) => {
                        let before = holders.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(before, 0, "somebody else holds the lock that was granted");
                        tokio::task::yield_now().await;
                        holders.fetch_sub(1, Ordering::SeqCst);
                        grants.fetch_add(1, Ordering::SeqCst);
                        release_surely(&client, &lease_of(&claim, &verdict)).await?;
                        claim = self::claim(&name);
                    }
                    Ok(Verdict::Busy(_) | Verdict::Skipped) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Ok(other) => panic!("a claim under contention must not be {other:?}"),
                    // The outcome is unknown: the same attempt asks again.
                    Err(error) if error.is_retryable() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    });
    for worker in try_join_all(workers).await? {
        worker?;
    }
    Ok(())
}

pub(crate) async fn try_never_waits_behind_a_row_lock(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("locked");
    free(&client, &take(&client, &claim(&name)).await?).await?;
    let row = context.harness().lock_row(&name).await?;

    let tried = tokio::time::timeout(PATIENCE, ask(&client, &claim(&name))).await;
    row.roll_back().await?;
    match tried {
        Err(_) => panic!("a try must not wait behind a row lock"),
        Ok(Ok(Verdict::Busy(_) | Verdict::Skipped)) => {}
        Ok(other) => panic!("a try behind a row lock must be skipped, but is {other:?}"),
    }
    take(&client, &claim(&name)).await?;
    Ok(())
}

pub(crate) async fn row_lock_stalls_no_other_name_of_a_batch(context: Context) -> Outcome {
    let client = context.client().await?;
    let (locked, free_one) = (context.name("locked"), context.name("open"));
    let held = take(&client, &claim(&locked)).await?;
    let also_held = take(&client, &claim(&context.name("also"))).await?;
    let row = context.harness().lock_row(&locked).await?;

    let calls = async {
        let verdicts = client.acquire(&[claim(&locked), claim(&free_one)]).await?;
        let renewal = |lease: &_| Renewal::new(Clone::clone(lease), ttl(LONG));
        let renewed = client.renew(&[renewal(&held), renewal(&also_held)]).await?;
        let released =
            client.release(&Release::free_all(&[held.clone(), also_held.clone()])).await?;
        Ok::<_, Stop>((verdicts, renewed, released))
    };
    let answers = tokio::time::timeout(PATIENCE, calls).await;
    row.roll_back().await?;
    let Ok(answers) = answers else { panic!("a row lock must not stall the batch") };
    let (verdicts, renewed, released) = answers?;
    assert!(
        matches!(verdicts[..], [Verdict::Busy(_) | Verdict::Skipped, Verdict::Granted(_)]),
        "the locked name must be busy or skipped and the other granted, but they are {verdicts:?}"
    );
    assert_eq!(renewed, [Renewed::Skipped, Renewed::Alive], "only the locked row is skipped");
    assert_eq!(released, [Released::Skipped, Released::Done], "only the locked row is skipped");
    keep(&client, &held).await?;
    Ok(())
}

pub(crate) async fn empty_batch_is_answered_with_nothing(context: Context) -> Outcome {
    let client = context.client().await?;
    assert!(client.acquire(&[]).await?.is_empty(), "no claims must get no verdicts");
    assert!(client.renew(&[]).await?.is_empty(), "no renewals must get no answers");
    assert!(client.release(&[]).await?.is_empty(), "no releases must get no answers");
    Ok(())
}

pub(crate) async fn largest_batch_is_answered_item_by_item(context: Context) -> Outcome {
    let (client, other) = (context.client().await?, context.client().await?);
    let can = client.capabilities();
    let names: Vec<_> = (0..can.max_renewals).map(|i| context.name(&format!("{i:05}"))).collect();
    let is_busy = |i: usize| i % 3 == 1;
    let theirs: Vec<_> =
        (0..names.len()).filter(|&i| is_busy(i)).map(|i| claim(&names[i])).collect();
    for claims in theirs.chunks(can.max_batch) {
        let verdicts = other.acquire(claims).await?;
        let are_granted = verdicts.iter().all(|v| matches!(v, Verdict::Granted(_)));
        assert!(are_granted, "claims to free locks must be granted: {verdicts:?}");
    }
    // In an order of their own: neither that of the names nor its reverse.
    let mut order: Vec<usize> = (0..names.len()).collect();
    fastrand::shuffle(&mut order);
    let claims: Vec<_> = order.iter().map(|&i| claim(&names[i])).collect();
    let mut verdicts = Vec::new();
    for claims in claims.chunks(can.max_batch) {
        let answers = client.acquire(claims).await?;
        assert_eq!(answers.len(), claims.len(), "each claim of a batch must get a verdict");
        verdicts.extend(answers);
    }
    let mut leases = Vec::new();
    for ((&i, claim), verdict) in order.iter().zip(&claims).zip(&verdicts) {
        match (is_busy(i), verdict) {
            (true, Verdict::Busy(_)) => {}
            (false, Verdict::Granted(_)) => leases.push(lease_of(claim, verdict)),
            _ => panic!("claim {i} of a batch is {verdict:?}"),
        }
    }
    let ends: Vec<bool> = (0..leases.len()).map(|i| i % 2 == 0).collect();
    for ended in chosen(&leases, &ends).chunks(can.max_batch) {
        let released = other.release(&Release::free_all(ended)).await?;
        assert!(released.iter().all(|r| *r == Released::Done), "all live leases must be freed");
    }
    let renewals: Vec<_> =
        leases.iter().map(|lease| Renewal::new(lease.clone(), ttl(LONG))).collect();
    let renewed = client.renew(&renewals).await?;
    assert_eq!(renewed.len(), renewals.len(), "each renewal of a batch must get an answer");
    for (ended, renewed) in ends.iter().zip(&renewed) {
        let is_lost = matches!(renewed, Renewed::Lost(_));
        assert_eq!(*ended, is_lost, "a renewal of a batch is {renewed:?}");
    }
    let mut released = Vec::new();
    for leases in leases.chunks(can.max_batch) {
        let answers = client.release(&Release::free_all(leases)).await?;
        assert_eq!(answers.len(), leases.len(), "each release of a batch must get an answer");
        released.extend(answers);
    }
    for (ended, released) in ends.iter().zip(&released) {
        let is_lost = matches!(released, Released::Lost(_));
        assert_eq!(*ended, is_lost, "a release of a batch is {released:?}");
    }
    assert_eq!(
        list(&client, &context.prefix()).await?.len(),
        (0..names.len()).filter(|i| is_busy(*i)).count(),
        "what others hold is all that is left"
    );
    Ok(())
}

fn chosen(leases: &[LeaseId], which: &[bool]) -> Vec<LeaseId> {
    leases.iter().zip(which).filter(|(_, chosen)| **chosen).map(|(l, _)| l.clone()).collect()
}

pub(crate) async fn name_twice_in_a_batch_is_granted_once(context: Context) -> Outcome {
    let client = context.client().await?;
    // A name that is new, and one that has a row already.
    for known in [false, true] {
        let name = context.name(if known { "known" } else { "new" });
        if known {
            free(&client, &take(&client, &claim(&name)).await?).await?;
        }
        let claims = [claim(&name), claim(&context.name(&format!("other {known}"))), claim(&name)];
        let verdicts = client.acquire(&claims).await?;
        assert_eq!(verdicts.len(), 3, "a batch of three must get three verdicts");
        lease_of(&claims[1], &verdicts[1]);
        let granted: Vec<usize> =
            [0, 2].into_iter().filter(|&i| matches!(verdicts[i], Verdict::Granted(_))).collect();
        assert_eq!(granted.len(), 1, "one name twice must be granted once: {verdicts:?}");
        let lease = lease_of(&claims[granted[0]], &verdicts[granted[0]]);

        let renewal = Renewal::new(lease.clone(), ttl(LONG));
        let renewed = client.renew(&[renewal.clone(), renewal]).await?;
        assert!(
            renewed.len() == 2
                && renewed.contains(&Renewed::Alive)
                && renewed.iter().all(|r| matches!(r, Renewed::Alive | Renewed::Skipped)),
            "a live lease twice in a batch must be renewed, and once may be skipped: {renewed:?}"
        );
        let released = client.release(&Release::free_all(&[lease.clone(), lease.clone()])).await?;
        assert_eq!(
            released.iter().filter(|r| **r == Released::Done).count(),
            1,
            "a live lease twice in a batch must be freed once: {released:?}"
        );
        assert_eq!(released.len(), 2, "a batch of two must get two answers");
        take(&client, &claim(&name)).await?;
    }
    Ok(())
}

/// Releases under contention, where a row may be skipped and an outcome unknown.
async fn release_surely(
    client: &crate::harness::Client,
    lease: &LeaseId,
) -> database_locks_core::Result<()> {
    loop {
        match client.release(&[Release::free(lease.clone())]).await.map(only) {
            Ok(Released::Done) => return Ok(()),
            Ok(Released::Skipped) => tokio::task::yield_now().await,
            Ok(other) => panic!("a live lease must be freed, but is {other:?}"),
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) async fn hundred_tasks_never_overlap(context: Context) -> Outcome {
    let engines = [context.locks().await?, context.locks().await?];
    let name = context.name("one");
    let holders = Arc::new(AtomicUsize::new(0));
    let tasks = (0..100).map(|i| {
        let (locks, name) = (engines[i % 2].clone(), name.clone());
        let holders = Arc::clone(&holders);
        tokio::spawn(async move {
            let guard = locks.lock(&name).ttl(LONG).acquire().await?;
            let before = holders.fetch_add(1, Ordering::SeqCst);
            assert_eq!(before, 0, "somebody else holds the lock");
            tokio::task::yield_now().await;
            holders.fetch_sub(1, Ordering::SeqCst);
            guard.release().await
        })
    });
    for task in soon("a hundred tasks are done", try_join_all(tasks)).await? {
        task?;
    }
    Ok(())
}

pub(crate) async fn eight_workers_lose_no_update_of_two_counters(context: Context) -> Outcome {
    const ROUNDS: usize = 12;
    let engines = [context.locks().await?, context.locks().await?];
    let names = [context.name("first"), context.name("second")];
    let counters: Arc<[AtomicUsize; 2]> = Arc::default();
    let workers = (0..8).map(|worker| {
        let (locks, names) = (engines[worker % 2].clone(), names.clone());
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let which = (worker + round) % 2;
                let guard = locks.lock(&names[which]).ttl(LONG).acquire().await?;
                // A read and a write with a pause between: only the lock makes them one.
                let read = counters[which].load(Ordering::SeqCst);
                tokio::task::yield_now().await;
                counters[which].store(read + 1, Ordering::SeqCst);
                guard.release().await?;
            }
            Ok::<_, database_locks_core::Error>(())
        })
    });
    for worker in soon("eight workers are done", try_join_all(workers)).await? {
        worker?;
    }
    let sum: usize = counters.iter().map(|counter| counter.load(Ordering::SeqCst)).sum();
    assert_eq!(sum, 8 * ROUNDS, "updates were lost");
    Ok(())
}
