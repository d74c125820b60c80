//! One frame's header (RFC 6455 §5.2), parsed and written.
//!
//! A header is refused at the first byte that decides it, so a ping that claims 16 MiB or a length
//! over the limit costs its sender two to fourteen bytes and us nothing.

use std::cell::RefCell;

use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng};

use super::close::Violation;
use super::mask::mask;
use super::message_reader::Role;

/// The longest header: two bytes, a 64-bit length, a masking key.
pub(crate) const MAX_HEADER: usize = 14;
/// §5.5: "All control frames MUST have a payload length of 125 bytes or less".
pub(crate) const MAX_CONTROL: usize = 125;

/// §5.2: the first of three bits "for which extensions define meanings".
const RSV1: u8 = 0x40;

/// §5.2, the opcodes that are defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    pub(crate) fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// A whole header, every rule of which that needs no memory of earlier frames has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) fin: bool,
    /// RSV1, on the first frame of a message: it is compressed (RFC 7692 §6).
    pub(crate) compressed: bool,
    pub(crate) opcode: Opcode,
    /// All zero when the frame is not masked.
    pub(crate) key: [u8; 4],
    /// Bytes of the header itself, 2..=14.
    pub(crate) size: u8,
    /// Bytes of the payload, `< 2^63`.
    pub(crate) len: u64,
}

