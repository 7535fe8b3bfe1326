//! TLS by rustls, with the meaning that MySQL gives to `ssl-mode`.

use std::path::Path;

use database_locks_core::{Error, ErrorKind, Result};
use mysql_async::{ClientIdentity, SslOpts};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{SslMode, TlsConfig};

/// How the driver is to connect by TLS, or `None` where it is not to. Reads the files that the
/// configuration names.
pub(crate) fn options(config: &TlsConfig) -> Result<Option<SslOpts>> {
    let verifies = matches!(config.mode, SslMode::VerifyCa | SslMode::VerifyIdentity);
    if config.ca.is_some() && !verifies {
        return Err(invalid(
            "ssl-ca is given, but only ssl-mode=verify_ca and verify_identity check certificates: \
             set one of them, or leave ssl-ca out",
        ));
    }
    if config.mode == SslMode::Disabled {
        return Ok(None);
    }
    // The driver takes the process' provider, and panics where several are compiled in and none
    // was chosen.
    if CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let mut options = SslOpts::default().with_client_identity(identity(config)?);
    if verifies {
        let roots = roots(config)?.into_iter().map(Into::into).collect();
        options = options.with_disable_built_in_roots(true).with_root_certs(roots);
    } else {
        options = options.with_danger_accept_invalid_certs(true);
    }
    if config.mode == SslMode::VerifyCa {
        // The driver forgives a wrong name if the error of rustls, which comes only after the
        // chain was found good, says `NotValidForName`. It no longer does, but still repeats the
        // name that was expected.
        options = options
            .with_danger_skip_domain_validation(true)
            .with_danger_tls_hostname_override(Some("NotValidForName"));
    }
    Ok(Some(options))
}

/// The authorities to trust, as DER: those of `ssl-ca`, or of the system.
fn roots(config: &TlsConfig) -> Result<Vec<Vec<u8>>> {
    let offered = match &config.ca {
        Some(path) => certificates(path, "ssl-ca")?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    // The driver takes all or none, and systems have some that rustls cannot read.
    let usable: Vec<_> = offered
        .into_iter()
        .filter(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok())
        .map(|certificate| certificate.to_vec())
        .collect();
    if usable.is_empty() {
        return Err(invalid("no trusted certificate was found: give ssl-ca"));
    }
    Ok(usable)
}

/// The client's own certificate and key. They are read again by the driver, but found fault with
/// here.
fn identity(config: &TlsConfig) -> Result<Option<ClientIdentity>> {
    match (&config.client_cert, &config.client_key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => {
            certificates(cert, "ssl-cert")?;
            PrivateKeyDer::from_pem_file(key).map_err(|error| {
                invalid("the file of ssl-key cannot be read: give a PEM file").with_source(error)
            })?;
            Ok(Some(ClientIdentity::new(cert.clone().into(), key.clone().into())))
        }
        _ => Err(invalid("only one of ssl-cert and ssl-key is given: give both or none")),
    }
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| invalid(format!("the file of {parameter} cannot be read: {error}")))?;
    if certificates.is_empty() {
        return Err(invalid(format!(
            "the file of {parameter} holds no certificate: give a PEM file"
        )));
    }
    Ok(certificates)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, message).with_backend(crate::NAME)
}
