//! A connection between two moments at which it has something to do, as its loop keeps it: nearly always
//! nothing is under way on it, and then a few words are all there is to know.
//!
//! Its loop has thousands of them, each of which says something now and then. So what counts is what is
//! kept, and how many lines of the cache it takes to look at it; to put a [`Conn`] together and apart again
//! takes some nanoseconds.

use mio::net::TcpStream;
#[cfg(unix)]
use mio::net::UnixStream;

use super::conn::{Conn, HandlerKnows, Phase, ReadMode};
use super::counts::Counts;
use super::liveness::Moment;
use crate::net::Stream;
use crate::peer::Peer;
use crate::proto::{MessageReader, Role};

/// See the module's documentation. What is said of an open connection with nothing half read, half written or
/// about to end is what is left of a [`Conn`] where everything else is as always. It is in three parts as these
/// fit together in 24 bytes.
#[derive(Debug)]
pub(super) enum Kept {
    Tcp(TcpStream, Marks, Silent),
    #[cfg(unix)]
    Unix(UnixStream, Marks, Silent),
    /// Something is under way, or there is TLS, or what it may send is limited.
    Busy(Box<Conn>),
    /// It is being served; never seen by anybody.
    InUse,
}

/// See [`Kept`].
#[derive(Debug)]
pub(super) struct Silent {
    peer: Peer,
    last_seen: Moment,
    since: Moment,
}

/// See [`Kept`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    counts: Counts,
    read_mode: ReadMode,
    flags: u8,
}

/// The bits of `Marks::flags`, named after what they are of a [`Conn`].
const READABLE: u8 = 1;
const PINGED: u8 = 2;
const AWAITS_PONG: u8 = 4;
const DIRTY: u8 = 8;
const TOUCHED: u8 = 16;
/// Its reader's role.
const CLIENT: u8 = 32;
/// What its reader takes.
const COMPRESSED: u8 = 64;

impl Kept {
    #[inline]
    pub(super) fn new(conn: Conn) -> Self {
        if is_silent(&conn) {
            Self::silent(conn)
        } else {
            Self::Busy(Box::new(conn))
        }
    }

    /// Has it do something. `max_message` is what it was made with.
    #[inline]
    pub(super) fn serve(&mut self, max_message: u32, act: impl FnOnce(&mut Conn)) {
        let woken = self.take_silent(max_message);
        let mut served = Served { kept: self, woken };
        act(match (&mut served.woken, &mut *served.kept) {
            (Some(conn), _) => conn,
            (None, Self::Busy(conn)) => conn,
            // It is served already, which cannot be.
            (None, _) => return,
        });
        let woken = served.woken.take();
        served.kept.settle(woken);
    }

    /// `None` if it is busy. Not inlined, nor is the next: that would be once for each thing that is done.
    #[inline(never)]
    fn take_silent(&mut self, max_message: u32) -> Option<Conn> {
        match self {
            Self::Busy(_) => None,
            _ => std::mem::replace(self, Self::InUse).wake(max_message),
        }
    }

    /// Takes back what was woken, or looks whether there is still something under way.
    #[inline(never)]
    fn settle(&mut self, woken: Option<Conn>) {
        if let Some(conn) = woken {
            // There is nothing here to be dropped.
            std::mem::forget(std::mem::replace(self, Self::new(conn)));
        } else if self.has_come_to_rest() {
            if let Self::Busy(conn) = std::mem::replace(self, Self::InUse) {
                *self = Self::silent(*conn);
            }
        }
    }

    pub(super) fn into_conn(self, max_message: u32) -> Option<Conn> {
        match self {
            Self::Busy(conn) => Some(*conn),
            silent => silent.wake(max_message),
        }
    }

