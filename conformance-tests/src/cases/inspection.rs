//! Looking, forcing and clearing up.

use std::time::Duration;

use database_locks_core::{
    Attempt, Data, ListQuery, LossReason, Owner, Released, Renewed, Ttl, Verdict,
};

use crate::context::{
    Context, LONG, Since, ask, brief, brief_ttl, claim, free, keep, lease_of, list, miss, permits,
    read, refuse, release, renew, take,
};
use crate::harness::Outcome;

pub(crate) async fn list_finds_by_prefix(context: Context) -> Outcome {
    let client = context.client().await?;
    let owner = Owner::explicit("the lister's friend")?;
    let mut leases = Vec::new();
    for name in ["job/a", "job/b", "job", "Job/c", "jobs"] {
        let claim = claim(&context.name(name)).with_owner(owner.clone());
        leases.push(take(&client, &claim).await?);
    }
    if client.capabilities().shares {
        for _ in 0..2 {
            leases.push(take(&client, &read(&context.name("job/shared"))).await?);
        }
    }
    free(&client, &take(&client, &claim(&context.name("job/released"))).await?).await?;
    take(&client, &brief(&client, &context.name("job/expired"))).await?;
    context.outlive(brief_ttl(&client)).await?;

    leases.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
    for text in ["", "job", "job/", "Job", "job/a", "other"] {
        let prefix = format!("{}{text}", context.prefix());
        let expected: Vec<_> =
            leases.iter().filter(|l| l.name.as_str().starts_with(&prefix)).cloned().collect();
        let listed = list(&context.client().await?, &prefix).await?;
        for info in &listed {
            assert!(info.held_for < LONG, "{:?} is too long", info.held_for);
            assert!(info.remaining.is_some_and(|r| r <= LONG), "{:?} is left", info.remaining);
            assert!(!info.waited_for, "nobody waits for {:?}", info.lease.name);
        }
        let listed: Vec<_> = listed.into_iter().map(|info| info.lease).collect();
        assert_eq!(listed, expected, "live leases under {text:?}, by name and attempt");
    }
    Ok(())
}

pub(crate) async fn list_tells_what_is_waited_for(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let mut claims = vec![claim(&context.name("alone")), claim(&context.name("beside"))];
    if here.capabilities().shares {
        claims.extend([read(&context.name("shared")), read(&context.name("shared"))]);
    }
    for claim in &claims {
        take(&here, claim).await?;
    }
    let waited_for = async || {
        let listed = list(&here, &context.prefix()).await?;
        let waited_for = listed.into_iter().filter(|info| info.waited_for);
        Outcome::Ok(waited_for.map(|info| info.lease.name).collect::<Vec<_>>())
    };
    for claim in &claims {
        refuse(&there, &self::claim(&claim.name)).await?;
    }
    assert_eq!(waited_for().await?, [], "who leaves no mark does not wait");
    refuse(&there, &claim(&context.name("alone")).with_mark(LONG)).await?;
    assert_eq!(waited_for().await?, [context.name("alone")], "one has a mark");
    if here.capabilities().shares {
        let shared = context.name("shared");
        refuse(&there, &claim(&shared).with_mark(LONG)).await?;
        let all = [context.name("alone"), shared.clone(), shared];
        assert_eq!(waited_for().await?, all, "each lease of a name is waited for");
    }
    Ok(())
}

pub(crate) async fn list_comes_in_pages(context: Context) -> Outcome {
    let client = context.client().await?;
    let mut leases = Vec::new();
    for i in 0..7 {
        leases.push(take(&client, &claim(&context.name(&format!("{i}")))).await?);
    }
    if client.capabilities().shares {
        // Leases of one name that fall on two pages.
        for _ in 0..4 {
            leases.push(take(&client, &read(&context.name("3 shared"))).await?);
        }
    }
    leases.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
    for limit in [1, 2, 3, 100] {
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let query = ListQuery::new(context.prefix()).with_after(after.take()).with_limit(limit);
            let page = client.list(&query).await?;
            assert!(page.len() <= limit as usize, "a page of {limit} has {} leases", page.len());
            let Some(last) = page.last() else { break };
            after = Some((last.lease.name.clone(), last.lease.attempt));
            listed.extend(page.into_iter().map(|info| info.lease));
            assert!(listed.len() <= leases.len(), "pages of {limit} never end");
        }
        assert_eq!(listed, leases, "pages of {limit} must show each lease once, in order");
    }
    Ok(())
}

