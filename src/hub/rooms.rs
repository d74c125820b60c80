//! The rooms of one kind, by name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::home::{Guest, Home};
use super::membership::{Membership, RoomHandle};
use super::place::{Call, Place};
use super::room::Room;
use super::schedule::Schedule;
use super::seat::Seat;
use crate::logging::Throttle;
use crate::peer::Peer;
use crate::sync::lock;

/// The rooms of one kind. Cheap to clone; made before the server or while it runs, and usually kept in
/// the handler.
///
/// A room is made when a peer joins a name that is not there; it belongs to the server of that connection,
/// and ends with the server at the latest. Each server needs a `Rooms` of its own: connections of two
/// servers that shared one could have the same [`PeerId`](crate::PeerId), and be taken for each other.
pub struct Rooms<R: Room> {
    registry: Arc<Registry<R>>,
}

type Make<R> = dyn Fn(&str) -> R + Send + Sync;

/// What places know of their kind.
pub(super) struct Registry<R: Room> {
    make: Box<Make<R>>,
    /// Nanoseconds; 0: no ticks.
    period: AtomicU64,
    keep_empty: AtomicBool,
    places: Mutex<HashMap<Arc<str>, Arc<Place<R>>>>,
}

impl<R: Room> Rooms<R> {
    /// Rooms that are made by `make`, which is given the name. It runs where the room will run, so it
    /// may block if the room may; if it panics, the peer that is joining is closed with 1011.
    pub fn new(make: impl Fn(&str) -> R + Send + Sync + 'static) -> Self {
        let registry = Registry {
            make: Box::new(make),
            period: AtomicU64::new(0),
            keep_empty: AtomicBool::new(false),
            places: Mutex::default(),
        };
        Self {
            registry: Arc::new(registry),
        }
    }

    /// How often a second [`Room::tick`] is called, at most 10,000; for rooms that are made from now
    /// on. Default: never, which is also what 0 means.
    pub fn tick_rate(self, hertz: f64) -> Self {
        let period = 1.0 / hertz;
        let period = if hertz > 0.0 && period.is_finite() {
            let period = Duration::try_from_secs_f64(period).unwrap_or(Duration::MAX);
            let nanos = period.max(Schedule::FINEST).as_nanos();
            u64::try_from(nanos).unwrap_or(u64::MAX)
        } else {
            0
        };
        self.registry.period.store(period, Ordering::Relaxed);
        self
    }

    /// Whether rooms stay, and go on ticking, when they are empty. Default: no; a room closes (it is
    /// dropped) when its last member has left.
    pub fn keep_empty(self, keep: bool) -> Self {
        self.registry.keep_empty.store(keep, Ordering::Relaxed);
        self
    }

    /// Asks for `peer` to be let into the room of this name, which is made if it is not there. Returns at
    /// once; [`Room::join`] decides. Keep the membership in the session: when it is dropped, the
    /// peer leaves the room. While as many calls wait in the room as messages may wait for a handler, the
    /// handler is given no more of the connection's messages until this one has had its turn.
    ///
    /// A peer that is in the room already leaves it first, and its earlier membership has no effect from
    /// then on; a room that nobody else is in does not close for that. The membership of a connection that is
    /// a client's, not a server's, has no effect either.
    pub fn join(&self, name: &str, peer: &Peer, join: R::Join) -> Membership<R> {
        self.join_as(name, peer, join, false)
    }

    /// The same; `only`: the connection is there for this alone, and closed if it has no place there.
    pub(crate) fn join_as(
        &self,
        name: &str,
        peer: &Peer,
        join: R::Join,
        only: bool,
    ) -> Membership<R> {
        let registry = &self.registry;
        let Some(home) = Home::of(peer) else {
            static CLIENTS: Throttle = Throttle::new();
            if let Some(more) = CLIENTS.pass() {
                log::error!(
                    "{}: a client's connection can't join room {name:?}{more}",
                    peer.id()
                );
            }
            let place = Place::nowhere(name, registry.clone());
            let seat = Seat::new(peer.clone(), place.home.clone(), only);
            return Membership::new(RoomHandle { place }, Arc::new(seat));
        };
        let seat = Arc::new(Seat::new(peer.clone(), home.clone(), only));
        let (place, run) = registry.enter(name, home, &seat, join);
        if run {
            place.make_run();
        }
        Membership::new(RoomHandle { place }, seat)
    }

    /// The room of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<RoomHandle<R>> {
        let place = lock(&self.registry.places).get(name)?.clone();
        Some(RoomHandle { place })
    }

    /// The names of all rooms, in no particular order.
    pub fn names(&self) -> Vec<String> {
        let places = lock(&self.registry.places);
        places.keys().map(ToString::to_string).collect()
    }

    /// How many rooms there are.
    pub fn len(&self) -> usize {
        lock(&self.registry.places).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Room> Registry<R> {
    pub(super) fn make(&self, name: &str) -> R {
        (self.make)(name)
    }

    pub(super) fn period(&self) -> Option<Duration> {
        match self.period.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(super) fn keeps_empty(&self) -> bool {
        self.keep_empty.load(Ordering::Relaxed)
    }

    /// Puts a joining into the place of this name. `true`: the caller makes it run.
    fn enter(
        self: &Arc<Self>,
        name: &str,
        home: &Arc<Home>,
        seat: &Arc<Seat>,
        join: R::Join,
    ) -> (Arc<Place<R>>, bool) {
        let mut places = lock(&self.places);
        // One whose server has ended is as good as gone: it would have neither workers nor ticks.
        let there = places.get(name).filter(|p| !p.home.has_ended());
        let waiting = seat.wait_to_join(there.map_or(0, |place| place.waiting()));
        let mut call = Call::Join(waiting, join);
        if let Some(place) = there {
            match place.put_in(call) {
                Ok(run) => return (place.clone(), run),
                // Cannot be: what is retired is no longer here.
                Err(back) => call = back,
            }
        }
        let place = Place::new(name, home.clone(), self.clone());
        let run = place.put_in(call).unwrap_or(false);
        let old = places.insert(place.name.clone(), place.clone());
        let me: Weak<Self> = Arc::downgrade(self);
        home.tell_end(me);
        drop(places);
        drop(old);
        (place, run)
    }

    /// Ends a place whose room is closed. `false`: somebody has joined meanwhile, and it must be run
    /// again.
    pub(super) fn retire(&self, place: &Place<R>) -> bool {
        let mut places = lock(&self.places);
        if !place.retire() {
            return false;
        }
        let here = places.get(&place.name);
        let old = match here {
            Some(here) if std::ptr::eq(Arc::as_ptr(here), place) => places.remove(&place.name),
            _ => None,
        };
        drop(places);
        drop(old);
        true
    }
}

impl<R: Room> Guest for Registry<R> {
    fn ended(&self, home: &Arc<Home>) {
        let places: Vec<_> = lock(&self.places).values().cloned().collect();
        for place in places {
            if Arc::ptr_eq(&place.home, home) {
                place.call(Call::End);
            }
        }
    }
}

impl<R: Room> Clone for Rooms<R> {
    fn clone(&self) -> Self {
        Self {
            registry: self.registry.clone(),
        }
    }
}

impl<R: Room> std::fmt::Debug for Rooms<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rooms({})", self.len())
    }
}
