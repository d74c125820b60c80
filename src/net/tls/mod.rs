//! TLS through native-tls, which is OpenSSL on Linux, over sockets that may say "would block".
//!
//! ```text
//!  TlsStream      handshake, read, write, close_notify       plaintext
//!     │
//!  native-tls     records and keys
//!     │
//!  Wire           system calls, and what must wait           ciphertext
//!     │
//!  Socket
//! ```
//!
//! OpenSSL reads the head and the body of every record by calls of their own, then once more to learn
//! that there is nothing, and writes each record by itself. [`Wire`](wire::Wire) stands in between,
//! so that a readable socket costs one `recv` and a write one `send`. Its buffers belong to the
//! thread; an idle connection has none.

mod identity;
mod pem;
mod stream;
#[cfg(test)]
mod tests;
mod trial;
mod trust;
mod wire;

pub use identity::Tls;
pub(crate) use stream::{TlsError, TlsStream};
pub use trust::Trust;
