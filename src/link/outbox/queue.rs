//! Messages that wait one by one, because they may be dropped or replaced while they wait, or because
//! they are large and kept by reference.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::guard::Guarded;
use crate::message::{Bytes, LatestKey, Message};
use crate::proto::{FirstByte, MAX_HEADER, data_frame, encode, encode_header};

use crate::link::spare::{self, Buffer};

/// From this payload size on, a reference is cheaper than a copy: below it, copying costs less
/// than one more element in a vectored write.
pub(super) const BY_REFERENCE: usize = 4096;

/// What messages in a queue are told apart by: what is published to one topic does not replace what
/// was published to another, or sent to this peer alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueKey {
    /// The number of the topic.
    topic: Option<u64>,
    key: LatestKey,
    /// The messages are numbered, and are to arrive in that order: one that replaces another goes to
    /// the end. Otherwise it takes the place of the other.
    numbered: bool,
}

impl QueueKey {
    pub(in crate::link) fn published(topic: u64, key: LatestKey) -> Self {
        Self {
            topic: Some(topic),
            key,
            numbered: false,
        }
    }

    /// Of a topic with history.
    pub(in crate::link) fn kept(topic: u64, key: LatestKey) -> Self {
        Self {
            numbered: true,
            ..Self::published(topic, key)
        }
    }
}

impl From<LatestKey> for QueueKey {
    /// Of what is sent to one peer.
    fn from(key: LatestKey) -> Self {
        Self {
            topic: None,
            key,
            numbered: false,
        }
    }
}

/// A part of the queue: whole frames, always.
#[derive(Clone, Debug)]
pub(crate) enum Segment {
    /// Several small frames; stays.
    Small(Buffer),
    /// One data frame, which may be dropped or replaced if the policy says so.
    Whole {
        header: [u8; MAX_HEADER],
        header_len: u8,
        payload: Guarded<Bytes>,
    },
}

impl Segment {
    pub(super) fn whole(first: FirstByte, payload: Bytes, key: Option<[u8; 4]>) -> Self {
        let payload = Guarded::new(payload);
        if key.is_some() {
            // What is masked can't be shared with whoever else holds the payload.
            let mut frame = Vec::with_capacity(payload.len() + MAX_HEADER);
            encode(first, &payload, key, &mut frame);
            return Self::verbatim(Guarded::new(frame.into()));
        }
        let mut header = [0; MAX_HEADER];
        let header_len = encode_header(first, payload.len(), None, &mut header) as u8;
        Self::Whole {
            header,
            header_len,
            payload,
        }
    }

    /// Encodes a data message once, for many connections: a small one whole, a large one's payload
    /// stays where it is. `None` if it isn't one.
    pub(crate) fn encode(message: &Message) -> Option<Self> {
        let (first, payload) = data_frame(message)?;
        if payload.len() >= BY_REFERENCE {
            return Some(Self::whole(first, message.clone().into_data(), None));
        }
        let mut frame = Vec::with_capacity(payload.len() + MAX_HEADER);
        encode(first, payload, None, &mut frame);
        Some(Self::verbatim(Guarded::new(frame.into())))
    }

    /// Bytes to be sent as they are.
    pub(crate) const fn verbatim(bytes: Guarded<Bytes>) -> Self {
        Self::Whole {
            header: [0; MAX_HEADER],
            header_len: 0,
            payload: bytes,
        }
    }

    /// The bytes of all these, to be sent as they are.
    pub(in crate::link) fn join(segments: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Vec::new();
        for segment in segments {
            let (head, tail) = segment.parts();
            all.extend_from_slice(head);
            all.extend_from_slice(tail);
        }
        Self::verbatim(Guarded::new(all.into()))
    }

    pub(crate) fn len(&self) -> usize {
        let (head, tail) = self.parts();
        head.len() + tail.len()
    }

    /// What stands where a message was: no frame is without bytes.
    const NOTHING: Self = Self::verbatim(Guarded::new(Bytes::new()));

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Whole { header_len: 0, payload, .. } if payload.is_empty())
    }

    /// The bytes, in two runs.
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Small(bytes) => (bytes, &[]),
            Self::Whole {
                header,
                header_len,
                payload,
            } => (&header[..*header_len as usize], payload),
        }
    }
}

/// The most that an emptied queue holds room for when it is used again.
const ROOM: usize = 32;

/// A message that waits for what was sent before it.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) message: Guarded<Message>,
    /// Of its frame.
    pub(super) size: usize,
    /// It waits for the end of a room's call too.
    pub(super) held: bool,
}

/// The messages that are kept one by one, behind those in `Outbox::buf`.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Places that were [emptied](Self::empty) hold no bytes and have no key; the last is none of them.
    segments: VecDeque<(Segment, Option<QueueKey>)>,
    /// How many of those there are: about half of all at most.
    emptied: usize,
    /// Sequence number of the first segment; it grows by one with each that leaves in front.
    base: u64,
    /// Sequence number of the unsent message of each key: `base <= n < base + segments.len()`.
    latest: HashMap<QueueKey, u64>,
    /// The latest message of keys that wait for what was sent before them to arrive here.
    pub(super) early: HashMap<LatestKey, Early>,
    pub(super) lost: Lost,
}

