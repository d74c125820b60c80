//! The server with every knob, for benchmarks and conformance checks.
//!
//! `bench_server echo --addr 127.0.0.1:9001 --workers 0` sends every message back to its sender,
//! `broadcast` and `publish` to every connection, the sender included (`publish` by way of a topic; with
//! `--topics N`, to one of many topics in turn), and `sink` to nobody. Prints one line, `listening on
//! ADDR`, when it is ready; ends on SIGINT or SIGTERM with a close frame (1001) to everybody.
#![allow(clippy::print_stdout)]

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use framemill::{Accept, Handler, Message, Origin, Peer, Request, Response, Server, ServerHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

const USAGE: &str = "\
usage: bench_server <echo|broadcast|publish|sink> [OPTIONS]

  echo       every message back to its sender
  broadcast  every message to every connection, its sender included
  publish    every message to the next topic in turn, its sender included
  sink       every message to nobody

  --addr HOST:PORT|unix:PATH   where to listen [127.0.0.1:9001]
  --loops N                    event-loop threads [1]
  --workers N                  worker threads; 0 runs the handler on the loops [one per core]
  --max-message BYTES          longest message [1048576]
  --handshake-timeout SECS     for the opening handshake [10]
  --topics N                   for publish: the m-th message goes to topic m modulo N [1]
  --subscriptions S            for publish: a connection has S topics, the n-th those that are n modulo N/S [1]
  --queue-limit BYTES          what may wait to be written to one peer [1048576]
  --ping SECS                  silence before a ping, 0 for no pings [25]
  --deflate                    permessage-deflate, each message for itself
  --deflate-level N            its effort, 1 (fastest) to 9 (smallest) [the library's]
  --context-takeover           the same, and windows are kept where the client agrees
  --tls-cert FILE --tls-key FILE   TLS, with these PEM files (feature `tls`)
  --tls-p12 FILE               TLS, with this PKCS#12 file [password: --tls-password, or empty]
";

#[derive(Clone, Copy)]
enum Mode {
    Echo,
    Broadcast,
    Publish,
    Sink,
}

impl Mode {
    fn parse(word: Option<&str>) -> Result<Self, String> {
        match word {
            Some("echo") => Ok(Self::Echo),
            Some("broadcast") => Ok(Self::Broadcast),
            Some("publish") => Ok(Self::Publish),
            Some("sink") => Ok(Self::Sink),
            _ => Err("the first argument is echo, broadcast, publish or sink".into()),
        }
    }
}

/// By hand, so that what is measured is the library and not an argument parser.
struct Args {
    mode: Mode,
    addr: String,
    loops: usize,
    workers: Option<usize>,
    topics: usize,
    subscriptions: usize,
    max_message: usize,
    handshake_timeout: f64,
    queue_limit: usize,
    ping: f64,
    deflate: bool,
    context_takeover: bool,
    deflate_level: Option<u32>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    tls_p12: Option<String>,
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nobody asks"))]
    tls_password: String,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let mut args = Self {
            mode: Mode::parse(words.next().as_deref())?,
            addr: "127.0.0.1:9001".into(),
            loops: 1,
            workers: None,
            topics: 1,
            subscriptions: 1,
            max_message: 1 << 20,
            handshake_timeout: 10.0,
            queue_limit: 1 << 20,
            ping: 25.0,
            deflate: false,
            context_takeover: false,
            deflate_level: None,
            tls_cert: None,
            tls_key: None,
            tls_p12: None,
            tls_password: String::new(),
        };
        while let Some(name) = words.next() {
            match name.as_str() {
                "--deflate" => args.deflate = true,
                "--context-takeover" => (args.deflate, args.context_takeover) = (true, true),
                _ => args.valued(name, &mut words)?,
            }
        }
        Ok(args)
    }

    fn valued(
        &mut self,
        name: String,
        words: &mut impl Iterator<Item = String>,
    ) -> Result<(), String> {
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (name, words.next()),
        };
        let value = || value.ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--addr" => self.addr = value()?,
            "--loops" => self.loops = number(&name, &value()?)?,
            "--workers" => self.workers = Some(number(&name, &value()?)?),
            "--topics" => self.topics = number::<usize>(&name, &value()?)?.max(1),
            "--subscriptions" => self.subscriptions = number::<usize>(&name, &value()?)?.max(1),
            "--max-message" => self.max_message = number(&name, &value()?)?,
            "--handshake-timeout" => self.handshake_timeout = seconds(&name, &value()?)?,
            "--queue-limit" => self.queue_limit = number(&name, &value()?)?,
            "--ping" => self.ping = seconds(&name, &value()?)?,
            "--deflate-level" => self.deflate_level = Some(number(&name, &value()?)?),
            "--tls-cert" => self.tls_cert = Some(value()?),
            "--tls-key" => self.tls_key = Some(value()?),
            "--tls-p12" => self.tls_p12 = Some(value()?),
            "--tls-password" => self.tls_password = value()?,
            _ => return Err(format!("{name} is not an option")),
        }
        Ok(())
    }

    /// Compression as asked for.
    #[cfg(feature = "deflate")]
    fn deflate(&self, server: Server) -> framemill::Result<Server> {
        let takeover = self.context_takeover;
        let mut deflate = framemill::Deflate::new().context_takeover(takeover, takeover);
        if let Some(level) = self.deflate_level {
            deflate = deflate.level(level);
        }
        Ok(if self.deflate {
            server.deflate(deflate)
        } else {
            server
        })
    }

    #[cfg(not(feature = "deflate"))]
    fn deflate(&self, server: Server) -> framemill::Result<Server> {
        match self.deflate {
            true => Err(framemill::Error::Config(
                "built without the feature `deflate`".into(),
            )),
            false => Ok(server),
        }
    }
}

