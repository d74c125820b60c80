//! One message compressed or inflated (RFC 7692 §7.2), with or without those before it.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Why a message can't be inflated. The inflater is as new afterwards, and the context is lost: the
/// connection has to be failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InflateError {
    /// More than the limit would come out.
    TooBig,
    /// Not what RFC 1951 calls compressed data, or cut short.
    Corrupt,
}

/// §7.2.1: the LEN and NLEN of the empty stored block that ends each message, and does not travel.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Compresses the messages of one direction.
#[derive(Debug)]
pub(crate) struct Deflater(Compress);

impl Deflater {
    /// `level` is from 1 to 9, `bits` from 9 to 15.
    pub(crate) fn new(level: u32, bits: u8) -> Self {
        let level = Compression::new(level);
        Self(Compress::new_with_window_bits(level, false, bits))
    }

    /// Appends the payload of one compressed message. Without takeover nothing of it is kept for the
    /// next.
    pub(crate) fn compress(&mut self, payload: &[u8], takeover: bool, out: &mut Vec<u8>) {
        // A flush with nothing to flush gives nothing at all. §7.2.3.6: an empty message is the one
        // octet that begins an empty stored block, whatever went before.
        if payload.is_empty() {
            return out.push(0);
        }
        self.flush(payload, out);
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        if !takeover {
            self.reset();
        }
        // It may wait for long, and counts for what it is, not for what was guessed.
        if out.len() < out.capacity() / 2 {
            out.shrink_to_fit();
        }
    }

    /// Forgets the messages so far.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// Appends the payload compressed, and the empty stored block.
    ///
    /// Short text shrinks to a half or less, long text more; the guess is grown if it was too small.
    fn flush(&mut self, mut payload: &[u8], out: &mut Vec<u8>) {
        /// With less than 7 bytes of room zlib repeats the block that ends the message.
        const LEAST: usize = 64;
        let mut more = payload.len() / 2 + LEAST;
        loop {
            out.reserve(more.max(LEAST));
            let before = self.0.total_in();
            self.0
                .compress_vec(payload, out, FlushCompress::Sync)
                .expect("a stream that was never finished takes any input");
            payload = &payload[(self.0.total_in() - before) as usize..];
            // Room left over: nothing waits to be written.
            if payload.is_empty() && out.len() < out.capacity() {
                return;
            }
            more = payload.len() / 2;
        }
    }
}

/// Final blocks a message may have, and one more for each 16 bytes of it. Nobody needs so many, and each costs as
/// much as a hundred bytes: a mebibyte of empty ones takes ten times as long as any other.
const ENDS: usize = 1024;

/// Inflates the messages of one direction.
///
/// Its window is always the largest. That reads what was written with any smaller one, and takes no
/// more memory: zlib-rs gives all windows the same room.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(false))
    }

    /// The message in the payload of a compressed one, unless it is longer than `limit`. With
    /// takeover, the next may refer to it.
    ///
    /// Memory grows with what has come out, never past `limit`.
    pub(crate) fn inflate(
        &mut self,
        payload: &[u8],
        limit: usize,
        takeover: bool,
    ) -> Result<Vec<u8>, InflateError> {
        let mut out = Vec::new();
        let done = self.message(payload, limit, takeover, &mut out);
        if !takeover || done.is_err() {
            self.reset();
        }
        done?;
        // Users may keep the message for long.
        if out.len() < out.capacity() / 2 {
            out.shrink_to_fit();
        }
        Ok(out)
    }

    /// Forgets the messages so far.
    pub(crate) fn reset(&mut self) {
        self.0.reset(false);
    }

    fn message(
        &mut self,
        payload: &[u8],
        limit: usize,
        takeover: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateError> {
        out.reserve_exact(limit.min(2 * payload.len() + 64));
        let mut rest = payload;
        let mut most = usize::MAX;
        let mut ends = 0;
        loop {
            let (used, status, full) = self.step(rest, limit, out, most)?;
            rest = &rest[used..];
            most = most.saturating_mul(2);
            match status {
                // §7.2.3.4: a sender may end with a final block. What follows, at the next byte, is a
                // stream of its own; usually it is the header of the empty stored block.
                Status::StreamEnd => {
                    self.reset();
                    if rest.is_empty() {
                        return Ok(());
                    }
                    ends += 1;
                    if ends > ENDS + out.len() / 16 {
                        return Err(InflateError::Corrupt);
                    }
                    // It may be as short, and the next one, too; room costs its clearing.
                    most = 64;
                }
                // Room left over: nothing waits to be written.
                Status::Ok if rest.is_empty() && !full => break,
                Status::Ok => {}
                // Nothing to be done, though there was room for a byte at least.
                Status::BufError if rest.is_empty() => break,
                Status::BufError => return Err(InflateError::Corrupt),
            }
        }
        self.finish(takeover)
    }

    /// Inflates what it can into the room there is, up to the limit, after making some. Returns how much
    /// input it took, and whether all the room is filled.
    fn step(
        &mut self,
        input: &[u8],
        limit: usize,
        out: &mut Vec<u8>,
        most: usize,
    ) -> Result<(usize, Status, bool), InflateError> {
        let (before, length) = (self.0.total_in(), out.len());
        if length == out.capacity() && length < limit {
            out.reserve_exact((limit - length).min(length.max(64)));
        }
        let flush = FlushDecompress::None;
        let written = self.0.total_out();
        let (status, full) = if length < limit {
            let room = (out.capacity() - length).min(most);
            out.resize(length + room, 0);
            let status = self.0.decompress(input, &mut out[length..], flush);
            let fresh = (self.0.total_out() - written) as usize;
            out.truncate(length + fresh);
            (status, fresh == room)
        } else {
            let status = self.0.decompress(input, &mut [0], flush);
            if self.0.total_out() > written {
                return Err(InflateError::TooBig);
            }
            (status, true)
        };
        // An allocator may give more than was asked for.
        if out.len() > limit {
            return Err(InflateError::TooBig);
        }
        let status = status.map_err(|_| InflateError::Corrupt)?;
        let used = (self.0.total_in() - before) as usize;
        Ok((used, status, full))
    }

    /// Completes the empty stored block, and sees that this is what the payload ended with.
    ///
    /// zlib doesn't tell whether it is between two blocks, so a block follows that it can only take
    /// as a block if it is: a final one where that does no harm, else another empty stored one. Data
    /// cut short anywhere else takes these bytes for something that breaks a rule or comes out.
    /// (Within the tables of a dynamic block, all of the second kind may pass for lengths of codes;
    /// that is found out in the next message.)
    fn finish(&mut self, takeover: bool) -> Result<(), InflateError> {
        const FINAL: &[u8] = &[0, 0, 0xff, 0xff, 3, 0];
        const STORED: &[u8] = &[0, 0, 0xff, 0xff, 0, 0, 0, 0xff, 0xff];
        let ending = if takeover { STORED } else { FINAL };
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let mut none = [0; 16];
        let status = self.0.decompress(ending, &mut none, FlushDecompress::None);
        let used = (self.0.total_in() - read) as usize;
        if self.0.total_out() > written {
            return Err(InflateError::Corrupt);
        }
        match status {
            // The empty stored block was itself a final one.
            Ok(Status::StreamEnd) if used == TAIL.len() => {}
            Ok(Status::StreamEnd) if !takeover && used == ending.len() => return Ok(()),
            Ok(Status::Ok) if takeover && used == ending.len() => return Ok(()),
            _ => return Err(InflateError::Corrupt),
        }
        self.reset();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
