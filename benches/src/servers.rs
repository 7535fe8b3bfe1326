//! The servers that a run needs: durable, throwaway, all up at once, so that samples can take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use database_locks_bench_worker::{Job, Work};
use database_locks_test_servers::{
    Access, Database, Etcd, Galera, GaleraDatabase, MariaDb, MySql, PgBouncer, PoolMode, Postgres,
    Proxy, Redis, RedisDurability, Server,
};

use crate::contenders::On;
use crate::worker::Worker;

/// More than a fleet of 200 processes takes.
const CONNECTIONS: &str = "2000";
/// What the network takes, each way.
const NETWORK: Duration = Duration::from_micros(500);

/// All servers of a run.
pub(crate) struct Servers {
    all: BTreeMap<On, Place>,
    /// How to make the tables of database-locks at a URL.
    migrate: PathBuf,
}

/// A server, and what there is in front of it.
struct Place {
    server: Running,
    url: String,
    /// The same through a network of some length.
    far: Option<(Proxy, String)>,
    /// The same through a proxy that counts.
    counted: Option<(Proxy, String)>,
    /// A database of its own for the table of old rows.
    old: Option<Database>,
}

enum Running {
    Postgres(Postgres),
    PgBouncer(Box<(PgBouncer, Postgres)>),
    MySql(MySql),
    MariaDb(MariaDb),
    Galera(Box<(Galera, GaleraDatabase)>),
    Redis(Redis),
    Etcd(Etcd),
    File { _folder: tempfile::TempDir },
    Nothing,
}

impl Servers {
    /// Starts what is needed, and makes the tables of database-locks.
    pub(crate) fn start(wanted: &BTreeSet<On>, migrate: PathBuf) -> Result<Servers> {
        let mut servers = Servers { all: BTreeMap::new(), migrate };
        for &on in wanted {
            println!("starting {}", on.name());
            let place = Place::start(on).with_context(|| format!("no {}", on.name()))?;
            servers.migrate(on, &place.url)?;
            servers.all.insert(on, place);
        }
        Ok(servers)
    }

    pub(crate) fn url(&self, on: On) -> Result<&str> {
        Ok(&self.place(on)?.url)
    }

    /// Where one server alone is, for clients that know of no more.
    pub(crate) fn single_url(&self, on: On) -> Result<&str> {
        Ok(match &self.place(on)?.server {
            Running::Galera(cluster) => cluster.1.node(0).url(),
            _ => self.url(on)?,
        })
    }

    /// Where the server is reached through a network of half a millisecond each way.
    pub(crate) fn far_url(&self, on: On) -> Result<&str> {
        let far = self.place(on)?.far.as_ref();
        Ok(&far.with_context(|| format!("no network before {}", on.name()))?.1)
    }

    /// Where what passes to and from the server is counted.
    pub(crate) fn counted_url(&self, on: On) -> Result<&(Proxy, String)> {
        let counted = self.place(on)?.counted.as_ref();
        counted.with_context(|| format!("nothing counts before {}", on.name()))
    }

    /// A database whose table of locks has this many rows that nobody has used for long.
    pub(crate) fn old_url(&mut self, on: On, rows: usize) -> Result<String> {
        if let Some(database) = &self.place(on)?.old {
            return Ok(database.url().to_owned());
        }
        let access = self.access(on)?.with_context(|| format!("no tables on {}", on.name()))?;
        let database = access.database()?;
        self.migrate(on, database.url())?;
        let table = "database_locks_lock";
        database.sql(&match on {
            On::Postgres => format!(
                "insert into {table} (name, locked_by, token, acquired_at, touched_at)
                 select 'old ' || n, 'somebody', 1, now() - interval '1 year', now() - interval '1 year'
                 from generate_series(1, {rows}) n; vacuum analyze {table}"
            ),
            _ => format!(
                "set session cte_max_recursion_depth = {rows};
                 insert into {table} (name, locked_by, token)
                 with recursive n (n) as (select 1 union all select n + 1 from n where n < {rows})
                 select concat('old ', n), 'somebody', 1 from n; analyze table {table}"
            )
            .replace(
                "set session cte_max_recursion_depth",
                if on == On::MariaDb {
                    "set session max_recursive_iterations"
                } else {
                    "set session cte_max_recursion_depth"
                },
            ),
        })?;
        let url = database.url().to_owned();
        let place = self.all.get_mut(&on).context("a server that was started")?;
        place.old = Some(database);
        Ok(url)
    }

