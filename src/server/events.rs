//! For programs with a loop of their own: everything that happens, through one channel.

use crossbeam_channel::Sender;

use super::handler::{Accept, Handler};
use crate::http::{Request, Response};
use crate::message::{CloseReason, Message};
use crate::peer::Peer;

/// Something that happened on a connection. See [`Server::events`](crate::Server::events).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A client asks to open a WebSocket. The handshake is answered once this event is in the channel. Until then
    /// [`Peer::subprotocol`] is unknown; messages that you send to the peer from now on arrive after the answer.
    /// `Close` follows if the channel stayed full for [`handshake_timeout`](crate::Server::handshake_timeout), or if
    /// the client gave up.
    Open(Peer, Box<Request>),
    /// A text or binary message has arrived.
    Message(Peer, Message),
    /// The queue of a congested peer is empty again.
    Writable(Peer),
    /// The connection is over; nothing more comes from it.
    Close(Peer, CloseReason),
}

impl Event {
    /// The connection that the event is about.
    pub fn peer(&self) -> &Peer {
        match self {
            Self::Open(peer, _)
            | Self::Message(peer, _)
            | Self::Writable(peer)
            | Self::Close(peer, _) => peer,
        }
    }
}

/// Passes on everything about the connections that `decide` lets in.
pub(super) struct ToChannel<F> {
    pub(super) events: Sender<Event>,
    pub(super) decide: F,
}

impl<F> ToChannel<F> {
    /// Waits for room: that is what slows the senders down.
    fn pass(&self, event: Event) {
        // Nobody listens any more: the server goes on for whoever holds its handle.
        let _ = self.events.send(event);
    }
}

impl<F> Handler for ToChannel<F>
where
    F: Fn(&Request) -> Result<Accept<()>, Response> + Send + Sync + 'static,
{
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        let accept = (self.decide)(request)?;
        self.pass(Event::Open(peer.clone(), Box::new(request.clone())));
        Ok(accept)
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
