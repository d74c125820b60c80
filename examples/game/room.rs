//! The arena as a [`Room`]: the one who owns the world. Handlers pass messages on; a tick moves the world
//! and sends snapshots, all of which go out together when it is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use framemill::{CloseCode, Members, Message, Peer, PeerId, Refused, Room, Tick};

use crate::snapshot::View;
use crate::stats::Stats;
use crate::wire::{BadMessage, Board, ToServer, Token, Welcome, code};
use crate::world::{HERTZ, World};

/// Ticks between two boards.
const BOARD: u32 = HERTZ;
/// How many are on the board.
const BEST: usize = 6;
/// A client that could not be sent a snapshot for so many ticks is of no use to its player.
const TOO_SLOW: u32 = 10 * HERTZ;
/// Merged ticks that are made up for; of a longer stop the rest is lost.
const MAKE_UP: u32 = 10;

/// What somebody shows who wants in.
pub(crate) struct Pass {
    pub(crate) token: Option<Token>,
    pub(crate) name: String,
}

struct Player {
    ship: u16,
    /// What its client has, or will have before the next snapshot.
    view: View,
    /// Tick of the last snapshot.
    sent: u32,
}

pub(crate) struct Arena {
    world: World,
    players: HashMap<PeerId, Player>,
    /// Whose ship is whose, connected or lost.
    seats: HashMap<Token, u16>,
    /// Ticks from one snapshot of a client to the next.
    interval: u32,
    stats: Arc<Stats>,
    /// Where snapshots are written.
    buffer: Vec<u8>,
}

impl Room for Arena {
    type Join = Pass;

    fn join(&mut self, room: &mut Members, peer: &Peer, pass: Pass) -> Result<(), Refused> {
        let mut found = None;
        if let Some(token) = pass.token {
            let seat = self.seats.get(&token).copied();
            found = seat.filter(|ship| self.world.find(*ship, &pass.name));
            if let Some(ship) = found {
                self.put_out(room, ship);
            }
        }
        let (ship, token, resumed) = match (found, pass.token) {
            (Some(ship), Some(token)) => (ship, token, true),
            _ => {
                let Some(ship) = self.world.add(&pass.name) else {
                    peer.close(CloseCode::Again, "the arena is full");
                    return Err(Refused);
                };
                (ship, rand::random(), false)
            }
        };
        // Whoever had a ship by this number before, it is another one now.
        self.seats.retain(|_, taken| *taken != ship);
        self.seats.insert(token, ship);
        let rate = (HERTZ / self.interval) as u8; // at most 60
        let welcome = Welcome {
            ship,
            resumed,
            token,
            rate,
        };
        let _ = peer.send(welcome.encode());
        let player = Player {
            ship,
            view: View::default(),
            sent: self.world.tick,
        };
        self.players.insert(peer.id(), player);
        Ok(())
    }

    fn message(&mut self, _: &mut Members, peer: &Peer, message: Message) {
        let Some(player) = self.players.get(&peer.id()) else {
            return;
        };
        let (code, why) = match ToServer::decode(&message.into_data()) {
            Ok(ToServer::Input { first, inputs }) => {
                match self.world.input(player.ship, first, &inputs) {
                    Ok(()) => return,
                    Err(_) => (code::INPUT, "not an input of a ship"),
                }
            }
            Ok(ToServer::Hello { .. }) => (code::HELLO, "hello comes once"),
            Ok(ToServer::Ping(_)) => return, // the handler has answered
            Err(BadMessage::Version) => (code::VERSION, "reload the page"),
            Err(BadMessage::Malformed) => (code::MALFORMED, "not a message of the game"),
        };
        peer.close(code.into(), why);
    }

