//! Where the bytes of a message live once they leave the read buffer.
//!
//! A message is handed to user code, which may keep it for ever, so it can't stay in the read
//! buffer of the loop. Small messages share blocks of at most [`BLOCK`] bytes: one allocation for
//! all that a read brought, and a kept message of 20 bytes holds [`BLOCK`] bytes alive at worst. As
//! long as user code drops what it gets (an inline echo), the same block is used again and again
//! and nothing is allocated at all. Larger messages get an allocation of their own size.

use bytes::{Bytes, BytesMut};

/// The most memory that messages share.
const BLOCK: usize = 4096;
/// Messages over this size don't share.
const SHARE_MAX: usize = 1024;

/// The source of payload memory of one loop.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// What is left of the current block: empty, with spare capacity.
    block: BytesMut,
    /// Blocks come back, so that they are worth making large.
    reused: bool,
}

impl Blocks {
    /// `reused`: messages are usually dropped before the next ones are made. Otherwise a block is
    /// never made larger than what the current read can fill.
    pub(crate) fn new(reused: bool) -> Self {
        Self {
            block: BytesMut::new(),
            reused,
        }
    }

    /// A copy of `payload`. `coming` is how many bytes the rest of the read may still bring.
    #[inline]
    pub(crate) fn copy(&mut self, payload: &[u8], coming: usize) -> Bytes {
        if payload.len() > SHARE_MAX {
            return Bytes::copy_from_slice(payload);
        }
        if self.block.capacity() < payload.len() {
            self.renew(payload.len(), coming);
        }
        self.block.extend_from_slice(payload);
        self.block.split().freeze()
    }

    fn renew(&mut self, needed: usize, coming: usize) {
        let size = if self.reused {
            BLOCK
        } else {
            coming.clamp(needed, BLOCK)
        };
        // All of it or nothing: what is left of a block that is kept is not worth having.
        if !self.block.try_reclaim(size) {
            self.block = BytesMut::with_capacity(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_messages_leave_their_block_to_the_next() {
        let mut blocks = Blocks::new(true);
        let first = blocks.copy(&[1; 64], 64).as_ptr();
        for n in 1..1000 {
            let next = blocks.copy(&[2; 64], 64).as_ptr();
            assert_eq!(next as usize, first as usize + n * 64 % BLOCK);
        }
    }

    #[test]
    fn kept_messages_keep_their_bytes() {
        let mut blocks = Blocks::new(false);
        let kept: Vec<Bytes> = (0..500usize)
            .map(|n| blocks.copy(&vec![n as u8; n * 7 % 1500], 65536))
            .collect();
        for (n, bytes) in kept.iter().enumerate() {
            assert_eq!(bytes[..], vec![n as u8; n * 7 % 1500]);
        }
    }
}
