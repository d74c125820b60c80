//! With peers that others wrote: Python's `websockets`, Node's `ws`, and a page in Chromium; and the
//! client with the servers of the first two.
//!
//! The peers are the scripts in `tests/interop`, and `tests/interop/setup.sh` gets them what they
//! need. A peer that can't run here is skipped, with a word about it, unless `FRAMEMILL_INTEROP` is
//! `required`.

mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
#[cfg(feature = "deflate")]
use framemill::Deflate;
#[cfg(feature = "tls")]
use framemill::Tls;
use framemill::{
    Accept, Client, ClientHandle, ClientHandler, Clients, CloseCause, CloseCode, CloseReason,
    Error, Handler, HeaderMap, HeaderValue, Initiator, Message, Origin, Peer, Request, Response,
    Server, header,
};
use support::needs::skipped;
use support::{Running, WAIT, serve, until};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
/// What `setup.sh` made.
const MADE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../interop");

/// The scripts end by themselves after so long; the tests wait somewhat longer.
const SCRIPT: Duration = Duration::from_secs(100);

// ---- how servers and peers talk ----

/// A way to set up server and peer. The same checks run for each, and what else it makes possible.
struct Variant {
    name: &'static str,
    /// `s` for TLS.
    secure: &'static str,
    settings: fn(Server) -> Server,
    /// What the scripts are told.
    args: &'static [&'static str],
    /// There is compression to be checked.
    deflate: bool,
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "plain",
        secure: "",
        settings: |server| server,
        args: &[],
        deflate: false,
    },
    #[cfg(feature = "deflate")]
    Variant {
        name: "deflate",
        secure: "",
        settings: |server| server.deflate(Deflate::new()),
        args: &["--deflate"],
        deflate: true,
    },
    // Windows are kept, and every message is compressed.
    #[cfg(feature = "deflate")]
    Variant {
        name: "takeover",
        secure: "",
        settings: |server| server.deflate(Deflate::new().context_takeover(true, true).threshold(0)),
        args: &["--deflate"],
        deflate: true,
    },
    #[cfg(feature = "tls")]
    Variant {
        name: "tls",
        secure: "s",
        settings: |server| server.tls(Tls::from_pem_files(EC, EC_KEY).unwrap()),
        args: &["--ca", EC],
        deflate: false,
    },
];

#[cfg(feature = "tls")]
const EC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certs/ec.pem");
#[cfg(feature = "tls")]
const EC_KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certs/ec.key");

/// On the loop, and on workers.
const WORKERS: [usize; 2] = [0, 2];

// ---- the server ----

/// What the scripts call `--can`: see `peer.py`.
const CAN: &str = "close,drain,ping,subprotocol";

const SUBPROTOCOL: &str = "framemill.test";

/// Echoes, does what it is told by texts that begin with `!`, and serves the page.
struct Echo;

impl Handler for Echo {
    type Session = ();

    fn open(&self, request: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        let accept = Accept::new(());
        Ok(
            match request.subprotocols().any(|name| name == SUBPROTOCOL) {
                true => accept.subprotocol(SUBPROTOCOL),
                false => accept,
            },
        )
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let text = message.to_text().unwrap_or_default();
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        match command {
            "!close" => {
                let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                let code: u16 = code.parse().unwrap();
                assert!(peer.close(CloseCode::from(code), reason));
            }
            "!ping" => drop(peer.send(Message::Ping(rest.to_owned().into()))),
            "!latency" => drop(peer.send(match peer.latency() {
                Some(latency) => format!("latency {latency:?}"),
                None => "latency none".into(),
            })),
            _ => drop(peer.send(message)),
        }
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/page.html" => Response::html(include_str!("interop/page.html")),
            "/checks.js" => Response::ok()
                .header(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/javascript"),
                )
                .body(include_str!("interop/checks.js")),
            _ => Response::not_found(),
        }
    }
}

