//! A lease that is given back to the claim that takes its place.

use std::sync::Arc;

use database_locks_core::{
    Attempt, Claim, Data, LeaseId, Locks, Owner, Release, Released, Renewed, Share, Token, Verdict,
};
use tokio::task::JoinSet;

use crate::context::{
    Context, LONG, ask, brief, brief_ttl, claim, free, keep, list, refuse, release, renew, take,
};
use crate::faulty::{Fault, FaultyBackend, Verb};
use crate::harness::{Client, Outcome, Stop};

/// A client of a backend that can hand over.
async fn client(context: &Context) -> Outcome<Client> {
    let client = context.client().await?;
    let can = client.capabilities();
    if can.hands_over {
        return Ok(client);
    }
    Err(Stop::Skipped(format!("the capabilities of {} rule it out", can.backend)))
}

fn after(lease: &LeaseId) -> Claim {
    claim(&lease.name).with_replaces(lease.clone())
}

pub(crate) async fn claim_takes_the_place_of_a_lease_that_is_given_back(
    context: Context,
) -> Outcome {
    let client = client(&context).await?;
    let brief = brief(&client, &context.name("one"));
    let old = take(&client, &brief.with_data(Data::new("the old one's")?)).await?;
    let owner = Owner::label_only("somebody else")?;
    let data = Data::new("the new one's")?;
    let new = take(&client, &after(&old).with_owner(owner).with_data(data.clone())).await?;
    assert!(new.token > old.token, "a token must grow: {} after {}", new.token, old.token);
    let renewed = renew(&client, &old).await?;
    assert!(matches!(renewed, Renewed::Lost(_)), "the old lease has ended: {renewed:?}");
    let released = release(&client, &old).await?;
    assert!(matches!(released, Released::Lost(_)), "the old lease has ended: {released:?}");
    let listed = list(&client, &context.prefix()).await?;
    assert_eq!(listed.len(), 1, "one lease is left: {listed:?}");
    assert_eq!((&listed[0].lease, &listed[0].data), (&new, &Some(data)), "it is the new one");
    context.outlive(brief_ttl(&client)).await?;
    keep(&client, &new).await?;
    refuse(&client, &claim(&old.name)).await?;
    free(&client, &new).await?;
    take(&client, &claim(&old.name)).await?;
    Ok(())
}

pub(crate) async fn hand_over_is_replayed_with_the_same_token(context: Context) -> Outcome {
    let client = client(&context).await?;
    let old = take(&client, &claim(&context.name("one"))).await?;
    let claim = after(&old);
    let new = take(&client, &claim).await?;
    for replay in [claim.clone(), claim.with_replaces(None)] {
        assert_eq!(take(&client, &replay).await?, new, "a replay must get the same lease");
    }
    keep(&client, &new).await?;
    Ok(())
}

pub(crate) async fn nothing_takes_the_place_of_a_lease_that_is_not_its_holders(
    context: Context,
) -> Outcome {
    let client = client(&context).await?;
    let in_vain = async |what: &str, lease: &LeaseId| {
        let verdict = ask(&client, &after(lease)).await?;
        assert_eq!(verdict, Verdict::Skipped, "{what}");
        Outcome::Ok(())
    };

    let freed = take(&client, &claim(&context.name("freed"))).await?;
    free(&client, &freed).await?;
    in_vain("it was freed", &freed).await?;
    take(&client, &claim(&freed.name)).await?;

    let expired = take(&client, &brief(&client, &context.name("expired"))).await?;
    context.outlive(brief_ttl(&client)).await?;
    in_vain("it has expired", &expired).await?;

    let old = take(&client, &claim(&context.name("old"))).await?;
    let new = take(&client, &after(&old)).await?;
    in_vain("it was handed over before", &old).await?;
    keep(&client, &new).await?;

    let held = take(&client, &claim(&context.name("held"))).await?;
    for (attempt, token) in
        [(Attempt::new(), held.token), (held.attempt, Token::new(held.token.get() + 1))]
    {
        let mut other = held.clone();
        (other.attempt, other.token) = (attempt, token);
        in_vain("it is another lease", &other).await?;
    }
    let mut other = held.clone();
    other.owner = Owner::label_only("somebody else")?;
    in_vain("it is another owner's", &other).await?;
    keep(&client, &held).await?;

    for (text, how) in [
        ("kept", Release::keep as fn(LeaseId, std::time::Duration) -> Release),
        ("revoked", |lease, _| Release::revoke(lease)),
    ] {
        let lease = take(&client, &claim(&context.name(text))).await?;
        client.release(&[how(lease.clone(), LONG)]).await?;
        in_vain(text, &lease).await?;
        refuse(&client, &claim(&lease.name)).await?;
    }
    Ok(())
}

