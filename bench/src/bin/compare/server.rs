//! Which servers there are, and a running one.

use std::{
    fs,
    io::{self, BufRead, BufReader, Error, Result},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Signal, kill_process, set_parent_process_death_signal, setpriority_process, setsid,
};

use crate::{
    build,
    scenario::{Mode, Scenario},
};

/// For a server to print its address, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

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
    },
    /// uWebSockets.
    Uws,
    /// The ws of Node.
    Node,
    /// Of `--also`.
    Other(String),
}

impl Program {
    /// Why it can't be run, if it can't: what it needs besides Rust isn't there.
    pub(crate) fn missing(&self) -> Option<String> {
        let absent =
            |path: &Path| (!path.exists()).then(|| format!("there is no {}", path.display()));
        let fetch = |why: String| format!("{why}; bench/foreign/fetch.sh gets it");
        match self {
            Self::Uws => absent(&uws_library()).map(fetch),
            Self::Node => {
                let node = Command::new("node").arg("--version").output();
                match node.is_ok_and(|output| output.status.success()) {
                    true => absent(&foreign().join("node_modules/ws")).map(fetch),
                    false => Some("there is no node to run".to_owned()),
                }
            }
            _ => None,
        }
    }
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
        match &self.program {
            // It takes all frames to be as long as it was told.
            Program::Limit => scenario.mode != Mode::Broadcast && !scenario.deflate,
            Program::Peer { library, .. } => {
                let (tungstenite, many) =
                    (*library == "tungstenite", scenario.connections >= 10_000);
                let tokio_tungstenite = *library == "tokio-tungstenite";
                // Ten thousand threads prove nothing, and two threads cannot share one of its
                // sockets.
                let able = !tungstenite || (!many && scenario.mode != Mode::Broadcast);
                // None of them compresses.
                able && !scenario.deflate && (!scenario.tls || tokio_tungstenite)
            }
            Program::Node | Program::Framemill { level: Some(_), .. } => scenario.deflate,
            Program::Framemill { level: None, .. } | Program::Uws | Program::Other(_) => true,
        }
    }

    pub(crate) fn arguments(&self, scenario: &Scenario) -> Vec<String> {
        let mode = if scenario.mode == Mode::Broadcast {
            "broadcast"
        } else {
            "echo"
        };
        let line = match &self.program {
            Program::Limit => {
                let text = if scenario.text { " --text" } else { "" };
                format!("--size {}{text}", scenario.size)
            }
            Program::Framemill { workers, level } => {
                let level = level.map(|level| format!(" --deflate-level {level}"));
                format!(
                    "{mode} --loops 1 --workers {workers} \
                     --max-message 33554432 --queue-limit 67108864{}",
                    level.unwrap_or_default()
                )
            }
            Program::Peer {
                library,
                read_buffer,
            } => {
                let broadcast = if mode == "broadcast" {
                    " --broadcast"
                } else {
                    ""
                };
                let buffer = read_buffer.map(|size| format!(" --read-buffer {size}"));
                format!("{library}{broadcast}{}", buffer.unwrap_or_default())
            }
            Program::Uws | Program::Other(_) => mode.to_owned(),
            Program::Node => String::new(),
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

/// A server that is up. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    pub(crate) addr: String,
}

impl Running {
    pub(crate) fn start(program: &Path, arguments: &[String], core: Core) -> Result<Self> {
        let mut child = spawn(core, program, arguments)?;
        let stdout = BufReader::new(child.stdout.take().expect("is piped"));
        // Made before anything can fail, so that no failure leaves the child behind.
        let mut running = Self {
            child,
            addr: String::new(),
        };
        let (said, says) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(io::Result::ok) {
                // Nobody listens after the first. Still all has to be read, or the server would
                // break at a closed pipe.
                let _ = said.send(line);
            }
        });
        let line = says
            .recv_timeout(PATIENCE)
            .map_err(|_| match running.child.try_wait() {
                Ok(Some(status)) => Error::other(format!("did not start: {status}")),
                _ => Error::other("printed no address"),
            })?;
        let addr = line.strip_prefix("listening on ");
        running.addr = addr
            .ok_or_else(|| Error::other(format!("printed {line:?}")))?
            .to_owned();
        Ok(running)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by SIGTERM. An error if it does not end, or had ended before in some other way.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(Error::other(format!("ended by itself: {status}")));
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        match wait(&mut self.child, PATIENCE)? {
            None => Err(Error::other("did not end on SIGTERM")),
            Some(status) if status.success() || status.signal() == Some(Signal::TERM.as_raw()) => {
                Ok(())
            }
            Some(status) => Err(Error::other(format!("ended badly on SIGTERM: {status}"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a program runs.
#[derive(Clone, Copy)]
pub(crate) struct Core {
    pub(crate) cpu: u32,
    /// Before all else that wants to run there.
    pub(crate) boost: bool,
}

/// Starts a program on one core, to live no longer than this process. Its stdout is piped.
pub(crate) fn spawn(core: Core, program: &Path, arguments: &[String]) -> Result<Child> {
    let mut command = Command::new("taskset");
    command
        .arg("-c")
        .arg(core.cpu.to_string())
        .arg(program)
        .args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if core.boost {
            setsid()?;
            setpriority_process(None, -20)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only what is async-signal-safe may be called: system calls are.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    if core.boost {
        // Where Linux shares the cores between sessions first, the priority of a process only
        // counts within its session. Where it does not, there is no such file.
        let _ = fs::write(format!("/proc/{}/autogroup", child.id()), "-20");
    }
    Ok(child)
}

/// `None` if it still runs after `patience`.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
            status => return Ok(status),
        }
    }
}
