//! Each `sslmode`, against a server whose certificate for `localhost` a throwaway CA has signed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use database_locks_core::{ErrorKind, Result};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use database_locks_test_servers::{Postgres, Tls};
use tokio_postgres::NoTls;
use uuid::Uuid;

struct Encrypted(Postgres);

impl Encrypted {
    fn start() -> Self {
        Self(Postgres::builder().tls(Tls::Offered).start().unwrap())
    }

    fn authority(&self) -> &str {
        self.0.tls_files().unwrap().authority().to_str().unwrap()
    }

    fn stranger(&self) -> &str {
        self.0.tls_files().unwrap().stranger().to_str().unwrap()
    }

    /// Connects under a name for the host, and answers whether the connection was encrypted.
    async fn connect(&self, host: &str, parameters: &str) -> Result<bool> {
        let label = Uuid::new_v4().to_string();
        let url = self.0.url().replace("@127.0.0.1", &format!("@{host}"));
        // More time than anybody needs: some of the processes beside this one may have the machine.
        let url = format!(
            "{url}?hostaddr=127.0.0.1&connect_timeout=60&application_name={label}&{parameters}"
        );
        let backend = PostgresBackend::connect(PostgresConfig::from_url(&url)?).await?;
        let (client, connection) = tokio_postgres::connect(self.0.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = "select ssl from pg_stat_ssl join pg_stat_activity using (pid)
                   where application_name = $1";
        let encrypted = client.query_one(sql, &[&label]).await.unwrap().get(0);
        drop(backend);
        Ok(encrypted)
    }

    async fn assert_refused(&self, host: &str, parameters: &str) {
        let error = self.connect(host, parameters).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{parameters}: {error}");
        assert!(error.to_string().contains("sslrootcert"), "{error}");
    }
}

#[tokio::test]
async fn each_mode_encrypts_and_verifies_as_libpq_does() {
    let server = Encrypted::start();
    let (ca, other) = (server.authority(), server.stranger());
    assert!(!server.connect("localhost", "sslmode=disable").await.unwrap());
    assert!(server.connect("localhost", "sslmode=prefer").await.unwrap());
    assert!(server.connect("localhost", "sslmode=require").await.unwrap());

    for (host, mode) in [
        ("localhost", "verify-full"),
        ("localhost", "verify-ca"),
        ("elsewhere.example", "verify-ca"),
    ] {
        let trusting = format!("sslmode={mode}&sslrootcert={ca}");
        assert!(server.connect(host, &trusting).await.unwrap(), "{host} {mode}");
    }
    assert!(
        server
            .connect("elsewhere.example", &format!("sslmode=require&sslrootcert={ca}"))
            .await
            .unwrap()
    );

    server
        .assert_refused("elsewhere.example", &format!("sslmode=verify-full&sslrootcert={ca}"))
        .await;
    for mode in ["require", "verify-ca", "verify-full"] {
        server.assert_refused("localhost", &format!("sslmode={mode}&sslrootcert={other}")).await;
    }
    server.assert_refused("localhost", "sslmode=verify-full").await;
    let missing = "sslmode=verify-full&sslrootcert=/no/such/file.pem";
    server.assert_refused("localhost", missing).await;
}

#[tokio::test]
async fn password_is_proven_with_and_without_channel_binding() {
    let server = Encrypted::start();
    for binding in ["disable", "prefer", "require"] {
        let parameters = format!(
            "sslmode=verify-full&sslrootcert={}&channel_binding={binding}",
            server.authority()
        );
        assert!(server.connect("localhost", &parameters).await.unwrap(), "{binding}");
    }
}
