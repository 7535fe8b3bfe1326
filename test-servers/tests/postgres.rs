//! Postgres and `PgBouncer` come up, serve, and leave nothing behind.

use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use common::killed_owner_leaves_nothing_behind;
use database_locks_test_servers::{ClockStep, PgBouncer, PoolMode, Postgres, Server as _};

mod common;

#[test]
fn a_dropped_server_is_gone_with_its_folder() {
    let server = Postgres::start().unwrap();
    let folder = server.socket_dir().to_owned();
    assert_eq!(server.sql("SELECT 40 + 2").unwrap().trim(), "42");
    server.stop_hard().unwrap();
    server.start_again().unwrap();
    assert_eq!(server.sql("SELECT 1").unwrap().trim(), "1");
    drop(server);
    assert!(!folder.exists());
}

#[test]
fn databases_of_the_shared_server_are_separate_also_through_the_pooler() {
    let (one, two) = (
        Postgres::shared().unwrap().database().unwrap(),
        PgBouncer::shared().unwrap().database().unwrap(),
    );
    one.sql("CREATE TABLE t (n int)").unwrap();
    two.sql("CREATE TABLE t (n int)").unwrap();
    assert_ne!(one.url(), two.url());
}

#[test]
fn a_killed_process_leaves_no_server_behind() {
    killed_owner_leaves_nothing_behind("postgres");
}

#[test]
fn settings_reach_the_server() {
    let server = Postgres::builder()
        .setting("default_transaction_isolation", "repeatable read")
        .start()
        .unwrap();
    assert_eq!(server.sql("SHOW default_transaction_isolation").unwrap(), "repeatable read");
    assert_eq!(server.sql("SHOW listen_addresses").unwrap(), "127.0.0.1");
    assert!(server.data_dir().join("PG_VERSION").exists());
}

#[test]
fn clock_is_set_both_ways() {
    let server = Postgres::builder().steppable().start().unwrap();
    let hour = Duration::from_secs(3600);
    let hours_ahead = || {
        let sql = "SELECT extract(epoch FROM clock_timestamp())";
        let now = server.sql(sql).unwrap().trim().parse::<f64>().unwrap();
        let here = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        ((now - here) / 3600.0).round()
    };
    assert_eq!(hours_ahead(), 0.0);
    for (step, ahead) in [(ClockStep::Forward(hour), 1.0), (ClockStep::Back(hour * 3), -2.0)] {
        server.step_clock(step).unwrap();
        assert_eq!(hours_ahead(), ahead);
    }
    let refused = Postgres::start().unwrap().step_clock(ClockStep::Back(hour)).unwrap_err();
    assert!(refused.to_string().contains("steppable"), "{refused}");
}

#[test]
fn only_a_durable_server_waits_for_the_disk() {
    let show = "SHOW fsync; SHOW max_connections";
    assert_eq!(Postgres::start().unwrap().sql(show).unwrap(), "off\n300");
    assert_eq!(Postgres::builder().durable().start().unwrap().sql(show).unwrap(), "on\n300");
}

#[test]
fn cpu_time_is_that_of_running_children_and_of_those_that_have_ended() {
    let server = Postgres::start().unwrap();
    let work =
        "DO $$ DECLARE n int := 0; BEGIN FOR i IN 1..20000000 LOOP n := n + 1; END LOOP; END $$";
    let before = server.cpu_time().unwrap();
    let during = thread::scope(|scope| {
        let working = scope.spawn(|| server.sql(work));
        let mut during = server.cpu_time().unwrap();
        while during - before < Duration::from_millis(200) {
            assert!(!working.is_finished());
            thread::sleep(Duration::from_millis(10));
            during = server.cpu_time().unwrap();
        }
        working.join().unwrap().unwrap();
        during
    });
    assert!(server.cpu_time().unwrap() >= during);
    server.stop_hard().unwrap();
    assert!(server.cpu_time().is_err(), "it is not running");
}

#[test]
fn refused_setting_is_an_error_with_the_servers_words() {
    let message =
        Postgres::builder().setting("no_such_setting", "1").start().unwrap_err().to_string();
    assert!(message.contains("no_such_setting"), "{message}");
}

