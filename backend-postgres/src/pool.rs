//! Connections: a few for claims, one for renewals, and one of its own for whoever listens.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use database_locks_core::{Error, Result};
use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::PostgresConfig;
use crate::{error, tls};

/// The connections of one backend.
pub(crate) struct Connections {
    shared: Pool,
    renewals: Pool,
    connector: Connector,
    driver: tokio_postgres::Config,
    place: String,
}

impl Connections {
    /// Connects to nothing yet.
    pub(crate) fn new(config: &PostgresConfig) -> Result<Self> {
        let connector = Connector(tls::connector(config.tls())?);
        let pool = |size| {
            let manager = Manager::from_connect(
                config.driver().clone(),
                connector.clone(),
                ManagerConfig { recycling_method: RecyclingMethod::Fast },
            );
            Pool::builder(manager).max_size(size).build().map_err(|error| {
                Error::new(database_locks_core::ErrorKind::InvalidOption, error.to_string())
            })
        };
        Ok(Self {
            shared: pool(config.connections())?,
            renewals: pool(1)?,
            connector: connector.clone(),
            driver: config.driver().clone(),
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
        let connected = self.driver.connect(self.connector.0.clone()).await;
        let (client, connection) =
            connected.map_err(|error| error::from_driver(error, &self.place))?;
        Ok((client, OwnConnection(Box::new(Pollable(connection)))))
    }

    /// Where the server is, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    async fn take_from(&self, pool: &Pool) -> Result<InUse> {
        match pool.get().await {
            Ok(object) => Ok(InUse(Some(object))),
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
pub(crate) struct InUse(Option<Object>);

impl InUse {
    /// Runs a request and gives the connection back, unless the request broke it.
    pub(crate) async fn run<T>(
        mut self,
        request: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, tokio_postgres::Error> {
        let Some(object) = &self.0 else { unreachable!("it is taken only here and in drop") };
        let result = request(object).await;
        if !result.as_ref().is_err_and(error::breaks_connection) {
            drop(self.0.take());
        }
        result
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
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

#[derive(Clone)]
struct Connector(MakeRustlsConnect);

impl Connect for Connector {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = config.connect(self.0.clone()).await?;
            Ok((client, tokio::spawn(drive(OwnConnection(Box::new(Pollable(connection)))))))
        })
    }
}

type Connected = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

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
