//! Sends every message back. Run me, and connect to ws://127.0.0.1:9001.

use framemill::{Message, Peer, Server};

fn main() -> framemill::Result<()> {
    env_logger::init();
    Server::bind("127.0.0.1:9001")?.run(|peer: &Peer, message: Message| peer.send(message))
}
