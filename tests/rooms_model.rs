//! Any joins, leaves, messages and ends in rooms, and any ways to send in one call, against naive models:
//! everyone gets exactly what the model says, in order.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use crossbeam_channel::bounded;
use framemill::{
    CloseCode, Members, Membership, Message, Peer, PeerId, Refused, Room, Rooms, Server,
    ServerHandle,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::spy::spy;
use support::{Raw, Transport, WAIT};

const ROOMS: usize = 3;
const CLIENTS: usize = 5;

/// What is done, all by one thread; of the rooms, each is in order.
#[derive(Clone, Debug)]
enum Op {
    /// Of a client into a room, which may refuse.
    Join(usize, usize, bool),
    Leave(usize, usize),
    Say(usize, usize, Say),
    HangUp(usize),
}

#[derive(Clone, Debug)]
enum Say {
    All,
    AllBut,
    Me,
    Out(usize),
    Close,
    Panic,
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        6 => Just(Say::All),
        6 => Just(Say::AllBut),
        6 => Just(Say::Me),
        2 => (0..CLIENTS).prop_map(Say::Out),
        1 => Just(Say::Close),
        1 => Just(Say::Panic),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let (client, room) = (0..CLIENTS, 0..ROOMS);
    prop_oneof![
        6 => (client.clone(), room.clone(), prop::bool::weighted(0.15))
            .prop_map(|(c, r, refuse)| Op::Join(c, r, refuse)),
        3 => (client.clone(), room.clone()).prop_map(|(c, r)| Op::Leave(c, r)),
        16 => (client.clone(), room, say()).prop_map(|(c, r, say)| Op::Say(c, r, say)),
        1 => client.prop_map(Op::HangUp),
    ]
}

/// What goes in and out of a room, with the way out for the moment: real or modelled.
trait Outlet {
    fn one(&mut self, to: usize, text: String);
    fn all(&mut self, but: Option<usize>, text: String);
}

/// The room, as it is counted by both.
#[derive(Default)]
struct Count {
    name: String,
    calls: usize,
}

impl Count {
    fn text(&mut self, what: &str) -> String {
        self.calls += 1;
        format!("{} {} {what}", self.name, self.calls)
    }

    fn join(&mut self, who: usize, len: usize, out: &mut impl Outlet) {
        let text = self.text(&format!("{who} comes to {len}"));
        out.all(None, text.clone());
        out.one(who, text);
    }

    fn say(&mut self, who: usize, how: &Say, out: &mut impl Outlet) {
        let text = self.text(&format!("{how:?} by {who}"));
        match how {
            Say::All => {
                out.one(who, format!("{text} before"));
                out.all(None, text.clone());
                out.one(who, format!("{text} behind"));
            }
            Say::AllBut => out.all(Some(who), text),
            Say::Me | Say::Panic => out.one(who, text),
            Say::Out(_) | Say::Close => out.all(None, text),
        }
    }
}

struct Real {
    count: Count,
    numbers: BTreeMap<usize, Peer>,
}

struct RealOutlet<'a> {
    members: &'a mut Members,
    numbers: &'a BTreeMap<usize, Peer>,
}

impl Outlet for RealOutlet<'_> {
    fn one(&mut self, to: usize, text: String) {
        let _ = self.numbers[&to].send(text);
    }

    fn all(&mut self, but: Option<usize>, text: String) {
        match but {
            Some(but) => self.members.broadcast_except(self.numbers[&but].id(), text),
            None => self.members.broadcast(text),
        }
    }
}

impl Real {
    fn number(&self, id: PeerId) -> usize {
        let mut numbers = self.numbers.iter();
        *numbers.find(|(_, peer)| peer.id() == id).unwrap().0
    }
}

impl Room for Real {
    type Join = (usize, bool);

    fn join(
        &mut self,
        room: &mut Members,
        peer: &Peer,
        (who, refuse): (usize, bool),
    ) -> Result<(), Refused> {
        if refuse {
            return Err(Refused);
        }
        self.numbers.insert(who, peer.clone());
        let len = room.len();
        assert!(!room.contains(peer.id()));
        let numbers = &self.numbers;
        let mut out = RealOutlet {
            members: room,
            numbers,
        };
        self.count.join(who, len, &mut out);
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message) {
        let who = self.number(peer.id());
        assert!(room.contains(peer.id()));
        let how = parse(message.to_text().unwrap());
        let numbers = &self.numbers;
        let mut out = RealOutlet {
            members: room,
            numbers,
        };
        self.count.say(who, &how, &mut out);
        match how {
            Say::Out(whom) => {
                let id = self.numbers.get(&whom).map(Peer::id);
                let was = id.is_some_and(|id| room.remove(id));
                assert!(!was || !room.contains(id.unwrap()));
            }
            Say::Close => room.close(),
            Say::Panic => panic!("on purpose"),
            _ => {}
        }
    }