/// Pings soon, so that there is a pong for the scripts to ask about.
fn server(variant: &Variant, workers: usize, origin: Origin) -> Running {
    let settings = |server: Server| {
        let server = server.workers(workers).origin(origin);
        (variant.settings)(server.ping(Duration::from_millis(200), WAIT))
    };
    serve(settings, Echo)
}

// ---- the peers ----

type Tools = HashMap<String, PathBuf>;

/// A peer.
struct Script {
    name: &'static str,
    /// Tools that it can't run without.
    needs: &'static [&'static str],
    command: fn(&Tools) -> Command,
    /// What it can check beyond [`CHECKS`].
    checks: &'static [&'static str],
    /// What it can check of compression.
    deflate: &'static [&'static str],
}

/// What the scripts offer of permessage-deflate, where a page has no say. (Windows of all sizes, too:
/// here are the first and the last of their kinds.)
const OFFERS: &[&str] = &[
    "deflate-plain-offer",
    "deflate-default-offer",
    "deflate-server-no-context-takeover",
    "deflate-client-no-context-takeover",
    "deflate-no-context-takeover",
    "deflate-server-window-9",
    "deflate-client-window-9",
    "deflate-both-windows-9",
    "deflate-both-windows-15",
    "deflate-not-offered",
];

/// What every script has to check. (They say how many failed; that none was left out is seen here.)
const CHECKS: &[&str] = &[
    "text",
    "binary",
    "empty",
    "unicode",
    "large",
    "too-big",
    "close",
    "server-close",
    "server-gets-pong",
    "subprotocol",
    "in-flight",
    "connections",
];

const PYTHON: Script = Script {
    name: "python",
    needs: &["python"],
    command: |tools| {
        let mut command = Command::new(&tools["python"]);
        command.args(["peer.py", "client"]);
        command
    },
    checks: &["fragments", "invalid-text", "ping", "server-ping", "drain"],
    deflate: OFFERS,
};

const NODE: Script = Script {
    name: "node",
    needs: &["node", "node_modules"],
    command: |tools| {
        let mut command = Command::new(&tools["node"]);
        command.args(["peer.js", "client"]);
        command.env("NODE_PATH", &tools["node_modules"]);
        command
    },
    checks: &[
        "fragments",
        "invalid-text",
        "ping",
        "server-ping",
        "drain",
        "close-without-code",
        "close-codes",
    ],
    deflate: OFFERS,
};

const BROWSER: Script = Script {
    name: "browser",
    needs: &["python", "chromium"],
    command: |tools| {
        let mut command = Command::new(&tools["python"]);
        command.args(["browser.py", "--chromium"]);
        command.arg(&tools["chromium"]);
        command
    },
    checks: &["close-without-code", "origin-refused", "navigation"],
    deflate: &["deflate"],
};

impl Script {
    /// What `setup.sh` found, by name; or `None`, with a word that so many runs are skipped.
    fn tools(&self, runs: usize) -> Option<Tools> {
        let list = fs::read_to_string(Path::new(MADE).join("tools")).unwrap_or_default();
        let pairs = list.lines().filter_map(|line| line.split_once(' '));
        let tools: Tools = pairs
            .map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
            .filter(|(_, path)| path.exists())
            .collect();
        let Some(missing) = self.needs.iter().find(|name| !tools.contains_key(**name)) else {
            return Some(tools);
        };
        skipped(format_args!(
            "{}, {runs} of its runs: no {missing}, see tests/interop/setup.sh",
            self.name
        ));
        None
    }

    /// The script, to be held against `server`.
    fn against(&self, tools: &Tools, variant: &Variant, server: &Running) -> Command {
        let mut command = (self.command)(tools);
        command
            .current_dir(SCRIPTS)
            // The scripts' folder is not for caches.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["--seconds", &SCRIPT.as_secs().to_string()])
            .args(variant.args)
            .arg(format!("ws{}://{}/", variant.secure, server.addr));
        command
    }
}

/// Runs a script to its end: its status, and everything that it said.
fn run(mut command: Command, name: &str) -> (ExitStatus, String) {
    let log = Path::new(MADE).join(format!("{name}.out"));
    let out = File::create(&log).unwrap();
    let err = out.try_clone().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + SCRIPT + WAIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{name}: no end: {}", fs::read_to_string(&log).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (status, fs::read_to_string(&log).unwrap())
}

