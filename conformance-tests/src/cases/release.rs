//! How a lease ends on purpose.

use database_locks_core::{Attempt, Claim, LeaseId, LossReason, Owner, Released, Renewed};

use crate::context::{Context, brief, brief_ttl, claim, free, keep, refuse, release, renew, take};
use crate::harness::Outcome;

pub(crate) async fn second_release_is_a_no_op(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    free(&client, &lease).await?;
    let again = release(&client, &lease).await?;
    assert!(
        matches!(again, Released::Lost(_)),
        "a second release must free nothing: {again:?}"
    );
    let next = take(&client, &claim(&lease.name)).await?;
    release(&client, &lease).await?;
    keep(&client, &next).await?;
    Ok(())
}

pub(crate) async fn release_after_expiry_reports_the_loss(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &brief(&client, &context.name("one"))).await?;
    context.outlive(brief_ttl(&client)).await?;
    let released = release(&client, &lease).await?;
    assert_eq!(
        released,
        Released::Lost(LossReason::Expired),
        "release of an expired lease must report that it was lost"
    );
    Ok(())
}

pub(crate) async fn stale_holder_cannot_release_its_successor(context: Context) -> Outcome {
    let (here, there) = (context.client().await?, context.client().await?);
    let stale = take(&here, &brief(&here, &context.name("one"))).await?;
    context.outlive(brief_ttl(&here)).await?;
    let successor = take(&there, &claim(&stale.name)).await?;
    let released = release(&here, &stale).await?;
    assert_eq!(
        released,
        Released::Lost(LossReason::Taken),
        "the lock was taken meanwhile"
    );
    refuse(&here, &claim(&stale.name)).await?;
    keep(&there, &successor).await?;
    Ok(())
}

pub(crate) async fn same_owner_text_with_another_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let owner = Owner::label_only("twin")?;
    let name = context.name("one");
    let lease = take(
        &client,
        &Claim {
            owner,
            ..claim(&name)
        },
    )
    .await?;
    touch_in_vain(
        &client,
        &LeaseId {
            attempt: Attempt::new(),
            ..lease.clone()
        },
    )
    .await?;
    keep(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn another_owner_with_the_same_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    let other = LeaseId {
        owner: Owner::label_only("somebody else")?,
        ..lease.clone()
    };
    touch_in_vain(&client, &other).await?;
    keep(&client, &lease).await?;
    Ok(())
}

async fn touch_in_vain(
    client: &crate::harness::Client,
    wrong: &LeaseId,
) -> database_locks_core::Result<()> {
    let renewed = renew(client, wrong).await?;
    assert!(
        matches!(renewed, Renewed::Lost(_)),
        "it is not this lease that lives: {renewed:?}"
    );
    let released = release(client, wrong).await?;
    assert!(
        matches!(released, Released::Lost(_)),
        "it is not this lease to free: {released:?}"
    );
    refuse(client, &claim(&wrong.name)).await
}
