//! Counts the replies in a stream of bytes, looking at as few of them as possible.

use std::io::{Error, Result};

use crate::traffic::Traffic;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Default)]
pub(crate) struct Reader {
    /// Payload bytes of the current reply that are still to come. Zero between frames.
    left: usize,
    /// The beginning of a frame: of a header cut in two, or of a control frame. Empty otherwise.
    head: Vec<u8>,
    /// Compare with what was sent, until the current reply ends.
    checking: bool,
    /// Payload of a ping that waits for its pong.
    pub(crate) ping: Option<Vec<u8>>,
}

impl Reader {
    /// From now to the next end of a frame every byte is compared with what it must be.
    pub(crate) fn check(&mut self) {
        self.checking = true;
    }

    /// Returns the number of replies completed by `data`.
    pub(crate) fn feed(&mut self, mut data: &[u8], traffic: &Traffic) -> Result<usize> {
        let (header, size) = (&traffic.header[..], traffic.payload.len());
        let mut replies = 0;
        while !data.is_empty() {
            if self.left > 0 {
                let (now, rest) = data.split_at(self.left.min(data.len()));
                let at = size - self.left;
                if self.checking && now != &traffic.payload[at..at + now.len()] {
                    return Err(Error::other("an echo differs from what was sent"));
                }
                self.left -= now.len();
                replies += usize::from(self.left == 0);
                data = rest;
            } else if self.head.is_empty() && data.starts_with(header) {
                data = &data[header.len()..];
                self.left = size;
            } else {
                self.feed_head(data[0], traffic)?;
                data = &data[1..];
            }
        }
        if self.left == 0 {
            self.checking = false;
        }
        Ok(replies)
    }

    /// The slow path: a header in two reads, or a control frame, byte by byte.
    fn feed_head(&mut self, byte: u8, traffic: &Traffic) -> Result<()> {
        let head = &mut self.head;
        head.push(byte);
        if traffic.header == *head {
            head.clear();
            self.left = traffic.payload.len();
            return Ok(());
        }
        if traffic.header.starts_with(head) {
            return Ok(());
        }
        let opcode = head[0] ^ 0x80;
        match head.get(1) {
            _ if opcode == CLOSE => Err(Error::other("the server sent a close frame")),
            None if opcode == PING || opcode == PONG => Ok(()),
            Some(&size @ ..=125) if opcode == PING || opcode == PONG => {
                if head.len() == 2 + usize::from(size) {
                    if opcode == PING {
                        self.ping = Some(head[2..].to_vec());
                    }
                    head.clear();
                }
                Ok(())
            }
            _ => {
                let expected = &traffic.header;
                let text = format!("a frame began with {head:02x?} instead of {expected:02x?}");
                Err(Error::other(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use framemill_bench::frame::{Opcode, server_frame};

    use super::*;

    /// Feeds `wire` in two pieces, split at every place in turn.
    fn at_every_split(wire: &[u8], traffic: &Traffic, replies: usize) -> Reader {
        let mut last = Reader::default();
        for split in 0..=wire.len() {
            let mut reader = Reader::default();
            reader.check();
            let (a, b) = wire.split_at(split);
            let counted = reader.feed(a, traffic).unwrap() + reader.feed(b, traffic).unwrap();
            assert_eq!(counted, replies, "split at {split}");
            assert_eq!((reader.left, reader.head.len()), (0, 0));
            last = reader;
        }
        last
    }

    #[test]
    fn replies_are_counted_wherever_reads_end() {
        for size in [1, 125, 126] {
            let traffic = Traffic::new(Opcode::Binary, size, 1);
            at_every_split(
                &server_frame(Opcode::Binary, &traffic.payload).repeat(3),
                &traffic,
                3,
            );
        }
    }

    #[test]
    fn pings_in_between_are_kept() {
        let traffic = Traffic::new(Opcode::Text, 20, 1);
        let frame = server_frame(Opcode::Text, &traffic.payload);
        let wire = [&frame[..], b"\x89\x02hi", &frame, b"\x8a\x00", &frame].concat();
        assert_eq!(at_every_split(&wire, &traffic, 3).ping.unwrap(), b"hi");
    }

    #[test]
    fn a_wrong_byte_is_found_when_checking() {
        let traffic = Traffic::new(Opcode::Binary, 100, 1);
        let mut wire = server_frame(Opcode::Binary, &traffic.payload);
        *wire.last_mut().unwrap() ^= 1;
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&wire, &traffic).unwrap(), 1);
        reader.check();
        assert!(reader.feed(&wire, &traffic).is_err());
    }

    #[test]
    fn other_frames_are_errors() {
        let traffic = Traffic::new(Opcode::Binary, 100, 1);
        for wire in [
            &b"\x82\x63"[..],
            b"\x81\x64",
            b"\x02\x64",
            b"\x88\x00",
            b"\x89\x7e",
        ] {
            assert!(
                Reader::default().feed(wire, &traffic).is_err(),
                "{wire:02x?}"
            );
        }
    }
}
