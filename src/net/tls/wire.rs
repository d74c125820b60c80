//! Between native-tls and a socket: few system calls, and nothing forgotten.

use std::cell::Cell;
use std::io::{self, Read, Write};

use super::stream::TlsError;
use crate::net::Stream;

/// What is read from a socket at once: two records of the longest kind.
const INPUT: usize = 32 << 10;

/// The head of a record: type, version, length (RFC 8446 §5.1).
const HEAD: usize = 5;

/// The longest body of a record that native-tls may take (RFC 5246 §6.2.3; TLS 1.3 allows less).
const BODY: usize = (16 << 10) + 2048;

/// What may wait to be sent. One write leaves a quarter of this at most; more comes only of a peer that
/// provokes answers, such as alerts against renegotiation, and doesn't read them.
const PENDING: usize = 256 << 10;

/// `recv` calls between two calls of `settle`. Records can be tiny, or bring nothing at all (those are
/// all taken in one call of native-tls), so what fits in the caller's buffer bounds nothing.
pub(super) const RECVS: u32 = 4;

/// What an answer of TLS itself after the handshake costs a peer of its credit: 74 bytes provoke an alert
/// against renegotiation, and cost us more than them. Every byte that is received adds one to the
/// credit, and so do [`SENT`] that are sent.
const ANSWER: u32 = 1 << 20;

/// An honest peer that only reads may ask for new keys now and then, by what it has received. Answers
/// are too small to pay for themselves.
const SENT: usize = 64;

/// The credit of a peer, at first and at most. Honest peers have no use for more: nobody renegotiates
/// again and again, and key updates of TLS 1.3 are gigabytes apart.
const CREDIT: u32 = 8 * ANSWER;

/// What TLS needs of a socket. Non-blocking; readiness is edge-triggered.
pub(crate) trait Socket {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Ends the sending half.
    fn end(&mut self) -> io::Result<()>;
}

impl Socket for Stream {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read(buf)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.shutdown_write()
    }
}

thread_local! {
    /// The buffers of this thread, while no connection uses them.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Ciphertext on its way, of the connection that is being served.
#[derive(Debug)]
struct Scratch {
    input: Box<[u8]>,
    /// What of `input` is filled and not yet taken.
    at: usize,
    end: usize,
    /// To be sent.
    output: Vec<u8>,
}

impl Scratch {
    fn borrow() -> Box<Self> {
        // None when another connection of this thread has it, or while the thread ends.
        let free = SCRATCH.try_with(Cell::take).ok().flatten();
        free.unwrap_or_else(|| {
            Box::new(Self {
                input: vec![0; INPUT].into_boxed_slice(),
                at: 0,
                end: 0,
                output: Vec::new(),
            })
        })
    }

    fn give_back(mut self: Box<Self>) {
        (self.at, self.end) = (0, 0);
        self.output.clear();
        let _ = SCRATCH.try_with(|scratch| scratch.set(Some(self)));
    }
}

/// Bytes that wait with their connection. Holds no memory when empty.
#[derive(Debug, Default)]
struct Leftover {
    bytes: Vec<u8>,
    at: usize,
}

impl Leftover {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn advance(&mut self, n: usize) {
        self.at += n;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    fn add(&mut self, more: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.at));
        self.bytes.extend_from_slice(more);
    }
}

/// A socket as native-tls sees it.
///
/// Every call into native-tls is followed by [`settle`](Self::settle), which sends what the call
/// wrote and leaves the thread's buffers to others.
///
/// Reading asks the socket only when it can have something: from an event on until a `recv` that came
/// up short. epoll(7): for a stream, that one has emptied the socket, and whatever arrives later is a
/// new edge.
///
/// native-tls gets to see whole records only: OpenSSL allocates for the longest one on seeing the head
/// of any, and a head costs a peer five bytes.
///
/// Writing never blocks towards native-tls, so that no record has to be offered to it twice. What the
/// kernel does not take waits here, and [`TlsStream`](super::TlsStream) takes no more plaintext
/// until it has gone.
#[derive(Debug)]
pub(super) struct Wire<S> {
    pub(super) socket: S,
    /// Read, and not yet taken by native-tls.
    kept: Leftover,
    /// Written by native-tls, and not yet taken by the kernel.
    pending: Leftover,
    /// The buffers of the thread, between first use and `settle`.
    scratch: Option<Box<Scratch>>,
    /// Bytes of a record that native-tls has begun to take.
    record: usize,
    /// `recv` calls since the last `settle`.
    pub(super) recvs: u32,
    /// What answers may still be provoked, see [`ANSWER`].
    credit: u32,
    /// The peer provokes answers without end. One of them may be lost, so nothing more may be sent.
    exhausted: bool,
    /// The kernel may have something.
    readable: bool,
    /// The end of the stream, or an error, has been announced, and is not announced again.
    hung_up: bool,
    /// The end of the stream has been read.
    eof: bool,
    /// In the handshake, where the end of the stream is an error: of the connection, not of TLS.
    pub(super) shaking: bool,
    /// The end of the sending half waits for `pending`, or has been done.
    ending: bool,
    ended: bool,
    /// The kernel takes nothing any more: it failed once, which was told, and what is written goes nowhere.
    unwritable: bool,
}