    fn leave(&mut self, room: &mut Members, peer: &Peer) {
        let who = self.number(peer.id());
        assert!(!room.contains(peer.id()));
        let text = self.count.text(&format!("{who} goes"));
        room.broadcast(text);
    }
}

fn parse(text: &str) -> Say {
    match text.split_once(' ') {
        Some((_, whom)) => Say::Out(whom.parse().unwrap()),
        None => match text {
            "All" => Say::All,
            "AllBut" => Say::AllBut,
            "Me" => Say::Me,
            "Close" => Say::Close,
            _ => Say::Panic,
        },
    }
}

fn unparse(say: &Say) -> String {
    match say {
        Say::Out(whom) => format!("Out {whom}"),
        other => format!("{other:?}"),
    }
}

/// What each client is to get of each room.
type Expected = HashMap<(usize, usize), Vec<String>>;

/// One room of the model: whoever is in it, in which joining.
#[derive(Default)]
struct Modelled {
    count: Option<Count>,
    members: BTreeMap<usize, u64>,
}

struct ModelOutlet<'a> {
    room: usize,
    members: &'a BTreeMap<usize, u64>,
    expected: &'a mut Expected,
}

impl Outlet for ModelOutlet<'_> {
    fn one(&mut self, to: usize, text: String) {
        self.expected.entry((to, self.room)).or_default().push(text);
    }

    fn all(&mut self, but: Option<usize>, text: String) {
        for &to in self.members.keys().filter(|&&to| Some(to) != but) {
            self.one(to, text.clone());
        }
    }
}

impl Modelled {
    /// Closes if nobody is left.
    fn settle(&mut self) {
        if self.members.is_empty() {
            self.count = None;
        }
    }

    fn leave(&mut self, room: usize, who: usize, expected: &mut Expected) {
        self.go(room, who, expected);
        self.settle();
    }

    fn go(&mut self, room: usize, who: usize, expected: &mut Expected) {
        if self.members.remove(&who).is_none() {
            return;
        }
        let text = self.count.as_mut().unwrap().text(&format!("{who} goes"));
        let members = &self.members;
        let mut out = ModelOutlet {
            room,
            members,
            expected,
        };
        out.all(None, text);
    }

    fn join(&mut self, room: usize, who: usize, joining: u64, refuse: bool, e: &mut Expected) {
        // A room that is left so does not close.
        self.go(room, who, e);
        if refuse {
            self.settle();
        } else {
            let count = self.count.get_or_insert_with(|| Count {
                name: room.to_string(),
                calls: 0,
            });
            let members = &self.members;
            let mut out = ModelOutlet {
                room,
                members,
                expected: e,
            };
            count.join(who, members.len(), &mut out);
            self.members.insert(who, joining);
        }
    }

    /// Gives those whose connections are closed.
    fn say(&mut self, room: usize, who: usize, say: &Say, expected: &mut Expected) -> Vec<usize> {
        let members = &self.members;
        let mut out = ModelOutlet {
            room,
            members,
            expected,
        };
        self.count.as_mut().unwrap().say(who, say, &mut out);
        let mut closed = Vec::new();
        match say {
            Say::Out(whom) => drop(self.members.remove(whom)),
            Say::Close => self.members.clear(),
            Say::Panic => closed = std::mem::take(&mut self.members).into_keys().collect(),
            _ => {}
        }
        self.settle();
        closed
    }
}

/// How the connection of a client is.
#[derive(Clone, Copy, PartialEq)]
enum Life {
    Alive,
    /// A room panicked: it gets no more than was expected by then, and 1011.
    Closed,
    Gone,
}

