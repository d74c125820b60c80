//! What happens when one side is faster than the other: which queue fills, who waits, and what is lost.

mod support;

use std::collections::HashMap;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use framemill::{
    CloseCause, CloseCode, CloseReason, Message, Origin, Overflow, Peer, SendError, Sent, Server,
    ServerHandle,
};
use support::spy::{PLENTY, Seen, exactly, frames, narrow, number, numbered, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, frame, over_every_transport, reset, socket, until};

over_every_transport! {
    queued_bytes_is_the_sum_of_the_frames,
    queued_bytes_is_what_the_kernel_has_not_taken,
    queued_bytes_returns_to_zero,
    overflow_closes,
    overflow_gives_the_newest_back,
    overflow_drops_the_oldest,
    what_is_dropped_is_undelivered,
    overflow_drops_the_oldest_of_few,
    overflow_drops_the_oldest_of_many,
    overflow_drops_the_oldest_behind_a_broadcast,
    control_frames_are_exempt,
    control_frames_have_an_end_too,
    a_flood_of_pings_is_answered_in_little_memory,
    a_reply_finds_room_behind_many_pongs,
    only_the_latest_of_each_key_waits,
    each_key_grows_newer_up_to_the_newest,
    a_name_is_a_key_and_sizes_may_change,
    only_the_latest_waits_behind_a_broadcast,
    writable_comes_after_congestion,
    writable_comes_only_after_congestion,
    a_queue_that_drains_often_is_writable_once,
    a_stream_from_a_worker,
    a_stream_from_the_loop,
    a_stream_from_a_worker_within_the_limit,
    a_stream_from_the_loop_within_the_limit,
    what_is_sent_in_writable_is_written,
    a_busy_handler_slows_its_sender_down,
    a_slow_reader_is_not_put_out,
    asking_long_questions_without_reading_loses_nothing,
    asking_short_questions_without_reading_loses_nothing,
    several_replies_to_each_question_find_room,
    a_congested_peer_that_closes_gets_all_replies_first,
    a_congested_peer_that_says_no_more_gets_all_replies,
    a_congested_peer_that_is_gone_is_waited_for_no_more,
}

/// Payload and whole frame of most messages here.
const SIZE: usize = 1000;
const FRAME: usize = 4 + SIZE;

/// A client that does not read until told to, and what its server sees. The handler does nothing.
fn stalling(
    transport: Transport,
    settings: impl FnOnce(Server) -> Server,
) -> (Running, Seen, Raw, Peer) {
    let (handler, seen) = spy(|_, _| ());
    let server = transport.serve_narrow(settings, handler);
    let raw = upgraded(narrow(server.addr));
    let peer = seen.peer();
    (server, seen, raw, peer)
}

/// Sends numbered messages until one finds the kernel full; tells how many.
fn fill(peer: &Peer) -> u32 {
    for n in 0.. {
        match peer.send(numbered(n, SIZE)) {
            Ok(Sent::Queued) => thread::yield_now(),
            Ok(Sent::Congested) => return n + 1,
            Err(error) => panic!("message {n}: {error}"),
        }
    }
    unreachable!()
}

/// The numbers of all messages up to the close frame or the end, and the code of that frame.
fn numbers(raw: &mut Raw) -> (Vec<u32>, Option<u16>) {
    let mut numbers = Vec::new();
    while let Some((first, payload)) = raw.frame() {
        match first {
            0x82 => numbers.push(number(&payload)),
            0x88 => {
                raw.write(&frame(0x88, &payload[..2]));
                return (numbers, Some(u16::from_be_bytes([payload[0], payload[1]])));
            }
            other => panic!("a frame of type {other:x}"),
        }
    }
    (numbers, None)
}

/// Reads `count` numbered messages.
fn read(raw: &mut Raw, count: usize) -> Vec<u32> {
    let next = |_| match raw.frame() {
        Some((0x82, payload)) => number(&payload),
        other => panic!("not a message: {other:?}"),
    };
    (0..count).map(next).collect()
}

// ---- the count ----

fn queued_bytes_is_the_sum_of_the_frames(transport: Transport) {
    // On the loop nothing is written while the handler runs.
    let (tell, told) = unbounded();
    let server = transport.serve(
        |s| s.workers(0),
        move |peer: &Peer, _: Message| {
            let mut sum = 0;
            for (len, header) in [
                (0, 2),
                (1, 2),
                (125, 2),
                (126, 4),
                (5000, 4),
                (65535, 4),
                (65536, 10),
                (70000, 10),
            ] {
                peer.send(Message::Binary(vec![7; len].into())).unwrap();
                sum += header + len;
                tell.send((peer.queued_bytes(), sum)).unwrap();
            }
            peer.send(Message::Ping("ping".into())).unwrap();
            tell.send((peer.queued_bytes(), sum + 6)).unwrap();
        },
    );
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"go"));
    for _ in 0..9 {
        let (queued, sum) = told.recv_timeout(WAIT).unwrap();
        assert_eq!(queued, sum);
    }
}

