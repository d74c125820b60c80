//! Who is in a room, and what the room sends to them.

use std::collections::HashMap;
use std::sync::Arc;

use super::seat::Seat;
use crate::config::Compress;
use crate::id::{Key, PeerId};
use crate::link::{LoopHandle, SharedFrame};
use crate::message::{CloseCode, Message};
use crate::peer::Peer;

/// The members of a room, for the room's own code while it is called: who they are, and how to send to all of them.
pub struct Members {
    name: Arc<str>,
    list: Vec<Arc<Seat>>,
    /// Where in `list` they are.
    places: HashMap<PeerId, usize>,
    groups: Vec<Group>,
    /// Those that were removed in this call.
    removed: Vec<Arc<Seat>>,
    closing: bool,
}

/// The members on one loop.
struct Group {
    handle: Arc<LoopHandle>,
    /// Shared with what is on its way to the loop; copied only if membership changes meanwhile.
    keys: Arc<Vec<Key>>,
}

impl Members {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            list: Vec::new(),
            places: HashMap::new(),
            groups: Vec::new(),
            removed: Vec::new(),
            closing: false,
        }
    }

    /// The name of the room.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many are in the room.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nobody is in the room.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All who are in the room, in no particular order.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.list.iter().map(|seat| &seat.peer)
    }

    /// One of them.
    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        Some(&self.list[*self.places.get(&id)?].peer)
    }

    /// Whether this connection is in the room.
    pub fn contains(&self, id: PeerId) -> bool {
        self.places.contains_key(&id)
    }

    /// Sends a text or binary message to all members, encoding it once (and compressing it once for
    /// each window size that was agreed on). Each member's own queue limit and
    /// [`Overflow`](crate::Overflow) apply. Other kinds of messages are not sent.
    pub fn broadcast(&mut self, message: impl Into<Message>) {
        self.send_all(&message.into(), None, Compress::Auto);
    }

    /// The same as [`broadcast`](Self::broadcast), with a choice of whether to compress this one message.
    pub fn broadcast_with(&mut self, message: impl Into<Message>, compress: Compress) {
        self.send_all(&message.into(), None, compress);
    }

    /// The same as [`broadcast`](Self::broadcast), to all but one.
    pub fn broadcast_except(&mut self, id: PeerId, message: impl Into<Message>) {
        self.send_all(&message.into(), Some(id), Compress::Auto);
    }

    /// Removes a member: messages that its handler still passes on are dropped, and [`leave`](super::Room::leave)
    /// is not called for it. `false`: it was not in the room.
    ///
    /// Its connection stays as it is, so tell the peer why, or [close](Peer::close) it; with
    /// [`Rooms::handler`](super::Rooms::handler), it is closed with 1000 once this call is over.
    pub fn remove(&mut self, id: PeerId) -> bool {
        let removed = self.take(id);
        let was_in = removed.is_some();
        self.removed.extend(removed);
        was_in
    }

    /// Closes the room once this call is over: all members are removed, as with
    /// [`remove`](Self::remove), and the room is dropped. The next peer to join that name finds a new room.
    ///
    /// Their connections stay as they are, as with `remove`; with
    /// [`Rooms::handler`](super::Rooms::handler), they are closed with 1000.
    pub fn close(&mut self) {
        self.closing = true;
    }

    // ---- for whoever runs the room ----

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether this joining is the one that got its peer into the room.
    pub(super) fn has(&self, seat: &Arc<Seat>) -> bool {
        let place = self.places.get(&seat.peer.id());
        place.is_some_and(|&place| Arc::ptr_eq(&self.list[place], seat))
    }

    /// Not in the room yet.
    pub(super) fn insert(&mut self, seat: Arc<Seat>) {
        let (id, handle) = (seat.peer.id(), &seat.peer.link.handle);
        self.places.insert(id, self.list.len());
        let mut groups = self.groups.iter_mut();
        match groups.find(|group| Arc::ptr_eq(&group.handle, handle)) {
            Some(group) => Arc::make_mut(&mut group.keys).push(id.key()),
            None => self.groups.push(Group {
                handle: handle.clone(),
                keys: Arc::new(vec![id.key()]),
            }),
        }
        self.list.push(seat);
    }

    /// Takes a member out.
    pub(super) fn take(&mut self, id: PeerId) -> Option<Arc<Seat>> {
        let place = *self.places.get(&id)?;
        self.places.remove(&id);
        let seat = self.list.swap_remove(place);
        if let Some(moved) = self.list.get(place) {
            self.places.insert(moved.peer.id(), place);
        }
        let handle = &seat.peer.link.handle;
        let mut groups = self.groups.iter_mut();
        if let Some(group) = groups.find(|group| Arc::ptr_eq(&group.handle, handle)) {
            if let Some(at) = group.keys.iter().position(|key| *key == id.key()) {
                Arc::make_mut(&mut group.keys).swap_remove(at);
            }
        }
        Some(seat)
    }

    /// The call is over in which some were put out: if they were there for the room alone, they go.
    pub(super) fn dismiss_removed(&mut self) {
        for seat in self.removed.drain(..) {
            seat.dismiss(CloseCode::Normal, "put out");
        }
    }

    /// Everybody is out: the room is no more.
    pub(super) fn dismiss_all(&mut self) {
        self.dismiss_removed();
        for seat in &self.list {
            seat.dismiss(CloseCode::Normal, "the room is closed");
        }
        *self = Self::new(self.name.clone());
    }

    fn send_all(&self, message: &Message, except: Option<PeerId>, compress: Compress) {
        let except = except.and_then(|id| self.get(id));
        // Encoded for one server; only members of several need more.
        let mut encoded: Option<(Arc<SharedFrame>, &Group)> = None;
        for group in self.groups.iter().filter(|group| !group.keys.is_empty()) {
            let shared = &group.handle.shared;
            let frame = match &encoded {
                Some((frame, other)) if Arc::ptr_eq(&other.handle.shared, shared) => frame.clone(),
                _ => match SharedFrame::encode(message, shared, compress) {
                    Some(frame) => Arc::new(frame),
                    None => return,
                },
            };
            encoded = Some((frame.clone(), group));
            let except = except.filter(|peer| Arc::ptr_eq(&peer.link.handle, &group.handle));
            let except = except.map(|peer| peer.id().key());
            group.handle.multicast(frame, group.keys.clone(), except);
        }
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Members({} of {:?})", self.len(), self.name)
    }
}
