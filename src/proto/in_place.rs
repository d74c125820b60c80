//! Middling messages that stay where they were read.
//!
//! To copy a message out of the read buffer costs a tenth of an echo of 4 or 16 KiB. Where handlers run on the
//! loop, a message is usually dropped before the next read, so it may as well stay where it is: what the
//! loop reads into is then shared with the messages in it, and read into again once they are gone.
//!
//! Whoever keeps a message keeps all that was read with it alive. So after a message was kept, messages are
//! copied for a while; and always, as long as messages are kept in [`KEPT`] memories.
//!
//! In front of each is written the header of a frame that sends it on as it is, over the end of the peer's own
//! header: what lies there in one piece needs no vectored write.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use tungstenite::Utf8Bytes;
use tungstenite::protocol::Message;

use super::frame::{MAX_HEADER, Opcode, Whole, encode_header};
use super::mask::mask;
use super::message_reader::MessageReader;
use super::payload::{PAGE, into_page};

/// Reads that are made otherwise after a message was kept.
const DOUBTED: u8 = 255;

/// Memories that kept messages may hold: 2 MiB in all, with the usual read buffer.
const KEPT: usize = 8;

/// A read takes up to so many times what others take: with several messages under way, one system call for
/// many of them, and one for the answers.
const TIMES: usize = 4;
/// But not for that more than this.
const LARGEST_READ: usize = 256 << 10;

/// Bytes of the header of an unmasked frame with so much in it. The peer's own is no shorter.
const HEADER: usize = 4;

/// Memory to read into, and what became of it.
#[derive(Debug, Default)]
pub(crate) struct InPlace {
    /// All of it, initialised. The messages in it may still be with somebody.
    lent: Option<Bytes>,
    /// Those in which somebody had kept a message when it was looked at last, at most [`KEPT`].
    kept: VecDeque<Bytes>,
    doubted: u8,
    /// Bytes of the last frame, 0 at first.
    frame: usize,
    /// What the last read brought.
    found: Vec<Found>,
}

/// A message, unmasked where it is.
#[derive(Debug)]
struct Found {
    /// Text or binary.
    opcode: Opcode,
    key: [u8; 4],
    /// Where its frame starts, its payload starts, and both end.
    frame: usize,
    payload: usize,
    end: usize,
    /// What was in front of the payload.
    before: [u8; HEADER],
}

impl Found {
    fn new(whole: &Whole, at: usize) -> Self {
        Self {
            opcode: whole.opcode,
            key: whole.key,
            frame: at,
            payload: at + whole.start,
            end: at + whole.end,
            before: [0; HEADER],
        }
    }

    /// Unmasks the payload, and puts the header of an unmasked frame in front of it.
    fn unmask(&mut self, memory: &mut [u8]) {
        let payload = &mut memory[self.payload..self.end];
        mask(payload, self.key, 0);
        let mut header = [0; MAX_HEADER];
        let size = encode_header(self.opcode, payload.len(), None, &mut header);
        debug_assert_eq!(size, HEADER);
        let place = &mut memory[self.payload - HEADER..self.payload];
        self.before.copy_from_slice(place);
        place.copy_from_slice(&header[..HEADER]);
    }

    /// Makes what came of it again, in a copy of the memory from `start` on.
    fn restore(&self, copy: &mut [u8], start: usize) {
        let payload = self.payload - start;
        copy[payload - HEADER..payload].copy_from_slice(&self.before);
        mask(&mut copy[payload..self.end - start], self.key, 0);
    }
}

impl InPlace {
    /// Messages under this size are cheap to copy.
    pub(crate) const LEAST: usize = 1 << 10;
    /// Longer ones are no [`Whole`].
    const MOST: usize = 0xFFFF;

    /// Whether a frame of so many bytes may stay, where other reads take up to `usual` bytes.
    pub(crate) fn suits(frame: usize, usual: usize) -> bool {
        frame <= Self::size(usual).min(Self::MOST)
    }

    fn size(usual: usize) -> usize {
        usual.max(LARGEST_READ.min(TIMES * usual))
    }

