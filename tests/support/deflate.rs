//! permessage-deflate as a client does it, with every byte in the hands of the test.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{Addr, Raw, Stream, request, socket};

/// Offered and answered where each message stands alone, in both directions.
pub const ALONE: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// First bytes of compressed messages.
pub const TEXT: u8 = 0xC1;
pub const BINARY: u8 = 0xC2;

/// RFC 7692 §7.2.1: what does not travel.
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// Opens a connection with these offers, each in a header of its own; gives the server's answer.
pub fn offering(addr: impl Into<Addr>, offers: &[&str]) -> (Raw, Option<String>) {
    offering_on(socket(addr), offers)
}

/// The same on a connected socket.
pub fn offering_on(stream: Stream, offers: &[&str]) -> (Raw, Option<String>) {
    const NAME: &str = "Sec-WebSocket-Extensions: ";
    let mut head = request("localhost");
    head.truncate(head.len() - 2);
    for offer in offers {
        head.push_str(&format!("{NAME}{offer}\r\n"));
    }
    let mut raw = Raw::over(stream);
    raw.write((head + "\r\n").as_bytes());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let lower = NAME.to_lowercase();
    let mut answers = head
        .lines()
        .filter(|line| line.to_lowercase().starts_with(&lower));
    let answer = answers.next().map(|line| line[NAME.len()..].to_owned());
    assert_eq!(answers.next(), None, "{head}");
    (raw, answer)
}

/// Opens a connection where each message stands alone.
pub fn open(addr: impl Into<Addr>) -> Raw {
    let (raw, answer) = offering(addr, &[ALONE]);
    assert_eq!(answer.as_deref(), Some(ALONE));
    raw
}

/// The payload of a compressed message that stands alone.
pub fn zip(payload: &[u8]) -> Vec<u8> {
    Zip::new(6, 15).message(payload)
}

/// What is in the payload of a compressed message that stands alone.
pub fn unzip(payload: &[u8]) -> Vec<u8> {
    Unzip::new(15).message(payload).unwrap()
}

/// Compresses messages, with those before them as context.
pub struct Zip(Compress);

impl Zip {
    /// `level` 0 compresses nothing.
    pub fn new(level: u32, bits: u8) -> Self {
        let level = Compression::new(level);
        Self(Compress::new_with_window_bits(level, false, bits))
    }

    pub fn message(&mut self, mut payload: &[u8]) -> Vec<u8> {
        if payload.is_empty() {
            // There is nothing to flush.
            return vec![0];
        }
        let mut out = Vec::new();
        while !payload.is_empty() || out.len() == out.capacity() {
            out.reserve(64 + payload.len() / 2);
            let before = self.0.total_in();
            self.0
                .compress_vec(payload, &mut out, FlushCompress::Sync)
                .unwrap();
            payload = &payload[(self.0.total_in() - before) as usize..];
        }
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }
}

/// Inflates messages, with those before them as context.
pub struct Unzip(Decompress);

impl Unzip {
    pub fn new(bits: u8) -> Self {
        Self(Decompress::new_with_window_bits(false, bits))
    }

    /// `Err`: what came out before it went wrong.
    pub fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let payload = [payload, &TAIL].concat();
        let (mut rest, mut out) = (&payload[..], Vec::new());
        // Little at a time: zlib finds what lies beyond the window only outside of the buffer.
        let mut chunk = [0; 256];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress(rest, &mut chunk, FlushDecompress::None);
            rest = &rest[(self.0.total_in() - read) as usize..];
            let written = (self.0.total_out() - written) as usize;
            out.extend_from_slice(&chunk[..written]);
            match status {
                Ok(Status::Ok | Status::BufError) if written == chunk.len() => {}
                Ok(Status::Ok | Status::BufError) if rest.is_empty() => return Ok(out),
                Ok(Status::Ok) => {}
                _ => return Err(out),
            }
        }
    }
}

/// Text that resembles itself, near and far.
pub fn prose(len: usize) -> String {
    const WORDS: [&str; 8] = [
        "mill", "frame", "wheel", "stone", "grain", "water", "sluice", "flour",
    ];
    let (mut text, mut x) = (String::with_capacity(len + 16), 7692u32);
    while text.len() < len {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word = WORDS[(x >> 29) as usize];
        text.push_str(&format!("{word}{} ", (x >> 8) % 100));
    }
    text.truncate(len);
    text
}

/// Bytes that don't compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15 ^ len as u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend(x.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
