//! A TLS connection over a non-blocking socket.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::mem;

use mio::{Registry, Token};
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsConnector};

use super::identity::Tls;
use super::wire::{RECVS, Socket, Wire};
use crate::error::duplicate;
use crate::net::Stream;

/// The most plaintext of one record (RFC 8446 §5.1).
const RECORD: usize = 16 << 10;

/// Plaintext taken by one write: what of it the kernel doesn't take is kept, and no more is taken
/// until that has gone.
const MOST: usize = 4 * RECORD;

/// The content type of a handshake record: the first byte of every TLS connection.
const HANDSHAKE: u8 = 0x16;

const METHODS: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI ",
];

/// Why a handshake failed, if not for the socket. Found inside the [`io::Error`] by
/// [`TlsError::of`].
#[derive(Debug)]
pub(crate) enum TlsError {
    /// The peer speaks HTTP without TLS.
    PlainHttp,
    /// The peer speaks neither TLS nor HTTP.
    NotTls,
    /// No common version or cipher, a certificate that isn't trusted, and so on.
    Handshake(native_tls::Error),
    /// After the handshake: an alert, for instance because there was no certificate of the client's.
    Session(io::Error),
}

impl TlsError {
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PlainHttp => f.write_str("plain HTTP on a TLS port"),
            Self::NotTls => f.write_str("the peer does not speak TLS"),
            Self::Handshake(error) => write!(f, "the handshake failed: {error}"),
            Self::Session(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// Of the socket, if native-tls has failed because of that.
fn failure(error: native_tls::Error) -> io::Error {
    let source = std::error::Error::source(&error);
    match source.and_then(|source| source.downcast_ref()) {
        Some(socket) if matches!(TlsError::of(socket), Some(TlsError::NotTls)) => {
            TlsError::NotTls.into()
        }
        Some(socket) => duplicate(socket),
        None => TlsError::Handshake(error).into(),
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A TLS connection: the same calls as a plain [`Stream`], and these duties of who owns it:
///
/// - After each event that says readable or closed: [`socket_readable`](Self::socket_readable),
///   before anything else.
/// - After each event, until it says `true`, and while [`has_buffered`](Self::has_buffered):
///   [`handshake`](Self::handshake). Nothing can be read or written before.
/// - After the handshake, and whenever there is room for more: [`read`](Self::read) while
///   [`has_buffered`](Self::has_buffered). Only when that says `false` will an event announce what
///   comes next: plaintext may wait in here of which the kernel knows nothing any more.
/// - After each event that says writable: [`flush_pending`](Self::flush_pending), or a write, which
///   does it first; also after [`shutdown_write`](Self::shutdown_write).
pub(crate) struct TlsStream<S = Stream> {
    state: State<S>,
    /// No more is to be read.
    end: Option<End>,
}

enum State<S> {
    /// A server that has not seen a TLS record: until then the connection costs no more than a socket.
    Waiting(Wire<S>, Tls),
    /// The handshake has begun. Client: not a byte has been sent yet.
    Starting(Wire<S>, Box<(TlsConnector, String)>),
    Shaking(MidHandshakeTlsStream<Wire<S>>),
    Open(native_tls::TlsStream<Wire<S>>),
    /// The handshake failed, and the socket is closed.
    Failed,
}

/// How reading ended.
enum End {
    /// By close_notify or by the end of the stream. Not told apart: what is spoken above has an end of
    /// its own, and its absence is noticed there.
    Eof { told: bool },
    /// Until the error has been told.
    Failed(Option<io::Error>),
}

impl<S: Socket> TlsStream<S> {
    /// A connection that was accepted.
    pub(crate) fn server(socket: S, tls: &Tls) -> Self {
        Self {
            state: State::Waiting(Wire::new(socket), tls.clone()),
            end: None,
        }
    }

    /// A connection to `domain`, which is checked against the certificate.
    pub(crate) fn client(socket: S, connector: &TlsConnector, domain: &str) -> Self {
        let how = Box::new((connector.clone(), domain.to_owned()));
        Self {
            state: State::Starting(Wire::new(socket), how),
            end: None,
        }
    }

    fn wire(&mut self) -> Option<&mut Wire<S>> {
        match &mut self.state {
            State::Waiting(wire, _) | State::Starting(wire, _) => Some(wire),
            State::Shaking(stream) => Some(stream.get_mut()),
            State::Open(stream) => Some(stream.get_mut()),
            State::Failed => None,
        }
    }

    /// An event has announced something to read, or (`hung_up`) that the peer is done or gone.
    pub(crate) fn socket_readable(&mut self, hung_up: bool) {
        if let Some(wire) = self.wire() {
            wire.socket_readable(hung_up);
        }
    }

    /// Goes on with the handshake. `true`: it is done; `false`: the next event will bring it on, or
    /// another call if [`has_buffered`](Self::has_buffered).
    ///
    /// This is where a connection costs time, for the signature. Any thread may call it.
    ///
    /// # Errors
    /// Of the socket, or a [`TlsError`]. The socket is closed by then.
    pub(crate) fn handshake(&mut self) -> io::Result<bool> {
        if let State::Waiting(wire, _) = &mut self.state {
            let seen = speaks_tls(wire);
            let seen = wire.settle().and(seen);
            if !matches!(seen, Ok(true)) {
                if seen.is_err() {
                    self.state = State::Failed;
                }
                return seen;
            }
        }
        let result = match mem::replace(&mut self.state, State::Failed) {
            State::Waiting(wire, tls) => tls.acceptor().accept(wire),
            State::Starting(wire, how) => how.0.connect(&how.1, wire),
            State::Shaking(mut stream) => {
                stream.get_mut().flush_pending()?;
                stream.handshake()
            }
            State::Open(stream) => Ok(stream),
            State::Failed => return Err(io::ErrorKind::NotConnected.into()),
        };
        match result {
            Ok(mut stream) => {
                stream.get_mut().shaking = false;
                stream.get_mut().settle()?;
                self.state = State::Open(stream);
                Ok(true)
            }
            Err(HandshakeError::WouldBlock(mut stream)) => {
                stream.get_mut().settle()?;
                self.state = State::Shaking(stream);
                Ok(false)
            }
            Err(HandshakeError::Failure(error)) => Err(failure(error)),
        }
    }

    /// Whether the handshake is done.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether [`read`](Self::read), or in the handshake [`handshake`](Self::handshake), is to be called
    /// without waiting for an event.
    pub(crate) fn has_buffered(&self) -> bool {
        match (&self.state, &self.end) {
            (State::Open(stream), None) => may_read(stream),
            (State::Shaking(stream), _) => stream.get_ref().may_read(),
            (State::Open(_), Some(End::Eof { told })) => !told,
            (State::Open(_), Some(End::Failed(error))) => error.is_some(),
            _ => false,
        }
    }

    /// Reads plaintext: as much as there is and `buf` takes, in one `recv` if that is enough. 0 is
    /// the end. Comes up short when nothing is left, and for other reasons: ask
    /// [`has_buffered`](Self::has_buffered).
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let State::Open(stream) = &mut self.state else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut filled = 0;
        while filled < buf.len() && self.end.is_none() {
            if !may_read(stream) || (filled > 0 && stream.get_ref().recvs >= RECVS) {
                break;
            }
            match stream.read(&mut buf[filled..]) {
                Ok(0) => self.end = Some(End::Eof { told: false }),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some versions call it an error when close_notify is missing.
                Err(_) if stream.get_ref().is_at_eof() => self.end = Some(End::Eof { told: false }),
                // Of the socket; or of TLS, and then with the reason inside.
                Err(error) if error.get_ref().is_none() => {
                    self.end = Some(End::Failed(Some(error)));
                }
                Err(error) => {
                    let error = TlsError::Session(error).into();
                    self.end = Some(End::Failed(Some(error)));
                }
            }
        }
        if let Err(error) = stream.get_mut().settle() {
            // What has arrived is there all the same, if it is only that an answer of TLS could not be sent.
            if !stream.get_ref().is_unwritable() {
                self.end.get_or_insert(End::Failed(Some(error)));
            }
        }
        if filled > 0 || buf.is_empty() {
            return Ok(filled);
        }
        match &mut self.end {
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(End::Eof { told }) => {
                *told = true;
                Ok(0)
            }
            Some(End::Failed(error)) => {
                let told = || io::ErrorKind::ConnectionAborted.into();
                Err(error.take().unwrap_or_else(told))
            }
        }
    }

    /// Writes plaintext. What is returned counts as taken: it is encrypted, and with the kernel or in
    /// here, no more than 64 KiB of it. `WouldBlock`: some is still in here.
    pub(crate) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    /// As [`write`](Self::write); many small slices share a record.
    pub(crate) fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush_pending()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let State::Open(stream) = &mut self.state else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if stream.get_ref().is_ending() || stream.get_ref().is_unwritable() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = seal(stream, bufs);
        stream.get_mut().settle()?;
        taken
    }

    /// Sends what earlier writes left behind. `true`: nothing is left.
    pub(crate) fn flush_pending(&mut self) -> io::Result<bool> {
        self.wire().map_or(Ok(true), Wire::flush_pending)
    }

    /// A write has failed: none will be tried any more.
    pub(crate) fn lose_writing(&mut self) {
        if let Some(wire) = self.wire() {
            wire.lose_writing();
        }
    }

    /// How much of what was taken is not with the kernel yet, encrypted.
    pub(crate) fn pending(&self) -> usize {
        match &self.state {
            State::Shaking(stream) => stream.get_ref().pending(),
            State::Open(stream) => stream.get_ref().pending(),
            State::Waiting(..) | State::Starting(..) | State::Failed => 0,
        }
    }

    /// Whether that is anything.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending() > 0
    }

    /// Sends close_notify, then ends the sending half of the socket: at once if the kernel takes all,
    /// or else with the [`flush_pending`](Self::flush_pending) that sends the last of it. Reading goes
    /// on.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        if let State::Open(stream) = &mut self.state {
            if stream.get_ref().is_ending() {
                // A second close_notify would wait for the peer's, and swallow data on the way.
                return Ok(());
            }
            // It fails only when the session has failed already.
            let _ = stream.shutdown();
            stream.get_mut().settle()?;
        }
        self.wire().map_or(Ok(()), Wire::end)
    }
}

