//! What all loops of a server share: the settings, the topics, and who is connected from where.

use std::any::Any;
use std::sync::Arc;
#[cfg(feature = "tls")]
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Arrivals, Feeds, Topics};
use crate::backplane::{Backplane, Presences};
use crate::config::{Compress, Config};
#[cfg(feature = "tls")]
use {
    crate::net::{Stream, Tls, TlsStream},
    crate::sync::lock,
};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) topics: Topics,
    /// Topics that keep their last messages.
    pub(crate) histories: Arc<Feeds>,
    /// Who is in which topic here.
    pub(crate) presences: Presences,
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
    /// A loop could not go on, so all end.
    failed: AtomicBool,
    /// All has ended: nothing is published any more.
    ended: AtomicBool,
    /// Open connections by the window of their compression, see `SharedFrame`.
    #[cfg(feature = "deflate")]
    classes: [AtomicUsize; 16],
    /// Connections that are accepted, and not yet open or answered.
    openings: AtomicUsize,
    pub(crate) arrivals: Arrivals,
    /// What rooms and timers need of a server, type-erased as they are above; a client has none.
    pub(crate) services: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            #[cfg(feature = "tls")]
            tls: Mutex::new(None),
            #[cfg(feature = "tls")]
            handshakes: AtomicUsize::new(0),
            arrivals: Arrivals::new(&config),
            config,
            topics: Topics::default(),
            histories: Arc::default(),
            presences: Presences::default(),
            backplane: None,
            connections: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            cut_off: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            #[cfg(feature = "deflate")]
            classes: Default::default(),
            openings: AtomicUsize::new(0),
            services: OnceLock::new(),
        }
    }

    /// Topics are those of other nodes as well.
    pub(crate) fn span_nodes(&mut self, backplane: Arc<dyn Backplane>) {
        self.topics.span_nodes(backplane.clone());
        self.backplane = Some(backplane);
    }

    /// Some topics keep their last messages.
    pub(crate) fn keep(&mut self, histories: Feeds) {
        self.histories = Arc::new(histories);
        self.topics.keep(self.histories.clone());
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

    #[cfg(feature = "tls")]
    pub(crate) fn speaks_tls(&self) -> bool {
        lock(&self.tls).is_some()
    }

    /// Puts TLS around a connection that was accepted, if this server speaks TLS; Unix sockets stay
    /// as they are. `counts`: its handshake counts towards `max_tls_handshakes`.
    #[cfg(feature = "tls")]
    pub(crate) fn secure(&self, stream: Stream, counts: bool) -> Stream {
        match (&stream, &*lock(&self.tls)) {
            (Stream::Tcp(_), Some(tls)) => {
                let one = usize::from(counts);
                self.handshakes.fetch_add(one, Ordering::Relaxed);
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
    pub(crate) fn tls_handshakes_full(&self) -> bool {
        self.handshakes.load(Ordering::Relaxed) >= self.config.max_tls_handshakes
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn tls_handshakes_full(&self) -> bool {
        false
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

    pub(crate) fn note_failure(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// The last that is said of this server.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether what is published to this topic is compressed.
    pub(crate) fn compress(&self, topic: &str) -> Compress {
        let set = self.config.topic_compression.of(topic);
        set.copied().unwrap_or_default()
    }

    /// A connection is on its way to become a WebSocket, or to get its answer.
    pub(crate) fn enter_opening(&self) {
        self.openings.fetch_add(1, Ordering::Relaxed);
    }

    /// It is there, or given up.
    pub(crate) fn leave_opening(&self) {
        self.openings.fetch_sub(1, Ordering::Relaxed);
    }

    /// As many are on their way as may be.
    pub(crate) fn handshakes_full(&self) -> bool {
        self.openings.load(Ordering::Relaxed) >= self.config.max_handshakes
    }
}
