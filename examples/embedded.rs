//! An echo server with every limit turned down, for small machines: resident under load, a static program has
//! 1.2 MB (musl), and a dynamic one 2.8 MB, much of which is libc that it shares with others.
//!
//! `cargo build --profile embedded --no-default-features --example embedded`, then
//! `embedded [--addr HOST:PORT]`, by default `127.0.0.1:9001`; see docs/embedded.md, also for static programs.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use framemill::{Error, Message, Origin, Overflow, Peer, Server};

fn main() -> framemill::Result<()> {
    let mut words = std::env::args().skip(1);
    let addr = match (words.next().as_deref(), words.next(), words.next()) {
        (None, ..) => None,
        (Some("--addr"), Some(addr), None) => Some(addr),
        _ => return Err(Error::Config("usage: embedded [--addr HOST:PORT]".into())),
    };
    let server = Server::bind(addr.as_deref().unwrap_or("127.0.0.1:9001"))?
        .loops(1)
        .workers(0) // handlers run on the loop, which is this thread, and must not block
        .read_buffer(20 << 10) // a whole message: those that come in one piece wait nowhere
        .max_connections(64)
        .max_head(2 << 10, 32)
        .max_body(1 << 10)
        .max_message(16 << 10)
        .inbound_limit(8, 16 << 10)
        .outbound_limit(32 << 10)
        .max_subscriptions(16)
        .overflow(Overflow::DropNewest)
        .handshake_timeout(Duration::from_secs(5))
        .close_timeout(Duration::from_secs(2))
        .origin(Origin::Any);
    let addrs = server.handle().local_addrs();
    println!("listening on http://{}", addrs.join(" "));
    server.run(|peer: &Peer, message: Message| peer.send(message))
}
