//! A TCP proxy in front of a server: faults of the network, its latency, and what passes over it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// A TCP proxy on 127.0.0.1 that lives in this process. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

/// What has passed a [`Proxy`] since it was started, as its clients see it. Closed connections count too.
///
/// Whoever has the answer to a request finds both counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes that clients sent, also those that a fault holds back.
    pub to_server: u64,
    /// Bytes that were sent to clients.
    pub to_client: u64,
    /// How often a client had to wait for the network: something came for it after it had sent something. Requests
    /// that a client sends without waiting for answers are one round trip, if the [delay](Proxy::delay) leaves it the
    /// time to send them all.
    pub round_trips: u64,
    /// Connections that clients opened.
    pub connections: u64,
}

impl Traffic {
    /// What has passed since an earlier moment.
    #[must_use]
    pub fn since(self, earlier: Traffic) -> Traffic {
        Traffic {
            to_server: self.to_server - earlier.to_server,
            to_client: self.to_client - earlier.to_client,
            round_trips: self.round_trips - earlier.round_trips,
            connections: self.connections - earlier.connections,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    delay: Duration,
    closed: bool,
    traffic: Traffic,
    /// Both ends of each connection.
    connections: Vec<(TcpStream, TcpStream)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// Nothing passes in either direction.
    BlackHole,
    /// What clients send passes; the first answer that comes cuts its connection.
    CutBeforeAnswer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// What was read at once, on its way. An empty one is the end of the stream.
struct Piece {
    bytes: Vec<u8>,
    due: Instant,
}

impl Proxy {
    /// Starts a proxy in front of a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When no port is free.
    pub fn start(server_port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.state().closed {
                    return;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)) else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let _ = accepting.connect(&client, &server);
            }
        });
        Ok(Self { port, shared })
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing passes, on old connections and new ones; they stay open.
    pub fn black_hole(&self) {
        self.shared.set(Fault::BlackHole);
    }

    /// From now on requests pass, and the first answer cuts its connection instead of passing: the
    /// server has done the work, and the client does not know.
    pub fn cut_before_answer(&self) {
        self.shared.set(Fault::CutBeforeAnswer);
    }

    /// Lets everything pass again; what was held back in a black hole passes too.
    pub fn resume(&self) {
        self.shared.set(Fault::None);
    }

