//! What the loop, the workers and the handles of one connection share: a [`Link`].
//!
//! | direction | where it waits | who puts in | who takes out |
//! |---|---|---|---|
//! | to the handler | the inbox, a [`Mailbox`] of [`Event`]s | the loop | one worker at a time |
//! | to the peer | the [`Outbox`] | any thread | the loop |
//!
//! A connection that is silent holds no buffers here at all.
//!
//! | group | files |
//! |---|---|
//! | to the peer | `sending`, `outbox`, `spare` (buffers for reuse), `deflate` |
//! | to the handler | `receiving`, `event`, `inflow` (how much waits), `hold` (rooms that are behind) |
//! | to and from loops | `command`, `loop_handle`, `thread` (what a thread holds back from loops), `dial` |
//! | the server | `shared`, `arrivals` (limits by address) |
//! | topics | `topics`, `subscriptions`, `shared_frame` (encoded once for many) |
//! | topics with history | `feed`, `feeds` (by name), `histories` (publishing and catching up), `node` (from other nodes) |
//!
//! # Locks
//!
//! All locks of the library that are taken inside one another, in the order in which they are: a thread
//! that holds one takes only such as are further down. Two of one number are held together only where it
//! says so.
//!
//! 1. The state of a server (`server::handle`). Only the user's own threads take it, to start the server
//!    and to wait for its end, for which they wait with it held. Or whether somebody wants to hurry a drain
//!    (`server::drain`), which they take to begin it. Inside either, the deadline of the end.
//! 2. The *stage* of a room (`hub::actor`), the call of a timer. Only the thread whose turn it is to run the
//!    room or timer takes it, so nobody ever waits for it. User code runs under it. (The session of a
//!    connection needs no lock of its own: who runs the connection takes it out of its `Traffic`.)
//! 3. A *feed* (`feed`), or the *registry* of the rooms of one kind; inside the registry, the inbox of a
//!    room or the list of those that are told the end (`hub::services`).
//! 4. What a connection *subscribes* to, or its *compressor*, if that keeps its window.
//! 5. Its *traffic*, that is, its outbox and its inbox, or the *topics* by name; or the names that are
//!    *present* (`backplane::presence`).
//! 6. The *feeds* by name, inside the topics. Or the locks of a backplane, inside the topics or the names
//!    that are present.
//!
//! One goes against the order: under the feeds by name, a feed may be locked that nobody but that map has
//! (`feeds::is_unused`). No thread holds its lock then, and none can get it.
//!
//! A client's are apart: the `Clients` of the process (`client::builder`), then the gate of a dialer, then
//! its queue, then the state of a client (`client::handle`). All others (a connection's inflater, the
//! ticker, the feeder, arrivals, the TLS identity, memory for reuse, log throttles) have none of these
//! inside.
//!
//! From 3 on they are held for moments, and no user code runs under them, but for the `Drop` of payloads
//! under a connection's traffic, a backplane of the user's, and the logger. Loops take them too, so no
//! thread waits for a loop (for its permit, see `LoopHandle::publish`) while it holds one.

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
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use once_cell::race::OnceBox;

use crate::addr::{PackedAddr, RemoteAddr};
use crate::config::Config;
use crate::id::PeerId;
use crate::sync::lock;
use crate::worker::{Mailbox, MailboxState};

use arrivals::Arrivals;
pub(crate) use command::{Command, CommandReceiver, Permit};
#[cfg(feature = "deflate")]
pub(crate) use deflate::Compression;
pub(crate) use dial::{Connected, Dial, Target};
pub(crate) use event::{Event, EventBatch, UpgradeRequest};
pub(crate) use feeds::Feeds;
use hold::Holds;
pub(crate) use inflow::{Inflow, Load, RUN_INFLATED};
pub(crate) use loop_handle::LoopHandle;
pub(crate) use outbox::{Outbox, QueueKey, Segment};
pub(crate) use shared::Shared;
pub(crate) use shared_frame::SharedFrame;
pub(crate) use spare::{
    Buffer, give_batch, give_buffer, keeps as keeps_spare, release as release_spare,
    release_own as release_own_spare,
};
use subscriptions::Subscriptions;
pub(crate) use thread::{
    Cork, Inline, OwnLoop, defer_wakes, is_ahead, may_be_a_loop, still_ahead, wake_deferred,
};
pub(crate) use topics::{Publication, Topics};

/// The state of one connection that more than one thread sees.
pub(crate) struct Link {
    pub(crate) id: PeerId,
    pub(crate) handle: Arc<LoopHandle>,
    traffic: Mutex<Traffic>,
    /// Of the mailbox whose events are in `traffic`.
    mailbox: MailboxState,
    pub(crate) inflow: Inflow,
    /// `CONGESTED` and `WRITABLE_QUEUED`; see `receiving`.
    flags: AtomicU8,
    /// Rooms that have more of this peer's messages than they should.
    holds: Holds,
    latency_us: AtomicU32,
    /// One word, where a `OnceLock` takes two.
    extra: OnceBox<Extra>,
    remote: PackedAddr,
}

/// What is on its way in either direction. Behind one lock, as it is never held for long, and each lock is eight
/// bytes of every connection.
struct Traffic {
    outbox: Outbox,
    inbox: Option<EventBatch>,
    /// The user's session, type-erased so that a `Peer` needs no type parameter. Not here while a run has it.
    session: Session,
}

impl Traffic {
    /// The mailbox of the link that has this `state` and these events.
    fn mailbox<'a>(&'a mut self, state: &'a MailboxState) -> Mailbox<'a, Event> {
        Mailbox {
            queue: &mut self.inbox,
            state,
        }
    }
}

/// See [`Traffic`]; there is one from the opening of the connection to its end.
pub(crate) type Session = Option<Box<dyn Any + Send>>;

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

/// The outbox, locked.
pub(crate) struct OutboxGuard<'a>(MutexGuard<'a, Traffic>);

impl Deref for OutboxGuard<'_> {
    type Target = Outbox;

    fn deref(&self) -> &Outbox {
        &self.0.outbox
    }
}

impl DerefMut for OutboxGuard<'_> {
    fn deref_mut(&mut self) -> &mut Outbox {
        &mut self.0.outbox
    }
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
            traffic: Mutex::new(Traffic {
                outbox: Outbox::new(masked),
                inbox: None,
                session: None,
            }),
            mailbox: MailboxState::default(),
            inflow: Inflow::default(),
            flags: AtomicU8::new(0),
            holds: Holds::default(),
            latency_us: AtomicU32::new(u32::MAX),
            extra: extra.map_or_else(OnceBox::new, OnceBox::with_value),
            remote: remote.into(),
        }
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        lock(&self.traffic)
    }

    pub(crate) fn outbox(&self) -> OutboxGuard<'_> {
        OutboxGuard(self.traffic())
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

    /// With the two counters of its `Arc` and a word of the allocator's, 160 bytes.
    #[test]
    fn a_link_is_small() {
        assert!(size_of::<Link>() <= 136, "{}", size_of::<Link>());
    }
}
