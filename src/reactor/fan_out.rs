//! Frames for many connections of a loop: to all, to a topic's subscribers, to a room's members.
//!
//! Frames for the same connections that wait one behind the other are put into each outbox at once, as
//! one piece that was made of them: to look up a connection, lock its outbox and count costs more than
//! the bytes of a small message.

use std::sync::Arc;

use super::audience::Audience;
use super::kept::Kept;
use super::slab::Slab;
use crate::id::Key;
use crate::link::{Permit, Publication, SharedFrame};
use crate::peer::Peer;

/// Frames are gathered up to this many bytes: then a copy costs as much as all else.
const JOINED: usize = 4096;

/// One frame on its way to many.
#[derive(Debug)]
pub(super) enum FanOut {
    All(Arc<SharedFrame>, Permit),
    Topic(Arc<Publication>, Permit),
    /// These but one. The call of a room that asks for it has a permit for all it asks.
    Members(Arc<SharedFrame>, Arc<Vec<Key>>, Option<Key>),
}

impl FanOut {
    fn frame(&self) -> &SharedFrame {
        match self {
            Self::All(frame, _) | Self::Members(frame, ..) => frame,
            Self::Topic(publication, _) => &publication.frame,
        }
    }

    /// For just the same connections, and nothing but a frame for each.
    fn goes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All(..), Self::All(..)) => true,
            (Self::Topic(a, _), Self::Topic(b, _)) => {
                let plain = a.latest.is_none() && b.latest.is_none();
                plain && a.topic == b.topic && a.except == b.except
            }
            (Self::Members(_, a, but), Self::Members(_, b, other)) => {
                Arc::ptr_eq(a, b) && but == other
            }
            _ => false,
        }
    }

    pub(super) fn into_permit(self) -> Permit {
        match self {
            Self::All(_, permit) | Self::Topic(_, permit) => permit,
            Self::Members(..) => Permit::None,
        }
    }
}

/// Frames that go to the same connections.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    all: Vec<FanOut>,
    bytes: usize,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn first(&self) -> Option<&FanOut> {
        self.all.first()
    }

    /// Whether this one may be added.
    pub(super) fn takes(&self, fan_out: &FanOut) -> bool {
        let room = self.bytes + fan_out.frame().len() <= JOINED;
        self.all
            .last()
            .is_none_or(|last| room && last.goes_with(fan_out))
    }

    pub(super) fn push(&mut self, fan_out: FanOut) {
        self.bytes += fan_out.frame().len();
        self.all.push(fan_out);
    }

    /// Ready to be sent; `None` if there are none.
    pub(super) fn frames(&self) -> Option<Frames<'_>> {
        let (first, rest) = self.all.split_first()?;
        let several = (!rest.is_empty()).then(|| {
            let all: Vec<_> = self.all.iter().map(FanOut::frame).collect();
            (SharedFrame::join(&all), all)
        });
        Some(Frames { first, several })
    }

    /// Lets go of all, when they are sent.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = FanOut> {
        self.bytes = 0;
        self.all.drain(..)
    }
}

/// The frames of a [`Gathered`], and what was made of them.
pub(super) struct Frames<'a> {
    first: &'a FanOut,
    /// If they are several: all in one, and each.
    several: Option<(SharedFrame, Vec<&'a SharedFrame>)>,
}

/// The connections that frames may be for, and what it takes to reach them.
pub(super) struct Recipients<'a> {
    pub(super) conns: &'a mut Slab<Kept>,
    pub(super) audience: &'a Audience,
    /// Connections that are to be flushed.
    pub(super) touched: &'a mut Vec<Key>,
    /// Number of the loop.
    pub(super) index: usize,
}

impl Recipients<'_> {
    /// Puts all frames into the outboxes of those whom they are for, beginning with the one of number `from`
    /// and until `most` are to be flushed. `Some`: the number of the next.
    pub(super) fn send(self, frames: &Frames<'_>, from: u32, most: usize) -> Option<u32> {
        match &frames.several {
            Some((joined, all)) => self.each(frames.first, from, most, |peer| {
                peer.link.send_shared_run(joined, all);
            }),
            None => {
                let latest = match frames.first {
                    FanOut::Topic(publication, _) => publication.latest.as_ref(),
                    FanOut::All(..) | FanOut::Members(..) => None,
                };
                self.each(frames.first, from, most, |peer| {
                    peer.link.send_shared(frames.first.frame(), latest);
                })
            }
        }
    }

    fn each(self, fan_out: &FanOut, from: u32, most: usize, send: impl Fn(&Peer)) -> Option<u32> {
        let Self {
            conns,
            audience,
            touched,
            index,
        } = self;
        let (keys, except) = match fan_out {
            FanOut::All(..) => {
                for (key, kept) in conns.iter_mut_from(from) {
                    if touched.len() >= most {
                        return Some(key.slot);
                    }
                    send_to(key, kept, touched, &send);
                }
                return None;
            }
            FanOut::Topic(publication, _) => {
                let except = publication.except.filter(|id| id.loop_index() == index);
                (audience.of(publication.topic), except.map(|id| id.key()))
            }
            FanOut::Members(_, keys, except) => (&keys[..], *except),
        };
        for (number, &key) in (from..).zip(keys.iter().skip(from as usize)) {
            if touched.len() >= most {
                return Some(number);
            }
            if let (false, Some(kept)) = (Some(key) == except, conns.get_mut(key)) {
                send_to(key, kept, touched, &send);
            }
        }
        None
    }
}

fn send_to(key: Key, kept: &mut Kept, touched: &mut Vec<Key>, send: impl Fn(&Peer)) {
    let Some(peer) = kept.hears_broadcasts() else {
        return;
    };
    send(peer);
    if kept.touch() {
        touched.push(key);
    }
}
