//! Who a TLS server is: certificate chain and private key.

use std::fmt;
use std::path::Path;

use native_tls::{Identity, Protocol, TlsAcceptor};

use super::{pem, trial};
use crate::error::{Error, Result};

/// The certificate and private key of a server, ready to accept TLS connections.
///
/// Cheap to clone. Loading takes some milliseconds: the files are read, and one handshake is made in memory, so that
/// a key that does not fit the certificate is found here and not by the first client.
///
/// # Settings
/// - TLS 1.2 is the oldest version that is spoken.
/// - ALPN answers `http/1.1` to clients that ask (not on Apple systems, where native-tls can't).
/// - Everything else is native-tls's default. On Linux that is OpenSSL with the "intermediate" ciphers of Mozilla's
///   recommendations, session tickets, and no renegotiation (with OpenSSL 3; 1.1.1 makes a few renegotiations, then
///   the connection ends).
///
/// # What native-tls can't do
/// - Ask clients for certificates.
/// - Choose an identity by the name that a client asks for (SNI). There is one identity per server; a certificate with
///   several names serves them all.
/// - Choose ciphers or curves.
/// - On Linux, speak TLS 1.3 as a server: native-tls 0.2 builds its acceptor with TLS 1.3 switched off.
///
/// If you need these, put a proxy in front that terminates TLS.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// From PEM: `cert_chain` is the certificate followed by the intermediate ones, if any; `key` is the private key
    /// of the first, unencrypted, in PKCS#8 (`BEGIN PRIVATE KEY`). A key in another form is refused; the error has the
    /// command that converts it.
    ///
    /// # Errors
    /// [`Error::Tls`], which says which of the two is wrong and why.
    pub fn from_pem(cert_chain: &[u8], key: &[u8]) -> Result<Self> {
        from_pem("the certificate chain", cert_chain, "the private key", key)
    }

    /// From two files as for [`from_pem`](Self::from_pem): `fullchain.pem` and `privkey.pem` of an ACME
    /// client, for instance.
    ///
    /// # Errors
    /// [`Error::Tls`], which says which file is wrong and why.
    pub fn from_pem_files(cert_chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self> {
        let (cert_path, key_path) = (cert_chain.as_ref(), key.as_ref());
        let (cert, key) = (read(cert_path)?, read(key_path)?);
        let (cert_name, key_name) = (cert_path.display(), key_path.display());
        from_pem(&cert_name.to_string(), &cert, &key_name.to_string(), &key)
    }

    /// From a PKCS#12 archive (`.p12`, `.pfx`) with certificate, key and the intermediate
    /// certificates, if any.
    ///
    /// # Errors
    /// [`Error::Tls`], which says what is wrong.
    pub fn from_pkcs12(der: &[u8], password: &str) -> Result<Self> {
        from_pkcs12("the PKCS#12 archive", der, password)
    }

    /// From a file as for [`from_pkcs12`](Self::from_pkcs12).
    ///
    /// # Errors
    /// [`Error::Tls`], which says what is wrong with the file.
    pub fn from_pkcs12_file(path: impl AsRef<Path>, password: &str) -> Result<Self> {
        let path = path.as_ref();
        from_pkcs12(&path.display().to_string(), &read(path)?, password)
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::Tls(format!("{}: {error}", path.display())))
}

fn from_pem(cert_name: &str, cert: &[u8], key_name: &str, key: &[u8]) -> Result<Tls> {
    let cert =
        pem::certificates(cert).map_err(|what| Error::Tls(format!("{cert_name}: {what}")))?;
    let key = pem::private_key(key).map_err(|what| Error::Tls(format!("{key_name}: {what}")))?;
    let identity = Identity::from_pkcs8(&cert, &key)
        .map_err(|error| Error::Tls(format!("{cert_name} with {key_name}: {error}")))?;
    accept_as(identity, &format!("{cert_name} with {key_name}"))
}

fn from_pkcs12(name: &str, der: &[u8], password: &str) -> Result<Tls> {
    let identity = Identity::from_pkcs12(der, password).map_err(|error| {
        let text = error.to_string();
        // OpenSSL's words for it.
        let wrong = text.contains("mac verify failure");
        let what = if wrong {
            "wrong password"
        } else {
            "not a PKCS#12 archive that can be read"
        };
        Error::Tls(format!("{name}: {what} ({text})"))
    })?;
    accept_as(identity, name)
}

fn accept_as(identity: Identity, name: &str) -> Result<Tls> {
    let acceptor = TlsAcceptor::builder(identity)
        .min_protocol_version(Some(Protocol::Tlsv12))
        .accept_alpn(&["http/1.1"])
        .build()
        .map_err(|error| Error::Tls(format!("{name}: {error}")))?;
    trial::handshake(&acceptor).map_err(|error| {
        let hint = "does the key belong to the certificate?";
        Error::Tls(format!("{name}: cannot be used, {hint} ({error})"))
    })?;
    Ok(Tls(acceptor))
}
