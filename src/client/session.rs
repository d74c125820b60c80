//! One client: from the events of its connections to its handler or its channel, and what follows
//! when a connection ends.
//!
//! A session goes from hand to hand: the dialer has it while it waits, then it travels with its
//! [`Dial`](crate::link::Dial), then it lies in the link of the open connection, where the thread that
//! runs the mailbox takes it up. So exactly one thread has it at any time, and it needs no lock of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use http::HeaderMap;

use super::builder::Plan;
use super::channel_feeder::Watched;
use super::engine::Engine;
use super::handle::Control;
use super::handler::{ClientEvent, ClientHandler};
use super::reconnect::{Retry, RetryReason};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::logging::Throttle;
use crate::message::{CloseCause, CloseCode, CloseReason, Initiator, Message};
use crate::peer::Peer;

/// See the module's documentation.
pub(super) struct Session {
    pub(super) plan: Arc<Plan>,
    pub(super) control: Arc<Control>,
    engine: Arc<Engine>,
    sink: Sink,
    /// Attempts in this row.
    attempts: u32,
    /// Since when the current connection is open.
    opened: Option<Instant>,
    /// The thread that waits for the first connection.
    ready: Option<Sender<Result<Peer>>>,
    /// The handler panicked: it is only told the end.
    panicked: bool,
    /// What this connection sends is corrupt: no more messages from it.
    muted: bool,
    /// Its end is told by somebody else.
    ended: bool,
}

/// Where the events go.
pub(super) enum Sink {
    Calls(Box<dyn ClientHandler>),
    Channel {
        sender: Sender<ClientEvent>,
        /// What found no room and must not be lost. While it is not empty nothing else is dealt with.
        backlog: VecDeque<ClientEvent>,
        /// The receiver is gone.
        deaf: bool,
    },
}

impl Sink {
    pub(super) fn channel(sender: Sender<ClientEvent>) -> Self {
        Self::Channel {
            sender,
            backlog: VecDeque::new(),
            deaf: false,
        }
    }
}

impl Session {
    pub(super) fn new(
        plan: Arc<Plan>,
        engine: Arc<Engine>,
        sink: Sink,
        ready: Option<Sender<Result<Peer>>>,
    ) -> Self {
        Self {
            plan,
            control: Arc::default(),
            engine,
            sink,
            attempts: 0,
            opened: None,
            ready,
            panicked: false,
            muted: false,
            ended: false,
        }
    }

    /// Somebody waits for the connection, who may be the only worker. Neither [`opened`](Self::opened) nor
    /// [`failed`](Self::failed) runs code of the user's then.
    pub(super) fn is_awaited(&self) -> bool {
        self.ready.is_some()
    }

    // ---- what happens ----

    pub(super) fn opened(&mut self, peer: &Peer, headers: HeaderMap) {
        self.opened = Some(Instant::now());
        self.muted = false;
        let closing = self.control.opened(peer);
        match self.ready.take() {
            Some(ready) => drop(ready.send(Ok(peer.clone()))),
            None => self.tell(
                Some(peer),
                |handler| handler.open(peer, &headers),
                || ClientEvent::Open(peer.clone(), Box::new(headers.clone())),
            ),
        }
        if let Some((code, reason)) = closing {
            peer.close(code, &reason);
        }
    }

    /// Comes back if there is no room for it.
    pub(super) fn message(
        &mut self,
        peer: &Peer,
        message: Message,
    ) -> std::result::Result<(), Message> {
        if self.muted {
            return Ok(());
        }
        if let Sink::Channel { sender, deaf, .. } = &mut self.sink {
            if *deaf {
                return Ok(());
            }
            match sender.try_send(ClientEvent::Message(message)) {
                Ok(()) => {}
                Err(TrySendError::Full(ClientEvent::Message(message))) => {
                    return if self.discards() {
                        Ok(())
                    } else {
                        Err(message)
                    };
                }
                Err(_) => *deaf = true,
            }
            return Ok(());
        }
        if !self.panicked {
            self.call(Some(peer), |handler| handler.message(peer, message));
        }
        Ok(())
    }

