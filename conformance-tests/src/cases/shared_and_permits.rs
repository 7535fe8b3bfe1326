//! Readers, writers and permits: more than one holder, by the one rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use database_locks_core::{LeaseId, Release, Released, Renewal, Renewed, Verdict};
use futures_util::future::try_join_all;

use crate::context::{
    Context, LONG, PATIENCE, ask, brief, brief_ttl, claim, free, keep, lease_of, list, obtain,
    permits, read, refuse, release, soon, take, ttl,
};
use crate::harness::{Outcome, Stop};

pub(crate) async fn many_readers_exclude_a_writer(context: Context) -> Outcome {
    let here = context.client_with_shares().await?;
    let there = context.client().await?;
    let name = context.name("one");
    let mut readers = Vec::new();
    for client in [&here, &there, &here, &there, &here] {
        readers.push(take(client, &read(&name)).await?);
    }
    while let Some(reader) = readers.pop() {
        refuse(&there, &claim(&name)).await?;
        keep(&here, &reader).await?;
        free(&here, &reader).await?;
    }
    let writer = take(&there, &claim(&name)).await?;
    refuse(&here, &read(&name)).await?;
    refuse(&here, &claim(&name)).await?;
    free(&there, &writer).await?;
    take(&here, &read(&name)).await?;
    Ok(())
}

pub(crate) async fn permits_are_granted_up_to_the_capacity(context: Context) -> Outcome {
    let here = context.client_with_shares().await?;
    let there = context.client().await?;
    let name = context.name("three");
    let first = take(&here, &permits(&name, 1, 3)).await?;
    let second = take(&there, &permits(&name, 1, 3)).await?;
    let third = take(&here, &permits(&name, 1, 3)).await?;
    assert!(first.token < second.token && second.token < third.token, "tokens must grow");
    refuse(&there, &permits(&name, 1, 3)).await?;
    free(&there, &second).await?;
    take(&there, &permits(&name, 1, 3)).await?;
    refuse(&here, &permits(&name, 1, 3)).await?;
    keep(&here, &first).await?;
    keep(&here, &third).await?;
    Ok(())
}

pub(crate) async fn weights_above_one_count(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("ten");
    let seven = take(&client, &permits(&name, 7, 10)).await?;
    refuse(&client, &permits(&name, 4, 10)).await?;
    let three = take(&client, &permits(&name, 3, 10)).await?;
    refuse(&client, &permits(&name, 1, 10)).await?;
    free(&client, &seven).await?;
    refuse(&client, &permits(&name, 8, 10)).await?;
    refuse(&client, &permits(&name, 10, 10)).await?;
    take(&client, &permits(&name, 6, 10)).await?;
    keep(&client, &three).await?;
    Ok(())
}

pub(crate) async fn shares_of_one_name_in_a_batch_are_decided_one_after_the_other(
    context: Context,
) -> Outcome {
    let client = context.client_with_shares().await?;
    // A name that is new, one that was held by one alone, and one that was held by several.
    for before in ["nobody", "one", "several"] {
        let name = context.name(before);
        let held = match before {
            "one" => vec![take(&client, &claim(&name)).await?],
            "several" => {
                vec![take(&client, &read(&name)).await?, take(&client, &read(&name)).await?]
            }
            _ => Vec::new(),
        };
        for lease in &held {
            free(&client, lease).await?;
        }

        let other = claim(&context.name(&format!("beside {before}")));
        let claims = [1, 2, 2, 1].map(|weight| permits(&name, weight, 5));
        let claims = [&claims[..2], &[other], &claims[2..]].concat();
        let verdicts = client.acquire(&claims).await?;
        assert!(
            matches!(
                verdicts[..],
                [
                    Verdict::Granted(first),
                    Verdict::Granted(second),
                    Verdict::Granted(_),
                    Verdict::Granted(third),
                    Verdict::Busy(_),
                ] if first < second && second < third
            ),
            "5 of 6 permits must be granted, with growing tokens, but the verdicts are {verdicts:?}"
        );
        let leases: Vec<LeaseId> =
            claims.iter().zip(&verdicts).take(4).map(|(c, v)| lease_of(c, v)).collect();

        let renewals: Vec<Renewal> =
            leases.iter().map(|lease| Renewal::new(lease.clone(), ttl(LONG))).collect();
        let renewed = client.renew(&renewals).await?;
        assert_eq!(renewed, [Renewed::Alive; 4], "all live leases of a batch must be renewed");
        let replayed = client.acquire(&claims[..4]).await?;
        assert_eq!(replayed, verdicts[..4], "replays in a batch must be granted the same tokens");

        let released = client.release(&Release::free_all(&leases[..2])).await?;
        assert_eq!(released, [Released::Done; 2], "live leases of a batch must be freed");
        let renewed = client.renew(&renewals).await?;
        assert!(
            matches!(
                renewed[..],
                [Renewed::Lost(_), Renewed::Lost(_), Renewed::Alive, Renewed::Alive]
            ),
            "only what was not released must be renewed, but the answers are {renewed:?}"
        );
        let listed = list(&client, name.as_str()).await?;
        assert_eq!(listed.len(), 1, "only the last one lives: {listed:?}");
        assert_eq!(listed[0].lease, leases[3], "only the last one lives");
        take(&client, &permits(&name, 3, 5)).await?;
    }
    Ok(())
}

