//! What only this backend can get wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod galera;
mod rows;
mod tables;

use database_locks_core::{
    Claim, LeaseId, LeaseInfo, ListQuery, LockBackend, Release, Released, Renewal, Renewed, Share,
    Ttl, Verdict,
};
use database_locks_mysql::MysqlBackend;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::common::claim;

pub(crate) fn short(lock: &str) -> Claim {
    claim(lock).with_ttl(Ttl::new(Ttl::MIN).unwrap())
}

pub(crate) fn reader(lock: &str) -> Claim {
    claim(lock).with_share(Share::ONE)
}

pub(crate) async fn renew(backend: &MysqlBackend, lease: &LeaseId) -> Renewed {
    let renewal = Renewal::new(lease.clone(), Ttl::DEFAULT);
    backend.renew(&[renewal]).await.unwrap()[0]
}

pub(crate) async fn release(backend: &MysqlBackend, lease: &LeaseId) -> Released {
    backend.release(&[Release::free(lease.clone())]).await.unwrap()[0]
}

pub(crate) async fn list(backend: &MysqlBackend, prefix: &str) -> Vec<LeaseInfo> {
    let query = ListQuery::new(prefix.to_owned());
    backend.list(&query).await.unwrap()
}

/// Longer than the shortest TTL by far, so that only a wrong clock can still see it alive.
pub(crate) async fn outlive() {
    tokio::time::sleep(Ttl::MIN * 3).await;
}

pub(crate) trait Said {
    fn kind(&self) -> &'static str;
}

impl Said for Verdict {
    fn kind(&self) -> &'static str {
        match self {
            Verdict::Granted(_) => "granted",
            Verdict::Busy(_) => "busy",
            Verdict::CapacityMismatch(_) => "mismatch",
            Verdict::Ended => "ended",
            Verdict::Skipped => "skipped",
            other => panic!("{other:?} is unknown"),
        }
    }
}

/// What a Django app writes when it takes a lock.
pub(crate) async fn django_takes(django: &mut Conn, lock: &str) {
    let sql = "UPDATE database_locks_lock SET locked_by = 'web.3',
               expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE name = ?";
    django.exec_drop(sql, (lock,)).await.unwrap();
}
