//! The kernel's own price: a server that parses nothing.
//!
//! It answers the opening handshake as it must. From then on it only counts bytes: told the size of
//! the messages, it knows how many whole frames have arrived, and answers every read with one write
//! of as many frames that were made beforehand; or, when it broadcasts, sends what a turn brought to
//! every connection, again with one write each. What it spends on a message is the system calls and
//! the copies of the kernel (and with TLS, of OpenSSL). A real server also has to find frames, unmask,
//! and call somebody, so nothing that makes the same system calls comes out ahead of it.

use std::{
    collections::HashMap,
    io::{Error, ErrorKind, Result},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use clap::Parser;
use framemill_bench::{
    frame::{self, Opcode},
    handshake,
    net::{self, Addr, EventFlags, Events, Poller},
    stream::{Security, Stream},
};

/// One for all connections.
const BUFFER: usize = 256 * 1024;

/// Token of the listener. Connections have their file descriptor, which is never that large.
const LISTENER: usize = usize::MAX;

#[derive(Parser)]
#[command(about = "Echo server that parses nothing: the lower limit of what a message costs")]
struct Args {
    /// HOST:PORT or unix:PATH
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: Addr,
    /// Bytes of payload of each message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Answer with text messages instead of binary ones
    #[arg(long)]
    text: bool,
    /// Send each message to every connection
    #[arg(long)]
    broadcast: bool,
    /// TLS, with this certificate and the key (PEM)
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (listener, addr) = net::listen(&args.addr)?;
    let security = match args.tls_cert.zip(args.tls_key) {
        Some((certificate, key)) => Security::server(&certificate, &key)?,
        None => Security::Plain,
    };
    println!("listening on {addr}");
    let replies = Replies::new(Opcode::of_message(args.text), args.size as usize);
    Limit::new(listener, addr, security, replies, args.broadcast)?.run()
}

struct Limit {
    listener: OwnedFd,
    addr: Addr,
    security: Security,
    poller: Poller,
    /// By file descriptor.
    conns: Vec<Option<Conn>>,
    /// Requests that came in pieces, by file descriptor.
    heads: HashMap<usize, Vec<u8>>,
    replies: Replies,
    /// With `--broadcast`, how many of them each connection is to get at the end of the turn.
    to_all: Option<usize>,
    buffer: Vec<u8>,
}

struct Replies {
    /// Length of a request and of a reply.
    request_len: usize,
    reply_len: usize,
    /// Replies end to end, at least as many as one read can ask for.
    bytes: Vec<u8>,
}

struct Conn {
    stream: Stream,
    upgraded: bool,
    /// Bytes of a request that is not complete; `< request_len`.
    partial: usize,
    /// Bytes of replies that the kernel has not taken yet.
    owed: usize,
    /// Where in a reply they begin; `< reply_len`.
    position: usize,
}

impl Replies {
    fn new(opcode: Opcode, size: usize) -> Self {
        let payload = frame::payload(size);
        let request_len = frame::client_frame(opcode, &payload).len();
        let reply = frame::server_frame(opcode, &payload);
        Self {
            request_len,
            reply_len: reply.len(),
            bytes: reply.repeat(BUFFER / request_len + 1),
        }
    }
}

impl Limit {
    fn new(
        listener: OwnedFd,
        addr: Addr,
        security: Security,
        replies: Replies,
        broadcast: bool,
    ) -> Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER)?;
        let buffer = vec![0; BUFFER];
        Ok(Self {
            listener,
            addr,
            security,
            poller,
            conns: Vec::new(),
            heads: HashMap::new(),
            replies,
            to_all: broadcast.then_some(0),
            buffer,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::new();
        loop {
            for (token, flags) in self.poller.wait(&mut events, None)? {
                if token == LISTENER {
                    self.accept()?;
                } else if self.serve(token, flags).is_err() {
                    self.conns[token] = None;
                    self.heads.remove(&token);
                }
            }
            self.send_to_all();
        }
    }

    /// One write for each connection, of all that came in this turn.
    fn send_to_all(&mut self) {
        let Some(count @ 1..) = self.to_all else {
            return;
        };
        self.to_all = Some(0);
        for conn in self.conns.iter_mut() {
            let Some(open) = conn.as_mut().filter(|conn| conn.upgraded) else {
                continue;
            };
            open.owed += count * self.replies.reply_len;
            if open.flush(&self.replies).is_err() {
                *conn = None;
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        while let Some(socket) = net::accept(&self.listener, &self.addr)? {
            let token = socket.as_raw_fd() as usize;
            self.poller.add(&socket, token)?;
            if self.conns.len() <= token {
                self.conns.resize_with(token + 1, || None);
            }
            self.conns[token] = Some(Conn {
                stream: self.security.begin(socket)?,
                upgraded: false,
                partial: 0,
                owed: 0,
                position: 0,
            });
        }
        Ok(())
    }

    /// An error means that the connection is over, for whatever reason.
    fn serve(&mut self, token: usize, flags: EventFlags) -> Result<()> {
        let Some(conn) = &mut self.conns[token] else {
            return Ok(());
        };
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let readable = ended || flags.contains(EventFlags::IN);
        if readable {
            conn.stream.socket_readable(ended);
        }
        if !conn.stream.handshake()? {
            return Ok(());
        }
        conn.flush(&self.replies)?;
        if !readable {
            return Ok(());
        }
        loop {
            let count = match conn.stream.recv(&mut self.buffer) {
                Ok(0) => return Err(Error::other("closed")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if conn.upgraded {
                conn.answer(count, &self.replies, &mut self.to_all)?;
            } else {
                let head = self.heads.entry(token).or_default();
                head.extend_from_slice(&self.buffer[..count]);
                conn.upgrade(head, &self.replies, &mut self.to_all)?;
                if conn.upgraded {
                    self.heads.remove(&token);
                }
            }
            if conn.stream.is_drained(count, self.buffer.len(), ended) {
                return Ok(());
            }
        }
    }
}

impl Conn {
    fn upgrade(
        &mut self,
        head: &[u8],
        replies: &Replies,
        to_all: &mut Option<usize>,
    ) -> Result<()> {
        if let Some((length, response)) = handshake::respond(head)? {
            self.stream.send(&response)?;
            self.upgraded = true;
            self.answer(head.len() - length, replies, to_all)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        received: usize,
        replies: &Replies,
        to_all: &mut Option<usize>,
    ) -> Result<()> {
        let bytes = self.partial + received;
        self.partial = bytes % replies.request_len;
        let messages = bytes / replies.request_len;
        if let Some(count) = to_all {
            *count += messages;
            return Ok(());
        }
        self.owed += messages * replies.reply_len;
        self.flush(replies)
    }

    fn flush(&mut self, replies: &Replies) -> Result<()> {
        self.stream.flush()?;
        while self.owed > 0 {
            let end = replies.bytes.len().min(self.position + self.owed);
            match self.stream.send(&replies.bytes[self.position..end]) {
                Ok(sent) => {
                    self.owed -= sent;
                    self.position = (self.position + sent) % replies.reply_len;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
