//! Certificates for a server that speaks TLS: an authority of its own, and a stranger.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::folder::Folder;

/// Whether a server speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// It does not.
    #[default]
    Off,
    /// It does, and accepts plain connections as well.
    Offered,
    /// It does, and refuses plain connections.
    Required,
}

/// The authorities of a server that speaks TLS, as PEM files.
#[derive(Debug)]
pub struct TlsFiles {
    authority: PathBuf,
    stranger: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl TlsFiles {
    /// The authority that signed the server's certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// An authority that has signed nothing of this server's.
    #[must_use]
    pub fn stranger(&self) -> &Path {
        &self.stranger
    }

    /// The server's certificate.
    pub(crate) fn certificate(&self) -> String {
        self.certificate.display().to_string()
    }

    /// The private key of the server's certificate.
    pub(crate) fn key(&self) -> String {
        self.key.display().to_string()
    }
}

impl Tls {
    pub(crate) fn write_files(self, folder: &Folder) -> Result<Option<TlsFiles>> {
        if self == Self::Off {
            return Ok(None);
        }
        let (authority_pem, authority) = authority_named("authority")?;
        let (stranger_pem, _) = authority_named("stranger")?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        Ok(Some(TlsFiles {
            authority: folder.write("authority.pem", &authority_pem)?,
            stranger: folder.write("stranger.pem", &stranger_pem)?,
            certificate: folder.write("server.pem", &certificate.pem())?,
            key: folder.write("server.key", &key.serialize_pem())?,
        }))
    }
}

fn authority_named(name: &str) -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("throwaway {name}"));
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((pem, Issuer::new(params, key)))
}
