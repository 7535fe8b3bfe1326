//! Connections: few, replaced when they break, and left as they were found.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use database_locks_core::{
    Attempt, Claim, ErrorKind, LeaseId, Locks, Release, Released, Renewal, Renewed, Result,
    Standing, Verdict, Wakeup, Wakeups,
};
use futures_util::StreamExt as _;
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

pub(crate) async fn hints_end_with_their_connection(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let Some(mut hints) = listening(&there).await? else {
        return Err(Stop::Skipped("no hints were seen to arrive".to_owned()));
    };
    context.harness().break_connections().await?;
    // Whoever went on listening would never hear of anything.
    soon("the stream of hints ends", async { while hints.next().await.is_some() {} }).await;

    let again = async {
        loop {
            match listening(&there).await {
                Ok(Some(hints)) => return Ok(hints),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut hints = soon("there is a new stream of hints", again).await?;
    let name = context.name("one");
    let asked = [claim(&name)];
    let leases = soon("the other client is back", take_all(&here, &asked)).await?;
    refuse(&there, &claim(&name).with_mark(LONG)).await?;
    free(&here, &leases[0]).await?;
    let told = async {
        while let Some(hint) = hints.next().await {
            if matches!(hint, Wakeup::Released { name: released, .. } if released == name) {
                return;
            }
        }
        panic!("the new stream of hints ended");
    };
    soon("the new stream tells of a release", told).await;
    Ok(())
}

/// A stream of hints that were seen to arrive.
async fn listening(client: &Client) -> Result<Option<Wakeups>> {
    let Some(mut hints) = client.wakeups().await? else { return Ok(None) };
    let first = tokio::time::timeout(PATIENCE, hints.next()).await;
    Ok(matches!(first, Ok(Some(Wakeup::Listening))).then_some(hints))
}

/// A call that is dropped may leave its answer on a connection, where the next call would read it. So whatever is dropped,
/// the calls after it ask of other names for what has another answer.
pub(crate) async fn dropped_call_answers_no_other(context: Context) -> Outcome {
    let client = match context.harness().client_with(&ClientOption::PoolOfOne).await {
        Err(Stop::Skipped(_)) => context.client().await?,
        client => client?,
    };
    let other = context.client().await?;
    // A large batch may be sent in another way than a single item.
    for size in [1, 5] {
        for dropped in [Call::Acquire, Call::Renew, Call::Release] {
            for polls in 0..MOST_POLLS {
                let tag = format!("{size} {dropped:?} {polls}");
                let names = |text: &str| -> Vec<Claim> {
                    let name = |i| context.name(&format!("{text} {tag} {i}"));
                    (0..size).map(|i| claim(&name(i))).collect()
                };
                let held = take_all(&other, &names("held")).await?;
                let mine = take_all(&client, &names("mine")).await?;
                let gone = take_all(&client, &names("gone")).await?;
                let ends = Release::free_all(&gone);
                surely(|| client.release(&ends), is_skipped_release).await?;

                let free = names("free");
                let is_done = match dropped {
                    Call::Acquire => poll_times(polls, client.acquire(&free)).await?,
                    Call::Renew => poll_times(polls, client.renew(&renewals(&mine))).await?,
                    Call::Release => {
                        poll_times(polls, client.release(&Release::free_all(&mine))).await?
                    }
                };
                answers_are_their_own(&client, dropped, &held, &gone).await?;

                // What became of it is found out by asking again.
                take_all(&client, &free).await?;
                for claim in &free {
                    let listed = list(&other, claim.name.as_str()).await?;
                    let attempts: Vec<_> = listed.iter().map(|i| i.lease.attempt).collect();
                    assert_eq!(attempts, [claim.attempt], "a claim that was asked again is held");
                }
                if is_done {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// How often a call is polled at most before it is dropped. It is over long before.
const MOST_POLLS: usize = 40;

#[derive(Debug, Clone, Copy)]
enum Call {
    Acquire,
    Renew,
    Release,
}

/// Asks after a `dropped` call, that verb first: `held` is somebody else's, and `gone` was released.
async fn answers_are_their_own(
    client: &Client,
    dropped: Call,
    held: &[LeaseId],
    gone: &[LeaseId],
) -> Outcome {
    for call in [dropped, Call::Acquire, Call::Renew, Call::Release] {
        match call {
            Call::Acquire => {
                let claims: Vec<_> = held.iter().map(|lease| claim(&lease.name)).collect();
                let verdicts = surely(|| client.acquire(&claims), is_skipped_claim).await?;
                let holder = |verdict: &Verdict| match verdict {
                    Verdict::Busy(busy) => busy.holder.as_ref().map(|holder| holder.token),
                    _ => None,
                };
                let told: Vec<_> = verdicts.iter().map(holder).collect();
                let tokens: Vec<_> = held.iter().map(|lease| Some(lease.token)).collect();
                assert_eq!(told, tokens, "after a dropped {dropped:?} claims are {verdicts:?}");
            }
            Call::Renew => {
                let asked = renewals(gone);
                let renewed = surely(|| client.renew(&asked), is_skipped_renewal).await?;
                let are_lost = renewed.iter().all(|r| matches!(r, Renewed::Lost(_)));
                assert!(
                    are_lost && renewed.len() == gone.len(),
                    "after a dropped {dropped:?} renewals of what has ended are {renewed:?}"
                );
            }
            Call::Release => {
                let asked = Release::free_all(gone);
                let released = surely(|| client.release(&asked), is_skipped_release).await?;
                let are_lost = released.iter().all(|r| matches!(r, Released::Lost(_)));
                assert!(
                    are_lost && released.len() == gone.len(),
                    "after a dropped {dropped:?} releases of what has ended are {released:?}"
                );
            }
        }
    }
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
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
    };
    Ok(tokio::time::timeout(PATIENCE, reached).await??)
}

async fn take_all(client: &Client, claims: &[Claim]) -> Result<Vec<LeaseId>> {
    let verdicts = surely(|| client.acquire(claims), is_skipped_claim).await?;
    assert_eq!(verdicts.len(), claims.len(), "each claim of a batch must get a verdict");
    Ok(claims.iter().zip(&verdicts).map(|(claim, verdict)| lease_of(claim, verdict)).collect())
}

fn renewals(leases: &[LeaseId]) -> Vec<Renewal> {
    leases.iter().map(|lease| Renewal::new(lease.clone(), ttl(LONG))).collect()
}

/// Asks until nothing is skipped: what was dropped may be under way on the server, or have cost the connection.
async fn surely<A, F: Future<Output = Result<Vec<A>>>>(
    call: impl Fn() -> F,
    is_skipped: fn(&A) -> bool,
) -> Result<Vec<A>> {
    let answered = async {
        loop {
            match call().await {
                Ok(answers) if answers.iter().any(is_skipped) => {}
                Err(error) if error.is_retryable() => {}
                answers => return answers,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon("a call is answered", answered).await
}

fn is_skipped_claim(verdict: &Verdict) -> bool {
    *verdict == Verdict::Skipped
}

fn is_skipped_renewal(renewed: &Renewed) -> bool {
    *renewed == Renewed::Skipped
}

fn is_skipped_release(released: &Released) -> bool {
    *released == Released::Skipped
}

/// Polls a call so often, each time once there is something new, and then drops it. Answers whether it was done by then.
async fn poll_times<A>(polls: usize, call: impl Future<Output = Result<A>>) -> Result<bool> {
    let mut call = pin!(call);
    let mut left = polls;
    let polled = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    match polled.await {
        Some(answer) => answer.map(|_| true),
        None => Ok(false),
    }
}