fn queued_bytes_is_what_the_kernel_has_not_taken(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen, mut raw, peer) = stalling(transport, |s| s.workers(workers));
        let sent = fill(&peer) as usize * FRAME;
        // The kernel delivers what it has, even though the server hangs up; the rest is lost.
        assert!(!server.handle.shutdown(Duration::ZERO));
        let received = raw.rest().len();
        let undelivered = seen.end().undelivered_bytes();
        assert!(undelivered > 0);
        exactly(transport, received + undelivered, sent);
        assert_eq!(peer.queued_bytes(), undelivered);
    }
}

fn queued_bytes_returns_to_zero(transport: Transport) {
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) = stalling(transport, |s| s.workers(workers));
        let sent = fill(&peer);
        assert!(peer.queued_bytes() > 0);
        let numbers = read(&mut raw, sent as usize);
        assert!(numbers.into_iter().eq(0..sent));
        until("nothing is queued", || peer.queued_bytes() == 0);
        // And it is not congested any more.
        assert_eq!(peer.send(numbered(sent, SIZE)), Ok(Sent::Queued));
    }
}

// ---- the policies ----

/// Sends until a message is refused; tells how many were accepted, and the refusal.
fn overflow(peer: &Peer) -> (u32, SendError) {
    for n in 0.. {
        if let Err(error) = peer.send(numbered(n, SIZE)) {
            return (n, error);
        }
    }
    unreachable!()
}

fn overflow_closes(transport: Transport) {
    for workers in [0, 2] {
        let limit = PLENTY;
        let (_server, seen, mut raw, peer) =
            stalling(transport, |s| s.workers(workers).outbound_limit(limit));
        let (accepted, error) = overflow(&peer);
        assert_eq!(error, SendError::Closed(numbered(accepted, SIZE).into()));
        assert!(peer.is_closed());
        // What waited is forgotten at once; what the loop was writing stays, and the close frame.
        assert!(peer.queued_bytes() < limit);
        let (numbers, code) = numbers(&mut raw);
        assert_eq!(code, Some(1013));
        let received = numbers.len();
        assert!(numbers.into_iter().eq(0..received as u32), "no gaps");
        assert!(received < accepted as usize);
        assert_eq!(raw.frame(), None);
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Overflow);
        assert_eq!(reason.code(), CloseCode::Again);
        assert_eq!(peer.queued_bytes(), 0);
        // "Bytes that send accepted and the kernel never took".
        assert_eq!(
            reason.undelivered_bytes(),
            (accepted as usize - received) * FRAME
        );
    }
}

fn overflow_gives_the_newest_back(transport: Transport) {
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) = stalling(transport, |s| {
            s.workers(workers)
                .outbound_limit(200 << 10)
                .overflow(Overflow::DropNewest)
        });
        let mut accepted = Vec::new();
        let mut received = Vec::new();
        let mut n = 0;
        for _ in 0..4 {
            let mut refused = 0;
            while refused < 10 {
                let message = numbered(n, SIZE);
                match peer.send(message.clone()) {
                    Ok(_) => accepted.push(n),
                    Err(SendError::Full(Message::Binary(back))) => {
                        assert_eq!(back.as_ptr(), message.as_ptr(), "the very message");
                        refused += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
                n += 1;
            }
            assert!(peer.queued_bytes() <= 200 << 10);
            // Some room.
            let some = 150.min(accepted.len() - received.len());
            received.extend(read(&mut raw, some));
        }
        received.extend(read(&mut raw, accepted.len() - received.len()));
        assert_eq!(received, accepted);
        assert!(accepted.len() < n as usize - 39);
        peer.send("and no more").unwrap();
        assert_eq!(raw.frame(), Some((0x81, b"and no more".to_vec())));
    }
}

/// The newest is never refused, and the last ones arrive without a gap.
fn overflow_drops_the_oldest(transport: Transport) {
    const MESSAGES: u32 = 4000;
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) = stalling(transport, |s| {
            s.workers(workers)
                .outbound_limit(PLENTY)
                .overflow(Overflow::DropOldest)
        });
        for n in 0..MESSAGES {
            let sent = peer.send(numbered(n, SIZE));
            assert!(sent.is_ok(), "message {n}: {sent:?}");
            assert!(peer.queued_bytes() <= PLENTY);
        }
        let mut received = read(&mut raw, 1);
        while received.last() != Some(&(MESSAGES - 1)) {
            received.extend(read(&mut raw, 1));
        }
        assert!(received.is_sorted_by(|a, b| a < b), "in order");
        assert!(received.len() < MESSAGES as usize);
        // What the loop is writing can't be dropped; the rest is the newest.
        let last = PLENTY / 2 / FRAME;
        let end = &received[received.len() - last..];
        assert_eq!(end[0], MESSAGES - last as u32, "the last without a gap");
    }
}

