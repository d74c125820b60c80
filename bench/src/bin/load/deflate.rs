//! One message of JSON, compressed for itself (RFC 7692, section 7.2), and the way back.

use std::{
    fmt::Write,
    io::{Error, Result},
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// What ends a flushed block, and is left out on the wire.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

const NAMES: [&str; 8] = [
    "Aveline",
    "Borin",
    "Catalpa",
    "Dunmore",
    "Esmeralda",
    "Ferrol",
    "Gwendal",
    "Hollis",
];
const STATES: [&str; 5] = ["walking", "fighting", "trading", "idle", "crafting"];

/// A message as servers of games or markets send them: a list of like objects with unlike figures.
/// Exactly `size` bytes.
pub(crate) fn json(size: usize) -> Result<Vec<u8>> {
    let mut random = 0x9e37_79b9_u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    const END: &str = r#"],"room":""#;
    const LAST: &str = r#""}"#;
    let mut text = String::from(r#"{"type":"state","tick":184223,"players":["#);
    let mut separator = "";
    loop {
        let name = NAMES[next(8) as usize];
        let state = STATES[next(5) as usize];
        let (x, y) = (
            f64::from(next(409_600)) / 100.0,
            f64::from(next(409_600)) / 100.0,
        );
        let player = format!(
            r#"{separator}{{"id":{},"name":"{name}","x":{x},"y":{y},"health":{},"state":"{state}"}}"#,
            10_000 + next(90_000),
            next(101),
        );
        if text.len() + player.len() + END.len() + LAST.len() > size {
            break;
        }
        text += &player;
        separator = ",";
    }
    text += END;
    let room = size.checked_sub(text.len() + LAST.len());
    let room = room.ok_or_else(|| Error::other("too small for a message of JSON"))?;
    for _ in 0..room {
        let _ = write!(text, "{}", char::from(b'a' + next(26) as u8));
    }
    text += LAST;
    Ok(text.into_bytes())
}

pub(crate) fn compress(text: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(text.len() + 64);
    Compress::new(Compression::default(), false)
        .compress_vec(text, &mut compressed, FlushCompress::Sync)
        .expect("takes any input");
    assert!(compressed.ends_with(&TAIL), "there was room");
    compressed.truncate(compressed.len() - TAIL.len());
    compressed
}

pub(crate) fn inflate(payload: &[u8]) -> Result<Vec<u8>> {
    let mut input = payload.to_vec();
    input.extend_from_slice(&TAIL);
    // More than any message of a run, so that a wrong one is seen to be.
    let mut text = Vec::with_capacity(64 * 1024 + payload.len() * 64);
    Decompress::new(false)
        .decompress_vec(&input, &mut text, FlushDecompress::Sync)
        .map_err(Error::other)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_as_long_as_asked_and_comes_back() {
        for size in [64, 300, 1024, 65536] {
            let text = json(size).unwrap();
            assert_eq!(text.len(), size);
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
            let compressed = compress(&text);
            assert!(size < 300 || compressed.len() < size);
            assert_eq!(inflate(&compressed).unwrap(), text);
        }
        assert!(json(20).is_err());
    }
}
