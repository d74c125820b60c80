//! Opening connections: connect and shake hands, some at a time.

use std::{
    io::{Error, ErrorKind, Result},
    net::Ipv4Addr,
};

use framemill_bench::{
    handshake,
    net::{self, Addr, EventFlags, Events, Poller},
    stream::{Security, Stream},
};

use crate::{Args, PATIENCE, conn::Conn, window::Progress};

/// Handshakes under way at a time: below the backlog of any listener, since a SYN that finds it
/// full is only repeated a second later.
const AT_ONCE: usize = 64;

/// Where to, and what to say there.
pub(crate) struct Target {
    addr: Addr,
    security: Security,
    deflate: bool,
    request: Vec<u8>,
}

impl Target {
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let security = match args.tls {
            true => Security::client()?,
            false => Security::Plain,
        };
        Ok(Self {
            addr: args.addr.clone(),
            security,
            deflate: args.deflate,
            request: handshake::request(&args.addr.to_string(), args.deflate),
        })
    }

    fn refused(&self, error: impl Into<Error>) -> Error {
        Error::other(format!("cannot connect to {}: {}", self.addr, error.into()))
    }
}

/// A connection on its way.
pub(crate) struct Opening {
    stream: Stream,
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
            stream: target.security.begin(socket)?,
            requested: false,
            response: Vec::new(),
        };
        // On loopback it is connected already, which saves a turn.
        opening.request(target)?;
        poller.add(opening.stream.socket(), token)?;
        Ok(opening)
    }

    fn request(&mut self, target: &Target) -> Result<()> {
        let sent = match self.stream.handshake() {
            Ok(true) => self.stream.send(&target.request),
            Ok(false) => return Ok(()),
            Err(error) => Err(error),
        };
        match sent {
            Ok(sent) if sent == target.request.len() => self.requested = true,
            Ok(_) => return Err(Error::other("no room for a handshake in a new socket")),
            Err(error) if not_yet(&error) => {}
            Err(error) => return Err(target.refused(error)),
        }
        Ok(())
    }

    /// Does what is possible now. Returns whether the connection is open.
    pub(crate) fn advance(&mut self, target: &Target, flags: EventFlags) -> Result<bool> {
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let readable = ended || flags.contains(EventFlags::IN);
        if readable {
            self.stream.socket_readable(ended);
        }
        if !self.requested {
            self.request(target)?;
        }
        if !readable || !self.requested {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        match self.stream.recv(&mut buffer) {
            Ok(0) => return Err(target.refused(Error::other("closed during the handshake"))),
            Ok(count) => self.response.extend_from_slice(&buffer[..count]),
            Err(error) if not_yet(&error) => return Ok(false),
            Err(error) => return Err(target.refused(error)),
        }
        let checked = handshake::check_response(&self.response, target.deflate);
        match checked.map_err(|error| target.refused(error))? {
            Some(length) if length < self.response.len() => {
                Err(Error::other("data right after the handshake"))
            }
            complete => Ok(complete.is_some()),
        }
    }
}

/// A socket that is not connected yet or has nothing to read.
fn not_yet(error: &Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Opens `count` connections, registered with `poller` under their index.
pub(crate) fn open_all(args: &Args, count: usize, poller: &Poller) -> Result<Vec<Conn>> {
    let target = Target::new(args)?;
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
                conns[token] = opening[token].take().map(|one| Conn::new(one.stream));
                done += 1;
            }
        }
        progress.check(done as u64)?;
    }
    Ok(conns.into_iter().flatten().collect())
}