/// What was accepted and then dropped to make room was not delivered.
fn what_is_dropped_is_undelivered(transport: Transport) {
    const MESSAGES: u32 = 4000;
    for workers in [0, 2] {
        let (server, seen, mut raw, peer) = stalling(transport, |s| {
            s.workers(workers)
                .outbound_limit(PLENTY)
                .overflow(Overflow::DropOldest)
        });
        for n in 0..MESSAGES {
            peer.send(numbered(n, SIZE)).unwrap();
        }
        let sent = MESSAGES as usize * FRAME;
        assert!(!server.handle.shutdown(Duration::ZERO));
        let received = raw.rest().len();
        let undelivered = seen.end().undelivered_bytes();
        exactly(transport, received + undelivered, sent);
        assert!(undelivered > peer.queued_bytes());
    }
}

/// Short messages cost more than their bytes where each is kept by itself, and that counts too.
fn overflow_drops_the_oldest_of_many(transport: Transport) {
    const SHORT: u32 = 200_000;
    let (_server, _seen, mut raw, peer) = stalling(transport, |s| {
        s.workers(0)
            .outbound_limit(PLENTY)
            .overflow(Overflow::DropOldest)
    });
    fill(&peer);
    for n in 0..SHORT {
        peer.send(numbered(n, 8)).unwrap();
    }
    assert!(peer.queued_bytes() < PLENTY / 2, "{}", peer.queued_bytes());
    let mut received = read(&mut raw, 1);
    while received.last() != Some(&(SHORT - 1)) {
        received.extend(read(&mut raw, 1));
    }
    assert!(received.len() < SHORT as usize / 5, "{}", received.len());
}

/// Also of what is on its way to the queue behind a broadcast, and of what waits by key.
fn overflow_drops_the_oldest_behind_a_broadcast(transport: Transport) {
    const MESSAGES: u32 = 4000;
    for workers in [0, 2] {
        for by_key in [false, true] {
            let everybody = Arc::new(OnceLock::<ServerHandle>::new());
            let handle = everybody.clone();
            let (handler, seen) = spy(move |peer: &Peer, _| {
                // On the loop: it is carried out after this, and all that is sent here behind it.
                handle.get().unwrap().broadcast(numbered(0, SIZE));
                for n in 1..MESSAGES {
                    let sent = match by_key {
                        true => peer.send_latest(n, numbered(n, SIZE)),
                        false => peer.send(numbered(n, SIZE)),
                    };
                    assert!(sent.is_ok(), "message {n}: {sent:?}");
                }
            });
            let settings = |s: Server| {
                let _ = everybody.set(s.handle());
                s.workers(workers)
                    .outbound_limit(PLENTY)
                    .overflow(Overflow::DropOldest)
            };
            let server = transport.serve_narrow(settings, handler);
            let mut raw = upgraded(narrow(server.addr));
            let peer = seen.peer();
            raw.write(&frame(0x81, b"go"));
            let dropped = || server.handle.metrics().total.messages_dropped;
            until("some are dropped", || dropped() > 0);
            until("there is room", || peer.queued_bytes() <= PLENTY);
            let mut received = read(&mut raw, 1);
            while received.last() != Some(&(MESSAGES - 1)) {
                received.extend(read(&mut raw, 1));
            }
            assert!(received.is_sorted_by(|a, b| a < b), "in order");
            assert_eq!(received.len() as u64 + dropped(), u64::from(MESSAGES));
            let last = PLENTY / 2 / FRAME;
            let end = &received[received.len() - last..];
            assert_eq!(end[0], MESSAGES - last as u32, "the last without a gap");
        }
    }
}

/// What is on its way is accepted as long as it can be counted.
#[test]
fn overflow_behind_a_broadcast_has_an_end() {
    let everybody = Arc::new(OnceLock::<ServerHandle>::new());
    let handle = everybody.clone();
    let (tell, told) = unbounded();
    let (handler, seen) = spy(move |peer: &Peer, _| {
        handle.get().unwrap().broadcast("first");
        // It is not copied.
        let message = numbered(0, PLENTY);
        let accepted = (0..5000).take_while(|_| peer.send(message.clone()).is_ok());
        tell.send((accepted.count(), peer.send("more"))).unwrap();
    });
    let settings = |s: Server| {
        let _ = everybody.set(s.handle());
        s.workers(0)
            .outbound_limit(PLENTY)
            .overflow(Overflow::DropOldest)
    };
    let server = Transport::Plain.serve_narrow(settings, handler);
    let mut raw = upgraded(narrow(server.addr));
    let peer = seen.peer();
    raw.write(&frame(0x81, b"go"));
    let (accepted, refused) = told.recv_timeout(WAIT).unwrap();
    assert!((2048..=2049).contains(&accepted), "{accepted} MiB");
    assert_eq!(refused, Err(SendError::Full("more".into())));
    until("there is room", || peer.queued_bytes() <= 3 * PLENTY);
    peer.send("last").unwrap();
    let ends = |(first, payload)| (first, payload) == (0x81, b"last".to_vec());
    while !ends(raw.frame().expect("the last of all")) {}
}

