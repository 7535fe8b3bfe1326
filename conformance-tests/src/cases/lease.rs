//! How long a lease lives.

use std::time::Duration;

use database_locks_core::{
    ErrorKind, LockName, LossReason, Released, Renewed, Share, Token, Ttl, Verdict,
};

use crate::context::{
    Context, LONG, Since, ask, brief, brief_ttl, claim, free, keep, list, miss, permits, refuse,
    release, renew, renew_for, take, ttl,
};
use crate::harness::Outcome;

pub(crate) async fn expires_when_not_renewed(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let since = Since::now();
    take(&client, &brief(&client, &name)).await?;
    let early = ask(&client, &claim(&name)).await?;
    if since.within(brief_ttl(&client)) {
        assert!(matches!(early, Verdict::Busy(_)), "a lease must live for its TTL: {early:?}");
        context.outlive(brief_ttl(&client)).await?;
        take(&client, &claim(&name)).await?;
        assert_eq!(list(&client, &context.prefix()).await?.len(), 1, "only what lives is listed");
    }
    Ok(())
}

pub(crate) async fn dead_holders_lock_is_taken_by_a_plain_try(context: Context) -> Outcome {
    let (dead, living) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let old = take(&dead, &brief(&dead, &name)).await?;
    drop(dead);
    context.outlive(brief_ttl(&living)).await?;
    let lease = take(&living, &claim(&name)).await?;
    assert!(lease.token > old.token, "the successor's token must be higher");
    keep(&living, &lease).await?;
    Ok(())
}

pub(crate) async fn renewal_keeps_it_past_several_ttls(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let short = brief_ttl(&client) * 4;
    let mut since = Since::now();
    let lease = take(&client, &claim(&name).with_ttl(ttl(short))).await?;
    for _ in 0..8 {
        context.harness().pass(short / 2).await?;
        let before = Since::now();
        let renewed = renew_for(&client, &lease, ttl(short)).await?;
        // On a machine that stood still for a whole TTL the lease may rightly be gone.
        if !since.within(short) && renewed != Renewed::Alive {
            return Ok(());
        }
        assert_eq!(renewed, Renewed::Alive, "a renewal in time must keep the lease alive");
        since = before;
        let other = ask(&client, &claim(&name)).await?;
        assert!(
            matches!(other, Verdict::Busy(_)) || !since.within(short),
            "a renewed lease must exclude others, but a claim is {other:?}"
        );
    }
    Ok(())
}

pub(crate) async fn renewal_is_refused_after_expiry(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &brief(&client, &context.name("one"))).await?;
    context.outlive(brief_ttl(&client)).await?;
    for _ in 0..2 {
        miss(&client, &lease, &[LossReason::Expired]).await?;
    }
    take(&client, &claim(&lease.name)).await?;
    Ok(())
}

pub(crate) async fn renewal_is_refused_after_release(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    free(&client, &lease).await?;
    let renewed = renew(&client, &lease).await?;
    assert!(matches!(renewed, Renewed::Lost(_)), "a released lease must not rise: {renewed:?}");
    take(&client, &claim(&lease.name)).await?;
    Ok(())
}

pub(crate) async fn renewal_of_a_share_is_refused_after_its_end(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let permit = |name: &LockName| permits(name, 1, 2);
    let name = context.name("expired");
    let dead = take(&client, &permit(&name).with_ttl(ttl(brief_ttl(&client)))).await?;
    let beside = take(&client, &permit(&name)).await?;
    context.outlive(brief_ttl(&client)).await?;
    miss(&client, &dead, &[LossReason::Expired]).await?;
    let next = take(&client, &permit(&name)).await?;
    miss(&client, &dead, &[LossReason::Expired]).await?;
    refuse(&client, &permit(&name)).await?;
    keep(&client, &beside).await?;
    keep(&client, &next).await?;

    let name = context.name("released");
    let gone = take(&client, &permit(&name)).await?;
    let beside = take(&client, &permit(&name)).await?;
    free(&client, &gone).await?;
    miss(&client, &gone, &[LossReason::Forced]).await?;
    let again = release(&client, &gone).await?;
    assert!(matches!(again, Released::Lost(_)), "a share must be freed once, but is {again:?}");
    let next = take(&client, &permit(&name)).await?;
    miss(&client, &gone, &[LossReason::Forced]).await?;
    keep(&client, &beside).await?;
    keep(&client, &next).await?;
    Ok(())
}

pub(crate) async fn renewal_gives_the_time_that_it_asks_for(context: Context) -> Outcome {
    let client = context.client().await?;
    let shares = match client.capabilities().shares {
        true => vec![Share::ALL, Share::ONE],
        false => vec![Share::ALL],
    };
    let short = brief_ttl(&client);
    for share in shares {
        for before in [ttl(LONG), Ttl::Infinite] {
            let name = context.name(&format!("{share}, {before:?}"));
            let lease = take(&client, &claim(&name).with_share(share).with_ttl(before)).await?;
            let since = Since::now();
            let renewed = renew_for(&client, &lease, ttl(short)).await?;
            assert_eq!(renewed, Renewed::Alive, "a live lease must be renewed to a shorter TTL");
            let left = list(&client, name.as_str()).await?.into_iter().next();
            let left = left.and_then(|info| info.remaining);
            assert!(
                left.is_some_and(|left| left <= short) || !since.within(short),
                "a lease that was renewed for {short:?} has {left:?} left"
            );
            context.outlive(short).await?;
            miss(&client, &lease, &[LossReason::Expired]).await?;
            take(&client, &claim(&name)).await?;
        }
    }
    Ok(())
}

