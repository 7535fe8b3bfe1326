//! Tokens that only grow, and attempts that can be asked again.

use std::sync::Arc;
use std::time::Duration;

use database_locks_core::{Claim, LossReason, Owner, Result, Share, Token, Verdict};

use crate::context::{
    Context, ask, brief, brief_ttl, claim, free, keep, list, miss, read, refuse, release, renew,
    take, ttl,
};
use crate::faulty::{Fault, FaultyBackend, Verb};
use crate::harness::{Client, Outcome, ServerEnd};

pub(crate) async fn tokens_grow_over_release(context: Context) -> Outcome {
    let clients = context.clients(2).await?;
    let name = context.name("one");
    let mut last = Token::new(0);
    for round in 0..10 {
        let client = &clients[round % 2];
        let lease = take(client, &claim(&name)).await?;
        assert!(lease.token > last, "token {} must be above {last}, the one before", lease.token);
        last = lease.token;
        free(client, &lease).await?;
    }
    Ok(())
}

pub(crate) async fn tokens_grow_over_expiry(context: Context) -> Outcome {
    let clients = context.clients(2).await?;
    let name = context.name("one");
    let mut last = Token::new(0);
    for client in clients.iter().chain(&clients) {
        let lease = take(client, &brief(client, &name)).await?;
        assert!(lease.token > last, "token {} must be above {last}, the one before", lease.token);
        last = lease.token;
        context.outlive(brief_ttl(client)).await?;
    }
    Ok(())
}

pub(crate) async fn tokens_grow_over_force(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let name = context.name("one");
    let forced = take(&here, &claim(&name)).await?;
    let listed = list(&there, name.as_str()).await?;
    assert_eq!(listed.len(), 1, "the lease must be listed");
    free(&there, &listed[0].lease).await?;
    let next = take(&there, &claim(&name)).await?;
    assert!(next.token > forced.token, "the token must grow over a forced release");
    Ok(())
}

pub(crate) async fn tokens_grow_over_clean_up(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let mut last = Token::new(0);
    for _ in 0..3 {
        // Several grants a round, so that a counter that starts anew is seen to fall.
        for _ in 0..3 {
            let lease = take(&client, &claim(&name)).await?;
            assert!(lease.token > last, "token {} must be above {last}", lease.token);
            last = lease.token;
            free(&client, &lease).await?;
        }
        let idle = Duration::from_millis(100);
        context.outlive(idle).await?;
        client.clean_up(idle).await?;
    }
    Ok(())
}

pub(crate) async fn tokens_grow_over_a_restart(context: Context) -> Outcome {
    let harness = context.harness().restartable().await?;
    let client = harness.client().await?;
    let name = context.name("one");
    let old = take(&client, &claim(&name)).await?;
    free(&client, &old).await?;
    harness.restart(ServerEnd::Orderly).await?;
    let client = harness.client().await?;
    let new = take(&client, &claim(&name)).await?;
    harness.close().await;
    assert!(new.token > old.token, "the token must grow over a restart of the server");
    Ok(())
}

pub(crate) async fn token_is_stable_during_renewal(context: Context) -> Outcome {
    let client = context.client().await?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name)).await?;
    for _ in 0..3 {
        keep(&client, &lease).await?;
        let listed = list(&client, name.as_str()).await?;
        assert_eq!(listed.len(), 1, "the lease must be listed once");
        assert_eq!(listed[0].lease, lease, "renewal must change nothing about a lease's identity");
    }
    Ok(())
}

pub(crate) async fn replay_of_a_live_attempt_returns_the_same_token(context: Context) -> Outcome {
    let client = context.client().await?;
    let there = context.client().await?;
    let mut shares = vec![Share::ALL];
    if client.capabilities().shares {
        shares.extend([Share::ONE, Share::new(2, 3)?]);
    }
    for share in shares {
        let name = context.name(&share.to_string());
        let short = brief_ttl(&client) * 8;
        let claim = claim(&name).with_share(share).with_ttl(ttl(short));
        let lease = take(&client, &claim).await?;
        for client in [&client, &there] {
            let again = take(client, &claim.clone().with_ttl(ttl(short * 100))).await?;
            assert_eq!(again.token, lease.token, "a replay must get the same token");
        }
        let listed = list(&client, name.as_str()).await?;
        assert_eq!(listed.len(), 1, "a replay must not be a second lease");
        assert!(
            listed[0].remaining.is_some_and(|left| left > short),
            "a replay must get a fresh TTL, but {:?} is left",
            listed[0].remaining
        );
        free(&client, &lease).await?;
    }
    Ok(())
}