    /// The ship stays for a while, as its player may come back; unless nobody has ever steered it.
    fn leave(&mut self, _: &mut Members, peer: &Peer) {
        let Some(Player { ship, .. }) = self.players.remove(&peer.id()) else {
            return;
        };
        if self.world.ship(ship).is_some_and(|ship| ship.steered) {
            self.world.lose(ship);
        } else {
            self.world.remove(ship);
            self.seats.retain(|_, taken| *taken != ship);
        }
    }

    fn tick(&mut self, room: &mut Members, tick: Tick) {
        let began = Instant::now();
        for _ in 0..=tick.merged.min(MAKE_UP) {
            if !self.world.step().is_empty() {
                let world = &self.world;
                self.seats.retain(|_, ship| world.ship(*ship).is_some());
            }
        }
        self.snapshots(room);
        if self.world.tick % BOARD == 0 {
            room.broadcast(self.board());
        }
        let players = self.players.len();
        self.stats
            .tick(began.elapsed(), tick.late, tick.merged, players);
    }
}

impl Arena {
    /// A new arena that sends each client `rate` snapshots a second, or what comes closest among the
    /// divisors of the tick rate.
    pub(crate) fn new(rate: u32, stats: Arc<Stats>) -> Self {
        Self {
            world: World::new(rand::random()),
            players: HashMap::new(),
            seats: HashMap::new(),
            interval: (HERTZ / rate.max(1)).clamp(1, HERTZ),
            stats,
            buffer: Vec::new(),
        }
    }

    /// Ends the connection that still holds a ship whose player has come on another.
    fn put_out(&mut self, room: &mut Members, ship: u16) {
        let old = self.players.iter().find(|(_, one)| one.ship == ship);
        let Some((id, _)) = old.map(|(id, player)| (*id, player.ship)) else {
            return;
        };
        if let Some(peer) = room.get(id) {
            peer.close(code::TAKEN_OVER.into(), "you play elsewhere");
        }
        room.remove(id);
        self.players.remove(&id);
    }

    /// Sends a snapshot to all whose turn it is, spread over the ticks by the numbers of their ships.
    ///
    /// A client whose last one has not left for the kernel is passed over, and asked again in the next
    /// tick: what it gets then is what has changed since the one that it has. So its queue never holds more
    /// than one snapshot, and what it sees is older than its way is long by no more than what the kernel
    /// holds, which is kept small where connections are accepted.
    fn snapshots(&mut self, room: &Members) {
        let tick = self.world.tick;
        for (id, player) in &mut self.players {
            let age = tick - player.sent;
            let turn = (tick + u32::from(player.ship)) % self.interval == 0;
            if !(turn || age > self.interval) {
                continue;
            }
            let Some(peer) = room.get(*id) else { continue };
            if peer.queued_bytes() > 0 {
                if turn {
                    self.stats.skip();
                }
                if age > TOO_SLOW {
                    peer.close(code::TOO_SLOW.into(), "too slow");
                }
                continue;
            }
            let before = self.stats.wants_json().then(|| player.view.clone());
            self.buffer.clear();
            player
                .view
                .delta(&self.world, player.ship, &mut self.buffer);
            if let Some(before) = before {
                let bytes = self.buffer.len();
                let (after, ship) = (&player.view, player.ship);
                self.stats.json(bytes, &before, after, &self.world, ship);
            }
            self.stats.sent(self.buffer.len());
            player.sent = tick;
            // If it is closed, it leaves soon.
            let _ = peer.send(self.buffer.clone());
        }
    }

    fn board(&self) -> Vec<u8> {
        let mut ships: Vec<_> = self.world.ships().collect();
        ships.sort_by_key(|(id, ship)| (std::cmp::Reverse(ship.score), *id));
        let best = ships.iter().take(BEST).map(|(id, ship)| {
            let place = [ship.motion.x, ship.motion.y].map(|at| (at >> 14) as u8); // 22 bits to 8
            (*id, ship.score, place, &*ship.name)
        });
        Board {
            players: ships.len(),
            best: best.collect(),
        }
        .encode()
    }
}
