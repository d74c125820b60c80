//! permessage-deflate (RFC 7692) as pure data.
//!
//! | file | rule |
//! |---|---|
//! | `negotiate` | §5, §7.1: offers, answers, and what they come to |
//! | `codec` | §7.2: one message compressed or inflated |
//! | `shared` | compressors and inflaters that connections without context take turns with |
//!
//! Absent: frames and RSV1, which are the protocol's, and the choice of what is worth compressing.

mod codec;
mod negotiate;
mod shared;

pub(crate) use codec::{Deflater, InflateError, Inflater};
#[cfg(test)]
pub(crate) use negotiate::Half;
pub(crate) use negotiate::{Agreed, NAME, accept, answer, offer};
pub(crate) use shared::{compress_alone, inflate_alone};
