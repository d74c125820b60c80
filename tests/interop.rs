//! With peers that others wrote: Python's `websockets`, Node's `ws`, and a page in Chromium.
//!
//! The peers are the scripts in `tests/interop`, and `tests/interop/setup.sh` gets them what they
//! need. A peer that can't run here is skipped, with a word about it, unless `FRAMEMILL_INTEROP` is
//! `required`.

mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

#[cfg(feature = "deflate")]
use framemill::Deflate;
use framemill::{
    Accept, CloseCode, Handler, HeaderValue, Message, Origin, Peer, Request, Response, Server,
    header,
};
use support::{Running, WAIT, serve};

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
];

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
        let required = std::env::var("FRAMEMILL_INTEROP").is_ok_and(|v| v == "required");
        assert!(!required, "{missing} is missing");
        // Not by `eprintln!`, which nobody sees of a test that passes.
        let _ = writeln!(
            std::io::stderr(),
            "interop: skipped: {}, {runs} of its runs: no {missing}, see tests/interop/setup.sh",
            self.name
        );
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
