//! Messages that wait one by one, because they may be dropped or replaced while they wait, or because
//! they are large and kept by reference.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::message::{Bytes, Message};
use crate::proto::{MAX_HEADER, Opcode, encode, encode_header};

/// From this payload size on, a reference is cheaper than a copy: below it, copying costs less
/// than one more element in a vectored write.
pub(super) const BY_REFERENCE: usize = 4096;

/// What `send_latest` tells messages apart by: a number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LatestKey {
    /// A number, such as the id of an entity. Costs nothing to make.
    Number(u64),
    /// A name, such as a ticker symbol.
    Name(Box<str>),
}

macro_rules! latest_key_from {
    ($($number:ty),*) => {$(
        impl From<$number> for LatestKey {
            fn from(number: $number) -> Self {
                Self::Number(number.into())
            }
        }
    )*};
}
latest_key_from!(u8, u16, u32, u64);

impl From<&str> for LatestKey {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl From<String> for LatestKey {
    fn from(name: String) -> Self {
        Self::Name(name.into())
    }
}

/// A part of the queue: whole frames, always.
#[derive(Clone, Debug)]
pub(crate) enum Segment {
    /// Several small frames; stays.
    Small(Vec<u8>),
    /// One data frame, which may be dropped or replaced if the policy says so.
    Whole {
        header: [u8; MAX_HEADER],
        header_len: u8,
        payload: Bytes,
    },
}

impl Segment {
    pub(super) fn whole(opcode: Opcode, payload: Bytes) -> Self {
        let mut header = [0; MAX_HEADER];
        let header_len = encode_header(opcode, payload.len(), None, &mut header) as u8;
        Self::Whole {
            header,
            header_len,
            payload,
        }
    }

    /// Encodes a data message once, for many connections. `None` if it isn't one.
    pub(crate) fn encode(message: &Message) -> Option<Self> {
        let (opcode, payload) = match message {
            Message::Text(text) => (Opcode::Text, Bytes::from(text.clone())),
            Message::Binary(payload) => (Opcode::Binary, payload.clone()),
            _ => return None,
        };
        if payload.len() >= BY_REFERENCE {
            return Some(Self::whole(opcode, payload));
        }
        let mut frame = Vec::with_capacity(payload.len() + MAX_HEADER);
        encode(opcode, &payload, None, &mut frame);
        Some(Self::Small(frame))
    }

    pub(crate) fn len(&self) -> usize {
        let (head, tail) = self.parts();
        head.len() + tail.len()
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

/// The messages that are kept one by one, behind those in `Outbox::buf`.
#[derive(Debug, Default)]
pub(super) struct Queue {
    segments: VecDeque<(Segment, Option<LatestKey>)>,
    /// Sequence number of the first segment; it grows by one with each that leaves in front.
    base: u64,
    /// Sequence number of the unsent message of each key: `base <= n < base + segments.len()`.
    latest: HashMap<LatestKey, u64>,
    /// The latest message of keys that wait for what was sent before them to arrive here.
    pub(super) early: HashMap<LatestKey, Message>,
}

impl Queue {
    /// Adds a message at the end, or where the unsent one of the same key is; gives the size of
    /// that one.
    pub(super) fn push(&mut self, segment: Segment, key: Option<LatestKey>) -> usize {
        if let Some(key) = &key {
            if let Some(place) = self.place(key) {
                let old = std::mem::replace(&mut self.segments[place].0, segment);
                return old.len();
            }
            let number = self.base + self.segments.len() as u64;
            self.latest.insert(key.clone(), number);
        }
        self.segments.push_back((segment, key));
        0
    }

    pub(super) fn place(&self, key: &LatestKey) -> Option<usize> {
        self.latest.get(key).map(|&n| (n - self.base) as usize)
    }

    pub(super) fn waiting(&self, key: &LatestKey) -> usize {
        self.place(key).map_or(0, |n| self.segments[n].0.len())
    }

    pub(super) fn pop(&mut self) -> Option<Segment> {
        let (segment, key) = self.segments.pop_front()?;
        if let Some(key) = key {
            self.latest.remove(&key);
        }
        self.base += 1;
        Some(segment)
    }

    pub(super) fn small(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.back(), Some((Segment::Small(_), None))) {
            self.segments.push_back((Segment::Small(Vec::new()), None));
        }
        match self.segments.back_mut() {
            Some((Segment::Small(bytes), _)) => bytes,
            _ => unreachable!("pushed just above"),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.early.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        let queued = self.segments.iter().map(|(segment, _)| segment.len());
        let early = self.early.values().map(|message| frame_len(message.len()));
        queued.chain(early).sum()
    }
}

/// Bytes of a server's frame with `len` bytes of payload.
pub(super) fn frame_len(len: usize) -> usize {
    let header = match len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    header + len
}
