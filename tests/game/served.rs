//! The whole server, with clients at real sockets: what it puts people out for, who finds the ship again,
//! and what a slow client gets.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use framemill::{ClientEvent, Clients, CloseReason, Message, Peer, ServerHandle};
use socket2::{Domain, Socket, Type};

use crate::picture::{KIND, LOST, Own, Picture};
use crate::ship::Input;
use crate::stats::Stats;
use crate::support::example::Example;
use crate::support::{Raw, frame, request};
use crate::wire::{ToServer, Token, VERSION, Welcome};
use crate::world::MAX_SHIPS;
use crate::{bots, server};

const WAIT: Duration = Duration::from_secs(30);

fn serve(rate: u32) -> (ServerHandle, String) {
    let stats = Arc::new(Stats::new(false));
    let handle = server::bind("127.0.0.1:0", 2000)
        .and_then(|server| server.start(server::Game::new(rate, stats)))
        .unwrap();
    let url = format!("ws://{}/", handle.local_addr().unwrap());
    (handle, url)
}

struct Player {
    peer: Peer,
    events: Receiver<ClientEvent>,
    picture: Picture,
}

impl Player {
    fn connect(url: &str) -> Self {
        let (peer, events) = framemill::connect(url).unwrap();
        let picture = Picture::default();
        Self {
            peer,
            events,
            picture,
        }
    }

    /// Connects and says hello.
    fn join(url: &str, name: &str, token: Option<Token>) -> (Self, Welcome) {
        let player = Self::connect(url);
        player.say(&ToServer::Hello {
            token,
            name: name.into(),
        });
        let welcome = Welcome::decode(&player.next()).expect("a welcome comes first");
        (player, welcome)
    }

    fn say(&self, message: &ToServer) {
        self.peer.send(message.encode()).unwrap();
    }