pub(crate) async fn renewal_is_refused_when_somebody_else_holds_it(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let old = take(&here, &brief(&here, &context.name("one"))).await?;
    context.outlive(brief_ttl(&here)).await?;
    let new = take(&there, &claim(&old.name)).await?;
    miss(&here, &old, &[LossReason::Taken]).await?;
    keep(&there, &new).await?;
    Ok(())
}

pub(crate) async fn renewal_is_refused_with_an_old_token(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    let mut old = lease.clone();
    old.token = Token::new(lease.token.get() - 1);
    let renewed = renew(&client, &old).await?;
    assert!(matches!(renewed, Renewed::Lost(_)), "an old token must be refused: {renewed:?}");
    keep(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn infinite_ttl_never_expires_and_can_be_released(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name).with_ttl(Ttl::Infinite)).await?;
    context.outlive(brief_ttl(&client) * 2).await?;
    let Verdict::Busy(busy) = ask(&client, &claim(&name)).await? else {
        panic!("a lease without end must exclude others")
    };
    assert_eq!(busy.holder.and_then(|holder| holder.remaining), None, "nothing runs out");
    let listed = list(&client, name.as_str()).await?;
    assert_eq!(listed.len(), 1, "a lease without end must be listed");
    assert_eq!(listed[0].remaining, None, "a lease without end must be listed as such");
    assert_eq!(renew_for(&client, &lease, Ttl::Infinite).await?, Renewed::Alive);
    free(&client, &lease).await?;
    take(&client, &claim(&name)).await?;
    Ok(())
}

pub(crate) async fn ttl_bounds_are_checked(context: Context) -> Outcome {
    let client = context.client().await?;
    for wrong in [
        Duration::ZERO,
        Ttl::MIN - Duration::from_nanos(1),
        Ttl::MAX + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let error = Ttl::new(wrong).map(|_| ()).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::InvalidOption), "a TTL of {wrong:?} must be refused");
    }
    for right in [client.capabilities().min_ttl, Ttl::MAX] {
        let name = context.name(&format!("{right:?}"));
        let lease = take(&client, &claim(&name).with_ttl(ttl(right))).await?;
        let left = list(&client, name.as_str()).await?.into_iter().next().and_then(|l| l.remaining);
        assert!(left.is_none_or(|left| left <= right), "{left:?} is left of {right:?}");
        let _ = release(&client, &lease).await?;
    }
    Ok(())
}

pub(crate) async fn expired_row_from_before_is_taken(context: Context) -> Outcome {
    let before = context.client().await?;
    let name = context.name("one");
    let old = take(&before, &brief(&before, &name)).await?;
    context.outlive(brief_ttl(&before)).await?;
    drop(before);
    // A client that was not there when the row was written.
    let client = context.client().await?;
    let first = claim(&name);
    let lease = take(&client, &first).await?;
    assert!(lease.token > old.token, "the token must grow over an expired row");
    refuse(&client, &claim(&name)).await?;
    Ok(())
}

pub(crate) async fn grace_holds_an_expired_lease_back(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let dead = take(&client, &brief(&client, &name)).await?;
    context.outlive(brief_ttl(&client)).await?;
    refuse(&client, &claim(&name).with_grace(LONG)).await?;
    miss(&client, &dead, &[LossReason::Expired]).await?;
    let lease = take(&client, &claim(&name)).await?;
    free(&client, &lease).await?;
    // Grace is for leases that expired, not for those that were released.
    take(&client, &claim(&name).with_grace(LONG)).await?;

    // A batch of many names may be decided in another way than a single claim.
    let names = ["a", "b", "c", "d"].map(|text| context.name(text));
    for name in &names {
        take(&client, &brief(&client, name)).await?;
    }
    context.outlive(brief_ttl(&client)).await?;
    let claims = names.map(|name| claim(&name).with_grace(LONG));
    let verdicts = client.acquire(&claims).await?;
    let are_busy = verdicts.iter().all(|verdict| matches!(verdict, Verdict::Busy(_)));
    assert!(are_busy, "a grace holds back each claim of a batch: {verdicts:?}");
    Ok(())
}

pub(crate) async fn holder_learns_that_its_row_was_deleted(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    context.harness().delete_row(&lease.name).await?;
    miss(&client, &lease, &[LossReason::Deleted]).await?;
    let next = take(&client, &claim(&lease.name)).await?;
    assert!(next.token > lease.token, "the token must grow over the deletion of a row");
    Ok(())
}
