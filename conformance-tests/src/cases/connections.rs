//! Connections: few, replaced when they break, and left as they were found.

use database_locks_core::{
    Attempt, Claim, ErrorKind, LeaseId, Locks, Release, Released, Renewal, Renewed, Standing,
    Verdict,
};
use futures_util::future::try_join_all;

use crate::context::{
    Context, LONG, PATIENCE, claim, free, keep, lease_of, list, read, refuse, release, renew, soon,
    take, ttl,
};
use crate::harness::{Client, ClientOption, Outcome, ServerEnd, Stop};

pub(crate) async fn sixty_four_waiters_share_a_pool_of_one(context: Context) -> Outcome {
    let client = context.harness().client_with(&ClientOption::PoolOfOne).await?;
    let locks = Locks::builder().build(client)?;
    let waiters = (0..64).map(|i| {
        let request = locks.lock(context.name(&format!("{}", i % 4))).ttl(LONG);
        tokio::spawn(async move { request.acquire().await?.release().await })
    });
    for waiter in soon("64 waiters are served", try_join_all(waiters)).await? {
        waiter?;
    }
    Ok(())
}

pub(crate) async fn hundred_cycles_leak_no_connection(context: Context) -> Outcome {
    let client = context.client().await?;
    for round in 0..10 {
        cycle(&client, &context, round).await?;
    }
    let warm = context.harness().connection_count().await?;
    for round in 0..100 {
        cycle(&client, &context, round).await?;
    }
    let after = context.harness().connection_count().await?;
    assert!(after <= warm, "{warm} connections have become {after} over a hundred cycles");
    Ok(())
}

pub(crate) async fn killed_connection_is_replaced(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name)).await?;
    for _ in 0..3 {
        context.harness().break_connections().await?;
        until_reached(&client, &lease).await?;
        refuse(&client, &claim(&name)).await?;
    }
    keep(&client, &lease).await?;
    free(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn session_settings_do_not_leak_to_the_next_user(context: Context) -> Outcome {
    let before = context.harness().session_settings().await?;
    if before.is_empty() {
        return Err(Stop::failed("the harness must report the settings of a session"));
    }
    let client = context.client().await?;
    for round in 0..10 {
        cycle(&client, &context, round).await?;
        let after = context.harness().session_settings().await?;
        assert_eq!(after, before, "a session must be given back as it was found");
    }
    Ok(())
}

pub(crate) async fn leases_survive_a_server_restart(context: Context) -> Outcome {
    let harness = context.harness().restartable().await?;
    let client = harness.client().await?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name)).await?;
    harness.restart(ServerEnd::Orderly).await?;
    until_reached(&client, &lease).await?;
    refuse(&client, &claim(&name)).await?;
    refuse(&harness.client().await?, &claim(&name)).await?;
    keep(&client, &lease).await?;
    free(&client, &lease).await?;
    harness.close().await;
    Ok(())
}

pub(crate) async fn grants_survive_a_crash_of_the_server(context: Context) -> Outcome {
    survive_a_crash(&context, &[("one grant", 1, false, false), ("many grants", 5, false, false)])
        .await
}

pub(crate) async fn renewals_survive_a_crash_of_the_server(context: Context) -> Outcome {
    survive_a_crash(&context, &[("many renewals", 5, false, true)]).await
}

pub(crate) async fn shares_survive_a_crash_of_the_server(context: Context) -> Outcome {
    context.client_with_shares().await?;
    let kinds = [("many shares", 5, true, false), ("renewals of many shares", 5, true, true)];
    survive_a_crash(&context, &kinds).await
}

/// Crashes the server for each kind of last answer: its name, how many leases, whether they are shares, whether renewed.
///
/// A large batch may be written in another way than a single item.
async fn survive_a_crash(context: &Context, kinds: &[(&str, usize, bool, bool)]) -> Outcome {
    let harness = context.harness().restartable().await?;
    let client = harness.client().await?;
    let kept = take(&client, &claim(&context.name("kept"))).await?;
    let revoked = take(&client, &claim(&context.name("revoked"))).await?;
    for end in [Release::keep(kept.clone(), LONG * 2), Release::revoke(revoked.clone())] {
        assert_eq!(client.release(&[end]).await?, [Released::Done]);
    }
    for &(last, count, is_shared, is_renewed) in kinds {
        let names = (0..count).map(|i| context.name(&format!("{last} {i}")));
        let mut claims: Vec<Claim> = names.map(|name| claim(&name)).collect();
        for claim in &mut claims {
            // Of what is known already, which is where most grants are made.
            let known = take(&client, claim).await?;
            free(&client, &known).await?;
            claim.attempt = Attempt::new();
        }
        if is_shared {
            claims = claims.iter().map(|_| read(&claims[0].name)).collect();
        }
        let mut leases = Vec::new();
        for (claim, verdict) in claims.iter().zip(client.acquire(&claims).await?) {
            leases.push(match verdict {
                granted @ Verdict::Granted(_) => lease_of(claim, &granted),
                _ => take(&client, claim).await?,
            });
        }
        let mut remaining = LONG / 2;
        if is_renewed {
            remaining = LONG;
            let renew = |lease: &LeaseId| Renewal::new(lease.clone(), ttl(LONG * 2));
            let renewals: Vec<_> = leases.iter().map(renew).collect();
            assert_eq!(client.renew(&renewals).await?, vec![Renewed::Alive; leases.len()]);
        }
        // Nothing lies between the last answer and the end.
        harness.restart(ServerEnd::Crash).await?;
        until_reached(&client, &kept).await?;
        for lease in &leases {
            refuse(&client, &claim(&lease.name)).await?;
            let listed = list(&client, lease.name.as_str()).await?;
            let listed = listed.iter().find(|info| info.lease == *lease);
            let lasts = listed.is_some_and(|info| info.remaining > Some(remaining));
            assert!(lasts, "{last} must survive a crash: {listed:?}");
        }
        for lease in &leases {
            keep(&client, lease).await?;
            free(&client, lease).await?;
        }
        for lease in &leases {
            let next = take(&client, &claim(&lease.name)).await?;
            assert!(next.token > lease.token, "tokens must grow over a crash");
            free(&client, &next).await?;
        }
    }
    for (lease, standing) in [(kept, Standing::Kept), (revoked, Standing::Revoked)] {
        let listed = list(&client, lease.name.as_str()).await?;
        let listed: Vec<_> = listed.iter().map(|info| info.standing).collect();
        assert_eq!(listed, [standing], "what was answered as done must survive a crash");
        refuse(&client, &claim(&lease.name)).await?;
    }
    harness.close().await;
    Ok(())
}

async fn cycle(client: &Client, context: &Context, round: usize) -> Outcome {
    let name = context.name(&format!("cycle {}", round % 3));
    let lease = take(client, &claim(&name)).await?;
    refuse(client, &claim(&name)).await?;
    keep(client, &lease).await?;
    free(client, &lease).await?;
    release(client, &lease).await?;
    Ok(())
}

/// Renews until the client has found its way back: until then every error must say "unavailable".
async fn until_reached(client: &Client, lease: &LeaseId) -> Outcome {
    let reached = async {
        loop {
            match renew(client, lease).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
    };
    Ok(tokio::time::timeout(PATIENCE, reached).await??)
}
