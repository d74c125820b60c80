//! One socket with all that belongs to it, owned by one loop by `&mut`.
//!
//! ```text
//!            head complete            handler accepts
//!   Opening ───────────────▶ Deciding ───────────────▶ Open ──▶ (closing: see `ending`)
//!      │  bad request, limit     │ handler answers        ▲      │
//!      └────────────┬────────────┘ with a response        │      │
//!                   ▼                                     │      ▼
//!               Lingering ◀───────────────────────────────┼──────┘
//!          (all is written; wait for the peer to hang up) │
//!                                                         │
//!   Dialing ──────────────────────────────────────────────┘
//!  (a client's)              server accepts
//! ```
//!
//! In `Open`, a write may fail before all that the peer has sent was read: then the connection is *unwritable*,
//! and only read to its end.
//!
//! The loop calls [`ready`](Conn::ready) for a socket event, [`advance`](Conn::advance) to go on with
//! what was cut short, [`flush`](Conn::flush) to write, [`on_deadline`](Conn::on_deadline) for the one
//! deadline that a connection has at any time, and one method for each
//! [`Command`](crate::link::Command) that is about a connection. After each, `EventLoop::serve` looks
//! at `gone`, `again`, `dirty` and `rearm`.
//!
//! | file | what |
//! |---|---|
//! | `conn` | the whole of it, and whose turn it is to do something |
//! | `reading` | from the kernel to where frames are looked at |
//! | `framing` | from frames to messages, and to the handler |
//! | `writing` | writing |
//! | `securing` | the TLS handshake |
//! | `proxied` | before both: whose connection it is, if a proxy brings it |
//! | `opening` | the request, up to the handler's verdict |
//! | `dialing` | instead of that, a client's way to `Open` |
//! | `ending` | the closing handshake and all other ends |
//! | `liveness` | deadlines: which is next, and what it does |

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::counts::Counts;
use super::dialing::Dialing;
use super::ending::Ending;
use super::liveness::{Allowance, Moment};
use super::opening::Opening;
use super::outbound::Outbound;
use super::upstream::Upstream;
use crate::config::{Config, OverRate};
#[cfg(feature = "tls")]
use crate::error::Error;
use crate::error::duplicate;
use crate::link::{Dial, EventBatch, is_ahead};
use crate::logging::Throttle;
use crate::message::{CloseCause, CloseCode, Message};
use crate::metrics::{LoopCounters, Refusal};
use crate::net::Stream;
#[cfg(feature = "tls")]
use crate::net::TlsError;
use crate::peer::Peer;
use crate::proto::{Blocks, InPlace, MessageReader, Role};

/// Bytes that all connections together may bring per turn before those that bring large messages wait
/// for the next, in the order they came.
pub(super) const TURN_BUDGET: usize = 4 << 20;

/// What a connection uses of its loop while it is being served.
pub(crate) struct Context<'a, U> {
    pub(crate) upstream: &'a U,
    pub(crate) config: &'a Config,
    /// When the loop began.
    pub(crate) start: Instant,
    /// Milliseconds since then, as of the beginning of the turn.
    pub(crate) now: u64,
    /// The read buffer of the loop.
    pub(crate) buf: &'a mut [u8],
    pub(crate) blocks: &'a mut Blocks,
    pub(crate) in_place: &'a mut InPlace,
    /// Empty between uses.
    pub(crate) messages: &'a mut Vec<Message>,
    /// Empty between uses.
    pub(crate) batch: &'a mut EventBatch,
    /// Empty between uses; keeps its memory.
    pub(crate) out: &'a mut Outbound,
    /// Links that the turn made runnable.
    pub(crate) runnable: &'a mut Vec<Peer>,
    /// Connections to be made; a client's only.
    pub(crate) dials: &'a mut VecDeque<Box<Dial>>,
    /// What is left of [`TURN_BUDGET`].
    pub(crate) large_left: &'a mut usize,
    /// Runs of inline handlers, wrapping.
    pub(crate) runs: &'a mut u32,
    /// Of this loop.
    pub(crate) counters: &'a LoopCounters,
    /// No new connections and requests: the server is being shut down, and this is what it says.
    pub(crate) stopping: Option<CloseCode>,
}

impl<U> Context<'_, U> {
    /// The clock at its finest, for round trips.
    pub(super) fn clock_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// The state of a connection. What each state needs lives in it.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The request is arriving.
    Opening(Box<Opening>),
    /// We are the client, and there is no WebSocket yet.
    Dialing(Box<Dialing>),
    /// The handler has the request.
    Deciding,
    /// A WebSocket, with what it may still send if that is limited.
    Open(Option<Box<Allowance>>),
    /// All is said; what still comes is thrown away, until the peer hangs up.
    Lingering,
}

