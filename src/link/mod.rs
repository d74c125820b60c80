//! What the loop, the workers and the handles of one connection share: a [`Link`].
//!
//! | direction | where it waits | who puts in | who takes out |
//! |---|---|---|---|
//! | to the handler | the inbox, a [`Mailbox`] of [`Event`]s | the loop | one worker at a time |
//! | to the peer | the [`Outbox`] | any thread | the loop |
//!
//! Both have their own lock, held for moments, never one inside the other and never while user
//! code runs. The session's lock is the third: whoever runs the mailbox holds it while running, and
//! takes the other two inside it. Where compression keeps its window, the compressor has a fourth,
//! inside the session's: whoever sends holds it while compressing, and takes the outbox's inside it;
//! the inflater's is of the runner alone. The last one is around what the connection subscribes to;
//! inside it come the outbox's and that of the server's topics, one at a time. These are all locks of a
//! connection.
//!
//! A connection that is silent holds no buffers here at all.
//!
//! | of | files |
//! |---|---|
//! | the connection | `sending`, `receiving` |
//! | its outbox | `outbox`, `spare`: buffers used again, `deflate` |
//! | its inbox | `event`, `inflow`: how much is not handled yet, `hold`: rooms that are behind |
//! | the loops | `command`, `loop_handle`, `thread`: what a thread holds back from them, `dial` |
//! | the server | `shared`, `arrivals`: limits by address |
//! | topics | `topics`, `subscriptions`, `shared_frame` |
//! | histories | `feed`: of one topic, `feeds`: by name, `histories`: from what is kept to what is new, `node`: from other nodes |

mod arrivals;
mod command;
#[cfg(feature = "deflate")]
mod deflate;
mod dial;
mod event;
mod feed;
mod feeds;
mod histories;
mod hold;
mod inflow;
mod loop_handle;
mod node;
mod outbox;
mod receiving;
mod sending;
mod shared;
mod shared_frame;
mod spare;
mod subscriptions;
mod thread;
mod topics;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::addr::{PackedAddr, RemoteAddr};
use crate::config::Config;
use crate::id::PeerId;
use crate::sync::lock;
use crate::worker::Mailbox;

use arrivals::Arrivals;
pub(crate) use command::{Command, CommandReceiver, Permit};
#[cfg(feature = "deflate")]
pub(crate) use deflate::Compression;
pub(crate) use dial::{Connected, Dial, Target};
pub(crate) use event::{Event, EventBatch, Opening};
pub(crate) use feeds::Histories;
use hold::Holds;
pub(crate) use inflow::{Inflow, Load};
pub(crate) use loop_handle::LoopHandle;
pub(crate) use outbox::{Outbox, QueueKey, Segment};
pub(crate) use shared::Shared;
pub(crate) use shared_frame::SharedFrame;
pub(crate) use spare::{
    Buffer, give_batch, give_buffer, keeps as keeps_spare, release as release_spare,
    release_own as release_own_spare,
};
use subscriptions::Subscriptions;
pub(crate) use thread::{Cork, Inline, defer_wakes, is_ahead, still_ahead, wake_deferred};
pub(crate) use topics::{Publication, Topics};

/// The state of one connection that more than one thread sees.
pub(crate) struct Link {
    pub(crate) id: PeerId,
    pub(crate) handle: Arc<LoopHandle>,
    outbox: Mutex<Outbox>,
    inbox: Mutex<Mailbox<Event>>,
    pub(crate) inflow: Inflow,
    /// `CONGESTED` and `WRITABLE_QUEUED`; see `receiving`.
    flags: AtomicU8,
    /// The mailbox has been parked and is not empty yet. With handlers inline, when only the loop
    /// touches it, this tells whether there is anything in it.
    parked: AtomicBool,
    /// Rooms that have more of this peer's messages than they should.
    holds: Holds,
    latency_us: AtomicU32,
    /// The user's session, type-erased so that a `Peer` needs no type parameter.
    pub(crate) session: Mutex<Option<Box<dyn Any + Send>>>,
    extra: OnceLock<Box<Extra>>,
    remote: PackedAddr,
}

/// What most connections have nothing of.
#[derive(Default)]
struct Extra {
    /// Of a client: each has its own.
    config: Option<Arc<Config>>,
    /// Set once, when the connection opens.
    agreement: OnceLock<Agreement>,
    subscriptions: Mutex<Subscriptions>,
}

/// What the two sides agreed on in the opening handshake, beyond the protocol itself; most
/// connections have nothing of the kind.
#[derive(Default)]
pub(crate) struct Agreement {
    pub(crate) subprotocol: Option<Box<str>>,
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<Compression>,
}

impl Link {
    /// `client`: we are the client, and these are its settings.
    pub(crate) fn new(
        id: PeerId,
        remote: RemoteAddr,
        handle: Arc<LoopHandle>,
        client: Option<Arc<Config>>,
    ) -> Self {
        let masked = client.is_some();
        let extra = client.map(|config| {
            Box::new(Extra {
                config: Some(config),
                ..Extra::default()
            })
        });
        Self {
            id,
            handle,
            outbox: Mutex::new(Outbox::new(masked)),
            inbox: Mutex::default(),
            inflow: Inflow::default(),
            flags: AtomicU8::new(0),
            parked: AtomicBool::new(false),
            holds: Holds::default(),
            latency_us: AtomicU32::new(u32::MAX),
            session: Mutex::new(None),
            extra: extra.map_or_else(OnceLock::new, OnceLock::from),
            remote: remote.into(),
        }
    }

    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        lock(&self.outbox)
    }

    /// Of the server, or of this client.
    #[inline]
    pub(crate) fn config(&self) -> &Arc<Config> {
        let own = self.extra.get().and_then(|extra| extra.config.as_ref());
        own.unwrap_or(&self.handle.config)
    }

    pub(crate) fn remote(&self) -> RemoteAddr {
        self.remote.into()
    }

    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.agreement()?.subprotocol.as_deref()
    }

    fn agreement(&self) -> Option<&Agreement> {
        self.extra.get()?.agreement.get()
    }

    pub(crate) fn agree(&self, agreement: Agreement) {
        // Set once: a connection is opened once.
        let _ = self
            .extra
            .get_or_init(Box::default)
            .agreement
            .set(agreement);
    }

    #[cfg(feature = "deflate")]
    pub(crate) fn compression(&self) -> Option<&Compression> {
        self.agreement()?.compression.as_ref()
    }

    /// The last measured round trip in microseconds, `u32::MAX` before the first.
    pub(crate) fn latency_us(&self) -> u32 {
        self.latency_us.load(Ordering::Relaxed)
    }

    pub(crate) fn set_latency_us(&self, us: u32) {
        self.latency_us.store(us, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the two counters of its `Arc` and a word of the allocator's, 192 bytes.
    #[test]
    fn a_link_is_small() {
        assert!(size_of::<Link>() <= 168, "{}", size_of::<Link>());
    }
}
