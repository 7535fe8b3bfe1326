//! Tables, and what servers and users have set differently from what we would.

use std::sync::Arc;
use std::time::Duration;

use database_locks_core::{ErrorKind, Released, Renewed, Verdict};
use futures_util::future::try_join_all;

use crate::context::{
    Context, LONG, PATIENCE, ask, brief, brief_ttl, claim, free, keep, lease_of, list, obtain,
    refuse, release, renew_for, soon, take, ttl,
};
use crate::faulty::{Fault, Verb};
use crate::harness::{Client, ClientOption, Isolation, Outcome, TableNames};

pub(crate) async fn migrate_is_idempotent(context: Context) -> Outcome {
    let bare = context.harness().without_tables(TableNames::Default).await?;
    bare.migrate().await?;
    let client = bare.client().await?;
    let lease = take(&client, &claim(&context.name("one"))).await?;
    bare.migrate().await?;
    keep(&client, &lease).await?;
    refuse(&bare.client().await?, &claim(&lease.name)).await?;
    free(&client, &lease).await?;
    bare.migrate().await?;
    let next = take(&client, &claim(&lease.name)).await?;
    assert!(next.token > lease.token, "migration must not forget the tokens");
    bare.close().await;
    Ok(())
}

pub(crate) async fn ten_clients_migrate_at_once(context: Context) -> Outcome {
    let bare = context.harness().without_tables(TableNames::Default).await?;
    let migrations = (0..10).map(|_| {
        let bare = Arc::clone(&bare);
        tokio::spawn(async move { bare.migrate().await })
    });
    for migration in try_join_all(migrations).await? {
        migration?;
    }
    take(&bare.client().await?, &claim(&context.name("one"))).await?;
    bare.close().await;
    Ok(())
}

pub(crate) async fn custom_table_and_schema_work(context: Context) -> Outcome {
    let custom = context.harness().without_tables(TableNames::Custom).await?;
    custom.migrate().await?;
    let (ours, theirs) = (context.client().await?, custom.client().await?);
    let name = context.name("one");
    // The same name in two tables is two locks.
    let held = take(&ours, &claim(&name)).await?;
    let lease = take(&theirs, &claim(&name)).await?;
    refuse(&custom.client().await?, &claim(&name)).await?;
    keep(&theirs, &lease).await?;
    assert_eq!(list(&theirs, name.as_str()).await?.len(), 1, "one lease lives in the custom table");
    free(&theirs, &lease).await?;
    keep(&ours, &held).await?;
    let short = brief(&theirs, &name);
    take(&theirs, &short).await?;
    custom.pass(brief_ttl(&theirs) + Duration::from_millis(50)).await?;
    take(&theirs, &claim(&name)).await?;
    theirs.clean_up(LONG).await?;
    custom.close().await;
    Ok(())
}

pub(crate) async fn missing_table_is_not_migrated_and_works_once_created(
    context: Context,
) -> Outcome {
    let bare = context.harness().without_tables(TableNames::Default).await?;
    let client = bare.client().await?;
    let first = claim(&context.name("one"));
    for _ in 0..2 {
        let kind = ask(&client, &first).await.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::NotMigrated), "a missing table must be called that");
    }
    let kind = list(&client, "").await.map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::NotMigrated), "a missing table must be called that");
    bare.migrate().await?;
    let lease = take(&client, &first).await?;
    free(&client, &lease).await?;
    bare.close().await;
    Ok(())
}

pub(crate) async fn default_isolation_read_committed_changes_nothing(context: Context) -> Outcome {
    changes_nothing(&context, ClientOption::Isolation(Isolation::ReadCommitted)).await
}

pub(crate) async fn default_isolation_repeatable_read_changes_nothing(context: Context) -> Outcome {
    changes_nothing(&context, ClientOption::Isolation(Isolation::RepeatableRead)).await
}

pub(crate) async fn default_isolation_serializable_changes_nothing(context: Context) -> Outcome {
    changes_nothing(&context, ClientOption::Isolation(Isolation::Serializable)).await
}

