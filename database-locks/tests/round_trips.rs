//! What each verb costs on each server, in statements and round trips; and that waiters poll together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Deref;
use std::time::{Duration, Instant};

use database_locks::mysql::{MysqlBackend, MysqlConfig};
use database_locks::postgres::{PostgresBackend, PostgresConfig};
use database_locks::{
    Claim, Connect, Error, LeaseId, LockBackend, LockName, Locks, Release, Released, Renewal,
    Renewed, Share, Ttl, Verdict, migrate,
};
use database_locks_test_servers::{
    Access, FailureDetection, Galera, MariaDbProduct, MySql, MySqlProduct, Mysqld, PgBouncer,
    PoolMode, Postgres, Product, Proxy, Server, Traffic,
};
use mysql_async::prelude::Queryable as _;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

/// The columns that say what a row is of.
const VERB_WIDTH: usize = 45;

/// Statements as the server behind counts them, round trips as the client sees them. Where this changes on purpose,
/// the failing test prints the table to put here.
const EXPECTED: &str = "\
server    share     verb                      statements round trips
postgres  exclusive acquire                            1           1
postgres  exclusive renew                              1           1
postgres  exclusive acquire, busy                      1           1
postgres  exclusive release                            1           1
postgres  exclusive acquire, fresh name                1           1
postgres  exclusive acquire 16                         1           1
postgres  exclusive renew 16                           1           1
postgres  exclusive release 16                         1           1
postgres  exclusive acquire 16, fresh names            1           1
postgres  exclusive acquire, busy, marks               1           1
postgres  exclusive acquire, busy, has marked          1           1
postgres  exclusive release, marked                    1           1
postgres  share     acquire                            1           1
postgres  share     acquire beside another             1           1
postgres  share     release beside another             1           1
postgres  share     renew                              1           1
postgres  share     acquire, busy                      1           1
postgres  share     release                            1           1
postgres  share     acquire, fresh name                1           1
postgres  share     acquire 16                         1           1
postgres  share     renew 16                           1           1
postgres  share     release 16                         1           1
postgres  share     acquire 16, fresh names            1           1
postgres  share     acquire, busy, marks               1           1
postgres  share     acquire, busy, has marked          1           1
postgres  share     release, marked                    1           1
pgbouncer exclusive acquire                            1           1
pgbouncer exclusive renew                              1           1
pgbouncer exclusive acquire, busy                      1           1
pgbouncer exclusive release                            1           1
pgbouncer exclusive acquire, fresh name                1           1
pgbouncer exclusive acquire 16                         1           1
pgbouncer exclusive renew 16                           1           1
pgbouncer exclusive release 16                         1           1
pgbouncer exclusive acquire 16, fresh names            1           1
pgbouncer exclusive acquire, busy, marks               1           1
pgbouncer exclusive acquire, busy, has marked          1           1
pgbouncer exclusive release, marked                    1           1
pgbouncer share     acquire                            1           1
pgbouncer share     acquire beside another             1           1
pgbouncer share     release beside another             1           1
pgbouncer share     renew                              1           1
pgbouncer share     acquire, busy                      1           1
pgbouncer share     release                            1           1
pgbouncer share     acquire, fresh name                1           1
pgbouncer share     acquire 16                         1           1
pgbouncer share     renew 16                           1           1
pgbouncer share     release 16                         1           1
pgbouncer share     acquire 16, fresh names            1           1
pgbouncer share     acquire, busy, marks               1           1
pgbouncer share     acquire, busy, has marked          1           1
pgbouncer share     release, marked                    1           1
mysql     exclusive acquire                            1           1
mysql     exclusive renew                              4           1
mysql     exclusive acquire, busy                      4           2
mysql     exclusive release                            1           1
mysql     exclusive acquire, fresh name                9           3
mysql     exclusive acquire 16                        11           1
mysql     exclusive renew 16                          10           1
mysql     exclusive release 16                        10           1
mysql     exclusive acquire 16, fresh names           21           5
mysql     exclusive acquire, busy, marks               9           3
mysql     exclusive acquire, busy, has marked          4           2
mysql     exclusive release, marked                    1           1
mysql     share     acquire                            9           2
mysql     share     acquire beside another             9           2
mysql     share     release beside another             9           2
mysql     share     renew                              9           2
mysql     share     acquire, busy                      4           2
mysql     share     release                            9           2
mysql     share     acquire, fresh name                9           2
mysql     share     acquire 16                         9           2
mysql     share     renew 16                          11           2
mysql     share     release 16                        11           2
mysql     share     acquire 16, fresh names           12           4
mysql     share     acquire, busy, marks               9           3
mysql     share     acquire, busy, has marked          4           2
mysql     share     release, marked                    9           2
mariadb   exclusive acquire                            1           1
mariadb   exclusive renew                              4           1
mariadb   exclusive acquire, busy                      4           2
mariadb   exclusive release                            1           1
mariadb   exclusive acquire, fresh name                9           3
mariadb   exclusive acquire 16                        11           1
mariadb   exclusive renew 16                          10           1
mariadb   exclusive release 16                        10           1
mariadb   exclusive acquire 16, fresh names           21           5
mariadb   exclusive acquire, busy, marks               9           3
mariadb   exclusive acquire, busy, has marked          4           2
mariadb   exclusive release, marked                    1           1
mariadb   share     acquire                            9           2
mariadb   share     acquire beside another             9           2
mariadb   share     release beside another             9           2
mariadb   share     renew                              9           2
mariadb   share     acquire, busy                      4           2
mariadb   share     release                            9           2
mariadb   share     acquire, fresh name                9           2
mariadb   share     acquire 16                         9           2
mariadb   share     renew 16                          11           2
mariadb   share     release 16                        11           2
mariadb   share     acquire 16, fresh names           12           4
mariadb   share     acquire, busy, marks               9           3
mariadb   share     acquire, busy, has marked          4           2
mariadb   share     release, marked                    9           2
galera    exclusive acquire                            1           1
galera    exclusive renew                              4           2
galera    exclusive acquire, busy                      4           2
galera    exclusive release                            1           1
galera    exclusive acquire, fresh name                9           4
galera    exclusive acquire 16                        11           2
galera    exclusive renew 16                          10           2
galera    exclusive release 16                        10           2
galera    exclusive acquire 16, fresh names           21           7
galera    exclusive acquire, busy, marks               9           4
galera    exclusive acquire, busy, has marked          4           2
galera    exclusive release, marked                    1           1
galera    share     acquire                            9           3
galera    share     acquire beside another             9           3
galera    share     release beside another             9           3
galera    share     renew                              9           3
galera    share     acquire, busy                      4           2
galera    share     release                            9           3
galera    share     acquire, fresh name                9           3
galera    share     acquire 16                         9           3
galera    share     renew 16                          11           3
galera    share     release 16                        11           3
galera    share     acquire 16, fresh names           12           5
galera    share     acquire, busy, marks               9           4
galera    share     acquire, busy, has marked          4           2
galera    share     release, marked                    9           3
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_verb_costs_exactly_what_the_table_says() {
    let servers = [
        tokio::spawn(on_postgres()),
        tokio::spawn(on_pgbouncer()),
        tokio::spawn(on_mysqld::<MySqlProduct>("mysql")),
        tokio::spawn(on_mysqld::<MariaDbProduct>("mariadb")),
        tokio::spawn(on_galera()),
    ];
    let mut actual = format!(
        "{:9} {:9} {:25} {:>10} {:>11}\n",
        "server", "share", "verb", "statements", "round trips"
    );
    for server in servers {
        actual += &server.await.unwrap();
    }
    assert!(actual == EXPECTED, "a verb costs something else:\n{}", difference(EXPECTED, &actual));
}

