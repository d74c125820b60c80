//! What travels: JSON objects with a `type`, one in a text message.
//!
//! | from the page | |
//! |---|---|
//! | `join` | `room`, `name`, and `key`, which tells somebody who comes back from somebody else |
//! | `say` | `text`, and perhaps `n`, a number that comes back with it |
//! | `typing` | |
//! | `ping` | is answered with `pong`: pages can't see the server's pings |
//!
//! | to the page | |
//! |---|---|
//! | `joined` | `room`, `name`, `born` (of the room), `here` (names), `history` (of `said`) |
//! | `refused` | `why`; the connection is closed with 4000 |
//! | `came`, `left`, `typing` | `name` |
//! | `said` | `id` (1, 2, … in this room), `n`, `name`, `text`, `time` (milliseconds, as in JavaScript) |
//! | `notice` | `text`, and perhaps `unsent`, which was not said, and its `n` |
//! | `pong` | |
//!
//! Who comes back on another connection with the same name and key takes the place of the old one, which
//! is closed with 4001.

use framemill::{CloseCode, HeaderValue, Message, Peer, Response, StatusCode, header};
use serde_json::{Value, json};

/// Closes a connection that was refused.
pub const REFUSED: CloseCode = CloseCode::Library(4000);
/// Closes a connection whose guest has come on another one.
pub const REPLACED: CloseCode = CloseCode::Library(4001);

pub struct Join {
    pub room: String,
    pub name: String,
    pub key: String,
}

pub enum Ask {
    Say {
        text: String,
        /// What its page calls it. The text that is said may differ from the one that was sent.
        n: Option<u64>,
    },
    Typing,
    Ping,
}

/// What a room remembers.
pub struct Said {
    pub id: u64,
    pub n: Option<u64>,
    pub name: String,
    pub text: String,
    pub time: u64,
}

impl Said {
    pub fn to_json(&self) -> Value {
        let Self {
            id,
            n,
            name,
            text,
            time,
        } = self;
        json!({"type": "said", "id": id, "n": n, "name": name, "text": text, "time": time})
    }
}

/// The first message of a connection. `None`: it is something else.
pub fn join(message: &Message) -> Option<Join> {
    let value = parse(message)?;
    let string = |name: &str| value[name].as_str().map(str::to_owned);
    (value["type"] == "join").then_some(())?;
    Some(Join {
        room: string("room")?,
        name: string("name")?,
        key: string("key").filter(|key| key.len() <= 64)?,
    })
}

/// Any other message. `None`: it is nothing that is known.
pub fn ask(message: &Message) -> Option<Ask> {
    let value = parse(message)?;
    match value["type"].as_str()? {
        "say" => Some(Ask::Say {
            text: value["text"].as_str()?.to_owned(),
            n: value["n"].as_u64(),
        }),
        "typing" => Some(Ask::Typing),
        "ping" => Some(Ask::Ping),
        _ => None,
    }
}

fn parse(message: &Message) -> Option<Value> {
    match message {
        Message::Text(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}

/// `came`, `left` or `typing`.
pub fn about(what: &str, name: &str) -> String {
    json!({"type": what, "name": name}).to_string()
}

pub fn notice(text: &str) -> String {
    json!({"type": "notice", "text": text}).to_string()
}

/// The notice that something was not said.
pub fn unsent(why: &str, text: &str, n: Option<u64>) -> String {
    json!({"type": "notice", "text": why, "unsent": text, "n": n}).to_string()
}

pub fn pong() -> String {
    json!({"type": "pong"}).to_string()
}

/// Tells somebody why not, and ends the connection.
pub fn refuse(peer: &Peer, why: &str) {
    let _ = peer.send(json!({"type": "refused", "why": why}).to_string());
    peer.close(REFUSED, "refused");
}

pub fn rooms(rooms: &[(usize, String)]) -> Response {
    let rooms = rooms
        .iter()
        .map(|(here, name)| json!({"name": name, "here": here}));
    let json = HeaderValue::from_static("application/json");
    Response::new(StatusCode::OK)
        .header(header::CONTENT_TYPE, json)
        .header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
        .body(Value::from_iter(rooms).to_string())
}
