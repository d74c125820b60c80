//! RFC 6455 as pure data: bytes in, messages and bytes out, for the server's and the client's role.
//!
//! There are no sockets here, no threads, no clock, no channels and no logging. What happens on
//! the wire is decided in this folder and nowhere else; the loop only carries it out.
//!
//! | file | rule |
//! |---|---|
//! | `http` | RFC 9112: request head in, response out |
//! | `proxy` | the PROXY protocol: whose connection a proxy brings |
//! | `forwarded` | RFC 7239 and `X-Forwarded-For`: the same, told in the request |
//! | `handshake` | RFC 6455 §4.2: the opening handshake, the server's half |
//! | `client_handshake` | §4.1: the client's half |
//! | `extension` | §9.1: what `Sec-WebSocket-Extensions` holds |
//! | `frame` | §5.2: one frame's header, parsed and written |
//! | `mask`, `utf8` | §5.3, §8.1 |
//! | `payload` | where the bytes of a message live once they leave the read buffer |
//! | `in_place` | messages that don't leave it |
//! | `protocol` | §5.4, §5.5: frames to messages |
//! | `compressed` | how compressed messages travel inside |
//! | `deflate` | RFC 7692: permessage-deflate, what is agreed to and what is done |
//! | `close` | §7: which codes may travel, and what a violation is answered with |

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
mod payload;
mod protocol;
pub(crate) mod proxy;
mod spent;
mod utf8;

pub(crate) use client_handshake::{Accepted, ClientRefused, ClientRequest, new_key, verify};
pub(crate) use close::{Violation, may_travel, truncate_reason};
pub(crate) use compressed::data_frame;
#[cfg(feature = "deflate")]
pub(crate) use compressed::{compressed_message, compressed_parts};
pub(crate) use frame::{FirstByte, MAX_HEADER, Opcode, encode, encode_header, frame_len, new_mask};
pub(crate) use in_place::InPlace;
pub(crate) use payload::{Blocks, ReadBuffer};
pub(crate) use protocol::{Filled, Protocol, Role};