/// The whole table, with the rows of both where they differ.
fn difference(expected: &str, actual: &str) -> String {
    let verb = |row: &str| row.get(..VERB_WIDTH).unwrap_or_default().to_owned();
    let gone = |row: &&str| actual.lines().all(|it| verb(it) != verb(row));
    let gone = expected.lines().filter(gone).map(|row| format!("- {row}\n"));
    let rows = actual.lines().map(|row| match expected.lines().find(|it| verb(it) == verb(row)) {
        Some(same) if same == row => format!("  {row}\n"),
        Some(other) => format!("- {other}\n+ {row}\n"),
        None => format!("+ {row}\n"),
    });
    rows.chain(gone).collect()
}

async fn on_postgres() -> String {
    let server = logging_postgres().await;
    postgres_rows("postgres", &server, &server).await
}

async fn on_pgbouncer() -> String {
    let server = logging_postgres().await;
    let (server, pooler) = spawn_blocking(|| {
        let pooler = PgBouncer::start(&server, PoolMode::Transaction);
        (server, pooler)
    })
    .await
    .unwrap();
    let pooler = pooler.unwrap();
    postgres_rows("pgbouncer", &pooler, &server).await
}

async fn logging_postgres() -> Postgres {
    spawn_blocking(|| Postgres::builder().setting("log_statement", "all").start())
        .await
        .unwrap()
        .unwrap()
}

/// The rows of the Postgres `server`, which clients enter by `entrance`.
async fn postgres_rows(name: &str, entrance: &impl Entrance, server: &Postgres) -> String {
    let proxy = Proxy::start(entrance.port()).unwrap();
    let config = PostgresConfig::from_url(entrance.at_port(proxy.port()).url()).unwrap();
    let backend = PostgresBackend::connect(config).await.unwrap();
    backend.migrate().await.unwrap();
    rows(name, &backend, &proxy, &Statements::Logged(server)).await
}