pub(crate) async fn list_changes_nothing(context: Context) -> Outcome {
    let client = context.client().await?;
    let there = context.client().await?;
    let (lasting, fleeting) = (context.name("lasting"), context.name("fleeting"));
    let lease = take(&client, &claim(&lasting)).await?;
    let dying = take(&client, &brief(&client, &fleeting)).await?;
    let mut before = list(&there, lasting.as_str()).await?;
    for _ in 0..5 {
        list(&there, &context.prefix()).await?;
        let now = list(&there, lasting.as_str()).await?;
        assert_eq!(now.len(), 1, "listing must neither end nor add a lease");
        assert_eq!(now[0].lease, lease, "listing must not change a lease");
        assert!(now[0].remaining <= before[0].remaining, "listing must not extend a lease");
        assert!(now[0].held_for >= before[0].held_for, "listing must not rejuvenate a lease");
        before = now;
    }
    context.outlive(brief_ttl(&client)).await?;
    list(&there, &context.prefix()).await?;
    miss(&client, &dying, &[LossReason::Expired]).await?;
    keep(&client, &lease).await?;
    refuse(&there, &claim(&lasting)).await?;
    Ok(())
}

pub(crate) async fn forced_release_ends_the_holders_lease(context: Context) -> Outcome {
    let (holder, operator) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let lease = take(&holder, &claim(&name).with_ttl(Ttl::Infinite)).await?;
    let listed = list(&operator, name.as_str()).await?;
    assert_eq!(listed.len(), 1, "the lease must be listed");
    free(&operator, &listed[0].lease).await?;
    miss(&holder, &lease, &[LossReason::Forced]).await?;
    take(&operator, &claim(&name)).await?;
    let renewed = renew(&holder, &lease).await?;
    assert!(matches!(renewed, Renewed::Lost(_)), "a forced lease must not rise: {renewed:?}");
    Ok(())
}

pub(crate) async fn forced_release_cannot_hit_the_next_holder(context: Context) -> Outcome {
    let (holder, operator) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let first = take(&holder, &claim(&name)).await?;
    let listed = list(&operator, name.as_str()).await?;
    free(&holder, &first).await?;
    let next = take(&holder, &claim(&name)).await?;
    let forced = release(&operator, &listed[0].lease).await?;
    assert!(matches!(forced, Released::Lost(_)), "what is forced has ended before: {forced:?}");
    keep(&holder, &next).await?;
    Ok(())
}

pub(crate) async fn clean_up_removes_only_what_was_idle_for_the_retention(
    context: Context,
) -> Outcome {
    let client = context.client().await?;
    let idle = Duration::from_secs(2);
    let old = [claim(&context.name("old 1")), claim(&context.name("old 2"))];
    for claim in &old {
        free(&client, &take(&client, claim).await?).await?;
    }
    context.outlive(idle).await?;
    let since = Since::now();
    let recent = claim(&context.name("recent"));
    free(&client, &take(&client, &recent).await?).await?;
    let forgotten = client.clean_up(idle).await?;
    let replay = ask(&client, &recent).await?;
    if since.within(idle) {
        assert_eq!(forgotten, 2, "what has been idle for the retention, and no more, is forgotten");
        assert_eq!(replay, Verdict::Ended, "a name that was held just now must be remembered");
    }
    let taken = take(&client, &claim(&old[0].name)).await?;
    refuse(&client, &claim(&old[0].name)).await?;
    free(&client, &taken).await?;
    Ok(())
}

