//! Who holds a lease, and what an explicit owner may do.

use database_locks_core::{
    Attempt, Claim, LeaseId, LossReason, Owner, Release, Released, Renewal, Renewed, Verdict,
};

use crate::context::{
    Context, LONG, claim, free, keep, lease_of, list, miss, obtain, permits, refuse, release, soon,
    take, ttl,
};
use crate::harness::Outcome;

pub(crate) async fn claims_without_an_explicit_owner_exclude_each_other(
    context: Context,
) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name)).await?;
    refuse(&client, &claim(&name)).await?;
    refuse(&context.client().await?, &claim(&name)).await?;
    keep(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn explicit_owner_supersedes_from_another_client(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let by = |label: &str| {
        Ok::<_, database_locks_core::Error>(claim(&name).with_owner(Owner::explicit(label)?))
    };
    let old = take(&here, &by("worker 1")?).await?;
    refuse(&there, &by("worker 2")?).await?;
    refuse(&there, &by("Worker 1")?).await?;
    refuse(&there, &claim(&name)).await?;
    let new = take(&there, &by("worker 1")?).await?;
    assert!(new.token > old.token, "the lease that supersedes must have the higher token");
    miss(&here, &old, &[LossReason::Superseded]).await?;
    let released = release(&here, &old).await?;
    assert_eq!(released, Released::Lost(LossReason::Superseded), "the old one must learn it");
    keep(&there, &new).await?;
    refuse(&here, &by("worker 2")?).await?;
    Ok(())
}

pub(crate) async fn explicit_owner_does_not_supersede_a_label_of_the_same_text(
    context: Context,
) -> Outcome {
    let client = context.client().await?;
    let labels = [Owner::label_only("alice")?, Owner::explicit("alice")?];
    for (i, holder) in labels.iter().enumerate() {
        let name = context.name(&format!("held {i}"));
        let lease = take(&client, &claim(&name).with_owner(holder.clone())).await?;
        let other = labels[1 - i].clone();
        refuse(&client, &claim(&name).with_owner(other)).await?;
        keep(&client, &lease).await?;
    }
    Ok(())
}

pub(crate) async fn tasks_without_an_explicit_owner_exclude_each_other(
    context: Context,
) -> Outcome {
    let locks = context.locks().await?;
    let name = context.name("one");
    let guard = locks.lock(&name).ttl(LONG).acquire().await?;
    let other = locks.clone();
    let tried = other.lock(&name).try_acquire().await?;
    assert!(tried.is_none(), "two tasks of one process must exclude each other");
    guard.release().await?;
    Ok(())
}

pub(crate) async fn explicit_owner_joins_in_process_and_frees_with_the_last_guard(
    context: Context,
) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let first = here.lock(&name).owner("worker").ttl(LONG).acquire().await?;
    let second = soon("the owner joins", here.lock(&name).owner("worker").acquire()).await?;
    assert_eq!(first.token(), second.token(), "who joins must share the token");
    first.release().await?;
    second.check()?;
    let tried = there.lock(&name).try_acquire().await?;
    assert!(tried.is_none(), "the first release must not free what is held by the second guard");
    let tried = here.lock(&name).try_acquire().await?;
    assert!(tried.is_none(), "who has no owner must not join");
    second.release().await?;
    obtain(&there, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn explicit_owner_supersedes_none_but_its_own_shares(context: Context) -> Outcome {
    let client = context.client_with_shares().await?;
    let name = context.name("one");
    let of = |owner: &str, claim: Claim| -> Outcome<Claim> {
        Ok(claim.with_owner(Owner::explicit(owner)?))
    };
    let first = take(&client, &of("alice", permits(&name, 2, 5))?).await?;
    let other = take(&client, &of("bob", permits(&name, 1, 5))?).await?;
    refuse(&client, &of("alice", permits(&name, 5, 5))?).await?;
    keep(&client, &first).await?;
    // Her second share replaces her first, which is not counted any more.
    let second = take(&client, &of("alice", permits(&name, 4, 5))?).await?;
    assert!(second.token > first.token, "the new lease must have the higher token");
    miss(&client, &first, &[LossReason::Superseded]).await?;
    keep(&client, &other).await?;
    keep(&client, &second).await?;
    refuse(&client, &of("carol", permits(&name, 1, 5))?).await?;
    free(&client, &other).await?;
    let all = take(&client, &of("alice", permits(&name, 5, 5))?).await?;
    miss(&client, &second, &[LossReason::Superseded]).await?;
    free(&client, &all).await?;
    take(&client, &permits(&name, 5, 5)).await?;
    Ok(())
}

pub(crate) async fn labels_are_plain_text_alone_and_in_batches(context: Context) -> Outcome {
    let (client, there) = (context.client().await?, context.client().await?);
    let long = "🔒".repeat(60);
    let labels = [
        r"DOMAIN\user",
        "\"",
        "'",
        "\\",
        r"\n",
        "a\"b'c`d",
        "$1 ? % _ {} [] \u{e9} e\u{301}",
        "NULL",
        "0",
        &long,
    ];
    let shares = client.capabilities().shares;
    let mut claims = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        let owner = Owner::explicit(*label)?;
        let name = context.name(&format!("alone {i}"));
        claims.push(claim(&name).with_owner(owner.clone()));
        if shares {
            claims.push(permits(&context.name("shared"), 1, 100).with_owner(owner));
        }
    }
    // Each alone, and then all of them at once, by which each supersedes itself.
    for claim in &claims {
        let lease = take(&client, claim).await?;
        keep(&there, &lease).await?;
    }
    for claim in &mut claims {
        claim.attempt = Attempt::new();
    }
    let mut leases = Vec::new();
    for (claim, verdict) in claims.iter().zip(client.acquire(&claims).await?) {
        assert!(matches!(verdict, Verdict::Granted(_)), "{claim:?} gets {verdict:?}");
        leases.push(lease_of(claim, &verdict));
    }
    let renewal = |lease: &LeaseId| Renewal::new(lease.clone(), ttl(LONG));
    let renewals: Vec<_> = leases.iter().map(renewal).collect();
    assert_eq!(there.renew(&renewals).await?, vec![Renewed::Alive; leases.len()], "all are alive");
    for lease in &leases {
        keep(&there, lease).await?;
        let mut listed = list(&there, lease.name.as_str()).await?.into_iter();
        assert!(listed.any(|info| info.lease == *lease), "{lease:?} must be listed as it is");
    }
    let released = there.release(&Release::free_all(&leases)).await?;
    assert_eq!(released, vec![Released::Done; leases.len()], "all were alive");
    Ok(())
}

pub(crate) async fn superseded_guard_learns_it(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    // It cannot expire before a renewal tells what became of it.
    let renew_before = LONG - std::time::Duration::from_secs(1);
    let old = here.lock(&name).owner("worker").ttl(LONG).renew_before(renew_before);
    let old = old.acquire().await?;
    let request = there.lock(&name).owner("worker").ttl(LONG);
    let new = soon("the owner supersedes itself", request.acquire()).await?;
    assert!(new.token() > old.token(), "the new lease must have the higher token");
    let reason = soon("the old guard learns of it", old.lost()).await;
    assert_eq!(reason, LossReason::Superseded, "the old guard must learn why");
    assert!(old.check().is_err(), "the old guard must not go on");
    new.check()?;
    new.release().await?;
    Ok(())
}
