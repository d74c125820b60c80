//! A connection to be made: on its way to a loop, and what comes of it.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use crate::config::Config;
use crate::error::Error;
#[cfg(feature = "tls")]
use crate::net::Trust;
use crate::proto::ClientRequest;

/// Where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Ip(SocketAddr),
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One attempt to open a WebSocket. Names are resolved already: that blocks.
pub(crate) struct Dial {
    /// Still to be tried, in this order.
    pub(crate) targets: VecDeque<Target>,
    /// Why there is no connection so far: from the resolver, or from the target tried last.
    pub(crate) failure: Option<Error>,
    pub(crate) request: ClientRequest,
    pub(crate) config: Arc<Config>,
    /// Whom to trust to be whom, if it is to be TLS.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<(Trust, String)>,
    /// When the opening handshake must be through.
    pub(crate) deadline: Instant,
    /// What the layer above wants back with the outcome.
    pub(crate) session: Box<dyn Any + Send>,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the request: its headers carry credentials.
        f.debug_struct("Dial")
            .field("targets", &self.targets)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

/// The opening handshake is through.
pub(crate) struct Connected {
    /// As it was in the [`Dial`].
    pub(crate) session: Box<dyn Any + Send>,
    /// Of the server's answer.
    pub(crate) headers: HeaderMap,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}
