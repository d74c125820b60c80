//! For tests of many messages and slow peers: a handler that tells what happens, sockets that hold
//! little, and messages that show which they are and that they are whole.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crossbeam_channel::{Receiver, Sender, unbounded};
use framemill::{
    Accept, Bytes, CloseReason, Handler, Message, Origin, Peer, Request, Response, Server,
};
use socket2::{Domain, Socket, Type};

use super::{Addr, Bound, Raw, Running, Stream, Transport, WAIT, request};

// ---- a handler that tells ----

/// Tells of all that happens, and does `act` with each message.
pub struct Spy<F> {
    act: F,
    opened: Sender<Peer>,
    writable: Sender<Peer>,
    closed: Sender<(Peer, CloseReason)>,
}

/// What a [`Spy`] tells.
pub struct Seen {
    pub opened: Receiver<Peer>,
    pub writable: Receiver<Peer>,
    pub closed: Receiver<(Peer, CloseReason)>,
}

impl Seen {
    /// The next peer that opens.
    pub fn peer(&self) -> Peer {
        self.opened.recv_timeout(WAIT).expect("a peer opens")
    }

    /// How the next connection ends.
    pub fn end(&self) -> CloseReason {
        let (_, reason) = self.closed.recv_timeout(WAIT).expect("a connection ends");
        reason
    }
}

pub fn spy<F: Fn(&Peer, Message) + Send + Sync + 'static>(act: F) -> (Spy<F>, Seen) {
    let (opened, opens) = unbounded();
    let (writable, drains) = unbounded();
    let (closed, ends) = unbounded();
    let spy = Spy {
        act,
        opened,
        writable,
        closed,
    };
    let seen = Seen {
        opened: opens,
        writable: drains,
        closed: ends,
    };
    (spy, seen)
}

impl<F: Fn(&Peer, Message) + Send + Sync + 'static> Handler for Spy<F> {
    type Session = ();

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        let _ = self.opened.send(peer.clone());
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        (self.act)(peer, message);
    }

    fn writable(&self, (): &mut (), peer: &Peer) {
        let _ = self.writable.send(peer.clone());
    }

    fn close(&self, (): (), peer: &Peer, reason: &CloseReason) {
        let _ = self.closed.send((peer.clone(), reason.clone()));
    }
}

// ---- sockets that hold little ----

/// What the kernel is asked to hold on each side; it holds a few times that.
pub const NARROW: usize = 16 << 10;

/// Bytes that certainly don't fit between a server of [`serve_narrow`] and a [`narrow`] socket.
pub const PLENTY: usize = 1 << 20;

fn narrowed(bytes: usize) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Before connecting or listening: later is too late for the window.
    socket.set_send_buffer_size(bytes).unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket
}

impl Transport {
    /// Like `bind`, but the kernel is asked to hold no more than so many bytes of what the server reads,
    /// and of what it writes. (It never holds much for a Unix socket.) Left alone it may hold tens of
    /// megabytes of what is read fast.
    pub fn bind_narrow(self, bytes: usize) -> (Server, Bound) {
        #[cfg(unix)]
        if self == Self::Unix {
            return self.bind();
        }
        let socket = narrowed(bytes);
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(128).unwrap();
        let server = Server::bind(std::net::TcpListener::from(socket)).unwrap();
        (self.wrap(server), Bound::tcp(self))
    }

    /// Like `serve`, but the kernel holds little of what the server reads and writes.
    pub fn serve_narrow(
        self,
        settings: impl FnOnce(Server) -> Server,
        handler: impl Handler,
    ) -> Running {
        let (server, bound) = self.bind_narrow(NARROW);
        bound.running(settings(server.origin(Origin::Any)).start(handler).unwrap())
    }
}

/// Like `socket`, but the kernel holds little of what comes and goes.
pub fn narrow(addr: Addr) -> Stream {
    #[cfg(unix)]
    if matches!(addr, Addr::Unix(_)) {
        return addr.connect();
    }
    let socket = narrowed(NARROW);
    socket.connect_timeout(&addr.tcp().into(), WAIT).unwrap();
    addr.over(socket.into())
}

/// A raw client on `stream`, through the opening handshake.
pub fn upgraded<S: Read + Write>(stream: S) -> Raw<S> {
    let mut raw = Raw::over(stream);
    raw.write(request("localhost").as_bytes());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    raw
}

/// Requires that the bytes of a connection that was cut off are all accounted for. What TLS had
/// encrypted and the kernel had not taken counts as sent, and is lost.
#[track_caller]
pub fn exactly(transport: Transport, accounted: usize, sent: usize) {
    let lost = if transport.is_exact() { 0 } else { 80 << 10 };
    assert!(accounted <= sent, "{accounted} of {sent}");
    assert!(accounted + lost >= sent, "{accounted} of {sent}");
}

// ---- messages ----

/// Every byte value, over and over.
const PATTERN: [u8; 1 << 12] = {
    let mut pattern = [0; 1 << 12];
    let mut i = 0;
    while i < pattern.len() {
        pattern[i] = i as u8;
        i += 1;
    }
    pattern
};

/// What follows the number in a payload of `len` bytes, in pieces.
fn filling(n: u32, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let mut left = len - 4;
    let start = n as usize % 256;
    std::iter::from_fn(move || {
        let piece = &PATTERN[start..][..left.min(PATTERN.len() - 256)];
        left -= piece.len();
        (!piece.is_empty()).then_some(piece)
    })
}

/// A binary payload of `len` bytes that carries `n`.
pub fn numbered(n: u32, len: usize) -> Bytes {
    let mut payload = Vec::with_capacity(len);
    payload.extend(n.to_be_bytes());
    filling(n, len).for_each(|piece| payload.extend_from_slice(piece));
    payload.into()
}

/// The number of a payload, which must be whole.
pub fn number(payload: &[u8]) -> u32 {
    let n = u32::from_be_bytes(payload[..4].try_into().unwrap());
    let mut rest = &payload[4..];
    for piece in filling(n, payload.len()) {
        assert!(rest.starts_with(piece), "message {n} is damaged");
        rest = &rest[piece.len()..];
    }
    n
}

/// Frames of such messages as a client writes them, one after the other.
pub fn frames(numbers: std::ops::Range<u32>, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for n in numbers {
        // The masking key may be 0, which spares us the masking.
        out.push(0x82);
        match len {
            0..=125 => out.push(0x80 | len as u8),
            126..=0xFFFF => {
                out.push(0x80 | 126);
                out.extend((len as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        out.extend([0; 4]);
        out.extend_from_slice(&numbered(n, len));
    }
    out
}
