//! User code may send from the destructor of a thread-local of its own, when those of the engine on the same
//! thread are gone already. A panic there would end the process.

mod support;

use std::cell::RefCell;
use std::thread;

use crossbeam_channel::Receiver;
use framemill::{
    ClientEvent, Members, Membership, Message, Origin, Overflow, Peer, Refused, Room, Rooms,
    Server, ServerHandle, connect,
};
use support::spy::spy;
use support::{Raw, WAIT, frame, serve};

/// Called when its thread is about to end.
struct Late(Box<dyn FnOnce()>);

struct Slot(RefCell<Option<Late>>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(late) = self.0.take() {
            (late.0)();
        }
    }
}

thread_local!(static LATE: Slot = const { Slot(RefCell::new(None)) });

/// Does this at the very end of the thread: destructors run in the reverse order of the first uses.
fn at_the_end(act: impl FnOnce() + 'static) {
    LATE.with(|slot| {
        slot.0.borrow_mut().get_or_insert(Late(Box::new(act)));
    });
}

fn texts<const N: usize>(raw: &mut Raw) -> [String; N] {
    std::array::from_fn(|_| String::from_utf8(raw.frame().expect("a frame").1).unwrap())
}

/// With a peer, on a thread of its own: what it does in the end comes second.
fn twice(peer: &Peer, act: impl Fn(&Peer, &str) + Send + 'static) {
    let peer = peer.clone();
    let thread = thread::spawn(move || {
        let act = std::rc::Rc::new(act);
        let (late, again) = (peer.clone(), act.clone());
        at_the_end(move || again(&late, "second"));
        act(&peer, "first");
    });
    thread.join().unwrap();
}

#[test]
fn on_a_thread_of_the_users() {
    for (workers, overflow) in [(0, Overflow::Close), (1, Overflow::DropOldest)] {
        let (handler, seen) = spy(|_, _| ());
        let server = serve(|s| s.workers(workers).overflow(overflow), handler);
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        twice(&peer, |peer, text| {
            peer.send(text).unwrap();
        });
        assert_eq!(texts(&mut raw), ["first", "second"]);
        twice(&peer, |peer, text| {
            peer.send_latest(text, text).unwrap();
        });
        assert_eq!(texts(&mut raw), ["first", "second"]);
        // More than is kept by way of small buffers.
        let long = |text: &str| text.repeat(10_000);
        twice(&peer, move |peer, text| {
            peer.send(long(text)).unwrap();
        });
        assert_eq!(texts(&mut raw), [long("first"), long("second")]);
        let handle = server.handle.clone();
        peer.subscribe("all");
        twice(&peer, move |_, text| {
            assert!(handle.broadcast(text) && handle.publish("all", text));
        });
        assert_eq!(texts(&mut raw), ["first", "first", "second", "second"]);
        twice(&peer, |peer, _| {
            peer.close(1000.into(), "");
        });
        assert_eq!(raw.close_code(), Some(1000));
    }
}

#[test]
fn by_a_client() {
    let (handler, _seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
    let server = serve(|s| s.workers(1), handler);
    let (peer, events) = connect(format!("ws://{}/", server.addr)).unwrap();
    twice(&peer, |peer, text| {
        peer.send(text).unwrap();
    });
    let messages = |events: &Receiver<ClientEvent>| loop {
        match events.recv_timeout(WAIT).expect("an answer") {
            ClientEvent::Message(message) => return message,
            _ => continue,
        }
    };
    for text in ["first", "second"] {
        assert_eq!(messages(&events), Message::text(text));
    }
}

/// Tells all when somebody leaves.
struct Lobby;

impl Room for Lobby {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, _: &Peer, message: Message) {
        room.broadcast(message);
    }

    fn leave(&mut self, room: &mut Members, _: &Peer) {
        room.broadcast("somebody leaves");
    }
}

#[test]
fn with_a_place_in_a_room() {
    for workers in [0, 1] {
        let (handler, seen) = spy(|_, _| ());
        let server = serve(|s| s.workers(workers), handler);
        let rooms = Rooms::new(|_| Lobby);
        let mut raws = [Raw::open(server.addr), Raw::open(server.addr)];
        let peers = [seen.peer(), seen.peer()];
        let join = |peer: &Peer| rooms.join("lobby", peer, ());
        let places = [join(&peers[0]), join(&peers[1])];
        let [first, second] = places;
        let keep = |place: Membership<Lobby>, handle: ServerHandle| {
            let thread = thread::spawn(move || {
                at_the_end(move || {
                    place.message("goodbye".into());
                    drop(place);
                });
                handle.broadcast("hello");
            });
            thread.join().unwrap();
        };
        keep(first, server.handle.clone());
        let heard: [String; 3] = texts(&mut raws[1]);
        assert_eq!(heard, ["hello", "goodbye", "somebody leaves"]);
        drop(second);
    }
}

/// Such a thread is no loop any more: the server has threads of its own.
#[test]
fn a_server_that_is_run_there() {
    let (handler, seen) = spy(|_, _| ());
    let other = serve(|s| s.workers(0), handler);
    let mut raw = Raw::open(other.addr);
    let peer = seen.peer();
    let server = Server::bind("127.0.0.1:0").unwrap().origin(Origin::Any);
    let handle = server.handle();
    let addr = handle.local_addr().unwrap();
    let thread = thread::spawn(move || {
        at_the_end(move || {
            let echo = |peer: &Peer, message: Message| peer.send(message);
            server.workers(0).run(echo).unwrap();
        });
        // What is kept for that is gone first.
        peer.send("hello").unwrap();
    });
    assert_eq!(texts(&mut raw), ["hello"]);
    let mut late = Raw::open(addr);
    late.write(&frame(0x81, b"late"));
    assert_eq!(texts(&mut late), ["late"]);
    handle.begin_shutdown(WAIT);
    assert_eq!(late.close_code(), Some(1001));
    drop(late);
    thread.join().unwrap();
}