pub(crate) async fn replay_of_a_released_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let first = claim(&context.name("one"));
    let lease = take(&client, &first).await?;
    free(&client, &lease).await?;
    ended(&client, &first).await?;
    if client.capabilities().shares {
        let reader = read(&context.name("shared"));
        let lease = take(&client, &reader).await?;
        take(&client, &read(&reader.name)).await?;
        free(&client, &lease).await?;
        ended(&client, &reader).await?;
    }
    take(&client, &claim(&first.name)).await?;
    Ok(())
}

pub(crate) async fn replay_of_an_expired_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let first = brief(&client, &context.name("one"));
    let lease = take(&client, &first).await?;
    context.outlive(brief_ttl(&client)).await?;
    ended(&client, &first).await?;
    miss(&client, &lease, &[LossReason::Expired]).await?;
    let next = take(&client, &claim(&first.name)).await?;
    let late = ask(&client, &first).await?;
    assert!(
        matches!(late, Verdict::Ended | Verdict::Busy(_)),
        "a replay after somebody else took the lock must not be granted, but is {late:?}"
    );
    keep(&client, &next).await?;
    Ok(())
}

pub(crate) async fn claims_of_one_owner_in_a_batch_get_growing_tokens(context: Context) -> Outcome {
    let client = context.client().await?;
    let claims: Vec<Claim> = (0..8)
        .map(|_| {
            let owner = Owner::explicit("alice")?;
            Ok(claim(&context.name("one")).with_owner(owner))
        })
        .collect::<Result<_>>()?;
    let verdicts = client.acquire(&claims).await?;
    let tokens: Vec<Token> = verdicts
        .iter()
        .filter_map(|verdict| match verdict {
            Verdict::Granted(token) => Some(*token),
            _ => None,
        })
        .collect();
    assert!(!tokens.is_empty(), "one of them must be granted: {verdicts:?}");
    assert!(tokens.is_sorted_by(|a, b| a < b), "tokens must grow within a batch: {tokens:?}");
    Ok(())
}

pub(crate) async fn lost_answer_costs_no_second_lease(context: Context) -> Outcome {
    let faulty = FaultyBackend::new(context.client().await?);
    let client: Client = Arc::clone(&faulty) as Client;
    let name = context.name("one");
    let claim_of_ours = claim(&name);
    faulty.once(Verb::Acquire, Fault::LoseAnswer);
    let lost = ask(&client, &claim_of_ours).await;
    assert!(lost.is_err_and(|error| error.is_retryable()), "the answer must be lost");

    refuse(&client, &claim(&name)).await?;
    let lease = take(&client, &claim_of_ours).await?;
    assert_eq!(list(&client, name.as_str()).await?.len(), 1, "there must be one lease, not two");

    faulty.once(Verb::Renew, Fault::LoseAnswer);
    let lost = renew(&client, &lease).await;
    assert!(lost.is_err_and(|error| error.is_retryable()), "the answer must be lost");
    keep(&client, &lease).await?;

    faulty.once(Verb::Release, Fault::LoseAnswer);
    let lost = release(&client, &lease).await;
    assert!(lost.is_err_and(|error| error.is_retryable()), "the answer must be lost");
    ended(&client, &claim_of_ours).await?;
    take(&client, &claim(&name)).await?;
    Ok(())
}

async fn ended(client: &Client, claim: &Claim) -> Outcome {
    for _ in 0..2 {
        let verdict = ask(client, claim).await?;
        assert_eq!(verdict, Verdict::Ended, "a replay of an ended attempt must be refused");
    }
    Ok(())
}
