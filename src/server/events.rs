//! For people with a loop of their own: everything that happens, through one channel.

use crossbeam_channel::Sender;

use super::handler::{Accept, Handler};
use crate::http::{Request, Response};
use crate::message::{CloseReason, Message};
use crate::peer::Peer;

/// Something that happened on a connection. See [`Server::events`](crate::Server::events).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A WebSocket is open.
    Open(Peer),
    /// A text or binary message has arrived.
    Message(Peer, Message),
    /// The queue of a congested peer is empty again.
    Writable(Peer),
    /// The connection is over; nothing more comes from it.
    Close(Peer, CloseReason),
}

/// Passes everything on.
pub(super) struct ToChannel(pub(super) Sender<Event>);

impl ToChannel {
    /// Waits for room: that is what slows the senders down.
    fn pass(&self, event: Event) {
        // Nobody listens any more: the server goes on for whoever holds its handle.
        let _ = self.0.send(event);
    }
}

impl Handler for ToChannel {
    type Session = ();

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        self.pass(Event::Open(peer.clone()));
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        self.pass(Event::Message(peer.clone(), message));
    }

    fn writable(&self, (): &mut (), peer: &Peer) {
        self.pass(Event::Writable(peer.clone()));
    }

    fn close(&self, (): (), peer: &Peer, reason: &CloseReason) {
        self.pass(Event::Close(peer.clone(), reason.clone()));
    }
}
