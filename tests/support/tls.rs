//! TLS for the tests: who the server is, and a client of two halves.
#![cfg(feature = "tls")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use framemill::Tls;
use native_tls::{Certificate, TlsConnector, TlsStream};

use super::WAIT;

pub const EC: &[u8] = include_bytes!("../certs/ec.pem");
pub const EC_KEY: &[u8] = include_bytes!("../certs/ec.key");
pub const RSA: &[u8] = include_bytes!("../certs/rsa.pem");
pub const RSA_KEY: &[u8] = include_bytes!("../certs/rsa.key");

/// The identity with the quick handshake.
pub fn identity() -> Tls {
    static IDENTITY: OnceLock<Tls> = OnceLock::new();
    let load = || Tls::from_pem(EC, EC_KEY).unwrap();
    IDENTITY.get_or_init(load).clone()
}

/// The one with an RSA key of 4096 bits, which costs milliseconds a handshake.
pub fn slow_identity() -> Tls {
    Tls::from_pem(RSA, RSA_KEY).unwrap()
}

/// Trusts both certificates and nobody else.
pub fn connector() -> &'static TlsConnector {
    static CONNECTOR: OnceLock<TlsConnector> = OnceLock::new();
    CONNECTOR.get_or_init(|| {
        let mut builder = TlsConnector::builder();
        builder.disable_built_in_roots(true);
        builder.request_alpns(&["http/1.1"]);
        for pem in [EC, RSA] {
            builder.add_root_certificate(Certificate::from_pem(pem).unwrap());
        }
        builder.build().unwrap()
    })
}

/// A TLS connection that may have a handle on each of two threads, as a socket may: one that reads
/// and one that writes.
///
/// A single handle blocks in the socket; of several, each looks again and again, as none may keep the
/// others from the session while it waits.
pub struct Shared {
    session: Arc<Mutex<TlsStream<TcpStream>>>,
    socket: TcpStream,
    reads: Option<Duration>,
    writes: Option<Duration>,
}

impl Shared {
    /// Through the handshake.
    pub fn connect(socket: TcpStream) -> Self {
        let below = socket.try_clone().unwrap();
        let session = connector().connect("localhost", socket).unwrap();
        Self {
            session: Arc::new(Mutex::new(session)),
            socket: below,
            reads: Some(WAIT),
            writes: Some(WAIT),
        }
    }

    pub fn share(&mut self) -> io::Result<Self> {
        self.socket.set_nonblocking(true)?;
        Ok(Self {
            session: self.session.clone(),
            socket: self.socket.try_clone()?,
            reads: self.reads,
            writes: self.writes,
        })
    }

    pub fn socket(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.reads = timeout;
        self.socket.set_read_timeout(timeout)
    }

    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.writes = timeout;
        self.socket.set_write_timeout(timeout)
    }

    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.session.lock().unwrap().shutdown()?;
        }
        self.socket.shutdown(how)
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut TlsStream<TcpStream>) -> T) -> T {
        act(&mut self.session.lock().unwrap())
    }

    fn retry<T>(
        &self,
        timeout: Option<Duration>,
        mut act: impl FnMut(&mut TlsStream<TcpStream>) -> io::Result<T>,
    ) -> io::Result<T> {
        let begun = Instant::now();
        loop {
            let outcome = self.with(&mut act);
            let again = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
            if !outcome.as_ref().is_err_and(again) || begun.elapsed() >= timeout.unwrap_or(WAIT) {
                return outcome;
            }
            // Soon there, or not so soon.
            if begun.elapsed() < Duration::from_millis(1) {
                thread::yield_now();
            } else {
                thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

impl Read for Shared {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.retry(self.reads, |session| session.read(buf))
    }
}

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.retry(self.writes, |session| session.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the stream ended without close_notify.
pub fn is_truncated(error: &io::Error) -> bool {
    error.to_string().contains("unexpected eof") || error.kind() == io::ErrorKind::UnexpectedEof
}
