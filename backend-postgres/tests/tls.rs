//! Each `sslmode`, against a server whose certificate for `localhost` a throwaway CA has signed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use database_locks_core::{ErrorKind, Result};
use database_locks_postgres::{PostgresBackend, PostgresConfig};
use tokio_postgres::NoTls;
use uuid::Uuid;

struct Server {
    /// A superuser on `localhost`, with a port.
    url: String,
    /// The file of the CA's certificate.
    ca: String,
    /// The file of a CA that has signed nothing.
    other_ca: tempfile::NamedTempFile,
}

impl Server {
    fn new() -> Self {
        let get = |name: &str, what: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("set {name} to {what}"))
        };
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        let other_ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(other_ca.path(), other.cert.pem()).unwrap();
        Self {
            url: get(
                "DATABASE_LOCKS_TEST_POSTGRES_TLS_URL",
                "the URL of a superuser at localhost on a throwaway Postgres with ssl=on, whose \
                 certificate is for localhost",
            ),
            ca: get("DATABASE_LOCKS_TEST_POSTGRES_TLS_CA", "the PEM file of its CA"),
            other_ca,
        }
    }

    fn other_ca(&self) -> &str {
        self.other_ca.path().to_str().unwrap()
    }

    /// Connects, and answers whether the connection was encrypted.
    async fn connect(&self, host: &str, parameters: &str) -> Result<bool> {
        let label = Uuid::new_v4().to_string();
        let separator = if self.url.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{separator}application_name={label}&{parameters}",
            self.url.replace("localhost", host)
        );
        let backend = PostgresBackend::connect(PostgresConfig::from_url(&url)?).await?;
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
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
    let server = Server::new();
    let (ca, other) = (&server.ca, server.other_ca());
    assert!(!server.connect("localhost", "sslmode=disable").await.unwrap());
    assert!(server.connect("localhost", "sslmode=prefer").await.unwrap());
    assert!(server.connect("localhost", "sslmode=require").await.unwrap());

    for (host, mode) in
        [("localhost", "verify-full"), ("localhost", "verify-ca"), ("127.0.0.1", "verify-ca")]
    {
        let trusting = format!("sslmode={mode}&sslrootcert={ca}");
        assert!(server.connect(host, &trusting).await.unwrap(), "{host} {mode}");
    }
    assert!(
        server.connect("127.0.0.1", &format!("sslmode=require&sslrootcert={ca}")).await.unwrap()
    );

    server.assert_refused("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        server.assert_refused("localhost", &format!("sslmode={mode}&sslrootcert={other}")).await;
    }
    server.assert_refused("localhost", "sslmode=verify-full").await;
    let missing = "sslmode=verify-full&sslrootcert=/no/such/file.pem";
    server.assert_refused("localhost", missing).await;
}

#[tokio::test]
async fn password_is_proven_with_and_without_channel_binding() {
    let server = Server::new();
    let (client, connection) = tokio_postgres::connect(&server.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let role = format!("r_{}", Uuid::new_v4().simple());
    client
        .batch_execute(&format!(
            "set password_encryption = 'scram-sha-256';
             create role {role} login password 'hunter2'"
        ))
        .await
        .unwrap();
    let (_, host) = server.url.split_once('@').unwrap();
    for binding in ["disable", "prefer"] {
        let url = format!(
            "postgres://{role}:hunter2@{host}?sslmode=verify-full&sslrootcert={}&channel_binding={binding}",
            server.ca
        );
        let config = PostgresConfig::from_url(&url).unwrap();
        PostgresBackend::connect(config).await.unwrap();
    }
}