/// Though one message that is being written may be most of what the queue holds.
fn overflow_drops_the_oldest_of_few(transport: Transport) {
    const LEN: usize = PLENTY / 8 * 5;
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) = stalling(transport, |s| {
            s.workers(workers)
                .outbound_limit(PLENTY)
                .overflow(Overflow::DropOldest)
        });
        for n in 0..20 {
            let sent = peer.send(numbered(n, LEN));
            assert!(sent.is_ok(), "message {n} is refused");
            assert!(peer.queued_bytes() <= 2 * PLENTY);
        }
        let mut received = read(&mut raw, 1);
        while received.last() != Some(&19) {
            received.extend(read(&mut raw, 1));
        }
        assert!(received.is_sorted_by(|a, b| a < b), "in order");
    }
}

fn control_frames_are_exempt(transport: Transport) {
    let (_server, _seen, mut raw, peer) = stalling(transport, |s| {
        s.workers(2)
            .outbound_limit(PLENTY)
            .overflow(Overflow::DropNewest)
    });
    let (accepted, _full) = overflow(&peer);
    for _ in 0..10 {
        peer.send(Message::Ping("still there?".into())).unwrap();
    }
    // More than the kernel may have taken meanwhile.
    let more = peer.send(numbered(0, PLENTY / 3));
    assert!(matches!(more, Err(SendError::Full(_))));
    assert!(peer.close(CloseCode::Away, "bye"));
    assert!(
        read(&mut raw, accepted as usize)
            .into_iter()
            .eq(0..accepted)
    );
    for _ in 0..10 {
        assert_eq!(raw.frame(), Some((0x89, b"still there?".to_vec())));
    }
    assert_eq!(raw.frame(), Some((0x88, b"\x03\xE9bye".to_vec())));
}

/// Twice the limit; but no message goes for them, and no connection.
fn control_frames_have_an_end_too(transport: Transport) {
    for (overflow, behind_a_broadcast) in [
        (Overflow::Close, false),
        (Overflow::DropNewest, false),
        (Overflow::DropNewest, true),
        (Overflow::DropOldest, false),
    ] {
        let (server, _seen, mut raw, peer) = stalling(transport, |s| {
            s.workers(2).outbound_limit(PLENTY).overflow(overflow)
        });
        let mut accepted = 0;
        let refused = loop {
            if behind_a_broadcast {
                assert!(server.handle.broadcast("all"));
            }
            match peer.send(Message::Ping(vec![7; 125].into())) {
                Ok(_) => accepted += 1,
                Err(error) => break error,
            }
            assert!(accepted < 1_000_000, "as many as it likes");
        };
        assert!(matches!(refused, SendError::Full(Message::Ping(_))));
        assert!(peer.queued_bytes() <= 2 * PLENTY);
        assert!(!peer.is_closed());
        let mut arrived = 0;
        while arrived < accepted {
            let (first, _) = raw.frame().expect("no end");
            arrived += u32::from(first == 0x89);
        }
    }
}

/// RFC 6455 §5.5.3: the pong of the latest ping is enough.
fn a_flood_of_pings_is_answered_in_little_memory(transport: Transport) {
    const PINGS: u32 = 50_000;
    for workers in [0, 2] {
        let (tell, told) = unbounded();
        let (handler, _seen) = spy(move |peer: &Peer, _| tell.send(peer.queued_bytes()).unwrap());
        let server = transport.serve_narrow(|s| s.workers(workers), handler);
        let mut raw = upgraded(narrow(server.addr));
        let pings: Vec<u8> = (0..PINGS)
            .flat_map(|n| frame(0x89, &numbered(n, 100)))
            .collect();
        raw.write(&pings);
        raw.write(&frame(0x81, b"done"));
        let queued = told.recv_timeout(WAIT).unwrap();
        assert!(queued < 256 << 10, "{queued} bytes queued");
        let mut next = 0;
        while next < PINGS {
            let (first, payload) = raw.frame().unwrap();
            let n = number(&payload);
            assert!(first == 0x8A && n >= next, "pong {n} after {next}");
            next = n + 1;
        }
    }
}

