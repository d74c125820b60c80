//! Opening connections: connect and shake hands, some at a time.

use std::{
    io::{Error, Result},
    net::Ipv4Addr,
    os::fd::OwnedFd,
};

use framemill_bench::{
    handshake,
    net::{self, Addr, EventFlags, Events, Poller},
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use crate::{PATIENCE, conn::Conn, window::Progress};

/// Handshakes under way at a time: below the backlog of any listener, since a SYN that finds it
/// full is only repeated a second later.
const AT_ONCE: usize = 64;

/// Where to, and what to say there.
pub(crate) struct Target {
    addr: Addr,
    request: Vec<u8>,
}

impl Target {
    pub(crate) fn new(addr: &Addr) -> Self {
        Self {
            addr: addr.clone(),
            request: handshake::request(&addr.to_string()),
        }
    }

    fn refused(&self, error: impl Into<Error>) -> Error {
        Error::other(format!("cannot connect to {}: {}", self.addr, error.into()))
    }
}

/// A connection on its way.
pub(crate) struct Opening {
    socket: OwnedFd,
    requested: bool,
    response: Vec<u8>,
}

impl Opening {
    pub(crate) fn begin(
        target: &Target,
        source: Option<Ipv4Addr>,
        poller: &Poller,
        token: usize,
    ) -> Result<Self> {
        let socket = net::connect(&target.addr, source).map_err(|error| target.refused(error))?;
        let mut opening = Self {
            socket,
            requested: false,
            response: Vec::new(),
        };
        // On loopback it is connected already, which saves a turn.
        opening.request(target)?;
        poller.add(&opening.socket, token)?;
        Ok(opening)
    }

    fn request(&mut self, target: &Target) -> Result<()> {
        match send(&self.socket, &target.request, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == target.request.len() => self.requested = true,
            Ok(_) => return Err(Error::other("no room for a handshake in a new socket")),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(target.refused(error)),
        }
        Ok(())
    }

    /// Does what is possible now. Returns whether the connection is open.
    pub(crate) fn advance(&mut self, target: &Target, flags: EventFlags) -> Result<bool> {
        if !self.requested {
            self.request(target)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, 0)) => return Err(target.refused(Error::other("closed during the handshake"))),
            Ok((_, count)) => self.response.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(target.refused(error)),
        }
        match handshake::check_response(&self.response).map_err(|error| target.refused(error))? {
            Some(length) if length < self.response.len() => {
                Err(Error::other("data right after the handshake"))
            }
            complete => Ok(complete.is_some()),
        }
    }
}

/// Opens `count` connections, registered with `poller` under their index.
pub(crate) fn open_all(addr: &Addr, count: usize, poller: &Poller) -> Result<Vec<Conn>> {
    let target = Target::new(addr);
    let mut opening: Vec<Option<Opening>> = Vec::with_capacity(count);
    let mut conns: Vec<Option<Conn>> = Vec::new();
    conns.resize_with(count, || None);
    let mut done = 0;
    let mut events = Events::new();
    let mut progress = Progress::new();
    while done < count {
        while opening.len() < count && opening.len() - done < AT_ONCE {
            let token = opening.len();
            opening.push(Some(Opening::begin(&target, None, poller, token)?));
        }
        for (token, flags) in poller.wait(&mut events, Some(PATIENCE))? {
            let Some(one) = &mut opening[token] else {
                continue;
            };
            if one.advance(&target, flags)? {
                conns[token] = opening[token].take().map(|one| Conn::new(one.socket));
                done += 1;
            }
        }
        progress.check(done as u64)?;
    }
    Ok(conns.into_iter().flatten().collect())
}
