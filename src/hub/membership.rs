//! What handlers hold: one connection's way into a room, and a room seen from outside.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::actor::{Actor, Call};
use super::members::Members;
use super::room::Room;
use super::seat::Seat;
use crate::message::Message;

/// One connection's membership in a room, from [`Rooms::join`](super::Rooms::join). Keep it in the session: dropping
/// it leaves the room, once the room has handled the messages that were passed on before.
#[must_use = "dropping it leaves the room"]
pub struct Membership<R: Room> {
    room: RoomHandle<R>,
    seat: Arc<Seat>,
}

impl<R: Room> Membership<R> {
    pub(super) fn new(room: RoomHandle<R>, seat: Arc<Seat>) -> Self {
        Self { room, seat }
    }

    /// Passes a message on to the room. If the room has refused or removed the peer or is closed, the
    /// message is dropped, and the peer is not told.
    ///
    /// Returns at once. A peer that sends more than the room can handle is slowed down: while as many messages (or
    /// bytes) of this membership wait in the room as [`inbound_limit`](crate::Server::inbound_limit) lets wait for the
    /// handler, the handler is given no more of the connection's messages.
    pub fn message(&self, message: Message) {
        let waiting = self.seat.wait(message.len());
        self.room.actor.call(Call::Message(waiting, message));
    }

    /// The room.
    pub fn room(&self) -> &RoomHandle<R> {
        &self.room
    }

    /// Leaves the room: the same as dropping it.
    pub fn leave(self) {}
}

impl<R: Room> Drop for Membership<R> {
    fn drop(&mut self) {
        self.room.actor.call(Call::Leave(self.seat.clone()));
    }
}

impl<R: Room> fmt::Debug for Membership<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Membership({} in {:?})",
            self.seat.peer.id(),
            self.room.name()
        )
    }
}

/// A room, from any thread: cheap to clone. It does not keep the room open.
pub struct RoomHandle<R: Room> {
    pub(super) actor: Arc<Actor<R>>,
}

/// How a room keeps up with its clock. See [`RoomHandle::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomStats {
    /// Calls of [`Room::tick`].
    pub ticks: u64,
    /// Ticks that were merged with a later one: they had no call of their own.
    pub merged: u64,
    /// Ticks that were due while an earlier one still waited or ran, merged or not. If there are many, the room or
    /// the machine does not keep up.
    pub overruns: u64,
    /// The most by which a tick began later than it was due.
    pub worst_late: Duration,
}

impl<R: Room> RoomHandle<R> {
    /// The name of the room.
    pub fn name(&self) -> &str {
        &self.actor.name
    }

    /// How many are in the room, as of its last call.
    pub fn len(&self) -> usize {
        self.actor.len()
    }

    /// Whether nobody is in the room.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the room has kept up with its clock so far.
    pub fn stats(&self) -> RoomStats {
        self.actor.stats()
    }

    /// Calls `f` with the room, on the thread on which the room runs, after the calls that wait already. Returns at
    /// once. `false`: the room is closed. If the room closes before `f` has its turn, `f` is dropped.
    pub fn with(&self, f: impl FnOnce(&mut R, &mut Members) + Send + 'static) -> bool {
        self.actor.call(Call::With(Box::new(f)))
    }
}

impl<R: Room> Clone for RoomHandle<R> {
    fn clone(&self) -> Self {
        Self {
            actor: self.actor.clone(),
        }
    }
}

impl<R: Room> fmt::Debug for RoomHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoomHandle({:?}, {} members)", self.name(), self.len())
    }
}
