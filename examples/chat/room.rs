//! One room: who is in it, and what was said last. Nothing here needs a lock, as one thread at a
//! time runs a room.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use framemill::{Members, Message, Peer, PeerId, Refused, Room};
use serde_json::json;

use crate::limits::{self, Allowance};
use crate::protocol::{self, Ask, REPLACED, Said};

/// What a guest may say: so much at once, and then one each time this has passed.
const SAY: (u32, Duration) = (6, Duration::from_millis(1200));
/// Pages tell every two seconds that somebody is still typing.
const TYPING: (u32, Duration) = (2, Duration::from_secs(1));

/// Guests who have left of whom a room knows how much they had said.
const GONE: usize = 100;

/// Somebody who comes in.
pub struct Guest {
    name: String,
    /// Known to the guest's page only.
    key: String,
    say: Allowance,
    typing: Allowance,
}

impl Guest {
    pub fn new(name: String, key: String) -> Self {
        let now = Instant::now();
        Self {
            name,
            key,
            say: Allowance::new(SAY.0, SAY.1, now),
            typing: Allowance::new(TYPING.0, TYPING.1, now),
        }
    }

    /// Names that differ in nothing but case are the same.
    fn is_called(&self, name: &str) -> bool {
        self.name.to_lowercase() == name.to_lowercase()
    }
}

pub struct ChatRoom {
    /// Tells this room from another that had the same name.
    born: u64,
    /// In the order of their coming.
    guests: Vec<(PeerId, Guest)>,
    /// Who has left, the latest at the end.
    gone: VecDeque<Guest>,
    history: VecDeque<Said>,
    last_id: u64,
}

impl Default for ChatRoom {
    fn default() -> Self {
        Self {
            born: now(),
            guests: Vec::new(),
            gone: VecDeque::new(),
            history: VecDeque::new(),
            last_id: 0,
        }
    }
}

impl Room for ChatRoom {
    type Join = Guest;

    fn join(&mut self, room: &mut Members, peer: &Peer, guest: Guest) -> Result<(), Refused> {
        let mut guest = self.admit(room, guest).map_err(|why| {
            protocol::refuse(peer, &why);
            Refused
        })?;
        let name = guest.name.clone();
        let before = self.put_out(room, &name);
        self.go_on(&mut guest);
        self.guests.push((peer.id(), guest));
        let here: Vec<_> = self.guests.iter().map(|(_, guest)| &*guest.name).collect();
        let history: Vec<_> = self.history.iter().map(Said::to_json).collect();
        let _ = peer.send(
            json!({
                "type": "joined", "room": room.name(), "name": name,
                "born": self.born, "here": here, "history": history,
            })
            .to_string(),
        );
        if before.as_ref() != Some(&name) {
            if let Some(before) = before {
                room.broadcast_except(peer.id(), protocol::about("left", &before));
            }
            room.broadcast_except(peer.id(), protocol::about("came", &name));
        }
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message) {
        let Some((_, guest)) = self.guests.iter_mut().find(|(id, _)| *id == peer.id()) else {
            return;
        };
        let now = Instant::now();
        match protocol::ask(&message) {
            Some(Ask::Ping) => drop(peer.send(protocol::pong())),
            Some(Ask::Typing) => {
                if guest.typing.take(now) {
                    room.broadcast_except(peer.id(), protocol::about("typing", &guest.name));
                }
            }
            Some(Ask::Say { text, n }) => match limits::text(&text) {
                Some(_) if !guest.say.take(now) => {
                    let slower = protocol::unsent("Not so fast: that was not sent.", &text, n);
                    let _ = peer.send(slower);
                }
                Some(text) => {
                    let name = guest.name.clone();
                    self.say(room, name, text, n);
                }
                None => {
                    let long = format!("That was not sent: 1 to {} characters.", limits::TEXT);
                    let _ = peer.send(protocol::unsent(&long, &text, n));
                }
            },
            None => {
                let _ = peer.send(protocol::notice("That was not understood."));
            }
        }
    }

    fn leave(&mut self, room: &mut Members, peer: &Peer) {
        if let Some(at) = self.guests.iter().position(|(id, _)| *id == peer.id()) {
            let (_, guest) = self.guests.remove(at);
            room.broadcast(protocol::about("left", &guest.name));
            self.remember(guest);
        }
    }
}

impl ChatRoom {
    /// The guest under a proper name.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, room: &Members, mut guest: Guest) -> Result<Guest, String> {
        let name = limits::line(&guest.name, limits::NAME);
        guest.name = name.ok_or_else(|| {
            format!(
                "Names have 1 to {} characters that can be told apart.",
                limits::NAME
            )
        })?;
        let mut others = self.guests.iter().map(|(_, guest)| guest);
        match others.find(|other| other.is_called(&guest.name)) {
            Some(other) if other.key != guest.key => {
                Err(format!("Somebody called {} is already here.", other.name))
            }
            None if self.guests.len() >= limits::GUESTS => Err(format!("{} is full.", room.name())),
            _ => Ok(guest),
        }
    }

    /// Closes the connection that this guest has come back from, if it is still there: the name there.
    fn put_out(&mut self, room: &mut Members, name: &str) -> Option<String> {
        let mut guests = self.guests.iter();
        let at = guests.position(|(_, guest)| guest.is_called(name))?;
        let (id, guest) = self.guests.remove(at);
        if let Some(old) = room.peers().find(|peer| peer.id() == id) {
            old.close(REPLACED, "here on another connection");
        }
        room.remove(id);
        let name = guest.name.clone();
        self.remember(guest);
        Some(name)
    }

    fn remember(&mut self, guest: Guest) {
        if self.gone.len() == GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(guest);
    }

    /// Who comes again may say what was left to say: another connection is not more.
    fn go_on(&mut self, guest: &mut Guest) {
        let at = self.gone.iter().position(|old| old.is_called(&guest.name));
        if let Some(old) = at.and_then(|at| self.gone.remove(at)) {
            guest.say = old.say;
            guest.typing = old.typing;
        }
    }

    fn say(&mut self, room: &mut Members, name: String, text: String, n: Option<u64>) {
        self.last_id += 1;
        let said = Said {
            id: self.last_id,
            n,
            name,
            text,
            time: now(),
        };
        room.broadcast(said.to_json().to_string());
        if self.history.len() == limits::HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(said);
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