/// The script is content: with everything, and that is no less than these.
fn assert_passes(command: Command, name: &str, checks: &[&str]) {
    let (status, output) = run(command, name);
    assert!(status.success(), "{name}: {status}\n{output}");
    for check in checks {
        let passed = output.lines().any(|line| line == format!("ok {check}"));
        assert!(passed, "{name}: {check} did not run\n{output}");
    }
}

/// All checks of a script pass against every variant, on the loop and on workers. `more` adds
/// arguments.
fn all_pass(script: &Script, more: impl Fn(&mut Command, &Variant, &Running)) {
    let Some(tools) = script.tools(VARIANTS.len() * WORKERS.len()) else {
        return;
    };
    for variant in VARIANTS {
        for workers in WORKERS {
            let server = server(variant, workers, Origin::SameHost);
            let mut command = script.against(&tools, variant, &server);
            command.args(["--can", CAN]);
            more(&mut command, variant, &server);
            let name = format!("{}-{}-workers-{workers}", script.name, variant.name);
            let deflate = if variant.deflate { script.deflate } else { &[] };
            let checks = [CHECKS, script.checks, deflate].concat();
            assert_passes(command, &name, &checks);
        }
    }
}

#[test]
fn python() {
    all_pass(&PYTHON, |_, _, _| {});
}

#[test]
fn node() {
    all_pass(&NODE, |_, _, _| {});
}

/// The page comes from the server itself, which lets no others in.
#[test]
fn browser() {
    let other = server(&VARIANTS[0], 0, Origin::SameHost);
    all_pass(&BROWSER, |command, variant, server| {
        let page = format!("http{}://{}/page.html", variant.secure, server.addr);
        let refusing = format!("ws://{}/", other.addr);
        command.args(["--page", &page, "--refusing", &refusing]);
    });
}

/// The page comes from another server, which the list names.
#[test]
fn a_page_of_a_listed_origin() {
    let Some(tools) = BROWSER.tools(1) else {
        return;
    };
    let variant = &VARIANTS[0];
    let pages = server(variant, 0, Origin::SameHost);
    let origin = format!("http://{}", pages.addr);
    let listing = server(variant, 0, Origin::List(vec![origin.clone()]));
    let unlisting = server(variant, 0, Origin::List(vec!["http://127.0.0.1".into()]));
    let mut command = BROWSER.against(&tools, variant, &listing);
    command
        .args(["--can", CAN])
        .args(["--page", &format!("{origin}/page.html")])
        .args(["--refusing", &format!("ws://{}/", unlisting.addr)]);
    assert_passes(command, "browser-listed", &["text", "origin-refused"]);
}

/// The scripts do see what is wrong.
#[test]
fn wrong_answers_are_noticed() {
    for script in [&PYTHON, &NODE, &BROWSER] {
        let Some(tools) = script.tools(1) else {
            continue;
        };
        let wrong = |peer: &Peer, message: Message| peer.send(format!("{message}?"));
        let server = serve(|server| server.workers(0), wrong);
        let command = script.against(&tools, &VARIANTS[0], &server);
        let (status, output) = run(command, &format!("{}-wrong", script.name));
        let failures = output.lines().filter(|line| line.starts_with("FAILED "));
        let failures: Vec<_> = failures.collect();
        assert_eq!(status.code(), Some(failures.len() as i32), "{output}");
        for check in ["text", "binary", "empty", "in-flight"] {
            let failed = format!("FAILED {check}: ");
            let noticed = failures.iter().any(|line| line.starts_with(&failed));
            assert!(noticed, "{}: {output}", script.name);
        }
    }
}

// ---- framemill's client with their servers ----