    /// Memory to read into, all initialised, where other reads take up to `usual` bytes. `None`: better read
    /// otherwise.
    pub(crate) fn memory(&mut self, usual: usize) -> Option<BytesMut> {
        if self.doubted > 0 {
            self.doubted -= 1;
            return None;
        }
        let memory = match self.lent.take().map(Bytes::try_into_mut) {
            Some(Ok(memory)) => Some(memory),
            Some(Err(kept)) => {
                self.kept.push_back(kept);
                None
            }
            None => self.free(usual),
        };
        if memory.is_none() {
            self.doubted = DOUBTED;
        }
        memory
    }

    /// Memory in which nobody keeps a message any more, or new memory.
    #[cold]
    fn free(&mut self, usual: usize) -> Option<BytesMut> {
        for _ in 0..self.kept.len() {
            match self.kept.pop_front()?.try_into_mut() {
                Ok(memory) => return Some(memory),
                Err(kept) => self.kept.push_back(kept),
            }
        }
        (self.kept.len() < KEPT).then(|| Self::allocate(Self::size(usual)))
    }

    /// How many of `bytes` whole frames as long as the last one take: of what ends with a message, no part has to
    /// be put together with what comes next.
    pub(crate) fn whole_frames(&self, bytes: usize) -> usize {
        match bytes.checked_rem(self.frame) {
            Some(part) if part < bytes => bytes - part,
            _ => bytes,
        }
    }

    fn allocate(size: usize) -> BytesMut {
        let mut memory = BytesMut::zeroed(size + PAGE);
        memory.advance(into_page(memory.as_ptr()));
        memory.truncate(size);
        // From now on it is shared memory, which is lent and taken back without allocating.
        drop(memory.split_off(size));
        memory
    }

    /// Nothing was read into this memory.
    pub(crate) fn take_back(&mut self, memory: BytesMut) {
        self.lent = Some(memory.freeze());
    }

    /// Makes messages of what was read into the first `arrived` bytes of `memory`, as long as they are of
    /// the kind that may stay there. Gives where the rest is, to be [copied](Self::copy).
    pub(crate) fn take(
        &mut self,
        mut memory: BytesMut,
        arrived: usize,
        reader: &mut MessageReader,
        messages: &mut Vec<Message>,
    ) -> Range<usize> {
        self.found.clear();
        let mut at = 0;
        while let Some(whole) = reader.next_plain_of(Self::LEAST, &memory[at..arrived]) {
            let mut found = Found::new(&whole, at);
            found.unmask(&mut memory);
            at = found.end;
            self.frame = found.end - found.frame;
            self.found.push(found);
        }
        let memory = memory.freeze();
        let mut taken = at;
        for found in &self.found {
            let bytes = memory.slice(found.payload..found.end);
            messages.push(if found.opcode == Opcode::Text {
                let Ok(text) = Utf8Bytes::try_from(bytes) else {
                    taken = found.frame;
                    break;
                };
                Message::Text(text)
            } else {
                Message::Binary(bytes)
            });
        }
        self.lent = Some(memory);
        taken..arrived
    }

    /// The rest of what the last read brought, as it came.
    pub(crate) fn copy(&self, rest: Range<usize>, to: &mut [u8]) {
        let Some(memory) = &self.lent else { return };
        let taken = rest.start;
        to.copy_from_slice(&memory[rest]);
        // Whoever looks at a message that is no text, and at those behind it, unmasks them too.
        for found in self.found.iter().filter(|found| found.frame >= taken) {
            found.restore(to, taken);
        }
    }

    /// `header` and `payload` in one piece, if they are the frame of a message that stayed here.
    #[inline]
    pub(crate) fn joined(&self, header: &[u8], payload: &[u8]) -> Option<&[u8]> {
        let memory = self.lent.as_deref()?;
        let at = (payload.as_ptr().addr()).checked_sub(memory.as_ptr().addr())?;
        let frame = memory.get(at.checked_sub(header.len())?..at.checked_add(payload.len())?)?;
        // Whatever was written there: it will do if it is the same.
        (frame[..header.len()] == *header).then_some(frame)
    }