impl Header {
    /// Parses a header that was sent *to* `role`. `None` if `input` ends within it and nothing is
    /// wrong so far.
    #[inline]
    pub(crate) fn parse(
        input: &[u8],
        role: Role,
        compression: bool,
    ) -> Result<Option<Self>, Violation> {
        let &[first, ref rest @ ..] = input else {
            return Ok(None);
        };
        // "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
        let compressed = compression && first & RSV1 != 0;
        if first & 0x70 != if compressed { RSV1 } else { 0 } {
            return Err(Violation::protocol("reserved bit set"));
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0F) else {
            return Err(Violation::protocol("reserved opcode"));
        };
        // RFC 7692 §6: the bit stands for the message, so on its first frame.
        if compressed && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(Violation::protocol("reserved bit set"));
        }
        let fin = first & 0x80 != 0;
        if opcode.is_control() && !fin {
            return Err(Violation::protocol("fragmented control frame"));
        }
        let &[second, ref rest @ ..] = rest else {
            return Ok(None);
        };
        // §5.1: "a server MUST close the connection upon receiving a frame that is not masked",
        // "a client MUST close a connection if it detects a masked frame".
        let masked = second & 0x80 != 0;
        if masked != (role == Role::Server) {
            return Err(Violation::protocol(match role {
                Role::Server => "frame from a client without a mask",
                Role::Client => "masked frame from a server",
            }));
        }
        let short = second & 0x7F;
        if opcode.is_control() && short as usize > MAX_CONTROL {
            return Err(Violation::protocol("control frame over 125 bytes"));
        }
        let Some((len, rest)) = parse_length(short, rest)? else {
            return Ok(None);
        };
        let (key, rest) = if masked {
            let Some((&key, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (key, rest)
        } else {
            ([0; 4], rest)
        };
        Ok(Some(Self {
            fin,
            compressed,
            opcode,
            key,
            size: (input.len() - rest.len()) as u8,
            len,
        }))
    }
}

/// Bytes of a frame with `len` bytes of payload.
pub(crate) fn frame_len(len: usize, masked: bool) -> usize {
    let header = match len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    header + if masked { 4 } else { 0 } + len
}

/// Where the payload of a whole frame lies in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Text or binary.
    pub(crate) opcode: Opcode,
    pub(crate) key: [u8; 4],
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Whole {
    /// The frame at the front of what was sent to `role`, if it is what nearly all are: an
    /// unfragmented text or binary message of up to 64 KiB, not compressed, all of it there. `None`:
    /// [`Header::parse`] tells what it is.
    #[inline(always)] // on the path of every message
    pub(crate) fn find(input: &[u8], role: Role) -> Option<Self> {
        let &[first, second, a, b, c, d, e, f] = input.first_chunk()?;
        let opcode = match first {
            0x81 => Opcode::Text,
            0x82 => Opcode::Binary,
            _ => return None,
        };
        let long = a != 0 || b >= 126;
        let long_len = usize::from(u16::from_be_bytes([a, b]));
        let (len, key, start) = match (second, role) {
            (0x80..=0xFD, Role::Server) => (usize::from(second & 0x7F), [a, b, c, d], 6),
            (0xFE, Role::Server) if long => (long_len, [c, d, e, f], 8),
            (0..=125, Role::Client) => (usize::from(second), [0; 4], 2),
            (126, Role::Client) if long => (long_len, [0; 4], 4),
            _ => return None,
        };
        let end = start + len;
        (end <= input.len()).then_some(Self {
            opcode,
            key,
            start,
            end,
        })
    }
}

/// §5.2: "the minimal number of bytes MUST be used to encode the length", "the most significant
/// bit MUST be 0".
#[inline]
fn parse_length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    match short {
        126 => {
            let Some((&bytes, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let len = u16::from_be_bytes(bytes);
            if len < 126 {
                return Err(Violation::protocol("length not minimally encoded"));
            }
            Ok(Some((u64::from(len), rest)))
        }
        127 => {
            let Some((&bytes, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let len = u64::from_be_bytes(bytes);
            if len >> 63 != 0 {
                return Err(Violation::protocol("length over 63 bits"));
            }
            if len <= u64::from(u16::MAX) {
                return Err(Violation::protocol("length not minimally encoded"));
            }
            Ok(Some((len, rest)))
        }
        short => Ok(Some((u64::from(short), rest))),
    }
}

/// The first byte of an unfragmented frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstByte(u8);

impl FirstByte {
    /// RFC 7692 §6: a compressed message has RSV1 set in its first frame.
    pub(crate) fn compressed(opcode: Opcode) -> Self {
        Self(0x80 | RSV1 | opcode as u8)
    }
}

impl From<Opcode> for FirstByte {
    #[inline]
    fn from(opcode: Opcode) -> Self {
        Self(0x80 | opcode as u8)
    }
}

/// A new masking key. §5.3: it "MUST be derived from a strong source of entropy", and not be
/// predictable from those before it.
pub(crate) fn new_mask() -> [u8; 4] {
    let own = MASKS.try_with(|own| own.borrow_mut().random());
    own.unwrap_or_else(|_| seeded().random())
}

thread_local! {
    /// Not the one that `rand` has for each thread: user code may still send when that is gone, and it panics.
    static MASKS: RefCell<StdRng> = RefCell::new(seeded());
}

#[cold]
fn seeded() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).expect("a system has random numbers")
}

/// Writes the header of an unfragmented frame into `out`; gives the bytes used.
#[inline]
pub(crate) fn encode_header(
    first: impl Into<FirstByte>,
    len: usize,
    key: Option<[u8; 4]>,
    out: &mut [u8; MAX_HEADER],
) -> usize {
    out[0] = first.into().0;
    let mut size = match len {
        0..=125 => {
            out[1] = len as u8;
            2
        }
        126..=0xFFFF => {
            out[1] = 126;
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            4
        }
        _ => {
            out[1] = 127;
            out[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        }
    };
    if let Some(key) = key {
        out[1] |= 0x80;
        out[size..size + 4].copy_from_slice(&key);
        size += 4;
    }
    size
}

/// Appends a whole unfragmented frame to `out`, masked with `key` if there is one.
#[inline(always)] // on the path of every message that is sent
pub(crate) fn encode(
    first: impl Into<FirstByte>,
    payload: &[u8],
    key: Option<[u8; 4]>,
    out: &mut Vec<u8>,
) {
    let first = first.into();
    if key.is_none() && payload.len() <= 125 {
        // By far the most frequent, and worth the repetition: a copy of two bytes needs no call.
        out.reserve(2 + payload.len());
        out.extend_from_slice(&[first.0, payload.len() as u8]);
        return out.extend_from_slice(payload);
    }
    let mut header = [0; MAX_HEADER];
    let size = encode_header(first, payload.len(), key, &mut header);
    out.reserve(size + payload.len());
    out.extend_from_slice(&header[..size]);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut out[start..], key, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn violation(input: &[u8], role: Role) -> &'static str {
        Header::parse(input, role, false).unwrap_err().why
    }

    #[test]
    fn refuses_at_the_first_deciding_byte() {
        use Role::{Client, Server};
        assert_eq!(violation(&[0xC1], Server), "reserved bit set");
        assert_eq!(violation(&[0x83], Server), "reserved opcode");
        assert_eq!(violation(&[0x8B], Server), "reserved opcode");
        assert_eq!(violation(&[0x09], Server), "fragmented control frame");
        assert_eq!(
            violation(&[0x81, 0x01], Server),
            "frame from a client without a mask"
        );
        assert_eq!(
            violation(&[0x81, 0x81], Client),
            "masked frame from a server"
        );
        assert_eq!(
            violation(&[0x89, 0xFE], Server),
            "control frame over 125 bytes"
        );
        assert_eq!(
            violation(&[0x82, 126, 0, 125], Client),
            "length not minimally encoded"
        );
        assert_eq!(
            violation(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], Client),
            "length not minimally encoded"
        );
        assert_eq!(
            violation(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], Client),
            "length over 63 bits"
        );
    }

    proptest! {
        /// What is written is read back, and no shorter prefix is taken for a header.
        #[test]
        fn round_trip(len in prop_oneof![0usize..300, 65_000usize..66_000, any::<u32>().prop_map(|n| n as usize)],
                      key in any::<Option<[u8; 4]>>(), binary: bool, compressed: bool) {
            let opcode = if binary { Opcode::Binary } else { Opcode::Text };
            let role = if key.is_some() { Role::Server } else { Role::Client };
            let mut out = [0; MAX_HEADER];
            let first = if compressed { FirstByte::compressed(opcode) } else { opcode.into() };
            let size = encode_header(first, len, key, &mut out);
            for cut in 0..size {
                prop_assert_eq!(Header::parse(&out[..cut], role, compressed), Ok(None));
            }
            let expected = Header { fin: true, compressed, opcode, key: key.unwrap_or_default(), size: size as u8, len: len as u64 };
            prop_assert_eq!(Header::parse(&out[..size], role, compressed), Ok(Some(expected)));
        }
    }
}
