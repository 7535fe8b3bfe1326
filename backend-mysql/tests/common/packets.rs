//! Counts what a client sends, and holds it back: a proxy that reads the protocol.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks_test_servers::Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy on a free port of 127.0.0.1, for clients without TLS.
pub struct Packets {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sent: Mutex<Vec<String>>,
    /// Whether packets that begin a transaction are held back.
    is_shut: AtomicBool,
    /// Whether one is.
    holds: AtomicBool,
}

impl Packets {
    /// Starts a proxy in front of a server on 127.0.0.1, within the test's runtime.
    pub async fn start(server: &Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let (server, all) = (host_and_port(server.url()).to_owned(), Arc::clone(&shared));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&all)));
            }
        });
        Self { port, shared }
    }

    /// The server, by way of the proxy, without TLS.
    pub fn url(&self, server: &Access) -> String {
        format!("{}?ssl-mode=disabled", server.at_port(self.port).url())
    }

    /// Holds back what is to be written, from now on.
    pub fn shut(&self) {
        self.shared.is_shut.store(true, SEEN);
    }

    /// Waits until something is held back.
    pub async fn held(&self) {
        while !self.shared.holds.load(SEEN) {
            tokio::time::sleep(A_MOMENT).await;
        }
    }

    pub fn open(&self) {
        self.shared.is_shut.store(false, SEEN);
    }

    /// The commands that clients have sent since this was last asked for, as they were sent.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.sent.lock().unwrap())
    }
}

const SEEN: Ordering = Ordering::SeqCst;
const A_MOMENT: Duration = Duration::from_millis(2);

pub fn host_and_port(url: &str) -> &str {
    let (_, rest) = url.rsplit_once('@').unwrap();
    rest.split('/').next().unwrap()
}

async fn pass(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let (mut piece, mut unread) = (vec![0; 16 * 1024], Vec::new());
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            unread.extend_from_slice(&piece[..length]);
            while let Some(packet) = next_packet(&mut unread) {
                // Only the first packet of a command has the number 0.
                if packet[3] == 0 {
                    let text = String::from_utf8_lossy(&packet[4..]).into_owned();
                    while text.contains("START TRANSACTION") && shared.is_shut.load(SEEN) {
                        shared.holds.store(true, SEEN);
                        tokio::time::sleep(A_MOMENT).await;
                    }
                    shared.holds.store(false, SEEN);
                    shared.sent.lock().unwrap().push(text);
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
