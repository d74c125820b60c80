//! What the integration tests share: a server on a port of its own, tungstenite's client as an
//! independent peer, and a raw client for everything that no decent client does.
//!
//! Every wait is bounded by [`WAIT`]; nothing sleeps to let something happen.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    reason = "each test file uses its part"
)]

#[cfg(unix)]
pub mod browser;
pub mod deflate;
pub mod example;
pub mod folder;
pub mod following;
pub mod inflate;
#[cfg(target_os = "linux")]
pub mod namespace;
pub mod needs;
#[cfg(all(unix, feature = "redis"))]
pub mod redis;
pub mod remote;
pub mod sequences;
pub mod spy;
pub mod tls;
mod transport;

use std::fmt::{Debug, Display};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use framemill::{Handler, Listen, Message, Origin, Server, ServerHandle};

pub(crate) use transport::over_every_transport;
pub use transport::{Addr, Bound, Stream, Transport, reset};

/// Longer than anything here takes, even on a busy machine.
pub const WAIT: Duration = Duration::from_secs(20);

/// A server that stops when the test is through.
pub struct Running {
    pub handle: ServerHandle,
    pub addr: Addr,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown(Duration::ZERO);
        #[cfg(unix)]
        if let Addr::Unix(place) = self.addr {
            place.remove();
        }
    }
}

/// A server on a free TCP port, set up by `settings`.
pub fn serve(settings: impl FnOnce(Server) -> Server, handler: impl Handler) -> Running {
    Transport::Plain.serve(settings, handler)
}

/// A server on a TCP address or listener.
pub fn serve_on(
    listen: impl Listen,
    settings: impl FnOnce(Server) -> Server,
    handler: impl Handler,
) -> Running {
    let server = Server::bind(listen).unwrap().origin(Origin::Any);
    let handle = settings(server).start(handler).unwrap();
    let addr = handle.local_addr().unwrap().into();
    Running { handle, addr }
}

/// A server that sends everything back over TCP.
pub fn echo() -> Running {
    Transport::Plain.echo()
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nobody can send on this channel any more. Nothing else may come before.
#[track_caller]
pub fn no_more<T: Debug>(channel: &Receiver<T>) {
    let next = channel.recv_timeout(WAIT);
    let ended = matches!(next, Err(RecvTimeoutError::Disconnected));
    assert!(ended, "{next:?} instead of the end");
}

/// A connection whose reads and writes are bounded.
pub fn socket(addr: impl Into<Addr>) -> Stream {
    addr.into().connect()
}

/// What a server answers a GET for `path` with: status and body, as text.
pub fn get(addr: impl ToSocketAddrs + Display, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(&addr).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut raw = Raw::over(stream);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    raw.write(head.as_bytes());
    let (status, _, body) = raw.response();
    (status, String::from_utf8(body).unwrap())
}

/// tungstenite's client, connected.
pub fn client(addr: impl Into<Addr>) -> tungstenite::WebSocket<Stream> {
    let addr = addr.into();
    // Whatever is below, it is made already.
    let url = format!("ws://{addr}/");
    match tungstenite::client::client(url, addr.connect()) {
        Ok((client, _)) => client,
        Err(error) => panic!("{error}"),
    }
}

/// A correct opening handshake.
pub fn request(addr: impl std::fmt::Display) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// One frame as a client writes it; `first` is the first byte (0x81: text, final).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    let key = [0x12, 0x34, 0x56, 0x78];
    out.extend(key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
    out
}

/// A client that writes what it is told, right or wrong.
pub struct Raw<S = Stream> {
    pub stream: S,
    buf: Vec<u8>,
}

impl Raw {
    /// Connected, nothing sent yet.
    pub fn connect(addr: impl Into<Addr>) -> Self {
        Self::over(socket(addr))
    }

    /// Through the opening handshake.
    pub fn open(addr: impl Into<Addr>) -> Self {
        let addr = addr.into();
        let mut raw = Self::connect(addr);
        raw.write(request(addr).as_bytes());
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        raw
    }

    /// Whether anything comes, or the end, `within` this time.
    pub fn hears(&mut self, within: Duration) -> bool {
        self.stream.set_read_timeout(Some(within)).unwrap();
        let mut chunk = [0; 4096];
        let outcome = self.stream.read(&mut chunk);
        self.stream.set_read_timeout(Some(WAIT)).unwrap();
        match outcome {
            Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => {}
        }
        true
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            buf: Vec::new(),
        }
    }

    /// Whether what was read and not yet looked at begins so.
    pub fn begins(&self, bytes: &[u8]) -> bool {
        self.buf.starts_with(bytes)
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// `false` at the end of the stream (or a reset, or the end of TCP below TLS).
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                n > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            #[cfg(feature = "tls")]
            Err(error) if tls::is_truncated(&error) => false,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    /// The head of a response.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.buf.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill(), "closed before a whole head: {:?}", self.buf);
        }
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buf)
    }

    /// A whole response: status, head, body.
    pub fn response(&mut self) -> (u16, String, Vec<u8>) {
        let head = self.head();
        let status = head[9..12].parse().unwrap();
        (status, head, self.rest())
    }

    /// The next frame: first byte and payload. `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, len)) = header(&self.buf) {
                if self.buf.len() >= header + len {
                    let first = self.buf[0];
                    let frame: Vec<u8> = self.buf.drain(..header + len).collect();
                    return Some((first, frame[header..].to_vec()));
                }
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The code of the close frame that comes next, after whatever else.
    pub fn close_code(&mut self) -> Option<u16> {
        close_code(|| self.frame())
    }
}

/// The code of the first close frame among `frames`, each a first byte and a payload.
fn close_code(frames: impl FnMut() -> Option<(u8, Vec<u8>)>) -> Option<u16> {
    let (_, payload) = std::iter::from_fn(frames).find(|(first, _)| *first == 0x88)?;
    Some(match payload[..] {
        [high, low, ..] => u16::from_be_bytes([high, low]),
        _ => 1005,
    })
}

/// Size of the header at the front of `buf`, and of its payload.
fn header(buf: &[u8]) -> Option<(usize, usize)> {
    let short = *buf.get(1)? as usize;
    assert!(short < 128, "a server must not mask");
    Some(match short {
        126 => (
            4,
            u16::from_be_bytes(buf.get(2..4)?.try_into().ok()?).into(),
        ),
        127 => {
            let len = u64::from_be_bytes(buf.get(2..10)?.try_into().ok()?);
            (10, len as usize)
        }
        len => (2, len),
    })
}

// ---- for tests that look at the whole process ----

/// Held by such tests: the others of their file wait.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open descriptors of this process; 0 where there is no `/proc`.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A size in `/proc/self/status`, such as `VmRSS`, in bytes; 0 where there is none.
pub fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.unwrap_or(0) * 1024
}

/// Sends a text through tungstenite's client and waits for the echo.
pub fn echoes(client: &mut tungstenite::WebSocket<Stream>, text: &str) {
    client.send(Message::text(text)).unwrap();
    assert_eq!(client.read().unwrap(), Message::text(text));
}

/// A test that failed elsewhere is told by itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