    fn next(&self) -> Vec<u8> {
        match self.events.recv_timeout(WAIT).unwrap() {
            ClientEvent::Message(message) => message.into_data().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// The next snapshot.
    fn look(&mut self) -> Own {
        loop {
            let bytes = self.next();
            if bytes[0] == KIND {
                return self.picture.apply(&bytes).expect("it can be read");
            }
        }
    }

    /// How it ends.
    fn end(&self) -> CloseReason {
        let deadline = Instant::now() + WAIT;
        loop {
            match self.events.recv_deadline(deadline).unwrap() {
                ClientEvent::Close(reason) => return reason,
                ClientEvent::Message(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn thrust(first: u32, x: i8) -> ToServer {
    let input = Input {
        x,
        y: 0,
        dash: false,
    };
    ToServer::Input {
        first,
        inputs: vec![input; 3],
    }
}

#[test]
fn a_ship_obeys() {
    let (server, url) = serve(20);
    let (mut ada, _) = Player::join(&url, "Ada", None);
    let start = ada.look().motion;
    let mut first = 1;
    while ada.look().motion.x < start.x + 50 * 1024 {
        ada.say(&thrust(first, 127));
        first += 3;
        assert!(first < 3000, "it does not move");
    }
    let own = ada.look();
    assert!(own.done > 0 && own.done < first);
    ada.say(&ToServer::Ping(*b"12345678"));
    while ada.next() != b"\x0412345678" {}
    assert!(server.shutdown(WAIT));
}

/// Lets the ship stand where it is, but by an input.
fn steers(player: &mut Player) {
    player.say(&thrust(1, 0));
    let deadline = Instant::now() + WAIT;
    while player.look().done < 3 {
        assert!(Instant::now() < deadline, "nothing is carried out");
    }
}

#[test]
fn whoever_breaks_the_rules_is_told_why() {
    let (_server, url) = serve(20);
    // Without hello, and with it.
    let ends = |joined: bool, messages: &[Message]| -> u16 {
        let player = match joined {
            true => Player::join(&url, "Eve", None).0,
            false => Player::connect(&url),
        };
        for message in messages {
            // It may be over before the last.
            let _ = player.peer.send(message.clone());
        }
        player.end().code().into()
    };
    let hello = || {
        Message::from(
            ToServer::Hello {
                token: None,
                name: "Eve".into(),
            }
            .encode(),
        )
    };
    assert_eq!(ends(false, &["hello".into()]), 4000);
    assert_eq!(ends(false, &[vec![9].into()]), 4000);
    assert_eq!(
        ends(
            false,
            &[[vec![1, VERSION + 1], vec![0; 17]].concat().into()]
        ),
        4001
    );
    assert_eq!(ends(false, &[thrust(1, 0).encode().into()]), 4003);
    assert_eq!(ends(true, &["hello".into()]), 4000);
    assert_eq!(ends(true, &[vec![2, 1].into()]), 4000);
    assert_eq!(ends(true, &[hello()]), 4003);
    assert_eq!(
        ends(true, &[thrust(2, 0).encode().into()]),
        4002,
        "not the next"
    );
    assert_eq!(
        ends(true, &[thrust(1, -128).encode().into()]),
        4002,
        "too much"
    );
    assert_eq!(ends(true, &[vec![0; 129].into()]), 1009);
    let pings: Vec<_> = vec![ToServer::Ping([0; 8]).encode().into(); 300];
    assert_eq!(ends(true, &pings), 1008);
}

#[test]
fn who_comes_back_finds_the_ship() {
    let (_server, url) = serve(20);
    let (mut ada, mine) = Player::join(&url, "Ada", None);
    let (mut bob, his) = Player::join(&url, "Bob", None);
    assert!(!mine.resumed && mine.ship != his.ship && mine.token != his.token);
    let at = ada.look().motion;
    steers(&mut ada);
    ada.peer.close(1001.into(), "");
    ada.end();
    let lost = |bob: &Player| {
        let mut ships = bob.picture.ships.iter();
        ships.any(|ship| ship.id == mine.ship && ship.flags & LOST != 0)
    };
    while !lost(&bob) {
        bob.look();
    }
    // A token of nobody is a ship of one's own.
    let (_eve, hers) = Player::join(&url, "Eve", Some([7; 16]));
    assert!(!hers.resumed && hers.token != [7; 16]);

    let (mut back, again) = Player::join(&url, "Ada 2", Some(mine.token));
    assert_eq!(
        again,
        Welcome {
            resumed: true,
            ..mine.clone()
        }
    );
    assert_eq!(back.look().motion, at, "it has waited where it was");
    while lost(&bob) {
        bob.look();
    }
    let name = |ship: &&crate::picture::SeenShip| ship.id == mine.ship && ship.name == "Ada 2";
    while bob.picture.ships.iter().find(name).is_none() {
        bob.look();
    }
    // With another connection while the first is still there: only one of them plays.
    let (mut second, _) = Player::join(&url, "Ada 2", Some(mine.token));
    assert_eq!(u16::from(back.end().code()), 4004);
    second.look();
    second.say(&thrust(1, 100));
    while second.look().done < 3 {}
    while lost(&bob) {
        bob.look();
    }
}

#[test]
fn a_ship_that_was_never_steered_does_not_wait() {
    let (_server, url) = serve(20);
    let (mut bob, _) = Player::join(&url, "Bob", None);
    let (ada, hers) = Player::join(&url, "Ada", None);
    let is_there = |bob: &Player| bob.picture.ships.iter().any(|ship| ship.id == hers.ship);
    let deadline = Instant::now() + WAIT;
    while !is_there(&bob) {
        bob.look();
        assert!(Instant::now() < deadline, "she is not seen");
    }
    ada.peer.close(1001.into(), "");
    while is_there(&bob) {
        let ship = bob.look();
        let lost = bob.picture.ships.iter().any(|one| one.flags & LOST != 0);
        assert!(!lost, "it waits at {}", ship.tick);
        assert!(Instant::now() < deadline, "it is still there");
    }
    let (_ada, again) = Player::join(&url, "Ada", Some(hers.token));
    assert!(!again.resumed);
}

/// Whoever comes and goes, with a ship each time, keeps nobody out.
#[test]
fn ships_left_behind_keep_nobody_out() {
    let (_server, url) = serve(20);
    let addr: SocketAddr = url["ws://".len()..].trim_end_matches('/').parse().unwrap();
    let hello = ToServer::Hello {
        token: None,
        name: "Eve".into(),
    };
    let said = [hello.encode(), thrust(1, 0).encode()].map(|message| frame(0x82, &message));
    let came = || {
        let mut eve = Raw::open(addr);
        eve.write(&said.concat());
        loop {
            let (_, message) = eve.frame().expect("she is let in");
            if let Some(welcome) = Welcome::decode(&message) {
                return welcome;
            }
        }
    };
    let first = came();
    for _ in 1..MAX_SHIPS {
        came();
    }
    let (mut ada, mine) = Player::join(&url, "Ada", None);
    // The token of whoever was there before is not one for her ship.
    let (_eve, again) = Player::join(&url, "Eve", Some(first.token));
    assert!(!again.resumed && again.ship != mine.ship);
    ada.look();
    assert!(!ada.peer.is_closed(), "she was not put out");
}

/// A client that does not read for a while is not sent what would be old when it arrives: after the
/// little that is on its way already it has a gap, and then it is told what is now.
#[test]
fn a_slow_client_has_a_gap_and_little_past() {
    let (_server, url) = serve(60);
    let crowd = Clients::start(1, 0).unwrap();
    bots::start(&crowd, &url, 40).unwrap();
    let (mut quick, _) = Player::join(&url, "quick", None);
    let deadline = Instant::now() + 2 * WAIT;
    // On a busy machine there may be so few snapshots that all of them fit.
    loop {
        let (gap, past) = doze(&url, &mut quick);
        // What the kernel holds for the server, and what it holds here.
        assert!(past <= 20 << 10, "{past} bytes of the past");
        if gap > 60 {
            break;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "a gap of {gap} ticks, {past} bytes of the past");
    }
    assert!(crowd.connections() == 40, "nobody else was put out");
}

type Slow = tungstenite::WebSocket<TcpStream>;

/// Does not read for 400 ticks; after ten seconds it would be put out. The longest gap between two
/// snapshots until it knows what is now, in ticks, and the bytes of those before.
fn doze(url: &str, quick: &mut Player) -> (u32, usize) {
    let (mut slow, mut picture, began) = join_a_crowd(url);
    let (mut now, mut ping) = (began, began);
    while now < began + 400 {
        now = quick.look().tick;
        // A sign of life now and then; else it would be taken for gone.
        if now > ping + 60 {
            ping = now;
            let ping = ToServer::Ping([0; 8]).encode();
            slow.send(ping.into()).expect("it is not put out");
        }
    }
    let (mut last, mut past, mut gap) = (began, 0, 0);
    while last <= now {
        let bytes = slow.read().expect("it is not put out").into_data();
        if bytes.first() != Some(&KIND) {
            continue;
        }
        let own = picture
            .apply(&bytes)
            .expect("what comes after a gap fits what came before it");
        gap = gap.max(own.tick - last);
        last = own.tick;
        if own.tick <= now {
            past += bytes.len();
        }
    }
    (gap, past)
}

/// Where there is much to tell. With what the first snapshot says, and its tick.
fn join_a_crowd(url: &str) -> (Slow, Picture, u32) {
    let addr: SocketAddr = url["ws://".len()..].trim_end_matches('/').parse().unwrap();
    let deadline = Instant::now() + WAIT;
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // What waits on this side is not the server's.
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.connect(&addr.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let (mut slow, _) = tungstenite::client::client(url, stream).unwrap();
        let hello = ToServer::Hello {
            token: None,
            name: "slow".into(),
        };
        slow.send(hello.encode().into()).unwrap();
        let mut picture = Picture::default();
        let own = loop {
            let bytes = slow.read().unwrap().into_data();
            if bytes.first() == Some(&KIND) {
                break picture.apply(&bytes).unwrap();
            }
        };
        let ships = picture.ships.iter().filter(|ship| ship.flags & LOST == 0);
        if ships.count() > 15 {
            return (slow, picture, own.tick);
        }
        assert!(Instant::now() < deadline, "there is no crowd");
    }
}

#[test]
fn an_address_has_so_many_players() {
    let game = Example::start("game", &["--bots", "0"]);
    let mut there = Vec::new();
    let refused = (0..60).position(|_| {
        let mut raw = Raw::connect(game.addr.parse::<SocketAddr>().unwrap());
        raw.write(request(&game.addr).as_bytes());
        let refused = raw.head().starts_with("HTTP/1.1 429");
        there.push(raw);
        refused
    });
    assert_eq!(refused, Some(50));
}

// ---- the program ----

/// Plays at a running example until the board tells of so many players.
fn see_players(game: &Example, players: u8) {
    let (ada, _) = Player::join(&format!("ws://{}/", game.addr), "Ada", None);
    let deadline = Instant::now() + WAIT;
    let mut board = ada.next();
    while board[..2] != [3, players] {
        assert!(Instant::now() < deadline, "{board:?}");
        board = ada.next();
    }
}

#[test]
fn bots_come_to_where_it_listens() {
    for addr in ["127.0.0.2:0", "0.0.0.0:0"] {
        let game = Example::start_on("game", addr, &["--bots", "3"]);
        see_players(&game, 4);
    }
}

/// From the moment on that it says where it is.
#[test]
fn it_ends_in_order_when_it_is_told_to() {
    let game = Example::start("game", &["--bots", "2000"]);
    let status = game.stop();
    assert!(status.success(), "{status}");
}

#[test]
fn it_goes_on_without_a_terminal() {
    let args = ["--addr", "127.0.0.1:0", "--bots", "0", "--stats"];
    let game = Example::start_unheard("game", &args);
    let (ada, _) = Player::join(&format!("ws://{}/", game.addr), "Ada", None);
    let deadline = Instant::now() + WAIT;
    // A board each second, as a line of figures is printed each second.
    for _ in 0..3 {
        while ada.next()[0] != 3 {
            assert!(Instant::now() < deadline, "no board");
        }
    }
    assert!(game.stop().success());
}