fn try_ops(ops: &[Op], (loops, workers): (usize, usize)) {
    let (handler, seen) = spy(|_, _| ());
    let server = Transport::Plain.serve(|s| s.loops(loops).workers(workers), handler);
    let rooms = Rooms::new(|name| Real {
        count: Count {
            name: name.into(),
            calls: 0,
        },
        numbers: BTreeMap::new(),
    });
    let mut raws: Vec<Option<Raw>> = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..CLIENTS {
        raws.push(Some(Raw::open(server.addr)));
        peers.push(seen.peer());
    }
    let mut lives = [Life::Alive; CLIENTS];
    let mut memberships: HashMap<(usize, usize), (u64, Membership<Real>)> = HashMap::new();
    let mut model: Vec<Modelled> = (0..ROOMS).map(|_| Modelled::default()).collect();
    let mut expected = Expected::new();
    for (n, op) in ops.iter().enumerate() {
        let joining = n as u64;
        match op {
            &Op::Join(who, room, refuse) if lives[who] == Life::Alive => {
                model[room].join(room, who, joining, refuse, &mut expected);
                let joined = rooms.join(&room.to_string(), &peers[who], (who, refuse));
                // Only now is the one of before dropped, which has no effect any more.
                memberships.insert((who, room), (joining, joined));
            }
            &Op::Leave(who, room) => {
                if let Some((joining, membership)) = memberships.remove(&(who, room)) {
                    if model[room].members.get(&who) == Some(&joining) {
                        model[room].leave(room, who, &mut expected);
                    }
                    membership.leave();
                }
            }
            Op::Say(who, room, say) => {
                let (who, room) = (*who, *room);
                let Some((joining, membership)) = memberships.get(&(who, room)) else {
                    continue;
                };
                if model[room].members.get(&who) == Some(joining) {
                    for closed in model[room].say(room, who, say, &mut expected) {
                        if lives[closed] == Life::Alive {
                            lives[closed] = Life::Closed;
                        }
                    }
                }
                membership.message(unparse(say).into());
            }
            &Op::HangUp(who) => {
                raws[who] = None;
                lives[who] = Life::Gone;
                for (room, modelled) in model.iter_mut().enumerate() {
                    if let Some((joining, membership)) = memberships.remove(&(who, room)) {
                        if modelled.members.get(&who) == Some(&joining) {
                            modelled.leave(room, who, &mut expected);
                        }
                        drop(membership);
                    }
                }
            }
            Op::Join(..) => {}
        }
    }
    // All that was passed on has been dealt with.
    for (room, modelled) in model.iter().enumerate() {
        let (done, is_done) = bounded(1);
        let there = rooms.find(&room.to_string());
        let there = there
            .is_some_and(|there| there.with(move |_, members| done.send(members.len()).unwrap()));
        match (there, modelled.members.len()) {
            (false, len) => assert_eq!(len, 0),
            (true, 0) => drop(is_done.recv_timeout(WAIT)),
            (true, len) => assert_eq!(is_done.recv_timeout(WAIT), Ok(len)),
        }
    }
    for who in 0..CLIENTS {
        let Some(raw) = &mut raws[who] else { continue };
        let mut got: HashMap<usize, Vec<String>> = HashMap::new();
        if lives[who] == Life::Alive {
            peers[who].send("end").unwrap();
        }
        let closed = loop {
            let (first, payload) = raw.frame().unwrap();
            if first == 0x88 {
                break Some(u16::from_be_bytes([payload[0], payload[1]]));
            }
            let text = String::from_utf8(payload).unwrap();
            if text == "end" {
                break None;
            }
            let room = text.split(' ').next().unwrap().parse().unwrap();
            got.entry(room).or_default().push(text);
        };
        let code = (lives[who] == Life::Closed).then(|| CloseCode::Error.into());
        assert_eq!(closed, code, "client {who}");
        for room in 0..ROOMS {
            let got = got.remove(&room).unwrap_or_default();
            let all = expected.remove(&(who, room)).unwrap_or_default();
            if lives[who] == Life::Alive {
                assert_eq!(got, all, "client {who} in room {room}");
            } else {
                assert!(
                    all.starts_with(&got),
                    "client {who} in room {room}: {got:?} of {all:?}"
                );
            }
        }
    }
    drop(memberships);
    support::until("all rooms are closed", || rooms.is_empty());
}

// ---- one call ----

/// What a room does in a call, to one of its members or to many.
#[derive(Clone, Debug)]
enum Way {
    One(usize),
    /// So long that it is kept by reference.
    Long(usize),
    Members,
    MembersBut(usize),
    Everybody,
    Publish,
    PublishBut(usize),
    Subscribe(usize),
    Unsubscribe(usize),
    Close(usize),
}