/// One socket and its state; only its loop touches it. The methods by families:
///
/// - for the loop: `ready`, `advance`, `flush` and `on_deadline`, then what its commands ask for
///   (`accept`, `respond`, `resume`, `finished`, `secured`, `fail`, `catch_up`, `terminate`), and at the
///   end of the server `go_away`, `stop_opening` and `cut_off`;
/// - for accounting, when the loop takes it in or removes it: `register`, `part`, `leave_opening`,
///   `uncount`, `note_refusal`;
/// - everything else is for the other files of the table above.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(super) stream: Stream,
    pub(crate) peer: Peer,
    pub(super) phase: Phase,
    pub(super) reader: MessageReader,
    /// Milliseconds of the loop's clock: when bytes were last received (or, while we don't read for
    /// congestion, taken).
    pub(super) last_seen: Moment,
    /// When the phase began; in `Open`, when the unanswered ping was sent.
    pub(super) since: Moment,
    /// What was read and must wait; not empty.
    pub(super) rest: Option<Box<Rest>>,
    /// What was taken out of the outbox and the kernel did not take.
    pub(super) writing: Option<Box<Outbound>>,
    /// The closing, once it has begun.
    pub(super) ending: Option<Box<Ending>>,
    /// The kernel may have more for us: set by events, cleared by a read that came up short
    /// (with TLS, by one that left nothing).
    pub(super) readable: bool,
    /// The peer's end of the stream, or an error, has been announced; a read will tell.
    pub(super) hung_up: bool,
    /// Reading waits for the handler to catch up.
    pub(super) paused: bool,
    /// The end of the stream has been read.
    pub(super) eof: bool,
    /// A write has failed, so nothing more is written; what has arrived is still read.
    pub(super) unwritable: bool,
    /// A ping is out, since `since`, and nothing was received after it.
    pub(super) pinged: bool,
    /// No pong has answered the last ping yet. Either may end first: other bytes are as good a sign of life,
    /// and a pong that was in `rest` when the ping went out is taken for its answer.
    pub(super) awaits_pong: bool,
    pub(super) handler_knows: HandlerKnows,
    /// What the last read brought.
    pub(super) read_mode: ReadMode,
    /// The kernel's buffer is full; an event tells when it no longer is.
    pub(super) blocked: bool,
    pub(super) counts: Counts,
    /// There is work left that no event will announce.
    pub(crate) again: bool,
    /// On the loop's list of such.
    pub(crate) listed: bool,
    /// The deadline may have come nearer.
    pub(crate) rearm: bool,
    /// Something was queued by the loop itself.
    pub(super) dirty: bool,
    /// Listed for the next flush.
    pub(crate) touched: bool,
    /// Finished; the loop removes it.
    pub(crate) gone: bool,
}

/// Bytes that were read and not yet looked at: those from `at` on, where `at < bytes.len()`. Behind a pointer
/// of one word, as nearly always there are none.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Box<[u8]>,
    at: usize,
}

impl Rest {
    /// `None`: there are none.
    pub(super) fn new(bytes: &[u8]) -> Option<Box<Self>> {
        (!bytes.is_empty()).then(|| {
            Box::new(Self {
                bytes: bytes.into(),
                at: 0,
            })
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..]
    }

    /// Itself, when only the last so many have still to be looked at. They stay where they are, or what
    /// takes a thousand turns to look at would be moved a thousand times; unless most of the memory is done with.
    fn last(mut self: Box<Self>, left: usize) -> Option<Box<Self>> {
        self.at = self.bytes.len() - left;
        match left < self.bytes.len() / 2 {
            true => Self::new(self.bytes()),
            false => Some(self),
        }
    }
}

/// What the handler knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandlerKnows {
    Nothing,
    /// It was given the opening, so it is told the end too.
    Opening,
    End,
}

/// What a connection brought last, and how much of it is therefore read at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadMode {
    Usual,
    /// A message that is best read together with others like it, or with workers one after the other.
    Middling,
    /// A large message, so the next may be one.
    Large,
    /// A great many frames for few bytes.
    Tiny,
}

/// What an event says of a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Half-closed by the peer, or failed.
    pub(crate) closed: bool,
}

