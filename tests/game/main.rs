//! The example `game`: its rules, its protocol, the half of it that the page mirrors, and all of it at real
//! sockets. What it is in a browser is in `tests/browser_game.rs`.
#![allow(dead_code, reason = "some of it only the example itself calls")]

#[path = "../../examples/game/bots.rs"]
mod bots;
#[path = "../../examples/game/interest.rs"]
mod interest;
#[path = "../../examples/game/picture.rs"]
mod picture;
#[path = "../../examples/game/room.rs"]
mod room;
#[path = "../../examples/game/server.rs"]
mod server;
#[path = "../../examples/game/ship.rs"]
mod ship;
#[path = "../../examples/game/snapshot.rs"]
mod snapshot;
#[path = "../../examples/game/stats.rs"]
mod stats;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../examples/game/things.rs"]
mod things;
#[path = "../../examples/game/wire.rs"]
mod wire;
#[path = "../../examples/game/world.rs"]
mod world;

mod page;
mod rules;
mod served;
mod snapshots;
mod words;
