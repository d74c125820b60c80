//! Frames for many connections of a loop: to all, to a topic's subscribers, to a room's members.
//!
//! Frames for the same connections that wait one behind the other are put into each outbox at once, as
//! one piece that was made of them: to look up a connection, lock its outbox and count costs more than
//! the bytes of a small message.

use std::sync::Arc;

use super::kept::Kept;
use super::slab::Slab;
use super::topics::Audience;
use crate::id::Key;
use crate::link::{Permit, Publication, SharedFrame};
use crate::peer::Peer;

/// Frames are gathered up to this many bytes: then a copy costs as much as all else.
const RUN: usize = 4096;

/// One frame on its way to many.
#[derive(Debug)]
pub(super) enum Spread {
    All(Arc<SharedFrame>, Permit),
    Topic(Arc<Publication>, Permit),
    /// These but one. The call of a room that asks for it has a permit for all it asks.
    Members(Arc<SharedFrame>, Arc<Vec<Key>>, Option<Key>),
}

impl Spread {
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
pub(super) struct Run {
    spreads: Vec<Spread>,
    bytes: usize,
}

impl Run {
    pub(super) fn is_empty(&self) -> bool {
        self.spreads.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Spread> {
        self.spreads.first()
    }

    /// Whether this one may be added.
    pub(super) fn takes(&self, spread: &Spread) -> bool {
        let room = self.bytes + spread.frame().len() <= RUN;
        self.spreads
            .last()
            .is_none_or(|last| room && last.goes_with(spread))
    }

    pub(super) fn push(&mut self, spread: Spread) {
        self.bytes += spread.frame().len();
        self.spreads.push(spread);
    }

    /// Ready to be spread; `None` if there are none.
    pub(super) fn frames(&self) -> Option<Frames<'_>> {
        let (first, rest) = self.spreads.split_first()?;
        let several = (!rest.is_empty()).then(|| {
            let all: Vec<_> = self.spreads.iter().map(Spread::frame).collect();
            (SharedFrame::join(&all), all)
        });
        Some(Frames { first, several })
    }

    /// Lets go of all, when they are spread.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Spread> {
        self.bytes = 0;
        self.spreads.drain(..)
    }
}

/// The frames of a [`Run`], and what was made of them.
pub(super) struct Frames<'a> {
    first: &'a Spread,
    /// If they are several: all in one, and each.
    several: Option<(SharedFrame, Vec<&'a SharedFrame>)>,
}

/// What is needed to reach connections.
pub(super) struct Reach<'a> {
    pub(super) conns: &'a mut Slab<Kept>,
    pub(super) audience: &'a Audience,
    /// Connections that are to be flushed.
    pub(super) touched: &'a mut Vec<Key>,
    /// Number of the loop.
    pub(super) index: usize,
}

impl Reach<'_> {
    /// Puts all frames into the outboxes of those whom they are for, beginning with the one of number `from`
    /// and until `most` are to be flushed. `Some`: the number of the next.
    pub(super) fn spread(self, frames: &Frames<'_>, from: u32, most: usize) -> Option<u32> {
        match &frames.several {
            Some((joined, all)) => self.each(frames.first, from, most, |peer| {
                peer.link.send_shared_run(joined, all);
            }),
            None => {
                let latest = match frames.first {
                    Spread::Topic(publication, _) => publication.latest.as_ref(),
                    Spread::All(..) | Spread::Members(..) => None,
                };
                self.each(frames.first, from, most, |peer| {
                    peer.link.send_shared(frames.first.frame(), latest);
                })
            }
        }
    }

    fn each(self, spread: &Spread, from: u32, most: usize, send: impl Fn(&Peer)) -> Option<u32> {
        let Self {
            conns,
            audience,
            touched,
            index,
        } = self;
        let (keys, except) = match spread {
            Spread::All(..) => {
                for (key, kept) in conns.iter_mut_from(from) {
                    if touched.len() >= most {
                        return Some(key.slot);
                    }
                    reach(key, kept, touched, &send);
                }
                return None;
            }
            Spread::Topic(publication, _) => {
                let except = publication.except.filter(|id| id.loop_index() == index);
                (audience.of(publication.topic), except.map(|id| id.key()))
            }
            Spread::Members(_, keys, except) => (&keys[..], *except),
        };
        for (number, &key) in (from..).zip(keys.iter().skip(from as usize)) {
            if touched.len() >= most {
                return Some(number);
            }
            if let (false, Some(kept)) = (Some(key) == except, conns.get_mut(key)) {
                reach(key, kept, touched, &send);
            }
        }
        None
    }
}

fn reach(key: Key, kept: &mut Kept, touched: &mut Vec<Key>, send: impl Fn(&Peer)) {
    let Some(peer) = kept.hears_broadcasts() else {
        return;
    };
    send(peer);
    if kept.touch() {
        touched.push(key);
    }
}
