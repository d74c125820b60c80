//! What the two sides agree to (RFC 7692 §5 and §7.1).
//!
//! The parameters say what each side's *compressor* does: `server_*` is what the server sends. Here
//! the two directions are named from our own point of view, and only this file translates.

use std::fmt::Write;

use crate::config::Deflate;
use crate::proto::extension::Extension;

pub(crate) const NAME: &str = "permessage-deflate";
const SERVER_NO_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_BITS: &str = "server_max_window_bits";
const CLIENT_BITS: &str = "client_max_window_bits";

const MOST_BITS: u8 = 15;
/// zlib can't write raw deflate for a window of 256 bytes: it would write for 512.
const LEAST_BITS: u8 = 9;

/// The windows that a server answers with, beside its own, when it is asked for a smaller one: rounded
/// down to few, as what goes to many is compressed once for each.
const SMALLER: [u8; 2] = [12, LEAST_BITS];

/// What was agreed to, from our own point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) send: Half,
    pub(crate) receive: Half,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    /// The window is at most 2 to this power: 9 to 15 in what we send, 8 to 15 in what we receive.
    pub(crate) bits: u8,
    /// A message may refer to those before it.
    pub(crate) takeover: bool,
}

/// The server's answer: the first offer of permessage-deflate that can be met, in the client's order,
/// with the value of the response header. `None` declines them all, which is no error: the
/// connection goes without.
pub(crate) fn answer(offers: &[Extension], want: &Deflate) -> Option<(Agreed, String)> {
    let ours = offers.iter().filter(|offer| offer.name == NAME);
    ours.filter_map(|offer| Params::read(offer).ok())
        .find_map(|offer| answer_one(&offer, want))
}

fn answer_one(offer: &Params, want: &Deflate) -> Option<(Agreed, String)> {
    let send = window_to_send(offer.server_bits, want.send_bits)?;
    // §7.1.2.2: only a client that offered the parameter can be held to a window. A value is a hint
    // that it keeps to on its own.
    let hint = offer.client_bits.max();
    let receive = hint.map_or(MOST_BITS, |hint| hint.min(want.receive_bits));
    let reply = Params {
        // §7.1.1: we may refrain from context unasked, and may have the client refrain. If it says
        // that it will anyway, there is no use in keeping a window for it.
        server_no_takeover: offer.server_no_takeover || !want.send_takeover,
        client_no_takeover: offer.client_no_takeover || !want.receive_takeover,
        server_bits: Some(send).filter(|_| send < MOST_BITS || offer.server_bits.is_some()),
        client_bits: match hint {
            Some(hint) if hint > receive => Bits::Max(receive),
            _ => Bits::Absent,
        },
    };
    let agreed = Agreed {
        send: Half {
            bits: send,
            takeover: !reply.server_no_takeover,
        },
        receive: Half {
            bits: receive,
            takeover: !reply.client_no_takeover,
        },
    };
    Some((agreed, reply.value()))
}

/// §7.1.2.1: "with the same or smaller value as the offer". `None`: there is none so small.
fn window_to_send(asked: Option<u8>, own: u8) -> Option<u8> {
    match asked {
        Some(asked) if asked < own => SMALLER.into_iter().find(|&bits| bits <= asked),
        _ => Some(own),
    }
}

/// The client's offer: the value of the request header.
pub(crate) fn offer(want: &Deflate) -> String {
    wanted(want).value()
}

/// `client_max_window_bits` is always offered, since any window that zlib can write for is fine with
/// us; a limit on what the server sends, only if there is one.
fn wanted(want: &Deflate) -> Params {
    let limit = |bits: u8| Some(bits).filter(|bits| *bits < MOST_BITS);
    Params {
        server_no_takeover: !want.receive_takeover,
        client_no_takeover: !want.send_takeover,
        server_bits: limit(want.receive_bits),
        client_bits: limit(want.send_bits).map_or(Bits::Any, Bits::Max),
    }
}

