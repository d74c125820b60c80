//! The product: settings, the user's handler, the running server.

mod accepting;
mod builder;
mod calls;
mod check;
mod drain;
mod engine;
mod events;
mod handle;
mod handler;
mod inline;
mod presence;
mod room_handler;
mod session;
mod start;
mod workers;

pub use builder::Server;
pub use drain::Drain;
pub use events::Event;
pub use handle::ServerHandle;
pub use handler::{Accept, Handler};
pub use presence::Presence;