fn way() -> impl Strategy<Value = Way> {
    let who = 0..CLIENTS;
    prop_oneof![
        8 => who.clone().prop_map(Way::One),
        2 => who.clone().prop_map(Way::Long),
        4 => Just(Way::Members),
        4 => who.clone().prop_map(Way::MembersBut),
        2 => Just(Way::Everybody),
        6 => Just(Way::Publish),
        4 => who.clone().prop_map(Way::PublishBut),
        6 => who.clone().prop_map(Way::Subscribe),
        3 => who.clone().prop_map(Way::Unsubscribe),
        1 => who.prop_map(Way::Close),
    ]
}

impl Way {
    fn go(&self, n: usize, members: &mut Members, peers: &[Peer], server: &ServerHandle) {
        let text = n.to_string();
        match *self {
            Self::One(to) => drop(peers[to].send(text)),
            Self::Long(to) => drop(peers[to].send(format!("{text} {}", "x".repeat(5000)))),
            Self::Members => members.broadcast(text),
            Self::MembersBut(but) => members.broadcast_except(peers[but].id(), text),
            Self::Everybody => assert!(server.broadcast(text)),
            Self::Publish => assert!(server.publish("topic", text)),
            Self::PublishBut(but) => assert!(peers[but].publish("topic", text)),
            Self::Subscribe(who) => drop(peers[who].subscribe("topic")),
            Self::Unsubscribe(who) => drop(peers[who].unsubscribe("topic")),
            Self::Close(who) => drop(peers[who].close(CloseCode::Normal, "")),
        }
    }
}

/// The numbers of what each client is to get.
fn model(ways: &[Way]) -> Vec<Vec<usize>> {
    let mut expected = vec![Vec::new(); CLIENTS];
    let (mut subscribed, mut closed) = ([false; CLIENTS], [false; CLIENTS]);
    for (n, way) in ways.iter().enumerate() {
        for (who, expected) in expected.iter_mut().enumerate() {
            let reached = match *way {
                Way::One(to) | Way::Long(to) => who == to,
                Way::Members | Way::Everybody => true,
                Way::MembersBut(but) => who != but,
                Way::Publish => subscribed[who],
                Way::PublishBut(but) => subscribed[who] && who != but,
                _ => false,
            };
            if reached && !closed[who] {
                expected.push(n);
            }
        }
        match *way {
            Way::Subscribe(who) => subscribed[who] = true,
            Way::Unsubscribe(who) => subscribed[who] = false,
            Way::Close(who) => closed[who] = true,
            _ => {}
        }
    }
    expected
}

struct Silent;

impl Room for Silent {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}
}

fn try_ways(ways: Vec<Way>, (loops, workers): (usize, usize)) {
    let (handler, seen) = spy(|_, _| ());
    let settings = |s: Server| s.loops(loops).workers(workers).outbound_limit(16 << 20);
    let server = Transport::Plain.serve(settings, handler);
    let mut raws = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..CLIENTS {
        raws.push(Raw::open(server.addr));
        peers.push(seen.peer());
    }
    let rooms = Rooms::new(|_| Silent);
    let join = |peer: &Peer| rooms.join("it", peer, ());
    let memberships: Vec<_> = peers.iter().map(join).collect();
    let expected = model(&ways);
    let handle = server.handle.clone();
    // Behind the joining.
    memberships[0].room().with(move |_, members| {
        assert_eq!(members.len(), CLIENTS);
        for (n, way) in ways.iter().enumerate() {
            way.go(n, members, &peers, &handle);
        }
        for peer in &peers {
            peer.close(CloseCode::Normal, "");
        }
    });
    for (mut raw, expected) in raws.into_iter().zip(expected) {
        let mut got: Vec<usize> = Vec::new();
        loop {
            let (first, payload) = raw.frame().unwrap();
            if first == 0x88 {
                break;
            }
            let text = String::from_utf8(payload).unwrap();
            got.push(text.split(' ').next().unwrap().parse().unwrap());
        }
        assert_eq!(got, expected);
    }
}

// ---- with threads ----

fn run<T: Debug>(cases: u32, strategy: &impl Strategy<Value = T>, test: impl Fn(T)) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn with_threads(threads: (usize, usize)) {
    let ops = prop::collection::vec(op(), 1..150);
    run(48, &ops, |ops| try_ops(&ops, threads));
    let ways = prop::collection::vec(way(), 1..150);
    run(48, &ways, |ways| try_ways(ways, threads));
}

#[test]
fn on_the_loop() {
    with_threads((1, 0));
}

#[test]
fn on_two_loops() {
    with_threads((2, 0));
}

#[test]
fn on_one_worker() {
    with_threads((1, 1));
}

#[test]
fn on_four_workers() {
    with_threads((2, 4));
}
