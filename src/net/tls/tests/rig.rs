//! Two ends of a connection, driven by events only.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use native_tls::{Certificate, TlsConnector};

use super::super::wire::Socket;
use super::super::{Tls, TlsStream};

pub(super) const CERT: &[u8] = include_bytes!("../../../../tests/certs/ec.pem");
pub(super) const KEY: &[u8] = include_bytes!("../../../../tests/certs/ec.key");

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn tls() -> Tls {
    Tls::from_pem(CERT, KEY).unwrap()
}

pub(super) fn connector_to(cert: &[u8]) -> TlsConnector {
    TlsConnector::builder()
        .disable_built_in_roots(true)
        .add_root_certificate(Certificate::from_pem(cert).unwrap())
        .request_alpns(&["http/1.1"])
        .build()
        .unwrap()
}

/// A connection over loopback.
pub(super) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    for socket in [&one, &other] {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (one, other)
}

/// Two sockets with a relay between them that passes on `chunk(n)` bytes the n-th time.
pub(super) fn relayed_pair(
    chunk: impl Fn(usize) -> usize + Clone + Send + 'static,
) -> (TcpStream, TcpStream) {
    let (one, near) = tcp_pair();
    let (far, other) = tcp_pair();
    for (mut from, mut to) in [
        (near.try_clone().unwrap(), far.try_clone().unwrap()),
        (far, near),
    ] {
        let chunk = chunk.clone();
        thread::spawn(move || {
            let mut buf = [0; 4096];
            for n in 0.. {
                let most = chunk(n).clamp(1, buf.len());
                match from.read(&mut buf[..most]) {
                    Ok(read @ 1..) if to.write_all(&buf[..read]).is_ok() => {}
                    _ => break,
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    (one, other)
}

/// A socket that counts its system calls.
pub(super) struct Counted {
    socket: mio::net::TcpStream,
    pub(super) recvs: usize,
    pub(super) sends: usize,
}

impl Socket for Counted {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.recvs += 1;
        self.socket.read(buf)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sends += 1;
        self.socket.write(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }
}

/// Sizes that vary and are the same in every run.
pub(super) struct Sizes {
    state: u64,
    most: usize,
}

impl Sizes {
    pub(super) fn up_to(most: usize) -> Self {
        let state = most as u64 | 1;
        Self { state, most }
    }

    pub(super) fn next(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6364136223846793005);
        self.state = self.state.wrapping_add(1442695040888963407);
        // Small ones are as frequent as large ones.
        let bits = (self.state >> 33) as usize;
        let scale = bits % (usize::BITS - self.most.leading_zeros()) as usize;
        1 + (bits >> 8) % (self.most >> scale).max(1)
    }
}

/// One end, with what it is to send and what it has received.
pub(super) struct End {
    pub(super) tls: TlsStream<Counted>,
    pub(super) open: bool,
    pub(super) to_send: Vec<u8>,
    pub(super) sent: usize,
    pub(super) got: Vec<u8>,
    pub(super) eof: bool,
    /// Whether it reads.
    pub(super) reads: bool,
    pub(super) failed: Option<io::Error>,
    /// How long each call for the handshake took.
    pub(super) shaking: Vec<Duration>,
    read_sizes: Sizes,
    write_sizes: Sizes,
}

impl End {
    fn new(tls: TlsStream<Counted>) -> Self {
        Self {
            tls,
            open: false,
            to_send: Vec::new(),
            sent: 0,
            got: Vec::new(),
            eof: false,
            reads: true,
            failed: None,
            shaking: Vec::new(),
            read_sizes: Sizes::up_to(100 << 10),
            write_sizes: Sizes::up_to(200 << 10),
        }
    }

    /// Does what can be done.
    pub(super) fn step(&mut self) {
        if self.failed.is_none() {
            self.failed = self.try_step().err();
        }
    }

    fn try_step(&mut self) -> io::Result<()> {
        if !self.open {
            let start = Instant::now();
            self.open = self.tls.handshake()?;
            self.shaking.push(start.elapsed());
        }
        if self.open {
            self.write()?;
            self.read()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.tls.flush_pending()?;
        while self.sent < self.to_send.len() {
            let rest = &self.to_send[self.sent..];
            let part = &rest[..self.write_sizes.next().min(rest.len())];
            let (one, other) = part.split_at(part.len() / 3);
            let slices = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(other)];
            let result = match self.sent % 2 {
                0 => self.tls.write(part),
                _ => self.tls.write_vectored(&slices),
            };
            match result {
                Ok(n) => {
                    assert!(n > 0 && n <= part.len());
                    self.sent += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(self.tls.has_pending());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buf = vec![0; 100 << 10];
        while self.reads && self.tls.has_buffered() {
            let size = self.read_sizes.next();
            match self.tls.read(&mut buf[..size]) {
                Ok(0) => self.eof = true,
                Ok(n) => self.got.extend_from_slice(&buf[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(!self.tls.has_buffered());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Both ends, and the poll that drives them.
pub(super) struct Rig {
    poll: Poll,
    pub(super) client: End,
    pub(super) server: End,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::over(tcp_pair(), &tls(), CERT)
    }

    /// After the handshake.
    pub(super) fn open() -> Self {
        let mut rig = Self::new();
        rig.shake_hands();
        rig
    }

    /// The client is the first of the two.
    pub(super) fn over(pair: (TcpStream, TcpStream), tls: &Tls, root: &[u8]) -> Self {
        let poll = Poll::new().unwrap();
        let socket = |stream: TcpStream, token| {
            stream.set_nonblocking(true).unwrap();
            let mut socket = mio::net::TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(&mut socket, Token(token), interest)
                .unwrap();
            Counted {
                socket,
                recvs: 0,
                sends: 0,
            }
        };
        let client = TlsStream::client(socket(pair.0, 0), &connector_to(root), "localhost");
        let server = TlsStream::server(socket(pair.1, 1), tls);
        let mut rig = Self {
            poll,
            client: End::new(client),
            server: End::new(server),
        };
        rig.client.step();
        rig
    }

    pub(super) fn shake_hands(&mut self) {
        self.until(|rig| rig.client.open && rig.server.open);
    }

    /// Drives both ends until this is so. An end takes a step only after an event for it.
    pub(super) fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let mut events = Events::with_capacity(8);
        while !done(self) {
            self.poll.poll(&mut events, Some(PATIENCE)).unwrap();
            assert!(!events.is_empty(), "no event will come any more");
            for event in &events {
                let end = match event.token() {
                    Token(0) => &mut self.client,
                    _ => &mut self.server,
                };
                let hung_up = event.is_read_closed() || event.is_error();
                if event.is_readable() || hung_up {
                    end.tls.socket_readable(hung_up);
                }
                end.step();
            }
        }
    }
}
