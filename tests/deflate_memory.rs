//! What messages that grow cost in memory. In a file of its own, as it looks at the whole process.
#![cfg(all(feature = "deflate", target_os = "linux"))]

mod support;

use framemill::{Client, ClientEvent, CloseCode, Deflate, Message, Peer, SendError, Server};
use support::deflate::{BINARY, Zip, open, prose, zip};
use support::spy::spy;
use support::{Running, WAIT, alone, frame, memory, serve, until};

fn echo(settings: impl FnOnce(Server) -> Server) -> Running {
    serve(settings, |peer: &Peer, message: Message| peer.send(message))
}

/// The longest message that the servers here take.
const MAX: usize = 8 << 20;
const SLACK: usize = 4 << 20;

/// How much more memory this process had at one moment of `run` than before it.
fn growth(run: impl FnOnce()) -> usize {
    // Sets the high-water mark back: see proc(5).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmHWM");
    assert!((1..memory("VmRSS") + (1 << 20)).contains(&before));
    run();
    // Where it is about as much, either may be the larger: the kernel counts pages in batches.
    memory("VmHWM").saturating_sub(before)
}

/// As many mebibytes of zeros, compressed; made without ever having them all.
fn zeros(mebibytes: usize) -> Vec<u8> {
    let piece = Zip::new(9, 15).message(&[0; 1 << 20]);
    let pieces: Vec<_> = (0..mebibytes).map(|_| &piece[..]).collect();
    pieces.join(&[0, 0, 0xFF, 0xFF][..])
}

/// Inflating stops at the limit, and takes no more memory than that: a thousandth of the limit on the
/// wire can't cost more than the limit, nor can any number of bytes that are within it.
#[test]
fn bombs() {
    let _alone = alone();
    for workers in [0, 2] {
        let server = echo(|s| s.workers(workers).max_message(MAX).deflate(Deflate::new()));
        // 1,000 times the limit, in one frame; and 64 times, in many.
        let (large, small) = (frame(BINARY, &zeros(8_000)), zeros(512));
        assert!(large.len() < MAX + (256 << 10) && small.len() < MAX / 8);
        let mut fragments = Vec::new();
        for (n, piece) in small.chunks(1_000).enumerate() {
            fragments.extend(frame(if n == 0 { BINARY & 0x7F } else { 0 }, piece));
        }
        fragments.extend(frame(0x80, &[]));
        // Twice: buffers that are kept for others are there then.
        for _ in 0..2 {
            for (bytes, arrived) in [(&large, large.len()), (&fragments, small.len())] {
                let grown = growth(|| {
                    for _ in 0..3 {
                        let mut raw = open(server.addr);
                        raw.write(bytes);
                        assert_eq!(raw.close_code(), Some(1009));
                        // Or the next one may come before the memory of this one is free.
                        drop(raw);
                        until("the peer is gone", || server.handle.connections() == 0);
                    }
                });
                // What a worker frees, glibc keeps for that thread, and the next may run on the other.
                let kept = workers * MAX;
                let bound = MAX + 2 * arrived + kept + SLACK;
                eprintln!("{workers}: {grown} of {bound}");
                assert!(grown < bound, "{workers}: {grown} of {bound}");
            }
        }
    }
}

/// What is compressed twice is inflated once.
#[test]
fn compressed_twice() {
    let _alone = alone();
    let server = echo(|s| s.max_message(MAX).deflate(Deflate::new().threshold(MAX)));
    let inner = zeros(100);
    let bytes = frame(BINARY, &zip(&inner));
    let mut raw = open(server.addr);
    let grown = growth(|| {
        raw.write(&bytes);
        assert!(raw.frame() == Some((0x82, inner)));
    });
    assert!(grown < SLACK, "{grown}");
}

/// The windows of a connection go with it, on both sides, however long somebody keeps its `Peer`.
#[test]
fn windows_end_with_their_connection() {
    const CONNECTIONS: usize = 60;
    let _alone = alone();
    let deflate = Deflate::new().context_takeover(true, true);
    let text = prose(2_000);
    for workers in [0, 1] {
        let (handler, seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
        let server = serve(|s| s.workers(workers).deflate(deflate.clone()), handler);
        let mut kept = Vec::new();
        let mut connect_and_leave = || {
            let client = Client::new(format!("ws://{}", server.addr)).unwrap();
            let (handle, events) = client.deflate(deflate.clone()).connect().unwrap();
            let (ours, theirs) = (handle.peer().unwrap(), seen.peer());
            ours.send(&*text).unwrap();
            let event = || events.recv_timeout(WAIT).unwrap();
            while !matches!(event(), ClientEvent::Message(_)) {}
            assert!(handle.close(CloseCode::Normal, ""));
            while !matches!(event(), ClientEvent::Close(_)) {}
            seen.end();
            for peer in [ours, theirs] {
                assert!(matches!(peer.send(&*text), Err(SendError::Closed(_))));
                kept.push(peer);
            }
        };
        // What is there once for each thread comes with the first of them.
        (0..10).for_each(|_| connect_and_leave());
        let grown = growth(|| (0..CONNECTIONS).for_each(|_| connect_and_leave()));
        eprintln!("{grown} bytes for {CONNECTIONS} connections that are gone");
        assert!(
            grown < SLACK,
            "{grown} bytes for {CONNECTIONS} that are gone"
        );
    }
}
