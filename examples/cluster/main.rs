//! One of several nodes that share their topics through Redis.
//!
//! `cargo run --release --features redis --example cluster -- --redis redis://127.0.0.1/ --addr
//! 127.0.0.1:9001`, the same with other addresses, and open any of them. Without `--redis` it is alone. Behind a
//! load balancer, `--origin https://example.com` lets the page in that came by way of it.
//!
//! Anybody may publish here, so what all of them together can fill is bounded: a few topics, whose names are
//! in [`TOPICS`], short messages, and so many of each topic that begins with `kept/`: about 35 MB as it stands.
//!
//! | to the server | |
//! |---|---|
//! | `follow SINCE TOPIC` | subscribe to a topic with history, see `docs/scaling.md` |
//! | `subscribe TOPIC` | to one without |
//! | `publish TOPIC`, a line feed, the text | to all who follow it, the sender included |
//! | `ping` | is answered with `pong`, for pages that can't see whether the connection lives |
//!
//! | to the client, beside what belongs to a topic | |
//! |---|---|
//! | `said TOPIC`, a line feed, the text | of a topic without history |
//! | `no such topic` | |
//! | `busy`, a line feed, all of the `publish` | that was not published |
//! | `pong` | |
//!
//! `/state` is how the backplane is doing, `/health` is 200.
#![allow(clippy::print_stdout)]

use std::sync::OnceLock;
use std::time::Duration;

use framemill::{
    Accept, Follow, Handler, HeaderValue, History, Message, MessageRate, Origin, OverRate, Peer,
    Request, Response, Server, ServerHandle, StatusCode, header,
};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("../support/framemill.js");

const USAGE: &str = "\
usage: cluster [--addr HOST:PORT] [--redis URL] [--history MESSAGES] [--origin ORIGIN]";

/// The topics there are, each also with `kept/` before it. Each name that anybody can think of would be a history
/// to keep on every node, and in Redis.
const TOPICS: [&str; 3] = ["news", "numbers", "page"];

/// Bytes of a message to the server.
const MESSAGE: usize = 1 << 10;

/// Nothing is kept that is older.
const AGE: Duration = Duration::from_secs(60 * 60);

struct Args {
    addr: String,
    redis: Option<String>,
    history: usize,
    origin: Origin,
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
            on_topic(peer, &topic, || peer.subscribe_from(&topic, since));
            return;
        }
        let text = message.to_text().unwrap_or_default();
        if text == "ping" {
            let _ = peer.send("pong");
        } else if let Some(topic) = text.strip_prefix("subscribe ") {
            on_topic(peer, topic, || peer.subscribe(topic));
        } else if let Some((topic, said)) = text
            .strip_prefix("publish ")
            .and_then(|rest| rest.split_once('\n'))
        {
            on_topic(peer, topic, || {
                // What has no history says so in front, or it might be taken for a message that has.
                let message = match topic.starts_with("kept/") {
                    true => said.to_owned(),
                    false => format!("said {topic}\n{said}"),
                };
                if !self.0.get().is_some_and(|s| s.publish(topic, message)) {
                    let _ = peer.send(format!("busy\n{text}"));
                }
            });
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

/// Does what is asked of a topic, if there is such a one.
fn on_topic<R>(peer: &Peer, topic: &str, act: impl FnOnce() -> R) {
    if TOPICS.contains(&topic.strip_prefix("kept/").unwrap_or(topic)) {
        let _ = act();
    } else {
        let _ = peer.send("no such topic");
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
        origin: Origin::SameHost,
    };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let mut value = || words.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--addr" => args.addr = value()?,
            "--redis" => args.redis = Some(value()?),
            "--origin" => args.origin = Origin::List(vec![value()?]),
            "--history" => {
                args.history = value()?.parse().map_err(|_| "--history is a number")?;
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
        .origin(args.origin)
        .max_message(MESSAGE)
        .message_rate(MessageRate {
            per_second: 2000,
            burst: 4000,
            over: OverRate::Wait,
        })
        .history("kept/*", History::last(args.history).no_older_than(AGE));
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
