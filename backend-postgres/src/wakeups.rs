//! Hints by LISTEN and NOTIFY.

use std::collections::VecDeque;

use database_locks_core::{LockName, Releaser, Result, Wakeup, Wakeups};
use futures_util::stream;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};
use uuid::Uuid;

use crate::error;
use crate::host::OwnConnection;
use crate::pool::Connections;
use crate::sql;

/// Between a name and who released it, in `change.sql` too. No lock's name holds a control character.
const SEPARATOR: char = '\u{1}';

/// Listens on a connection of its own.
///
/// [`Wakeup::Listening`] is yielded once a notification that another connection sends has come
/// through. Behind a pooler in transaction mode it never does, and polling carries on.
pub(crate) async fn listen(
    connections: &Connections,
    channel: &str,
    own: &str,
) -> Result<Option<Wakeups>> {
    let failed = |error| error::from_driver(error, connections.place());
    let Some((client, mut connection)) = connections.own().await? else { return Ok(None) };
    let mut waiting = VecDeque::new();
    let listen = format!("listen \"{}\"", channel.replace('"', "\"\""));
    connection
        .drive(client.batch_execute(&listen), |message| waiting.extend(payload(message)))
        .await
        .map_err(failed)?;
    let probe = format!("{SEPARATOR}{}", Uuid::new_v4());
    let own = own.to_owned();
    let listener = Listener { _client: client, connection, waiting, probe, own };

    let request = connections.shared().await?;
    let probe = listener.probe.clone();
    request
        .run(async |session| {
            session.query(sql::NOTIFY, &[(&channel, Type::TEXT), (&probe, Type::TEXT)]).await
        })
        .await
        .map_err(failed)?;

    Ok(Some(Wakeups::new(stream::unfold(listener, async |mut listener| {
        let wakeup = listener.next().await?;
        Some((wakeup, listener))
    }))))
}

struct Listener {
    /// Kept because a connection ends with its client.
    _client: Client,
    connection: OwnConnection,
    waiting: VecDeque<String>,
    probe: String,
    /// Who we are.
    own: String,
}

impl Listener {
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
            // What has no name is the probe of somebody else.
            let (name, client) = payload.split_once(SEPARATOR).unwrap_or((&payload, ""));
            if let Ok(name) = LockName::new(name) {
                let by = match client.parse() {
                    _ if client == self.own => Releaser::Own,
                    Ok(other) => Releaser::Other(other),
                    Err(_) => Releaser::Unknown,
                };
                return Some(Wakeup::Released { name, by });
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
