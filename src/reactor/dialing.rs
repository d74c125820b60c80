//! A client's way to an open WebSocket: the addresses in turn, the request, the answer.
//!
//! The TCP connection is made without blocking: a socket that is being connected becomes writable when
//! it is, or when it can't be. Each address has a connection of its own in the slab; one that can't be
//! had passes what is to be dialed on to the next.
//!
//! Once a server has taken the connection its answer is final: other addresses are tried only for want
//! of a connection.

use std::io;
use std::time::{Duration, Instant};

use super::conn::{Conn, Context, HandlerKnows, Phase};
use super::liveness::{Moment, millis};
use super::upstream::Upstream;
use crate::addr::RemoteAddr;
use crate::config::Config;
use crate::error::{Error, Result};
#[cfg(feature = "deflate")]
use crate::link::Compression;
use crate::link::{Agreement, Connected, Dial, Event, Target};
use crate::net::Stream;
#[cfg(feature = "deflate")]
use crate::proto::deflate;
use crate::proto::http::HeadScan;
use crate::proto::{Accepted, ClientRefused, verify};

/// An address that others stand behind gets no more than this, so that a dead one in front does not
/// use up the time of them all. Enough for a SYN to be lost once.
const ATTEMPT: Duration = Duration::from_secs(2);

const TOO_LONG: &str = "the head of the answer is too long";

/// A connection that is not a WebSocket yet.
#[derive(Debug)]
pub(crate) struct Dialing {
    dial: Box<Dial>,
    /// There is no connection yet.
    connecting: bool,
    /// By the loop's clock: the end of this attempt, and of the whole.
    attempt_ends: u64,
    ends: u64,
    answer: Answer,
}

/// The head of the server's answer, as far as it has arrived; at most the limit of a head.
#[derive(Debug, Default)]
struct Answer {
    buf: Vec<u8>,
    scan: HeadScan,
    /// Bytes of interim heads before this one: they count towards the limit.
    interim: usize,
}

/// Begins to connect to the next of the addresses that can be tried at all.
pub(super) fn begin(dial: &mut Dial) -> Result<(Stream, RemoteAddr)> {
    while let Some(target) = dial.targets.pop_front() {
        if Instant::now() >= dial.deadline {
            return Err(Error::Timeout);
        }
        let begun = match &target {
            Target::Ip(addr) => Stream::connect(*addr, dial.config.nodelay)
                .map(|stream| (stream, RemoteAddr::Ip(*addr))),
            #[cfg(unix)]
            Target::Unix(path) => {
                Stream::connect_unix(path).map(|stream| (stream, RemoteAddr::Unix))
            }
        };
        match begun {
            Ok(begun) => return Ok(begun),
            Err(source) => {
                let addr = target.to_string();
                dial.failure = Some(Error::Connect { addr, source });
            }
        }
    }
    Err(dial.failure.take().unwrap_or(Error::Timeout))
}

impl Dialing {
    /// `start`: when the loop's clock began.
    pub(super) fn new(dial: Box<Dial>, start: Instant) -> Self {
        let now = Instant::now();
        let left = dial.deadline.saturating_duration_since(now);
        let attempt = match dial.targets.len() as u32 {
            0 => left,
            others => (left / (others + 1)).min(ATTEMPT),
        };
        let at = |wait| millis((now + wait).saturating_duration_since(start));
        Self {
            connecting: true,
            attempt_ends: at(attempt),
            ends: at(left),
            answer: Answer::default(),
            dial,
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn deadline(&self) -> u64 {
        if self.connecting {
            self.attempt_ends
        } else {
            self.ends
        }
    }
}

impl Conn {
    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.phase, Phase::Dialing(_))
    }

