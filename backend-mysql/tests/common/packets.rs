//! Counts what a client sends: a proxy that reads the protocol.

use std::sync::{Arc, Mutex};

use database_locks_test_servers::Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy on a free port of 127.0.0.1, for clients without TLS.
pub struct Packets {
    port: u16,
    sent: Arc<Mutex<Vec<String>>>,
}

impl Packets {
    /// Starts a proxy in front of a server on 127.0.0.1, within the test's runtime.
    pub async fn start(server: &Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (server, all) = (host_and_port(server.url()).to_owned(), Arc::clone(&sent));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&all)));
            }
        });
        Self { port, sent }
    }

    /// The server, by way of the proxy, without TLS.
    pub fn url(&self, server: &Access) -> String {
        format!("{}?ssl-mode=disabled", server.at_port(self.port).url())
    }

    /// The commands that clients have sent since this was last asked for, as they were sent.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

fn host_and_port(url: &str) -> &str {
    let (_, rest) = url.rsplit_once('@').unwrap();
    rest.split('/').next().unwrap()
}

async fn pass(client: TcpStream, server: TcpStream, sent: Arc<Mutex<Vec<String>>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let (mut piece, mut unread) = (vec![0; 16 * 1024], Vec::new());
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            unread.extend_from_slice(&piece[..length]);
            while let Some(packet) = next_packet(&mut unread) {
                // Only the first packet of a command has the number 0.
                if packet[3] == 0 {
                    sent.lock().unwrap().push(String::from_utf8_lossy(&packet[4..]).into_owned());
                }
            }
            if to_server.write_all(&piece[..length]).await.is_err() {
                break;
            }
        }
    };
    let answers = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        () = requests => {}
        _ = answers => {}
    }
}

/// Three bytes of length, one of a number, and so many bytes.
fn next_packet(unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    let header = unread.first_chunk::<4>()?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], 0]);
    let end = 4 + usize::try_from(length).unwrap();
    (unread.len() >= end).then(|| unread.drain(..end).collect())
}
