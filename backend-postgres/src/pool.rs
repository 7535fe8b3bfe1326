//! Connections: a few for claims, one for renewals, and one of its own for whoever listens.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use database_locks_core::hosts::{Hosts, Origin};
use database_locks_core::{Error, ErrorKind, Result};
use deadpool::managed::{Manager, Metrics, Object, Pool, QueueMode, RecycleError, RecycleResult};
use deadpool_postgres::{ClientWrapper, Connect};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Row, Statement};

use crate::config::{PostgresConfig, Prepare};
use crate::host::{Host, Opened, OwnConnection};
use crate::{NAME, error, tls};

/// A value and its type, in the place of `$1` and so on.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How long a shared connection may be idle before it is closed, unless it is the only one.
const MOST_IDLE: Duration = Duration::from_mins(1);

/// The connections of one backend.
pub(crate) struct Connections {
    shared: Pool<Connector>,
    renewals: Pool<Connector>,
    most_idle: Duration,
    connector: Connector,
    place: String,
}

impl Connections {
    /// Connects to nothing yet.
    pub(crate) fn new(config: &PostgresConfig) -> Result<Self> {
        let tls = tls::connector(config.tls())?;
        let hosts = config.hosts().into_iter().map(|config| Host::new(config, tls.clone()));
        let hosts = Hosts::new(hosts.collect(), config.first_host(), config.host_timeout())
            .with_password(config.password());
        Self::from(Source::Hosts(Arc::new(hosts)), config)
    }

    /// Connections that `connect` makes.
    pub(crate) fn by(connect: impl Connect + 'static, config: &PostgresConfig) -> Result<Self> {
        Self::from(Source::Theirs(Arc::new(connect), Arc::new(config.driver().clone())), config)
    }

    fn from(source: Source, config: &PostgresConfig) -> Result<Self> {
        let connector = Connector { source, prepare: config.prepared() };
        let pool = |size| {
            Pool::builder(connector.clone())
                .max_size(size)
                // So that those that are not needed become idle.
                .queue_mode(QueueMode::Lifo)
                .build()
                .map_err(|error| {
                    Error::new(ErrorKind::InvalidOption, error.to_string()).with_backend(NAME)
                })
        };
        Ok(Self {
            shared: pool(config.connections())?,
            renewals: pool(1)?,
            most_idle: MOST_IDLE,
            connector: connector.clone(),
            place: config.place(),
        })
    }

    /// Waits for one of the shared connections. One that was found dead is replaced.
    pub(crate) async fn shared(&self) -> Result<InUse> {
        self.take_from(&self.shared).await
    }

    /// Waits for the connection that only renewals use, so that nothing else can starve them.
    pub(crate) async fn for_renewals(&self) -> Result<InUse> {
        self.take_from(&self.renewals).await
    }

    /// A connection of the caller's own, which the caller has to drive. `None` where somebody else makes
    /// the connections, and drives them.
    pub(crate) async fn own(&self) -> Result<Option<(Client, OwnConnection)>> {
        let Source::Hosts(hosts) = &self.connector.source else { return Ok(None) };
        let (_origin, opened) = open(hosts).await?;
        Ok(Some((opened.client, opened.connection)))
    }

