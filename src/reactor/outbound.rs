//! The bytes of one connection that its loop is writing.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::guard::Guarded;
use crate::link::{Buffer, Outbox, Segment, give_buffer};
use crate::message::Bytes;
use crate::metrics::LoopCounters;
use crate::net::Stream;
use crate::proto::InPlace;

/// Runs of bytes offered to the kernel at once.
const SLICES: usize = 16;

/// What was taken out of an outbox and is not yet with the kernel.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// First the rest of this, which is not empty, then the segments.
    head: Option<Buffer>,
    segments: VecDeque<Segment>,
    /// Bytes already written of `head`, or else of the first segment.
    at: usize,
    /// The answer to the latest ping, waiting for room. RFC 6455 §5.5.3: an endpoint that has not
    /// answered earlier pings "MAY elect to send a Pong frame for only the most recently processed
    /// Ping frame"; so a peer that pings and doesn't read makes us keep one pong, not all.
    pub(crate) pong: Option<Bytes>,
    /// Bytes that wait for this peer, as they are counted in its loop's `blocked_bytes`.
    counted: usize,
}

impl Outbound {
    /// Adds bytes that are in no outbox.
    pub(crate) fn add(&mut self, bytes: Vec<u8>) {
        let bytes = Box::new(bytes);
        if self.is_empty() {
            self.head = Some(bytes);
        } else {
            self.segments.push_back(Segment::Small(bytes));
        }
    }

    /// Adds bytes of the user's that are in no outbox, behind others.
    pub(crate) fn add_shared(&mut self, bytes: Guarded<Bytes>) {
        if !bytes.is_empty() {
            self.segments.push_back(Segment::verbatim(bytes));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none() && self.segments.is_empty()
    }

    /// Nothing waits here, not even a pong; it may still be counted for what waits elsewhere.
    pub(crate) fn is_done(&self) -> bool {
        self.is_empty() && self.pong.is_none()
    }

    /// Takes what waits, no more than about `most` bytes of what could still be dropped. `false`:
    /// nothing waits.
    pub(crate) fn refill(&mut self, outbox: &mut Outbox, most: usize) -> bool {
        outbox.take(&mut self.head, &mut self.segments, most)
    }

    /// So many bytes wait because the kernel takes no more; with none, it is blocked no longer.
    pub(crate) fn count_blocked(&mut self, queued: usize, counters: &LoopCounters) {
        counters.blocked_bytes.add(queued);
        counters.blocked_bytes.take_away(self.counted);
        match (self.counted, queued) {
            (0, 1..) => counters.blocked.add(1),
            (1.., 0) => counters.blocked.take_away(1),
            _ => {}
        }
        self.counted = queued;
    }

    /// One write. The bytes the kernel took are forgotten here.
    pub(crate) fn write(&mut self, stream: &mut Stream, in_place: &InPlace) -> io::Result<usize> {
        let written = match &self.head {
            Some(head) if self.segments.is_empty() => stream.write(&head[self.at..])?,
            _ => self.write_segments(stream, in_place)?,
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(written)
    }

    fn write_segments(&self, stream: &mut Stream, in_place: &InPlace) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut filled = 0;
        let mut skip = self.at;
        let parts = self.segments.iter().flat_map(|segment| {
            let (head, tail) = segment.parts();
            match in_place.joined(head, tail) {
                Some(all) => [all, &[]],
                None => [head, tail],
            }
        });
        for part in self.head.iter().map(|head| &head[..]).chain(parts) {
            let rest = &part[skip.min(part.len())..];
            skip -= part.len() - rest.len();
            if !rest.is_empty() && filled < SLICES {
                slices[filled] = IoSlice::new(rest);
                filled += 1;
            } else if filled == SLICES {
                break;
            }
        }
        match &slices[..filled] {
            [all] => stream.write(all),
            several => stream.write_vectored(several),
        }
    }

    fn advance(&mut self, written: usize) {
        self.at += written;
        if let Some(head) = self.head.take() {
            if self.at < head.len() {
                self.head = Some(head);
                return;
            }
            self.at -= head.len();
            give_buffer(head);
        }
        while let Some(segment) = self.segments.front() {
            if self.at < segment.len() {
                return;
            }
            self.at -= segment.len();
            if let Some(Segment::Small(bytes)) = self.segments.pop_front() {
                give_buffer(bytes);
            }
        }
        debug_assert_eq!(self.at, 0);
        self.at = 0;
    }
}
