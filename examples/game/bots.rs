//! Players that need no screen: real clients, through the library's own. They know what the page knows,
//! answer each snapshot with the inputs of the time since the last, and come back with their token.

use framemill::{
    Client, ClientHandle, ClientHandler, Clients, CloseReason, HeaderMap, Message, Peer, Reconnect,
    Result,
};

use crate::picture::{Own, Picture, SHIELDED};
use crate::ship::{FULL, Input, UNIT};
use crate::wire::{ToServer, Token, Welcome};

const NAMES: &[&str] = &[
    "Vega", "Altair", "Deneb", "Lyra", "Mira", "Rigel", "Spica", "Antares", "Capella", "Sirius",
    "Atria", "Nashira", "Electra", "Maia", "Alcor", "Mizar", "Polaris", "Adhara", "Sabik",
    "Tarazed", "Enif", "Kochab", "Naos", "Izar",
];
/// Of the arena.
const MIDDLE: (f32, f32) = (2048.0, 2048.0);
/// A mine that is closer than this is one to get away from.
const FEAR: f32 = 130.0;
/// At this distance a bot robs others.
const GREED: f32 = 150.0;
/// Snapshots for which a bot keeps to what it set out for.
const RESOLVE: u32 = 12;

/// Starts so many bots. They go on until `clients` is let go of.
pub(crate) fn start(clients: &Clients, url: &str, bots: usize) -> Result<Vec<ClientHandle>> {
    let client = Client::new(url)?.reconnect(Reconnect::new());
    (0..bots)
        .map(|n| clients.open(client.clone(), Bot::new(n)))
        .collect()
}

pub(crate) struct Bot {
    name: String,
    picture: Picture,
    token: Option<Token>,
    /// Tick of the last snapshot.
    tick: Option<u32>,
    /// Number of the next input.
    next: u32,
    goal: Option<(f32, f32)>,
    /// Snapshots until it looks for another.
    resolve: u32,
    /// A random number, and what makes it unlike the others.
    mood: u32,
}

impl ClientHandler for Bot {
    fn open(&mut self, peer: &Peer, _: &HeaderMap) {
        self.picture = Picture::default();
        self.tick = None;
        self.next = 1;
        let hello = ToServer::Hello {
            token: self.token,
            name: self.name.clone(),
        };
        let _ = peer.send(hello.encode());
    }

    fn message(&mut self, peer: &Peer, message: Message) {
        let bytes = message.into_data();
        if let Some(welcome) = Welcome::decode(&bytes) {
            self.token = Some(welcome.token);
        } else if bytes.first() == Some(&crate::picture::KIND) {
            match self.picture.apply(&bytes) {
                Some(own) => self.answer(peer, &own),
                None => log::error!("{}: a snapshot that can't be read", self.name),
            }
        }
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        log::info!("{}: {reason}", self.name);
    }
}

impl Bot {
    pub(crate) fn new(number: usize) -> Self {
        let name = NAMES[number % NAMES.len()];
        let name = match number / NAMES.len() {
            0 => name.to_owned(),
            n => format!("{name} {}", n + 1),
        };
        Self {
            name,
            picture: Picture::default(),
            token: None,
            tick: None,
            next: 1,
            goal: None,
            resolve: 0,
            mood: number as u32 + 1,
        }
    }

    /// An input for each tick since the last snapshot.
    fn answer(&mut self, peer: &Peer, own: &Own) {
        let passed = self
            .tick
            .replace(own.tick)
            .map_or(3, |last| own.tick - last);
        // What the server has not carried out yet, it need not be told again.
        let count = passed.min(16).saturating_sub(u32::from(own.waiting > 6));
        let mut input = self.steer(own);
        let mut inputs = Vec::new();
        for _ in 0..count {
            inputs.push(input);
            input.dash = false;
        }
        let first = self.next;
        self.next += count;
        if count > 0 {
            let _ = peer.send(ToServer::Input { first, inputs }.encode());
        }
    }

    fn steer(&mut self, own: &Own) -> Input {
        let at = (units(own.motion.x), units(own.motion.y));
        if self.resolve == 0 || self.goal.is_none_or(|goal| distance(at, goal) < 20.0) {
            self.goal = self.look_around(at);
            self.resolve = RESOLVE + self.random() % RESOLVE;
        }
        self.resolve -= 1;
        let (mut x, mut y) = match self.goal {
            Some(goal) => (goal.0 - at.0, goal.1 - at.1),
            None => (MIDDLE.0 - at.0, MIDDLE.1 - at.1),
        };
        let length = x.hypot(y).max(1.0);
        // It brakes before it is there.
        let haste = (length / 60.0).min(1.0) / length;
        (x, y) = (x * haste, y * haste);
        for mine in &self.picture.mines {
            let mine = mine.mine.at(own.tick);
            let mine = (units(mine.0), units(mine.1));
            let near = distance(at, mine);
            if near < FEAR {
                let push = 2.5 * (1.0 - near / FEAR) / near.max(1.0);
                // A little to one side, or it would stop in front of it.
                let (dx, dy) = (at.0 - mine.0, at.1 - mine.1);
                x += (dx - dy * 0.6) * push;
                y += (dy + dx * 0.6) * push;
            }
        }
        let dash = own.motion.pause == 0 && self.may_rob(at, (x, y));
        let length = x.hypot(y).max(1.0);
        let whole = |part: f32| (part / length * (FULL - 1) as f32) as i8;
        Input {
            x: whole(x),
            y: whole(y),
            dash,
        }
    }

    /// The spark that is worth most for its way.
    fn look_around(&mut self, at: (f32, f32)) -> Option<(f32, f32)> {
        let blur = self.random() % 80;
        // Then it goes where it will meet somebody.
        let lonely = self.picture.ships.len() < 6;
        let sparks = self.picture.sparks.iter().map(|spark| {
            let place = (f32::from(spark.x) / 16.0, f32::from(spark.y) / 16.0);
            let mut way =
                distance(at, place) + (u32::from(spark.id).wrapping_mul(blur) % 60) as f32;
            if lonely {
                way += distance(place, MIDDLE);
            }
            (place, if spark.gold { way / 4.0 } else { way })
        });
        let best = sparks.min_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(place, _)| place)
    }

    /// Whether somebody is right ahead who has something to lose, and the bot is one that does so.
    fn may_rob(&mut self, at: (f32, f32), to: (f32, f32)) -> bool {
        if self.random() % 8 > self.mood % 3 {
            return false;
        }
        let length = to.0.hypot(to.1).max(0.01);
        self.picture.ships.iter().any(|ship| {
            let place = (f32::from(ship.x) / 16.0, f32::from(ship.y) / 16.0);
            let far = distance(at, place);
            let ahead = ((place.0 - at.0) * to.0 + (place.1 - at.1) * to.1) / length;
            ship.score > 0 && ship.flags & SHIELDED == 0 && far < GREED && ahead > far * 0.95
        })
    }

    /// Xorshift.
    fn random(&mut self) -> u32 {
        self.mood ^= self.mood << 13;
        self.mood ^= self.mood >> 17;
        self.mood ^= self.mood << 5;
        self.mood
    }
}

fn units(at: i32) -> f32 {
    at as f32 / UNIT as f32
}

fn distance(a: (f32, f32), b: (f32, f32)) -> f32 {
    (a.0 - b.0).hypot(a.1 - b.1)
}