/// The scripts as servers.
const SERVERS: [Script; 2] = [
    Script {
        name: "python-server",
        needs: &["python", "tls"],
        command: |tools| {
            let mut command = Command::new(&tools["python"]);
            command.args(["peer.py", "server"]);
            command
        },
        checks: &[],
        deflate: &[],
    },
    Script {
        name: "node-server",
        needs: &["node", "node_modules", "tls"],
        command: |tools| {
            let mut command = Command::new(&tools["node"]);
            command.args(["peer.js", "server"]);
            command.env("NODE_PATH", &tools["node_modules"]);
            command
        },
        checks: &[],
        deflate: &[],
    },
];

/// A way to set up server and client.
struct Way {
    name: &'static str,
    secure: bool,
    /// What the scripts are told.
    args: &'static [&'static str],
    settings: fn(Client) -> Client,
    /// What the answer says of extensions.
    agreed: &'static [&'static str],
}

fn as_it_is(client: Client) -> Client {
    client
}

const WAYS: &[Way] = &[
    Way {
        name: "plain",
        secure: false,
        args: &[],
        settings: as_it_is,
        agreed: &[],
    },
    #[cfg(feature = "tls")]
    Way {
        name: "tls",
        secure: true,
        args: &[],
        settings: as_it_is,
        agreed: &[],
    },
    #[cfg(feature = "deflate")]
    Way {
        name: "deflate",
        secure: false,
        args: &["--deflate"],
        settings: |client| client.deflate(framemill::Deflate::new()),
        agreed: &[
            "permessage-deflate",
            "server_no_context_takeover",
            "client_no_context_takeover",
        ],
    },
    #[cfg(feature = "deflate")]
    Way {
        name: "takeover",
        secure: cfg!(feature = "tls"),
        args: &["--deflate"],
        settings: |client| {
            client.deflate(
                framemill::Deflate::new()
                    .context_takeover(true, true)
                    .threshold(0),
            )
        },
        agreed: &["permessage-deflate"],
    },
    #[cfg(feature = "deflate")]
    Way {
        name: "window",
        secure: false,
        args: &["--deflate", "--window-bits", "10"],
        settings: |client| client.deflate(framemill::Deflate::new().context_takeover(true, true)),
        agreed: &[
            "permessage-deflate",
            "server_max_window_bits=10",
            "client_max_window_bits=10",
        ],
    },
    #[cfg(feature = "deflate")]
    Way {
        name: "no-takeover",
        secure: false,
        args: &["--deflate", "--no-context-takeover"],
        settings: |client| client.deflate(framemill::Deflate::new().context_takeover(true, true)),
        agreed: &[
            "permessage-deflate",
            "server_no_context_takeover",
            "client_no_context_takeover",
        ],
    },
    // It does not want to.
    #[cfg(feature = "deflate")]
    Way {
        name: "not-agreed",
        secure: false,
        args: &[],
        settings: |client| client.deflate(framemill::Deflate::new()),
        agreed: &[],
    },
];

/// A script that serves until it is dropped.
struct Serving {
    child: Child,
    url: String,
    tls: PathBuf,
    way: &'static Way,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serving {
    fn start(script: &Script, tools: &Tools, way: &'static Way) -> Self {
        let tls = tools["tls"].clone();
        let mut command = (script.command)(tools);
        command
            .current_dir(SCRIPTS)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(way.args);
        if way.secure {
            command.arg("--tls-cert").arg(tls.join("cert.pem"));
            command.arg("--tls-key").arg(tls.join("key.pem"));
        }
        let log = Path::new(MADE).join(format!("{}-{}.err", script.name, way.name));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log).unwrap())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = unbounded();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = lines.recv_timeout(WAIT).expect("it says where it listens");
        let addr = line.strip_prefix("listening on ").unwrap();
        let scheme = if way.secure { "wss" } else { "ws" };
        Self {
            url: format!("{scheme}://{addr}/"),
            child,
            tls,
            way,
        }
    }

    fn client(&self) -> Client {
        let client = (self.way.settings)(Client::new(&self.url).unwrap()).outbound_limit(64 << 20);
        #[cfg(feature = "tls")]
        if self.way.secure {
            let authority = fs::read(self.tls.join("ca.pem")).unwrap();
            return client.trust(framemill::Trust::only(&authority).unwrap());
        }
        let _ = &self.tls;
        client
    }
}

