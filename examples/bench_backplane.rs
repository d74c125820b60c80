//! What a backplane costs: messages a second from one node to a client of another, and how long one takes.
//!
//! `cargo run --release --features redis --example bench_backplane -- redis://127.0.0.1/`. Two servers and
//! their clients are in one process, so the figures are for the machine as a whole. For comparison, publisher
//! and client are on one node as well.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use framemill::{ClientEvent, Error, History, Message, Peer, Redis, Server, ServerHandle, connect};

const PAYLOAD: usize = 64;
const THROUGHPUT: usize = 200_000;
const PINGS: usize = 5_000;
/// One message after the other, so far apart.
const PAUSE: Duration = Duration::from_micros(300);
/// For a server that does not even refuse.
const PATIENCE: Duration = Duration::from_secs(10);

fn node(url: &str, kept: usize) -> framemill::Result<ServerHandle> {
    Server::bind("127.0.0.1:0")?
        .backplane(Redis::new(url)?.queue(THROUGHPUT * 2, 1 << 30))
        .history("kept", History::last(kept))
        .outbound_limit(1 << 29)
        .start(|peer: &Peer, message: Message| peer.subscribe(message.to_text().unwrap_or("")))
}

fn client(node: &ServerHandle, topic: &str) -> framemill::Result<(Peer, Receiver<ClientEvent>)> {
    let url = format!("ws://{}/", node.local_addr().expect("it listens on TCP"));
    let (peer, events) = connect(url)?;
    let before = node.subscribers(topic);
    let _ = peer.send(topic);
    wait(|| {
        let state = node.backplane_state();
        node.subscribers(topic) > before && state.connected && state.subscribed == state.topics
    });
    Ok((peer, events))
}

fn wait(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn next(events: &Receiver<ClientEvent>) {
    loop {
        match events.recv() {
            Ok(ClientEvent::Message(_)) => return,
            Ok(_) => {}
            Err(_) => panic!("the connection is lost"),
        }
    }
}

fn measure(
    what: &str,
    from: &ServerHandle,
    to: &ServerHandle,
    topic: &str,
) -> framemill::Result<()> {
    let (peer, events) = client(to, topic)?;
    let mut took: Vec<Duration> = (0..PINGS)
        .map(|_| {
            std::thread::sleep(PAUSE);
            let sent = Instant::now();
            from.publish(topic, "x".repeat(PAYLOAD));
            next(&events);
            sent.elapsed()
        })
        .collect();
    took.sort_unstable();
    let sent = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..THROUGHPUT).for_each(|_| assert!(from.publish(topic, "x".repeat(PAYLOAD))))
        });
        (0..THROUGHPUT).for_each(|_| next(&events));
    });
    let rate = THROUGHPUT as f64 / sent.elapsed().as_secs_f64();
    println!(
        "{what}: {rate:.0} messages a second; one takes {:?} (p50), {:?} (p99)",
        took[PINGS / 2],
        took[PINGS * 99 / 100]
    );
    peer.close(framemill::CloseCode::Normal, "");
    Ok(())
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "redis://127.0.0.1/".into());
    let (one, other) = (node(&url, 1000)?, node(&url, 1000)?);
    let begun = Instant::now();
    wait(|| {
        let states = [&one, &other].map(ServerHandle::backplane_state);
        let failed = states.iter().any(|state| state.failures > 0) || begun.elapsed() > PATIENCE;
        failed || states.iter().all(|state| state.connected)
    });
    if ![&one, &other]
        .iter()
        .all(|node| node.backplane_state().connected)
    {
        return Err(Error::Config("there is no Redis at this URL".into()));
    }
    measure("one node", &one, &one, "near")?;
    measure("through Redis", &one, &other, "far")?;
    measure("through Redis, with history", &one, &other, "kept")?;
    println!("{:?}", one.backplane_state());
    one.shutdown(Duration::from_secs(1));
    other.shutdown(Duration::from_secs(1));
    Ok(())
}
