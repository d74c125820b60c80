//! Topics that keep their last messages, through a backplane that keeps them and says what it is told to:
//! whoever waits for it gets what it missed, whatever happens meanwhile.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use framemill::{
    Backplane, BackplaneState, Followed, Follower, History, Kept, Message, Node, Offset, Peer,
    PeerId, Post, Server, Since, Tail,
};
use support::following::{client, message, place, server, until_live};
use support::spy::{PLENTY, Seen, narrow, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, serve, until};

/// A backplane that keeps histories, and says nothing by itself.
#[derive(Clone, Debug, Default)]
struct Elsewhere {
    node: Arc<Mutex<Option<Weak<dyn Node>>>>,
    published: Arc<AtomicU64>,
}

/// The number of this node there.
const HERE: u64 = 7;

impl Backplane for Elsewhere {
    fn start(&self, node: Weak<dyn Node>) -> framemill::Result<()> {
        *self.node.lock().unwrap() = Some(node);
        Ok(())
    }

    fn subscribe(&self, _: &str) {}

    fn unsubscribe(&self, _: &str) {}

    fn publish(&self, _: Post) {}

    fn keeps_history(&self) -> bool {
        true
    }

    fn publish_kept(&self, _: Post, _: History, _: Option<PeerId>) -> bool {
        self.published.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn mark(&self, _: &str) -> Option<(u64, u64)> {
        Some((HERE, self.published.load(Ordering::SeqCst)))
    }

    fn state(&self) -> BackplaneState {
        BackplaneState::default()
    }

    fn stop(&self, _: Instant) {}
}

impl Elsewhere {
    fn server(&self) -> (Running, Seen) {
        let backplane = self.clone();
        server(|s| s.history("kept*", History::last(10)).backplane(backplane))
    }

    fn node(&self) -> Arc<dyn Node> {
        let node = self.node.lock().unwrap();
        node.as_ref().and_then(Weak::upgrade).unwrap()
    }

    /// It is asked, and tells what it has: each message with who published it, as the how-manieth.
    fn has(&self, topic: &str, messages: &[(u64, u64, &str)]) {
        let _ = self.node().missing(topic);
        self.answers(topic, messages);
    }

    fn answers(&self, topic: &str, messages: &[(u64, u64, &str)]) {
        let kept = messages.iter().zip(1..);
        let kept: Vec<_> = kept.map(|(it, n)| numbered_by(topic, n, it)).collect();
        let last = kept.last().map(|kept| kept.offset).unwrap_or_default();
        let topic = topic.into();
        self.node().adopt(Tail { topic, last, kept });
    }
}

/// What comes next, of this topic: its place there, and what was published.
fn placed(raw: &mut Raw, topic: &str) -> (u64, String) {
    let mut follower = Follower::new();
    follower.follow(topic, Since::Now);
    match follower.take(message(raw)) {
        Followed::Message {
            offset, message, ..
        } => (place(offset), message.to_string()),
        other => panic!("{other:?}"),
    }
}

/// How far somebody has come.
fn seen(number: u64) -> Offset {
    format!("5-{number}").parse().unwrap()
}

fn numbered_by(topic: &str, n: u64, &(node, sequence, text): &(u64, u64, &str)) -> Kept {
    Kept {
        post: Post::new(topic, Message::text(text)),
        offset: seen(n),
        node,
        sequence,
        except: None,
        age: Duration::ZERO,
    }
}

/// While nothing is known there.
#[test]
fn nobody_is_waited_for_who_has_gone() {
    let elsewhere = Elsewhere::default();
    let server = elsewhere.server();
    let handle = &server.0.handle;
    let (mut raw, stays) = client(&server);
    for _ in 0..2 {
        assert!(stays.subscribe_from("kept", Since::Start));
        assert_eq!(handle.subscribers("kept"), 1);
    }
    for _ in 0..100 {
        let (_raw, peer) = client(&server);
        assert!(peer.subscribe_from("kept", Since::Start));
    }
    until("only one waits", || handle.subscribers("kept") == 1);
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    elsewhere.has("kept", &[(1, 1, "a"), (HERE, 1, "b")]);
    assert_eq!(until_live(&mut raw, &mut follower), ["a", "b"]);
    assert!(stays.unsubscribe("kept"));
    assert!(stays.subscribe_from("kept", Since::Start) && stays.unsubscribe("kept"));
    assert_eq!(handle.subscribers("kept"), 0);
}

/// Of what is fetched, those who want what is new get what was published here since.
#[test]
fn what_is_published_after_subscribing_arrives() {
    let elsewhere = Elsewhere::default();
    let server = elsewhere.server();
    let handle = &server.0.handle;
    assert!(handle.publish("kept", "before"));
    let (mut new, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Now));
    let (mut plain, peer) = client(&server);
    assert!(peer.subscribe("kept"));
    assert!(handle.publish("kept", "after"));
    let before = [(1, 1, "other"), (HERE, 1, "before"), (1, 2, "another")];
    let all = [before[0], before[1], before[2], (HERE, 2, "after")];
    elsewhere.has("kept", &all);
    let mut follower = Follower::new();
    follower.follow("kept", Since::Now);
    assert_eq!(until_live(&mut new, &mut follower), ["after"]);
    assert_eq!(placed(&mut plain, "kept"), (4, "after".to_owned()));
    // Nothing is published after this.
    assert!(peer.unsubscribe("kept"));
    let (mut none, peer) = client(&server);
    assert!(peer.subscribe_from("kept2", Since::Now));
    elsewhere.has("kept2", &[(1, 3, "other"), (HERE, 2, "before")]);
    follower.follow("kept2", Since::Now);
    assert!(until_live(&mut none, &mut follower).is_empty());
}

