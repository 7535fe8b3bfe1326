//! Leases that their holders have no more, though their names stay taken.

use std::sync::Arc;
use std::time::Duration;

use database_locks_core::{
    Attempt, Claim, How, LeaseId, Locks, LossReason, Owner, Release, Released, Result, Share,
    Standing, Ttl, Verdict,
};

use crate::context::{
    Context, LONG, Since, ask, brief_ttl, claim, free, keep, list, miss, obtain, only, permits,
    read, refuse, soon, take, ttl, until_none_lives,
};
use crate::faulty::{Fault, FaultyBackend, Verb};
use crate::harness::{Client, Outcome};

pub(crate) async fn kept_lease_is_its_holders_no_more_and_holds_others_back(
    context: Context,
) -> Outcome {
    has_ended_and_is_in_the_way(&context, How::Keep { until_age: LONG * 2 }, Standing::Kept).await
}

pub(crate) async fn revoked_lease_is_its_holders_no_more_and_holds_others_back(
    context: Context,
) -> Outcome {
    has_ended_and_is_in_the_way(&context, How::Revoke, Standing::Revoked).await
}

async fn has_ended_and_is_in_the_way(context: &Context, how: How, standing: Standing) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    for asked in kinds(&here, context) {
        let other = claim(&asked.name).with_share(asked.share);
        let lease = take(&here, &asked).await?;
        // Asked again, as if the answer had been lost.
        for _ in 0..2 {
            let released = end(&there, &lease, how).await?;
            assert_eq!(released, Released::Done, "a live lease must end as it is asked: {how:?}");
        }
        let (reason, verdict) = match standing {
            Standing::Revoked => (LossReason::Forced, Verdict::Revoked(lease.token)),
            _ => (LossReason::Released, Verdict::Ended),
        };
        miss(&here, &lease, &[reason]).await?;
        let replayed = ask(&here, &asked).await?;
        assert_eq!(replayed, verdict, "its attempt must not get the lease again");
        let Verdict::Busy(busy) = ask(&there, &other).await? else {
            panic!("nobody may have the lock before the lease has expired")
        };
        let holder = busy.holder.map(|holder| (holder.owner, holder.token, holder.standing));
        let expected = (lease.owner.clone(), lease.token, standing);
        assert_eq!(holder, Some(expected), "it must be named as it is");
        let listed = list(&there, lease.name.as_str()).await?;
        let [info] = listed.as_slice() else { panic!("one lease must be listed: {listed:?}") };
        assert_eq!((&info.lease, info.standing), (&lease, standing), "it must be listed as it is");
        // Its holder has done with it, or somebody has it freed by force.
        free(&here, &lease).await?;
        let next = take(&there, &other).await?;
        assert!(next.token > lease.token, "the next lease must have the higher token");
        let listed = list(&there, lease.name.as_str()).await?;
        assert_eq!(listed[0].standing, Standing::Held, "the next holder has its lease");
        keep(&there, &next).await?;
        let released = end(&here, &lease, how).await?;
        assert!(matches!(released, Released::Lost(_)), "it has ended: {released:?}");
        keep(&there, &next).await?;
    }
    Ok(())
}

pub(crate) async fn kept_lease_frees_its_name_at_its_age(context: Context) -> Outcome {
    let client = context.client().await?;
    let age = brief_ttl(&client);
    for asked in kinds(&client, &context) {
        let other = claim(&asked.name).with_share(asked.share);
        let since = Since::now();
        let lease = take(&client, &asked).await?;
        assert_eq!(end(&client, &lease, How::Keep { until_age: age }).await?, Released::Done);
        let verdict = ask(&client, &other).await?;
        let is_busy = matches!(verdict, Verdict::Busy(_));
        assert!(is_busy || !since.within(age), "it is kept, but the claim is {verdict:?}");
        if is_busy {
            context.outlive(age).await?;
            let next = take(&client, &other).await?;
            assert!(next.token > lease.token, "the next lease must have the higher token");
        }
    }
    Ok(())
}