pub(crate) async fn share_is_not_handed_over(context: Context) -> Outcome {
    let client = client(&context).await?;
    if !client.capabilities().shares {
        return Err(Stop::Skipped("there are no shares".to_owned()));
    }
    let share = take(&client, &claim(&context.name("shared")).with_share(Share::ONE)).await?;
    for wanted in [Share::ONE, Share::ALL] {
        let verdict = ask(&client, &after(&share).with_share(wanted)).await?;
        assert_eq!(verdict, Verdict::Skipped, "{wanted} in the place of a share");
    }
    keep(&client, &share).await?;
    let five = Share::new(5, 5)?;
    for (held, wanted) in [(Share::ALL, Share::ONE), (Share::ALL, five), (five, Share::ALL)] {
        let name = context.name(&format!("{held} {wanted}"));
        let lease = take(&client, &claim(&name).with_share(held)).await?;
        let verdict = ask(&client, &after(&lease).with_share(wanted)).await?;
        assert_eq!(verdict, Verdict::Skipped, "{wanted} in the place of {held}");
        keep(&client, &lease).await?;
    }
    let whole = take(&client, &claim(&context.name("five")).with_share(five)).await?;
    take(&client, &after(&whole).with_share(five)).await?;
    // What is granted later in a batch was not granted before.
    let in_vain = after(&share).with_share(Share::ONE);
    let verdicts = client.acquire(&[in_vain.clone(), in_vain.with_replaces(None)]).await?;
    assert!(matches!(verdicts[..], [Verdict::Skipped, Verdict::Granted(_)]), "{verdicts:?}");
    Ok(())
}

pub(crate) async fn several_hand_overs_in_a_batch_are_each_decided(context: Context) -> Outcome {
    let client = client(&context).await?;
    let mut held = Vec::new();
    for text in ["h", "f", "g", "e"] {
        held.push(take(&client, &claim(&context.name(text))).await?);
    }
    free(&client, &held[2]).await?;
    let verdicts = client.acquire(&held.iter().map(after).collect::<Vec<_>>()).await?;
    let skipped: Vec<bool> = verdicts.iter().map(|verdict| *verdict == Verdict::Skipped).collect();
    assert_eq!(skipped, [false, false, true, false], "each of a name of its own: {verdicts:?}");

    let mut held = Vec::new();
    for text in ["b", "a", "c"] {
        held.push(take(&client, &claim(&context.name(text))).await?);
    }
    free(&client, &held[1]).await?;
    let mut claims: Vec<Claim> = held.iter().map(after).collect();
    claims.push(claim(&context.name("d")).with_owner(Owner::label_only("another")?));
    // Whoever comes second finds the first one's lease.
    claims.push(after(&held[0]));
    let verdicts = client.acquire(&claims).await?;
    let granted: Vec<bool> =
        verdicts.iter().map(|verdict| matches!(verdict, Verdict::Granted(_))).collect();
    assert_eq!(granted, [true, false, true, true, false], "{verdicts:?}");
    assert_eq!(verdicts[1], Verdict::Skipped);
    assert_eq!(verdicts[4], Verdict::Skipped);
    Ok(())
}

pub(crate) async fn tasks_of_one_process_hand_over_without_an_overlap(context: Context) -> Outcome {
    let faulty = FaultyBackend::new(client(&context).await?);
    let locks = Locks::builder().build(Arc::clone(&faulty) as Client)?;
    let name = context.name("hot");
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (locks, name) = (locks.clone(), name.clone());
        tasks.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..10 {
                let guard = locks.lock(&name).ttl(LONG).acquire().await?;
                tokens.push((guard.token(), tokio::time::Instant::now()));
                guard.check()?;
                guard.release().await?;
            }
            Ok::<_, database_locks_core::Error>(tokens)
        });
    }
    let mut all = Vec::new();
    while let Some(tokens) = tasks.join_next().await {
        match tokens {
            Ok(tokens) => all.extend(tokens?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    all.sort_unstable();
    assert!(all.windows(2).all(|two| two[0].0 < two[1].0), "each grant has a token of its own");
    assert!(all.windows(2).all(|two| two[0].1 <= two[1].1), "tokens grow with time");
    let released = faulty.begun(Verb::Release);
    assert!(
        released < all.len(),
        "some of {} are handed over: {released} were released",
        all.len()
    );
    Ok(())
}

pub(crate) async fn lost_answer_to_a_hand_over_loses_neither_lease_nor_waiter(
    context: Context,
) -> Outcome {
    for fault in [Fault::LoseAnswer, Fault::Refuse] {
        let faulty = FaultyBackend::new(client(&context).await?);
        let locks = Locks::builder().build(Arc::clone(&faulty) as Client)?;
        let name = context.name(&format!("{fault:?}"));
        let first = locks.lock(&name).ttl(LONG).acquire().await?;
        let asked = faulty.begun(Verb::Acquire);
        let second = tokio::spawn(locks.lock(&name).ttl(LONG).acquire());
        faulty.until_begun(Verb::Acquire, asked + 1).await;
        faulty.until_quiet(Verb::Acquire).await;
        faulty.once(Verb::Acquire, fault);
        let token = first.token();
        first.release().await?;
        let second = match second.await {
            Ok(second) => second?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        assert!(second.token() > token, "{fault:?}: a later lease has a higher token");
        second.check()?;
        second.release().await?;
    }
    Ok(())
}