/// The settings of two nodes differ, as while they are replaced one by one.
#[test]
fn what_another_node_does_not_keep_has_no_number() {
    let elsewhere = Elsewhere::default();
    let server = elsewhere.server();
    let (mut raw, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Start) && peer.subscribe("other"));
    elsewhere.has("kept", &[(1, 1, "first")]);
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    assert_eq!(until_live(&mut raw, &mut follower), ["first"]);
    let node = elsewhere.node();
    node.deliver(Post::new("kept", Message::text("without a number")));
    assert!(node.deliver_kept(numbered_by("kept", 2, &(1, 2, "second"))));
    assert_eq!(placed(&mut raw, "kept"), (2, "second".to_owned()));
    // And the other way round.
    assert!(node.deliver_kept(numbered_by("other", 9, &(1, 3, "third"))));
    assert_eq!(message(&mut raw), Message::text("third"));
}

/// What was missed comes to those who are live as if it were published: the loops are not flooded with it.
#[test]
fn much_that_was_missed_comes_by_and_by() {
    const MISSED: usize = 20_000;
    let elsewhere = Elsewhere::default();
    let (release, held) = crossbeam_channel::bounded::<()>(1);
    let (busy, is_busy) = crossbeam_channel::bounded::<()>(1);
    let (handler, seen) = spy(move |_: &Peer, _: Message| {
        busy.send(()).unwrap();
        held.recv_timeout(WAIT).unwrap();
    });
    let backplane = elsewhere.clone();
    let settings = |s: Server| {
        let s = s.workers(0).outbound_limit(64 << 20).backplane(backplane);
        s.history("kept*", History::last(10))
    };
    let server = (serve(settings, handler), seen);
    let (mut raw, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Start));
    elsewhere.has("kept", &[]);
    assert_eq!(message(&mut raw), Message::text("live 0-0 kept\n"));
    let texts: Vec<_> = (0..MISSED).map(|n| n.to_string()).collect();
    let missed: Vec<_> = texts
        .iter()
        .zip(1..)
        .map(|(text, n)| (1, n, &**text))
        .collect();
    let waiting = || server.0.handle.metrics().loops[0].commands_queued;
    thread::scope(|scope| {
        raw.write(&support::frame(0x81, b"x"));
        is_busy.recv_timeout(WAIT).unwrap();
        scope.spawn(|| elsewhere.has("kept", &missed));
        let mut most = 0;
        until("some wait for the loop", || {
            most = waiting();
            most >= 256
        });
        assert!(most < 400, "{most}");
        release.send(()).unwrap();
    });
    for (text, n) in texts.into_iter().zip(1..) {
        assert_eq!(placed(&mut raw, "kept"), (n, text));
    }
}