#[test]
fn stopped_and_killed_servers_come_back_with_their_data() {
    let server = Postgres::start().unwrap();
    let port = server.port();
    server.sql("CREATE TABLE t AS SELECT 7 AS n").unwrap();

    server.restart().unwrap();
    assert_eq!(server.sql("SELECT n FROM t").unwrap(), "7");

    server.stop_hard().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(server.stop().is_err(), "it is not running");
    server.start_again().unwrap();
    assert_eq!(server.sql("SELECT n FROM t").unwrap(), "7");
    assert_eq!(server.port(), port);
}

#[test]
fn paused_server_answers_neither_old_nor_new_connections_until_it_is_resumed() {
    let server = Postgres::start().unwrap();
    thread::scope(|scope| {
        let old = scope.spawn(|| server.sql("SELECT 1 FROM pg_sleep(1)"));
        let running = "SELECT count(*) FROM pg_stat_activity \
                       WHERE query LIKE '%pg_sleep(1)%' AND pid <> pg_backend_pid()";
        while server.sql(running).unwrap() == "0" {
            assert!(!old.is_finished());
        }
        server.pause().unwrap();
        let new = scope.spawn(|| server.sql("SELECT 2"));
        // Longer than either would take, were the server not paused.
        thread::sleep(Duration::from_secs(2));
        let answered = old.is_finished() || new.is_finished();
        server.resume().unwrap();
        assert!(!answered);
        assert_eq!(old.join().unwrap().unwrap(), "1");
        assert_eq!(new.join().unwrap().unwrap(), "2");
    });
}

#[test]
fn dropped_server_is_gone_even_while_paused() {
    let server = Postgres::start().unwrap();
    let (port, folder) = (server.port(), server.socket_dir().to_owned());
    server.pause().unwrap();
    drop(server);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn pgbouncer_serves_fresh_databases_and_fresh_roles() {
    let postgres = Postgres::start().unwrap();
    let bouncer = PgBouncer::start(&postgres, PoolMode::Transaction).unwrap();
    let database = bouncer.database().unwrap();
    assert_ne!(bouncer.port(), postgres.port());
    database.sql("CREATE ROLE worker LOGIN PASSWORD 'p:w'").unwrap();
    assert_eq!(database.as_user("worker", "p:w").sql("SELECT current_user").unwrap(), "worker");
    assert!(database.as_user("worker", "wrong").sql("SELECT 1").is_err());
    bouncer.restart().unwrap();
    assert_eq!(database.sql("SELECT current_database()").unwrap(), database.database_name());
}

#[test]
fn shared_pgbouncer_pools_transactions() {
    let database = PgBouncer::shared().unwrap().database().unwrap();
    // Startup options are refused by a pooler that is left at its defaults.
    let url = format!("{}?options=-c%20geqo%3Doff", database.url());
    let message = psql_error(&url);
    assert!(message.contains("unsupported startup parameter"), "{message}");
}

#[cfg(feature = "tls")]
#[test]
fn tls_is_checked_against_the_throwaway_authority() {
    use std::path::Path;

    use database_locks_test_servers::Tls;

    let server = Postgres::builder().tls(Tls::Required).start().unwrap();
    let files = server.tls_files().unwrap();
    let with = |parameters: &str| format!("{}?{parameters}", server.url());
    let verified = |ca: &Path| with(&format!("sslmode=verify-full&sslrootcert={}", ca.display()));

    assert_eq!(psql(&verified(files.authority())), Ok("t".to_owned()));
    let unrelated = psql_error(&verified(files.stranger()));
    assert!(unrelated.contains("certificate verify failed"), "{unrelated}");
    let plain = psql_error(&with("sslmode=disable"));
    assert!(plain.contains("no encryption"), "{plain}");
}

fn psql(url: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "--dbname", url])
        .args(["--command", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
        .output()
        .expect("psql starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn psql_error(url: &str) -> String {
    psql(url).expect_err("psql must fail")
}
