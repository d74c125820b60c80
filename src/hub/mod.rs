//! Rooms and timers: state of many connections, and time, on the same workers as the handlers.
//!
//! A room is for state that several connections share: a match, a document, a chat with its history.
//! It has a mailbox like a connection, so exactly one thread runs it at a time and its code needs no
//! lock. A topic (`Peer::publish`) has no state and no code: it only carries messages, straight from
//! the publisher to the loops of the subscribers. If nobody has to decide anything, a topic is the
//! shorter way; as soon as somebody has to remember who said what, it is a room.
//!
//! | file | what |
//! |---|---|
//! | `room` | what users write: [`Room`] |
//! | `rooms` | the rooms of one kind, by name |
//! | `actor` | behind one name: the mailbox, and how the room's calls are made |
//! | `members` | who is in a room, and what it sends to them |
//! | `membership` | what handlers hold: one connection's way into a room, and a room seen from outside |
//! | `seat` | one joining, and how much of its messages waits |
//! | `schedule` | when a tick is due, as pure data |
//! | `ticker` | the thread that wakes rooms and timers when they are due |
//! | `timer` | timers for handlers |
//! | `services` | what all of these need of their server: workers, ticker, its end |
//! | `task` | what workers run |
//!
//! The locks of a room are its stage (held by the thread that runs it, while user code runs), the registry
//! of its kind, and its inbox. Nothing of a user is dropped under the last two. For their order see
//! [`link`](crate::link), *Locks*.

mod actor;
mod members;
mod membership;
mod room;
mod rooms;
mod schedule;
mod seat;
mod services;
mod task;
mod ticker;
mod timer;

pub use members::Members;
pub use membership::{Membership, RoomHandle, RoomStats};
pub use room::{Refused, Room, Tick};
pub use rooms::Rooms;
pub(crate) use services::Services;
pub(crate) use task::{Task, is_running};
pub use timer::Timer;
