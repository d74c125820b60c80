//! Sockets that become connections of this loop: accepted here or by another loop, or dialed.

use std::io;
use std::sync::Arc;

use http::StatusCode;

use super::EventLoop;
use super::start::token;
use crate::addr::RemoteAddr;
use crate::config::Config;
use crate::error::Error;
use crate::id::PeerId;
use crate::link::Link;
use crate::metrics::Refusal;
use crate::net::Stream;
use crate::peer::Peer;
use crate::proto::Role;
use crate::reactor::acceptor;
use crate::reactor::conn::{Conn, Phase};
use crate::reactor::dialing::{self, Dialing};
use crate::reactor::kept::Kept;
use crate::reactor::opening::Opening;
use crate::reactor::upstream::Upstream;

/// Connections that a client's loop begins to make per turn.
const DIALS: usize = 64;

impl<U: Upstream> EventLoop<U> {
    pub(super) fn accept(&mut self) {
        let mut here = Vec::new();
        self.acceptor
            .accept(self.now, |stream, remote| here.push((stream, remote)));
        for (stream, remote) in here {
            self.adopt(stream, remote);
        }
    }

    /// Begins to connect, as often as the budget allows.
    pub(super) fn dial(&mut self) {
        for _ in 0..DIALS {
            let Some(mut dial) = self.dials.pop_front() else {
                return;
            };
            let begun = if self.stopping.is_some() {
                Err(Error::Closed)
            } else if self.is_full() {
                let why = "a loop has all the connections that it can have";
                Err(Error::Io(io::Error::other(why)))
            } else {
                dialing::begin(&mut dial)
            };
            match begun {
                Ok((stream, remote)) => {
                    let _ = acceptor::admit(&self.handle.shared, remote);
                    let config = Some(dial.config.clone());
                    let dialing = Dialing::new(dial, self.start);
                    self.take_in(stream, remote, config, Phase::Dialing(Box::new(dialing)));
                }
                Err(error) => self.upstream.failed(dial, error),
            }
        }
    }

    /// Takes a socket in.
    pub(super) fn adopt(&mut self, stream: Stream, remote: RemoteAddr) {
        let counters = &self.handle.counters;
        counters.accepted.add(1);
        if self.stopping.is_some() {
            return self.turn_away(remote, Refusal::Shutdown);
        }
        if self.is_full() {
            return self.turn_away(remote, Refusal::Unanswered);
        }
        let admitted = acceptor::admit(&self.handle.shared, remote);
        let refusal = match admitted {
            Ok(()) => None,
            Err(Some(status)) => {
                counters.refused(match status {
                    StatusCode::TOO_MANY_REQUESTS => Refusal::PerAddress,
                    _ => Refusal::MaxConnections,
                });
                // It takes no place at the door, or one address alone could shut that for all others.
                self.handle.shared.leave_opening();
                Some(status)
            }
            Err(None) => return self.turn_away(remote, Refusal::Unanswered),
        };
        let config = self.handle.config.clone();
        let opening = Opening::new(refusal, config.proxies.contains(remote.ip()), &config);
        #[cfg(feature = "tls")]
        let stream = match opening.awaits_proxy_header() {
            // It comes before TLS.
            true => stream,
            false => self.handle.shared.secure(stream, refusal.is_none()),
        };
        let opening = Phase::Opening(Box::new(opening));
        self.take_in(stream, remote, None, opening);
    }

    /// Closes a connection that was not even taken in.
    fn turn_away(&self, remote: RemoteAddr, why: Refusal) {
        log::debug!(
            "loop {}: {remote} refused: {}",
            self.handle.index,
            why.label()
        );
        self.handle.counters.refused(why);
        self.handle.shared.leave_opening();
    }

    /// It can't number more.
    fn is_full(&self) -> bool {
        self.conns.len() >= PeerId::MAX_SLOTS as usize
    }

    fn take_in(
        &mut self,
        stream: Stream,
        remote: RemoteAddr,
        client: Option<Arc<Config>>,
        phase: Phase,
    ) {
        let (handle, now) = (&self.handle, self.now);
        handle.counters.connections.add(1);
        let registry = self.poll.registry();
        let mut registered = Ok(());
        let key = self.conns.insert_with(|key| {
            let id = PeerId::new(handle.index, key);
            let link = Arc::new(Link::new(id, remote, handle.clone(), client));
            let mut conn = Conn::new(stream, Peer { link }, phase, now);
            let way = match U::ROLE {
                Role::Client => "connecting to",
                Role::Server => "connected from",
            };
            let over = match conn.is_refused() {
                true => ", over a limit",
                false => "",
            };
            log::debug!("{id}: {way} {remote}{over}");
            registered = conn.register(registry, token(key));
            Kept::new(conn)
        });
        match registered {
            Ok(()) => self.serve(key, |conn, _| conn.rearm = true),
            Err(error) => self.serve(key, |conn, cx| conn.cannot_be_served(&error, cx)),
        }
    }
}
