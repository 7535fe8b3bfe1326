//! How a lease ends on purpose.

use database_locks_core::{
    Attempt, Error, ErrorKind, LeaseId, LockName, Locks, LossReason, Owner, Released, Renewed,
    Share, Token, Ttl,
};

use crate::context::{
    Context, LONG, brief, brief_ttl, claim, free, keep, obtain, refuse, release, renew, take,
    until_none_lives,
};
use crate::harness::Outcome;

pub(crate) async fn second_release_is_a_no_op(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    free(&client, &lease).await?;
    let again = release(&client, &lease).await?;
    assert!(matches!(again, Released::Lost(_)), "a second release must free nothing: {again:?}");
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
    assert_eq!(released, Released::Lost(LossReason::Taken), "the lock was taken meanwhile");
    refuse(&here, &claim(&stale.name)).await?;
    keep(&there, &successor).await?;
    Ok(())
}

pub(crate) async fn same_owner_text_with_another_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let owner = Owner::label_only("twin")?;
    let name = context.name("one");
    let lease = take(&client, &claim(&name).with_owner(owner)).await?;
    let mut other = lease.clone();
    other.attempt = Attempt::new();
    touch_in_vain(&client, &other).await?;
    keep(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn another_token_with_the_same_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    for share in [Share::ALL, Share::ONE] {
        if !share.is_exclusive() && !client.capabilities().shares {
            continue;
        }
        let held =
            take(&client, &claim(&context.name(&share.to_string())).with_share(share)).await?;
        for token in [held.token.get() - 1, held.token.get() + 1] {
            let mut wrong = held.clone();
            wrong.token = Token::new(token);
            let released = release(&client, &wrong).await?;
            assert!(
                matches!(released, Released::Lost(_)),
                "a release with another token must be refused, but is {released:?}"
            );
        }
        keep(&client, &held).await?;
    }
    Ok(())
}

pub(crate) async fn another_owner_with_the_same_attempt_is_refused(context: Context) -> Outcome {
    let client = context.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    let mut other = lease.clone();
    other.owner = Owner::label_only("somebody else")?;
    touch_in_vain(&client, &other).await?;
    keep(&client, &lease).await?;
    Ok(())
}

pub(crate) async fn dropped_guard_frees_the_lock(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    drop(endless(&here, &name).await?);
    obtain(&there, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn panic_frees_the_lock(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let guard = endless(&here, &name).await?;
    let work = tokio::spawn(async move {
        let _guard = guard;
        panic!("a panic that the case asks for");
    });
    assert!(work.await.is_err_and(|error| error.is_panic()), "the work must panic");
    obtain(&there, &name).await?.release().await?;

    let request = here.lock(&name).ttl(Ttl::Infinite);
    let work = tokio::spawn(async move {
        let work = request.run(async |_| panic!("a panic that the case asks for"));
        work.await
    });
    assert!(work.await.is_err_and(|error| error.is_panic()), "the work must panic");
    obtain(&there, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn error_frees_the_lock(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let work = here.lock(&name).ttl(Ttl::Infinite);
    let failed = work.run(async |_| Err::<(), _>(Error::new(ErrorKind::Backend, "no"))).await?;
    assert!(failed.is_err(), "the error of the work must come back");
    obtain(&there, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn early_return_frees_the_lock(context: Context) -> Outcome {
    async fn returns_early(locks: &Locks, name: &LockName) -> database_locks_core::Result<u32> {
        let guard = endless(locks, name).await?;
        if guard.token().get() > 0 {
            return Ok(7);
        }
        guard.release().await?;
        Ok(0)
    }
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    assert_eq!(returns_early(&here, &name).await?, 7);
    obtain(&there, &name).await?.release().await?;
    Ok(())
}

pub(crate) async fn cancelled_work_frees_the_lock(context: Context) -> Outcome {
    let (here, there) = (context.locks().await?, context.locks().await?);
    let name = context.name("one");
    let (started, has_started) = tokio::sync::oneshot::channel();
    let request = here.lock(&name).ttl(Ttl::Infinite);
    let work = tokio::spawn(async move {
        let run = request.run(async |_| {
            let _ = started.send(());
            std::future::pending::<()>().await;
        });
        run.await
    });
    has_started.await?;
    work.abort();
    obtain(&there, &name).await?.release().await?;
    until_none_lives(&context.client().await?, &context.prefix()).await?;
    Ok(())
}

/// Only a release ends it: what frees the lock is not its expiry.
async fn endless(
    locks: &Locks,
    name: &LockName,
) -> database_locks_core::Result<database_locks_core::Guard> {
    locks.lock(name).ttl(Ttl::Infinite).timeout(LONG).acquire().await
}

async fn touch_in_vain(
    client: &crate::harness::Client,
    wrong: &LeaseId,
) -> database_locks_core::Result<()> {
    let renewed = renew(client, wrong).await?;
    assert!(matches!(renewed, Renewed::Lost(_)), "it is not this lease that lives: {renewed:?}");
    let released = release(client, wrong).await?;
    assert!(matches!(released, Released::Lost(_)), "it is not this lease to free: {released:?}");
    refuse(client, &claim(&wrong.name)).await
}
