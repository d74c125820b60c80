//! One connection: sends requests, receives replies.

use std::{
    io::{Error, ErrorKind, Result},
    time::Instant,
};

use framemill_bench::{
    frame::{self, Opcode},
    stream::Stream,
};

use crate::{reader::Reader, traffic::Traffic};

/// One for all connections. Large enough for everything small in one read, and small enough to stay
/// in the cache.
///
/// To leave large payloads in the kernel (MSG_TRUNC) was tried and is no cheaper: what the copy no
/// longer costs, the next send does, into pages that this core has never seen.
const BUFFER: usize = 256 * 1024;

/// Every so many reads, whole replies are compared with what was sent. A prime, so as not to meet
/// the same connections again and again.
const CHECK_EVERY: u64 = 61;

/// What all connections read with.
pub(crate) struct Scratch {
    buffer: Vec<u8>,
    reads: u64,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER],
            reads: 0,
        }
    }
}

pub(crate) struct Conn {
    stream: Stream,
    reader: Reader,
    /// Bytes of requests that the kernel has not taken yet.
    owed: usize,
    /// Where in a request they begin; `< request_len`.
    position: usize,
    /// A pong to send when no request is half sent.
    pong: Option<Vec<u8>>,
    /// When the last request was sent. For the use of modes with one in flight.
    pub(crate) sent_at: Instant,
}

impl Conn {
    pub(crate) fn new(stream: Stream) -> Self {
        let reader = Reader::default();
        Self {
            stream,
            reader,
            owed: 0,
            position: 0,
            pong: None,
            sent_at: Instant::now(),
        }
    }

    pub(crate) fn send(&mut self, traffic: &Traffic, requests: usize) -> Result<()> {
        self.owed += requests * traffic.request_len;
        self.flush(traffic)
    }

    /// Sends what is owed. What the kernel does not take now waits for the next writable event.
    pub(crate) fn flush(&mut self, traffic: &Traffic) -> Result<()> {
        self.stream.flush().map_err(hung_up)?;
        while self.owed > 0 {
            let end = traffic.requests.len().min(self.position + self.owed);
            let requests = &traffic.requests[self.position..end];
            match self.stream.send(requests) {
                Ok(sent) => {
                    self.owed -= sent;
                    self.position = (self.position + sent) % traffic.request_len;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(hung_up(error)),
            }
        }
        if let Some(pong) = self.pong.take() {
            // Not worth a queue: a few bytes, once in many seconds.
            self.stream.send(&pong).map_err(hung_up)?;
        }
        Ok(())
    }

    /// Reads until the socket is empty and returns the number of replies completed. `ended` is
    /// whether the server has closed its side, so that a short read does not mean empty.
    pub(crate) fn receive(
        &mut self,
        traffic: &Traffic,
        scratch: &mut Scratch,
        ended: bool,
    ) -> Result<usize> {
        let mut replies = 0;
        scratch.reads += 1;
        if scratch.reads.is_multiple_of(CHECK_EVERY) {
            self.reader.check();
        }
        self.stream.socket_readable(ended);
        while let Some(count) = self.read(scratch)? {
            replies += self.reader.feed(&scratch.buffer[..count], traffic)?;
            if self.stream.is_drained(count, BUFFER, ended) {
                break;
            }
        }
        if let Some(ping) = self.reader.ping.take() {
            self.pong = Some(frame::client_frame(Opcode::Pong, &ping));
            self.flush(traffic)?;
        }
        Ok(replies)
    }

    /// The same without looking at it: appends what there is to `received`.
    pub(crate) fn receive_raw(
        &mut self,
        received: &mut Vec<u8>,
        scratch: &mut Scratch,
        ended: bool,
    ) -> Result<()> {
        self.stream.socket_readable(ended);
        while let Some(count) = self.read(scratch)? {
            received.extend_from_slice(&scratch.buffer[..count]);
        }
        Ok(())
    }

    fn read(&mut self, scratch: &mut Scratch) -> Result<Option<usize>> {
        match self.stream.recv(&mut scratch.buffer) {
            Ok(0) => Err(Error::other("the server closed a connection")),
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(hung_up(error)),
        }
    }
}

fn hung_up(error: Error) -> Error {
    Error::other(format!("the server broke a connection: {error}"))
}
