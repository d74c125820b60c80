//! Handlers on the loop.

use std::sync::Arc;
use std::time::Instant;

use super::engine::{Engine, Ran};
use super::handler::Handler;
use super::session;
use crate::guard::guarded;
use crate::link::{EventBatch, Inline};
use crate::message::{Bytes, Message};
use crate::peer::Peer;
use crate::proto::Role;
use crate::reactor::{InlineRun, InlineUpstream, Upstream};

/// What is left where a message was.
const NONE: Message = Message::Binary(Bytes::new());

/// Runs handlers on the loop: `workers(0)`.
///
/// The mailbox is used only for what a congested peer must not have yet; as nobody but the loop
/// touches it then, the usual case is a plain call.
pub(crate) struct OnTheLoop<H>(pub(crate) Arc<Engine<H>>);

impl<H: Handler> Upstream for OnTheLoop<H> {
    const ROLE: Role = Role::Server;
    type Inline = Self;

    fn inline(&self) -> Option<&Self> {
        Some(self)
    }

    fn is_inline(&self) -> bool {
        true
    }

    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool {
        let link = &peer.link;
        if link.has_parked() {
            // Behind those that wait already.
            return link.deliver(events);
        }
        let _inline = Inline::run(link.id);
        if self.0.run_events(peer, events) == Ran::Done {
            return false;
        }
        let rest = link.pass_through_inbox(events);
        link.park(rest)
    }

    fn schedule(&self, peer: Peer, _: Option<Instant>) {
        // Not marked as inline: what is sent here asks for a flush like anything else.
        while self.0.run_mailbox(&peer, &mut 0) {}
    }
}

impl<H: Handler> InlineUpstream for OnTheLoop<H> {
    type Run<'a> = HandlerRun<'a, H>;

    fn run<R>(&self, peer: &Peer, body: impl FnOnce(&mut HandlerRun<'_, H>) -> R) -> Option<R> {
        let engine = &*self.0;
        let _inline = Inline::run(peer.link.id);
        let mut slot = peer.link.session();
        let mut corrupt = false;
        let result = guarded(|| {
            body(&mut HandlerRun {
                engine,
                peer,
                session: session::live(&mut slot),
                corrupt: &mut corrupt,
            })
        });
        if result.is_none() {
            engine.panicked(&peer.link, &mut slot);
        } else if corrupt {
            session::mute::<H::Session>(&mut slot);
        }
        result
    }
}

/// The messages of one connection, handled as they are read.
pub(crate) struct HandlerRun<'a, H: Handler> {
    engine: &'a Engine<H>,
    peer: &'a Peer,
    session: Option<&'a mut H::Session>,
    /// A message could not be inflated, and none after it is looked at.
    corrupt: &'a mut bool,
}

impl<H: Handler> InlineRun for HandlerRun<'_, H> {
    #[inline(always)] // or the message is moved once more
    fn message(&mut self, message: &mut Message) -> usize {
        let Some(session) = &mut self.session else {
            return 0;
        };
        if matches!(message, Message::Frame(_)) {
            return self.compressed(message);
        }
        let message = std::mem::replace(message, NONE);
        self.engine.handler.message(session, self.peer, message);
        0
    }
}

impl<H: Handler> HandlerRun<'_, H> {
    #[cold]
    fn compressed(&mut self, message: &mut Message) -> usize {
        let message = std::mem::replace(message, NONE);
        match (self.peer.link.inflate(message), &mut self.session) {
            (Some(message), Some(session)) => {
                let inflated = message.len();
                self.engine.handler.message(session, self.peer, message);
                inflated
            }
            _ => {
                *self.corrupt = true;
                self.session = None;
                0
            }
        }
    }
}
