//! MySQL and MariaDB by `mysql_async`: prepared statements on a pool of connections that are not reset between uses.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use database_locks_bench_worker::{Job, Share, System};
use deadpool::managed::{self, Metrics, Object, RecycleResult};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Opts, OptsBuilder, Params, Statement};

use crate::{POLL, TTL};

/// The tables of this file. Each statement may be repeated.
const SCHEMA: [&str; 2] = [
    "create table if not exists bench_row (
       name varbinary(255) primary key, n bigint not null default 0) engine = InnoDB",
    "create table if not exists bench_lock (
       id bigint auto_increment primary key, name varbinary(255) not null unique,
       owner varchar(255), expires_at datetime(6)) engine = InnoDB",
];

/// Connections, each with the statements of a system prepared.
struct Connect {
    opts: Opts,
    statements: &'static [&'static str],
}

struct Connected {
    conn: Conn,
    statements: Vec<Statement>,
}

impl Connected {
    async fn execute(&mut self, statement: usize, params: impl Into<Params> + Send) -> Result<u64> {
        let statement = self.statements[statement].clone();
        self.conn.exec_drop(&statement, params).await?;
        Ok(self.conn.affected_rows())
    }
}

impl managed::Manager for Connect {
    type Type = Connected;
    type Error = Error;

    async fn create(&self) -> Result<Connected, Error> {
        let mut conn = Conn::new(self.opts.clone()).await?;
        let mut statements = Vec::new();
        for statement in self.statements {
            statements.push(conn.prep(*statement).await?);
        }
        Ok(Connected { conn, statements })
    }

    async fn recycle(&self, _: &mut Connected, _: &Metrics) -> RecycleResult<Self::Error> {
        Ok(())
    }
}

type Pool = managed::Pool<Connect>;

async fn pool(job: &Job, statements: &'static [&'static str]) -> Result<Pool> {
    // Not by a socket, which nobody has over a network.
    let opts = OptsBuilder::from_opts(Opts::from_url(&job.url)?).prefer_socket(false);
    let opts = Opts::from(opts);
    let mut conn = Conn::new(opts.clone()).await?;
    for statement in SCHEMA {
        conn.query_drop(statement).await.context("the tables cannot be made")?;
    }
    conn.disconnect().await?;
    let connect = Connect { opts, statements };
    Ok(Pool::builder(connect).max_size(job.connections).build()?)
}

async fn take(pool: &Pool) -> Result<Object<Connect>> {
    pool.get().await.map_err(|error| anyhow::anyhow!("no connection: {error}"))
}

/// A pair is two times `SELECT 1`.
pub(crate) struct Select(Pool);

impl Select {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        Ok(Self(pool(job, &["select 1"]).await?))
    }

    async fn select(&self) -> Result<()> {
        take(&self.0).await?.execute(0, ()).await?;
        Ok(())
    }
}

impl System for Select {
    type Held = ();

    async fn acquire(&self, _: &str) -> Result<()> {
        self.select().await
    }

    async fn release(&self, (): ()) -> Result<()> {
        self.select().await
    }
}

/// A pair is two durable updates of a row by its key.
pub(crate) struct Update(Pool);

impl Update {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        let statements = &[
            "update bench_row set n = n + 1 where name = ?",
            "insert ignore into bench_row values (?, 1)",
        ];
        Ok(Self(pool(job, statements).await?))
    }

    async fn update(&self, name: &str) -> Result<()> {
        let mut connection = take(&self.0).await?;
        if connection.execute(0, (name,)).await? == 0 {
            connection.execute(1, (name,)).await?;
        }
        Ok(())
    }
}

impl System for Update {
    type Held = String;

    async fn acquire(&self, name: &str) -> Result<String> {
        self.update(name).await?;
        Ok(name.to_owned())
    }

    async fn release(&self, name: String) -> Result<()> {
        self.update(&name).await
    }
}

/// One conditional update to acquire, with an insert where there is no row, and one update to release.
pub(crate) struct Single {
    pool: Pool,
    next: AtomicU64,
}

pub(crate) struct Lease {
    name: String,
    owner: String,
}

impl Single {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        let statements = &[
            "update bench_lock set owner = ?, expires_at = timestampadd(microsecond, ?, utc_timestamp(6))
             where name = ? and (expires_at is null or expires_at < utc_timestamp(6))",
            "insert ignore into bench_lock (name, owner, expires_at)
             values (?, ?, timestampadd(microsecond, ?, utc_timestamp(6)))",
            "update bench_lock set owner = null, expires_at = null where name = ? and owner = ?",
            "update bench_lock set expires_at = timestampadd(microsecond, ?, utc_timestamp(6))
             where name = ? and owner = ? and expires_at > utc_timestamp(6)",
            "select 1 from bench_lock where name = ?",
        ];
        Ok(Self { pool: pool(job, statements).await?, next: AtomicU64::new(0) })
    }

    async fn try_acquire(&self, lease: &Lease, micros: u64) -> Result<bool> {
        let mut connection = take(&self.pool).await?;
        let Lease { name, owner } = lease;
        if connection.execute(0, (owner, micros, name)).await? == 1 {
            return Ok(true);
        }
        let known = connection.statements[4].clone();
        if connection.conn.exec_first::<u8, _, _>(&known, (name,)).await?.is_some() {
            return Ok(false);
        }
        Ok(connection.execute(1, (name, owner, micros)).await? == 1)
    }

    async fn acquire_for(&self, name: &str, micros: u64) -> Result<Lease> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{}.{next}", std::process::id());
        let lease = Lease { name: name.to_owned(), owner };
        while !self.try_acquire(&lease, micros).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(lease)
    }
}

