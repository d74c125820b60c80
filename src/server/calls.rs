//! The calls of the user's handler, each of which may panic; all but that for a message, see
//! [`engine`](super::engine) and [`inline`](super::inline).

use std::sync::Arc;

use http::{Method, StatusCode};

use super::accepting::accept_head;
use super::engine::Engine;
use super::handler::Handler;
use super::session;
use crate::guard::guarded;
use crate::http::{Request, Response};
use crate::id::PeerId;
use crate::link::{Command, Link, Session as Slot, UpgradeRequest};
use crate::logging::Throttle;
use crate::message::{CloseCause, CloseCode, CloseReason, Initiator, Utf8Bytes};
use crate::peer::Peer;
use crate::proto::http::encode_response;

/// The longest body of a response: what is counted together has to fit 32 bits.
const MAX_BODY: usize = 1 << 30;

impl<H: Handler> Engine<H> {
    /// In the middle of a message, or told that there is room: it is called for nothing more but the end.
    pub(super) fn panicked(&self, link: &Arc<Link>, slot: &mut Slot) {
        panicked(link.id, "; closing with 1011");
        link.close(CloseCode::Error, "", CloseCause::Panic);
        session::mute::<H::Session>(slot);
    }

    pub(super) fn open(&self, peer: &Peer, opening: &UpgradeRequest) -> Slot {
        let link = &peer.link;
        let request = &opening.request;
        let decide = || {
            let accept = self.handler.open(request, peer)?;
            let head = accept_head(link, opening, &accept).map_err(Response::from);
            Ok((head, accept.session))
        };
        let accepted = guarded(decide).unwrap_or_else(|| {
            panicked(link.id, " in open");
            Err(StatusCode::INTERNAL_SERVER_ERROR.into())
        });
        match accepted {
            Ok((Ok(head), session)) => {
                link.handle.post(Command::Accept(link.id.key(), head));
                Some(Box::new(session))
            }
            Ok((Err(response), session)) => {
                self.respond(link, response, false);
                // What the handler says from now on goes nowhere.
                let cause = CloseCause::HandshakeTimeout;
                link.outbox().seal(CloseCode::Abnormal, "", cause);
                // What was accepted is told its end, though it never began.
                let reason = CloseReason {
                    code: CloseCode::Abnormal,
                    text: Utf8Bytes::default(),
                    initiator: Initiator::Local,
                    clean: false,
                    cause: CloseCause::HandshakeTimeout,
                    undelivered: 0,
                };
                self.close(peer, session, &reason);
                None
            }
            Err(response) => {
                self.respond(link, response, false);
                None
            }
        }
    }

    pub(super) fn http(&self, link: &Arc<Link>, request: &Request) {
        let response = guarded(|| self.handler.http(request)).unwrap_or_else(|| {
            panicked(link.id, " in http");
            StatusCode::INTERNAL_SERVER_ERROR.into()
        });
        self.respond(link, response, request.method() == Method::HEAD);
    }

    fn respond(&self, link: &Arc<Link>, response: Response, head_only: bool) {
        let mut status = response.status();
        let answer = if response.content().len() > MAX_BODY {
            log::error!("{}: the body of a response is over 1 GiB", link.id);
            status = StatusCode::INTERNAL_SERVER_ERROR;
            encode_response(&status.into(), head_only)
        } else {
            encode_response(&response, head_only)
        };
        link.handle
            .post(Command::Respond(link.id.key(), status, answer));
        // Its body may be of a type of the user's.
        if guarded(|| drop(response)).is_none() {
            panicked(link.id, " as a response was dropped");
        }
    }

    pub(super) fn writable(&self, peer: &Peer, slot: &mut Slot) {
        let outcome = guarded(|| {
            if let Some(session) = session::live(slot) {
                self.handler.writable(session, peer);
            }
        });
        if outcome.is_none() {
            self.panicked(&peer.link, slot);
        }
    }

    pub(super) fn close(&self, peer: &Peer, session: H::Session, reason: &CloseReason) {
        if guarded(|| self.handler.close(session, peer, reason)).is_none() {
            panicked(peer.id(), " in close");
        }
    }
}

/// A peer may know how to make a handler panic.
fn panicked(id: PeerId, what: &str) {
    static PANICS: Throttle = Throttle::new();
    if let Some(more) = PANICS.pass() {
        log::error!("{id}: the handler panicked{what}{more}");
    }
}
