//! What users write: a [`Room`].

use std::time::Duration;

use super::members::Members;
use crate::message::Message;
use crate::peer::Peer;

/// State that several connections share, with its code: a match, a document, a chat.
///
/// All methods have the room to themselves: they are called one at a time, on worker threads, so
/// nothing in a room needs a lock. What the handler of one connection passes on (joining, messages,
/// leaving) arrives in its order; between connections there is no order but that in which it was
/// passed on. Like handlers, rooms may block, but then their members wait.
///
/// **Sending.** To one: [`Peer::send`], as ever. To the members: [`Members::broadcast`], which
/// encodes once. All that is sent in one call goes out together when the call is over: one write for
/// each connection (or sooner, if somebody else sends to it meanwhile). Order is kept between all of these.
///
/// **Panics.** A room that panics is closed; its members, and a peer that is just joining, are closed
/// with 1011. Nothing else is disturbed, and the next peer to join that name finds a new room.
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
/// With `workers(0)` a room runs on the thread that brings it work: the loop's, the ticker's, or one of
/// yours. What is brought to a room that is running already is dealt with on the ticker's thread.
pub trait Room: Send + 'static {
    /// What a peer brings along when it joins: a name, a token. `()` if it is nothing.
    type Join: Send + 'static;

    /// A peer asks to join. It is not among the members yet: what is broadcast here goes to those that
    /// were there before.
    ///
    /// # Errors
    /// [`Refused`] if it may not. The connection is left as it is, so tell the peer why, or
    /// [close](Peer::close) it; its [`Membership`](super::Membership) has no effect. With
    /// [`Rooms::handler`](super::Rooms::handler), it is closed with 1013, unless it was closed here.
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
/// Ticks are due at fixed times, a period apart: one that comes late does not delay the next. The first
/// period begins when the room has been made, or up to a period, but at most 100 ms, later: so rooms that
/// are made at the same time don't all tick at the same time. A tick that is due while the one before is
/// still running waits for it; one that is due while another waits is merged with it. So `dt` adds up to
/// the time that has passed since the first period began, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Periods since the first began, this tick's included. Merged ticks count, so this may skip.
    pub number: u64,
    /// The time that this tick stands for: the period, times one more than `merged`.
    pub dt: Duration,
    /// Ticks that were due before this one and had no call of their own.
    pub merged: u32,
    /// How long after it was due this tick begins.
    pub late: Duration,
}