async fn on_mysqld<P: Product>(name: &str) -> String {
    let server = spawn_blocking(Mysqld::<P>::start).await.unwrap().unwrap();
    mysql_rows(name, &server).await
}

async fn on_galera() -> String {
    // However busy the machine is, the nodes stay together.
    let cluster = Galera::builder().failure_detection(FailureDetection::Patient);
    let cluster = spawn_blocking(|| cluster.start()).await.unwrap().unwrap();
    mysql_rows("galera", cluster.node(0)).await
}

async fn mysql_rows(name: &str, server: &impl Entrance) -> String {
    let proxy = Proxy::start(server.port()).unwrap();
    let config = MysqlConfig::from_url(server.at_port(proxy.port()).url()).unwrap();
    let backend = MysqlBackend::connect(config).await.unwrap();
    backend.migrate().await.unwrap();
    let status = mysql_async::Conn::from_url(server.url()).await.unwrap();
    rows(name, &backend, &proxy, &Statements::Asked(Mutex::new(status))).await
}

/// A server, or a pooler in front of one.
trait Entrance: Server + Deref<Target = Access> {}

impl<S: Server + Deref<Target = Access>> Entrance for S {}

/// Who counts the statements that a server is asked to run.
enum Statements<'a> {
    Logged(&'a Postgres),
    Asked(Mutex<mysql_async::Conn>),
}

impl Statements<'_> {
    async fn count(&self) -> u64 {
        match self {
            // They are logged before they run, so that the log is complete once they have answered.
            Statements::Logged(server) => logged(server),
            // Counted before they run, too. What is not asked by verbs: to read this, and to leave.
            Statements::Asked(status) => {
                let ask = "SHOW GLOBAL STATUS WHERE Variable_name LIKE 'Com\\_%' \
                           AND Variable_name NOT IN ('Com_show_status', 'Com_admin_commands', \
                               'Com_stmt_prepare', 'Com_stmt_execute')";
                let counts: Vec<(String, u64)> = status.lock().await.query(ask).await.unwrap();
                counts.into_iter().map(|(_, count)| count).sum()
            }
        }
    }
}

fn logged(server: &Postgres) -> u64 {
    let log = server.log().expect("the server's log");
    let is_statement =
        |line: &&str| line.contains("LOG:  execute ") || line.contains("LOG:  statement:");
    log.lines().filter(is_statement).count() as u64
}

async fn rows(
    server: &str,
    backend: &impl LockBackend,
    proxy: &Proxy,
    statements: &Statements<'_>,
) -> String {
    let mut rows = String::new();
    for (kind, share) in [("exclusive", Share::ALL), ("share", Share::ONE)] {
        let claims = |known: &str, count: usize| -> Vec<Claim> {
            (0..count).map(|i| claim(&format!("{known} {kind} {i} of {count}"), share)).collect()
        };
        let mut meter = Meter { kind, server, backend, proxy, statements, rows };

        // From here on the connections are open and the names known, but for those called fresh.
        for count in [1, 16] {
            let held = meter.acquire("", &claims("known", count)).await;
            meter.renew("", &held).await;
            meter.release("", &held).await;
        }
        // What is sent without waiting for answers is now sent before one can come.
        proxy.delay(Duration::from_millis(10));

        let held = meter.acquire("acquire", &claims("known", 1)).await;
        if !share.is_exclusive() {
            let beside = meter.acquire("acquire beside another", &claims("known", 1)).await;
            meter.release("release beside another", &beside).await;
        }
        meter.renew("renew", &held).await;
        let mut busy = claim(held[0].name.as_str(), Share::ALL);
        meter.busy("acquire, busy", &busy).await;
        meter.release("release", &held).await;
        meter.acquire("acquire, fresh name", &claims("fresh", 1)).await;

        let held = meter.acquire("acquire 16", &claims("known", 16)).await;
        meter.renew("renew 16", &held).await;
        meter.release("release 16", &held).await;
        meter.acquire("acquire 16, fresh names", &claims("fresh", 16)).await;

        let held = meter.acquire("", &claims("known", 1)).await;
        busy.mark = Some(TTL);
        meter.busy("acquire, busy, marks", &busy).await;
        meter.busy("acquire, busy, has marked", &busy).await;
        meter.release("release, marked", &held).await;

        proxy.delay(Duration::ZERO);
        rows = meter.rows;
    }
    rows
}

/// Long enough for nothing to end by itself.
const TTL: Duration = Duration::from_mins(30);

fn claim(name: &str, share: Share) -> Claim {
    Claim::new(LockName::new(name).unwrap()).with_share(share).with_ttl(Ttl::new(TTL).unwrap())
}

