//! Any joins, leaves, messages and ends, against a naive model: everyone gets exactly what the model
//! says, in order.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::thread;

use framemill::{Bytes, CloseCode, Message, Peer, ServerHandle};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use support::spy::{Seen, spy};
use support::{Raw, Running, Transport, WAIT, frame, over_every_transport};

over_every_transport! {
    one_thread,
    many_threads,
    one_thread_and_compression,
}

const TOPICS: usize = 3;

/// Something that one thread does.
#[derive(Clone, Debug)]
enum Op {
    Join(Index, usize),
    Leave(Index, usize),
    /// From a peer, or from the server.
    Publish(Option<Index>, usize, Payload),
    /// Of this key only the latest matters.
    Latest(Option<Index>, usize, u8, Payload),
    Send(Index, Payload),
    Broadcast(Payload),
    Open,
    Close(Index),
    HangUp(Index),
}

#[derive(Clone, Debug)]
struct Payload {
    text: bool,
    len: usize,
}

fn payload() -> impl Strategy<Value = Payload> {
    let len = prop_oneof![6 => 0..300_usize, 2 => 3000..6000_usize, 1 => Just(40_000)];
    (any::<bool>(), len).prop_map(|(text, len)| Payload { text, len })
}

fn lasting() -> impl Strategy<Value = Op> {
    let (who, topic) = (any::<Index>, 0..TOPICS);
    let from = || prop::option::weighted(0.6, any::<Index>());
    prop_oneof![
        6 => (who(), topic.clone()).prop_map(|(who, topic)| Op::Join(who, topic)),
        3 => (who(), topic.clone()).prop_map(|(who, topic)| Op::Leave(who, topic)),
        8 => (from(), topic.clone(), payload()).prop_map(|(from, t, p)| Op::Publish(from, t, p)),
        4 => (from(), topic, 0..2_u8, payload())
            .prop_map(|(from, topic, key, payload)| Op::Latest(from, topic, key, payload)),
        3 => (who(), payload()).prop_map(|(who, payload)| Op::Send(who, payload)),
        1 => payload().prop_map(Op::Broadcast),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        25 => lasting(),
        2 => Just(Op::Open),
        1 => any::<Index>().prop_map(Op::Close),
        1 => any::<Index>().prop_map(Op::HangUp),
    ]
}

/// A message that someone is to get.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    text: bool,
    payload: Vec<u8>,
    /// Those with the same may be left out, but for the last.
    key: Option<(usize, u8)>,
}

impl Expected {
    /// The message number `n` of this thread.
    fn new(thread: usize, n: usize, like: &Payload, key: Option<(usize, u8)>) -> Self {
        let mut payload = format!("{thread} {n} ").into_bytes();
        payload.extend((0..like.len).map(|i| b'a' + (i * (n + 7) % 26) as u8));
        Self {
            text: like.text,
            payload,
            key,
        }
    }

    fn message(&self) -> Message {
        match self.text {
            true => Message::text(String::from_utf8(self.payload.clone()).unwrap()),
            false => Message::binary(Bytes::from(self.payload.clone())),
        }
    }
}

struct Client {
    raw: Raw,
    peer: Peer,
}

/// What one thread does, and what the clients should get of it.
struct Model {
    thread: usize,
    sent: usize,
    members: [BTreeSet<usize>; TOPICS],
    expected: Vec<Vec<Expected>>,
}

impl Model {
    fn new(thread: usize, clients: usize) -> Self {
        Self {
            thread,
            sent: 0,
            members: Default::default(),
            expected: vec![Vec::new(); clients],
        }
    }

    /// Topics of one thread are not those of another.
    fn topic(&self, topic: usize) -> String {
        format!("{topic} of {}", self.thread)
    }

    fn next(&mut self, like: &Payload, key: Option<(usize, u8)>) -> Expected {
        self.sent += 1;
        Expected::new(self.thread, self.sent, like, key)
    }

