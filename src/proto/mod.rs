//! RFC 6455 as pure data: bytes in, messages and bytes out, for the server's and the client's role.
//!
//! There are no sockets here, no clock, no channels and no logging. How bytes become messages and
//! which bytes are legal is decided here; *when* to ping, to close and to give up is decided in
//! `reactor`, by `liveness` and `ending`.
//!
//! | file | rule |
//! |---|---|
//! | `http` | RFC 9112: request head in, response out |
//! | `proxy` | the PROXY protocol: which client a proxy's connection is for |
//! | `forwarded` | RFC 7239 and `X-Forwarded-For`: the same, by headers of the request |
//! | `handshake` | RFC 6455 §4.2: the opening handshake, the server's half |
//! | `client_handshake` | §4.1: the client's half |
//! | `extension` | §9.1: what `Sec-WebSocket-Extensions` holds |
//! | `frame` | §5.2: one frame's header, parsed and written |
//! | `mask`, `utf8` | §5.3, §8.1 |
//! | `payload` | where the bytes of a message live once they leave the read buffer |
//! | `spent` | blocks whose messages are still in use, until their memory can be used again |
//! | `in_place` | messages that don't leave it |
//! | `message_reader` | §5.4, §5.5: frames to messages |
//! | `compressed` | how compressed messages travel inside |
//! | `deflate` | RFC 7692: permessage-deflate, what is agreed to and what is done |
//! | `close` | §7: which codes may be sent, and what a violation is answered with |

mod client_handshake;
mod close;
mod compressed;
#[cfg(feature = "deflate")]
pub(crate) mod deflate;
mod extension;
pub(crate) mod forwarded;
mod frame;
pub(crate) mod handshake;
pub(crate) mod http;
mod in_place;
mod mask;
mod message_reader;
mod payload;
pub(crate) mod proxy;
mod spent;
mod utf8;

pub(crate) use client_handshake::{Accepted, ClientRefused, ClientRequest, new_key, verify};
pub(crate) use close::{Violation, is_sendable, truncate_reason};
pub(crate) use compressed::data_frame;
#[cfg(feature = "deflate")]
pub(crate) use compressed::{compressed_message, compressed_parts};
pub(crate) use frame::{FirstByte, MAX_HEADER, Opcode, encode, encode_header, frame_len, new_mask};
pub(crate) use in_place::InPlace;
pub(crate) use message_reader::{Filled, MessageReader, Role};
pub(crate) use payload::{Blocks, Buffer, ReadBuffer};