pub(crate) async fn kept_lease_outlives_its_ttl(context: Context) -> Outcome {
    let client = context.client().await?;
    let brief = brief_ttl(&client);
    let mut kinds: Vec<_> =
        kinds(&client, &context).into_iter().map(|asked| (asked, None)).collect();
    if client.capabilities().shares {
        let beside = permits(&context.name("beside"), 1, 3);
        kinds.push((permits(&beside.name, 2, 3), Some(beside.with_ttl(ttl(brief)))));
    }
    for (asked, beside) in kinds {
        let since = Since::now();
        if let Some(beside) = beside {
            take(&client, &beside).await?;
        }
        let lease = take(&client, &asked.clone().with_ttl(ttl(brief))).await?;
        let kept = end(&client, &lease, How::Keep { until_age: LONG }).await?;
        if since.within(brief) {
            assert_eq!(kept, Released::Done, "a live lease must be kept");
            context.outlive(brief).await?;
            refuse(&client, &claim(&asked.name).with_share(asked.share)).await?;
            free(&client, &lease).await?;
        }
    }
    Ok(())
}

pub(crate) async fn age_is_counted_from_the_grant(context: Context) -> Outcome {
    let client = context.client().await?;
    for asked in kinds(&client, &context) {
        let age = brief_ttl(&client);
        let lease = take(&client, &asked).await?;
        context.outlive(age).await?;
        keep(&client, &lease).await?;
        // A replay is no grant either.
        take(&client, &asked).await?;
        assert_eq!(end(&client, &lease, How::Keep { until_age: age }).await?, Released::Done);
        take(&client, &claim(&asked.name).with_share(asked.share)).await?;
    }
    Ok(())
}

pub(crate) async fn lease_that_is_old_enough_is_not_kept(context: Context) -> Outcome {
    let client = context.client().await?;
    for asked in kinds(&client, &context) {
        for until_age in [Duration::ZERO, brief_ttl(&client)] {
            let lease = take(&client, &asked.clone().with_attempt(Attempt::new())).await?;
            context.outlive(until_age).await?;
            assert_eq!(end(&client, &lease, How::Keep { until_age }).await?, Released::Done);
            assert!(list(&client, asked.name.as_str()).await?.is_empty(), "it must be free");
        }
        take(&client, &asked).await?;
    }
    Ok(())
}

pub(crate) async fn revoked_lease_frees_its_name_at_its_expiry(context: Context) -> Outcome {
    let client = context.client().await?;
    for asked in kinds(&client, &context) {
        let since = Since::now();
        let lease = take(&client, &asked.clone().with_ttl(ttl(brief_ttl(&client)))).await?;
        let revoked = end(&client, &lease, How::Revoke).await?;
        if since.within(brief_ttl(&client)) {
            assert_eq!(revoked, Released::Done);
        }
        context.outlive(brief_ttl(&client)).await?;
        take(&client, &claim(&asked.name).with_share(asked.share)).await?;
    }
    Ok(())
}

pub(crate) async fn explicit_owner_supersedes_no_kept_or_revoked_lease(
    context: Context,
) -> Outcome {
    let client = context.client().await?;
    let owner = Owner::explicit("worker 1")?;
    for (text, how) in [("kept", How::Keep { until_age: LONG * 2 }), ("revoked", How::Revoke)] {
        let name = context.name(text);
        let mut shares = vec![Share::ALL];
        if client.capabilities().shares {
            shares.push(Share::new(2, 3)?);
        }
        for share in shares {
            let by_owner = || claim(&name).with_share(share).with_owner(owner.clone());
            let lease = take(&client, &by_owner()).await?;
            assert_eq!(end(&client, &lease, how).await?, Released::Done);
            refuse(&client, &by_owner()).await?;
            free(&client, &lease).await?;
        }
    }
    Ok(())
}

pub(crate) async fn several_ends_in_a_batch_are_each_as_asked(context: Context) -> Outcome {
    let client = context.client().await?;
    let mut asked = vec![claim(&context.name("a")), claim(&context.name("b"))];
    asked.push(claim(&context.name("c")));
    if client.capabilities().shares {
        let one = context.name("one");
        asked.extend([read(&one), read(&one), read(&one)]);
    }
    let mut releases = Vec::new();
    for (claim, how) in asked.iter().zip([0, 1, 2, 0, 1, 2]) {
        let lease = take(&client, claim).await?;
        releases.push(match how {
            0 => Release::free(lease),
            1 => Release::keep(lease, LONG * 2),
            _ => Release::revoke(lease),
        });
    }
    let released = client.release(&releases).await?;
    assert_eq!(released, vec![Released::Done; releases.len()]);
    let mut left = list(&client, &context.prefix()).await?;
    left.sort_by_key(|info| info.lease.token);
    let standings: Vec<_> = left.iter().map(|info| info.standing).collect();
    let expected = [Standing::Kept, Standing::Revoked].repeat(releases.len() / 3);
    assert_eq!(standings, expected, "two of three are still there: {left:#?}");
    if client.capabilities().shares {
        for how in [How::Keep { until_age: LONG * 2 }, How::Revoke] {
            for place in 0..3 {
                ended_shares_are_freed_beside_live_ones(&context, &client, how, place).await?;
            }
        }
    }
    Ok(())
}