    /// The socket is writable again, or for the first time.
    pub(super) fn unblocked<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if !matches!(&self.phase, Phase::Dialing(dialing) if dialing.connecting) {
            // Also if what waits is the rest of a long request.
            return self.flush(cx);
        }
        match self.stream.connected() {
            Ok(true) => self.connected(cx),
            // Not yet, after all.
            Ok(false) => self.blocked = true,
            Err(error) => self.not_connected(error, cx),
        }
    }

    /// The TCP connection is there.
    fn connected<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        #[cfg(feature = "tls")]
        if let Phase::Dialing(dialing) = &mut self.phase {
            if let Some((trust, domain)) = dialing.dial.tls.take() {
                dialing.connecting = false;
                self.rearm = true;
                self.stream.secure(&trust, &domain);
                self.readable = true;
                return self.secure(cx);
            }
        }
        self.ask_for_websocket(cx);
    }

    /// The connection is there: sends the request.
    pub(super) fn ask_for_websocket<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let Phase::Dialing(dialing) = &mut self.phase else {
            return;
        };
        dialing.connecting = false;
        let mut request = Vec::with_capacity(256);
        match dialing.dial.request.write(&mut request) {
            Ok(()) => {
                self.rearm = true;
                self.write_first(request);
                self.flush(cx);
            }
            Err(why) => self.not_opened(Error::Config(why.into()), cx),
        }
    }

    /// Bytes of the answer.
    pub(super) fn answer_input<U: Upstream>(
        &mut self,
        mut bytes: &mut [u8],
        cx: &mut Context<'_, U>,
    ) {
        loop {
            let Phase::Dialing(dialing) = &mut self.phase else {
                return;
            };
            let answer = &mut dialing.answer;
            let limit = cx.config.max_head.saturating_sub(answer.interim);
            let old = answer.buf.len();
            // A head longer than the limit need not be kept to be refused.
            let fresh = bytes.len().min((limit + 1).saturating_sub(old));
            answer.buf.extend_from_slice(&bytes[..fresh]);
            let end = match answer.scan.response(&answer.buf, limit) {
                Ok(None) => return,
                Ok(Some(end)) => end,
                Err(error) => {
                    let too_long = answer.buf.len() >= limit;
                    let why = if too_long { TOO_LONG } else { error.why };
                    return self.not_opened(Error::Handshake(why), cx);
                }
            };
            let head = &answer.buf[..end];
            let verdict = verify(&dialing.dial.request, head, cx.config.max_headers);
            bytes = &mut bytes[end - old..];
            match verdict {
                Ok(mut accepted) => {
                    let headers = std::mem::take(&mut accepted.headers);
                    return match self.agreement(accepted, cx.config) {
                        Ok(agreement) => self.on_accepted(agreement, headers, bytes, cx),
                        Err(why) => self.not_opened(Error::Handshake(why), cx),
                    };
                }
                // RFC 9110 §15.2: "A client MUST be able to parse one or more 1xx responses received
                // prior to a final response".
                Err(ClientRefused::Status(head)) if head.status.is_informational() => {
                    *answer = Answer {
                        interim: answer.interim + end,
                        ..Answer::default()
                    };
                }
                Err(ClientRefused::Status(head)) => {
                    let refused = Error::Refused {
                        status: head.status,
                        headers: Box::new(head.headers),
                    };
                    return self.not_opened(refused, cx);
                }
                Err(ClientRefused::Invalid(why)) => {
                    return self.not_opened(Error::Handshake(why), cx);
                }
            }
        }
    }

    /// What the server agreed to, if it may.
    fn agreement(
        &self,
        accepted: Accepted,
        config: &Config,
    ) -> std::result::Result<Option<Agreement>, &'static str> {
        #[cfg(feature = "deflate")]
        let compression = match (&config.deflate, accepted.extensions.first()) {
            (Some(want), Some(answer)) if answer.name == deflate::NAME => {
                let agreed = deflate::accept(answer, want)?;
                let shared = self.peer.link.handle.shared.clone();
                Some(Compression::new(agreed, shared))
            }
            _ => None,
        };
        #[cfg(not(feature = "deflate"))]
        let _ = config;
        #[cfg(feature = "deflate")]
        let nothing = compression.is_none();
        #[cfg(not(feature = "deflate"))]
        let nothing = true;
        if nothing && accepted.subprotocol.is_none() {
            return Ok(None);
        }
        Ok(Some(Agreement {
            subprotocol: accepted.subprotocol.map(Into::into),
            #[cfg(feature = "deflate")]
            compression,
        }))
    }

    /// The WebSocket is open; `rest` is what followed the answer in the same read.
    fn on_accepted<U: Upstream>(
        &mut self,
        agreement: Option<Agreement>,
        headers: http::HeaderMap,
        rest: &mut [u8],
        cx: &mut Context<'_, U>,
    ) {
        let phase = std::mem::replace(&mut self.phase, Phase::Open(None));
        let Phase::Dialing(dialing) = phase else {
            return;
        };
        if let Some(agreement) = agreement {
            self.peer.link.agree(agreement);
        }
        #[cfg(feature = "deflate")]
        if self.peer.link.compression().is_some() {
            self.reader.allow_compression();
        }
        self.handler_knows = HandlerKnows::Opening;
        self.last_seen = Moment::at(cx.now);
        self.rearm = true;
        let session = dialing.dial.session;
        let connected = Connected { session, headers };
        cx.batch.push_back(Event::Connected(Box::new(connected)));
        self.deliver(cx);
        self.input(rest, cx);
    }

    /// The time for this address, or for all of it, is up.
    pub(super) fn dial_timeout<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        match &self.phase {
            Phase::Dialing(dialing) if dialing.connecting && dialing.ends > cx.now => {
                self.not_connected(io::ErrorKind::TimedOut.into(), cx);
            }
            _ => self.not_opened(Error::Timeout, cx),
        }
    }

    /// The server was there, and hung up.
    pub(super) fn not_answered<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let why = "the server hung up before it answered";
        self.not_connected(io::Error::new(io::ErrorKind::UnexpectedEof, why), cx);
    }

    /// No connection to this address, or none any more.
    pub(super) fn not_connected<U: Upstream>(
        &mut self,
        source: io::Error,
        cx: &mut Context<'_, U>,
    ) {
        let addr = self.peer.link.remote().to_string();
        let error = Error::Connect { addr, source };
        match &mut self.phase {
            Phase::Dialing(dialing) if dialing.connecting && !dialing.dial.targets.is_empty() => {
                dialing.dial.failure = Some(error);
                if let Some(dial) = self.stop_dialing() {
                    cx.dials.push_back(dial);
                }
            }
            _ => self.not_opened(error, cx),
        }
    }

    /// There will be no WebSocket.
    pub(super) fn not_opened<U: Upstream>(&mut self, error: Error, cx: &mut Context<'_, U>) {
        log::debug!("{}: not opened: {error}", self.peer.link.id);
        if let Some(dial) = self.stop_dialing() {
            cx.upstream.failed(dial, error);
        }
    }

    fn stop_dialing(&mut self) -> Option<Box<Dial>> {
        self.gone = true;
        self.peer.link.outbox().abandon();
        match std::mem::replace(&mut self.phase, Phase::Lingering) {
            Phase::Dialing(dialing) => Some(dialing.dial),
            _ => None,
        }
    }
}
