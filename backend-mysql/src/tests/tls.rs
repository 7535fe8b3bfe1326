//! Each `ssl-mode`, against a server whose certificate for `localhost` a throwaway authority has
//! signed, and each way to log in.

use std::path::Path;

use database_locks_core::{ErrorKind, Result};
use database_locks_test_servers::{
    MariaDb, MariaDbProduct, MySql, MySqlProduct, Mysqld, Product, Server as _, Tls,
};

use super::one;
use crate::config::MysqlConfig;
use crate::pool::Connections;

const ENCRYPTED: &str = "SHOW SESSION STATUS LIKE 'Ssl_version'";

/// Connects as the superuser, and answers by which version of TLS, or by an empty string.
async fn connect<P: Product>(server: &Mysqld<P>, host: &str, parameters: &str) -> Result<String> {
    let url = server.url().replace("@127.0.0.1", &format!("@{host}"));
    let config = MysqlConfig::from_url(&format!("{url}?{parameters}"))?;
    let connection = Connections::new(&config)?.shared().await?;
    let (_, version): (String, String) = one(connection, ENCRYPTED).await;
    Ok(version)
}

async fn assert_refused<P: Product>(server: &Mysqld<P>, host: &str, parameters: &str) {
    let error = connect(server, host, parameters).await.expect_err(parameters);
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{parameters}: {error}");
    assert!(error.to_string().contains("ssl-ca"), "{parameters}: {error}");
}

async fn each_mode_encrypts_and_verifies<P: Product>() {
    let server = Mysqld::<P>::builder().tls(Tls::Offered).start().unwrap();
    let files = server.tls_files().unwrap();
    let path = |path: &Path| path.display().to_string();
    let (ca, other) = (path(files.authority()), path(files.stranger()));

    assert_eq!(connect(&server, "localhost", "ssl-mode=disabled").await.unwrap(), "");
    for parameters in ["", "ssl-mode=preferred", "ssl-mode=required"] {
        let version = connect(&server, "localhost", parameters).await.unwrap();
        assert_eq!(version, "TLSv1.3", "{parameters}");
    }
    // 127.0.0.2 is the same server by a name that its certificate does not have.
    for (host, mode) in [
        ("localhost", "verify_identity"),
        ("127.0.0.1", "verify_identity"),
        ("localhost", "verify_ca"),
    ] {
        let trusting = format!("ssl-mode={mode}&ssl-ca={ca}");
        assert_eq!(connect(&server, host, &trusting).await.unwrap(), "TLSv1.3", "{host} {mode}");
    }

    for mode in ["verify_ca", "verify_identity"] {
        assert_refused(&server, "localhost", &format!("ssl-mode={mode}&ssl-ca={other}")).await;
        assert_refused(&server, "localhost", &format!("ssl-mode={mode}")).await;
    }
    assert_refused(&server, "localhost", &format!("ssl-mode=required&ssl-ca={ca}")).await;
    assert_refused(&server, "localhost", "ssl-mode=verify_ca&ssl-ca=/no/such/file.pem").await;
}

async fn name_of_a_certificate_counts_only_for_verify_identity<P: Product>() {
    let server = Mysqld::<P>::builder()
        .tls(Tls::Offered)
        .setting("bind_address", "0.0.0.0")
        .start()
        .unwrap();
    let ca = server.tls_files().unwrap().authority().display().to_string();
    let trusting = |mode: &str| format!("ssl-mode={mode}&ssl-ca={ca}");
    let version = connect(&server, "127.0.0.2", &trusting("verify_ca")).await.unwrap();
    assert_eq!(version, "TLSv1.3");
    assert_refused(&server, "127.0.0.2", &trusting("verify_identity")).await;
}

#[tokio::test]
async fn certificate_that_mysql_makes_itself_is_verified_but_for_its_name() {
    let server = MySql::start().unwrap();
    let ca = server.socket().with_file_name("data").join("ca.pem").display().to_string();
    let version = connect(&server, "127.0.0.1", &format!("ssl-mode=verify_ca&ssl-ca={ca}")).await;
    assert_eq!(version.unwrap(), "TLSv1.3");
    assert_refused(&server, "127.0.0.1", &format!("ssl-mode=verify_identity&ssl-ca={ca}")).await;
}