impl Conn {
    pub(super) fn new(stream: Stream, peer: Peer, phase: Phase, now: u64) -> Self {
        let (role, counts) = match &phase {
            Phase::Opening(opening) => {
                let counted = !opening.is_refused() && !opening.is_proxied();
                let counts = Counts::none()
                    .and(Counts::OPENING, !opening.is_refused())
                    .and(Counts::REFUSED, opening.is_refused())
                    .and(Counts::UNTOLD, !opening.is_refused())
                    .and(Counts::BY_IP, counted);
                (Role::Server, counts)
            }
            _ => (Role::Client, Counts::none()),
        };
        let max_message = peer.link.config().max_message;
        Self {
            stream,
            peer,
            // A socket that is being connected becomes writable.
            blocked: role == Role::Client,
            phase,
            reader: MessageReader::new(role, max_message),
            last_seen: Moment::at(now),
            since: Moment::at(now),
            rest: None,
            writing: None,
            ending: None,
            readable: false,
            hung_up: false,
            paused: false,
            eof: false,
            unwritable: false,
            pinged: false,
            awaits_pong: false,
            handler_knows: HandlerKnows::Nothing,
            read_mode: ReadMode::Usual,
            counts,
            again: false,
            listed: false,
            rearm: true,
            dirty: false,
            touched: false,
            gone: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Not yet a stream that can be read from or written to.
    pub(super) fn is_securing(&self) -> bool {
        !self.stream.is_ready()
    }

    pub(super) fn is_client(&self) -> bool {
        self.reader.role() == Role::Client
    }

    pub(super) fn is_counted_by_ip(&self) -> bool {
        self.counts.has(Counts::BY_IP)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.counts.has(Counts::REFUSED)
    }

    /// It is open, answered, or given up.
    pub(super) fn leave_opening(&mut self) {
        if self.counts.leave(Counts::OPENING) {
            self.peer.link.handle.shared.leave_opening();
        }
    }

    /// Counts why it does not become a WebSocket, unless that was counted already, or it has become one.
    pub(super) fn note_refusal(&mut self, why: Refusal) {
        if self.count_refusal(why) {
            log::debug!("{}: refused: {}", self.peer.link.id, why.label());
        }
    }

    /// The same where the log is told in other words. `false`: it counted already.
    pub(super) fn count_refusal(&mut self, why: Refusal) -> bool {
        let untold = self.counts.leave(Counts::UNTOLD);
        if untold {
            self.peer.link.handle.counters.refused(why);
        }
        untold
    }

    /// Open, or about to be: a handler that is told that a connection opens may broadcast to it at once.
    pub(super) fn hears_broadcasts(&self) -> bool {
        self.is_open()
            || (self.handler_knows != HandlerKnows::Nothing
                && matches!(self.phase, Phase::Deciding))
    }

    /// It is we who don't read: what the peer has to say may be there.
    pub(super) fn is_deaf(&self) -> bool {
        (self.paused || self.rest.is_some() || self.readable) && !self.peer.link.is_congested()
    }

    pub(super) fn register(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
    ) -> io::Result<()> {
        self.stream.register(registry, token)
    }

    /// The socket can't be watched: out of memory, or of watches.
    pub(super) fn cannot_be_served<U: Upstream>(
        &mut self,
        error: &io::Error,
        cx: &mut Context<'_, U>,
    ) {
        static UNSERVED: Throttle = Throttle::new();
        if let Some(more) = UNSERVED.pass() {
            log::warn!("{}: cannot be served: {error}{more}", self.peer.link.id);
        }
        self.note_refusal(Refusal::Unanswered);
        self.fail_transport(error, cx);
    }

    /// The last of it, before the socket is closed.
    pub(super) fn part(&mut self) {
        self.stream.send_close_notify();
    }

    // ---- reading ----

    /// An event of the socket.
    pub(super) fn ready<U: Upstream>(&mut self, event: Readiness, cx: &mut Context<'_, U>) {
        self.readable |= event.readable || event.closed;
        self.hung_up |= event.closed;
        if event.readable || event.closed {
            self.stream.note_readable(self.hung_up);
        }
        // TLS may have more to send than what was given to it: answers, its goodbye.
        if event.writable && (std::mem::take(&mut self.blocked) || self.stream.has_pending()) {
            if self.pinged {
                // A ping may have to wait for all that is in front of it; of that the peer has taken some.
                self.last_seen = Moment::at(cx.now);
            }
            self.unblocked(cx);
        }
        // On the list of those to go on, it has its turn already.
        if self.readable && !self.listed {
            self.advance(cx);
        }
    }

    /// The handler has caught up.
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.again = true;
    }

    /// Goes on with what has been read, or reads, within the budget of a turn.
    pub(super) fn advance<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        self.again = false;
        self.flush_if_dirty(cx);
        #[cfg(feature = "tls")]
        {
            if self.awaits_proxy_header_and_tls() {
                return self.proxy_header_before_tls(cx);
            }
            if self.is_securing() {
                return self.secure(cx);
            }
        }
        if self.gone || self.waits(cx) {
            return;
        }
        // Its turn comes: a whole message later costs less than pieces of many now, and what another loop
        // has not caught up with must not become more.
        let too_much = *cx.large_left == 0 && self.brings_large(cx);
        if too_much || (self.is_open() && self.ending.is_none() && is_ahead()) {
            self.again = true;
            return;
        }
        if let Some(mut rest) = self.rest.take() {
            // No more than other reads bring: it may be tiny frames that were read behind a message.
            let bytes = rest.bytes();
            let later = bytes.len().saturating_sub(cx.buf.len());
            let now = bytes.len() - later;
            let left = later + self.look_at(&mut bytes[..now], cx);
            if left > 0 {
                self.rest = rest.last(left);
            }
        } else if self.readable && !self.eof {
            self.read(cx);
        }
        let more = self.rest.is_some() || (self.readable && !self.eof);
        self.again |= more && !self.gone && !self.waits(cx);
    }

