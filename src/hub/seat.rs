//! One joining of one connection: how much of its messages waits in the room, and what is done if it
//! is too much.
//!
//! The limit is that of the connection's own mailbox. Past it the connection is held until a quarter
//! is left; the same handshake of two sides as in `link::Inflow`: one adds and then looks, the other
//! takes away and then looks, so one of them sees the other and no connection stays held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::services::Services;
use crate::link::Load;
use crate::message::CloseCode;
use crate::peer::Peer;

/// See the module's documentation.
pub(super) struct Seat {
    pub(super) peer: Peer,
    services: Arc<Services>,
    /// The connection is there for this room alone, and is closed when it has no place there.
    closes_peer: bool,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    holding: AtomicBool,
}

/// A message that waits, or the joining itself, for as long as this lives.
pub(super) struct Counted {
    seat: Arc<Seat>,
    messages: usize,
    bytes: usize,
}

impl Seat {
    pub(super) fn new(peer: Peer, services: Arc<Services>, closes_peer: bool) -> Self {
        Self {
            peer,
            services,
            closes_peer,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            holding: AtomicBool::new(false),
        }
    }

    /// There is no place for it in the room (any more). If the room has closed it with words of its own,
    /// those are what it is told.
    pub(super) fn dismiss(&self, code: CloseCode, text: &str) {
        if self.closes_peer {
            self.peer.close(code, text);
        }
    }

    /// A message is put in.
    pub(super) fn wait(self: &Arc<Self>, bytes: usize) -> Counted {
        self.wait_as(1, bytes)
    }

    /// The joining is put in, with `behind` calls before it. If they are many, it counts for as many
    /// messages as may wait: a peer that joins again and again is slowed down too.
    pub(super) fn wait_to_join(self: &Arc<Self>, behind: usize) -> Counted {
        let most = self.limit().messages;
        self.wait_as(if behind < most { 0 } else { most }, 0)
    }

    fn wait_as(self: &Arc<Self>, messages: usize, bytes: usize) -> Counted {
        let messages_before = self.messages.fetch_add(messages, Ordering::SeqCst);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::SeqCst);
        let load = Load {
            messages: messages_before + messages,
            bytes: bytes_before + bytes,
        };
        if load.reaches(self.limit()) && !self.holding.swap(true, Ordering::SeqCst) {
            self.peer.link.hold();
            self.release_below_quarter();
        }
        Counted {
            seat: self.clone(),
            messages,
            bytes,
        }
    }

    fn limit(&self) -> Load {
        Load::inbound_limit(self.peer.link.config())
    }

    fn release_below_quarter(&self) {
        let load = Load {
            messages: self.messages.load(Ordering::SeqCst),
            bytes: self.bytes.load(Ordering::SeqCst),
        };
        let low = !load.reaches(self.limit().quarter());
        if low && self.holding.swap(false, Ordering::SeqCst) {
            self.services.release(&self.peer);
        }
    }
}

impl Counted {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let seat = &self.seat;
        seat.messages.fetch_sub(self.messages, Ordering::SeqCst);
        seat.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if seat.holding.load(Ordering::SeqCst) {
            seat.release_below_quarter();
        }
    }
}
