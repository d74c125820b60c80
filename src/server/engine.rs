//! From the events of a connection to calls of the user's handler, on a worker or inline.
//!
//! | file | what |
//! |---|---|
//! | `engine` | the events in order, and the messages among them |
//! | `calls` | what all other events call |
//! | `accepting` | the answer to a handshake that is accepted |
//! | `session` | the session, live or muted |
//! | `workers` | who runs the events: workers |
//! | `inline` | or the loop itself, which hands over the messages as it finds them |

use std::collections::VecDeque;
use std::sync::Arc;

use super::handle::ServerHandle;
use super::handler::Handler;
use super::session;
use crate::config::Config;
use crate::guard::guarded;
use crate::link::{Command, Event, Link, Load, RUN_INFLATED, Session as Slot, give_batch};
use crate::message::Message;
use crate::metrics::WorkerCounters;
use crate::peer::Peer;

/// Runs the events of any connection against the handler.
pub(crate) struct Engine<H> {
    pub(super) handler: H,
    limit: Load,
    workers: Arc<[WorkerCounters]>,
}

/// Why a run of a mailbox ended.
#[derive(PartialEq, Eq)]
pub(super) enum Ran {
    /// All events are handled.
    Done,
    /// The peer is congested; the rest must wait.
    Congested,
    /// It has taken long enough; the rest comes when others have had their turn.
    Paused,
}

impl<H: Handler> Engine<H> {
    pub(crate) fn new(handler: H, config: &Config) -> Self {
        let limit = Load::inbound_limit(config);
        let workers = (0..config.workers).map(|_| WorkerCounters::default());
        let workers = workers.collect();
        Self {
            handler,
            limit,
            workers,
        }
    }

    /// What the workers count.
    pub(super) fn workers(&self) -> &Arc<[WorkerCounters]> {
        &self.workers
    }

    pub(super) fn start(&self, server: &ServerHandle) {
        self.handler.start(server);
    }

    /// Runs what waits in the mailbox of a connection, and tells how many events that were. `true`: there is more
    /// to run.
    pub(super) fn run_mailbox(&self, peer: &Peer, handled: &mut usize) -> bool {
        let mut events = peer.link.take_inbox();
        let taken = events.len();
        let ran = self.run_events(peer, &mut events);
        *handled = taken - events.len();
        match ran {
            Ran::Done => {
                give_batch(events);
                peer.link.finish_run()
            }
            Ran::Congested | Ran::Paused => peer.link.park(events),
        }
    }

    /// Handles events in order, and takes them out.
    pub(super) fn run_events(&self, peer: &Peer, events: &mut VecDeque<Event>) -> Ran {
        let link = &peer.link;
        let mut slot = link.session();
        let mut inflated = 0;
        while let Some(event) = events.front() {
            if inflated >= RUN_INFLATED {
                return Ran::Paused;
            }
            if let Event::Message(_) = event {
                if self.messages(peer, &mut slot, events, &mut inflated) == Ran::Congested {
                    return Ran::Congested;
                }
                continue;
            }
            match events.pop_front() {
                Some(Event::Open(opening)) => *slot = self.open(peer, &opening),
                #[cfg(feature = "tls")]
                Some(Event::Secure(mut stream)) => {
                    let step = stream.handshake();
                    let back = Command::Secured(link.id.key(), stream, step);
                    link.handle.post(back);
                }
                Some(Event::Http(request)) => self.http(link, &request),
                Some(Event::Writable) => {
                    link.tell_writable();
                    self.writable(peer, &mut slot);
                }
                Some(Event::Close { code, text, cause }) => drop(link.close(code, text, cause)),
                Some(Event::Eof) => link.handle.finished(link.id.key()),
                Some(Event::Closed(reason)) => {
                    #[cfg(feature = "deflate")]
                    link.end_compression();
                    // None: `open` refused, so there is nobody to tell.
                    if let Some(session) = session::take::<H::Session>(&mut slot) {
                        self.close(peer, *session, &reason);
                    }
                }
                Some(Event::Message(_) | Event::Connected(_)) | None => {}
            }
        }
        if link.inflow.settle(self.limit) {
            link.handle.post(Command::Resume(link.id.key()));
        }
        Ran::Done
    }

    /// Handles the messages in front, under one guard against panics, until too much of them was `inflated`.
    fn messages(
        &self,
        peer: &Peer,
        slot: &mut Slot,
        events: &mut VecDeque<Event>,
        inflated: &mut usize,
    ) -> Ran {
        let link = &peer.link;
        let (mut congested, mut corrupt) = (false, false);
        let outcome = guarded(|| {
            let mut session = session::live(slot);
            while let Some(Event::Message(_)) = events.front() {
                if link.must_wait() {
                    congested = true;
                    return;
                }
                let Some(Event::Message(message)) = events.pop_front() else {
                    return;
                };
                let counted = Counted {
                    link,
                    bytes: message.len(),
                    limit: self.limit,
                };
                match &mut session {
                    // Past `inflate`, through which it would be moved once more.
                    Some(session) if !matches!(message, Message::Frame(_)) => {
                        self.handler.message(session, peer, message);
                    }
                    Some(session) => {
                        let Some(message) = link.inflate(message) else {
                            corrupt = true;
                            return;
                        };
                        *inflated += message.len();
                        self.handler.message(session, peer, message);
                        if *inflated >= RUN_INFLATED {
                            return;
                        }
                    }
                    None => {}
                }
                drop(counted);
            }
        });
        if outcome.is_none() {
            self.panicked(link, slot);
        } else if corrupt {
            session::mute::<H::Session>(slot);
        }
        if congested { Ran::Congested } else { Ran::Done }
    }
}

/// Counts a message as handled when it goes, even if its handler panics.
struct Counted<'a> {
    link: &'a Arc<Link>,
    bytes: usize,
    limit: Load,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.link.inflow.handled(self.bytes, self.limit) {
            let key = self.link.id.key();
            self.link.handle.post(Command::Resume(key));
        }
    }
}