/// The answer to what was asked before it came says nothing of what it has seen elsewhere.
#[test]
fn whoever_comes_after_the_question_waits_for_the_next_answer() {
    let all = [(1, 1, "a"), (1, 2, "b"), (1, 3, "c"), (1, 4, "d")];
    let elsewhere = Elsewhere::default();
    let server = elsewhere.server();
    let node = elsewhere.node();
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    let (mut here, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Start));
    elsewhere.has("kept", &all[..1]);
    assert_eq!(until_live(&mut here, &mut follower), ["a"]);
    node.out_of_step("kept");
    let (mut before, peer) = client(&server);
    assert!(peer.subscribe_from("kept", seen(2)));
    assert_eq!(node.missing("kept"), Some(seen(1)));
    let (mut after, peer) = client(&server);
    assert!(peer.subscribe_from("kept", seen(3)));
    elsewhere.answers("kept", &all[..2]);
    assert!(until_live(&mut before, &mut follower).is_empty());
    assert_eq!(node.missing("kept"), Some(seen(2)), "one still waits");
    elsewhere.answers("kept", &all);
    assert_eq!(until_live(&mut after, &mut follower), ["d"]);
    assert_eq!(node.missing("kept"), None);
    for (raw, first) in [(&mut here, 2), (&mut before, 3)] {
        for n in first..=4 {
            let (.., text) = all[n as usize - 1];
            assert_eq!(placed(raw, "kept"), (n, text.to_owned()));
        }
    }
}

/// Those who wanted it have left: it says too little for whoever has come since.
#[test]
fn an_answer_to_those_who_left_is_none_to_others() {
    let all = [(1, 1, "a"), (1, 2, "b"), (1, 3, "c"), (1, 4, "d")];
    let elsewhere = Elsewhere::default();
    let server = elsewhere.server();
    let node = elsewhere.node();
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    let (mut first, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Start));
    elsewhere.has("kept", &all[..2]);
    assert_eq!(until_live(&mut first, &mut follower), ["a", "b"]);
    node.out_of_step("kept");
    assert_eq!(node.missing("kept"), Some(seen(2)));
    peer.unsubscribe("kept");
    let (mut second, peer) = client(&server);
    assert!(peer.subscribe_from("kept", Since::Start));
    let kept: Vec<_> = (3..=4)
        .map(|n| numbered_by("kept", n, &all[n as usize - 1]))
        .collect();
    node.adopt(Tail {
        topic: "kept".into(),
        last: seen(4),
        kept,
    });
    assert_eq!(node.missing("kept"), Some(Offset::default()));
    elsewhere.answers("kept", &all);
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    let got = until_live(&mut second, &mut follower);
    assert_eq!(got, ["a", "b", "c", "d"]);
}

/// It has sent what came before a number, and not yet what has it: which is another message by now. What it
/// has sent may have been another too.
#[test]
fn whoever_is_behind_is_told_of_numbers_that_were_given_twice() {
    let elsewhere = Elsewhere::default();
    let (handler, seen) = spy(|_, _| ());
    let backplane = elsewhere.clone();
    let settings = |s: Server| s.history("kept", History::last(10)).backplane(backplane);
    let server = (Transport::Plain.serve_narrow(settings, handler), seen);
    let long = "x".repeat(PLENTY);
    let mut raw = upgraded(narrow(server.0.addr));
    let peer = server.1.peer();
    assert!(peer.subscribe_from("kept", Since::Start));
    elsewhere.has("kept", &[(1, 1, &long), (1, 2, &long)]);
    // No more than one finds room. It is longer than the answer to the handshake, which may be counted still.
    until("the first is on its way", || {
        peer.queued_bytes() > PLENTY / 2
    });
    elsewhere.node().out_of_step("kept");
    elsewhere.has("kept", &[(1, 1, &long), (2, 1, "another")]);
    let mut follower = Follower::new();
    follower.follow("kept", Since::Start);
    let got = until_live(&mut raw, &mut follower).into_iter();
    let got: Vec<_> = got.map(|text| text.replace(&long, "long")).collect();
    assert_eq!(got, ["long", "gap", "another"]);
}