/// A peer that asks for as many pongs as a small queue holds, and then for more, is not refused that.
fn a_reply_finds_room_behind_many_pongs(transport: Transport) {
    for (limit, pings, size) in [(1000, 5, 500), (4096, 20, 3000), (32 << 10, 200, 14_000)] {
        for workers in [0, 1] {
            let (handler, _seen) = spy(|peer: &Peer, message| {
                peer.send(message).unwrap();
            });
            let server = transport.serve(|s| s.workers(workers).outbound_limit(limit), handler);
            let mut raw = Raw::open(server.addr);
            let mut all: Vec<u8> = (0..pings).flat_map(|_| frame(0x89, &[7; 125])).collect();
            all.extend(frame(0x82, &vec![1; size]));
            raw.write(&all);
            loop {
                match raw.frame() {
                    Some((0x8A, _)) => {}
                    Some((0x82, payload)) => break assert_eq!(payload.len(), size),
                    other => panic!("limit {limit}, {workers} workers: {other:?}"),
                }
            }
        }
    }
}

// ---- only the latest ----

/// Queues more than the kernel takes, so that what comes behind it waits; tells how many messages.
fn dam(peer: &Peer) -> usize {
    let messages = PLENTY.div_ceil(SIZE);
    for n in 0..messages {
        peer.send(numbered(n as u32, SIZE)).unwrap();
    }
    messages
}

fn only_the_latest_of_each_key_waits(transport: Transport) {
    const KEYS: u32 = 10;
    const UPDATES: u32 = 20_000;
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) =
            stalling(transport, |s| s.workers(workers).outbound_limit(2 * PLENTY));
        let dammed = dam(&peer);
        let before = peer.queued_bytes();
        for n in 0..UPDATES {
            peer.send_latest(n % KEYS, numbered(n, SIZE)).unwrap();
            assert!(peer.queued_bytes() <= before + KEYS as usize * FRAME);
        }
        read(&mut raw, dammed);
        let updates = read(&mut raw, KEYS as usize);
        assert!(updates.into_iter().eq(UPDATES - KEYS..UPDATES));
        peer.send("and no more").unwrap();
        assert_eq!(raw.frame(), Some((0x81, b"and no more".to_vec())));
    }
}

/// However the peer's reading and the updates interleave.
fn each_key_grows_newer_up_to_the_newest(transport: Transport) {
    const KEYS: u32 = 10;
    const UPDATES: u32 = 20_000;
    for workers in [0, 2] {
        let (_server, _seen, mut raw, peer) = stalling(transport, |s| s.workers(workers));
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..UPDATES {
                    peer.send_latest(n % KEYS, numbered(n, SIZE)).unwrap();
                }
            });
            let mut latest = HashMap::new();
            while !(UPDATES - KEYS..UPDATES).all(|n| latest.get(&(n % KEYS)) == Some(&n)) {
                let n = read(&mut raw, 1)[0];
                let before = latest.insert(n % KEYS, n);
                assert!(before < Some(n), "{n} after {before:?}");
            }
        });
    }
}

fn a_name_is_a_key_and_sizes_may_change(transport: Transport) {
    let (_server, _seen, mut raw, peer) =
        stalling(transport, |s| s.workers(0).outbound_limit(2 * PLENTY));
    let dammed = dam(&peer);
    for len in [10, 100_000, 4000, 5000, 200] {
        peer.send_latest("long", numbered(0, 300_000)).unwrap();
        let before = peer.queued_bytes();
        peer.send_latest("long", numbered(len as u32, len)).unwrap();
        assert!(peer.queued_bytes() < before - (300_000 - len) + 10);
        peer.send_latest("short", "x").unwrap();
    }
    read(&mut raw, dammed);
    assert_eq!(raw.frame().unwrap().1, numbered(200, 200));
    assert_eq!(raw.frame(), Some((0x81, b"x".to_vec())));
    until("nothing is queued", || peer.queued_bytes() == 0);
}

/// The queue holds one message per key, also while a broadcast is on its way.
fn only_the_latest_waits_behind_a_broadcast(transport: Transport) {
    let everybody = Arc::new(OnceLock::<ServerHandle>::new());
    let handle = everybody.clone();
    let server = transport.serve(
        |s| {
            let _ = everybody.set(s.handle());
            s.workers(0)
        },
        move |peer: &Peer, _: Message| {
            // On the loop: the broadcast is carried out after this.
            handle.get().unwrap().broadcast("first");
            for n in 0..5000 {
                let _ = peer.send_latest(n % 10, numbered(n, SIZE));
            }
        },
    );
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"go"));
    assert_eq!(raw.frame(), Some((0x81, b"first".to_vec())));
    assert!(read(&mut raw, 10).into_iter().eq(4990..5000));
}