/// More shares of one name than a store may have been made for.
const THOUSANDS: usize = 2_000;

pub(crate) async fn many_shares_of_one_name_are_held_at_once(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("one");
    // In one batch, where one can be that large, and else in as many as it takes.
    let batch = client.capabilities().max_batch;
    let mut claims = Vec::new();
    claims.resize_with(THOUSANDS, || read(&name));
    let mut leases = Vec::new();
    for claims in claims.chunks(batch) {
        let verdicts = client.acquire(claims).await?;
        leases.extend(claims.iter().zip(&verdicts).map(|(c, v)| lease_of(c, v)));
    }
    assert_eq!(leases.len(), THOUSANDS, "each claim of a batch must get a verdict");
    refuse(&client, &claim(&name)).await?;
    for leases in leases.chunks(batch) {
        let renewal = |lease: &LeaseId| Renewal::new(lease.clone(), ttl(LONG));
        let renewals: Vec<Renewal> = leases.iter().map(renewal).collect();
        let renewed = client.renew(&renewals).await?;
        assert_eq!(renewed, vec![Renewed::Alive; leases.len()], "all live leases must be renewed");
    }
    for leases in leases.chunks(batch) {
        let released = client.release(&Release::free_all(leases)).await?;
        assert_eq!(released, vec![Released::Done; leases.len()], "all live leases must be freed");
    }
    take(&client, &claim(&name)).await?;
    Ok(())
}

