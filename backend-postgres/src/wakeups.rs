//! Hints by LISTEN and NOTIFY.

use std::collections::VecDeque;
use std::pin::pin;

use database_locks_core::{LockName, Result, Wakeup, Wakeups};
use futures_util::future::{Either, select};
use futures_util::stream;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};
use uuid::Uuid;

use crate::error;
use crate::pool::{Connections, OwnConnection};
use crate::sql;

/// Listens on a connection of its own.
///
/// [`Wakeup::Listening`] is yielded once a notification that another connection sends has come
/// through. Behind a pooler in transaction mode it never does, and polling carries on.
pub(crate) async fn listen(connections: &Connections, channel: &str) -> Result<Wakeups> {
    let failed = |error| error::from_driver(error, connections.place());
    let (client, connection) = connections.own().await?;
    let mut listener = Listener {
        _client: None,
        connection,
        waiting: VecDeque::new(),
        // No lock's name holds a control character.
        probe: format!("\u{1}{}", Uuid::new_v4()),
    };
    // Quoting needs no escapes: the channel is made of checked names.
    listener.drive(client.batch_execute(&format!("listen \"{channel}\""))).await.map_err(failed)?;
    listener._client = Some(client);

    let request = connections.shared().await?;
    let probe = listener.probe.clone();
    request
        .run(async |client| {
            client.query_typed(sql::NOTIFY, &[(&channel, Type::TEXT), (&probe, Type::TEXT)]).await
        })
        .await
        .map_err(failed)?;

    Ok(Wakeups::new(stream::unfold(listener, async |mut listener| {
        let wakeup = listener.next().await?;
        Some((wakeup, listener))
    })))
}

struct Listener {
    /// Kept because a connection ends with its client.
    _client: Option<Client>,
    connection: OwnConnection,
    waiting: VecDeque<String>,
    probe: String,
}

impl Listener {
    /// Drives the connection until `request` on it has finished.
    async fn drive<T>(
        &mut self,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, tokio_postgres::Error> {
        let mut request = pin!(request);
        loop {
            match select(request.as_mut(), pin!(self.connection.message())).await {
                Either::Left((result, _)) => return result,
                Either::Right((Some(Ok(message)), _)) => self.waiting.extend(payload(message)),
                Either::Right((Some(Err(error)), _)) => return Err(error),
                Either::Right((None, _)) => return request.await,
            }
        }
    }

    async fn next(&mut self) -> Option<Wakeup> {
        loop {
            let payload = match self.waiting.pop_front() {
                Some(payload) => payload,
                None => match self.connection.message().await? {
                    Ok(message) => match payload(message) {
                        Some(payload) => payload,
                        None => continue,
                    },
                    Err(error) => {
                        tracing::debug!(%error, "the listening connection ended");
                        return None;
                    }
                },
            };
            if payload == self.probe {
                return Some(Wakeup::Listening);
            }
            // What is no name is the probe of somebody else.
            if let Ok(name) = LockName::new(payload) {
                return Some(Wakeup::Released(name));
            }
        }
    }
}

fn payload(message: AsyncMessage) -> Option<String> {
    match message {
        AsyncMessage::Notification(notification) => Some(notification.payload().to_owned()),
        _ => None,
    }
}