#[cfg(test)]
impl<S: Socket> TlsStream<S> {
    pub(super) fn socket(&self) -> &S {
        match &self.state {
            State::Waiting(wire, _) | State::Starting(wire, _) => &wire.socket,
            State::Shaking(stream) => &stream.get_ref().socket,
            State::Open(stream) => &stream.get_ref().socket,
            State::Failed => panic!("the socket is closed"),
        }
    }

    pub(super) fn alpn(&self) -> Option<Vec<u8>> {
        match &self.state {
            State::Open(stream) => stream.negotiated_alpn().unwrap(),
            _ => None,
        }
    }

    pub(super) fn hang_up(&mut self) {
        self.state = State::Failed;
    }
}

impl TlsStream<Stream> {
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self.wire() {
            Some(wire) => wire.socket.register(registry, token),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Waiting(..) | State::Starting(..) => "TlsStream(new)",
            State::Shaking(_) => "TlsStream(handshake)",
            State::Open(_) => "TlsStream(open)",
            State::Failed => "TlsStream(failed)",
        })
    }
}

/// Whether a read can bring anything. Asked first, as a read in vain costs an error on OpenSSL's
/// stack and a buffer that it allocates and frees.
fn may_read<S: Socket>(stream: &native_tls::TlsStream<Wire<S>>) -> bool {
    stream.get_ref().may_read() || stream.buffered_read_size().is_ok_and(|n| n > 0)
}