pub(crate) async fn holders_stay_within_the_capacity_under_contention(context: Context) -> Outcome {
    context.client_with_shares().await?;
    let clients = context.clients(6).await?;
    let name = context.name("five");
    let (taken, grants) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let workers = (1..=3).cycle().zip(clients).map(|(weight, client)| {
        let (name, taken, grants) = (name.clone(), Arc::clone(&taken), Arc::clone(&grants));
        tokio::spawn(async move {
            let mut claim = permits(&name, weight, 5);
            while grants.load(Ordering::SeqCst) < 60 {
                match ask(&client, &claim).await {
                    Ok(verdict @ Verdict::Granted(_)) => {
                        let all = taken.fetch_add(weight, Ordering::SeqCst) + weight;
                        assert!(all <= 5, "{all} of 5 permits are held at once");
                        tokio::task::yield_now().await;
                        taken.fetch_sub(weight, Ordering::SeqCst);
                        grants.fetch_add(1, Ordering::SeqCst);
                        let lease = lease_of(&claim, &verdict);
                        loop {
                            match release(&client, &lease).await {
                                Ok(Released::Done) => break,
                                Ok(Released::Skipped) => tokio::task::yield_now().await,
                                Ok(lost) => panic!("a live lease must be freed, but is {lost:?}"),
                                Err(error) if error.is_retryable() => {}
                                Err(error) => return Err(error),
                            }
                        }
                        claim = permits(&name, weight, 5);
                    }
                    Ok(Verdict::Busy(_) | Verdict::Skipped) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Ok(other) => panic!("a claim under contention must not be {other:?}"),
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

pub(crate) async fn another_capacity_is_refused_while_held(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("three");
    let held = take(&client, &permits(&name, 1, 3)).await?;
    for other in [permits(&name, 1, 4), read(&name), claim(&name), permits(&name, 2, 2)] {
        let verdict = ask(&client, &other).await?;
        assert_eq!(
            verdict,
            Verdict::CapacityMismatch(3),
            "a claim of {} while capacity 3 is held must be told so",
            other.share
        );
    }
    keep(&client, &held).await?;
    // An exclusive lock is held with a capacity too.
    let exclusive = context.name("full");
    take(&client, &claim(&exclusive)).await?;
    let verdict = ask(&client, &permits(&exclusive, 1, 3)).await?;
    assert!(
        matches!(verdict, Verdict::CapacityMismatch(_)),
        "permits of an exclusive lock must be a mismatch, but are {verdict:?}"
    );
    Ok(())
}

pub(crate) async fn capacity_changes_when_nothing_is_held(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("growing");
    for capacity in [3, 5, 2] {
        let lease = take(&client, &permits(&name, 2, capacity)).await?;
        free(&client, &lease).await?;
    }
    let lease = take(&client, &claim(&name)).await?;
    free(&client, &lease).await?;
    let short = permits(&name, 1, 7).with_ttl(brief(&client, &name).ttl);
    take(&client, &short).await?;
    context.outlive(brief_ttl(&client)).await?;
    take(&client, &permits(&name, 1, 8)).await?;
    Ok(())
}

pub(crate) async fn expired_reader_does_not_hold_back_a_writer(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("one");
    let short = brief(&client, &name).ttl;
    for _ in 0..2 {
        take(&client, &read(&name).with_ttl(short)).await?;
    }
    let living = take(&client, &read(&name)).await?;
    context.outlive(brief_ttl(&client)).await?;
    refuse(&client, &claim(&name)).await?;
    free(&client, &living).await?;
    take(&client, &claim(&name)).await?;
    Ok(())
}

pub(crate) async fn grace_holds_back_expired_shares_and_claims_of_shares(
    context: Context,
) -> Outcome {
    let client = context.client_with_shares().await?;
    let short = ttl(brief_ttl(&client));
    // Of the dead lease, and of the claim that gives it a grace.
    for (dead, asks) in [((1, 3), (3, 3)), ((3, 3), (1, 3)), ((2, 3), (2, 3))] {
        let name = context.name(&format!("{dead:?} {asks:?}"));
        let asks = permits(&name, asks.0, asks.1);
        take(&client, &permits(&name, dead.0, dead.1).with_ttl(short)).await?;
        context.outlive(brief_ttl(&client)).await?;
        refuse(&client, &asks.clone().with_grace(LONG)).await?;
        take(&client, &asks).await?;
    }
    Ok(())
}

pub(crate) async fn waiting_writer_is_not_starved_by_readers(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let there = context.client().await?;
    let name = context.name("one");
    let first = take(&client, &read(&name)).await?;
    let writer = claim(&name).with_mark(LONG);
    refuse(&there, &writer).await?;
    for _ in 0..3 {
        let verdict = ask(&client, &read(&name)).await?;
        assert!(
            matches!(verdict, Verdict::Busy(_)),
            "a new reader must stand back for a waiting writer, but is {verdict:?}"
        );
    }
    keep(&client, &first).await?;
    free(&client, &first).await?;
    refuse(&client, &read(&name)).await?;
    let written = take(&there, &writer).await?;
    free(&there, &written).await?;
    take(&client, &read(&name)).await?;
    Ok(())
}

pub(crate) async fn mark_of_a_writer_that_gave_up_runs_out(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("one");
    take(&client, &read(&name)).await?;
    let mark = Duration::from_millis(250);
    refuse(&client, &claim(&name).with_mark(mark)).await?;
    context.outlive(mark).await?;
    take(&client, &read(&name)).await?;
    Ok(())
}

/// A large batch may be decided in another way than a single item.
pub(crate) async fn lighter_mark_does_not_replace_a_heavier_one(context: Context) -> Outcome {
    let here = context.client_with_shares().await?;
    let there = context.client().await?;
    for (order, weights) in [("heavy first", [3, 2]), ("light first", [2, 3])] {
        let name = context.name(order);
        let held = take(&here, &permits(&name, 2, 3)).await?;
        for weight in weights {
            refuse(&there, &permits(&name, weight, 3).with_mark(LONG)).await?;
        }
        free(&here, &held).await?;
        refuse(&here, &permits(&name, 2, 3)).await?;
        let heavy = take(&there, &permits(&name, 3, 3)).await?;
        free(&there, &heavy).await?;
        take(&here, &permits(&name, 2, 3)).await?;
    }
    Ok(())
}

pub(crate) async fn whole_semaphores_stand_back_for_a_writer(context: Context) -> Outcome {
    let (here, there) = (context.client_with_shares().await?, context.client().await?);
    for size in [1, 5] {
        let names: Vec<_> = (0..size).map(|i| context.name(&format!("{size} {i}"))).collect();
        let mut held = Vec::new();
        for name in &names {
            held.push(Release::free(take(&here, &claim(name)).await?));
            refuse(&there, &claim(name).with_mark(LONG)).await?;
        }
        assert_eq!(here.release(&held).await?, vec![Released::Done; size]);
        // All of a lock that has another capacity, and less than a writer waits for.
        let whole = || names.iter().map(|name| permits(name, 3, 3)).collect::<Vec<_>>();
        for verdict in here.acquire(&whole()).await? {
            let is_busy = matches!(verdict, Verdict::Busy(_));
            assert!(is_busy, "who wants less must stand back for a waiting writer: {verdict:?}");
        }
        // Once it has had the lock nobody waits any more.
        let writers: Vec<_> = names.iter().map(claim).collect();
        let verdicts = there.acquire(&writers).await?;
        let written = writers.iter().zip(&verdicts).map(|(w, v)| Release::free(lease_of(w, v)));
        let written: Vec<_> = written.collect();
        assert_eq!(there.release(&written).await?, vec![Released::Done; size]);
        for verdict in here.acquire(&whole()).await? {
            let is_granted = matches!(verdict, Verdict::Granted(_));
            assert!(is_granted, "nobody waits any more, and it is {verdict:?}");
        }
    }
    Ok(())
}

pub(crate) async fn writer_waits_for_readers_and_readers_for_the_writer(
    context: Context,
) -> Outcome {
    context.client_with_shares().await?;
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let readers = [
        here.rwlock(&name).read().ttl(LONG).acquire().await?,
        there.rwlock(&name).read().ttl(LONG).acquire().await?,
    ];
    let tried = there.rwlock(&name).write().try_acquire().await?;
    assert!(tried.is_none(), "a writer must not be let in beside readers");
    let mut writing = Box::pin(there.rwlock(&name).write().ttl(LONG).acquire());
    for reader in readers {
        let early = tokio::time::timeout(Duration::from_millis(50), &mut writing).await;
        assert!(early.is_err(), "a writer must wait for each of the readers");
        reader.release().await?;
    }
    let writer = soon("the writer is let in", writing).await?;
    let mut reading = Box::pin(here.rwlock(&name).read().ttl(LONG).acquire());
    let early = tokio::time::timeout(Duration::from_millis(50), &mut reading).await;
    assert!(early.is_err(), "a reader must wait for the writer");
    writer.release().await?;
    soon("the reader is let in", reading).await?.release().await?;
    obtain(&here, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn locked_row_of_a_share_stalls_no_other_name(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("shared");
    let (locked, beside) = (take(&client, &read(&name)).await?, take(&client, &read(&name)).await?);
    let other = take(&client, &claim(&context.name("other"))).await?;
    let row = context.harness().lock_share(&locked).await?;

    let calls = async {
        let renewal = |lease: &LeaseId| Renewal::new(lease.clone(), ttl(LONG));
        let renewed = client.renew(&[&locked, &other].map(renewal)).await?;
        let verdict = ask(&client, &read(&name)).await?;
        let released = client.release(&Release::free_all(&[locked.clone(), other.clone()])).await?;
        Ok::<_, Stop>((renewed, verdict, released))
    };
    let answers = tokio::time::timeout(PATIENCE, calls).await;
    row.roll_back().await?;
    let Ok(answers) = answers else { panic!("a locked row of a share must not stall the batch") };
    let (renewed, verdict, released) = answers?;
    assert_eq!(renewed, [Renewed::Skipped, Renewed::Alive], "only the locked share is skipped");
    assert!(
        matches!(verdict, Verdict::Granted(_) | Verdict::Skipped),
        "another reader must be let in or skipped, but is {verdict:?}"
    );
    assert_eq!(released, [Released::Skipped, Released::Done], "only the locked share is skipped");
    keep(&client, &locked).await?;
    free(&client, &locked).await?;
    free(&client, &beside).await?;
    Ok(())
}
