//! What tells a server from outside that it is to end, and needs no thread that waits for it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// Once something can be read from it, or its other end is closed, the loop makes a call. Nothing is ever read.
pub(crate) struct StopSource {
    /// Open as long as the loop, as whoever writes to it may write once more.
    fd: OwnedFd,
    call: Option<Box<dyn FnOnce() + Send>>,
}

impl StopSource {
    pub(crate) fn new(fd: OwnedFd, call: impl FnOnce() + Send + 'static) -> Self {
        Self {
            fd,
            call: Some(Box::new(call)),
        }
    }

    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(
            &mut SourceFd(&self.fd.as_raw_fd()),
            token,
            Interest::READABLE,
        )
    }

    /// It has had an event.
    pub(super) fn ready(&mut self) {
        if let Some(call) = self.call.take() {
            call();
        }
    }
}

impl fmt::Debug for StopSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopSource({:?})", self.fd)
    }
}
