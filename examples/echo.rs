//! Sends every message back. Run me, and connect to ws://127.0.0.1:9001 (or to the address that you name).

use framemill::{Message, Peer, Server};

fn main() -> framemill::Result<()> {
    env_logger::init();
    let addr = std::env::args().nth(1);
    Server::bind(addr.as_deref().unwrap_or("127.0.0.1:9001"))?
        .run(|peer: &Peer, message: Message| peer.send(message))
}
