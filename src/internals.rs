//! What `benches/instructions.rs` counts the instructions of, and nobody else should use: it may change
//! at any time. Feature `_internals`.

use std::collections::VecDeque;

use crate::message::Message;
use crate::proto::{Blocks, MessageReader, Opcode, Role, encode};
use crate::worker::{Batch, Mailbox, MailboxState};

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Parser {
    reader: MessageReader,
    blocks: Blocks,
    messages: Vec<Message>,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            reader: MessageReader::new(Role::Server, 1 << 20),
            blocks: Blocks::new(true),
            messages: Vec::new(),
        }
    }
}

impl Parser {
    /// Makes messages of all the plain frames in `input`, and drops them; tells how many there were.
    pub fn parse(&mut self, input: &mut [u8]) -> usize {
        let mut input = input;
        while let Some(plain) = self.reader.next_plain(&mut input) {
            let coming = plain.payload.len() + input.len();
            let made = self.blocks.message(plain, coming, &mut self.messages);
            assert!(made.is_ok());
        }
        let count = self.messages.len();
        self.messages.clear();
        count
    }
}

/// Appends one frame, as a server writes it.
pub fn encode_text(payload: &[u8], out: &mut Vec<u8>) {
    encode(Opcode::Text, payload, None, out);
}

/// Puts `batch` into an idle mailbox, runs it, and gives the batch back, empty.
pub fn through_mailbox(mailbox: &mut AnyMailbox, batch: &mut Box<VecDeque<u64>>) -> u64 {
    assert!(mailbox.get().push(batch, Box::default));
    *batch = mailbox.get().take();
    let sum = batch.drain(..).sum();
    assert!(!mailbox.get().finish());
    sum
}

/// A mailbox.
#[derive(Debug, Default)]
pub struct AnyMailbox(Option<Batch<u64>>, MailboxState);

impl AnyMailbox {
    fn get(&mut self) -> Mailbox<'_, u64> {
        Mailbox {
            queue: &mut self.0,
            state: &self.1,
        }
    }
}
