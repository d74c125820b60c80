//! What travels: a byte that tells the kind, then fields, little-endian; `~` is a number of 7 bits a byte,
//! least first (LEB128), and `name` a length and as many bytes of UTF-8.
//!
//! | to the server | |
//! |---|---|
//! | 1 hello | version u8, token 16 bytes or zeros, name |
//! | 2 input | number of the first u32, then 1 to 16 times: x i8, y i8, dash u8 |
//! | 3 ping | 8 bytes of the page's own |
//!
//! | to the page | |
//! |---|---|
//! | 1 welcome | ship u16, resumed u8, token 16 bytes, snapshots a second u8 |
//! | 2 snapshot | see `snapshot.rs` |
//! | 3 board | players ~, then the best: ship u16, score ~, place u8 u8 (in 1/256 of the arena), name |
//! | 4 pong | the 8 bytes |
//!
//! Whoever sends anything else is put out, with a close code that says why.

use crate::ship::Input;

pub(crate) const VERSION: u8 = 1;
/// Longer messages close with 1009.
pub(crate) const MAX_MESSAGE: usize = 128;
/// The longest name, in characters and in bytes.
const MAX_NAME: (usize, usize) = (16, 48);
const MAX_INPUTS: usize = 16;

pub(crate) type Token = [u8; 16];

/// Close codes of the game's own (RFC 6455 §7.4.2: 4000 to 4999 are private).
pub(crate) mod code {
    /// Not a message of this protocol.
    pub(crate) const MALFORMED: u16 = 4000;
    /// The page is of another version: reload it.
    pub(crate) const VERSION: u16 = 4001;
    /// An input that no ship can carry out, or not the next one.
    pub(crate) const INPUT: u16 = 4002;
    /// Hello must come first, and once.
    pub(crate) const HELLO: u16 = 4003;
    /// The same token came with another connection.
    pub(crate) const TAKEN_OVER: u16 = 4004;
    /// So slow that it is of no use.
    pub(crate) const TOO_SLOW: u16 = 4005;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToServer {
    Hello { token: Option<Token>, name: String },
    Input { first: u32, inputs: Vec<Input> },
    Ping([u8; 8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadMessage {
    Malformed,
    Version,
}

impl ToServer {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        let mut reader = Reader(bytes);
        let message = match reader.u8() {
            Some(1) if reader.u8() != Some(VERSION) => return Err(BadMessage::Version),
            Some(1) => Self::hello(&mut reader),
            Some(2) => Self::input(&mut reader),
            Some(3) => reader.array().map(Self::Ping),
            _ => None,
        };
        message
            .filter(|_| reader.0.is_empty())
            .ok_or(BadMessage::Malformed)
    }

    fn hello(reader: &mut Reader<'_>) -> Option<Self> {
        let token: Token = reader.array()?;
        let token = (token != [0; 16]).then_some(token);
        let name = tidy(reader.name()?);
        Some(Self::Hello { token, name })
    }

    fn input(reader: &mut Reader<'_>) -> Option<Self> {
        let first = reader.u32()?;
        let mut inputs = Vec::new();
        while !reader.0.is_empty() && inputs.len() < MAX_INPUTS {
            let [x, y, dash] = reader.array()?;
            let dash = match dash {
                0 => false,
                1 => true,
                _ => return None,
            };
            let (x, y) = (x as i8, y as i8); // the same bits
            inputs.push(Input { x, y, dash });
        }
        (!inputs.is_empty()).then_some(Self::Input { first, inputs })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello { token, name } => {
                out.extend([1, VERSION]);
                out.extend(token.unwrap_or_default());
                put_name(&mut out, name);
            }
            Self::Input { first, inputs } => {
                out.push(2);
                out.extend(first.to_le_bytes());
                for input in inputs {
                    out.extend([input.x as u8, input.y as u8, input.dash.into()]);
                }
            }
            Self::Ping(cookie) => {
                out.push(3);
                out.extend(cookie);
            }
        }
        out
    }
}

/// A name as others may see it: no control characters, nothing that turns the line around or that can't be
/// seen and makes two names look alike, not too long. The page draws names as text only, so nothing in them
/// needs escaping there.
pub(crate) fn tidy(name: &str) -> String {
    let seen: String = name
        .chars()
        .filter(|c| c.is_whitespace() || !is_hidden(*c))
        .collect();
    let mut tidy = seen.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = tidy.char_indices().enumerate();
    let over =
        |(n, (at, c)): &(usize, (usize, char))| *n >= MAX_NAME.0 || at + c.len_utf8() > MAX_NAME.1;
    if let Some((_, (at, _))) = { end }.find(over) {
        tidy.truncate(at);
    }
    match tidy.trim() {
        "" => "nameless".into(),
        name => name.into(),
    }
}

/// Control characters, and what Unicode has drawn as nothing (`Default_Ignorable_Code_Point`: joiners,
/// directions, fillers, variation selectors, tags), marks of annotations, and U+2800, a blank that is not
/// counted as one.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) ship: u16,
    pub(crate) resumed: bool,
    pub(crate) token: Token,
    pub(crate) rate: u8,
}

impl Welcome {
    pub(crate) const KIND: u8 = 1;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![Self::KIND];
        out.extend(self.ship.to_le_bytes());
        out.push(self.resumed.into());
        out.extend(self.token);
        out.push(self.rate);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes.strip_prefix(&[Self::KIND])?);
        Some(Self {
            ship: reader.u16()?,
            resumed: reader.u8()? == 1,
            token: reader.array()?,
            rate: reader.u8()?,
        })
    }
}

/// The best of all, the same for everyone.
pub(crate) struct Board<'a> {
    pub(crate) players: usize,
    /// Ship, score, place in 1/256 of the arena, name.
    pub(crate) best: Vec<(u16, u32, [u8; 2], &'a str)>,
}

impl Board<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![3];
        put_number(&mut out, self.players as u32);
        for (ship, score, place, name) in &self.best {
            out.extend(ship.to_le_bytes());
            put_number(&mut out, *score);
            out.extend(place);
            put_name(&mut out, name);
        }
        out
    }
}

pub(crate) fn pong(cookie: [u8; 8]) -> Vec<u8> {
    let mut out = vec![4];
    out.extend(cookie);
    out
}

/// LEB128.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80); // the low seven bits
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_name(out: &mut Vec<u8>, name: &str) {
    put_number(out, name.len() as u32);
    out.extend(name.as_bytes());
}

/// Small numbers of either sign become small: 0, -1, 1, -2, …
pub(crate) fn zigzag(number: i16) -> u32 {
    ((number << 1) ^ (number >> 15)) as u16 as u32
}

pub(crate) fn unzigzag(number: u32) -> Option<i16> {
    let number = u16::try_from(number).ok()?;
    Some((number >> 1) as i16 ^ -((number & 1) as i16))
}

/// Takes fields off the front; `None`: there is not that much, or it is no such field.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn number(&mut self) -> Option<u32> {
        let mut number = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(number).ok();
            }
        }
        None
    }

    pub(crate) fn name(&mut self) -> Option<&'a str> {
        let len = self.number()? as usize;
        let (name, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(name).ok()
    }
}