// ---- writable ----

fn writable_comes_after_congestion(transport: Transport) {
    for workers in [0, 2] {
        let (marks, marked) = unbounded();
        let (handler, seen) = spy(move |_: &Peer, _| marks.send(()).unwrap());
        // The limit is far away, or the peer would not be heard.
        let server =
            transport.serve_narrow(|s| s.workers(workers).outbound_limit(4 * PLENTY), handler);
        let mut raw = upgraded(narrow(server.addr));
        let peer = seen.peer();
        // When the handler has the message, it has been told all that came before.
        let mark = |raw: &mut Raw| {
            raw.write(&frame(0x81, b"mark"));
            marked.recv_timeout(WAIT).unwrap();
        };
        for round in 1..=3 {
            let mut sent = PLENTY / SIZE;
            for n in 0..sent {
                peer.send(numbered(n as u32, SIZE)).unwrap();
            }
            until("the loop has found the kernel full", || {
                sent += 1;
                peer.send(numbered(sent as u32 - 1, SIZE)) == Ok(Sent::Congested)
            });
            mark(&mut raw);
            // The kernel may have been full for a moment only, until it had passed on what it held.
            // Now both its ends are full, and stay so until something is read.
            seen.writable.try_iter().for_each(drop);
            read(&mut raw, sent);
            assert_eq!(seen.writable.recv_timeout(WAIT).as_ref(), Ok(&peer));
            assert_eq!(peer.queued_bytes(), 0);
            mark(&mut raw);
            assert!(seen.writable.is_empty(), "round {round}: once");
        }
    }
}

/// What is told already, and not heard yet, is not told again.
fn a_queue_that_drains_often_is_writable_once(transport: Transport) {
    let (began, begins) = unbounded();
    let (go, gate) = bounded::<()>(0);
    let (handler, seen) = spy(move |_: &Peer, _| {
        began.send(()).unwrap();
        let _ = gate.recv_timeout(WAIT);
    });
    let server = transport.serve_narrow(|s| s.workers(1).outbound_limit(4 * PLENTY), handler);
    let mut raw = upgraded(narrow(server.addr));
    let peer = seen.peer();
    raw.write(&frame(0x81, b"wait"));
    begins.recv_timeout(WAIT).unwrap();
    for _ in 0..10 {
        let sent = fill(&peer) as usize;
        read(&mut raw, sent);
        until("the queue is empty", || peer.queued_bytes() == 0);
    }
    drop(go);
    // When the handler has this one, it has been told all that came before.
    raw.write(&frame(0x81, b"mark"));
    begins.recv_timeout(WAIT).unwrap();
    assert_eq!(seen.writable.len(), 1);
}

fn writable_comes_only_after_congestion(transport: Transport) {
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, message| assert!(peer.send(message).is_ok()));
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        for n in 0..500 {
            raw.write(&frame(0x82, &numbered(n, SIZE)));
            assert_eq!(read(&mut raw, 1), [n]);
        }
        raw.write(&frame(0x88, b"\x03\xE8"));
        assert_eq!(raw.close_code(), Some(1000));
        seen.end();
        assert!(seen.writable.is_empty());
    }
}

/// Sends a stream of messages as the documentation says: until congested, then when writable.
struct Streaming {
    next: AtomicU32,
    end: u32,
}

impl Streaming {
    fn go_on(&self, peer: &Peer) {
        while self.next.load(Ordering::Relaxed) < self.end {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            match peer.send(numbered(n, SIZE)) {
                Ok(Sent::Queued) => {}
                Ok(Sent::Congested) => return,
                Err(error) => return log_refusal(n, &error),
            }
        }
    }
}

fn log_refusal(n: u32, error: &SendError) {
    eprintln!("message {n}: {error}");
}

impl framemill::Handler for Streaming {
    type Session = ();