/// Of three shares of a name that are freed together, one had ended otherwise; and so had one of another name, which
/// somebody else holds a share of.
async fn ended_shares_are_freed_beside_live_ones(
    context: &Context,
    client: &Client,
    how: How,
    place: usize,
) -> Outcome {
    let [other, mixed] = ["a", "b"].map(|text| context.name(&format!("{text} {how:?} {place}")));
    let stays = take(client, &permits(&other, 1, 3)).await?;
    let ended = take(client, &permits(&other, 1, 3)).await?;
    end(client, &ended, how).await?;
    let mut all = vec![ended];
    for share in 0..3 {
        let lease = take(client, &permits(&mixed, 1, 3)).await?;
        if share == place {
            end(client, &lease, how).await?;
        }
        all.push(lease);
    }
    let released = client.release(&Release::free_all(&all)).await?;
    assert_eq!(released, [Released::Done; 4], "{how:?}, the one at {place}");
    take(client, &permits(&mixed, 3, 3)).await?;
    refuse(client, &permits(&other, 3, 3)).await?;
    keep(client, &stays).await?;
    free(client, &stays).await?;
    take(client, &permits(&other, 3, 3)).await?;
    Ok(())
}

pub(crate) async fn revoked_holder_stops_and_makes_way(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    // It would live for as long as the case may take, and is renewed all the time.
    let period = Duration::from_millis(200);
    let held = here.lock(&name).ttl(LONG).renew_before(LONG - period).acquire().await?;
    let lease = held.lease();
    assert!(there.revoke(lease.id()).await?, "a live lease must be revoked");
    let reason = soon("the holder learns that its lease is revoked", lease.lost()).await;
    assert_eq!(reason, LossReason::Forced);
    assert!(there.lock(&name).try_acquire().await?.is_none(), "nobody may have it before it stops");
    drop(held);
    drop(obtain(&there, &name).await?);
    assert!(!there.revoke(lease.id()).await?, "there is nothing to revoke any more");
    Ok(())
}

pub(crate) async fn unheard_grant_that_is_revoked_is_given_back(context: Context) -> Outcome {
    let (client, operator) = (context.client().await?, context.locks().await?);
    for goes in [true, false] {
        let faulty = FaultyBackend::new(context.client().await?);
        let locks = Locks::builder().build(Arc::clone(&faulty) as Client)?;
        let name = context.name(&format!("{goes}"));
        faulty.always(Verb::Acquire, Fault::LoseAnswer);
        let acquired = {
            let (locks, name) = (locks.clone(), name.clone());
            tokio::spawn(async move { locks.lock(&name).ttl(Ttl::Infinite).acquire().await })
        };
        faulty.until_begun(Verb::Acquire, 2).await;
        let granted = list(&client, name.as_str()).await?;
        let [granted] = granted.as_slice() else { panic!("one was granted: {granted:?}") };
        // Not by one request: its row may be locked by those that are repeated.
        assert!(operator.revoke(&granted.lease).await?, "a live lease must be revoked");
        if goes {
            acquired.abort();
        }
        faulty.heal(Verb::Acquire);
        if goes {
            until_none_lives(&client, name.as_str()).await?;
        } else {
            let guard = soon("the waiter has another lease", acquired).await??;
            assert!(guard.token() > granted.lease.token, "the first lease was revoked");
        }
    }
    Ok(())
}

/// Claims to all of a lock and, where there are shares, to so much of one that no other such claim fits beside.
fn kinds(client: &Client, context: &Context) -> Vec<Claim> {
    let mut kinds = vec![claim(&context.name("alone"))];
    if client.capabilities().shares {
        kinds.push(permits(&context.name("one"), 2, 3));
    }
    kinds
}

async fn end(client: &Client, lease: &LeaseId, how: How) -> Result<Released> {
    let release = match how {
        How::Free => Release::free(lease.clone()),
        How::Keep { until_age } => Release::keep(lease.clone(), until_age),
        How::Revoke => Release::revoke(lease.clone()),
    };
    Ok(only(client.release(&[release]).await?))
}
