//! A connection before it is a WebSocket: the request comes in, is checked, and waits for the
//! handler's verdict; or it is plain HTTP, and the handler answers.

use http::{HeaderValue, Method, StatusCode, header};

use super::conn::{Conn, Context, HandlerKnows, Phase};
use super::counts::Counts;
use super::liveness::{Allowance, Moment};
use super::upstream::Upstream;
use crate::config::Config;
use crate::error::Error;
use crate::http::{Request, Response};
use crate::link::{self, Event};
use crate::message::CloseCause;
use crate::metrics::Refusal;
use crate::proto::handshake;
use crate::proto::http::{
    Answer, CONTINUE, HeadScan, body_length, encode_response, expects_continue, parse_request,
};

/// A request that is arriving. Its memory is what arrived, at most the head limit plus the body's.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    pub(super) buf: Vec<u8>,
    scan: HeadScan,
    /// The head is complete; the number is the bytes of body that are to follow it. Few have one, and so
    /// the memory of an opening is too small for the allocator to cut a [`Link`](crate::link::Link) from,
    /// which would leave a hole for as long as that is there.
    body: Option<Box<(Request, usize)>>,
    /// Whatever is asked, this is the answer: a limit was reached when the connection was accepted.
    pub(super) refusal: Option<StatusCode>,
    /// A proxy that we believe brings it, so the request tells who the client is.
    pub(super) proxied: bool,
    /// And a header of the PROXY protocol may come first.
    pub(super) proxy_header: bool,
    /// It begins like a HEAD request, sound or not.
    is_head: bool,
}

impl Opening {
    pub(super) fn new(refusal: Option<StatusCode>, proxied: bool, config: &Config) -> Self {
        Self {
            refusal,
            proxied,
            proxy_header: proxied && config.proxy_protocol.is_some(),
            ..Self::default()
        }
    }

    pub(super) fn is_proxied(&self) -> bool {
        self.proxied
    }

    #[cfg(feature = "tls")]
    pub(super) fn awaits_proxy_header(&self) -> bool {
        self.proxy_header
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refusal.is_some()
    }
}

impl Conn {
    /// Whether nothing at all was received yet.
    pub(super) fn request_is_blank(&self) -> bool {
        matches!(&self.phase, Phase::Opening(opening)
            if opening.proxy_header || (opening.buf.is_empty() && opening.body.is_none()))
    }

    /// Bytes of a request.
    pub(super) fn request_input<U: Upstream>(&mut self, bytes: &mut [u8], cx: &mut Context<'_, U>) {
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        if opening.proxy_header {
            return self.proxy_header_input(bytes, cx);
        }
        if opening.body.is_some() {
            return self.body_input(bytes, cx);
        }
        let old = opening.buf.len();
        // A head longer than the limit need not be kept to be refused.
        let fresh = bytes
            .len()
            .min(cx.config.max_head.saturating_add(1).saturating_sub(old));
        opening.buf.extend_from_slice(&bytes[..fresh]);
        opening.is_head = opening.buf.trim_ascii_start().starts_with(b"HEAD ");
        match opening.scan.request(&opening.buf, cx.config.max_head) {
            Ok(None) => {}
            Ok(Some(end)) => {
                let head = std::mem::take(&mut opening.buf);
                let remote = self.peer.link.remote();
                let request = parse_request(&head[..end], cx.config.max_headers, remote)
                    .and_then(|request| self.identified(request, cx.config));
                match (request, self.refusal()) {
                    (Err(error), _) => self.refuse(error.into(), cx),
                    (Ok(_), Some(status)) => self.refuse(status.into(), cx),
                    (Ok(request), None) => self.on_request(request, &mut bytes[end - old..], cx),
                }
            }
            Err(error) => self.refuse(error.into(), cx),
        }
    }

    /// The answer to whatever is asked, if there is one.
    fn refusal(&self) -> Option<StatusCode> {
        match &self.phase {
            Phase::Opening(opening) => opening.refusal,
            _ => None,
        }
    }

    /// A whole head; `rest` is what followed it in the same read.
    fn on_request<U: Upstream>(
        &mut self,
        request: Request,
        rest: &mut [u8],
        cx: &mut Context<'_, U>,
    ) {
        if handshake::wants_upgrade(&request) {
            return self.on_upgrade(request, rest, cx);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::POST) {
            let allow = HeaderValue::from_static("GET, HEAD, POST");
            let response = Response::from(StatusCode::METHOD_NOT_ALLOWED);
            return self.refuse(response.header(header::ALLOW, allow), cx);
        }
        match body_length(&request) {
            Err(error) => self.refuse(error.into(), cx),
            Ok(length) if length > cx.config.max_body => {
                self.refuse(StatusCode::PAYLOAD_TOO_LARGE.into(), cx);
            }
            Ok(0) => self.ask(Event::Http(Box::new(request)), cx),
            Ok(length) => {
                if rest.is_empty() && expects_continue(&request) {
                    self.write_first(CONTINUE.to_vec());
                }
                if let Phase::Opening(opening) = &mut self.phase {
                    opening.body = Some(Box::new((request, length)));
                }
                self.body_input(rest, cx);
            }
        }
    }

