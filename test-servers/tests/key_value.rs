//! Redis and etcd come up, serve, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "a test is the place to panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use common::{killed_owner_leaves_nothing_behind, listens};
use database_locks_test_servers::{Etcd, Redis, RedisDurability, Server};

mod common;

#[test]
fn dropped_redis_is_gone_with_its_folder() {
    let server = Redis::start().unwrap();
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    assert_eq!(redis(&server, "PING"), "+PONG");
    gone_when_dropped(server);
}

#[test]
fn dropped_etcd_is_gone_with_its_folder_even_while_paused() {
    let server = Etcd::start().unwrap();
    assert_eq!(server.url(), format!("http://127.0.0.1:{}", server.port()));
    server.pause().unwrap();
    gone_when_dropped(server);
}

#[test]
fn killed_redis_comes_back_with_what_it_flushed() {
    let server = Redis::builder().durability(RedisDurability::Always).start().unwrap();
    assert_eq!(redis(&server, "SET n 7"), "+OK");
    server.stop_hard().unwrap();
    assert!(!listens(server.port()));
    server.start_again().unwrap();
    assert_eq!(redis(&server, "STRLEN n"), ":1");
}

#[test]
fn redis_keeps_what_its_durability_says() {
    for (durability, kept) in [
        (RedisDurability::Never, ":0"),
        (RedisDurability::EverySecond, ":1"),
        (RedisDurability::Always, ":1"),
    ] {
        let server = Redis::builder().durability(durability).start().unwrap();
        assert_eq!(redis(&server, "SET n 7"), "+OK");
        server.restart().unwrap();
        assert_eq!(redis(&server, "STRLEN n"), kept, "{durability:?}");
    }
}

#[test]
fn stopped_and_killed_etcd_comes_back_with_its_data() {
    let server = Etcd::start().unwrap();
    // "n" and "7".
    etcd(&server, "put", r#"{"key": "bg==", "value": "Nw=="}"#);
    for stop in [Server::stop, Server::stop_hard] {
        stop(&server).unwrap();
        assert!(!listens(server.port()));
        server.start_again().unwrap();
        let found = etcd(&server, "range", r#"{"key": "bg=="}"#);
        assert!(found.contains(r#""value":"Nw==""#), "{found}");
    }
}

#[test]
fn killed_owner_leaves_no_redis_behind() {
    killed_owner_leaves_nothing_behind("redis");
}

#[test]
fn killed_owner_leaves_no_etcd_behind() {
    killed_owner_leaves_nothing_behind("etcd");
}

fn gone_when_dropped(server: impl Server) {
    let (port, folder) = (server.port(), server.folder().to_owned());
    drop(server);
    assert!(!folder.exists() && !listens(port));
}

/// The first line of the answer.
fn redis(server: &Redis, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    write!(stream, "{command}\r\n").unwrap();
    BufReader::new(stream).lines().next().unwrap().unwrap()
}

/// The whole answer of the gateway that speaks JSON.
fn etcd(server: &Etcd, call: &str, json: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let length = json.len();
    write!(stream, "POST /v3/kv/{call} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{json}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
    answer
}
