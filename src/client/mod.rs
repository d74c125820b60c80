//! The client: connections to other servers on the same loops, mailboxes and workers as the server.
//!
//! | file | what |
//! |---|---|
//! | `builder` | [`Client`]: where to, and with what settings |
//! | `url` | what the URL of a WebSocket may contain |
//! | `engine` | [`Clients`]: the threads, and how their parts hang together |
//! | `dialer` | what blocks or waits before a connection: names, and pauses between attempts |
//! | `waiting` | attempts that wait for the end of a pause, or for a name |
//! | `session` | from the events of a connection to the user's handler or channel |
//! | `channel_feeder` | waits for receivers that don't receive, so that nobody else has to |
//! | `reconnect` | when to try again |
//! | `handle` | [`ClientHandle`]: a client from any thread, through all its connections |

mod builder;
mod channel_feeder;
mod dialer;
mod engine;
mod handle;
mod handler;
mod reconnect;
mod session;
mod url;
mod waiting;

pub use builder::{Client, connect};
pub use engine::Clients;
pub use handle::ClientHandle;
pub use handler::{ClientEvent, ClientHandler};
pub use reconnect::{Reconnect, Retry, RetryReason};
