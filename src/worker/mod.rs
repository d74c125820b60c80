//! Ordered execution on a pool of threads. Nothing here knows of WebSocket.
//!
//! Work is not hashed to workers: a handler may block, and must not hold up strangers. Every
//! connection, and every room, has a [`Mailbox`]; one that becomes non-empty goes on the run queue, any
//! idle worker takes it, runs all that waits (for a connection, no more than `inbound_limit` lets wait),
//! and puts it back if more came. The rule that makes this keep order is in `mailbox`.

mod mailbox;
mod pool;
mod step_aside;

pub(crate) use mailbox::{Batch, Mailbox, State as MailboxState};
pub(crate) use pool::{Pool, RunQueue, WeakRunQueue, Work};
pub(crate) use step_aside::StepAside;