/// What a [`Link`] is told.
enum Told {
    Open(HeaderMap),
    Message(Message),
    Close(CloseReason),
    Error(String),
}

struct Tell(Sender<Told>);

impl ClientHandler for Tell {
    fn open(&mut self, _: &Peer, headers: &HeaderMap) {
        let _ = self.0.send(Told::Open(headers.clone()));
    }

    fn message(&mut self, _: &Peer, message: Message) {
        let _ = self.0.send(Told::Message(message));
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        let _ = self.0.send(Told::Close(reason.clone()));
    }

    fn error(&mut self, error: &Error) {
        let _ = self.0.send(Told::Error(error.to_string()));
    }
}

/// An open connection to a script.
struct Link {
    handle: ClientHandle,
    told: Receiver<Told>,
    headers: HeaderMap,
}

impl Link {
    fn open(clients: &Clients, client: Client) -> Self {
        let (sender, told) = unbounded();
        let handle = clients.open(client, Tell(sender)).unwrap();
        match told.recv_timeout(WAIT).expect("it opens") {
            Told::Open(headers) => Self {
                handle,
                told,
                headers,
            },
            Told::Error(why) => panic!("{why}"),
            _ => panic!("something before it is open"),
        }
    }

    fn message(&self) -> Message {
        match self.told.recv_timeout(WAIT).expect("a message") {
            Told::Message(message) => message,
            Told::Close(reason) => panic!("{reason}"),
            _ => panic!("no message"),
        }
    }

    fn echo(&self, message: impl Into<Message>) {
        let message = message.into();
        self.handle.send(message.clone()).unwrap();
        assert!(self.message() == message, "{} bytes", message.len());
    }

    /// The end, which must come next.
    fn end(&self) -> CloseReason {
        match self.told.recv_timeout(WAIT).expect("the end") {
            Told::Close(reason) => reason,
            Told::Message(message) => panic!("{message:.60}"),
            _ => panic!("not the end"),
        }
    }

    fn close(&self) {
        assert!(self.handle.close(CloseCode::Normal, ""));
        let reason = self.end();
        assert!(
            reason.is_clean() && reason.code() == CloseCode::Normal,
            "{reason}"
        );
    }
}

/// Bytes that don't compress.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9E37_79B9u32;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn check_messages(link: &Link) {
    for len in [0, 5, 125, 126, 65_535, 65_536] {
        link.echo("x".repeat(len));
        link.echo(noise(len));
    }
    link.echo("κόσμε \0 \u{10FFFF}".to_owned() + &"🦀".repeat(5000));
    let long: String = (0..12_000).map(|n| format!("{} ", n * n % 1013)).collect();
    link.echo(long.clone());
    // In a context they are compressed all the same, and grow; servers hold that against the limit.
    link.echo(noise(900_000));
    link.echo(long);
    link.handle.send("!fragments one two three").unwrap();
    assert_eq!(link.message(), Message::text("one two three"));
    // Many at once, in order.
    let nth = |n: usize| format!("{n} {}", ".".repeat(n * 37 % 2000));
    for n in 0..2000 {
        link.handle.send(nth(n)).unwrap();
    }
    for n in 0..2000 {
        assert_eq!(link.message(), Message::text(nth(n)));
    }
}

fn check_pings(clients: &Clients, server: &Serving) {
    let often = server.client().ping(Duration::from_millis(20), WAIT);
    let link = Link::open(clients, often);
    let peer = link.handle.peer().unwrap();
    until("it has answered a ping", || peer.latency().is_some());
    for payload in ["", "payload"] {
        link.handle.send(Message::Ping(payload.into())).unwrap();
    }
    // Told once our pong is there.
    link.handle.send("!latency").unwrap();
    let latency = link.message();
    assert!(
        latency.to_text().unwrap().starts_with("latency "),
        "{latency}"
    );
    link.handle.send("!ping are you there").unwrap();
    link.echo("after pings");
    link.close();
}