    fn act(&mut self, op: &Op, alive: &[usize], peers: &[Peer], server: &ServerHandle) {
        let choose = |index: &Index| *index.get(alive);
        match op {
            Op::Join(who, topic) => {
                let who = choose(who);
                self.members[*topic].insert(who);
                assert!(peers[who].subscribe(&self.topic(*topic)));
            }
            Op::Leave(who, topic) => {
                let who = choose(who);
                let was = self.members[*topic].remove(&who);
                assert_eq!(peers[who].unsubscribe(&self.topic(*topic)), was);
            }
            Op::Publish(from, topic, like) => {
                let (name, message) = (self.topic(*topic), self.next(like, None));
                let from = from.as_ref().map(choose);
                assert!(match from {
                    Some(from) => peers[from].publish(&name, message.message()),
                    None => server.publish(&name, message.message()),
                });
                self.published(*topic, from, &message);
            }
            Op::Latest(from, topic, key, like) => {
                let (name, message) = (self.topic(*topic), self.next(like, Some((*topic, *key))));
                let from = from.as_ref().map(choose);
                assert!(match from {
                    Some(from) => peers[from].publish_latest(&name, *key, message.message()),
                    None => server.publish_latest(&name, *key, message.message()),
                });
                self.published(*topic, from, &message);
            }
            Op::Send(who, like) => {
                let (who, message) = (choose(who), self.next(like, None));
                peers[who].send(message.message()).unwrap();
                self.expected[who].push(message);
            }
            Op::Broadcast(like) => {
                let message = self.next(like, None);
                assert!(server.broadcast(message.message()));
                for &who in alive {
                    self.expected[who].push(message.clone());
                }
            }
            Op::Open | Op::Close(_) | Op::HangUp(_) => unreachable!("not here"),
        }
        for (topic, members) in self.members.iter().enumerate() {
            let topic = self.topic(topic);
            assert_eq!(server.subscribers(&topic), members.len());
            for &who in alive {
                assert_eq!(peers[who].is_subscribed(&topic), members.contains(&who));
            }
        }
    }

    fn published(&mut self, topic: usize, from: Option<usize>, message: &Expected) {
        for &who in self.members[topic].iter().filter(|&&who| Some(who) != from) {
            self.expected[who].push(message.clone());
        }
    }

    fn gone(&mut self, who: usize) {
        self.members.iter_mut().for_each(|topic| {
            topic.remove(&who);
        });
    }
}

/// The messages up to the text "end" or a close frame.
fn read(raw: &mut Raw) -> Vec<(bool, Vec<u8>)> {
    let mut got = Vec::new();
    loop {
        let (first, payload) = raw.frame().expect("one more message");
        match first {
            0x81 if payload == b"end" => return got,
            0x88 => return got,
            0x81 | 0x82 => got.push((first == 0x81, payload)),
            // Compressed.
            _ => got.push((first == 0xC1, support::deflate::unzip(&payload))),
        }
    }
}

/// Whether this is what one thread's model says.
fn compare(got: &[(bool, Vec<u8>)], expected: &[Expected]) {
    let place: HashMap<&[u8], usize> = expected
        .iter()
        .enumerate()
        .map(|(n, expected)| (&*expected.payload, n))
        .collect();
    let mut plain = expected.iter().filter(|expected| expected.key.is_none());
    let mut newest = HashMap::new();
    for (text, payload) in got {
        let Some(&n) = place.get(&payload[..]) else {
            panic!("not for this one: {:?}", Bytes::copy_from_slice(payload));
        };
        assert_eq!(*text, expected[n].text);
        match expected[n].key {
            None => assert_eq!(plain.next(), Some(&expected[n])),
            Some(key) => {
                let before = newest.insert(key, n);
                assert!(before < Some(n), "not newer than what came before");
            }
        }
    }
    assert_eq!(plain.next(), None);
    for (n, key) in expected
        .iter()
        .enumerate()
        .filter_map(|(n, e)| Some((n, e.key?)))
    {
        assert!(newest.get(&key) >= Some(&n), "message {n} has no successor");
    }
}

struct World {
    server: Running,
    seen: Seen,
    compress: bool,
}

impl World {
    fn new(transport: Transport, loops: usize, workers: usize, compress: bool) -> Self {
        let (handler, seen) = spy(|_, _| ());
        let settings = |s: framemill::Server| {
            let s = s.loops(loops).workers(workers).outbound_limit(64 << 20);
            #[cfg(feature = "deflate")]
            let s = match compress {
                true => s.deflate(framemill::Deflate::new()),
                false => s,
            };
            s
        };
        let server = transport.serve(settings, handler);
        Self {
            server,
            seen,
            compress,
        }
    }

    /// With compression, every other client agrees to it.
    fn client(&self, n: usize) -> Client {
        let raw = match self.compress && n % 2 == 0 {
            true => support::deflate::open(self.server.addr),
            false => Raw::open(self.server.addr),
        };
        let peer = self.seen.peer();
        Client { raw, peer }
    }

