//! The rooms of one kind, by name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::actor::{Actor, Call};
use super::membership::{Membership, RoomHandle};
use super::room::Room;
use super::schedule::Schedule;
use super::seat::Seat;
use super::services::{EndListener, Services};
use crate::logging::Throttle;
use crate::peer::Peer;
use crate::sync::lock;

/// The rooms of one kind. Cheap to clone; made before the server or while it runs, and usually kept in
/// the handler.
///
/// A room is made when a peer joins a name that has no room. It belongs to the server of that connection, and ends
/// with the server at the latest. Each server needs a `Rooms` of its own: connections of two servers could have the
/// same [`PeerId`](crate::PeerId), and be taken for each other.
pub struct Rooms<R: Room> {
    registry: Arc<Registry<R>>,
}

type Make<R> = dyn Fn(&str) -> R + Send + Sync;

/// What actors know of their kind.
pub(super) struct Registry<R: Room> {
    make: Box<Make<R>>,
    /// Nanoseconds; 0: no ticks.
    period: AtomicU64,
    keep_empty: AtomicBool,
    actors: Mutex<HashMap<Arc<str>, Arc<Actor<R>>>>,
}

impl<R: Room> Rooms<R> {
    /// Rooms that are made by `make`, which is given the name. It runs on the thread on which the room will run, so it
    /// may block if the room may. If it panics, the peer that is joining is closed with 1011.
    pub fn new(make: impl Fn(&str) -> R + Send + Sync + 'static) -> Self {
        let registry = Registry {
            make: Box::new(make),
            period: AtomicU64::new(0),
            keep_empty: AtomicBool::new(false),
            actors: Mutex::default(),
        };
        Self {
            registry: Arc::new(registry),
        }
    }

    /// How often a second [`Room::tick`] is called, at most 10,000, for rooms that are made from now on. Default: 0,
    /// never.
    #[must_use]
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

    /// Whether rooms stay, and go on ticking, when they are empty. Default: no; a room is closed and dropped when its
    /// last member has left.
    #[must_use]
    pub fn keep_empty(self, keep: bool) -> Self {
        self.registry.keep_empty.store(keep, Ordering::Relaxed);
        self
    }

    /// Asks for `peer` to be let into the room of this name, which is made if there is none. Returns at once;
    /// [`Room::join`] decides. Keep the membership in the session: when it is dropped, the peer leaves the room. If
    /// as many calls wait in the room as messages may wait for a handler, the handler is given no more of the
    /// connection's messages until this call has had its turn.
    ///
    /// A peer that is in the room already leaves it first, and its earlier membership has no effect from then on; the
    /// room does not close, even if nobody else is in it. For a client's connection, and once the server has ended,
    /// the membership has no effect.
    pub fn join(&self, name: &str, peer: &Peer, join: R::Join) -> Membership<R> {
        self.join_as(name, peer, join, false)
    }

    /// The same; `closes_peer`: the connection is there for this alone, and closed if it has no place there.
    pub(crate) fn join_as(
        &self,
        name: &str,
        peer: &Peer,
        join: R::Join,
        closes_peer: bool,
    ) -> Membership<R> {
        let registry = &self.registry;
        let Some(services) = Services::of(peer) else {
            static CLIENTS: Throttle = Throttle::new();
            if let Some(more) = CLIENTS.pass() {
                log::error!(
                    "{}: a client's connection can't join room {name:?}{more}",
                    peer.id()
                );
            }
            let actor = Actor::nowhere(name, Services::new(), registry.clone());
            let seat = Seat::new(peer.clone(), actor.services.clone(), closes_peer);
            return Membership::new(RoomHandle { actor }, Arc::new(seat));
        };
        let seat = Arc::new(Seat::new(peer.clone(), services.clone(), closes_peer));
        let (actor, run) = registry.enter(name, services, &seat, join);
        if run {
            actor.make_run();
        }
        Membership::new(RoomHandle { actor }, seat)
    }

    /// The room of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<RoomHandle<R>> {
        let actor = lock(&self.registry.actors).get(name)?.clone();
        Some(RoomHandle { actor })
    }

    /// The names of all rooms, in no particular order.
    pub fn names(&self) -> Vec<String> {
        let actors = lock(&self.registry.actors);
        actors.keys().map(ToString::to_string).collect()
    }

    /// How many rooms there are.
    pub fn len(&self) -> usize {
        lock(&self.registry.actors).len()
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

    /// Puts a joining into the actor of this name. `true`: the caller makes it run.
    fn enter(
        self: &Arc<Self>,
        name: &str,
        services: &Arc<Services>,
        seat: &Arc<Seat>,
        join: R::Join,
    ) -> (Arc<Actor<R>>, bool) {
        let mut actors = lock(&self.actors);
        // One whose server has ended is as good as gone: it would have neither workers nor ticks.
        let there = actors.get(name).filter(|p| !p.services.has_ended());
        let waiting = seat.wait_to_join(there.map_or(0, |actor| actor.waiting()));
        let mut call = Call::Join(waiting, join);
        if let Some(actor) = there {
            match actor.put_in(call) {
                Ok(run) => return (actor.clone(), run),
                // Cannot be: what is retired is no longer here.
                Err(back) => call = back,
            }
        }
        let me: Weak<Self> = Arc::downgrade(self);
        if !services.tell_end(me) {
            drop(actors);
            let actor = Actor::nowhere(name, services.clone(), self.clone());
            actor.call(call);
            return (actor, false);
        }
        let actor = Actor::new(name, services.clone(), self.clone());
        let run = actor.put_in(call).unwrap_or(false);
        let old = actors.insert(actor.name.clone(), actor.clone());
        drop(actors);
        if let Some(old) = old {
            // It is told no more by its server, which looks here for those that are to end.
            old.call(Call::End);
        }
        (actor, run)
    }

    /// Ends an actor whose room is closed. `false`: somebody has joined meanwhile, and it must be run
    /// again.
    pub(super) fn retire(&self, actor: &Actor<R>) -> bool {
        let mut actors = lock(&self.actors);
        if !actor.retire() {
            return false;
        }
        let here = actors.get(&actor.name);
        let old = match here {
            Some(here) if std::ptr::eq(Arc::as_ptr(here), actor) => actors.remove(&actor.name),
            _ => None,
        };
        drop(actors);
        drop(old);
        true
    }
}

impl<R: Room> EndListener for Registry<R> {
    fn ended(&self, services: &Arc<Services>) {
        let actors: Vec<_> = lock(&self.actors).values().cloned().collect();
        for actor in actors {
            if Arc::ptr_eq(&actor.services, services) {
                actor.call(Call::End);
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
