//! How to connect to one host, and what is found there.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use database_locks_core::{Error, Result};
use futures_util::future::{Either, select};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_postgres::config::{Host as HostName, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Connection};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::HostConfig;
use crate::{error, sql};

/// For how long a request that nobody waits for any more is tried to be cancelled.
const CANCELLING: Duration = Duration::from_secs(5);

/// One of the hosts.
pub(crate) struct Host {
    config: HostConfig,
    tls: MakeRustlsConnect,
}

/// A connection, logged in, which nobody drives yet.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) connection: OwnConnection,
    /// The server's address, where the server sees the very connection that was opened, so that no pooler
    /// is in between.
    pub(crate) direct: Option<SocketAddr>,
}

impl Host {
    pub(crate) fn new(config: HostConfig, tls: MakeRustlsConnect) -> Self {
        Self { config, tls }
    }

    /// Connects, and makes sure that it is the kind of server that is wanted.
    pub(crate) async fn connect(&self, password: Option<&str>) -> Result<Opened> {
        let mut driver = self.config.driver.clone();
        if let Some(password) = password {
            driver.password(password);
        }
        let Some(name) = self.name() else {
            // A socket file, or an address that no certificate can be for.
            let (client, connection) =
                driver.connect(self.tls.clone()).await.map_err(|error| self.failed(error))?;
            let connection = OwnConnection(Box::new(Pollable(connection)));
            return Ok(Opened { client, connection, direct: None });
        };
        let addresses = self.addresses(name).await.map_err(|error| self.out_of_reach(&error))?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        let mut failure = None;
        for address in addresses {
            match self.connect_to(address, name, &driver).await {
                Ok(opened) => return Ok(opened),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.out_of_reach(&none())))
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        name: &str,
        driver: &tokio_postgres::Config,
    ) -> Result<Opened> {
        let stream = self.open(address).await.map_err(|error| self.out_of_reach(&error))?;
        let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
        let ends = ends.map_err(|error| self.out_of_reach(&error))?;
        let connected = driver.connect_raw(stream, self.encryption(name)?).await;
        let (client, connection) = connected.map_err(|error| self.failed(error))?;
        let mut connection = OwnConnection(Box::new(Pollable(connection)));
        let is_direct = self.inspect(&client, &mut connection, ends).await?;
        Ok(Opened { client, connection, direct: is_direct.then_some(address) })
    }

    /// Asks the server at this address to end what a connection is at work on. Best effort: it may have
    /// ended.
    pub(crate) async fn cancel(&self, token: &CancelToken, address: SocketAddr) {
        let cancel = async {
            let stream = self.open(address).await.map_err(|error| self.out_of_reach(&error))?;
            let encryption = self.encryption(self.name().unwrap_or_default())?;
            let cancelled = token.cancel_query_raw(stream, encryption).await;
            cancelled.map_err(|error| self.failed(error))
        };
        match tokio::time::timeout(CANCELLING, cancel).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a request could not be cancelled"),
            Err(_) => tracing::debug!(host = %self, "a request was not cancelled in time"),
        }
    }

    /// The name that the server's certificate is for.
    fn name(&self) -> Option<&str> {
        match self.config.driver.get_hosts().first() {
            Some(HostName::Tcp(name)) => Some(name),
            _ => None,
        }
    }

    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let port = self.config.driver.get_ports().first().copied().unwrap_or(5432);
        match self.config.driver.get_hostaddrs().first() {
            Some(address) => Ok(vec![SocketAddr::new(*address, port)]),
            None => Ok(lookup_host((name, port)).await?.collect()),
        }
    }

    /// Opens a socket as the driver would.
    async fn open(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let driver = &self.config.driver;
        let connect = TcpStream::connect(address);
        let stream = match driver.get_connect_timeout() {
            Some(timeout) => tokio::time::timeout(*timeout, connect).await??,
            None => connect.await?,
        };
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(driver.get_tcp_user_timeout().copied())?;
        if driver.get_keepalives() {
            let mut keepalive = TcpKeepalive::new().with_time(driver.get_keepalives_idle());
            if let Some(interval) = driver.get_keepalives_interval() {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(retries) = driver.get_keepalives_retries() {
                keepalive = keepalive.with_retries(retries);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        Ok(stream)
    }

    fn encryption(
        &self,
        name: &str,
    ) -> Result<<MakeRustlsConnect as MakeTlsConnect<TcpStream>>::TlsConnect> {
        MakeTlsConnect::<TcpStream>::make_tls_connect(&mut self.tls.clone(), name)
            .map_err(|error| error::unusable(format!("{name} is no name for TLS: {error}")))
    }

    /// Whether the connection with these ends, ours and the server's, leads directly to the server.
    async fn inspect(
        &self,
        client: &Client,
        connection: &mut OwnConnection,
        (local, peer): (SocketAddr, SocketAddr),
    ) -> Result<bool> {
        let (ours, theirs) = (host_of(local), host_of(peer));
        let (our_port, their_port) = (i32::from(local.port()), i32::from(peer.port()));
        let ends = [
            (&ours as &(dyn ToSql + Sync), Type::TEXT),
            (&our_port, Type::INT4),
            (&theirs, Type::TEXT),
            (&their_port, Type::INT4),
        ];
        let rows = connection.drive(client.query_typed(sql::MEET, &ends), drop).await;
        let rows = rows.map_err(|error| self.failed(error))?;
        let row = rows.first().ok_or_else(|| error::unexpected("no row"))?;
        let (is_read_only, is_direct): (bool, bool) = (row.get(0), row.get(1));
        match self.config.driver.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite if is_read_only => {
                Err(error::takes_no_writes(&self.config.place))
            }
            TargetSessionAttrs::ReadOnly if !is_read_only => {
                Err(error::takes_writes(&self.config.place))
            }
            _ => Ok(is_direct),
        }
    }

    fn failed(&self, error: tokio_postgres::Error) -> Error {
        error::from_driver(error, &self.config.place)
    }

    fn out_of_reach(&self, error: &io::Error) -> Error {
        error::out_of_reach(&self.config.place, &format!("error connecting to server: {error}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.config.place)
    }
}

/// As `host()` of the server writes it.
fn host_of(address: SocketAddr) -> String {
    address.ip().to_canonical().to_string()
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

    /// Drives the connection until `request` on it has finished.
    pub(crate) async fn drive<T>(
        &mut self,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
        mut meanwhile: impl FnMut(AsyncMessage),
    ) -> Result<T, tokio_postgres::Error> {
        let mut request = pin!(request);
        loop {
            match select(request.as_mut(), pin!(self.message())).await {
                Either::Left((result, _)) => return result,
                Either::Right((Some(Ok(message)), _)) => meanwhile(message),
                Either::Right((Some(Err(error)), _)) => return Err(error),
                Either::Right((None, _)) => return request.await,
            }
        }
    }
}

trait PollMessage: Send {
    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>>;
}

struct Pollable<S, T>(Connection<S, T>);

impl<S, T> PollMessage for Pollable<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    T: TlsStream + Unpin + Send,
{
    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        self.0.poll_message(cx)
    }
}