    /// Waits until the handler was told the end of this peer.
    fn ended(&self, peer: &Peer) {
        let (ended, _) = self.seen.closed.recv_timeout(WAIT).expect("an end");
        assert_eq!(&ended, peer);
    }

    fn by_one_thread(&self, ops: &[Op]) {
        let handle = &self.server.handle;
        let mut clients: Vec<Option<Client>> = (0..3).map(|n| Some(self.client(n))).collect();
        let mut peers: Vec<Peer> = clients.iter().flatten().map(|c| c.peer.clone()).collect();
        let mut model = Model::new(0, clients.len());
        for op in ops {
            let alive: Vec<usize> = (0..clients.len())
                .filter(|&n| clients[n].is_some())
                .collect();
            match op {
                Op::Open => {
                    let client = self.client(clients.len());
                    peers.push(client.peer.clone());
                    clients.push(Some(client));
                    model.expected.push(Vec::new());
                }
                // Someone stays.
                Op::Close(_) | Op::HangUp(_) if alive.len() == 1 => {}
                Op::Close(who) => {
                    let who = *who.get(&alive);
                    let mut client = clients[who].take().unwrap();
                    assert!(client.peer.close(CloseCode::Normal, ""));
                    compare(&read(&mut client.raw), &model.expected[who]);
                    client.raw.write(&frame(0x88, b"\x03\xE8"));
                    self.ended(&client.peer);
                    model.gone(who);
                }
                Op::HangUp(who) => {
                    let who = *who.get(&alive);
                    let client = clients[who].take().unwrap();
                    drop(client.raw);
                    self.ended(&client.peer);
                    model.gone(who);
                }
                op => model.act(op, &alive, &peers, handle),
            }
        }
        for (n, client) in clients.into_iter().enumerate() {
            if let Some(Client { mut raw, peer }) = client {
                peer.send("end").unwrap();
                compare(&read(&mut raw), &model.expected[n]);
                drop(raw);
                self.ended(&peer);
            }
        }
        let left = (0..TOPICS).map(|topic| handle.subscribers(&model.topic(topic)));
        assert_eq!(left.sum::<usize>(), 0);
    }

    fn by_threads(&self, threads: &[Vec<Op>]) {
        let handle = &self.server.handle;
        let clients: Vec<Client> = (0..4).map(|n| self.client(n)).collect();
        let peers: Vec<Peer> = clients.iter().map(|client| client.peer.clone()).collect();
        let alive: Vec<usize> = (0..clients.len()).collect();
        let models: Vec<Model> = thread::scope(|scope| {
            let (peers, alive) = (&peers, &alive);
            let threads = threads.iter().enumerate().map(|(n, ops)| {
                scope.spawn(move || {
                    let mut model = Model::new(n, peers.len());
                    for op in ops {
                        model.act(op, alive, peers, handle);
                    }
                    model
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (n, Client { mut raw, peer }) in clients.into_iter().enumerate() {
            peer.send("end").unwrap();
            let got = read(&mut raw);
            for model in &models {
                let tag = format!("{} ", model.thread);
                let of_thread =
                    |(_, payload): &&(bool, Vec<u8>)| payload.starts_with(tag.as_bytes());
                let got: Vec<_> = got.iter().filter(of_thread).cloned().collect();
                compare(&got, &model.expected[n]);
            }
            drop(raw);
            self.ended(&peer);
        }
    }
}

fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        // A case that fails by silence takes a while.
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

const THREADS: [(usize, usize); 3] = [(1, 0), (1, 2), (3, 2)];

fn one_thread(transport: Transport) {
    for (loops, workers) in THREADS {
        let world = World::new(transport, loops, workers, false);
        check(16, prop::collection::vec(any_op(), 0..60), |ops| {
            world.by_one_thread(&ops);
        });
    }
}

fn many_threads(transport: Transport) {
    for (loops, workers) in THREADS {
        let world = World::new(transport, loops, workers, false);
        let ops = prop::collection::vec(lasting(), 0..40);
        check(10, prop::collection::vec(ops, 2..4), |threads| {
            world.by_threads(&threads);
        });
    }
}

fn one_thread_and_compression(transport: Transport) {
    if !cfg!(feature = "deflate") {
        return;
    }
    for (loops, workers) in THREADS {
        let world = World::new(transport, loops, workers, true);
        check(8, prop::collection::vec(any_op(), 0..60), |ops| {
            world.by_one_thread(&ops);
        });
    }
}