fn check_closing(clients: &Clients, server: &Serving) {
    let longest = "ü".repeat(61) + ".";
    for (code, text) in [
        (1000, ""),
        (1001, "gone fishing"),
        (3000, ""),
        (4999, &*longest),
    ] {
        let link = Link::open(clients, server.client());
        assert!(link.handle.close(code.into(), text));
        let reason = link.end();
        assert_eq!((u16::from(reason.code()), reason.text()), (code, text));
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(reason.is_clean());

        let link = Link::open(clients, server.client());
        link.handle.send(format!("!close {code} {text}")).unwrap();
        let reason = link.end();
        assert_eq!((u16::from(reason.code()), reason.text()), (code, text));
        assert_eq!(reason.initiator(), Initiator::Peer);
        assert!(reason.is_clean());
    }
    // Too big for the server, and for us.
    let link = Link::open(clients, server.client());
    link.handle.send(vec![0; (1 << 20) + 1]).unwrap();
    let reason = link.end();
    let by = reason.initiator();
    let told = (reason.code(), by) == (CloseCode::Size, Initiator::Peer);
    // A server that speaks TLS can't end its own half only; what it says may be overtaken by the reset of
    // what it did not read.
    let reset = server.way.secure && reason.cause() == CloseCause::Transport;
    assert!(told || reset, "{}: {reason}", server.way.name);
    let link = Link::open(clients, server.client().max_message(1000));
    link.echo("x".repeat(1000));
    link.handle.send("x".repeat(1001)).unwrap();
    let reason = link.end();
    assert_eq!(reason.cause(), CloseCause::TooBig);
    assert_eq!(reason.code(), CloseCode::Size);
}

fn check_subprotocols(clients: &Clients, server: &Serving) {
    let chosen = |offered: &[&str]| {
        let client = offered
            .iter()
            .fold(server.client(), |c, name| c.subprotocol(*name));
        let link = Link::open(clients, client);
        let peer = link.handle.peer().unwrap();
        link.echo("with or without");
        link.close();
        peer.subprotocol().map(str::to_owned)
    };
    assert_eq!(chosen(&[]), None);
    assert_eq!(
        chosen(&["other", SUBPROTOCOL, "another"]).as_deref(),
        Some(SUBPROTOCOL)
    );
}

fn check_many(clients: &Clients, server: &Serving) {
    let links: Vec<_> = (0..50)
        .map(|_| Link::open(clients, server.client()))
        .collect();
    for round in 0..5 {
        for (n, link) in links.iter().enumerate() {
            link.handle.send(format!("{n}: {round}")).unwrap();
        }
        for (n, link) in links.iter().enumerate() {
            assert_eq!(link.message(), Message::text(format!("{n}: {round}")));
        }
    }
    links.iter().for_each(Link::close);
}

/// Every way, on the loop and on workers.
fn client_passes(script: &Script) {
    let Some(tools) = script.tools(WAYS.len() * WORKERS.len()) else {
        return;
    };
    for way in WAYS {
        let server = Serving::start(script, &tools, way);
        for workers in WORKERS {
            let clients = Clients::start(1, workers).unwrap();
            let link = Link::open(&clients, server.client());
            let agreed = link.headers.get(header::SEC_WEBSOCKET_EXTENSIONS);
            let agreed = agreed.map_or("", |value| value.to_str().unwrap());
            let mut agreed: Vec<_> = agreed.split("; ").filter(|part| !part.is_empty()).collect();
            let mut wanted = way.agreed.to_vec();
            agreed.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(agreed, wanted, "{} {}", script.name, way.name);
            check_messages(&link);
            link.close();
            check_pings(&clients, &server);
            check_closing(&clients, &server);
            check_subprotocols(&clients, &server);
            check_many(&clients, &server);
            assert!(clients.shutdown(WAIT));
        }
    }
}

#[test]
fn client_with_python() {
    client_passes(&SERVERS[0]);
}

#[test]
fn client_with_node() {
    client_passes(&SERVERS[1]);
}