    /// From now on everything is passed on this long after it came, in each direction, however much is under way: a
    /// round trip takes twice as long, and a stream is not slowed down.
    pub fn delay(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// Cuts all connections that are open now.
    pub fn cut(&self) {
        for (client, server) in self.shared.state().connections.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// What has passed so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.shared.state().traffic
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.set(Fault::None);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, fault: Fault) {
        self.state().fault = fault;
        self.changed.notify_all();
    }

    fn connect(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) -> Result<()> {
        let mut state = self.state();
        state.connections.push((client.try_clone()?, server.try_clone()?));
        state.traffic.connections += 1;
        drop(state);
        let asked = Arc::new(AtomicBool::new(false));
        let ends = [
            (client.try_clone()?, server.try_clone()?, Direction::ToServer),
            (server.try_clone()?, client.try_clone()?, Direction::ToClient),
        ];
        for (from, to, direction) in ends {
            let (sender, pieces) = mpsc::channel();
            let (reading, reading_from, reading_asked) =
                (Arc::clone(self), from.try_clone()?, Arc::clone(&asked));
            thread::spawn(move || {
                reading.read(&reading_from, &sender, direction, &reading_asked);
            });
            let (writing, asked) = (Arc::clone(self), Arc::clone(&asked));
            thread::spawn(move || {
                writing.write(&pieces, &to, direction, &asked);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }

    fn read(
        &self,
        mut from: &TcpStream,
        pieces: &Sender<Piece>,
        direction: Direction,
        asked: &AtomicBool,
    ) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            let mut state = self.state();
            if direction == Direction::ToServer && length > 0 {
                state.traffic.to_server += length as u64;
                asked.store(true, Ordering::Relaxed);
            }
            let due = Instant::now() + state.delay;
            drop(state);
            let sent = pieces.send(Piece { bytes: buffer[..length].to_vec(), due });
            if sent.is_err() || length == 0 {
                return;
            }
        }
    }

    fn write(
        &self,
        pieces: &Receiver<Piece>,
        mut to: &TcpStream,
        direction: Direction,
        asked: &AtomicBool,
    ) {
        for Piece { bytes, due } in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let mut state = self.state();
            while state.fault == Fault::BlackHole {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let answers = direction == Direction::ToClient;
            if bytes.is_empty() || (answers && state.fault == Fault::CutBeforeAnswer) {
                return;
            }
            if answers {
                state.traffic.to_client += bytes.len() as u64;
                state.traffic.round_trips += u64::from(asked.swap(false, Ordering::Relaxed));
            }
            drop(state);
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with the next one.
    fn server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut byte = [0];
                    while client.read_exact(&mut byte).is_ok() {
                        client.write_all(&[byte[0] + 1]).unwrap();
                    }
                });
            }
        });
        port
    }

    fn ask(client: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        let mut answer = [byte];
        client.write_all(&answer)?;
        client.read_exact(&mut answer)?;
        Ok(answer[0])
    }

    #[test]
    fn passes_holds_back_and_cuts() {
        let proxy = Proxy::start(server()).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        assert_eq!(ask(&mut client, 1).unwrap(), 2);

        proxy.black_hole();
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(ask(&mut client, 3).is_err(), "nothing comes out of a black hole");
        proxy.resume();
        // Generous: a busy machine may take its time to pass on what was held back.
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut late = [0];
        client.read_exact(&mut late).unwrap();
        assert_eq!(late, [4]);

        proxy.cut_before_answer();
        assert!(ask(&mut client, 5).is_err());
        proxy.resume();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        assert_eq!(ask(&mut client, 6).unwrap(), 7);
        proxy.cut();
        assert!(ask(&mut client, 8).is_err());
    }

    #[test]
    fn bytes_and_round_trips_are_counted_on_open_and_closed_connections() {
        let proxy = Proxy::start(server()).unwrap();
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let (mut first, mut second) = (connect(), connect());
        ask(&mut first, 1).unwrap();
        ask(&mut first, 1).unwrap();
        ask(&mut second, 1).unwrap();
        drop((first, second));
        let before = proxy.traffic();
        let counts = Traffic { to_server: 3, to_client: 3, round_trips: 3, connections: 2 };
        assert_eq!(before, counts);

        // Long enough that all of it is sent before the first answer comes.
        proxy.delay(Duration::from_millis(500));
        let mut third = connect();
        for byte in 1..=3 {
            third.write_all(&[byte]).unwrap();
        }
        third.read_exact(&mut [0; 3]).unwrap();
        let counts = Traffic { to_server: 3, to_client: 3, round_trips: 1, connections: 1 };
        assert_eq!(proxy.traffic().since(before), counts);
    }

    #[test]
    fn what_a_server_says_unasked_is_no_round_trip() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        listener.accept().unwrap().0.write_all(&[1, 2]).unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(proxy.traffic().round_trips, 0);
        assert_eq!(proxy.traffic().to_client, 2);
    }

    #[test]
    fn what_does_not_pass_is_not_counted_as_an_answer() {
        let proxy = Proxy::start(server()).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        proxy.cut_before_answer();
        assert!(ask(&mut client, 1).is_err());
        assert_eq!(proxy.traffic().round_trips, 0);
        assert_eq!(proxy.traffic().to_client, 0);
    }

    #[test]
    fn delayed_pieces_do_not_queue_up_behind_each_other() {
        const PIECES: u8 = 100;
        const DELAY: Duration = Duration::from_millis(200);
        let proxy = Proxy::start(server()).unwrap();
        proxy.delay(DELAY);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        client.set_nodelay(true).unwrap();
        let start = Instant::now();
        for byte in 0..PIECES {
            client.write_all(&[byte]).unwrap();
            // Pieces of their own, not one.
            thread::sleep(Duration::from_millis(2));
        }
        let mut answers = [0; PIECES as usize];
        client.read_exact(&mut answers).unwrap();
        let took = start.elapsed();
        assert_eq!(answers.to_vec(), (1..=PIECES).collect::<Vec<_>>());
        assert!(took >= 2 * DELAY, "{took:?}");
        // One after the other they take a hundred delays. Generous: the machine may be busy.
        assert!(took < 50 * DELAY, "{took:?}");
    }

    #[test]
    fn what_is_under_way_falls_into_a_black_hole_and_comes_out_of_it_in_order() {
        let proxy = Proxy::start(server()).unwrap();
        proxy.delay(Duration::from_millis(100));
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        client.write_all(&[1]).unwrap();
        proxy.black_hole();
        client.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        assert!(client.read_exact(&mut [0]).is_err(), "nothing comes out of a black hole");
        client.write_all(&[5]).unwrap();
        proxy.resume();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answers = [0; 2];
        client.read_exact(&mut answers).unwrap();
        assert_eq!(answers, [2, 6]);
    }

    #[test]
    fn an_end_comes_after_what_was_sent_before_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).unwrap();
        proxy.delay(Duration::from_millis(50));
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        client.write_all(&[1, 2, 3]).unwrap();
        drop(client);
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        assert_eq!(received, [1, 2, 3]);
    }
}
