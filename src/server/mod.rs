//! The product: settings, the user's handler, the running server.

mod builder;
mod check;
mod drain;
mod engine;
mod events;
mod handle;
mod handler;
mod presence;
mod room_handler;
mod start;

pub use builder::Server;
pub use drain::Drain;
pub use events::Event;
pub use handle::ServerHandle;
pub use handler::{Accept, Handler};
pub use presence::Presence;