    /// No more messages from this connection.
    pub(super) fn mute(&mut self) {
        self.muted = true;
    }

    /// Keeps a message there was no room for.
    pub(super) fn keep(&mut self, message: Message) {
        self.push(ClientEvent::Message(message));
    }

    pub(super) fn writable(&mut self, peer: &Peer) {
        self.tell(
            Some(peer),
            |handler| handler.writable(peer),
            || ClientEvent::Writable,
        );
    }

    /// The connection is over.
    pub(super) fn closed(mut self: Box<Self>, peer: &Peer, reason: CloseReason) {
        let asked_for = is_asked_for(peer, &reason);
        // Even after a panic.
        if let Sink::Calls(_) = self.sink {
            self.call(None, |handler| handler.close(peer, &reason));
        } else {
            self.push(ClientEvent::Close(reason.clone()));
        }
        let lasted = self.opened.take().map(|opened| opened.elapsed());
        let reconnect = self.plan.reconnect.as_ref();
        if lasted.is_some_and(|lasted| reconnect.is_some_and(|r| r.has_settled(lasted))) {
            self.attempts = 0;
        }
        if asked_for {
            return self.end(Ok(reason));
        }
        if let Err((session, RetryReason::Closed(reason))) = self.retry(RetryReason::Closed(reason))
        {
            session.end(Ok(reason));
        }
    }

    /// An attempt to connect has failed.
    pub(super) fn failed(mut self: Box<Self>, error: Error) {
        if let Some(ready) = self.ready.take() {
            let told = error.duplicate();
            self.end(Err(error));
            drop(ready.send(Err(told)));
            return;
        }
        if let Err((mut session, RetryReason::Failed(error))) =
            self.retry(RetryReason::Failed(error))
        {
            session.tell(
                None,
                |handler| handler.error(&error),
                || ClientEvent::Error(error.duplicate()),
            );
            session.end(Err(error));
        }
    }

    /// Tries again, if that is wanted; otherwise both come back.
    fn retry(
        mut self: Box<Self>,
        reason: RetryReason,
    ) -> std::result::Result<(), (Box<Self>, RetryReason)> {
        let wanted = self.plan.reconnect.as_ref().filter(|r| r.covers(&reason));
        let delay = wanted.and_then(|r| r.delay(self.attempts + 1));
        let called_off = self.control.is_closing() || self.panicked || self.is_unheard();
        let Some(delay) = delay.filter(|_| !called_off && !self.engine.dialer.is_stopped()) else {
            return Err((self, reason));
        };
        self.attempts += 1;
        self.control.lost();
        let retry = Retry {
            attempt: self.attempts,
            delay,
            reason,
        };
        match self.sink {
            Sink::Calls(_) => {
                self.call(None, |handler| handler.retry(&retry));
                if self.panicked {
                    return Err((self, retry.reason));
                }
            }
            Sink::Channel { .. } => self.push(ClientEvent::Reconnecting(retry)),
        }
        let dialer = self.engine.dialer.clone();
        dialer.dial(self, delay);
        Ok(())
    }

    /// The last thing that happens.
    fn end(mut self: Box<Self>, end: Result<CloseReason>) {
        let control = self.control.clone();
        self.relieve();
        if let Sink::Channel {
            sender, backlog, ..
        } = &mut self.sink
        {
            if !backlog.is_empty() {
                let rest = Watched::Rest(sender.clone(), std::mem::take(backlog));
                self.engine.feeder.watch(rest);
            }
        }
        self.ended = true;
        // The handler goes before anybody is told that it has.
        if guarded(|| drop(self)).is_none() {
            static PANICS: Throttle = Throttle::new();
            if let Some(more) = PANICS.pass() {
                log::error!("a client's handler panicked when it was dropped{more}");
            }
        }
        control.ended(end);
    }

    // ---- telling it ----

    fn tell(
        &mut self,
        peer: Option<&Peer>,
        call: impl FnOnce(&mut dyn ClientHandler),
        event: impl FnOnce() -> ClientEvent,
    ) {
        match self.sink {
            Sink::Calls(_) if self.panicked => {}
            Sink::Calls(_) => self.call(peer, call),
            Sink::Channel { .. } => self.push(event()),
        }
    }