    /// `None` while it is served.
    pub(super) fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Tcp(_, _, silent) => Some(&silent.peer),
            #[cfg(unix)]
            Self::Unix(_, _, silent) => Some(&silent.peer),
            Self::Busy(conn) => Some(&conn.peer),
            Self::InUse => None,
        }
    }

    /// `Some`: whom to send what is for all.
    pub(super) fn hears_broadcasts(&self) -> Option<&Peer> {
        match self {
            Self::Busy(conn) => conn.hears_broadcasts().then_some(&conn.peer),
            silent => silent.peer(),
        }
    }

    /// It is to be flushed. `false`: it was known.
    pub(super) fn touch(&mut self) -> bool {
        let flags = match self {
            Self::Tcp(_, marks, _) => &mut marks.flags,
            #[cfg(unix)]
            Self::Unix(_, marks, _) => &mut marks.flags,
            Self::Busy(conn) => return !std::mem::replace(&mut conn.touched, true),
            Self::InUse => return false,
        };
        let untouched = *flags & TOUCHED == 0;
        *flags |= TOUCHED;
        untouched
    }

    fn has_come_to_rest(&self) -> bool {
        matches!(self, Self::Busy(conn) if is_silent(conn))
    }

    #[inline]
    fn wake(self, max_message: u32) -> Option<Conn> {
        match self {
            Self::Tcp(socket, marks, silent) => {
                Some(silent.wake(Stream::Tcp(socket), marks, max_message))
            }
            #[cfg(unix)]
            Self::Unix(socket, marks, silent) => {
                Some(silent.wake(Stream::Unix(socket), marks, max_message))
            }
            Self::Busy(_) | Self::InUse => None,
        }
    }

    /// [`is_silent`] says so.
    #[inline]
    fn silent(conn: Conn) -> Self {
        // All of them, so that no new one is lost here.
        let Conn {
            stream,
            peer,
            phase,
            reader,
            last_seen,
            since,
            rest,
            writing,
            ending,
            readable,
            hung_up: _,
            paused: _,
            eof: _,
            unwritable: _,
            pinged,
            awaits_pong,
            handler_knows: _,
            read_mode,
            blocked: _,
            counts,
            again: _,
            listed: _,
            rearm: _,
            dirty,
            touched,
            gone: _,
        } = conn;
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        let flags = bit(readable, READABLE)
            | bit(pinged, PINGED)
            | bit(awaits_pong, AWAITS_PONG)
            | bit(dirty, DIRTY)
            | bit(touched, TOUCHED)
            | bit(reader.role() == Role::Client, CLIENT)
            | bit(reader.takes_compressed(), COMPRESSED);
        // Nothing is in them, and to look whether there is takes as long as all else here.
        std::mem::forget((phase, reader, rest, writing, ending));
        let marks = Marks {
            counts,
            read_mode,
            flags,
        };
        let silent = Silent {
            peer,
            last_seen,
            since,
        };
        match stream {
            Stream::Tcp(socket) => Self::Tcp(socket, marks, silent),
            #[cfg(unix)]
            Stream::Unix(socket) => Self::Unix(socket, marks, silent),
            #[cfg(feature = "tls")]
            Stream::Tls(_) | Stream::Lent => unreachable!("never silent"),
        }
    }
}

/// Whether all that there is to know of it is what [`Silent`] and [`Marks`] have.
#[inline]
fn is_silent(conn: &Conn) -> bool {
    // All of them, so that whoever adds one decides.
    let Conn {
        stream,
        phase,
        reader,
        rest,
        writing,
        ending,
        hung_up,
        paused,
        eof,
        unwritable,
        handler_knows,
        blocked,
        again,
        listed,
        rearm,
        gone,
        // Kept, whatever they are.
        peer: _,
        last_seen: _,
        since: _,
        readable: _,
        pinged: _,
        awaits_pong: _,
        read_mode: _,
        counts: _,
        dirty: _,
        touched: _,
    } = conn;
    let plain = match stream {
        Stream::Tcp(_) => true,
        #[cfg(unix)]
        Stream::Unix(_) => true,
        #[cfg(feature = "tls")]
        Stream::Tls(_) | Stream::Lent => false,
    };
    plain
        && matches!(phase, Phase::Open(None))
        && *handler_knows == HandlerKnows::Opening
        && reader.is_between_messages()
        && rest.is_none()
        && writing.is_none()
        && ending.is_none()
        && !hung_up
        && !paused
        && !eof
        && !unwritable
        && !blocked
        && !again
        && !listed
        && !rearm
        && !gone
}

/// A connection that is being served. If that panics it is put back, so that its handler is told the end.
struct Served<'a> {
    kept: &'a mut Kept,
    woken: Option<Conn>,
}

impl Drop for Served<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(conn) = self.woken.take() {
            put_back(self.kept, conn);
        }
    }
}

#[cold]
#[inline(never)]
fn put_back(kept: &mut Kept, conn: Conn) {
    *kept = Kept::Busy(Box::new(conn));
}

impl Silent {
    #[inline]
    fn wake(self, stream: Stream, marks: Marks, max_message: u32) -> Conn {
        let has = |bit| marks.flags & bit != 0;
        let role = if has(CLIENT) {
            Role::Client
        } else {
            Role::Server
        };
        Conn {
            stream,
            peer: self.peer,
            phase: Phase::Open(None),
            reader: MessageReader::between_messages(role, max_message, has(COMPRESSED)),
            last_seen: self.last_seen,
            since: self.since,
            rest: None,
            writing: None,
            ending: None,
            readable: has(READABLE),
            hung_up: false,
            paused: false,
            eof: false,
            unwritable: false,
            pinged: has(PINGED),
            awaits_pong: has(AWAITS_PONG),
            handler_knows: HandlerKnows::Opening,
            read_mode: marks.read_mode,
            blocked: false,
            counts: marks.counts,
            again: false,
            listed: false,
            rearm: false,
            dirty: has(DIRTY),
            touched: has(TOUCHED),
            gone: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the eight bytes of its entry in the slab, two to a line of the cache.
    #[test]
    fn little_is_kept() {
        // With debug assertions a socket of mio's also has the number of its selector.
        let socket = (size_of::<TcpStream>() - size_of::<i32>()).next_multiple_of(8);
        assert!(
            size_of::<Kept>() <= 24 + socket,
            "{} bytes",
            size_of::<Kept>()
        );
    }
}