// Handshakes may move to other threads.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<TlsStream>();
};

/// Looks at what the peer begins with. `false`: not enough to tell.
fn speaks_tls<S: Socket>(wire: &mut Wire<S>) -> io::Result<bool> {
    let (start, ended) = match wire.peek() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        other => other?,
    };
    match start.first() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(&HANDSHAKE) => Ok(true),
        Some(_) if METHODS.iter().any(|method| start.starts_with(method)) => {
            Err(TlsError::PlainHttp.into())
        }
        Some(_) if !ended && METHODS.iter().any(|method| method.starts_with(start)) => Ok(false),
        Some(_) => Err(TlsError::NotTls.into()),
    }
}

thread_local! {
    /// Where small slices become a record.
    static RUN: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Encrypts what one write takes of these, in records as long as can be.
fn seal(stream: &mut impl Write, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut room = MOST;
    if let [buf] = bufs {
        let taken = &buf[..buf.len().min(room)];
        stream.write_all(taken)?;
        return Ok(taken.len());
    }
    let mut run = RUN.take();
    run.clear();
    for buf in bufs {
        let mut rest = &buf[..buf.len().min(room)];
        room -= rest.len();
        while !rest.is_empty() {
            let part;
            if run.is_empty() && rest.len() >= RECORD {
                // It shares its record with nothing, so it need not be copied.
                (part, rest) = rest.split_at(RECORD);
                stream.write_all(part)?;
                continue;
            }
            (part, rest) = rest.split_at(rest.len().min(RECORD - run.len()));
            run.extend_from_slice(part);
            if run.len() == RECORD {
                stream.write_all(&run)?;
                run.clear();
            }
        }
    }
    stream.write_all(&run)?;
    RUN.set(run);
    Ok(MOST - room)
}