/// How many messages did not stay in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::link) struct Lost {
    /// Dropped to make room.
    pub(in crate::link) dropped: u32,
    /// Replaced by a later one of the same key.
    pub(in crate::link) conflated: u32,
}

impl Queue {
    /// Adds a message at the end, or where the unsent one of the same key is; gives the size of
    /// that one.
    pub(super) fn push(&mut self, segment: Segment, key: Option<QueueKey>) -> usize {
        let mut replaced = 0;
        if let Some(key) = &key {
            if let Some(place) = self.place(key) {
                self.lost.conflated += 1;
                if !key.numbered {
                    let old = std::mem::replace(&mut self.segments[place].0, segment);
                    return old.len();
                }
                replaced = self.empty(place);
            }
            let number = self.base + self.segments.len() as u64;
            self.latest.insert(key.clone(), number);
        }
        self.segments.push_back((segment, key));
        if self.emptied > ROOM.max(self.segments.len() / 2) {
            self.close_up();
        }
        replaced
    }

    /// Leaves an empty place, as those behind it are found by their number; gives the size of what was
    /// there.
    fn empty(&mut self, place: usize) -> usize {
        let nothing = (Segment::NOTHING, None);
        let (old, _) = std::mem::replace(&mut self.segments[place], nothing);
        self.emptied += 1;
        old.len()
    }

    /// Takes the empty places out.
    fn close_up(&mut self) {
        self.segments.retain(|(segment, _)| !segment.is_nothing());
        self.emptied = 0;
        self.base = 0;
        for (number, (_, key)) in self.segments.iter().enumerate() {
            if let Some(place) = key.as_ref().and_then(|key| self.latest.get_mut(key)) {
                *place = number as u64;
            }
        }
    }

    pub(super) fn place(&self, key: &QueueKey) -> Option<usize> {
        self.latest.get(key).map(|&n| (n - self.base) as usize)
    }

    pub(super) fn waiting(&self, key: &QueueKey) -> usize {
        self.place(key).map_or(0, |n| self.segments[n].0.len())
    }

    pub(super) fn pop(&mut self) -> Option<Segment> {
        loop {
            let (segment, key) = self.segments.pop_front()?;
            if let Some(key) = key {
                self.latest.remove(&key);
            }
            self.base += 1;
            if !segment.is_nothing() {
                return Some(segment);
            }
            self.emptied -= 1;
        }
    }

    pub(super) fn small(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.back(), Some((Segment::Small(_), None))) {
            self.segments
                .push_back((Segment::Small(spare::take_buffer()), None));
        }
        match self.segments.back_mut() {
            Some((Segment::Small(bytes), _)) => bytes,
            _ => unreachable!("pushed just above"),
        }
    }

    /// Whether any of these may be replaced.
    pub(super) fn has_keys(&self) -> bool {
        !self.latest.is_empty()
    }

    /// Emptied, it holds little memory.
    pub(super) fn is_worth_keeping(&self) -> bool {
        let keys = self.latest.capacity() + self.early.capacity();
        self.segments.capacity() <= ROOM && keys == 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.early.is_empty()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.segments.len() - self.emptied
    }

    /// Their bytes.
    pub(super) fn len(&self) -> usize {
        let queued = self.segments.iter().map(|(segment, _)| segment.len());
        let early = self.early.values().map(|early| early.size);
        queued.chain(early).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(n: u32) -> Segment {
        Segment::encode(&Message::binary(n.to_be_bytes().to_vec())).unwrap()
    }

    fn number(segment: &Segment) -> u32 {
        let bytes = segment.parts().1;
        u32::from_be_bytes(bytes[bytes.len() - 4..].try_into().unwrap())
    }

    /// Beside a list that does the same in the plainest way, while the front is taken now and then.
    #[test]
    fn numbered_messages_stay_in_order() {
        let key = |n: u64| QueueKey::kept(1, LatestKey::from(n));
        let mut queue = Queue::default();
        let mut model: VecDeque<(u32, Option<u64>)> = VecDeque::new();
        let mut conflated = 0;
        for n in 0..20_000 {
            let own = (n % 7 != 0).then_some(u64::from(n * n % 97));
            if let Some(place) = own.and_then(|own| model.iter().position(|m| m.1 == Some(own))) {
                model.remove(place);
                conflated += 1;
                assert_eq!(queue.waiting(&key(own.unwrap())), 6);
                assert_eq!(queue.push(segment(n), own.map(key)), 6);
            } else {
                assert_eq!(queue.push(segment(n), own.map(key)), 0);
            }
            model.push_back((n, own));
            if n % 5 == 0 {
                let first = model.pop_front().map(|(n, _)| n);
                assert_eq!(queue.pop().as_ref().map(number), first);
            }
            assert_eq!(queue.count(), model.len());
            assert_eq!(queue.len(), 6 * model.len());
            assert!(queue.segments.len() <= 2 * model.len() + ROOM + 1);
        }
        assert_eq!(queue.lost.conflated, conflated);
        for (n, _) in model {
            assert_eq!(queue.pop().as_ref().map(number), Some(n));
        }
        assert!(queue.pop().is_none() && queue.is_empty() && !queue.has_keys());
        assert_eq!(queue.emptied, 0);
    }
}