    fn open(
        &self,
        _: &framemill::Request,
        _: &Peer,
    ) -> Result<framemill::Accept<()>, framemill::Response> {
        Ok(framemill::Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, _: Message) {
        self.go_on(peer);
    }

    fn writable(&self, (): &mut (), peer: &Peer) {
        self.go_on(peer);
    }
}

/// A handler that stops at `Congested` and goes on at `writable` may stream as much as it likes.
fn streams(transport: Transport, workers: usize, limit: usize) {
    let end = 5000;
    let handler = Streaming {
        next: AtomicU32::new(0),
        end,
    };
    let server = transport.serve_narrow(|s| s.workers(workers).outbound_limit(limit), handler);
    let mut raw = upgraded(narrow(server.addr));
    raw.write(&frame(0x81, b"go"));
    assert!(read(&mut raw, end as usize).into_iter().eq(0..end));
}

fn a_stream_from_a_worker(transport: Transport) {
    streams(transport, 1, 64 << 20);
}

fn a_stream_from_the_loop(transport: Transport) {
    streams(transport, 0, 64 << 20);
}

fn a_stream_from_a_worker_within_the_limit(transport: Transport) {
    streams(transport, 1, 1 << 20);
}

fn a_stream_from_the_loop_within_the_limit(transport: Transport) {
    streams(transport, 0, 1 << 20);
}

/// What a handler sends when `writable` is called goes out, though nothing else happens.
fn what_is_sent_in_writable_is_written(transport: Transport) {
    struct Last;
    impl framemill::Handler for Last {
        type Session = ();
        fn open(
            &self,
            _: &framemill::Request,
            _: &Peer,
        ) -> Result<framemill::Accept<()>, framemill::Response> {
            Ok(framemill::Accept::new(()))
        }
        fn message(&self, (): &mut (), peer: &Peer, _: Message) {
            for n in 0..500 {
                peer.send(numbered(n, SIZE)).unwrap();
            }
        }
        fn writable(&self, (): &mut (), peer: &Peer) {
            peer.send("drained").unwrap();
        }
    }
    for workers in [0, 2] {
        // The limit is far away: only the kernel is full.
        let server = transport.serve_narrow(|s| s.workers(workers).outbound_limit(64 << 20), Last);
        let mut raw = upgraded(narrow(server.addr));
        raw.write(&frame(0x81, b"go"));
        read(&mut raw, 500);
        assert_eq!(raw.frame(), Some((0x81, b"drained".to_vec())));
    }
}

// ---- inbound ----

/// Writes `bytes` until the kernel takes no more; tells how much it took.
fn write_until_stuck(stream: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    written
}

/// With this for a write timeout, a write that fails shows that nobody reads.
const STUCK: Duration = Duration::from_millis(500);

fn a_busy_handler_slows_its_sender_down(transport: Transport) {
    const MESSAGES: u32 = 10_000;
    let (release, gate) = bounded::<()>(0);
    let (handled, done) = unbounded();
    let server = transport.serve_narrow(
        |s| s.workers(2),
        move |_: &Peer, message: Message| {
            let n = number(&message.into_data());
            if n == 0 {
                gate.recv_timeout(WAIT).unwrap();
            }
            handled.send(n).unwrap();
        },
    );
    let mut raw = upgraded(narrow(server.addr));
    let all = frames(0..MESSAGES, 1 << 10);
    raw.stream.set_write_timeout(Some(STUCK)).unwrap();
    let written = write_until_stuck(&mut raw.stream, &all);
    // 64 messages, the read buffer of the loop, and what the kernel holds.
    assert!(written < PLENTY, "{written} bytes were taken");
    assert!(done.is_empty());
    release.send_timeout((), WAIT).unwrap();
    raw.stream.set_write_timeout(Some(WAIT)).unwrap();
    raw.write(&all[written..]);
    for n in 0..MESSAGES {
        assert_eq!(done.recv_timeout(WAIT), Ok(n));
    }
}

/// An echo client that writes all it has while it doesn't read, and reads only once it is stuck.
fn asks_without_reading(transport: Transport, workers: usize, size: usize, total: usize) {
    let (server, bound) = transport.bind_narrow(128 << 10);
    let server = server.origin(Origin::Any).workers(workers);
    let echo = |peer: &Peer, message: Message| peer.send(message);
    let server = bound.running(server.start(echo).unwrap());
    let mut raw = upgraded(socket(server.addr));
    let messages = (total / size) as u32;
    let mut reader = BufReader::with_capacity(1 << 16, raw.stream.try_clone().unwrap());
    let mut stream = raw.stream;
    let (stuck, go) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            stream.set_write_timeout(Some(STUCK)).unwrap();
            let batch = (1 << 20) / size as u32;
            let mut first_stop = Some(stuck);
            for start in (0..messages).step_by(batch as usize) {
                let end = messages.min(start + batch);
                let bytes = frames(start..end, size);
                let written = write_until_stuck(&mut stream, &bytes);
                if written < bytes.len() {
                    if let Some(stuck) = first_stop.take() {
                        stuck.send(start as usize * size + written).unwrap();
                        stream.set_write_timeout(Some(WAIT)).unwrap();
                    }
                    stream.write_all(&bytes[written..]).unwrap();
                }
            }
        });
        let written = go
            .recv_timeout(WAIT)
            .expect("the server slows the client down");
        // The kernel holds most of it: up to 4 MB for the client that sends.
        assert!(written < 16 << 20, "{written} bytes were taken");
        let header = if size < 126 {
            2
        } else if size < 65536 {
            4
        } else {
            10
        };
        let mut echo = vec![0; header + size];
        for n in 0..messages {
            reader.read_exact(&mut echo).unwrap();
            assert_eq!(echo[0], 0x82, "a message, not a close frame");
            assert_eq!(number(&echo[header..]), n);
        }
    });
}