pub(crate) async fn clean_up_beside_claims_removes_nothing_that_is_held(
    context: Context,
) -> Outcome {
    let (client, cleaner) = (context.client().await?, context.client().await?);
    let cleaning = tokio::spawn(async move {
        loop {
            // It may meet a claim, and then some other time will do.
            let _ = cleaner.clean_up(Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
        }
    });
    let outcome = async {
        for _ in 0..60 {
            // Idle for long enough to be forgotten at any moment.
            let name = context.name("one");
            tokio::time::sleep(Duration::from_millis(3)).await;
            let claim = claim(&name);
            let lease = loop {
                match ask(&client, &claim).await {
                    Ok(Verdict::Skipped) => tokio::task::yield_now().await,
                    Err(error) if error.is_retryable() => {}
                    verdict => break lease_of(&claim, &verdict?),
                }
            };
            tokio::time::sleep(Duration::from_millis(1)).await;
            loop {
                match renew(&client, &lease).await {
                    Ok(Renewed::Skipped) => tokio::task::yield_now().await,
                    Err(error) if error.is_retryable() => {}
                    renewed => {
                        assert_eq!(renewed?, Renewed::Alive, "a held name was forgotten");
                        break;
                    }
                }
            }
            while !matches!(release(&client, &lease).await, Ok(Released::Done | Released::Lost(_)))
            {
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    cleaning.abort();
    outcome
}

pub(crate) async fn clean_up_never_removes_what_is_held(context: Context) -> Outcome {
    let client = context.client().await?;
    let mut held = vec![
        take(&client, &claim(&context.name("long"))).await?,
        take(&client, &claim(&context.name("endless")).with_ttl(Ttl::Infinite)).await?,
    ];
    if client.capabilities().shares {
        for _ in 0..2 {
            held.push(take(&client, &read(&context.name("shared"))).await?);
        }
    }
    let idle = Duration::from_millis(100);
    context.outlive(idle * 2).await?;
    for idle in [idle, Duration::ZERO] {
        client.clean_up(idle).await?;
        for lease in &held {
            keep(&client, lease).await?;
            refuse(&client, &claim(&lease.name)).await?;
        }
    }
    Ok(())
}

pub(crate) async fn data_is_shown_to_whoever_lists_or_waits(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let longest = "é".repeat(Data::MAX_BYTES / 2);
    let texts = ["https://10.0.0.1:8080", "", "'; \\ \" % _ \n\t🦀", longest.as_str()];
    let mut claims = Vec::new();
    for (i, text) in texts.into_iter().enumerate() {
        let data = Data::new(text)?;
        claims.push(claim(&context.name(&format!("alone {i}"))).with_data(data.clone()));
        if here.capabilities().shares {
            claims.push(permits(&context.name(&format!("shared {i}")), 2, 3).with_data(data));
        }
    }
    // Each alone, and then all of them at once.
    for together in [false, true] {
        let mut leases = Vec::new();
        if together {
            for claim in &mut claims {
                claim.attempt = Attempt::new();
            }
            let verdicts = here.acquire(&claims).await?;
            leases.extend(claims.iter().zip(&verdicts).map(|(claim, v)| lease_of(claim, v)));
        } else {
            for claim in &claims {
                leases.push(take(&here, claim).await?);
            }
        }
        for (asked, lease) in claims.iter().zip(&leases) {
            keep(&here, lease).await?;
            let listed = list(&there, asked.name.as_str()).await?;
            let [info] = listed.as_slice() else { panic!("one must be listed: {listed:?}") };
            assert_eq!(info.data, asked.data, "the list must show the data");
            let other = claim(&asked.name).with_share(asked.share);
            let Verdict::Busy(busy) = ask(&there, &other).await? else {
                panic!("a live lease must exclude")
            };
            let told = busy.holder.and_then(|holder| holder.data);
            assert_eq!(told, asked.data, "who finds the lock busy must be told the data");
        }
        for (asked, lease) in claims.iter().zip(&leases) {
            free(&here, lease).await?;
            // The next holder has none.
            let next = take(&there, &claim(&asked.name).with_share(asked.share)).await?;
            let listed = list(&here, asked.name.as_str()).await?;
            assert!(listed.iter().all(|info| info.data.is_none()), "{listed:?}");
            free(&there, &next).await?;
        }
    }
    Ok(())
}
