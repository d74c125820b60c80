//! The one message that a run consists of, and the frames that carry it.
//!
//! Every message of a run is the same, so that clients (and `limit`) can send from a buffer made
//! once, and any reply can be compared with what it must be.

/// Fixed, since it is the server's unmasking that is measured. Nonzero, so that there is something
/// to unmask.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Of the first byte of a frame: the payload is compressed.
pub const RSV1: u8 = 0x40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Text = 1,
    Binary = 2,
    Pong = 10,
}

impl Opcode {
    pub fn of_message(text: bool) -> Self {
        if text { Self::Text } else { Self::Binary }
    }
}

/// Printable ASCII (so it is also valid text) without a short period, so that a shifted or swapped
/// piece shows.
pub fn payload(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b' ' + (state >> 24) as u8 % 95
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// Header of an unmasked frame, as servers send them.
pub fn server_header(opcode: Opcode, size: usize) -> Vec<u8> {
    header(opcode, size, 0)
}

pub fn server_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = server_header(opcode, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// A masked frame, as clients send them.
pub fn client_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// The same of a payload that was compressed (RFC 7692, section 6.1: RSV1).
pub fn compressed_client_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(opcode, payload);
    frame[0] |= RSV1;
    frame
}

/// The length of the header that a server's frame begins with and that of its payload, once the
/// header is complete.
pub fn lengths(received: &[u8]) -> Option<(usize, usize)> {
    let field = |bytes: &[u8]| {
        let number = |sum, &byte| sum << 8 | usize::from(byte);
        (2 + bytes.len(), bytes.iter().fold(0, number))
    };
    match *received.get(1)? {
        126 => received.get(2..4).map(field),
        127 => received.get(2..10).map(field),
        short => Some((2, usize::from(short))),
    }
}

fn header(opcode: Opcode, size: usize, mask_bit: u8) -> Vec<u8> {
    let mut header = vec![0x80 | opcode as u8];
    match size {
        0..=125 => header.push(mask_bit | size as u8),
        126..=0xffff => {
            header.push(mask_bit | 126);
            header.extend_from_slice(&(size as u16).to_be_bytes());
        }
        _ => {
            header.push(mask_bit | 127);
            header.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_use_the_shortest_length() {
        assert_eq!(server_header(Opcode::Binary, 125), [0x82, 125]);
        assert_eq!(server_header(Opcode::Text, 126), [0x81, 126, 0, 126]);
        assert_eq!(
            server_header(Opcode::Text, 65536),
            [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn lengths_are_read_from_what_was_written() {
        for size in [0, 125, 126, 65535, 65536] {
            let header = server_header(Opcode::Text, size);
            assert_eq!(lengths(&header), Some((header.len(), size)));
            assert_eq!(lengths(&header[..header.len() - 1]), None);
        }
    }

    #[test]
    fn client_frames_unmask_to_the_payload() {
        let payload = payload(1000);
        let frame = client_frame(Opcode::Binary, &payload);
        let (head, body) = frame.split_at(frame.len() - payload.len());
        assert_eq!(head, [0x82, 0x80 | 126, 3, 232, 0x37, 0xfa, 0x21, 0x3d]);
        let unmasked: Vec<u8> = body
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        assert_eq!(unmasked, payload);
    }
}
