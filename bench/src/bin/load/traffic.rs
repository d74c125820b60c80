//! What a run sends and what it expects back, made once.

use std::io::{Error, Result};

use framemill_bench::frame::{self, Opcode, RSV1};

use crate::deflate;

pub(crate) struct Traffic {
    /// As many masked frames, end to end, as may be under way on a connection: one write can send
    /// any number of them.
    pub(crate) requests: Vec<u8>,
    /// Length of each of them.
    pub(crate) request_len: usize,
    /// Messages under way per connection.
    pub(crate) inflight: usize,
    /// What every reply consists of.
    pub(crate) header: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// What the payload has to inflate to, where messages are compressed. Header and payload are
    /// not known then before the server has answered once.
    pub(crate) text: Option<Vec<u8>>,
}

impl Traffic {
    pub(crate) fn new(opcode: Opcode, size: usize, inflight: usize) -> Self {
        let payload = frame::payload(size);
        let request = frame::client_frame(opcode, &payload);
        Self {
            requests: request.repeat(inflight),
            request_len: request.len(),
            inflight,
            header: frame::server_header(opcode, size),
            payload,
            text: None,
        }
    }

    /// Messages of JSON, `size` bytes before they are compressed.
    pub(crate) fn compressed(size: usize, inflight: usize) -> Result<Self> {
        let text = deflate::json(size)?;
        let request = frame::compressed_client_frame(Opcode::Text, &deflate::compress(&text));
        Ok(Self {
            requests: request.repeat(inflight),
            request_len: request.len(),
            inflight,
            header: Vec::new(),
            payload: Vec::new(),
            text: Some(text),
        })
    }

    /// Takes an answer for that of all messages, if it is right. `header` is the length of that.
    pub(crate) fn expect_reply(&mut self, reply: &[u8], header: usize) -> Result<()> {
        let (header, payload) = reply.split_at(header);
        let wanted = 0x80 | RSV1 | Opcode::Text as u8;
        if header[0] != wanted {
            let text = format!("the answer to compressed text began with {:02x}", header[0]);
            return Err(Error::other(text));
        }
        let inflated = deflate::inflate(payload)?;
        if self.text.as_ref() != Some(&inflated) {
            return Err(Error::other("an echo inflates to something else"));
        }
        self.header = header.to_vec();
        self.payload = payload.to_vec();
        Ok(())
    }

    /// Length of a compressed reply.
    pub(crate) fn compressed_len(&self) -> Option<u64> {
        self.text.as_ref().map(|_| self.payload.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(first: u8, payload: &[u8]) -> (Vec<u8>, usize) {
        let mut reply = frame::server_frame(Opcode::Text, payload);
        reply[0] = first;
        let header = reply.len() - payload.len();
        (reply, header)
    }

    #[test]
    fn only_the_same_text_compressed_is_taken_for_the_answer() {
        let mut traffic = Traffic::compressed(300, 1).unwrap();
        let text = traffic.text.clone().unwrap();
        let compressed = deflate::compress(&text);

        let (plain, header) = reply(0x81, &text);
        assert!(traffic.expect_reply(&plain, header).is_err());
        let (other, header) = reply(0xc1, &deflate::compress(&text[1..]));
        assert!(traffic.expect_reply(&other, header).is_err());
        let (garbage, header) = reply(0xc1, &text);
        assert!(traffic.expect_reply(&garbage, header).is_err());

        let (right, header) = reply(0xc1, &compressed);
        traffic.expect_reply(&right, header).unwrap();
        assert_eq!(
            (&traffic.header[..], &traffic.payload),
            (&right[..header], &compressed)
        );
    }
}