impl<S: Socket> Wire<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            kept: Leftover::default(),
            pending: Leftover::default(),
            scratch: None,
            record: 0,
            recvs: 0,
            credit: CREDIT,
            exhausted: false,
            readable: true,
            hung_up: false,
            eof: false,
            shaking: true,
            ending: false,
            ended: false,
            unwritable: false,
        }
    }

    /// An event has announced something to read, or (`hung_up`) the end or an error.
    pub(super) fn socket_readable(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// Whether a read may bring something other than `WouldBlock`.
    pub(super) fn may_read(&self) -> bool {
        self.readable || self.eof || self.has_record()
    }

    /// The stream ended, and nothing that came before is left.
    pub(super) fn is_at_eof(&self) -> bool {
        self.eof && !self.has_input()
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Bytes written by native-tls, and not yet taken by the kernel.
    pub(super) fn pending(&self) -> usize {
        self.pending.rest().len()
    }

    /// What was read and not yet taken: the older part and the newer.
    fn input(&self) -> (&[u8], &[u8]) {
        let fresh = self.scratch.as_ref().map(|s| &s.input[s.at..s.end]);
        (self.kept.rest(), fresh.unwrap_or_default())
    }

    fn has_input(&self) -> bool {
        !matches!(self.input(), ([], []))
    }

    /// Bytes of the record that comes next, or is being taken, if all of it is there.
    fn whole_record(&self) -> Option<usize> {
        let (old, fresh) = self.input();
        let there = old.len() + fresh.len();
        let wanted = if self.record > 0 {
            self.record
        } else {
            let mut length = old.iter().chain(fresh).skip(HEAD - 2);
            let body = u16::from_be_bytes([*length.next()?, *length.next()?]);
            // Of one that is too long the beginning is enough to be refused.
            let body = usize::from(body);
            if body > BODY { HEAD } else { HEAD + body }
        };
        (there >= wanted).then_some(wanted)
    }

    /// Whether what comes next can be the head of a record: a type, and SSL 3.0 or any TLS. Otherwise its length
    /// would be anything, and never there.
    fn may_be_tls(&self) -> bool {
        let (old, fresh) = self.input();
        let mut head = old.iter().chain(fresh);
        head.next().is_none_or(|kind| (20..=24).contains(kind))
            && head.next().is_none_or(|&major| major == 3)
    }

    fn has_record(&self) -> bool {
        self.whole_record().is_some()
    }

    /// Reads until a whole record is there; or what there is, at the end of the stream.
    fn gather(&mut self) -> io::Result<()> {
        loop {
            if self.shaking && !self.may_be_tls() {
                return Err(TlsError::NotTls.into());
            }
            if let Some(record) = self.whole_record() {
                self.record = record;
                return Ok(());
            }
            if self.eof {
                self.record = self.input().0.len() + self.input().1.len();
                return Ok(());
            }
            self.keep();
            self.receive()?;
        }
    }

    /// Moves what is in the thread's buffer to what is kept.
    fn keep(&mut self) {
        if let Some(scratch) = &mut self.scratch {
            let fresh = &scratch.input[scratch.at..scratch.end];
            if !fresh.is_empty() {
                self.kept.add(fresh);
            }
            scratch.at = scratch.end;
        }
    }

    /// Reads and keeps what is read; shows all that is kept, and whether that is the whole stream.
    pub(super) fn peek(&mut self) -> io::Result<(&[u8], bool)> {
        self.receive()?;
        self.keep();
        Ok((self.kept.rest(), self.eof))
    }

    /// One `recv` into the thread's buffer, which is empty. Nothing in it afterwards: the end.
    fn receive(&mut self) -> io::Result<()> {
        let scratch = self.scratch.get_or_insert_with(Scratch::borrow);
        debug_assert_eq!(scratch.at, scratch.end);
        (scratch.at, scratch.end) = (0, 0);
        if self.eof {
            return Ok(());
        }
        if !self.readable || self.recvs >= RECVS {
            // Unread, the rest stays `readable`.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.recvs += 1;
        loop {
            match self.socket.recv(&mut scratch.input) {
                Ok(n) => {
                    self.eof = n == 0;
                    self.readable = n == scratch.input.len() || self.hung_up;
                    self.credit = (self.credit + n as u32).min(CREDIT);
                    scratch.end = n;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readable = false;
                    return Err(error);
                }
            }
        }
    }

    /// Sends what is to be sent, and leaves the thread's buffers.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        self.recvs = 0;
        self.keep();
        let Some(scratch) = self.scratch.take() else {
            return self.check();
        };
        let sent = self.send(&scratch.output);
        scratch.give_back();
        sent
    }

    /// An error once too much was provoked. It has to be told again and again: what `flush` says native-tls
    /// ignores.
    fn check(&self) -> io::Result<()> {
        match self.exhausted {
            true => Err(io::Error::other("the peer provokes too many answers")),
            false => Ok(()),
        }
    }

    /// Sends these after what is pending; what the kernel doesn't take becomes pending.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        self.credit = (self.credit + (bytes.len() / SENT) as u32).min(CREDIT);
        if self.flush_pending()? && !self.unwritable {
            let sent = send_all(&mut self.socket, &mut rest);
            sent.inspect_err(|_| self.lose_writing())?;
        }
        if self.unwritable {
            return Ok(());
        }
        if self.pending() + rest.len() > PENDING {
            self.exhausted = true;
            return self.check();
        }
        if !rest.is_empty() {
            self.pending.add(rest);
        }
        Ok(())
    }

    /// `true`: nothing is pending any more.
    pub(super) fn flush_pending(&mut self) -> io::Result<bool> {
        self.check()?;
        let all = self.pending.rest();
        let mut rest = all;
        let result = send_all(&mut self.socket, &mut rest);
        let sent = all.len() - rest.len();
        if sent > 0 {
            self.pending.advance(sent);
        }
        result.inspect_err(|_| self.lose_writing())?;
        if self.has_pending() {
            return Ok(false);
        }
        if self.ending && !std::mem::replace(&mut self.ended, true) {
            self.socket.end()?;
        }
        Ok(true)
    }

    pub(super) fn lose_writing(&mut self) {
        self.unwritable = true;
        self.pending = Leftover::default();
    }

    pub(super) fn is_unwritable(&self) -> bool {
        self.unwritable
    }

    /// Ends the sending half once all is sent.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.ending = true;
        self.flush_pending().map(|_| ())
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending
    }
}