    /// The processor time that the server has used.
    pub(crate) fn cpu_time(&self, on: On) -> Result<Option<Duration>> {
        Ok(Some(match &self.place(on)?.server {
            Running::Postgres(server) => server.cpu_time()?,
            Running::PgBouncer(both) => both.0.cpu_time()? + both.1.cpu_time()?,
            Running::MySql(server) => server.cpu_time()?,
            Running::MariaDb(server) => server.cpu_time()?,
            Running::Galera(cluster) => {
                (0..3).map(|node| cluster.0.node(node).cpu_time()).sum::<Result<Duration>>()?
            }
            Running::Redis(server) => server.cpu_time()?,
            Running::Etcd(server) => server.cpu_time()?,
            Running::File { .. } | Running::Nothing => return Ok(None),
        }))
    }

    /// What the server itself has counted so far.
    pub(crate) fn counters(&self, on: On) -> Result<BTreeMap<&'static str, f64>> {
        let Some(access) = self.access(on)? else { return Ok(BTreeMap::new()) };
        match on {
            On::Postgres | On::PgBouncer => {
                // A session reports when it ends, or a second after it did so last.
                let sql = "select wal_bytes, wal_sync,
                    (select sum(xact_commit + xact_rollback) from pg_stat_database),
                    (select sum(calls) from pg_stat_statements where query not ilike '%pg_stat_%')
                    from pg_stat_wal";
                let names = ["wal_bytes", "fsyncs", "transactions", "statements"];
                let row = access.sql(sql)?;
                let values = row.split('|').map(|value| value.parse().unwrap_or(f64::NAN));
                Ok(names.into_iter().zip(values).collect())
            }
            _ => {
                let rows = access.sql("show global status")?;
                let values: BTreeMap<&str, f64> = rows
                    .lines()
                    .filter_map(|line| {
                        let (name, value) = line.split_once('|')?;
                        Some((name, value.parse().ok()?))
                    })
                    .collect();
                let names = [
                    ("statements", &["Questions"][..]),
                    ("wal_bytes", &["Innodb_os_log_written"]),
                    ("fsyncs", &["Innodb_os_log_fsyncs", "Innodb_data_fsyncs"]),
                ];
                Ok(names
                    .into_iter()
                    .filter_map(|(ours, theirs)| {
                        Some((ours, *theirs.iter().find_map(|name| values.get(name))?))
                    })
                    .collect())
            }
        }
    }

    /// Whether Postgres counts statements from now on, which takes some time for each of them.
    pub(crate) fn count_statements(&self, on: On, count: bool) -> Result<()> {
        if let (On::Postgres | On::PgBouncer, Some(access)) = (on, self.access(on)?) {
            let on = if count { "on" } else { "off" };
            access.sql(&format!("alter system set compute_query_id = {on}"))?;
            access.sql("select pg_reload_conf()")?;
        }
        Ok(())
    }

    /// Waits until all sessions of clients have ended, so that the counters are whole.
    pub(crate) fn await_sessions_end(&self, on: On) -> Result<()> {
        let Some(access) = self.access(on)? else { return Ok(()) };
        if on != On::Postgres {
            return Ok(());
        }
        let sql = "select count(*) from pg_stat_activity
                   where backend_type = 'client backend' and pid <> pg_backend_pid()";
        for _ in 0..100 {
            if access.sql(sql)? == "0" {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Each server, its version, and what makes it durable.
    pub(crate) fn descriptions(&self) -> Result<Vec<(On, String)>> {
        self.all.keys().map(|&on| Ok((on, self.describe(on)?))).collect()
    }

    fn describe(&self, on: On) -> Result<String> {
        let of = |program: &str| -> String {
            let output = Command::new(program).arg("--version").output();
            let output = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
        };
        let place = self.place(on)?;
        Ok(match &place.server {
            Running::Postgres(server) => server.sql(
                "select 'PostgreSQL ' || current_setting('server_version') || ', fsync='
                 || current_setting('fsync') || ', synchronous_commit='
                 || current_setting('synchronous_commit') || ', full_page_writes='
                 || current_setting('full_page_writes')",
            )?,
            Running::PgBouncer(..) => {
                format!("{}, transaction mode, 4 connections to the server", of("pgbouncer"))
            }
            Running::MySql(_) | Running::MariaDb(_) | Running::Galera(_) => {
                let access = self.access(on)?.context("a server of tables")?;
                access.sql(
                    "select concat(version(), ', innodb_flush_log_at_trx_commit=',
                     @@innodb_flush_log_at_trx_commit, ', log_bin=', @@log_bin, ', sync_binlog=',
                     @@sync_binlog)",
                )?
            }
            Running::Redis(_) => {
                let fsync = if on == On::Redis { "everysec" } else { "always" };
                format!("{}, appendonly yes, appendfsync {fsync}", of("redis-server"))
            }
            Running::Etcd(_) => format!("{}, one node", of("etcd")),
            Running::File { .. } => "a file in the folder for temporary files, WAL".to_owned(),
            Running::Nothing => "this process".to_owned(),
        })
    }

    fn access(&self, on: On) -> Result<Option<&Access>> {
        Ok(match &self.place(on)?.server {
            Running::Postgres(server) => Some(server),
            Running::PgBouncer(both) => Some(&both.1),
            Running::MySql(server) => Some(server),
            Running::MariaDb(server) => Some(server),
            Running::Galera(cluster) => Some(cluster.1.node(0)),
            _ => None,
        })
    }

    fn place(&self, on: On) -> Result<&Place> {
        self.all.get(&on).with_context(|| format!("{} was not started", on.name()))
    }

    fn migrate(&self, on: On, url: &str) -> Result<()> {
        if matches!(on, On::Redis | On::RedisDurable | On::Etcd) {
            return Ok(());
        }
        let job = Job {
            system: "migrate".to_owned(),
            url: url.to_owned(),
            connections: 0,
            prefix: String::new(),
            work: Work::Count { pairs: 0 },
        };
        Worker::start(std::slice::from_ref(&self.migrate), &job)?.end()
    }
}

impl Place {
    fn start(on: On) -> Result<Place> {
        let postgres = || {
            Postgres::builder()
                .durable()
                .setting("max_connections", CONNECTIONS)
                .setting("shared_preload_libraries", "pg_stat_statements")
                // Statements are counted where that is asked for, and cost nothing where it is not.
                .setting("compute_query_id", "off")
                .start()
        };
        let proxies = |access: &Access, port: u16| -> Result<[Option<(Proxy, String)>; 2]> {
            let (far, counted) = (Proxy::start(port)?, Proxy::start(port)?);
            far.delay(NETWORK);
            Ok([far, counted].map(|proxy| {
                let url = access.at_port(proxy.port()).url().to_owned();
                Some((proxy, url))
            }))
        };
        let (server, url, [far, counted]) = match on {
            On::Postgres => {
                let server = postgres()?;
                server.sql("create extension pg_stat_statements")?;
                let (url, proxies) = (server.url().to_owned(), proxies(&server, server.port())?);
                (Running::Postgres(server), url, proxies)
            }
            On::PgBouncer => {
                let server = postgres()?;
                server.sql("create extension pg_stat_statements")?;
                let pooler = PgBouncer::start(&server, PoolMode::Transaction)?;
                let (url, proxies) = (pooler.url().to_owned(), proxies(&pooler, pooler.port())?);
                (Running::PgBouncer(Box::new((pooler, server))), url, proxies)
            }
            On::MySql => {
                let server = MySql::builder().durable().setting("max_connections", CONNECTIONS);
                let server = server.start()?;
                let (url, proxies) = (server.url().to_owned(), proxies(&server, server.port())?);
                (Running::MySql(server), url, proxies)
            }
            On::MariaDb => {
                let server = MariaDb::builder().durable().setting("max_connections", CONNECTIONS);
                let server = server.start()?;
                let (url, proxies) = (server.url().to_owned(), proxies(&server, server.port())?);
                (Running::MariaDb(server), url, proxies)
            }
            On::Galera => {
                let cluster = Galera::builder().durable().start()?;
                let database = cluster.database()?;
                let (url, first) = (database.urls().to_owned(), cluster.node(0));
                let [_, counted] = proxies(database.node(0), first.port())?;
                (Running::Galera(Box::new((cluster, database))), url, [None, counted])
            }
            On::Redis | On::RedisDurable => {
                let durability = match on {
                    On::Redis => RedisDurability::EverySecond,
                    _ => RedisDurability::Always,
                };
                let server = Redis::builder().durability(durability).start()?;
                let url = server.url().to_owned();
                (Running::Redis(server), url, [None, None])
            }
            On::Etcd => {
                let server = Etcd::start()?;
                let url = server.url().to_owned();
                (Running::Etcd(server), url, [None, None])
            }
            On::Sqlite => {
                let folder = tempfile::tempdir()?;
                let path = folder.path().join("locks.db");
                ensure!(path.to_str().is_some(), "a temporary folder with a name in UTF-8");
                let url = format!("sqlite:{}", path.display());
                (Running::File { _folder: folder }, url, [None, None])
            }
            On::Memory => (Running::Nothing, "memory:".to_owned(), [None, None]),
        };
        Ok(Place { server, url, far, counted, old: None })
    }
}
