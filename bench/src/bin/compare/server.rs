//! Which servers there are, and how each is asked to do a scenario.

use std::{
    io::{Error, Result},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    build,
    scenario::{Mode, Scenario},
};

#[derive(Clone)]
pub(crate) struct Server {
    /// As in `--servers`.
    pub(crate) name: String,
    /// As in tables and charts.
    pub(crate) label: String,
    pub(crate) program: Program,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Program {
    Limit,
    Framemill {
        workers: u32,
        /// Of compression, if not the default.
        level: Option<u32>,
    },
    Peer {
        library: &'static str,
        read_buffer: Option<&'static str>,
        /// Of tokio, if not the one that runs anyway.
        threads: Option<u32>,
        /// Not once for all that a read brought.
        flush_each: bool,
    },
    /// uWebSockets.
    Uws,
    /// The ws of Node.
    Node,
    /// An executable that `foreign/prepare.sh` has built.
    Foreign(&'static str),
    /// Of `--also`.
    Other(String),
}

impl Program {
    /// Why it can't be run, if it can't: what it needs besides Rust isn't there.
    pub(crate) fn missing(&self) -> Option<String> {
        let absent =
            |path: &Path| (!path.exists()).then(|| format!("there is no {}", path.display()));
        let prepare = |why: String| format!("{why}; bench/foreign/prepare.sh gets it");
        match self {
            Self::Uws => absent(&uws_library()).map(prepare),
            Self::Node => {
                let node = Command::new("node").arg("--version").output();
                match node.is_ok_and(|output| output.status.success()) {
                    true => absent(&foreign().join("node_modules/ws")).map(prepare),
                    false => Some("there is no node to run".to_owned()),
                }
            }
            Self::Foreign(name) => absent(&built(name)).map(prepare),
            _ => None,
        }
    }
}

/// What `prepare.sh` compiles.
pub(crate) fn built(name: &str) -> PathBuf {
    foreign().join("build").join(name)
}

fn foreign() -> PathBuf {
    build::bench().join("foreign")
}

fn uws_library() -> PathBuf {
    foreign().join("libsocketify_linux_amd64.so")
}

fn all() -> Vec<Server> {
    let server = |name: &str, label: &str, program| Server {
        name: name.to_owned(),
        label: label.to_owned(),
        program,
    };
    let framemill = |workers, level| Program::Framemill { workers, level };
    let peer = |library, read_buffer| Program::Peer {
        library,
        read_buffer,
        threads: None,
        flush_each: false,
    };
    let tungstenite = "tokio-tungstenite";
    vec![
        server("limit", "limit", Program::Limit),
        server("framemill-0", "framemill workers(0)", framemill(0, None)),
        server("framemill-1", "framemill 1 worker", framemill(1, None)),
        // With the effort of the others.
        server(
            "framemill-0-level-6",
            "framemill w(0), level 6",
            framemill(0, Some(6)),
        ),
        // With the read buffer that is its default, and the one it recommends for many connections.
        server(tungstenite, tungstenite, peer(tungstenite, None)),
        server(
            "tokio-tungstenite-4k",
            "tokio-tungstenite 4 KiB",
            peer(tungstenite, Some("4096")),
        ),
        server(
            "tokio-tungstenite-2-threads",
            "tokio-tungstenite, 2 threads",
            Program::Peer {
                library: tungstenite,
                read_buffer: Some("4096"),
                threads: Some(2),
                flush_each: false,
            },
        ),
        // As most programs are written.
        server(
            "tokio-tungstenite-send-each",
            "tokio-tungstenite, `send` each",
            Program::Peer {
                library: tungstenite,
                read_buffer: Some("4096"),
                threads: None,
                flush_each: true,
            },
        ),
        server(
            "fastwebsockets",
            "fastwebsockets",
            peer("fastwebsockets", None),
        ),
        server(
            "tokio-websockets",
            "tokio-websockets",
            peer("tokio-websockets", None),
        ),
        server(
            "tungstenite",
            "tungstenite, threads",
            peer("tungstenite", None),
        ),
        server("uws", "uWebSockets", Program::Uws),
        server("node-ws", "Node ws", Program::Node),
        server("gorilla", "gorilla/websocket", Program::Foreign("gorilla")),
        server("lws", "libwebsockets", Program::Foreign("lws")),
    ]
}

/// The servers named, in that order, or all.
pub(crate) fn choose(names: &[String], also: &[String]) -> Result<Vec<Server>> {
    let mut known = all();
    for other in also {
        let (name, program) = other
            .split_once('=')
            .ok_or_else(|| Error::other("--also takes NAME=PROGRAM"))?;
        known.push(Server {
            name: name.to_owned(),
            label: name.to_owned(),
            program: Program::Other(program.to_owned()),
        });
    }
    if names.is_empty() {
        return Ok(known);
    }
    let find = |name: &String| {
        known
            .iter()
            .find(|server| server.name == *name)
            .cloned()
            .ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|server| server.name.as_str()).collect();
                Error::other(format!("no server {name}; there are {}", names.join(", ")))
            })
    };
    names.iter().map(find).collect()
}

