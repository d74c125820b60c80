//! A loop of your own: everything that happens arrives on one channel, beside a ticker and Ctrl-C.
//!
//! Run me, and connect to ws://127.0.0.1:9001 from several clients: what one says, all hear, and once
//! a second everybody is told the time. For a game or a bot that is one `loop` over its own state,
//! with no lock anywhere.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use crossbeam_channel::{select, tick, unbounded};
use framemill::{Event, Origin, Peer, PeerId, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> framemill::Result<()> {
    env_logger::init();
    let addr = std::env::args().nth(1);
    let server = Server::bind(addr.as_deref().unwrap_or("127.0.0.1:9001"))?.origin(Origin::Any);
    let (handle, events) = server.events()?;
    println!("listening on {}", handle.local_addrs().join(" "));

    let started = Instant::now();
    let seconds = tick(Duration::from_secs(1));
    let stop = on_signal()?;
    let mut peers: HashMap<PeerId, Peer> = HashMap::new();
    loop {
        select! {
            recv(events) -> event => match event {
                Ok(Event::Open(peer, _)) => {
                    peers.insert(peer.id(), peer);
                }
                Ok(Event::Message(from, message)) => {
                    for peer in peers.values().filter(|peer| **peer != from) {
                        // A peer that has just gone is no news: its `Close` is on the way.
                        let _ = peer.send(message.clone());
                    }
                }
                Ok(Event::Close(peer, reason)) => {
                    // Unlike `println!`, it may fail: the server goes on without a terminal.
                    let _ = writeln!(stdout(), "{} left: {reason}", peer.id());
                    peers.remove(&peer.id());
                }
                Ok(_) => {}
                Err(_) => break,
            },
            recv(seconds) -> _ => {
                handle.broadcast(format!("{} s, {} here", started.elapsed().as_secs(), peers.len()));
            }
            recv(stop) -> _ => break,
        }
    }
    // Nobody receives any more while the server stops: letting go of the channel lets it go on.
    drop(events);
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}

/// A channel that a signal is sent on.
fn on_signal() -> framemill::Result<crossbeam_channel::Receiver<()>> {
    let (sender, receiver) = unbounded();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        signals.forever().next();
        let _ = sender.send(());
    });
    Ok(receiver)
}
