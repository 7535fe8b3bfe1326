//! A TCP proxy in front of a server, for faults of the network.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// A TCP proxy on 127.0.0.1 that lives in this process. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
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

    /// Delays every piece by this much, in each direction.
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
        self.state().connections.push((client.try_clone()?, server.try_clone()?));
        let ends = [
            (client.try_clone()?, server.try_clone()?, Direction::ToServer),
            (server.try_clone()?, client.try_clone()?, Direction::ToClient),
        ];
        for (from, to, direction) in ends {
            let shared = Arc::clone(self);
            thread::spawn(move || {
                shared.pump(&from, &to, direction);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, direction: Direction) {
        let mut piece = [0; 16 * 1024];
        while let Ok(length) = from.read(&mut piece) {
            let mut state = self.state();
            while state.fault == Fault::BlackHole {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let (cut, delay) = (
                state.fault == Fault::CutBeforeAnswer && direction == Direction::ToClient,
                state.delay,
            );
            drop(state);
            if cut || length == 0 {
                return;
            }
            thread::sleep(delay);
            if to.write_all(&piece[..length]).is_err() {
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
}
