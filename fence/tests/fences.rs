//! What a fence promises, by each driver on each server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Driver, Of, Place, Server, is_granted, is_refused, on_each_driver, soon};
use database_locks::{Error, ErrorKind, LossReason};
use database_locks_fence::FenceIn as _;

on_each_driver!(
    successors_wait_for_the_end_of_a_fenced_transaction,
    transaction_outlives_its_lease_and_is_committed,
    lease_that_is_dead_by_the_databases_word_fences_nothing,
    holder_that_knows_of_the_loss_does_not_ask,
    lock_that_the_database_does_not_know_is_of_another_one,
);

const WORK: &str = "INSERT INTO work VALUES (1)";
const DONE: &str = "SELECT COUNT(*) FROM work";

async fn successors_wait_for_the_end_of_a_fenced_transaction<D: Driver>(server: Server) {
    let place = Place::migrated(server).await;
    let (locks, others) = (place.locks().await, place.locks().await);
    let mut client: D = place.work().await;
    let mut done = 0;
    for of in Of::ALL {
        for commits in [true, false] {
            let guard = is_granted(of.request(&locks)).await;
            let mut transaction = client.begin().await;
            guard.fence_in(&mut transaction).await.unwrap();
            D::write(&mut transaction, WORK).await.unwrap();
            // Its release is on its way, and comes through on Postgres.
            drop(guard);
            is_refused(of.successor(&others)).await;
            if commits {
                D::commit(transaction).await.unwrap();
                done += 1;
            } else {
                D::rollback(transaction).await;
            }
            is_granted(of.successor(&others)).await.release().await.unwrap();
            assert_eq!(client.number(DONE).await, done, "{of:?}");
        }
    }
}

async fn transaction_outlives_its_lease_and_is_committed<D: Driver>(server: Server) {
    let place = Place::migrated(server).await;
    let (locks, others) = (place.locks().await, place.locks().await);
    let mut client: D = place.work().await;
    for of in Of::ALL {
        // Renewed where renewals pass, and so not there.
        let request = of.request(&locks).ttl(Duration::from_secs(2));
        let guard = is_granted(request.auto_renew(server != Server::Postgres)).await;
        let mut transaction = client.begin().await;
        guard.fence_in(&mut transaction).await.unwrap();
        assert_eq!(soon(guard.lost()).await, LossReason::Expired, "{of:?}");
        is_refused(of.successor(&others)).await;
        D::write(&mut transaction, WORK).await.unwrap();
        D::commit(transaction).await.unwrap();
        is_granted(of.successor(&others)).await.release().await.unwrap();
    }
    assert_eq!(client.number(DONE).await, 3);
}

async fn lease_that_is_dead_by_the_databases_word_fences_nothing<D: Driver>(server: Server) {
    let place = Place::migrated(server).await;
    let (locks, others) = (place.locks().await, place.locks().await);
    let mut client: D = place.work().await;
    for of in Of::ALL {
        for end in ["expired", "released", "revoked", "taken"] {
            let guard = is_granted(of.request(&locks)).await;
            let lease = guard.lease();
            match end {
                "expired" => client.run(&place.expire(of)).await,
                "revoked" => assert!(others.revoke(lease.id()).await.unwrap()),
                _ => assert!(others.force_release(lease.id()).await.unwrap()),
            }
            let successor = match end {
                "taken" => Some(is_granted(of.successor(&others)).await),
                _ => None,
            };
            let mut transaction = client.begin().await;
            let error = guard.fence_in(&mut transaction).await.unwrap_err();
            is_lost_by_the_databases_word(&error, of);
            D::rollback(transaction).await;
            // Nothing is held back.
            drop((guard, successor));
            is_granted(of.successor(&others)).await.release().await.unwrap();
        }
    }
    // The same owner takes the lock from another place.
    let mine = is_granted(Of::Whole.request(&locks).owner("me")).await;
    let _again = is_granted(Of::Whole.request(&others).owner("me")).await;
    let mut transaction = client.begin().await;
    let error = mine.fence_in(&mut transaction).await.unwrap_err();
    is_lost_by_the_databases_word(&error, Of::Whole);
    D::rollback(transaction).await;
}

/// Not by what its holder knew, which has a reason.
fn is_lost_by_the_databases_word(error: &Error, of: Of) {
    assert_eq!((error.kind(), error.loss()), (ErrorKind::Lost, None), "{error}");
    assert_eq!((error.lock(), error.operation()), (Some(of.name()), Some("fence")));
    assert!(error.to_string().contains("roll back"), "{error}");
}

async fn holder_that_knows_of_the_loss_does_not_ask<D: Driver>(server: Server) {
    let place = Place::migrated(server).await;
    let locks = place.locks().await;
    let guard = is_granted(Of::Whole.request(&locks)).await;
    let lease = guard.lease();
    guard.release().await.unwrap();
    // In a database that has no tables.
    let elsewhere = Place::empty(server);
    let mut client: D = elsewhere.work().await;
    let mut transaction = client.begin().await;
    let error = lease.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!((error.kind(), error.loss()), (ErrorKind::Lost, Some(LossReason::Released)));
    D::write(&mut transaction, WORK).await.unwrap();
    D::commit(transaction).await.unwrap();
}

async fn lock_that_the_database_does_not_know_is_of_another_one<D: Driver>(server: Server) {
    let place = Place::migrated(server).await;
    let locks = place.locks().await;
    let guard = is_granted(Of::Whole.request(&locks)).await;
    let mut client: D = place.work().await;
    // As in another database that has tables.
    client.run("DELETE FROM database_locks_lock").await;
    let mut transaction = client.begin().await;
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    assert!(error.to_string().contains("in the database that keeps the locks"), "{error}");
    D::rollback(transaction).await;

    // And in one that has none. On MySQL and MariaDB, whose tables are named with their database, on another server.
    let elsewhere = match server {
        Server::MySql => Place::empty(Server::MariaDb),
        Server::MariaDb => Place::empty(Server::MySql),
        same => Place::empty(same),
    };
    let mut client: D = elsewhere.work().await;
    let mut transaction = client.begin().await;
    let error = guard.fence_in(&mut transaction).await.unwrap_err();
    let expected = match server {
        Server::Sqlite => ErrorKind::InvalidOption,
        _ => ErrorKind::NotMigrated,
    };
    assert_eq!(error.kind(), expected, "{error}");
    assert!(error.to_string().contains("in the database that keeps the locks"), "{error}");
    D::rollback(transaction).await;
}
