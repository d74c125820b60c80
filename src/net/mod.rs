//! A byte stream that may say "would block", and where such streams come from.
//!
//! Nobody above asks which transport it is: [`Stream`] and [`Listener`] have one shape for all.
//! There is no WebSocket here.

mod listen;
mod stream;
#[cfg(unix)]
mod systemd;
#[cfg(feature = "tls")]
mod tls;

pub use listen::Listen;
pub(crate) use listen::{Bound, Listener, LocalAddr};
#[cfg(unix)]
pub use listen::{ReusePort, UnixSocket};
pub(crate) use stream::Stream;
#[cfg(all(unix, feature = "systemd"))]
pub use systemd::SystemdSockets;
#[cfg(unix)]
pub(crate) use systemd::notify;
#[cfg(feature = "tls")]
pub use tls::{Tls, Trust};
#[cfg(feature = "tls")]
pub(crate) use tls::{TlsError, TlsStream};
