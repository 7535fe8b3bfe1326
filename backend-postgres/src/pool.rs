//! Connections: a few for claims, one for renewals, and one of its own for whoever listens.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use database_locks_core::hosts::{Hosts, Origin};
use database_locks_core::{Error, ErrorKind, Result};
use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::error::DbError;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{HostConfig, PostgresConfig};
use crate::{NAME, error, tls};

/// The connections of one backend.
pub(crate) struct Connections {
    shared: Pool<Connector>,
    renewals: Pool<Connector>,
    connector: Connector,
    place: String,
}

impl Connections {
    /// Connects to nothing yet.
    pub(crate) fn new(config: &PostgresConfig) -> Result<Self> {
        let tls = tls::connector(config.tls())?;
        let hosts = config.hosts().into_iter().map(|config| Host { config, tls: tls.clone() });
        let hosts = Hosts::new(hosts.collect(), config.first_host(), config.host_timeout());
        let connector = Connector(Arc::new(hosts));
        let pool = |size| {
            Pool::builder(connector.clone()).max_size(size).build().map_err(|error| {
                Error::new(ErrorKind::InvalidOption, error.to_string()).with_backend(NAME)
            })
        };
        Ok(Self {
            shared: pool(config.connections())?,
            renewals: pool(1)?,
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

    /// A connection of the caller's own, which the caller has to drive.
    pub(crate) async fn own(&self) -> Result<(Client, OwnConnection)> {
        let (_origin, opened) = self.connector.open().await?;
        Ok(opened)
    }

    /// Where the server is, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    async fn take_from(&self, pool: &Pool<Connector>) -> Result<InUse> {
        match pool.get().await {
            Ok(object) => Ok(InUse { object: Some(object), since: Instant::now() }),
            Err(failed) => Err(error::from_pool(failed, &self.place)),
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A pooled connection with a request on it. Unless it is given back it is closed when dropped,
/// because a request that nobody waits for any more may still be at work on it.
pub(crate) struct InUse {
    object: Option<Object<Connector>>,
    since: Instant,
}

impl InUse {
    /// Runs a request and gives the connection back, unless the request broke it.
    pub(crate) async fn run<T>(
        mut self,
        request: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, tokio_postgres::Error> {
        let Some(object) = &self.object else { unreachable!("it is taken only here and in drop") };
        let result = request(&object.client).await;
        if !result.as_ref().is_err_and(error::breaks_connection) {
            drop(self.object.take());
        } else if let Some(pool) = Object::pool(object) {
            pool.manager().0.pass_over(object.origin);
        }
        result
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            if let Some(pool) = Object::pool(&object) {
                pool.manager().0.give_up(object.origin, self.since);
            }
            drop(Object::take(object));
        }
    }
}

/// A connection outside the pools: yields what the server sends unasked, `None` at its end.
pub(crate) struct OwnConnection(Box<dyn PollMessage>);

impl OwnConnection {
    /// The next message. Driving it is what makes the requests of its client proceed.
    ///
    /// Cancel safe.
    pub(crate) async fn message(&mut self) -> Option<Result<AsyncMessage, tokio_postgres::Error>> {
        poll_fn(|cx| self.0.poll_message(cx)).await
    }
}

trait PollMessage: Send {
    fn poll_message(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>>;
}

struct Pollable<T>(Connection<Socket, T>);

impl<T: TlsStream + Unpin + Send> PollMessage for Pollable<T> {
    fn poll_message(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        self.0.poll_message(cx)
    }
}

/// What connects to the first of the hosts that can be used.
#[derive(Clone)]
struct Connector(Arc<Hosts<Host>>);

struct Host {
    config: HostConfig,
    tls: MakeRustlsConnect,
}

impl Connector {
    /// Gives where the connection leads, and the connection, which nobody drives yet.
    async fn open(&self) -> Result<(Origin, (Client, OwnConnection))> {
        self.0.connect(Host::connect).await.map_err(|error| error.with_backend(NAME))
    }
}

impl Host {
    async fn connect(&self) -> Result<(Client, OwnConnection)> {
        let (client, connection) = self
            .config
            .driver
            .connect(self.tls.clone())
            .await
            .map_err(|failed| error::from_driver(failed, &self.config.place))?;
        Ok((client, OwnConnection(Box::new(Pollable(connection)))))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.config.place)
    }
}

impl Manager for Connector {
    type Type = Pooled;
    type Error = Error;

    async fn create(&self) -> Result<Pooled> {
        let (origin, (client, connection)) = self.open().await?;
        let driver = tokio::spawn(drive(connection)).abort_handle();
        Ok(Pooled { client, driver, origin })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<Error> {
        if pooled.client.is_closed() {
            return Err(RecycleError::message("the connection was closed"));
        }
        if self.0.is_stale(pooled.origin) {
            return Err(RecycleError::message("its host was passed over"));
        }
        Ok(())
    }
}

/// A pooled connection. It is cut when dropped, whatever is at work on it.
struct Pooled {
    client: Client,
    driver: AbortHandle,
    origin: Origin,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.driver.abort();
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