/// It takes what it is sent all the time, but needs longer for what the kernel holds than it has for a pong,
/// and the ping is behind that.
fn a_slow_reader_is_not_put_out(transport: Transport) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (handler, seen) = spy(|_, _| ());
    let server = transport.serve(|s| s.workers(1).ping(PATIENCE, PATIENCE), handler);
    let mut raw = upgraded(narrow(server.addr));
    let peer = seen.peer();
    let start = Instant::now();
    let mut n = 0;
    while start.elapsed() < 5 * PATIENCE {
        while peer.queued_bytes() < 700 << 10 {
            peer.send(numbered(n, SIZE)).expect("it is not put out");
            n += 1;
        }
        let first = raw.frame().expect("it is not put out").0;
        assert!(first == 0x82 || first == 0x89, "{first:x}");
        // 80 KB a second.
        thread::sleep(Duration::from_millis(12));
    }
}

fn asking_long_questions_without_reading_loses_nothing(transport: Transport) {
    for &workers in transport.heavy_workers() {
        asks_without_reading(transport, workers, 1 << 20, 50 << 20);
    }
}

fn asking_short_questions_without_reading_loses_nothing(transport: Transport) {
    for &workers in transport.heavy_workers() {
        asks_without_reading(transport, workers, 64, 20 << 20);
    }
}

/// Several replies to each question, more than the queue holds.
fn several_replies_to_each_question_find_room(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve_narrow(
            |s| s.workers(workers).outbound_limit(64 << 10),
            |peer: &Peer, message: Message| {
                for _ in 0..3 {
                    let _ = peer.send(message.clone());
                }
            },
        );
        let mut raw = upgraded(narrow(server.addr));
        let mut writer = Raw::over(raw.stream.try_clone().unwrap());
        thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..1000 {
                    writer.write(&frames(n..n + 1, 10_000));
                }
            });
            for n in 0..1000 {
                assert_eq!(read(&mut raw, 3), [n; 3]);
            }
        });
    }
}

/// A close frame is answered behind the replies to all that came before it.
fn a_congested_peer_that_closes_gets_all_replies_first(transport: Transport) {
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
        let server = transport.serve(|s| s.workers(workers).outbound_limit(4 << 10), handler);
        let mut raw = Raw::open(server.addr);
        let mut bytes: Vec<u8> = (0..16)
            .flat_map(|n| frame(0x82, &numbered(n, SIZE)))
            .collect();
        bytes.extend(frame(0x88, b"\x03\xE8"));
        raw.write(&bytes);
        let (numbers, code) = numbers(&mut raw);
        assert!(numbers.into_iter().eq(0..16), "workers: {workers}");
        assert_eq!(code, Some(1000));
        let reason: CloseReason = seen.end();
        assert_eq!(reason.undelivered_bytes(), 0);
    }
}

/// Nor does the end of the stream overtake them, though they go behind what is published on the way.
fn a_congested_peer_that_says_no_more_gets_all_replies(transport: Transport) {
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, message: Message| {
            if message.is_text() {
                peer.subscribe("questions");
            } else {
                peer.publish("questions", "another");
                let _ = peer.send(message);
            }
        });
        let settings = |s: Server| s.loops(1).workers(workers).outbound_limit(4 << 10);
        let server = transport.serve(settings, handler);
        let mut other = Raw::open(server.addr);
        other.write(&frame(0x81, b"tell me"));
        until("it is told", || server.handle.subscribers("questions") == 1);
        let mut raw = Raw::open(server.addr);
        raw.write(&frames(0..16, SIZE));
        raw.stream.shutdown(Shutdown::Write).unwrap();
        let (numbers, code) = numbers(&mut raw);
        assert!(numbers.iter().copied().eq(0..16), "{workers}: {numbers:?}");
        assert_eq!(code, None);
        let reason: CloseReason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Eof);
        assert_eq!(reason.undelivered_bytes(), 0);
    }
}

/// What it asked last and was not answered is asked in vain, but its handler is told the end.
fn a_congested_peer_that_is_gone_is_waited_for_no_more(transport: Transport) {
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
        let settings = |s: Server| s.workers(workers).outbound_limit(64 << 10);
        let server = transport.serve_narrow(settings, handler);
        let mut raw = upgraded(narrow(server.addr));
        raw.stream.set_write_timeout(Some(STUCK)).unwrap();
        let questions = frames(0..10_000, SIZE);
        let written = write_until_stuck(&mut raw.stream, &questions);
        assert!(written < questions.len());
        reset(raw.stream);
        seen.end();
    }
}