    /// Whether reading is suspended. What ends the suspension sets `again`.
    pub(super) fn waits<U: Upstream>(&self, cx: &Context<'_, U>) -> bool {
        match self.phase {
            Phase::Deciding => true,
            Phase::Open(_) => {
                (self.paused && self.ending.is_none())
                    || (self.is_over_rate(cx.now) && over_rate_waits(cx.config))
                    || (self.is_over_bytes(cx.now) && over_bytes_waits(cx.config))
                    || (cx.upstream.is_inline() && self.ending.is_none() && self.holds_back::<U>())
            }
            Phase::Dialing(ref dialing) => dialing.is_connecting(),
            Phase::Opening(_) | Phase::Lingering => false,
        }
    }

    /// With handlers inline: what comes now has to wait in the mailbox.
    fn holds_back<U: Upstream>(&self) -> bool {
        let link = &self.peer.link;
        match U::ROLE {
            // A receiver does not receive. Not congestion: a client that waited for a server to read
            // might wait for one that waits for it.
            Role::Client => link.has_parked(),
            Role::Server => link.must_wait(),
        }
    }

    /// What comes next is probably a large message, or more of one.
    fn brings_large<U: Upstream>(&self, cx: &Context<'_, U>) -> bool {
        let large = match self.read_mode {
            ReadMode::Large => true,
            // For workers they are large ones; for handlers on the loop they begin with 1 KiB.
            ReadMode::Middling => !cx.upstream.is_inline(),
            ReadMode::Usual | ReadMode::Tiny => false,
        };
        large || self.reader.is_in_large_message()
    }

    /// The peer has used up its allowance of messages.
    pub(super) fn is_over_rate(&self, now: u64) -> bool {
        match &self.phase {
            Phase::Open(Some(allowance)) => {
                self.ending.is_none() && allowance.is_out_of_messages(now)
            }
            _ => false,
        }
    }

    /// The same for bytes.
    fn is_over_bytes(&self, now: u64) -> bool {
        match &self.phase {
            Phase::Open(Some(allowance)) => self.ending.is_none() && allowance.is_out_of_bytes(now),
            _ => false,
        }
    }

    /// Ends the connection at once because the transport failed.
    pub(super) fn fail_transport<U: Upstream>(
        &mut self,
        error: &io::Error,
        cx: &mut Context<'_, U>,
    ) {
        log::debug!("{}: {error}", self.peer.link.id);
        if self.is_dialing() {
            #[cfg(feature = "tls")]
            if let Some(why) = TlsError::of(error) {
                return self.not_opened(Error::Tls(why.to_string()), cx);
            }
            return self.not_connected(duplicate(error), cx);
        }
        let cause = self.closing_cause().unwrap_or(CloseCause::Transport);
        self.end_now(cause, cx);
    }
}

pub(super) fn over_rate_waits(config: &Config) -> bool {
    config
        .message_rate
        .is_some_and(|r| r.over == OverRate::Wait)
}

fn over_bytes_waits(config: &Config) -> bool {
    config.byte_rate.is_some_and(|r| r.over == OverRate::Wait)
}
