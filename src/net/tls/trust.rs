//! Whom a TLS client trusts.

use std::fmt;
use std::sync::OnceLock;

use native_tls::{Certificate, Protocol, TlsConnector, TlsConnectorBuilder};

use super::pem;
use crate::error::{Error, Result};

/// The certificates that a client trusts. Cheap to clone.
///
/// TLS 1.2 is the oldest version that is spoken, and ALPN offers `http/1.1`. The host of the URL is sent as server
/// name (SNI), and the certificate must be for that name. native-tls can't send a certificate of the client's own.
#[derive(Clone)]
pub struct Trust(TlsConnector);

impl Trust {
    /// The certificate authorities of the system, as they are when the process first asks for them. That first
    /// reading takes tens of milliseconds. The default.
    ///
    /// # Errors
    /// [`Error::Tls`] if they can't be read.
    pub fn system() -> Result<Self> {
        static SYSTEM: OnceLock<Trust> = OnceLock::new();
        if let Some(trust) = SYSTEM.get() {
            return Ok(trust.clone());
        }
        let trust = build(&mut TlsConnector::builder())?;
        Ok(SYSTEM.get_or_init(|| trust).clone())
    }

    /// The certificate authorities of the system, and the certificates in `pem`: authorities, or a server's own.
    ///
    /// # Errors
    /// [`Error::Tls`] if there is none in `pem`, or one that can't be read.
    pub fn system_and(pem: &[u8]) -> Result<Self> {
        build(add_roots(&mut TlsConnector::builder(), pem)?)
    }

    /// Only the certificates in `pem`.
    ///
    /// # Errors
    /// As for [`system_and`](Self::system_and).
    pub fn only(pem: &[u8]) -> Result<Self> {
        let mut builder = TlsConnector::builder();
        build(add_roots(builder.disable_built_in_roots(true), pem)?)
    }

    /// Any certificate, for any name. For tests only: TLS then no longer protects against an active attacker.
    ///
    /// # Errors
    /// [`Error::Tls`] if the TLS library fails.
    pub fn anybody() -> Result<Self> {
        let mut builder = TlsConnector::builder();
        builder
            .danger_accept_invalid_certs(true)
            .danger_accept_invalid_hostnames(true);
        build(&mut builder)
    }

    pub(crate) fn connector(&self) -> &TlsConnector {
        &self.0
    }
}

fn add_roots<'a>(
    builder: &'a mut TlsConnectorBuilder,
    pem: &[u8],
) -> Result<&'a mut TlsConnectorBuilder> {
    let mut any = false;
    for block in pem::each_certificate(pem) {
        let root = Certificate::from_pem(block)
            .map_err(|error| Error::Tls(format!("a root certificate can't be read: {error}")))?;
        builder.add_root_certificate(root);
        any = true;
    }
    if any {
        Ok(builder)
    } else {
        Err(Error::Tls("there is no root certificate in it".into()))
    }
}

fn build(builder: &mut TlsConnectorBuilder) -> Result<Trust> {
    builder
        .min_protocol_version(Some(Protocol::Tlsv12))
        .request_alpns(&["http/1.1"])
        .build()
        .map(Trust)
        .map_err(|error| Error::Tls(error.to_string()))
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}