/// Asks a backend, checks the answer, and writes down what it cost.
struct Meter<'a, B> {
    kind: &'a str,
    server: &'a str,
    backend: &'a B,
    proxy: &'a Proxy,
    statements: &'a Statements<'a>,
    rows: String,
}

impl<B: LockBackend> Meter<'_, B> {
    async fn acquire(&mut self, verb: &str, claims: &[Claim]) -> Vec<LeaseId> {
        let verdicts = self.count(verb, self.backend.acquire(claims)).await;
        let leases = claims.iter().zip(&verdicts).map(|(claim, verdict)| {
            let Verdict::Granted(token) = verdict else { panic!("{verb}: {verdict:?}") };
            claim.lease(*token)
        });
        leases.collect()
    }

    async fn busy(&mut self, verb: &str, claim: &Claim) {
        let verdicts = self.count(verb, self.backend.acquire(std::slice::from_ref(claim))).await;
        assert!(matches!(verdicts[..], [Verdict::Busy(_)]), "{verb}: {verdicts:?}");
    }

    async fn renew(&mut self, verb: &str, leases: &[LeaseId]) {
        let renewal = |lease: &LeaseId| Renewal::new(lease.clone(), Ttl::new(TTL).unwrap());
        let renewals: Vec<Renewal> = leases.iter().map(renewal).collect();
        let renewed = self.count(verb, self.backend.renew(&renewals)).await;
        assert_eq!(renewed, vec![Renewed::Alive; leases.len()], "{verb}");
    }

    async fn release(&mut self, verb: &str, leases: &[LeaseId]) {
        let released = self.count(verb, self.backend.release(&Release::free_all(leases))).await;
        assert_eq!(released, vec![Released::Done; leases.len()], "{verb}");
    }

    /// A verb without a name is not written down.
    async fn count<T>(&mut self, verb: &str, asked: impl Future<Output = Result<T, Error>>) -> T {
        let (statements, traffic) = (self.statements.count().await, self.proxy.traffic());
        let answer = asked.await.unwrap();
        let traffic = self.proxy.traffic().since(traffic);
        let statements = self.statements.count().await - statements;
        if !verb.is_empty() {
            let Self { server, kind, .. } = self;
            let Traffic { to_server, to_client, round_trips, .. } = traffic;
            self.rows +=
                &format!("{server:9} {kind:9} {verb:25} {statements:>10} {round_trips:>11}\n");
            println!("{server} {kind} {verb}: {to_server} bytes to the server, {to_client} back");
        }
        answer
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_adds_no_statement_to_acquire_and_release() {
    let server = Postgres::builder().setting("log_statement", "all").start().unwrap();
    migrate(server.url()).await.unwrap();
    let locks = Locks::connect(server.url()).await.unwrap();
    // The row is there and the connections are open from here on.
    for _ in 0..8 {
        locks.lock("x").acquire().await.unwrap().release().await.unwrap();
    }
    let before = logged(&server);
    let guard = locks.lock("x").acquire().await.unwrap();
    let acquired = logged(&server);
    guard.release().await.unwrap();
    let released = logged(&server);
    assert_eq!((acquired - before, released - acquired), (1, 1), "{}", server.log().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_a_process_poll_in_one_query() {
    const WAITERS: usize = 200;
    let server = MySql::start().unwrap();
    migrate(server.url()).await.unwrap();
    let (here, there) =
        (Locks::connect(server.url()).await.unwrap(), Locks::connect(server.url()).await.unwrap());
    let ttl = Ttl::new(Duration::from_mins(5)).unwrap();
    let mut guards = Vec::new();
    for i in 0..WAITERS {
        guards.push(here.lock(format!("lock {i}")).ttl(ttl).acquire().await.unwrap());
    }
    let (told, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for i in 0..WAITERS {
        let (told, mut first) = (told.clone(), true);
        let request =
            there.lock(format!("lock {i}")).timeout(Duration::from_mins(5)).on_wait(move |_| {
                if std::mem::take(&mut first) {
                    let _ = told.send(());
                }
            });
        waiting.spawn(async move { request.acquire().await.unwrap() });
    }
    for _ in 0..WAITERS {
        waits.recv().await.unwrap();
    }
    let selects = || -> usize {
        let status = server.sql("SHOW GLOBAL STATUS LIKE 'Com_select'").unwrap();
        status.split_once('|').unwrap().1.parse().unwrap()
    };
    let (began, before) = (Instant::now(), selects());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (selects, seconds) = (selects() - before, began.elapsed().as_secs_f64());
    // One by one they were 800 in 2 s.
    assert!(selects as f64 <= 50.0 * seconds, "{selects} queries in {seconds} s");
    println!("{selects} queries for {WAITERS} waiters in {seconds} s");
    drop(guards);
    waiting.join_all().await;
}
