//! One connection: sends requests, receives replies.

use std::{
    io::{Error, Result},
    os::fd::OwnedFd,
    time::Instant,
};

use framemill_bench::frame::{self, Opcode};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
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
    socket: OwnedFd,
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
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let reader = Reader::default();
        Self {
            socket,
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
        while self.owed > 0 {
            let end = traffic.requests.len().min(self.position + self.owed);
            let requests = &traffic.requests[self.position..end];
            match send(&self.socket, requests, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.owed -= sent;
                    self.position = (self.position + sent) % traffic.request_len;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(hung_up(error)),
            }
        }
        if let Some(pong) = self.pong.take() {
            // Not worth a queue: a few bytes, once in many seconds.
            send(&self.socket, &pong, SendFlags::NOSIGNAL).map_err(hung_up)?;
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
        loop {
            let count = match recv(&self.socket, &mut scratch.buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(Error::other("the server closed a connection")),
                Ok((_, count)) => count,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(hung_up(error)),
            };
            replies += self.reader.feed(&scratch.buffer[..count], traffic)?;
            if count < scratch.buffer.len() && !ended {
                break;
            }
        }
        if let Some(ping) = self.reader.ping.take() {
            self.pong = Some(frame::client_frame(Opcode::Pong, &ping));
            self.flush(traffic)?;
        }
        Ok(replies)
    }
}

fn hung_up(error: Errno) -> Error {
    Error::other(format!("the server broke a connection: {error}"))
}
