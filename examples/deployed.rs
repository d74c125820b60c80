//! A server as it runs behind a proxy and systemd: sockets that systemd hands over, clients by their
//! own addresses, limits, a health check, and an end that nobody misses.
//!
//! `deployed [ADDR]`: without an address it wants the sockets of systemd, or opens 127.0.0.1:9001; several
//! may share an address. Whoever connects may be a proxy that speaks the PROXY protocol, as HAProxy with
//! docs/deploy/haproxy.cfg, or one that doesn't, as nginx. See docs/deploying.md.
#![allow(clippy::print_stdout)]

use std::sync::OnceLock;
use std::time::Duration;

use framemill::{
    Accept, CloseCode, Drain, Handler, Message, Peer, ProxyProtocol, Request, Response, ReusePort,
    Server, ServerHandle, SystemdSockets,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Echoes, and tells each client who it is.
#[derive(Default)]
struct App(OnceLock<ServerHandle>);

impl Handler for App {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.0.set(server.clone());
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        let (who, process) = (peer.remote_addr(), std::process::id());
        let _ = peer.send(format!("you are {who}, served by process {process}"));
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn http(&self, request: &Request) -> Response {
        match (request.path(), self.0.get()) {
            ("/health", Some(server)) => server.health(),
            _ => Response::not_found(),
        }
    }
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (server, alone) = match std::env::args().nth(1) {
        Some(addr) => (Server::bind(ReusePort(addr))?, false),
        None => match Server::bind(SystemdSockets) {
            Ok(server) => (server, true),
            Err(_) => (Server::bind("127.0.0.1:9001")?, false),
        },
    };
    let handle = server
        .trust_proxies(["127.0.0.0/8", "::1", "unix"])?
        .proxy_protocol(ProxyProtocol::Optional)
        .max_connections_per_ip(100)
        .accept_rate_per_ip(20, 100)
        .max_handshakes(1000)
        .notify_systemd(true)
        .start(App::default())?;
    println!("listening on {}", handle.local_addrs().join(" "));
    signals.forever().next();
    let code = CloseCode::Restart;
    handle.drain(if alone {
        // Whoever comes back waits in systemd's socket until this process has ended.
        Drain {
            code,
            notice: Duration::ZERO,
            spread: Duration::ZERO,
            deadline: Duration::from_secs(5),
        }
    } else {
        // Others serve meanwhile: the balancer has to notice, and they should not get all at once.
        Drain {
            code,
            notice: Duration::from_secs(5),
            spread: Duration::from_secs(5),
            deadline: Duration::from_secs(20),
        }
    });
    Ok(())
}