/// What the server's answer to our [`offer`] comes to, or why the connection has to be failed.
pub(crate) fn accept(answer: &Extension, want: &Deflate) -> Result<Agreed, &'static str> {
    if answer.name != NAME {
        return Err("the server chose an extension that was not offered");
    }
    let offered = wanted(want);
    let answer = Params::read(answer)?;
    // §7.1.1.1: a server accepts such an offer "by including" the parameter.
    if offered.server_no_takeover && !answer.server_no_takeover {
        return Err("the server did not agree to server_no_context_takeover");
    }
    let receive = answer.server_bits.unwrap_or(MOST_BITS);
    if receive > offered.server_bits.unwrap_or(MOST_BITS) {
        return Err("the server did not agree to server_max_window_bits");
    }
    let send = match answer.client_bits {
        Bits::Absent => want.send_bits,
        Bits::Any => return Err("client_max_window_bits has no value"),
        Bits::Max(bits) if bits < LEAST_BITS => {
            return Err("client_max_window_bits is too small to be met");
        }
        Bits::Max(bits) if bits > want.send_bits => {
            return Err("client_max_window_bits is larger than was offered");
        }
        Bits::Max(bits) => bits,
    };
    Ok(Agreed {
        send: Half {
            bits: send,
            takeover: !(offered.client_no_takeover || answer.client_no_takeover),
        },
        receive: Half {
            bits: receive,
            takeover: !answer.server_no_takeover,
        },
    })
}

/// The parameters of one offer or answer.
#[derive(Debug, Default)]
struct Params {
    server_no_takeover: bool,
    client_no_takeover: bool,
    server_bits: Option<u8>,
    client_bits: Bits,
}

/// `client_max_window_bits`, which in an offer may go without a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Bits {
    #[default]
    Absent,
    Any,
    Max(u8),
}

impl Bits {
    /// What the peer goes up to, if it has offered to keep to a limit.
    fn max(self) -> Option<u8> {
        match self {
            Self::Absent => None,
            Self::Any => Some(MOST_BITS),
            Self::Max(bits) => Some(bits),
        }
    }
}

impl Params {
    /// §7.1: an offer or answer is no good with a parameter that isn't defined, with two of the same
    /// name, or with an invalid value.
    fn read(extension: &Extension) -> Result<Self, &'static str> {
        let mut read = Self::default();
        for (name, value) in &extension.params {
            let value = value.as_deref();
            let twice = match name.as_str() {
                SERVER_NO_TAKEOVER => std::mem::replace(&mut read.server_no_takeover, flag(value)?),
                CLIENT_NO_TAKEOVER => std::mem::replace(&mut read.client_no_takeover, flag(value)?),
                SERVER_BITS => {
                    let bits = value.ok_or("server_max_window_bits has no value")?;
                    read.server_bits.replace(window(bits)?).is_some()
                }
                CLIENT_BITS => {
                    let bits = value.map(window).transpose()?.map_or(Bits::Any, Bits::Max);
                    std::mem::replace(&mut read.client_bits, bits) != Bits::Absent
                }
                _ => return Err("a parameter of permessage-deflate is unknown"),
            };
            if twice {
                return Err("a parameter of permessage-deflate appears twice");
            }
        }
        Ok(read)
    }

    /// As it stands in the header.
    fn value(&self) -> String {
        let mut value = String::from(NAME);
        for (stands, name) in [
            (self.server_no_takeover, SERVER_NO_TAKEOVER),
            (self.client_no_takeover, CLIENT_NO_TAKEOVER),
        ] {
            if stands {
                value.push_str("; ");
                value.push_str(name);
            }
        }
        // Writing to a string doesn't fail.
        if let Some(bits) = self.server_bits {
            let _ = write!(value, "; {SERVER_BITS}={bits}");
        }
        let _ = match self.client_bits {
            Bits::Absent => Ok(()),
            Bits::Any => write!(value, "; {CLIENT_BITS}"),
            Bits::Max(bits) => write!(value, "; {CLIENT_BITS}={bits}"),
        };
        value
    }
}

/// "This extension parameter has no value."
fn flag(value: Option<&str>) -> Result<bool, &'static str> {
    match value {
        None => Ok(true),
        Some(_) => Err("a no_context_takeover has a value"),
    }
}

/// "a decimal integer value without leading zeroes between 8 to 15, inclusive"
fn window(value: &str) -> Result<u8, &'static str> {
    let values = 8..=MOST_BITS;
    let mut found = values.filter(|bits| bits.to_string() == value);
    found.next().ok_or("a max_window_bits is invalid")
}

#[cfg(test)]
mod tests;
