//! Who holds a lease, and what an explicit owner may do.

use database_locks_core::{Claim, LossReason, Owner, Released};

use crate::context::{Context, claim, keep, miss, refuse, release, take};
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
        Ok::<_, database_locks_core::Error>(Claim {
            owner: Owner::explicit(label)?,
            ..claim(&name)
        })
    };
    let old = take(&here, &by("worker 1")?).await?;
    refuse(&there, &by("worker 2")?).await?;
    refuse(&there, &by("Worker 1")?).await?;
    refuse(&there, &claim(&name)).await?;
    let new = take(&there, &by("worker 1")?).await?;
    assert!(
        new.token > old.token,
        "the lease that supersedes must have the higher token"
    );
    miss(&here, &old, &[LossReason::Superseded]).await?;
    let released = release(&here, &old).await?;
    assert_eq!(
        released,
        Released::Lost(LossReason::Superseded),
        "the old one must learn it"
    );
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
        let lease = take(
            &client,
            &Claim {
                owner: holder.clone(),
                ..claim(&name)
            },
        )
        .await?;
        let other = labels[1 - i].clone();
        refuse(
            &client,
            &Claim {
                owner: other,
                ..claim(&name)
            },
        )
        .await?;
        keep(&client, &lease).await?;
    }
    Ok(())
}