    fn body_input<U: Upstream>(&mut self, bytes: &[u8], cx: &mut Context<'_, U>) {
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        let Some(&(_, length)) = opening.body.as_deref() else {
            return;
        };
        let missing = length - opening.buf.len();
        // What follows the body would be a second request; each connection has one.
        opening
            .buf
            .extend_from_slice(&bytes[..bytes.len().min(missing)]);
        if opening.buf.len() == length {
            if let Some(body) = opening.body.take() {
                let (mut request, _) = *body;
                request.set_body(std::mem::take(&mut opening.buf).into());
                self.ask(Event::Http(Box::new(request)), cx);
            }
        }
    }

    fn on_upgrade<U: Upstream>(
        &mut self,
        request: Request,
        rest: &mut [u8],
        cx: &mut Context<'_, U>,
    ) {
        let upgrade = match handshake::check(&request) {
            Ok(upgrade) => upgrade,
            Err(error) => return self.refuse(error.into(), cx),
        };
        if cx.stopping.is_some() {
            return self.refuse(Response::from(StatusCode::SERVICE_UNAVAILABLE), cx);
        }
        if !cx.config.origin.allows(request.origin(), request.host()) {
            log::debug!(
                "{}: origin {:?} refused",
                self.peer.link.id,
                request.origin().unwrap_or_default()
            );
            return self.refuse(Response::forbidden(), cx);
        }
        // RFC 6455 §4.1 lets a client send no frame before it has the answer, but bytes that came in
        // the same packet as the request are frames all the same once the connection is open.
        self.keep(rest);
        self.handler_knows = HandlerKnows::Opening;
        let opening = link::UpgradeRequest { request, upgrade };
        self.ask(Event::Open(Box::new(opening)), cx);
    }

    /// Puts the question to the handler.
    fn ask<U: Upstream>(&mut self, event: Event, cx: &mut Context<'_, U>) {
        self.phase = Phase::Deciding;
        cx.batch.push_back(event);
        self.deliver(cx);
    }

    /// The handler accepted; `head` is the 101.
    pub(super) fn accept<U: Upstream>(&mut self, head: Vec<u8>, cx: &mut Context<'_, U>) {
        // It may have been terminated a moment ago.
        if self.gone || !matches!(self.phase, Phase::Deciding) {
            return;
        }
        #[cfg(feature = "deflate")]
        if self.peer.link.compression().is_some() {
            self.reader.allow_compression();
        }
        self.leave_opening();
        self.counts.leave(Counts::UNTOLD);
        cx.counters.opened.add(1);
        self.phase = Phase::Open(Allowance::new(cx.config, cx.now));
        self.last_seen = Moment::at(cx.now);
        self.rearm = true;
        self.again = true;
        self.write_first(head);
        if let Some(code) = cx.stopping {
            self.close_after_inbox(code, "", CloseCause::Shutdown, cx);
        }
        self.flush(cx);
    }

    /// The handler answered with a response of this status.
    pub(super) fn respond<U: Upstream>(
        &mut self,
        status: StatusCode,
        answer: Answer,
        cx: &mut Context<'_, U>,
    ) {
        if !self.gone && matches!(self.phase, Phase::Deciding) {
            let id = self.peer.link.id;
            if std::mem::replace(&mut self.handler_knows, HandlerKnows::Nothing)
                != HandlerKnows::Nothing
            {
                log::debug!("{id}: refused by the handler with {status}");
                self.count_refusal(Refusal::Handler);
            } else {
                log::debug!("{id}: answered with {status}");
                self.counts.leave(Counts::UNTOLD);
                cx.counters.http_requests.add(1);
            }
            self.answer(answer, cx);
        }
    }

    /// Answers without asking the handler.
    pub(super) fn refuse<U: Upstream>(&mut self, response: Response, cx: &mut Context<'_, U>) {
        log::debug!("{}: refused with {}", self.peer.link.id, response.status());
        self.count_refusal(Refusal::of_status(response.status().as_u16()));
        // RFC 9110 §9.3.2: the answer to HEAD has no body, whatever it answers.
        let head_only = matches!(&self.phase, Phase::Opening(opening) if opening.is_head);
        self.answer(encode_response(&response, head_only), cx);
    }

    fn answer<U: Upstream>(&mut self, answer: Answer, cx: &mut Context<'_, U>) {
        // Whatever the handler queued was meant for a WebSocket.
        self.peer.link.outbox().abandon();
        self.write_first(answer.head);
        self.write_next(answer.body);
        self.linger(cx);
        self.flush(cx);
    }

    /// The server stops: what has not become a WebSocket won't.
    pub(super) fn stop_opening<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if self.is_dialing() {
            self.not_opened(Error::Closed, cx);
        } else if self.request_is_blank() {
            self.note_refusal(Refusal::Shutdown);
            self.gone = true;
        } else if matches!(self.phase, Phase::Opening(_)) {
            self.refuse(StatusCode::SERVICE_UNAVAILABLE.into(), cx);
        }
    }
}