    pub(crate) fn holds_memory(&self) -> bool {
        self.lent.is_some() || self.kept.iter().any(Bytes::is_unique)
    }

    /// Lets go of all memory that is not in use; what is kept still counts.
    pub(crate) fn release(&mut self) {
        self.kept.extend(self.lent.take());
        self.kept.retain(|kept| !kept.is_unique());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::frame::encode;
    use crate::proto::{Blocks, Role};

    const SIZE: usize = 64 << 10;

    fn reader() -> MessageReader {
        MessageReader::new(Role::Server, 1 << 20)
    }

    fn frame(opcode: Opcode, payload: &[u8], key: [u8; 4], out: &mut Vec<u8>) {
        encode(opcode, payload, Some(key), out);
    }

    /// What comes of `bytes`, read into memory of [`SIZE`], and what is left of them.
    fn read(
        in_place: &mut InPlace,
        reader: &mut MessageReader,
        bytes: &[u8],
    ) -> (Vec<Message>, Vec<u8>) {
        let mut memory = in_place.memory(SIZE).expect("memory to read into");
        assert_eq!(memory.len(), TIMES * SIZE);
        memory[..bytes.len()].copy_from_slice(bytes);
        let mut messages = Vec::new();
        let left = in_place.take(memory, bytes.len(), reader, &mut messages);
        let mut rest = vec![0; left.len()];
        in_place.copy(left, &mut rest);
        (messages, rest)
    }

    #[test]
    fn the_same_memory_again_and_again() {
        let mut in_place = InPlace::default();
        let mut bytes = Vec::new();
        frame(Opcode::Binary, &[1; 16 << 10], [7; 4], &mut bytes);
        let (messages, rest) = read(&mut in_place, &mut reader(), &bytes);
        assert!(rest.is_empty());
        let place = messages[0].clone().into_data().as_ptr();
        drop(messages);
        for _ in 0..3 {
            let (messages, _) = read(&mut in_place, &mut reader(), &bytes);
            let data = messages[0].clone().into_data();
            assert_eq!((data.as_ptr(), &data[..]), (place, &[1; 16 << 10][..]));
        }
        in_place.release();
        assert!(!in_place.holds_memory());
    }

    #[test]
    fn a_kept_message_is_left_alone_and_makes_for_caution() {
        let mut in_place = InPlace::default();
        let mut bytes = Vec::new();
        frame(Opcode::Binary, &[1; 16 << 10], [7; 4], &mut bytes);
        let mut kept = Vec::new();
        let doubted =
            |in_place: &mut InPlace| (0..=DOUBTED).all(|_| in_place.memory(SIZE).is_none());
        for reads in 0..KEPT {
            kept.extend(read(&mut in_place, &mut reader(), &bytes).0);
            assert_eq!(kept.len(), reads + 1);
            assert!(doubted(&mut in_place));
            // Not even idleness makes one forget.
            in_place.release();
            assert!(!in_place.holds_memory());
        }
        assert!(doubted(&mut in_place), "enough is kept");
        let given_up = kept.remove(KEPT / 2).into_data();
        let place = given_up.as_ptr();
        drop(given_up);
        assert!(in_place.holds_memory());
        let (messages, _) = read(&mut in_place, &mut reader(), &bytes);
        assert_eq!(messages[0].clone().into_data().as_ptr(), place);
        for message in kept {
            assert_eq!(message.into_data()[..], [1; 16 << 10]);
        }
    }

    /// As without: those before a text that is none are handled, and it is refused.
    #[test]
    fn a_text_that_is_none() {
        let mut bytes = Vec::new();
        frame(Opcode::Text, &[b'a'; 9 << 10], [1, 2, 3, 4], &mut bytes);
        let start = bytes.len();
        frame(Opcode::Text, &[0xFF; 9 << 10], [5, 6, 7, 8], &mut bytes);
        frame(Opcode::Binary, &[2; 9 << 10], [9; 4], &mut bytes);
        let (messages, rest) = read(&mut InPlace::default(), &mut reader(), &bytes);
        assert_eq!(messages, [Message::text("a".repeat(9 << 10))]);
        assert!(rest == bytes[start..]);
    }

    /// The header before a message is that of its frame; and of nothing else is it said that it is there.
    #[test]
    fn frames_in_one_piece() {
        let mut in_place = InPlace::default();
        assert_eq!(in_place.joined(&[], &[]), None, "no memory yet");
        let mut bytes = Vec::new();
        for (opcode, len) in [(Opcode::Text, 8 << 10), (Opcode::Binary, 0xFFFF)] {
            frame(opcode, &vec![b'a'; len], [7; 4], &mut bytes);
        }
        let (messages, rest) = read(&mut in_place, &mut reader(), &bytes);
        assert_eq!((messages.len(), rest.len()), (2, 0));
        for (message, opcode) in messages.iter().zip([Opcode::Text, Opcode::Binary]) {
            let payload = message.clone().into_data();
            let mut expected = Vec::new();
            encode(opcode, &payload, None, &mut expected);
            let (header, copy) = expected.split_at(HEADER);
            assert_eq!(in_place.joined(header, &payload), Some(&expected[..]));
            // Another place, another length, another kind.
            assert_eq!(in_place.joined(header, copy), None);
            assert_eq!(in_place.joined(header, &payload[1..]), None);
            let mut other = Vec::new();
            encode(Opcode::Binary, &payload[1..], None, &mut other);
            assert_eq!(in_place.joined(&other[..HEADER], &payload[1..]), None);
            let all = [header, header].concat();
            assert_eq!(in_place.joined(&all, &payload), None);
        }
        let first = messages[0].clone().into_data();
        assert_eq!(
            in_place.joined(&[0; 9 << 10], &first),
            None,
            "before the memory"
        );
    }

    #[test]
    fn reads_of_whole_frames() {
        let mut in_place = InPlace::default();
        assert_eq!(in_place.whole_frames(SIZE), SIZE);
        let mut bytes = Vec::new();
        frame(Opcode::Binary, &[1; 10_000], [7; 4], &mut bytes);
        read(&mut in_place, &mut reader(), &bytes);
        assert_eq!(in_place.whole_frames(SIZE), 6 * 10_008);
        assert_eq!(in_place.whole_frames(10_008), 10_008);
        assert_eq!(in_place.whole_frames(10_007), 10_007, "not even one");
    }

    fn any_frame() -> impl Strategy<Value = (Opcode, Vec<u8>, [u8; 4])> {
        let opcode = prop::sample::select(vec![Opcode::Text, Opcode::Binary, Opcode::Ping]);
        let len = prop_oneof![
            0..200_usize,
            1_000..1_050_usize,
            8_000..30_000_usize,
            65_500..65_540_usize,
        ];
        (opcode, len, any::<u8>(), any::<[u8; 4]>()).prop_map(|(opcode, len, byte, key)| {
            let (byte, len) = match opcode {
                Opcode::Binary => (byte, len),
                Opcode::Ping => (byte, len.min(125)),
                // Now and then it is none.
                _ => (byte % 130, len),
            };
            (opcode, vec![byte; len], key)
        })
    }

    /// All messages, and whether they end with a violation.
    fn the_usual_way(
        reader: &mut MessageReader,
        mut input: &mut [u8],
        messages: &mut Vec<Message>,
    ) -> bool {
        let mut blocks = Blocks::new(true);
        loop {
            match reader.next(&mut input, &mut blocks) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_else_comes_of_it(
            frames in prop::collection::vec(any_frame(), 0..6),
            cut in 0..=TIMES * SIZE,
        ) {
            let mut bytes = Vec::new();
            for (opcode, payload, key) in &frames {
                frame(*opcode, payload, *key, &mut bytes);
            }
            bytes.truncate(cut);
            let mut usual = reader();
            let mut expected = Vec::new();
            let failed = the_usual_way(&mut usual, &mut bytes.clone(), &mut expected);

            let mut reader = reader();
            let mut in_place = InPlace::default();
            let (mut messages, mut rest) = read(&mut in_place, &mut reader, &bytes);
            prop_assert_eq!(the_usual_way(&mut reader, &mut rest, &mut messages), failed);
            prop_assert!(messages == expected);
        }
    }
}
