//! MariaDB and MySQL come up, serve, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "a test is the place to panic")]

use std::ops::Deref;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{killed_owner_leaves_nothing_behind, listens};
use database_locks_test_servers::{
    Access, ClockStep, MariaDb, MySql, Mysqld, Product, Server as _,
};

mod common;

/// The same tests for each product.
macro_rules! tests_of {
    ($server:ident, $name:literal) => {
        #[test]
        fn settings_reach_the_server_whose_databases_are_separate_and_as_they_were_asked_for() {
            settings_and_databases(
                $server::builder().setting("init_connect", "SET @a = 'b c'").start(),
            );
        }

        #[test]
        fn databases_of_the_shared_server_are_dropped_also_when_they_are_in_use() {
            shared_databases($server::shared().unwrap());
        }

        #[test]
        fn only_a_durable_server_waits_for_the_disk() {
            let show = "SELECT @@innodb_flush_log_at_trx_commit, @@innodb_flush_method = 'nosync', @@max_connections";
            assert_eq!($server::start().unwrap().sql(show).unwrap(), "2|1|300");
            let durable = $server::builder().durable().start().unwrap();
            assert_eq!(durable.sql(show).unwrap(), "1|0|300");
        }

        #[test]
        fn refused_setting_is_an_error_with_the_servers_words() {
            let refused = $server::builder().setting("no_such_setting", "1").start();
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("no_such_setting"), "{message}");
        }

        #[test]
        fn stopped_and_killed_servers_come_back_with_their_data() {
            stop_and_kill(&$server::start().unwrap());
        }

        #[test]
        fn clock_is_set_both_ways_and_waits_take_as_long_as_ever() {
            set_clock(&$server::builder().steppable().start().unwrap());
        }

        #[test]
        fn two_servers_started_at_once_pause_alone_and_are_gone_when_dropped() {
            let other = thread::spawn($server::start);
            let server = $server::start().unwrap();
            let other = other.join().unwrap().unwrap();
            pause_and_drop(server, &other);
        }

        #[test]
        fn killed_owner_leaves_no_server_behind() {
            killed_owner_leaves_nothing_behind($name);
        }

        #[cfg(feature = "tls")]
        #[test]
        fn tls_is_required_and_its_certificate_is_of_the_throwaway_authority() {
            use database_locks_test_servers::Tls;
            tls_is_required(&$server::builder().tls(Tls::Required).start().unwrap());
            tls_is_offered(&$server::builder().tls(Tls::Offered).start().unwrap());
        }
    };
}

mod mariadb {
    use super::*;

    tests_of!(MariaDb, "mariadb");

    #[cfg(feature = "tls")]
    #[test]
    fn tls_is_off_unless_it_is_asked_for() {
        assert_eq!(cipher(MariaDb::shared().unwrap(), &[]).unwrap(), "");
    }
}

mod mysql {
    use super::*;

    tests_of!(MySql, "mysql");
}

fn settings_and_databases<P: Product>(server: database_locks_test_servers::Result<Mysqld<P>>) {
    let server = server.unwrap();
    let app = "SELECT 40 + 2, NULL, DATABASE(), CURRENT_USER(); SELECT 'ü'";
    assert_eq!(server.sql(app).unwrap(), "42|NULL|app|root@%\nü");
    assert_eq!(server.sql("SELECT @@init_connect").unwrap(), "SET @a = 'b c'");
    assert_eq!(server.sql("SELECT @@bind_address").unwrap(), "127.0.0.1");
    assert!(server.socket().exists());
    let message = server.sql("CREATE TABLE done (n int); SELECT nonsense; SELECT 1").unwrap_err();
    assert!(message.to_string().contains("ERROR 1054 (42S22)"), "{message}");
    assert_eq!(server.sql("SHOW TABLES").unwrap(), "done");
    let roots = "SELECT host FROM mysql.user WHERE user = 'root'";
    assert_eq!(server.sql(roots).unwrap(), "%");
    assert!(server.as_user("root", "wrong").sql("SELECT 1").is_err());
    assert_eq!(server.in_database("").sql("SELECT DATABASE()").unwrap(), "NULL");

    let collation = "SELECT @@character_set_database, @@collation_database";
    let latin1 = server.database_with("CHARACTER SET latin1 COLLATE latin1_bin").unwrap();
    assert_eq!(latin1.sql(collation).unwrap(), "latin1|latin1_bin");
    let utf8 = server.database().unwrap();
    assert!(utf8.sql(collation).unwrap().starts_with("utf8mb4|"));
    latin1.sql("CREATE TABLE t (n int)").unwrap();
    utf8.sql("CREATE TABLE t (n int)").unwrap();

    server.sql("CREATE USER worker IDENTIFIED BY 'p:w'; GRANT SELECT ON *.* TO worker").unwrap();
    let worker = utf8.as_user("worker", "p:w");
    assert_eq!(worker.sql("SELECT COUNT(*), CURRENT_USER() FROM t").unwrap(), "0|worker@%");
}

fn shared_databases(shared: &Access) {
    let database = shared.database().unwrap();
    let name = database.database_name().to_owned();
    let exists =
        format!("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = '{name}'");
    database.sql("CREATE TABLE t (n int)").unwrap();
    assert_eq!(shared.sql(&exists).unwrap(), "1");
    let inside = database.in_database(&name);
    let user = thread::spawn(move || {
        inside.sql("BEGIN; INSERT INTO t VALUES (1); SELECT SLEEP(60) FROM t")
    });
    let sleeping = format!(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{name}' AND info LIKE 'SELECT SLEEP%'"
    );
    while shared.sql(&sleeping).unwrap() == "0" {
        assert!(!user.is_finished());
    }
    drop(database);
    assert_eq!(shared.sql(&exists).unwrap(), "0");
    assert!(user.join().unwrap().is_err(), "its connection was ended");
}

