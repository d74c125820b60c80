//! What users write: a [`Room`].

use std::time::Duration;

use super::members::Members;
use crate::message::Message;
use crate::peer::Peer;

/// State that several connections share, with its code: a match, a document, a chat.
///
/// All methods have the room to themselves: they are called one at a time, on worker threads, so nothing in a room
/// needs a lock. The room gets what handlers pass on (joining, messages, leaving) in the order in which it was passed
/// on. Like handlers, rooms may block, but then their members wait.
///
/// **Sending.** To one peer: [`Peer::send`], as ever. To the members: [`Members::broadcast`], which encodes once.
/// Messages that are sent in one call of the room go out together when the call is over, in one write for each
/// connection (or sooner, if somebody else sends to that connection meanwhile). Their order is kept.
///
/// **Panics.** A room that panics is closed; its members, and a peer that is just joining, are closed with 1011.
/// Nothing else is disturbed, and the next peer to join that name finds a new room.
///
/// ```
/// use framemill::{Members, Message, Peer, Refused, Room, Rooms, Tick};
///
/// /// Everybody adds to one number, and sees it twenty times a second.
/// #[derive(Default)]
/// struct Sum(u64);
///
/// impl Room for Sum {
///     type Join = ();
///
///     fn join(&mut self, room: &mut Members, _: &Peer, _: ()) -> Result<(), Refused> {
///         // The handler below closes a refused peer with 1013 (try again later).
///         if room.len() < 8 { Ok(()) } else { Err(Refused) }
///     }
///
///     fn message(&mut self, _: &mut Members, _: &Peer, message: Message) {
///         self.0 += message.to_text().ok().and_then(|n| n.parse().ok()).unwrap_or(0);
///     }
///
///     fn tick(&mut self, room: &mut Members, _: Tick) {
///         room.broadcast(self.0.to_string());
///     }
/// }
///
/// let rooms = Rooms::new(|_name| Sum::default()).tick_rate(20.0);
/// let handler = rooms.handler(|request| Ok((request.path().to_owned(), ())));
/// # fn is_handler(_: impl framemill::Handler) {}
/// # is_handler(handler);
/// ```
///
/// With `workers(0)` a room runs on the thread that brings it work: a loop, the ticker, or a thread of yours. If it is
/// running already, the ticker's thread does the new work afterwards.
pub trait Room: Send + 'static {
    /// A value that a peer brings along when it joins: a name, a token. `()` if it brings nothing.
    type Join: Send + 'static;

    /// A peer asks to join. It is not among the members yet: a broadcast in here goes to those that were there
    /// before.
    ///
    /// # Errors
    /// [`Refused`] if the peer may not join. The connection is left as it is, so tell the peer why, or
    /// [close](Peer::close) it; its [`Membership`](super::Membership) has no effect. With
    /// [`Rooms::handler`](super::Rooms::handler), the connection is closed with 1013, unless it was closed here.
    fn join(&mut self, room: &mut Members, peer: &Peer, join: Self::Join) -> Result<(), Refused>;

    /// A member's handler has passed on a message.
    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message);

    /// A member has left, has joined again (`join` follows, even if nobody else is in the room), or its
    /// connection has ended. It is no longer among the members.
    fn leave(&mut self, room: &mut Members, peer: &Peer) {
        let _ = (room, peer);
    }

    /// Time has passed; see [`Rooms::tick_rate`](super::Rooms::tick_rate).
    fn tick(&mut self, room: &mut Members, tick: Tick) {
        let _ = (room, tick);
    }
}

/// Refuses a peer that wants to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One step of a room's clock.
///
/// Ticks are due at fixed times, a period apart: a late tick does not delay the next. The first period begins up to a
/// period after the room was made, but at most 100 ms after, so that rooms that are made at the same time don't all
/// tick at the same time. A tick that is due while the previous one is still running waits for it; a tick that is due
/// while another waits is merged with it. So `dt` always adds up to the time since the first period began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Periods since the first began, this tick's included. Merged ticks count, so numbers may be skipped.
    pub number: u64,
    /// The time that this tick stands for: the period times (`merged` + 1).
    pub dt: Duration,
    /// Ticks that were due before this one and had no call of their own.
    pub merged: u32,
    /// How much later this tick begins than it was due.
    pub late: Duration,
}