impl Server {
    /// Whether it can do this, and it says anything if it does.
    pub(crate) fn suits(&self, scenario: &Scenario) -> bool {
        let mode = scenario.mode;
        let alone = matches!(mode, Mode::Echo | Mode::Connect | Mode::Idle);
        match &self.program {
            // It takes all frames to be as long as it was told.
            Program::Limit => (alone || mode == Mode::Broadcast) && !scenario.deflate,
            // None of them compresses.
            Program::Peer { .. } if scenario.deflate => false,
            // Where there are several messages in a read.
            Program::Peer {
                flush_each: true, ..
            } => mode == Mode::Echo && scenario.inflight > 1 && !scenario.tls,
            // More than one is worth something where there is more than one core.
            Program::Peer {
                threads: Some(_), ..
            } => scenario.shared_cores,
            Program::Peer {
                library: "tokio-tungstenite",
                read_buffer,
                ..
            } => match mode {
                Mode::Publish | Mode::OpenLoop => read_buffer.is_some(),
                _ => true,
            },
            Program::Peer { .. } if scenario.tls => false,
            // Ten thousand threads prove nothing, and two threads cannot share one of its sockets.
            Program::Peer {
                library: "tungstenite",
                ..
            } => alone && scenario.connections < 10_000,
            Program::Peer { .. } => alone || mode == Mode::Broadcast,
            Program::Framemill { level: Some(_), .. } => scenario.deflate,
            Program::Node => alone && !scenario.tls,
            Program::Foreign(_) => alone && !scenario.tls && !scenario.deflate,
            Program::Framemill { level: None, .. } | Program::Uws | Program::Other(_) => true,
        }
    }

    pub(crate) fn arguments(&self, scenario: &Scenario) -> Vec<String> {
        let mode = match scenario.mode {
            Mode::Broadcast => "broadcast",
            Mode::Publish => "publish",
            Mode::Echo | Mode::OpenLoop | Mode::Connect | Mode::Idle => "echo",
        };
        let (topics, subscriptions) = (scenario.topics, scenario.subscriptions);
        let topics = match scenario.mode {
            Mode::Publish => format!(" --topics {topics} --subscriptions {subscriptions}"),
            _ => String::new(),
        };
        let line = match &self.program {
            Program::Limit => {
                let text = if scenario.text { " --text" } else { "" };
                let broadcast = match scenario.mode {
                    Mode::Broadcast => " --broadcast",
                    _ => "",
                };
                format!("--size {}{text}{broadcast}", scenario.size)
            }
            Program::Framemill { workers, level } => {
                let level = level.map(|level| format!(" --deflate-level {level}"));
                format!(
                    "{mode}{topics} --loops 1 --workers {workers} \
                     --max-message 33554432 --queue-limit 67108864{}",
                    level.unwrap_or_default()
                )
            }
            Program::Peer {
                library,
                read_buffer,
                threads,
                flush_each,
            } => {
                let mode = match mode {
                    "echo" => String::new(),
                    mode => format!(" --{mode}"),
                };
                let buffer = read_buffer.map(|size| format!(" --read-buffer {size}"));
                let threads = threads.map(|count| format!(" --threads {count}"));
                let flush = flush_each.then(|| " --flush-each".to_owned());
                let options = [buffer, threads, flush]
                    .map(Option::unwrap_or_default)
                    .concat();
                format!("{library}{mode}{topics}{options}")
            }
            Program::Uws | Program::Other(_) => format!("{mode}{topics}"),
            Program::Node | Program::Foreign(_) => String::new(),
        };
        let line = line + " --addr 127.0.0.1:0";
        let mut arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        // Paths may have spaces in them.
        let mut path = |name: &str, path: PathBuf| {
            arguments.extend([name.to_owned(), path.to_string_lossy().into_owned()]);
        };
        if self.program == Program::Uws {
            path("--library", uws_library());
        }
        if scenario.tls {
            let certificates = build::bench().join("../tests/certs");
            path("--tls-cert", certificates.join("ec.pem"));
            path("--tls-key", certificates.join("ec.key"));
        }
        if scenario.deflate {
            arguments.push("--deflate".to_owned());
        }
        if self.program == Program::Node {
            let script = foreign().join("ws.mjs");
            arguments.insert(0, script.to_string_lossy().into_owned());
        }
        arguments
    }
}
