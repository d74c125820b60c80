//! Whose connection it is, if a proxy brings it.
//!
//! A connection from a proxy that we believe may begin with a header of the PROXY protocol, in front of
//! everything else, TLS included; and its request may tell of a client. Whoever that is gets a
//! [`Link`] of its own, so that handlers see no other, and is held to the limits of its address.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;

use super::acceptor;
use super::conn::{Conn, Context, Phase};
use super::counts::Counts;
use super::upstream::Upstream;
use crate::addr::RemoteAddr;
use crate::config::{Config, ProxyProtocol};
use crate::http::Request;
use crate::link::Link;
use crate::metrics::Refusal;
#[cfg(feature = "tls")]
use crate::net::Stream;
use crate::peer::Peer;
use crate::proto::forwarded;
use crate::proto::http::HttpError;
use crate::proto::proxy::{self, ProxyHeader};

impl Conn {
    /// Bytes before which there may be a header.
    pub(super) fn proxy_header_input<U: Upstream>(
        &mut self,
        bytes: &[u8],
        cx: &mut Context<'_, U>,
    ) {
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        opening.buf.extend_from_slice(bytes);
        let mut bytes = std::mem::take(&mut opening.buf);
        match self.proxy_header(&bytes, cx) {
            Some(len) => self.request_input(&mut bytes[len..], cx),
            None => {
                if let Phase::Opening(opening) = &mut self.phase {
                    opening.buf = bytes;
                }
            }
        }
    }

    /// Looks at the first bytes of a connection. `Some`: the length of the header, perhaps 0; what follows
    /// is no longer of this protocol. `None`: there is more to come, unless
    /// the connection is over.
    fn proxy_header<U: Upstream>(&mut self, bytes: &[u8], cx: &Context<'_, U>) -> Option<usize> {
        let config = cx.config;
        let id = self.peer.link.id;
        match proxy::scan(bytes) {
            Ok(ProxyHeader::Partial) => return None,
            Ok(ProxyHeader::Found { len, source }) => {
                if let Phase::Opening(opening) = &mut self.phase {
                    opening.proxy_header = false;
                    // It is no proxy, unless it turns out to be one: what it claims counts for nothing.
                    opening.proxied = false;
                }
                let within = source.is_none_or(|source| self.introduce(source.into(), config));
                return (within || self.is_to_be_told()).then_some(len);
            }
            Ok(ProxyHeader::Absent) if config.proxy_protocol == Some(ProxyProtocol::Optional) => {
                if let Phase::Opening(opening) = &mut self.phase {
                    opening.proxy_header = false;
                }
                return Some(0);
            }
            Ok(ProxyHeader::Absent) => log::debug!("{id}: no PROXY header"),
            Err(bad) => log::debug!("{id}: PROXY header: {}", bad.0),
        }
        self.note_refusal(Refusal::BadRequest);
        self.gone = true;
        None
    }

    /// A request, with its client's address.
    pub(super) fn identified(
        &mut self,
        mut request: Request,
        config: &Config,
    ) -> Result<Request, HttpError> {
        if matches!(&self.phase, Phase::Opening(opening) if opening.proxied) {
            let direct = self.peer.link.remote();
            let (which, trusted) = (config.forwarded_header, &config.proxies);
            let client = forwarded::client(direct, request.headers(), which, trusted)?;
            if client != direct {
                let within = self.introduce(client, config);
                request.set_remote_addr(client);
                if let (false, Phase::Opening(opening)) = (within, &mut self.phase) {
                    // The answer follows at once.
                    opening.refusal = Some(StatusCode::TOO_MANY_REQUESTS);
                }
            }
        }
        Ok(request)
    }

    /// From here on this is the connection of `client`. `false`: its address is over a limit.
    fn introduce(&mut self, client: RemoteAddr, config: &Config) -> bool {
        let link = &self.peer.link;
        log::debug!("{}: {} speaks for {client}", link.id, link.remote());
        // No handler has seen the old one.
        let link = Arc::new(Link::new(link.id, client, link.handle.clone(), None));
        self.peer = Peer { link };
        let Phase::Opening(opening) = &mut self.phase else {
            return true;
        };
        opening.proxied = config.proxies.contains(client.ip());
        if opening.proxied || opening.refusal.is_some() {
            return true;
        }
        let arrivals = &self.peer.link.handle.shared.arrivals;
        let within = arrivals.admit(client.ip(), config);
        if within {
            self.counts.enter(Counts::BY_IP);
        }
        within
    }

    /// Its client is over a limit: from here on it is counted like those that are so when they are
    /// accepted. `false`: too many are being answered already, and it is dropped.
    fn is_to_be_told(&mut self) -> bool {
        let shared = &self.peer.link.handle.shared;
        if !acceptor::enter_refusals(shared) {
            self.note_refusal(Refusal::Unanswered);
            self.gone = true;
            return false;
        }
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.leave_opening();
        self.counts.enter(Counts::REFUSED);
        if let Phase::Opening(opening) = &mut self.phase {
            opening.refusal = Some(StatusCode::TOO_MANY_REQUESTS);
        }
        self.note_refusal(Refusal::PerAddress);
        true
    }
}

/// With TLS behind the header, not a byte more than the header may be taken off the socket.
#[cfg(feature = "tls")]
impl Conn {
    pub(super) fn awaits_proxy_header_and_tls(&self) -> bool {
        matches!(&self.phase, Phase::Opening(opening) if opening.proxy_header)
            && matches!(self.stream, Stream::Tcp(_))
            && self.peer.link.handle.shared.speaks_tls()
    }

    pub(super) fn proxy_header_before_tls<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if !self.readable || self.gone {
            return;
        }
        let Stream::Tcp(socket) = &self.stream else {
            return;
        };
        let seen = match socket.peek(cx.buf) {
            Ok(0) => return self.gone = true,
            Ok(seen) => seen,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return self.readable = false;
            }
            Err(error) => return self.fail_transport(&error, cx),
        };
        let buf = std::mem::take(&mut cx.buf);
        match self.proxy_header(&buf[..seen], cx) {
            Some(len) => self.begin_tls(&mut buf[..len], cx),
            // More of it will be announced, however much is left lying.
            None => {
                self.readable = false;
                self.gone |= self.hung_up;
            }
        }
        cx.buf = buf;
    }

    /// Takes the header off the socket, and puts TLS around it.
    fn begin_tls<U: Upstream>(&mut self, header: &mut [u8], cx: &mut Context<'_, U>) {
        let taken = match header.is_empty() {
            true => Ok(0),
            false => self.stream.read(header),
        };
        match taken {
            Ok(taken) if taken == header.len() => {}
            // It was there a moment ago.
            Ok(_) => return self.gone = true,
            Err(error) => return self.fail_transport(&error, cx),
        }
        let socket = std::mem::replace(&mut self.stream, Stream::Lent);
        let counts = !self.is_refused();
        self.stream = self.peer.link.handle.shared.secure(socket, counts);
        self.stream.note_readable(self.hung_up);
        self.again = true;
    }
}
