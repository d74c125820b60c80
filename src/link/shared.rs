//! What all loops of a server share: the settings, the topics, and who is connected from where.

use std::any::Any;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::{Histories, Topics, lock};
use crate::backplane::Backplane;
use crate::config::Config;
#[cfg(feature = "tls")]
use crate::net::{Stream, Tls, TlsStream};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) topics: Topics,
    /// Topics that keep their last messages.
    pub(crate) histories: Arc<Histories>,
    /// Other nodes, if there may be any.
    pub(crate) backplane: Option<Arc<dyn Backplane>>,
    /// Connections that are accepted and not yet closed, on all loops.
    pub(crate) connections: AtomicUsize,
    /// Connections over a limit that are still being told so; not among `connections`.
    pub(crate) refusals: AtomicUsize,
    /// The identity for new connections.
    #[cfg(feature = "tls")]
    tls: Mutex<Option<Tls>>,
    /// TLS handshakes that are under way.
    #[cfg(feature = "tls")]
    handshakes: AtomicUsize,
    /// Connections were dropped because the deadline of a shutdown had come.
    cut_off: AtomicBool,
    /// Open connections by the window of their compression, see `SharedFrame`.
    #[cfg(feature = "deflate")]
    classes: [AtomicUsize; 16],
    /// Connections per address; empty unless there is a limit.
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    /// What rooms and timers need of a server, type-erased as they are above; a client has none.
    pub(crate) home: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            #[cfg(feature = "tls")]
            tls: Mutex::new(None),
            #[cfg(feature = "tls")]
            handshakes: AtomicUsize::new(0),
            config,
            topics: Topics::default(),
            histories: Arc::default(),
            backplane: None,
            connections: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            cut_off: AtomicBool::new(false),
            #[cfg(feature = "deflate")]
            classes: Default::default(),
            per_ip: Mutex::default(),
            home: OnceLock::new(),
        }
    }

    /// Topics are those of other nodes as well.
    pub(crate) fn span_nodes(&mut self, backplane: Arc<dyn Backplane>) {
        self.topics.span_nodes(backplane.clone(), &self.histories);
        self.backplane = Some(backplane);
    }

    /// A connection of this class opens.
    #[cfg(feature = "deflate")]
    pub(crate) fn enter_class(&self, class: u8) {
        self.classes[usize::from(class)].fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    #[cfg(feature = "deflate")]
    pub(crate) fn leave_class(&self, class: u8) {
        self.classes[usize::from(class)].fetch_sub(1, Ordering::Relaxed);
    }

    /// The classes of all open connections.
    #[cfg(feature = "deflate")]
    pub(crate) fn classes(&self) -> impl Iterator<Item = u8> {
        let used = |&class: &u8| self.classes[usize::from(class)].load(Ordering::Relaxed) > 0;
        (0..16).filter(used)
    }

    /// From now on this server speaks TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn speak_tls(&self, tls: Tls) {
        *lock(&self.tls) = Some(tls);
    }

    /// Puts TLS around a connection that was accepted, if this server speaks TLS; Unix sockets stay
    /// as they are.
    #[cfg(feature = "tls")]
    pub(crate) fn secure(&self, stream: Stream) -> Stream {
        match (&stream, &*lock(&self.tls)) {
            (Stream::Tcp(_), Some(tls)) => {
                self.handshakes.fetch_add(1, Ordering::Relaxed);
                Stream::Tls(Box::new(TlsStream::server(stream, tls)))
            }
            _ => stream,
        }
    }

    /// A handshake is through, or given up.
    #[cfg(feature = "tls")]
    pub(crate) fn leave_handshake(&self) {
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
    }

    /// As many handshakes are under way as there may be.
    #[cfg(feature = "tls")]
    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.handshakes.load(Ordering::Relaxed) >= self.config.max_tls_handshakes
    }

    /// Another identity for new connections. `false`: this server speaks no TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn reload_tls(&self, tls: Tls) -> bool {
        lock(&self.tls).as_mut().map(|old| *old = tls).is_some()
    }

    pub(crate) fn note_cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Counts a connection from `ip` in. `false`: there are too many.
    pub(crate) fn admit_ip(&self, ip: Option<IpAddr>) -> bool {
        let (Some(ip), true) = (ip, self.counts_ips()) else {
            return true;
        };
        let mut per_ip = lock(&self.per_ip);
        let count = per_ip.entry(group(ip)).or_default();
        if *count >= self.config.max_connections_per_ip {
            return false;
        }
        *count += 1;
        true
    }

    /// Counts it out.
    pub(crate) fn discharge_ip(&self, ip: Option<IpAddr>) {
        let (Some(ip), true) = (ip, self.counts_ips()) else {
            return;
        };
        let mut per_ip = lock(&self.per_ip);
        if let Some(count) = per_ip.get_mut(&group(ip)) {
            *count -= 1;
            if *count == 0 {
                per_ip.remove(&group(ip));
            }
        }
    }

    fn counts_ips(&self) -> bool {
        self.config.max_connections_per_ip != usize::MAX
    }
}

/// What one address counts as: an IPv6 site usually has a whole /64 to itself.
fn group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}
