//! A client from any thread, through all its connections.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::error::{Error, Result, SendError, Sent};
use crate::id::PeerId;
use crate::link::Link;
use crate::message::{CloseCode, CloseReason, Message};
use crate::peer::Peer;
use crate::proto::is_sendable;
use crate::sync::lock;

/// What a client's handles and its session share.
#[derive(Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    now: Now,
    /// The user has asked for the end.
    closing: Option<(CloseCode, String)>,
    /// Somebody waits for the end, and nobody may receive any more: what finds no room is dropped.
    discards: bool,
    /// The connection for whose events the feeder watches the channel. An earlier one may be watched for as
    /// well, to no effect.
    watched: Option<PeerId>,
}

#[derive(Default)]
enum Now {
    /// On its way, or waiting for the next attempt.
    #[default]
    Connecting,
    Open(Weak<Link>),
    Ended(Result<CloseReason>),
}

impl Control {
    pub(super) fn is_closing(&self) -> bool {
        lock(&self.state).closing.is_some()
    }

    /// The feeder is to watch for room for this connection. `false`: it does already.
    pub(super) fn begin_watch(&self, id: PeerId) -> bool {
        lock(&self.state).watched.replace(id) != Some(id)
    }

    pub(super) fn end_watch(&self, id: PeerId) {
        lock(&self.state).watched.take_if(|watched| *watched == id);
    }

    pub(super) fn discards(&self) -> bool {
        lock(&self.state).discards
    }

    /// A connection is open. `Some`: it was closed before it was, and should be.
    pub(super) fn opened(&self, peer: &Peer) -> Option<(CloseCode, String)> {
        let mut state = lock(&self.state);
        state.now = Now::Open(Arc::downgrade(&peer.link));
        self.changed.notify_all();
        state.closing.clone()
    }

    /// Another attempt will be made.
    pub(super) fn lost(&self) {
        lock(&self.state).now = Now::Connecting;
    }

    /// It is over; only the first word counts.
    pub(super) fn ended(&self, end: Result<CloseReason>) {
        let mut state = lock(&self.state);
        if !matches!(state.now, Now::Ended(_)) {
            state.now = Now::Ended(end);
            self.changed.notify_all();
        }
    }

    /// Waits for the end, until `deadline` if there is one.
    fn wait(&self, deadline: Option<Instant>) -> Option<Result<CloseReason>> {
        let mut state = lock(&self.state);
        loop {
            if let Now::Ended(end) = &state.now {
                return Some(match end {
                    Ok(reason) => Ok(reason.clone()),
                    Err(error) => Err(error.duplicate()),
                });
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A handle to a client: cheap to clone, and usable from any thread. It stands for all connections that the client
/// makes, one after the other; a [`Peer`] is one of these. Dropping the handle does not end the client.
#[derive(Clone)]
pub struct ClientHandle {
    pub(super) control: Arc<Control>,
    pub(super) engine: Arc<Engine>,
    /// The longest that opening and closing take.
    pub(super) patience: Duration,
}

/// What a worker may need on top, to get to the last event.
const GRACE: Duration = Duration::from_secs(1);

impl ClientHandle {
    /// The connection that is open now.
    pub fn peer(&self) -> Option<Peer> {
        match &lock(&self.control.state).now {
            Now::Open(link) => link.upgrade().map(|link| Peer { link }),
            _ => None,
        }
    }

    /// Sends through the connection that is open now, like [`Peer::send`].
    ///
    /// # Errors
    /// As for [`Peer::send`]; [`SendError::Closed`] while there is no connection.
    pub fn send(&self, message: impl Into<Message>) -> std::result::Result<Sent, SendError> {
        match self.peer() {
            Some(peer) => peer.send(message),
            None => Err(SendError::Closed(message.into())),
        }
    }

    /// Whether a connection is open and not closing.
    pub fn is_open(&self) -> bool {
        self.peer().is_some_and(|peer| !peer.is_closed())
    }

    /// Whether the last connection is over and none will follow.
    pub fn has_ended(&self) -> bool {
        matches!(lock(&self.control.state).now, Now::Ended(_))
    }

    /// Ends the client: begins the closing handshake as [`Peer::close`] does, behind everything that was sent, and
    /// makes no further attempts to connect. Messages that arrive from now on are thrown away. In a pause between two
    /// attempts, the client ends at once; an opening handshake under way is finished, and its connection closed.
    ///
    /// `false`: the client was ending already, or the code must not be sent.
    pub fn close(&self, code: CloseCode, reason: &str) -> bool {
        if !is_sendable(code) && code != CloseCode::Status {
            return false;
        }
        let mut state = lock(&self.control.state);
        if state.closing.is_some() || matches!(state.now, Now::Ended(_)) {
            return false;
        }
        state.closing = Some((code, reason.to_owned()));
        drop(state);
        match self.peer() {
            Some(peer) => peer.close(code, reason),
            None => {
                self.engine.dialer.hurry(&self.control);
                true
            }
        }
    }

    /// Like [`close`](Self::close), but waits until the client has ended: until the server has answered or its
    /// [`close_timeout`](crate::Client::close_timeout) is over. It never waits for longer than
    /// [`handshake_timeout`](crate::Client::handshake_timeout), `close_timeout` and one second together. Events that
    /// find the channel full meanwhile are dropped.
    ///
    /// Returns how the last connection ended; `None` if none was open, or if the client did not end in time because a
    /// handler still blocks. Must not be called by the client's own handler, which would wait for itself.
    pub fn close_and_wait(&self, code: CloseCode, reason: &str) -> Option<CloseReason> {
        self.close(code, reason);
        lock(&self.control.state).discards = true;
        self.engine.feeder.release_all();
        let deadline = Instant::now() + self.patience + GRACE;
        self.control.wait(Some(deadline))?.ok()
    }

    /// Waits until the last connection is over, and returns how it ended.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub fn wait(&self) -> Result<CloseReason> {
        self.control.wait(None).unwrap_or(Err(Error::Closed))
    }
}

impl fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = match &lock(&self.control.state).now {
            Now::Connecting => "connecting",
            Now::Open(_) => "open",
            Now::Ended(_) => "ended",
        };
        write!(f, "ClientHandle({now})")
    }
}
