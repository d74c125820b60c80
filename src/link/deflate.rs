//! permessage-deflate on one connection: what was agreed, and who compresses what.
//!
//! The thread that sends compresses, the worker that runs the handler inflates; a loop does neither.
//!
//! Without context takeover every message stands alone, and each thread has one compressor for all
//! its connections. With it, a connection has a compressor of its own, and what that makes must
//! reach the peer in the order it was made, with no other compressed message in between that it does
//! not know of: such a message enters the peer's window too. The outbox counts the compressed
//! messages, and a compressor that finds one it did not make starts afresh. Messages that may be
//! dropped or replaced while they wait, or that go through the loop's channel, stand alone always.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{Link, Shared};
use crate::config::Deflate;
use crate::message::{Bytes, Message, Utf8Bytes};
use crate::proto::deflate::{
    Agreed, Deflater, InflateError, Inflater, compress_alone, inflate_alone,
};
use crate::proto::{Opcode, Violation, compressed_message};
use crate::sync::lock;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Compression {
    agreed: Agreed,
    /// Counts this connection among its class.
    shared: Arc<Shared>,
    /// Only if the peer keeps the window of what we send.
    sender: Mutex<Sender>,
    /// Only if we keep the window of what we receive.
    receiver: Mutex<Option<Box<Inflater>>>,
}

/// The compressor of one connection.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// `None` before the first message.
    deflater: Option<Box<Deflater>>,
    /// What the outbox had counted with the last message that was made here and queued. `None`: what
    /// was made last was not, so start afresh.
    queued: Option<u32>,
    /// The connection has ended.
    over: bool,
}

impl Compression {
    pub(crate) fn new(agreed: Agreed, shared: Arc<Shared>) -> Self {
        shared.enter_class(agreed.send.bits);
        Self {
            agreed,
            shared,
            sender: Mutex::default(),
            receiver: Mutex::new(None),
        }
    }

    /// The window that the peer has for what we send: what is compressed for one connection suits
    /// all of the same class.
    pub(crate) fn class(&self) -> u8 {
        self.agreed.send.bits
    }

    // ---- sending ----

    /// Whether messages may refer to those before them.
    pub(super) fn keeps_window(&self) -> bool {
        self.agreed.send.takeover
    }

    /// Compresses a text or binary message that stands alone.
    pub(super) fn alone(&self, message: &Message, settings: &Deflate) -> Message {
        alone(message, settings, self.class())
    }

    /// The compressor of the connection; its lock is held until what it made is queued. `None`: the
    /// connection has ended, and nothing is queued.
    pub(super) fn sender(&self) -> Option<MutexGuard<'_, Sender>> {
        Some(lock(&self.sender)).filter(|sender| !sender.over)
    }

    /// Compresses a message that may refer to those before it, if the outbox has counted just those.
    /// Once it is queued, the sender has to be told so.
    pub(super) fn in_context(
        &self,
        sender: &mut Sender,
        message: &Message,
        settings: &Deflate,
        counted: u32,
    ) -> Message {
        let new = || Box::new(Deflater::new(settings.level, self.agreed.send.bits));
        let deflater = sender.deflater.get_or_insert_with(new);
        if sender.queued.take() != Some(counted) {
            deflater.reset();
        }
        let (opcode, payload) = parts(message);
        let mut out = Vec::new();
        deflater.compress(payload, true, &mut out);
        compressed_message(opcode, out.into())
    }

    // ---- receiving ----

    /// Inflates a message. Only the runner of the mailbox calls this, so order holds.
    pub(crate) fn inflate(
        &self,
        opcode: Opcode,
        payload: &[u8],
        limit: usize,
    ) -> Result<Message, Violation> {
        let receive = self.agreed.receive;
        let inflated = if receive.takeover {
            lock(&self.receiver)
                .get_or_insert_with(|| Box::new(Inflater::new()))
                .inflate(payload, limit, true)
        } else {
            inflate_alone(payload, limit)
        };
        let bytes: Bytes = match inflated {
            Ok(bytes) => bytes.into(),
            Err(InflateError::TooBig) => return Err(Violation::TOO_BIG),
            Err(InflateError::Corrupt) => {
                return Err(Violation::protocol("corrupt compressed data"));
            }
        };
        match opcode {
            Opcode::Text => match Utf8Bytes::try_from(bytes) {
                Ok(text) => Ok(Message::Text(text)),
                Err(_) => Err(Violation::INVALID_UTF8),
            },
            _ => Ok(Message::Binary(bytes)),
        }
    }
}

impl Compression {
    /// The connection has ended: its windows go, and it is counted no more. Only the runner of the mailbox
    /// calls this.
    fn end(&self) {
        let mut sender = lock(&self.sender);
        sender.deflater = None;
        if !std::mem::replace(&mut sender.over, true) {
            self.shared.leave_class(self.class());
        }
        drop(sender);
        *lock(&self.receiver) = None;
    }
}

impl Drop for Compression {
    fn drop(&mut self) {
        self.end();
    }
}

impl Link {
    /// The connection has ended, and its handler is being told: what compression takes goes now, as a
    /// `Peer` may be kept for long.
    pub(crate) fn end_compression(&self) {
        if let Some(compression) = self.compression() {
            compression.end();
        }
    }
}

impl Sender {
    /// What was compressed last is in the outbox; `counted` is its count, with that.
    pub(super) fn queued(&mut self, counted: u32) {
        self.queued = Some(counted);
    }
}

/// Compresses a text or binary message for all connections of a class.
pub(crate) fn alone(message: &Message, settings: &Deflate, class: u8) -> Message {
    let (opcode, payload) = parts(message);
    compressed_message(
        opcode,
        compress_alone(payload, settings.level, class).into(),
    )
}

fn parts(message: &Message) -> (Opcode, &[u8]) {
    match message {
        Message::Text(text) => (Opcode::Text, text.as_bytes()),
        Message::Binary(payload) => (Opcode::Binary, payload),
        _ => (Opcode::Binary, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::proto::deflate::Half;

    /// Nothing is compressed for those that have ended, be they kept or not.
    #[test]
    fn what_has_ended_counts_no_more() {
        let shared = Arc::new(Shared::new(Config::default()));
        let half = Half {
            bits: 12,
            takeover: true,
        };
        let agreed = Agreed {
            send: half,
            receive: half,
        };
        let new = || Compression::new(agreed, shared.clone());
        let (kept, open) = (new(), new());
        kept.end();
        assert!(kept.sender().is_none() && open.sender().is_some());
        assert!(shared.classes().eq([12]));
        drop(open);
        assert_eq!(shared.classes().count(), 0);
        drop(kept);
        assert_eq!(shared.classes().count(), 0);
    }
}
