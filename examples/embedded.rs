//! An echo server with every limit turned down, for small machines: under 2 MB in all.
//!
//! `cargo build --profile embedded --no-default-features --example embedded`, then
//! `embedded [ADDR]`, by default `127.0.0.1:9001`; see docs/embedded.md.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use framemill::{Message, Origin, Overflow, Peer, Server};

fn main() -> framemill::Result<()> {
    let addr = std::env::args().nth(1);
    let server = Server::bind(addr.as_deref().unwrap_or("127.0.0.1:9001"))?
        .loops(1)
        .workers(0) // handlers run on the loop: one thread, and they must not block
        .read_buffer(4 << 10)
        .max_connections(64)
        .max_head(2 << 10, 32)
        .max_body(1 << 10)
        .max_message(16 << 10)
        .inbound_limit(8, 16 << 10)
        .outbound_limit(32 << 10)
        .overflow(Overflow::DropNewest)
        .handshake_timeout(Duration::from_secs(5))
        .close_timeout(Duration::from_secs(2))
        .origin(Origin::Any)
        .start(|peer: &Peer, message: Message| peer.send(message))?;
    println!("listening on {}", server.local_addrs().join(" "));
    server.wait();
    Ok(())
}