    /// Where the server is, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    async fn take_from(&self, pool: &Pool<Connector>) -> Result<InUse> {
        self.close_idle();
        match pool.get().await {
            Ok(object) => Ok(InUse { object: Some(object), since: Instant::now() }),
            Err(failed) => Err(error::from_pool(failed, &self.place)),
        }
    }

    /// Closes shared connections that have not been used for long. Whoever takes one sees to it, since there is no timer:
    /// while a process has leases that are the renewals.
    fn close_idle(&self) {
        let mut left = self.shared.status().size;
        self.shared.retain(|_, metrics| {
            let stays = left <= 1 || metrics.last_used() < self.most_idle;
            left -= usize::from(!stays);
            stays
        });
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A pooled connection with a request on it. Unless it is given back it is closed when dropped,
/// because a request that nobody waits for any more may still be at work on it. Where nothing is in
/// between, the server is told to end that request: one that waits for a lock would not notice that its
/// client has gone.
pub(crate) struct InUse {
    object: Option<Object<Connector>>,
    since: Instant,
}

impl InUse {
    /// Whether its session is ours alone, and keeps what it prepares.
    pub(crate) fn is_ours(&self) -> bool {
        let is_direct =
            |session: &Session| session.link.as_ref().is_some_and(|l| l.direct.is_some());
        self.object.as_ref().is_some_and(|session| session.prepares && is_direct(session))
    }

    /// Runs a request and gives the connection back, unless the request broke it.
    pub(crate) async fn run<T>(
        mut self,
        request: impl AsyncFnOnce(&Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, tokio_postgres::Error> {
        let Some(object) = &self.object else { unreachable!("it is taken only here and in drop") };
        let result = request(object).await;
        let is_broken = result.as_ref().is_err_and(error::breaks_connection);
        if is_broken && let Some(Link { hosts, origin, .. }) = &object.link {
            hosts.pass_over(*origin);
        }
        if let Some(object) = self.object.take()
            && is_broken
        {
            drop(Object::take(object));
        }
        result
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let session = Object::take(object);
        let Some(Link { hosts, origin, direct }) = session.link.clone() else { return };
        hosts.give_up(origin, self.since);
        // pgbouncer 1.18 was seen to end when it was asked to cancel.
        if let Some(address) = direct
            && let Ok(runtime) = Handle::try_current()
        {
            let token = session.client.cancel_token();
            runtime.spawn(async move { hosts.get(origin).cancel(&token, address).await });
        }
    }
}

/// A pooled connection. It is cut when dropped, whatever is at work on it.
pub(crate) struct Session {
    client: ClientWrapper,
    /// Where it leads, unless somebody else has made it.
    link: Option<Link>,
    /// Whether statements may be prepared, which belong to a server's connection: behind a pooler
    /// that may be another one the next time.
    prepares: bool,
}

#[derive(Clone)]
struct Link {
    hosts: Arc<Hosts<Host>>,
    origin: Origin,
    /// The server's address, if nothing is in between.
    direct: Option<SocketAddr>,
}

impl Session {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a statement in one round trip, after one more the first time that it is prepared.
    pub(crate) async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let prepared = self.prepare(statement, parameters).await?;
        self.send(prepared.as_ref(), statement, parameters).await
    }

    /// The statement prepared, where that is safe.
    pub(crate) async fn prepare(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Statement>, tokio_postgres::Error> {
        if !self.prepares {
            return Ok(None);
        }
        let types: Vec<Type> = parameters.iter().map(|(_, of)| of.clone()).collect();
        self.client.prepare_typed_cached(statement, &types).await.map(Some)
    }

    /// Sends a statement at the first poll.
    pub(crate) async fn send(
        &self,
        prepared: Option<&Statement>,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match prepared {
            None => self.client.query_typed(statement, parameters).await,
            Some(prepared) => {
                let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
                self.client.query(prepared, &values).await
            }
        }
    }
}

/// What makes the connections of a pool.
#[derive(Clone)]
pub(crate) struct Connector {
    source: Source,
    prepare: Prepare,
}

#[derive(Clone)]
enum Source {
    /// The first of the hosts that can be used.
    Hosts(Arc<Hosts<Host>>),
    /// Code of the user's.
    Theirs(Arc<dyn Connect>, Arc<tokio_postgres::Config>),
}

/// Gives where the connection leads, and the connection, which nobody drives yet.
///
/// Boxed, lest whoever connects has a future so deep that the compiler gives up.
async fn open(hosts: &Hosts<Host>) -> Result<(Origin, Opened)> {
    Box::pin(hosts.connect(Host::connect)).await.map_err(|error| error.with_backend(NAME))
}

impl Manager for Connector {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session> {
        let (client, link, is_direct) = match &self.source {
            Source::Hosts(hosts) => {
                let (origin, Opened { client, connection, direct }) = open(hosts).await?;
                let client = ClientWrapper::new(client, tokio::spawn(drive(connection)));
                let hosts = Arc::clone(hosts);
                (client, Some(Link { hosts, origin, direct }), direct.is_some())
            }
            Source::Theirs(connect, config) => {
                let made = connect.connect(config).await;
                let (client, task) = made.map_err(|e| error::from_driver(e, "the server"))?;
                (ClientWrapper::new(client, task), None, false)
            }
        };
        let prepares = match self.prepare {
            Prepare::Auto => is_direct,
            Prepare::Always => true,
            Prepare::Never => false,
        };
        Ok(Session { client, link, prepares })
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Error> {
        if session.client.is_closed() {
            return Err(RecycleError::message("the connection was closed"));
        }
        if session.link.as_ref().is_some_and(|link| link.hosts.is_stale(link.origin)) {
            return Err(RecycleError::message("its host was passed over"));
        }
        Ok(())
    }
}

/// Drives a pooled connection until it ends.
///
/// A commit that gave up waiting for the synchronous standby is reported as a success with a
/// warning. It is on the primary alone, so a failover could lose it: the connection is cut before
/// the success is delivered, and the request counts as unknown.
async fn drive(mut connection: OwnConnection) {
    while let Some(message) = connection.message().await {
        match message {
            Ok(AsyncMessage::Notice(notice)) if is_commit_unconfirmed(&notice) => {
                tracing::warn!(notice = notice.message(), "no standby has confirmed a commit");
                return;
            }
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!(notice = notice.message(), "the server sent a notice");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection ended");
                return;
            }
        }
    }
}

/// The routine is not translated, unlike the message.
fn is_commit_unconfirmed(notice: &DbError) -> bool {
    notice.routine() == Some("SyncRepWaitForLSN")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use database_locks_test_servers::{PgBouncer, PoolMode, Postgres, Proxy, Server as _};

    use super::*;

    async fn prepares(url: &str, parameter: &str) -> bool {
        let more = if url.contains('?') { '&' } else { '?' };
        let config = PostgresConfig::from_url(&format!("{url}{more}{parameter}")).unwrap();
        let connections = Connections::new(&config).unwrap();
        let session = connections.shared().await.unwrap();
        let prepared = session.run(async |session| session.prepare("select 1", &[]).await).await;
        prepared.unwrap().is_some()
    }

    #[tokio::test]
    async fn statements_are_prepared_where_nothing_is_in_between() {
        let server = Postgres::start().unwrap();
        let proxy = Proxy::start(server.port()).unwrap();
        let pooler = PgBouncer::start(&server, PoolMode::Transaction).unwrap();
        let through = server.at_port(proxy.port());
        assert!(prepares(server.url(), "prepare=auto").await);
        assert!(!prepares(through.url(), "prepare=auto").await, "through a proxy");
        assert!(!prepares(pooler.url(), "prepare=auto").await, "through a pooler");
        assert!(prepares(through.url(), "prepare=always").await);
        assert!(!prepares(server.url(), "prepare=never").await);
    }

    /// What a session answers to `sql`, in text.
    async fn ask(session: InUse, sql: &str) -> String {
        session.run(async |s| s.client().query_one(sql, &[]).await).await.unwrap().get(0)
    }

    #[tokio::test]
    async fn session_of_our_own_is_bounded_and_no_other_is_changed() {
        let server = Postgres::start().unwrap();
        let proxy = Proxy::start(server.port()).unwrap();
        let through = server.at_port(proxy.port());
        for (url, bound) in [(server.url(), "10s"), (through.url(), "0")] {
            let config = PostgresConfig::from_url(url).unwrap();
            let connections = Connections::new(&config).unwrap();
            for session in [connections.shared().await, connections.for_renewals().await] {
                assert_eq!(ask(session.unwrap(), "show statement_timeout").await, bound, "{url}");
            }
        }
    }

    #[tokio::test]
    async fn connection_that_was_used_last_is_used_next_and_idle_ones_are_closed_but_one() {
        const PID: &str = "select pg_backend_pid()::text";
        let server = Postgres::start().unwrap();
        let mut connections =
            Connections::new(&PostgresConfig::from_url(server.url()).unwrap()).unwrap();
        let (first, last) = (connections.shared().await, connections.shared().await);
        ask(first.unwrap(), PID).await;
        let pid = ask(last.unwrap(), PID).await;
        for _ in 0..3 {
            assert_eq!(ask(connections.shared().await.unwrap(), PID).await, pid);
        }
        assert_eq!(connections.shared.status().size, 2);
        connections.most_idle = Duration::ZERO;
        ask(connections.for_renewals().await.unwrap(), PID).await;
        assert_eq!(connections.shared.status().size, 1);
        assert_eq!(ask(connections.shared().await.unwrap(), PID).await, pid);
    }
}