fn stop_and_kill(server: &(impl Deref<Target = Access> + database_locks_test_servers::Server)) {
    let port = server.port();
    server.sql("CREATE TABLE t AS SELECT 7 AS n").unwrap();

    server.restart().unwrap();
    assert_eq!(server.sql("SELECT n FROM t").unwrap(), "7");

    server.sql("INSERT INTO t VALUES (8)").unwrap();
    server.stop_hard().unwrap();
    assert!(!listens(port));
    assert!(server.stop().is_err(), "it is not running");
    server.start_again().unwrap();
    assert_eq!(server.sql("SELECT n FROM t ORDER BY n").unwrap(), "7\n8");
    assert_eq!(server.port(), port);
}

fn set_clock(server: &(impl Deref<Target = Access> + database_locks_test_servers::Server)) {
    let hour = Duration::from_secs(3600);
    let hours_ahead = || {
        let now = server.sql("SELECT UNIX_TIMESTAMP(SYSDATE(6))").unwrap().parse::<f64>().unwrap();
        let here = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        ((now - here) / 3600.0).round()
    };
    assert_eq!(hours_ahead(), 0.0);
    for (step, ahead) in [(ClockStep::Forward(hour), 1.0), (ClockStep::Back(hour * 3), -2.0)] {
        server.step_clock(step).unwrap();
        assert_eq!(hours_ahead(), ahead);
        let started = Instant::now();
        assert_eq!(server.sql("SELECT SLEEP(0.5)").unwrap(), "0");
        // Much less than an hour, on the busiest machine.
        assert!((Duration::from_millis(400)..hour / 60).contains(&started.elapsed()));
    }
}

fn pause_and_drop<P: Product>(server: Mysqld<P>, other: &Mysqld<P>) {
    let (port, folder) = (server.port(), server.folder().to_owned());
    thread::scope(|scope| {
        let old = scope.spawn(|| server.sql("SELECT SLEEP(1)"));
        let running =
            "SELECT COUNT(*) FROM information_schema.processlist WHERE info = 'SELECT SLEEP(1)'";
        while server.sql(running).unwrap() == "0" {
            assert!(!old.is_finished());
        }
        server.pause().unwrap();
        let new = scope.spawn(|| server.sql("SELECT 2"));
        // Longer than either would take, were the server not paused.
        thread::sleep(Duration::from_secs(2));
        let answered = old.is_finished() || new.is_finished();
        assert_eq!(other.sql("SELECT 3").unwrap(), "3");
        server.resume().unwrap();
        assert!(!answered);
        assert_eq!(old.join().unwrap().unwrap(), "0");
        assert_eq!(new.join().unwrap().unwrap(), "2");
    });
    server.pause().unwrap();
    drop(server);
    assert!(!folder.exists());
    assert!(!listens(port));
}

#[cfg(feature = "tls")]
fn tls_is_required<P: Product>(server: &Mysqld<P>) {
    let files = server.tls_files().unwrap();
    let verify = |authority: &std::path::Path| {
        let authority = format!("--ssl-ca={}", authority.display());
        cipher(server, &[&authority, "--ssl-verify-server-cert"])
    };
    assert!(verify(files.authority()).unwrap().starts_with("TLS_"));
    let unrelated = verify(files.stranger()).unwrap_err();
    assert!(unrelated.contains("ERROR 2026"), "{unrelated}");
    let plain = cipher(server, &["--skip-ssl"]).unwrap_err();
    // MySQL says what is wrong, and MariaDB that access is denied.
    assert!(plain.contains("ERROR 3159") || plain.contains("ERROR 1045"), "{plain}");
    assert_eq!(server.sql("SELECT @@require_secure_transport").unwrap(), "1");
}

#[cfg(feature = "tls")]
fn tls_is_offered<P: Product>(server: &Mysqld<P>) {
    // MySQL lets this client in without TLS only once it has been there with it.
    server.sql("SELECT 1").unwrap();
    assert_eq!(cipher(server, &["--skip-ssl"]).unwrap(), "");
    let authority = format!("--ssl-ca={}", server.tls_files().unwrap().authority().display());
    assert!(cipher(server, &[&authority]).unwrap().starts_with("TLS_"));
}

/// How a client's connection is encrypted, or else what the client says.
#[cfg(feature = "tls")]
fn cipher(server: &Access, arguments: &[&str]) -> Result<String, String> {
    // mysql://root:PASSWORD@127.0.0.1:PORT/app
    let mut parts = server.url().split(&[':', '@', '/']).filter(|part| !part.is_empty()).skip(2);
    let (password, host, port) =
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let output = std::process::Command::new("mariadb")
        .args(["--no-defaults", "--batch", "--skip-column-names", "--protocol=tcp", "--user=root"])
        .args(["--host", host, "--port", port, "--execute", "SHOW STATUS LIKE 'ssl_cipher'"])
        .args(arguments)
        .env("MYSQL_PWD", password)
        .output()
        .expect("mariadb starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if !output.status.success() {
        return Err(text(output.stderr));
    }
    Ok(text(output.stdout).trim_start_matches("Ssl_cipher").trim().to_owned())
}
