//! Threads that own sockets.
//!
//! A loop owns its connections by `&mut`; everybody else sends it commands
//! ([`LoopHandle`](crate::link::LoopHandle)) or puts bytes into an outbox and asks for a flush. No
//! lock that another thread may want is held across a read, a write or a poll, only across the write
//! that wakes a loop. The user code that runs here is listed in the crate's documentation under
//! *Threads*.
//!
//! The loop knows nothing of handlers and workers: what it needs from above is in `upstream`. Which
//! module may import which is the table in `tests/layering.rs`.

mod acceptor;
mod audience;
mod conn;
mod counts;
mod dialing;
mod ending;
mod event_loop;
mod fan_out;
mod framing;
mod kept;
mod liveness;
mod opening;
mod outbound;
mod proxied;
mod reading;
#[cfg(feature = "tls")]
mod securing;
mod slab;
mod stopping;
mod upstream;
mod wheel;
mod writing;

#[cfg(unix)]
pub(crate) use event_loop::StopSource;
pub(crate) use event_loop::{Prepared, ReadyLoop, handles, ready_all, spawn_all};
pub(crate) use upstream::{InlineRun, InlineUpstream, NotInline, Upstream};