async fn server_without_tls_is_met_in_plain_only_where_it_may_be<P: Product>() {
    let mut server = Mysqld::<P>::builder();
    if P::NAME == MySqlProduct::NAME {
        // It makes a certificate of its own, and offers TLS with it.
        server = server.setting("tls_version", "");
    }
    let server = server.start().unwrap();
    for parameters in ["", "ssl-mode=preferred", "ssl-mode=disabled"] {
        assert_eq!(connect(&server, "localhost", parameters).await.unwrap(), "", "{parameters}");
    }
    let error = connect(&server, "localhost", "ssl-mode=required").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    assert!(error.to_string().contains("offers no TLS"), "{error}");
}

async fn server_that_requires_tls_says_so<P: Product>() {
    let server = Mysqld::<P>::builder().tls(Tls::Required).start().unwrap();
    connect(&server, "localhost", "").await.unwrap();
    let error = connect(&server, "localhost", "ssl-mode=disabled").await.unwrap_err();
    // MariaDB says no more than that it denies access.
    assert!([ErrorKind::InvalidOption, ErrorKind::Permission].contains(&error.kind()), "{error}");
    assert!(error.to_string().contains("ssl-mode"), "{error}");
}

/// What is tried on each product.
macro_rules! on {
    ($module:ident, $product:ty: $($case:ident)*) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test]
                async fn $case() {
                    super::$case::<$product>().await;
                }
            )*
        }
    };
}

on!(mariadb, MariaDbProduct:
    each_mode_encrypts_and_verifies
    name_of_a_certificate_counts_only_for_verify_identity
    server_without_tls_is_met_in_plain_only_where_it_may_be
    server_that_requires_tls_says_so
);
on!(mysql, MySqlProduct:
    each_mode_encrypts_and_verifies
    name_of_a_certificate_counts_only_for_verify_identity
    server_without_tls_is_met_in_plain_only_where_it_may_be
    server_that_requires_tls_says_so
);

#[tokio::test]
async fn users_log_in_by_each_plugin_of_mariadb() {
    let server = MariaDb::builder().tls(Tls::Offered).start().unwrap();
    server
        .sql(
            "INSTALL SONAME 'auth_ed25519'; \
             CREATE USER native IDENTIFIED VIA mysql_native_password USING PASSWORD('p@ss'); \
             CREATE USER edwards IDENTIFIED VIA ed25519 USING PASSWORD('p@ss'); \
             GRANT ALL ON app.* TO native, edwards",
        )
        .unwrap();
    for mode in ["disabled", "required"] {
        for user in ["native", "edwards"] {
            log_in(&server, user, mode).await;
        }
    }
}

#[tokio::test]
async fn users_log_in_by_caching_sha2_password_of_mysql() {
    let server = MySql::builder().tls(Tls::Offered).start().unwrap();
    // The first login of a user sends the password, encrypted by TLS or by the server's RSA key;
    // later ones prove it.
    for (user, mode) in [("plain", "disabled"), ("encrypted", "required")] {
        server
            .sql(&format!(
                "CREATE USER {user} IDENTIFIED WITH caching_sha2_password BY 'p@ss'; \
                 GRANT ALL ON app.* TO {user}"
            ))
            .unwrap();
        log_in(&server, user, mode).await;
        log_in(&server, user, mode).await;
    }
}

async fn log_in<P: Product>(server: &Mysqld<P>, user: &str, mode: &str) {
    for (password, is_right) in [("p%40ss", true), ("wrong", false)] {
        let port = server.port();
        let url = format!("mysql://{user}:{password}@127.0.0.1:{port}/app?ssl-mode={mode}");
        let connections = Connections::new(&MysqlConfig::from_url(&url).unwrap()).unwrap();
        match connections.shared().await {
            Ok(connection) => {
                assert!(is_right, "{user} {mode}");
                let who: String = one(connection, "SELECT CURRENT_USER()").await;
                assert_eq!(who, format!("{user}@%"), "{mode}");
            }
            Err(error) => {
                assert!(!is_right, "{user} {mode}: {error}");
                assert_eq!(error.kind(), ErrorKind::Permission, "{user} {mode}: {error}");
            }
        }
    }
}
