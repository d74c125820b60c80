//! A non-blocking socket, with or without TLS, at the least cost that either can be had for.
//!
//! TLS is OpenSSL with as few system calls as without: what a `recv` brings is kept until OpenSSL has
//! asked for all of it, and nobody asks the kernel again before it has said that there is more. The
//! version and the cipher are the same for everybody ([`CIPHER`]).

use std::{
    cell::RefCell,
    io::{self, ErrorKind, Read, Result, Write},
    os::fd::OwnedFd,
    path::Path,
};

use openssl::ssl::{
    self, ErrorCode, Ssl, SslAcceptor, SslConnector, SslFiletype, SslMethod, SslStream,
    SslVerifyMode, SslVersion,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

/// The one cipher that clients offer, with TLS 1.2: servers that know newer ones (native-tls makes
/// none of TLS 1.3) are to do the same work as the others.
pub const CIPHER: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";

/// One for all connections of a thread. A connection keeps what it has received and not decrypted.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// How connections begin: as they are, or with a TLS handshake.
pub enum Security {
    Plain,
    Client(SslConnector),
    Server(SslAcceptor),
}

impl Security {
    /// Any certificate will do: who answers is known.
    pub fn client() -> Result<Self> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_max_proto_version(Some(SslVersion::TLS1_2))?;
        builder.set_cipher_list(CIPHER)?;
        Ok(Self::Client(builder.build()))
    }

    /// With PEM files, and all else as native-tls sets it up.
    pub fn server(certificate: &Path, key: &Path) -> Result<Self> {
        let mut builder = SslAcceptor::mozilla_intermediate(SslMethod::tls_server())?;
        builder.set_certificate_chain_file(certificate)?;
        builder.set_private_key_file(key, SslFiletype::PEM)?;
        Ok(Self::Server(builder.build()))
    }

    pub fn begin(&self, socket: OwnedFd) -> Result<Stream> {
        let (ssl, client) = match self {
            Self::Plain => return Ok(Stream::Plain(socket)),
            Self::Client(connector) => {
                let configuration = connector.configure()?.verify_hostname(false);
                (configuration.into_ssl("localhost")?, true)
            }
            Self::Server(acceptor) => (Ssl::new(acceptor.context())?, false),
        };
        let wire = Wire {
            socket,
            received: Vec::new(),
            read: 0,
            empty: false,
            ended: false,
            unsent: Vec::new(),
        };
        Ok(Stream::Tls(Box::new(Tls {
            stream: SslStream::new(ssl, wire)?,
            client,
            open: false,
        })))
    }
}

pub enum Stream {
    Plain(OwnedFd),
    Tls(Box<Tls>),
}

pub struct Tls {
    stream: SslStream<Wire>,
    client: bool,
    open: bool,
}

impl Stream {
    pub fn socket(&self) -> &OwnedFd {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.stream.get_ref().socket,
        }
    }

    /// An event has said that there is something to read, or (`ended`) that no more will come.
    pub fn socket_readable(&mut self, ended: bool) {
        if let Self::Tls(tls) = self {
            let wire = tls.stream.get_mut();
            wire.empty = false;
            wire.ended |= ended;
        }
    }

    /// Goes on with the handshake of TLS. `true`: it is done, or there is none.
    pub fn handshake(&mut self) -> Result<bool> {
        let Self::Tls(tls) = self else {
            return Ok(true);
        };
        if !tls.open {
            let outcome = match tls.client {
                true => tls.stream.connect(),
                false => tls.stream.accept(),
            };
            tls.open = match outcome {
                Ok(()) => true,
                Err(error) if blocked(&error) => false,
                Err(error) => return Err(into_io(error)),
            };
        }
        tls.stream.get_mut().flush()?;
        Ok(tls.open)
    }

    /// Sends what earlier calls left behind.
    pub fn flush(&mut self) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.stream.get_mut().flush(),
        }
    }

    /// `WouldBlock`: the kernel takes no more.
    pub fn send(&mut self, data: &[u8]) -> Result<usize> {
        match self {
            Self::Plain(socket) => Ok(send(socket, data, SendFlags::NOSIGNAL)?),
            Self::Tls(tls) => {
                tls.stream.get_mut().flush()?;
                if !tls.stream.get_ref().unsent.is_empty() {
                    return Err(ErrorKind::WouldBlock.into());
                }
                tls.stream.ssl_write(data).map_err(into_io)
            }
        }
    }

    /// `WouldBlock`: nothing is there.
    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Plain(socket) => Ok(recv(socket, buffer, RecvFlags::empty())?.1),
            Self::Tls(tls) => match tls.stream.ssl_read(buffer) {
                Ok(count) => Ok(count),
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
                Err(error) => Err(into_io(error)),
            },
        }
    }

    /// Whether nothing is left, after a `recv` of `count` bytes into `room`, until an event says
    /// otherwise. `ended` is whether the peer has closed its side, so that a short read does not
    /// mean empty.
    pub fn is_drained(&self, count: usize, room: usize, ended: bool) -> bool {
        match self {
            Self::Plain(_) => count < room && !ended,
            Self::Tls(tls) => {
                let wire = tls.stream.get_ref();
                wire.empty && wire.is_read() && tls.stream.ssl().pending() == 0
            }
        }
    }
}