impl Args {
    /// TLS as asked for.
    #[cfg(feature = "tls")]
    fn tls(&self, server: Server) -> framemill::Result<Server> {
        use framemill::Tls;
        Ok(match (&self.tls_cert, &self.tls_key, &self.tls_p12) {
            (Some(cert), Some(key), None) => server.tls(Tls::from_pem_files(cert, key)?),
            (None, None, Some(p12)) => server.tls(Tls::from_pkcs12_file(p12, &self.tls_password)?),
            (None, None, None) => server,
            _ => {
                let wrong = "--tls-cert and --tls-key, or --tls-p12";
                return Err(framemill::Error::Config(wrong.into()));
            }
        })
    }

    #[cfg(not(feature = "tls"))]
    fn tls(&self, server: Server) -> framemill::Result<Server> {
        match (&self.tls_cert, &self.tls_key, &self.tls_p12) {
            (None, None, None) => Ok(server),
            _ => Err(framemill::Error::Config(
                "built without the feature `tls`".into(),
            )),
        }
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    let wrong = |_| format!("{name}: {value} is not a number that fits");
    value.parse().map_err(wrong)
}

fn seconds(name: &str, value: &str) -> Result<f64, String> {
    let seconds: f64 = number(name, value)?;
    let sensible = (0.0..=1e9).contains(&seconds);
    sensible
        .then_some(seconds)
        .ok_or(format!("{name}: {value} is not a number of seconds"))
}

/// One type for all modes: the library is compiled once for each handler type, and the size of this program
/// is measured.
struct Bench {
    mode: Mode,
    server: ServerHandle,
    /// For [`Mode::Publish`]: the names of the topics.
    topics: Vec<String>,
    /// So many connections after another have no topic in common.
    groups: usize,
    opened: AtomicUsize,
    published: AtomicUsize,
}

impl Bench {
    fn new(args: &Args, server: ServerHandle) -> Self {
        Self {
            mode: args.mode,
            server,
            topics: (0..args.topics).map(|n| format!("topic {n}")).collect(),
            groups: (args.topics / args.subscriptions).max(1),
            opened: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
        }
    }
}

impl Handler for Bench {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        println!("listening on {}", server.local_addrs().join(" "));
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        if let Mode::Publish = self.mode {
            let group = self.opened.fetch_add(1, Ordering::Relaxed) % self.groups;
            for topic in self.topics[group..].iter().step_by(self.groups) {
                peer.subscribe(topic);
            }
        }
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        match self.mode {
            Mode::Echo => {
                let _ = peer.send(message); // an `Err` only if the connection is over
            }
            Mode::Broadcast => {
                self.server.broadcast(message);
            }
            Mode::Publish => {
                let topic = self.published.fetch_add(1, Ordering::Relaxed) % self.topics.len();
                self.server.publish(&self.topics[topic], message);
            }
            Mode::Sink => (),
        }
    }
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = Args::parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n\n{USAGE}");
        std::process::exit(2);
    });
    let (stop, on_signal) = UnixStream::pair()?;
    pipe::register(SIGINT, on_signal.try_clone()?)?;
    pipe::register(SIGTERM, on_signal)?;

    let mut server = Server::bind(&args.addr)?
        .loops(args.loops)
        .max_message(args.max_message)
        .handshake_timeout(Duration::from_secs_f64(args.handshake_timeout))
        .outbound_limit(args.queue_limit)
        .origin(Origin::Any)
        .shutdown_on(stop, Duration::from_secs(5));
    if let Some(workers) = args.workers {
        server = server.workers(workers);
    }
    server = args.deflate(server)?;
    server = args.tls(server)?;
    server = match args.ping {
        0.0 => server.no_ping(),
        seconds => server.ping(Duration::from_secs_f64(seconds), Duration::from_secs(20)),
    };
    let bench = Bench::new(&args, server.handle());
    server.run(bench)
}