impl System for Single {
    type Held = Lease;

    async fn acquire(&self, name: &str) -> Result<Lease> {
        self.acquire_for(name, TTL.unsigned_abs() * 1_000_000).await
    }

    async fn release(&self, held: Lease) -> Result<()> {
        let freed = take(&self.pool).await?.execute(2, (&held.name, &held.owner)).await?;
        ensure!(freed == 1, "it was not held any more");
        Ok(())
    }

    async fn acquire_share(&self, name: &str, share: Share, ttl_ms: u64) -> Result<Lease> {
        ensure!(share == Share::All, "this system has no shares");
        self.acquire_for(name, ttl_ms * 1_000).await
    }

    async fn renewals(&self, leases: usize) -> Result<impl AsyncFnMut() -> Result<()>> {
        let mut held = Vec::new();
        for lease in 0..leases {
            let name = format!("renewed-{}-{lease}", std::process::id());
            held.push(self.acquire_for(&name, 600_000_000).await?);
        }
        Ok(async move || {
            let tasks = self.pool.status().max_size;
            let renew = |task| {
                let mine = held.iter().skip(task).step_by(tasks);
                async move {
                    for Lease { name, owner } in mine {
                        let mut connection = take(&self.pool).await?;
                        let renewed = connection.execute(3, (600_000_000, name, owner)).await?;
                        ensure!(renewed == 1, "not renewed");
                    }
                    Ok(())
                }
            };
            crate::join(tasks, renew).await
        })
    }
}

/// django-database-locks' way, in Rust: a transaction of four round trips to acquire, and another to release.
pub(crate) struct Seed {
    pool: Pool,
    next: AtomicU64,
}

type Row = (i64, Option<String>, Option<bool>);

impl Seed {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        let statements = &[
            "select id, owner, expires_at > utc_timestamp(6) from bench_lock where name = ? for update",
            "insert ignore into bench_lock (name, owner, expires_at)
             values (?, ?, timestampadd(second, ?, utc_timestamp(6)))",
            "update bench_lock set owner = ?, expires_at = timestampadd(second, ?, utc_timestamp(6))
             where id = ?",
            "update bench_lock set expires_at = null where id = ?",
        ];
        Ok(Self { pool: pool(job, statements).await?, next: AtomicU64::new(0) })
    }

    async fn look(connection: &mut Connected, name: &str) -> Result<Option<Row>> {
        connection.conn.query_drop("begin").await?;
        let statement = connection.statements[0].clone();
        Ok(connection.conn.exec_first(&statement, (name,)).await?)
    }

    async fn try_acquire(&self, name: &str, owner: &str) -> Result<bool> {
        let mut connection = take(&self.pool).await?;
        let acquired = match Self::look(&mut connection, name).await? {
            // Two that look for a row that is not there, and then insert it, deadlock: so it is inserted after the
            // transaction, which the seed does within.
            None => {
                connection.conn.query_drop("rollback").await?;
                return Ok(connection.execute(1, (name, owner, TTL)).await? == 1);
            }
            Some((_, _, Some(true))) => false,
            Some((id, ..)) => connection.execute(2, (owner, TTL, id)).await? == 1,
        };
        connection.conn.query_drop("commit").await?;
        Ok(acquired)
    }
}

impl System for Seed {
    type Held = Lease;

    async fn acquire(&self, name: &str) -> Result<Lease> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{}.{next}", std::process::id());
        while !self.try_acquire(name, &owner).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(Lease { name: name.to_owned(), owner })
    }

    async fn release(&self, held: Lease) -> Result<()> {
        let mut connection = take(&self.pool).await?;
        match Self::look(&mut connection, &held.name).await? {
            Some((id, owner, _)) if owner.as_deref() == Some(&held.owner) => {
                connection.execute(3, (id,)).await?;
                connection.conn.query_drop("commit").await?;
                Ok(())
            }
            _ => bail!("it was not held any more"),
        }
    }
}

/// A session's lock, which pins its connection for as long as it is held, or waited for.
pub(crate) struct GetLock(Pool);

pub(crate) struct Locked {
    connection: Object<Connect>,
    name: String,
}

impl GetLock {
    pub(crate) async fn connect(job: &Job) -> Result<Self> {
        Ok(Self(pool(job, &["select get_lock(?, 60)", "select release_lock(?)"]).await?))
    }
}

impl System for GetLock {
    type Held = Locked;

    async fn acquire(&self, name: &str) -> Result<Locked> {
        let mut connection = take(&self.0).await?;
        let statement = connection.statements[0].clone();
        let locked: Option<Option<u8>> = connection.conn.exec_first(&statement, (name,)).await?;
        ensure!(locked == Some(Some(1)), "it was not obtained");
        Ok(Locked { connection, name: name.to_owned() })
    }

    async fn release(&self, held: Locked) -> Result<()> {
        let Locked { mut connection, name } = held;
        let statement = connection.statements[1].clone();
        let freed: Option<Option<u8>> = connection.conn.exec_first(&statement, (&name,)).await?;
        ensure!(freed == Some(Some(1)), "it was not held any more");
        Ok(())
    }

    async fn acquire_share(&self, name: &str, share: Share, _: u64) -> Result<Locked> {
        ensure!(share == Share::All, "this system has no shares");
        self.acquire(name).await
    }
}
