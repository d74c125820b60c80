//! How a message travels between nodes.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | flags: 1 binary, 2 latest by number, 4 latest by name, 8 with a sender |
//! | 8 | who sent it: the node's number, drawn at random when it started |
//! | 8 | the how-manieth of that node, from 1 |
//! | 8 | the sender, who does not get it |
//! | 8, or 2 and as many | the key of the latest, if any |
//! | the rest | the payload |
//!
//! Numbers are big-endian.

use crate::id::PeerId;
use crate::message::{Bytes, LatestKey, Message, Utf8Bytes};

const VERSION: u8 = 1;
const BINARY: u8 = 1;
const NUMBER: u8 = 2;
const NAME: u8 = 4;
const SENDER: u8 = 8;

/// A message with what is needed to recognise it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) node: u64,
    pub(super) sequence: u64,
    /// Known to its node.
    pub(super) sender: Option<PeerId>,
    pub(super) latest: Option<LatestKey>,
    pub(super) message: Message,
}

impl Envelope {
    pub(super) fn encode(&self) -> Vec<u8> {
        let payload = match &self.message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
            _ => &[],
        };
        let mut out = Vec::with_capacity(36 + payload.len());
        let mut flags = if self.message.is_binary() { BINARY } else { 0 };
        flags |= match self.latest {
            None => 0,
            Some(LatestKey::Number(_)) => NUMBER,
            Some(LatestKey::Name(_)) => NAME,
        };
        if self.sender.is_some() {
            flags |= SENDER;
        }
        out.extend([VERSION, flags]);
        out.extend(self.node.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(
            self.sender
                .into_iter()
                .flat_map(|id| id.as_u64().to_be_bytes()),
        );
        match &self.latest {
            None => {}
            Some(LatestKey::Number(number)) => out.extend(number.to_be_bytes()),
            Some(LatestKey::Name(name)) => {
                // A name that is longer is told apart by its beginning.
                let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
                out.extend((name.len() as u16).to_be_bytes());
                out.extend(name);
            }
        }
        out.extend(payload);
        out
    }

    /// Gives an encoded one another number.
    pub(super) fn renumber(encoded: &mut [u8], sequence: u64) {
        encoded[10..18].copy_from_slice(&sequence.to_be_bytes());
    }

    /// `None`: nothing that a node of this version sends.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[version, flags], rest) = bytes.split_first_chunk()?;
        if version != VERSION {
            return None;
        }
        let (&node, rest) = rest.split_first_chunk()?;
        let (&sequence, mut rest) = rest.split_first_chunk()?;
        let mut sender = None;
        if flags & SENDER != 0 {
            let (&id, after) = rest.split_first_chunk()?;
            sender = Some(PeerId::from_u64(u64::from_be_bytes(id)));
            rest = after;
        }
        let mut latest = None;
        if flags & NUMBER != 0 {
            let (&number, after) = rest.split_first_chunk()?;
            latest = Some(LatestKey::Number(u64::from_be_bytes(number)));
            rest = after;
        } else if flags & NAME != 0 {
            let (&len, after) = rest.split_first_chunk()?;
            let (name, after) = after.split_at_checked(u16::from_be_bytes(len).into())?;
            latest = Some(LatestKey::from(String::from_utf8_lossy(name).into_owned()));
            rest = after;
        }
        let payload = Bytes::copy_from_slice(rest);
        let message = if flags & BINARY != 0 {
            Message::Binary(payload)
        } else {
            Message::Text(Utf8Bytes::try_from(payload).ok()?)
        };
        Some(Self {
            node: u64::from_be_bytes(node),
            sequence: u64::from_be_bytes(sequence),
            sender,
            latest,
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_out_as_it_went_in() {
        let keys = [None, Some(7_u8.into()), Some("ACME".into())];
        for latest in keys {
            for message in [Message::text("grüße"), Message::binary(vec![0, 255])] {
                let envelope = Envelope {
                    node: u64::MAX - 1,
                    sequence: 77,
                    sender: latest.as_ref().map(|_| PeerId::from_u64(99)),
                    latest: latest.clone(),
                    message,
                };
                let mut bytes = envelope.encode();
                assert_eq!(Envelope::decode(&bytes), Some(envelope.clone()));
                Envelope::renumber(&mut bytes, 78);
                let sequence = 78;
                let envelope = Envelope {
                    sequence,
                    ..envelope
                };
                assert_eq!(Envelope::decode(&bytes), Some(envelope));
            }
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let text = Envelope {
            node: 1,
            sequence: 1,
            sender: Some(PeerId::from_u64(1)),
            latest: Some("name".into()),
            message: Message::text(""),
        };
        let bytes = text.encode();
        for cut in 0..bytes.len() {
            assert_eq!(Envelope::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        let mut not_text = bytes.clone();
        not_text.push(0xFF);
        assert_eq!(Envelope::decode(&not_text), None);
        let mut other_version = bytes;
        other_version[0] = 2;
        assert_eq!(Envelope::decode(&other_version), None);
    }
}