pub(crate) async fn autocommit_off_by_default_changes_nothing(context: Context) -> Outcome {
    changes_nothing(&context, ClientOption::AutocommitOff).await
}

pub(crate) async fn crossing_batches_end_without_an_error(context: Context) -> Outcome {
    let clients = context.clients(4).await?;
    cross(&context, clients).await
}

pub(crate) async fn deadlocks_and_serialization_failures_are_retried_inside(
    context: Context,
) -> Outcome {
    let (faulty, locks) = context.faulty_locks().await?;
    let name = context.name("one");
    // Backends report both as retryable.
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for verb in [Verb::Acquire, Verb::Acquire, Verb::Acquire, Verb::Release] {
            faulty.once(verb, fault);
        }
        let guard = obtain(&locks, &name).await?;
        soon("the release goes through", guard.release()).await?;
        let client = context.client().await?;
        assert_eq!(list(&client, name.as_str()).await?, [], "nothing is left after the release");
    }
    Ok(())
}

/// Every verb works, others see it, and contention is decided the same.
async fn changes_nothing(context: &Context, option: ClientOption) -> Outcome {
    let (odd, odd_too) = (
        context.harness().client_with(&option).await?,
        context.harness().client_with(&option).await?,
    );
    let plain = context.client().await?;
    let name = context.name("one");
    for (one, other) in [(&odd, &plain), (&plain, &odd), (&odd, &odd_too)] {
        let lease = take(one, &claim(&name)).await?;
        refuse(other, &claim(&name)).await?;
        keep(one, &lease).await?;
        assert_eq!(list(other, name.as_str()).await?.len(), 1, "others must see the lease");
        free(one, &lease).await?;
        let dead = take(other, &brief(other, &name)).await?;
        context.outlive(brief_ttl(other)).await?;
        let renewed = renew_for(other, &dead, ttl(LONG)).await?;
        assert!(matches!(renewed, Renewed::Lost(_)), "it has expired, but is {renewed:?}");
    }
    if odd.capabilities().shares {
        let shared = context.name("shared");
        let reader = take(&odd, &crate::context::read(&shared)).await?;
        take(&odd_too, &crate::context::read(&shared)).await?;
        refuse(&plain, &claim(&shared)).await?;
        free(&odd, &reader).await?;
    }
    cross(context, vec![odd, plain, odd_too]).await
}

/// Clients claim and free the same names in batches of opposite orders, all at once: what makes
/// deadlocks and serialization failures. Whatever the server does about those, a client may see
/// it as nothing worse than an outcome that is unknown, and the same attempts find it out.
async fn cross(context: &Context, clients: Vec<Client>) -> Outcome {
    let names: Vec<_> = (0..6).map(|i| context.name(&format!("crossing {i}"))).collect();
    let workers = clients.into_iter().enumerate().map(|(i, client)| {
        let mut names = names.clone();
        if i % 2 == 1 {
            names.reverse();
        }
        tokio::spawn(async move {
            for _ in 0..12 {
                let claims: Vec<_> = names.iter().map(claim).collect();
                let verdicts = patiently(|| client.acquire(&claims)).await?;
                let won: Vec<_> = claims
                    .iter()
                    .zip(&verdicts)
                    .filter(|(_, verdict)| !matches!(verdict, Verdict::Busy(_) | Verdict::Skipped))
                    .map(|(claim, verdict)| lease_of(claim, verdict))
                    .collect();
                for lease in won {
                    while patiently(|| release(&client, &lease)).await? == Released::Skipped {
                        tokio::task::yield_now().await;
                    }
                }
            }
            Ok::<_, database_locks_core::Error>(())
        })
    });
    for worker in tokio::time::timeout(PATIENCE, try_join_all(workers)).await?? {
        worker?;
    }
    Ok(())
}

async fn patiently<T, F>(mut call: impl FnMut() -> F) -> database_locks_core::Result<T>
where
    F: Future<Output = database_locks_core::Result<T>>,
{
    loop {
        match call().await {
            Err(error) if error.is_retryable() => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}