    fn call(&mut self, peer: Option<&Peer>, call: impl FnOnce(&mut dyn ClientHandler)) {
        let Sink::Calls(handler) = &mut self.sink else {
            return;
        };
        if guarded(|| call(&mut **handler)).is_none() {
            self.panicked = true;
            static PANICS: Throttle = Throttle::new();
            if let Some(more) = PANICS.pass() {
                match peer.map(Peer::id) {
                    Some(id) => log::error!("{id}: the client's handler panicked{more}"),
                    None => log::error!("a client's handler panicked{more}"),
                }
            }
            if let Some(peer) = peer {
                peer.link.close(CloseCode::Error, "", CloseCause::Panic);
            }
        }
    }

    /// Puts an event that must not be lost into the channel, or behind it.
    fn push(&mut self, event: ClientEvent) {
        let Sink::Channel { backlog, deaf, .. } = &mut self.sink else {
            return;
        };
        if *deaf {
            return;
        }
        if let (Some(ClientEvent::Reconnecting(last)), ClientEvent::Reconnecting(retry)) =
            (backlog.back_mut(), &event)
        {
            log::debug!("nobody receives: attempt {} is not told", last.attempt);
            debug_assert!(retry.attempt != last.attempt);
            backlog.pop_back();
        }
        backlog.push_back(event);
        self.relieve();
    }

    /// Moves the backlog into the channel. `false`: there is not enough room.
    pub(super) fn relieve(&mut self) -> bool {
        let discards = self.discards();
        let Sink::Channel {
            sender,
            backlog,
            deaf,
        } = &mut self.sink
        else {
            return true;
        };
        while let Some(event) = backlog.pop_front() {
            match sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) if discards => {}
                Err(TrySendError::Full(event)) => {
                    backlog.push_front(event);
                    return false;
                }
                Err(TrySendError::Disconnected(_)) => {
                    *deaf = true;
                    backlog.clear();
                }
            }
        }
        true
    }

    /// What to wait for until there is room again.
    pub(super) fn waits_for(&self, peer: &Peer) -> Option<Watched> {
        match &self.sink {
            Sink::Channel { sender, .. } => Some(Watched::Mailbox {
                sender: sender.clone(),
                peer: peer.clone(),
                control: self.control.clone(),
            }),
            Sink::Calls(_) => None,
        }
    }

    fn discards(&self) -> bool {
        self.control.discards() || self.engine.feeder.is_abandoned()
    }

    fn is_deaf(&self) -> bool {
        matches!(self.sink, Sink::Channel { deaf: true, .. })
    }

    /// Nobody receives, and nobody can send.
    fn is_unheard(&self) -> bool {
        self.is_deaf() && Arc::strong_count(&self.control) == 1
    }

    /// Without a receiver the connection goes on for whoever still sends; if there is nobody, it is of
    /// no use to anyone.
    pub(super) fn leave_if_unheard(&self, peer: &Peer) {
        if self.is_unheard() && Arc::strong_count(&peer.link) <= self.engine.own_references {
            peer.close(CloseCode::Away, "");
        }
    }
}

/// Whether this side asked for the end by [`Peer::close`], whatever the server made of that: it may have
/// hung up, have said nothing, or have closed at the same time.
fn is_asked_for(peer: &Peer, reason: &CloseReason) -> bool {
    let outbox = peer.link.outbox();
    let Some(ours) = outbox.local_close() else {
        return false;
    };
    // An answer to the server's close frame repeats its code, and counts as a clean end.
    let may_be_answer = reason.is_clean() && ours.code == reason.code();
    let ours_first =
        reason.cause() == CloseCause::Handshake && reason.initiator() == Initiator::Local;
    ours.cause == CloseCause::Handshake && (ours_first || !may_be_answer)
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever became of it, whoever waits must not wait for ever.
        if !self.ended {
            self.control.ended(Err(Error::Closed));
        }
    }
}
