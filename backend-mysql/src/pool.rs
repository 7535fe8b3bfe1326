//! Connections: a few for claims, and one for renewals.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks_core::hosts::{Hosts, Origin};
use database_locks_core::{Error, ErrorKind, Result};
use deadpool::managed::{Manager, Metrics, Object, Pool, QueueMode, RecycleError, RecycleResult};
use mysql_async::consts::StatusFlags;
use mysql_async::{Conn, Opts, OptsBuilder, Params};
use tokio::time::Instant;

use crate::config::{MysqlConfig, SslMode};
use crate::packet::{self, Answer, Request};
use crate::session::{self, Server};
use crate::{NAME, error, tls};

/// How long a shared connection may be idle before it is closed, unless it is the only one.
const MOST_IDLE: Duration = Duration::from_mins(1);

/// The connections of one backend.
pub(crate) struct Connections {
    shared: Pool<Connector>,
    renewals: Pool<Connector>,
    most_idle: Duration,
    place: String,
}

impl Connections {
    /// Connects to nothing yet.
    pub(crate) fn new(config: &MysqlConfig) -> Result<Self> {
        let tls = tls::options(config.tls())?;
        let hosts = config.addresses().into_iter().map(|address| Host {
            place: format!("{address}/{}", config.database()),
            opts: config.driver(&address, tls.clone()),
            without_tls: (config.tls().mode == SslMode::Preferred)
                .then(|| config.driver(&address, None)),
            was_refused: AtomicBool::new(false),
        });
        let hosts = Hosts::new(hosts.collect(), 0, config.host_timeout())
            .with_password(config.password_source());
        let connector = Connector(Arc::new(hosts));
        let pool = |size| {
            Pool::builder(connector.clone())
                .max_size(size)
                // The one that was used last is the least likely to have been closed since, and the others become idle.
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
            place: config.place(),
        })
    }

    /// Waits for one of the shared connections.
    pub(crate) async fn shared(&self) -> Result<InUse> {
        self.take_from(&self.shared).await
    }

    /// Waits for the connection that only renewals use, so that nothing else can starve them.
    pub(crate) async fn for_renewals(&self) -> Result<InUse> {
        self.take_from(&self.renewals).await
    }

    /// Where the servers are, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    async fn take_from(&self, pool: &Pool<Connector>) -> Result<InUse> {
        self.close_idle();
        match pool.get().await {
            Ok(object) => Ok(InUse { object: Some(object), since: Instant::now(), repeats: true }),
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
/// because a request that nobody waits for any more may still be at work on it.
pub(crate) struct InUse {
    object: Option<Object<Connector>>,
    since: Instant,
    /// Whether a packet that found the connection closed may be sent again.
    repeats: bool,
}

impl InUse {
    /// Sends nothing twice, for packets whose second answer differs from the first: whoever asks
    /// again has to know that it is again, as the engine does.
    pub(crate) fn once(mut self) -> Self {
        self.repeats = false;
        self
    }

    /// What it is connected to. No statement depends on that.
    #[cfg(test)]
    pub(crate) fn server(&self) -> Server {
        match &self.object {
            Some(object) => object.server,
            None => unreachable!("it is taken only in run, which consumes it, and in drop"),
        }
    }

    /// As [`run`](Self::run), for statements that begin a transaction, which it commits. Where this
    /// fails nothing of it is done, unless the connection failed: then that is not known.
    ///
    /// A node of a Galera cluster rolls a transaction back when another node has changed a row of
    /// it. If that happens in the middle of a packet of statements, MariaDB reports no error, and
    /// runs the rest as if there had never been a transaction, the `COMMIT` included. Only the
    /// answer to the last statement of a packet tells, so that there the `COMMIT` is a packet of
    /// its own, sent once the transaction was seen to be open.
    pub(crate) async fn run_transaction(
        mut self,
        packet: &str,
    ) -> Result<Vec<Answer>, mysql_async::Error> {
        let Some(object) = &mut self.object else {
            unreachable!("it is taken only by give_back, and in drop");
        };
        if !object.server.galera {
            return self.run(&format!("{packet};\nCOMMIT")).await;
        }
        let result = match send(object, Request::Packet(packet), self.repeats).await {
            Ok(_) if !in_transaction(&object.conn) => Err(error::rolled_back()),
            Ok(answers) => {
                packet::send(&mut object.conn, Request::Packet("COMMIT")).await.map(|_| answers)
            }
            Err(failed) => Err(failed),
        };
        self.give_back(result, false).await
    }

    /// Sends statements that `;` separates, in one packet, and gives the connection back, rolled
    /// back where one of them failed, unless that broke it.
    ///
    /// Gives one answer for each statement, or the first error of any. Those before it have been
    /// executed.
    ///
    /// A reused connection that was found closed is replaced, once, and the packet sent on the new
    /// one: that it was not executed before is likely but not known, so that it has to be safe to
    /// repeat. [`once`](Self::once) prevents this.
    pub(crate) async fn run(self, packet: &str) -> Result<Vec<Answer>, mysql_async::Error> {
        self.request(Request::Packet(packet), false).await
    }

    /// As [`run`](Self::run), for statements that only read. A node of a Galera cluster that they wait for in
    /// vain is behind the others, and left for another one.
    pub(crate) async fn read(self, packet: &str) -> Result<Vec<Answer>, mysql_async::Error> {
        self.request(Request::Packet(packet), true).await
    }

    /// Runs one statement that is prepared once for a connection, and gives the connection back, as
    /// [`run`](Self::run) does.
    pub(crate) async fn execute(
        self,
        (statement, params): (&str, Params),
    ) -> Result<Answer, mysql_async::Error> {
        let mut answers = self.request(Request::Prepared(statement, &params), false).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    async fn request(
        mut self,
        request: Request<'_>,
        is_read: bool,
    ) -> Result<Vec<Answer>, mysql_async::Error> {
        let Some(object) = &mut self.object else {
            unreachable!("it is taken only by give_back, and in drop");
        };
        let result = send(object, request, self.repeats).await;
        self.give_back(result, is_read).await
    }

    /// Gives the connection back without a request.
    pub(crate) fn leave(mut self) {
        drop(self.object.take());
    }

    /// Gives the connection back, rolled back after an error, unless that broke it.
    async fn give_back(
        mut self,
        result: Result<Vec<Answer>, mysql_async::Error>,
        is_read: bool,
    ) -> Result<Vec<Answer>, mysql_async::Error> {
        let Some(object) = &mut self.object else {
            unreachable!("it is taken only by give_back, and in drop");
        };
        let reusable = match &result {
            Ok(_) => !in_transaction(&object.conn),
            Err(failed)
                if error::breaks_connection(failed)
                    || is_read && object.server.galera && error::waited_in_vain(failed) =>
            {
                if let Some(pool) = Object::pool(object) {
                    pool.manager().0.pass_over(object.origin);
                }
                false
            }
            Err(failed) => {
                !error::has_lost_statement(failed)
                    && packet::send(&mut object.conn, Request::Packet("ROLLBACK")).await.is_ok()
            }
        };
        if reusable {
            object.was_used = true;
            drop(self.object.take());
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

/// A connection whose session was made safe.
struct Connection {
    conn: Conn,
    server: Server,
    origin: Origin,
    /// Whether it was given back before, so that it may have been closed since.
    was_used: bool,
}

/// Sends a request, once more where that is allowed and a reused connection was found closed.
async fn send(
    object: &mut Object<Connector>,
    request: Request<'_>,
    repeats: bool,
) -> Result<Vec<Answer>, mysql_async::Error> {
    let repeats = repeats && object.was_used;
    let result = packet::send(&mut object.conn, request).await;
    if repeats && result.as_ref().is_err_and(error::was_closed) && replace(object).await {
        return packet::send(&mut object.conn, request).await;
    }
    result
}

/// Puts a new connection in the place of one that was found closed, if it leads to the same kind
/// of server, since the packet was made for that.
async fn replace(object: &mut Object<Connector>) -> bool {
    let Some(pool) = Object::pool(object) else { return false };
    match pool.manager().create().await {
        Ok(new) if new.server == object.server => {
            **object = new;
            true
        }
        _ => false,
    }
}

fn in_transaction(conn: &Conn) -> bool {
    conn.last_ok_packet()
        .is_some_and(|ok| ok.status_flags().contains(StatusFlags::SERVER_STATUS_IN_TRANS))
}

/// What connects to the first of the hosts that can be used.
#[derive(Clone)]
struct Connector(Arc<Hosts<Host>>);

struct Host {
    place: String,
    opts: Opts,
    without_tls: Option<Opts>,
    /// Whether the last login was refused, so that the next one is not tried twice.
    was_refused: AtomicBool,
}

impl Manager for Connector {
    type Type = Connection;
    type Error = Error;

    async fn create(&self) -> Result<Connection> {
        let (origin, (conn, server)) =
            self.0.connect(Host::connect).await.map_err(|error| error.with_backend(NAME))?;
        Ok(Connection { conn, server, origin, was_used: false })
    }

    /// The driver has no way to see that a server has closed an idle connection, other than to ask
    /// it. [`InUse::run`] finds out.
    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<Error> {
        if connection.conn.is_disconnected() {
            return Err(RecycleError::message("the connection was closed"));
        }
        if self.0.is_stale(connection.origin) {
            return Err(RecycleError::message("its host was passed over"));
        }
        Ok(())
    }
}

impl Host {
    async fn connect(&self, password: Option<&str>) -> Result<(Conn, Server)> {
        let mut conn = self
            .log_in(password)
            .await
            .map_err(|failed| error::from_driver(failed, &self.place))?;
        let server = session::prepare(&mut conn, &self.place).await?;
        Ok((conn, server))
    }

    async fn log_in(&self, password: Option<&str>) -> Result<Conn, mysql_async::Error> {
        let connect = async |opts: &Opts| match password {
            Some(password) => {
                Conn::new(OptsBuilder::from_opts(opts.clone()).pass(Some(password))).await
            }
            None => Conn::new(opts.clone()).await,
        };
        let attempt = async || match (connect(&self.opts).await, &self.without_tls) {
            (Err(failed), Some(without_tls)) if error::lacks_tls(&failed) => {
                connect(without_tls).await
            }
            (other, _) => other,
        };
        let is_refused = |tried: &Result<Conn, _>| tried.as_ref().is_err_and(error::is_refused);
        let mut tried = attempt().await;
        if is_refused(&tried) && !self.was_refused.load(Ordering::Relaxed) {
            // The driver takes a zero at the end of the server's nonce for its terminator, so that one in 256
            // logins by ed25519 is refused for no reason.
            tried = attempt().await;
        }
        self.was_refused.store(is_refused(&tried), Ordering::Relaxed);
        tried
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use database_locks_test_servers::MariaDb;

    use super::*;

    async fn id(connection: Result<InUse>) -> u64 {
        let answers = connection.unwrap().run("SELECT CONNECTION_ID()").await.unwrap();
        answers[0].rows[0].get(0).unwrap()
    }

    #[tokio::test]
    async fn connection_that_was_used_last_is_used_next_and_idle_ones_are_closed_but_one() {
        let server = MariaDb::start().unwrap();
        let mut connections =
            Connections::new(&MysqlConfig::from_url(server.url()).unwrap()).unwrap();
        let (first, last) = (connections.shared().await, connections.shared().await);
        id(first).await;
        let last = id(last).await;
        for _ in 0..3 {
            assert_eq!(id(connections.shared().await).await, last);
        }
        assert_eq!(connections.shared.status().size, 2);
        connections.most_idle = Duration::ZERO;
        id(connections.for_renewals().await).await;
        assert_eq!(connections.shared.status().size, 1);
        assert_eq!(id(connections.shared().await).await, last);
    }
}