impl<S> Drop for Wire<S> {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch.take() {
            scratch.give_back();
        }
    }
}

/// Sends until nothing is left or the kernel takes no more, so that room is announced.
fn send_all(socket: &mut impl Socket, bytes: &mut &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.send(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => *bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<S: Socket> Read for Wire<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        if self.record == 0 {
            self.gather()?;
            if self.record == 0 && self.shaking && !buf.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let most = buf.len().min(self.record);
        let (old, fresh) = self.input();
        let mut first = if old.is_empty() { fresh } else { old };
        let n = first.read(&mut buf[..most])?;
        if !self.kept.is_empty() {
            self.kept.advance(n);
        } else if let Some(scratch) = &mut self.scratch {
            scratch.at += n;
        }
        self.record -= n;
        Ok(n)
    }
}

impl<S: Socket> Write for Wire<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let scratch = self.scratch.get_or_insert_with(Scratch::borrow);
        scratch.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// native-tls calls this at the end of a flight of the handshake and after an alert: an alert has
    /// to be sent before native-tls drops the socket of a failed handshake.
    fn flush(&mut self) -> io::Result<()> {
        let Some(mut scratch) = self.scratch.take() else {
            return Ok(());
        };
        if !self.shaking && !scratch.output.is_empty() {
            match self.credit.checked_sub(ANSWER) {
                Some(credit) => self.credit = credit,
                None => self.exhausted = true,
            }
        }
        let sent = self.send(&scratch.output);
        scratch.output.clear();
        self.scratch = Some(scratch);
        sent
    }
}

#[cfg(test)]
mod tests;
