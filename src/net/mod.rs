//! A byte stream that may say "would block", and where such streams come from.
//!
//! [`Stream`] and [`Listener`] have one shape for all transports. Code above asks which one it is only
//! to find out whether TLS may go around it, and to peek at a PROXY header before TLS. There is no
//! WebSocket here.

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
