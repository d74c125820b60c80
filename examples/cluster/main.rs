//! One of several nodes that share their topics through Redis.
//!
//! `cargo run --release --features redis --example cluster -- --redis redis://127.0.0.1/ --addr
//! 127.0.0.1:9001`, the same with other addresses, and open any of them. Without `--redis` it is alone. Topics
//! that begin with `kept/` keep their last messages.
//!
//! | to the server | |
//! |---|---|
//! | `follow SINCE TOPIC` | subscribe to a topic with history, see `docs/scaling.md` |
//! | `subscribe TOPIC` | to one without |
//! | `publish TOPIC`, a line feed, the text | to all who follow it, the sender included |
//!
//! `/state` is how the backplane is doing, `/health` is 200.
#![allow(clippy::print_stdout)]

use std::sync::OnceLock;
use std::time::Duration;

use framemill::{
    Accept, Follow, Handler, HeaderValue, History, Message, Origin, Peer, Request, Response,
    Server, ServerHandle, StatusCode, header,
};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("../support/framemill.js");

const USAGE: &str = "usage: cluster [--addr HOST:PORT] [--redis URL] [--history MESSAGES]";

struct Args {
    addr: String,
    redis: Option<String>,
    history: usize,
}

struct Node(OnceLock<ServerHandle>);

impl Handler for Node {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.0.set(server.clone());
    }

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        // Whoever may not read a topic is turned away here.
        if let Some(Follow { topic, since }) = Follow::parse(&message) {
            peer.subscribe_from(&topic, since);
            return;
        }
        let text = message.to_text().unwrap_or_default();
        if let Some(topic) = text.strip_prefix("subscribe ") {
            peer.subscribe(topic);
        } else if let Some((topic, text)) = text
            .strip_prefix("publish ")
            .and_then(|rest| rest.split_once('\n'))
        {
            if !self.0.get().is_some_and(|s| s.publish(topic, text)) {
                let _ = peer.send("busy");
            }
        }
    }

    fn http(&self, request: &Request) -> Response {
        let of_type = |kind| {
            let kind = HeaderValue::from_static(kind);
            Response::new(StatusCode::OK).header(header::CONTENT_TYPE, kind)
        };
        match request.path() {
            "/" => Response::html(PAGE),
            "/framemill.js" => of_type("text/javascript").body(SCRIPT),
            "/state" => of_type("application/json").body(self.state()),
            "/health" => Response::ok(),
            _ => Response::not_found(),
        }
    }
}

impl Node {
    fn state(&self) -> String {
        let Some(server) = self.0.get() else {
            return String::new();
        };
        let state = server.backplane_state();
        json!({
            "connections": server.connections(),
            "connected": state.connected,
            "topics": state.topics,
            "subscribed": state.subscribed,
            "queued": state.queued,
            "published": state.published,
            "received": state.received,
            "fetched": state.fetched,
            "repeated": state.repeated,
            "lost": state.lost,
            "failures": state.failures,
        })
        .to_string()
    }
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        addr: "127.0.0.1:9001".into(),
        redis: None,
        history: 10_000,
    };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let value = words.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--addr" => args.addr = value,
            "--redis" => args.redis = Some(value),
            "--history" => {
                args.history = value.parse().map_err(|_| "--history is a number")?;
            }
            _ => return Err(format!("{name} is not an option")),
        }
    }
    Ok(args)
}

#[cfg(feature = "redis")]
fn span(server: Server, url: &str) -> framemill::Result<Server> {
    Ok(server.backplane(framemill::Redis::new(url)?))
}

#[cfg(not(feature = "redis"))]
fn span(_: Server, _: &str) -> framemill::Result<Server> {
    Err(framemill::Error::Config(
        "--redis needs --features redis".into(),
    ))
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n{USAGE}");
        std::process::exit(2);
    });
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut server = Server::bind(&*args.addr)?
        // Behind a load balancer, the page's host is not this one. A real server lists its own.
        .origin(Origin::Any)
        // A client that comes back may have a whole history to read.
        .outbound_limit(16 << 20)
        .history("kept/*", History::last(args.history));
    if let Some(url) = &args.redis {
        server = span(server, url)?;
    }
    let handle = server.start(Node(OnceLock::new()))?;
    println!(
        "listening on http://{}",
        handle.local_addrs().join(" http://")
    );
    signals.forever().next();
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}