fn blocked(error: &ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

fn into_io(error: ssl::Error) -> io::Error {
    if blocked(&error) {
        return ErrorKind::WouldBlock.into();
    }
    error.into_io_error().unwrap_or_else(io::Error::other)
}

/// Between OpenSSL and the kernel: ciphertext on its way.
pub struct Wire {
    socket: OwnedFd,
    /// Received, and read by OpenSSL up to `read`. Nothing is kept once all is read.
    received: Vec<u8>,
    read: usize,
    /// The kernel has no more, until an event says otherwise.
    empty: bool,
    ended: bool,
    /// What the kernel did not take. OpenSSL gets no room for more while there is any.
    unsent: Vec<u8>,
}

impl Wire {
    fn is_read(&self) -> bool {
        self.read == self.received.len()
    }

    fn receive(&mut self) -> Result<()> {
        RECEIVED.with_borrow_mut(|buffer| {
            let count = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, count)) => count,
                Err(error) => {
                    self.empty = error == Errno::AGAIN;
                    return Err(error.into());
                }
            };
            self.empty = count < BUFFER && !self.ended;
            self.received = buffer[..count].to_vec();
            self.read = 0;
            Ok(())
        })
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.is_read() {
            if self.empty {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.receive()?;
        }
        let count = (&self.received[self.read..]).read(buffer)?;
        self.read += count;
        if self.is_read() {
            self.received = Vec::new();
            self.read = 0;
        }
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> Result<usize> {
        let sent = match self.unsent.is_empty() {
            true => match send(&self.socket, data, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => 0,
                sent => sent?,
            },
            false => 0,
        };
        self.unsent.extend_from_slice(&data[sent..]);
        Ok(data.len())
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => break,
                sent => drop(self.unsent.drain(..sent?)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Stream, Stream) {
        let (one, other) = UnixStream::pair().unwrap();
        let nonblocking = |socket: UnixStream| {
            socket.set_nonblocking(true).unwrap();
            OwnedFd::from(socket)
        };
        let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/certs");
        let file = |name| certificates.join(name);
        let server = Security::server(&file("ec.pem"), &file("ec.key")).unwrap();
        (
            Security::client().unwrap().begin(nonblocking(one)).unwrap(),
            server.begin(nonblocking(other)).unwrap(),
        )
    }

    /// What is there, read as events would have it read: until it is drained.
    fn receive(stream: &mut Stream, into: &mut Vec<u8>) {
        let mut buffer = vec![0; 300];
        stream.socket_readable(false);
        loop {
            match stream.recv(&mut buffer) {
                Ok(count) => {
                    into.extend_from_slice(&buffer[..count]);
                    if stream.is_drained(count, buffer.len(), false) {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn more_than_the_kernel_takes_arrives() {
        let (mut client, mut server) = pair();
        let (mut here, mut there) = (false, false);
        for _ in 0..10 {
            client.socket_readable(false);
            here = client.handshake().unwrap();
            server.socket_readable(false);
            there = server.handshake().unwrap();
        }
        assert!(here && there);

        let data: Vec<u8> = (0..2_000_000_u32).map(|at| (at / 7) as u8).collect();
        let (mut sent, mut received, mut blocked) = (0, Vec::new(), 0);
        for _ in 0..1_000_000 {
            if received.len() == data.len() {
                break;
            }
            while sent < data.len() {
                match client.send(&data[sent..]) {
                    Ok(count) => sent += count,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        blocked += 1;
                        break;
                    }
                }
            }
            client.flush().unwrap();
            receive(&mut server, &mut received);
        }
        assert!(received == data && blocked > 1);
    }
}
