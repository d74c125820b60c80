//! Delta snapshots: what has changed around a ship since the last snapshot that its client was sent.
//!
//! TCP loses nothing, so what was queued is what the client has, or will have before the next one: no
//! acknowledgements, no ring of old states. Both sides keep the same [`Picture`]; the server's is the
//! baseline of the next delta.
//!
//! Places travel in 1/16 unit as `u16`. Of a ship only the difference travels between where it is and
//! where it would be, had it gone on as between the last two snapshots: mostly two bytes, or nothing. A
//! mine is known by its last bounce, so it costs nothing as it drifts.
//!
//! | snapshot | (`wire.rs` tells the notation) |
//! |---|---|
//! | kind, tick | 2, u32 |
//! | the ship of its own, exact | last input done u32, inputs waiting u8, x y i32, vx vy i16, dash, pause, stun, flags u8, score ~ |
//! | ships that left | n ~, then ids |
//! | ships that came | n ~, then id, x y u16, flags u8, score ~, name |
//! | ships that changed | n ~, then 2 id + more, dx dy ~ (zigzag); if more: flags u8, score ~ |
//! | mines that left | n ~, then ids |
//! | mines that came or bounced | n ~, then id, age in ticks ~, x y u16, vx vy i16 |
//! | sparks that left | n ~, then ids |
//! | sparks that came | n ~, then 2 id + gold, x y u16 |
//!
//! Ids are sorted in each list and travel as the difference to the one before, ~.

use crate::interest::Cell;
use crate::picture::{
    DASHING, KIND, LOST, Numbered, Own, Picture, SHIELDED, STUNNED, SeenMine, SeenShip, SeenSpark,
};
use crate::ship::{Motion, UNIT};
use crate::things::{Ship, Spark};
use crate::wire::{put_name, put_number, zigzag};
use crate::world::World;

/// The server's side: the baseline of one client.
#[derive(Clone, Default)]
pub(crate) struct View {
    centre: Option<Cell>,
    picture: Picture,
}

fn coarse(at: i32) -> u16 {
    (at / (UNIT / 16)) as u16 // the arena has 65536 of them
}

fn flags(ship: &Ship) -> u8 {
    let flag = |on, flag| if on { flag } else { 0 };
    flag(ship.motion.stun > 0, STUNNED)
        | flag(ship.shield > 0, SHIELDED)
        | flag(ship.is_lost(), LOST)
        | flag(ship.motion.dash > 0, DASHING)
}

impl Own {
    fn of(ship: &Ship, tick: u32) -> Self {
        Self {
            tick,
            done: ship.done,
            waiting: ship.waiting().min(255) as u8,
            motion: ship.motion,
            flags: flags(ship),
            score: ship.score,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let Motion { x, y, vx, vy, .. } = self.motion;
        out.push(KIND);
        out.extend(self.tick.to_le_bytes());
        out.extend(self.done.to_le_bytes());
        out.push(self.waiting);
        out.extend(x.to_le_bytes());
        out.extend(y.to_le_bytes());
        // Bounded by the top speed of ships.
        out.extend((vx as i16).to_le_bytes());
        out.extend((vy as i16).to_le_bytes());
        out.extend([self.motion.dash, self.motion.pause, self.motion.stun]);
        out.push(self.flags);
        put_number(out, self.score);
    }
}

impl View {
    /// Writes what has changed for the client whose ship is `me`, and takes it for known from now on:
    /// what is written must be sent. `false`: there is no such ship.
    pub(crate) fn delta(&mut self, world: &World, me: u16, out: &mut Vec<u8>) -> bool {
        let Some(ship) = world.ship(me) else {
            return false;
        };
        let (x, y) = (ship.motion.x, ship.motion.y);
        let centre = self.centre.map_or(Cell::of(x, y), |c| c.follow(x, y));
        self.centre = Some(centre);
        Own::of(ship, world.tick).encode(out);
        self.ships(world, me, centre, out);
        self.mines(world, centre, out);
        self.sparks(world, centre, out);
        true
    }

    /// What the client knows, once it has all that was written.
    pub(crate) fn picture(&self) -> &Picture {
        &self.picture
    }

    fn ships(&mut self, world: &World, me: u16, centre: Cell, out: &mut Vec<u8>) {
        let near = world.ship_grid.near(centre).filter(|id| *id != me);
        let now = sorted(near.filter_map(|id| Some((id, world.ship(id)?))));
        let before = std::mem::take(&mut self.picture.ships);
        let mut after = Vec::with_capacity(now.len());
        let [mut left, mut came, mut changed] = [const { List::new() }; 3];
        merge(&before, &now, |old, new| {
            let same = matches!((old, new), (Some(old), Some((_, ship))) if old.life == ship.life);
            if let Some(old) = old.filter(|_| !same) {
                left.id(old.id, None);
            }
            let Some((id, ship)) = new else { return };
            let (x, y) = (coarse(ship.motion.x), coarse(ship.motion.y));
            let (flags, score) = (flags(ship), ship.score);
            let (dx, dy) = match old.filter(|_| same) {
                Some(old) => (x.wrapping_sub(old.x), y.wrapping_sub(old.y)),
                None => (0, 0),
            };
            after.push(SeenShip {
                id: *id,
                x,
                y,
                dx,
                dy,
                flags,
                score,
                life: ship.life,
                name: String::new(),
            });
            match old.filter(|_| same) {
                None => {
                    let out = came.id(*id, None);
                    put_place(out, x, y);
                    out.push(flags);
                    put_number(out, score);
                    put_name(out, &ship.name);
                }
                Some(old) => {
                    let more = (flags, score) != (old.flags, old.score);
                    let off = (dx.wrapping_sub(old.dx), dy.wrapping_sub(old.dy));
                    if !more && off == (0, 0) {
                        return;
                    }
                    let out = changed.id(*id, Some(more));
                    put_number(out, zigzag(off.0 as i16)); // the same bits
                    put_number(out, zigzag(off.1 as i16));
                    if more {
                        out.push(flags);
                        put_number(out, score);
                    }
                }
            }
        });
        for list in [left, came, changed] {
            list.finish(out);
        }
        self.picture.ships = after;
    }

    fn mines(&mut self, world: &World, centre: Cell, out: &mut Vec<u8>) {
        let near = world.mine_grid.near(centre);
        let now = sorted(near.filter_map(|id| Some((id, *world.mine(id)?))));
        let [mut left, mut came] = [const { List::new() }; 2];
        merge(&self.picture.mines, &now, |old, new| match (old, new) {
            (Some(old), None) => {
                left.id(old.id, None);
            }
            (old, Some((id, mine))) if old.is_none_or(|old| old.mine != *mine) => {
                let out = came.id(*id, None);
                put_number(out, world.tick.wrapping_sub(mine.since));
                put_place(out, coarse(mine.from.0), coarse(mine.from.1));
                // Mines are slow.
                out.extend((mine.speed.0 as i16).to_le_bytes());
                out.extend((mine.speed.1 as i16).to_le_bytes());
            }
            _ => {}
        });
        for list in [left, came] {
            list.finish(out);
        }
        let seen = now.into_iter().map(|(id, mine)| SeenMine { id, mine });
        self.picture.mines = seen.collect();
    }

    fn sparks(&mut self, world: &World, centre: Cell, out: &mut Vec<u8>) {
        let near = world.spark_grid.near(centre);
        let seen = |id: u16, spark: &Spark| SeenSpark {
            id,
            x: coarse(spark.x),
            y: coarse(spark.y),
            gold: spark.gold,
        };
        let now = sorted(near.filter_map(|id| Some((id, seen(id, world.spark(id)?)))));
        let [mut left, mut came] = [const { List::new() }; 2];
        merge(&self.picture.sparks, &now, |old, new| match (old, new) {
            (Some(old), None) => {
                left.id(old.id, None);
            }
            (old, Some((id, spark))) if old != Some(spark) => {
                put_place(came.id(*id, Some(spark.gold)), spark.x, spark.y);
            }
            _ => {}
        });
        for list in [left, came] {
            list.finish(out);
        }
        self.picture.sparks = now.into_iter().map(|(_, spark)| spark).collect();
    }
}

fn put_place(out: &mut Vec<u8>, x: u16, y: u16) {
    out.extend(x.to_le_bytes());
    out.extend(y.to_le_bytes());
}

/// One list of a snapshot while it is written: its length comes first and is known last.
struct List {
    count: u32,
    last: u16,
    bytes: Vec<u8>,
}

impl List {
    const fn new() -> Self {
        Self {
            count: 0,
            last: 0,
            bytes: Vec::new(),
        }
    }

    /// The next entry, perhaps with a bit beside its id; the rest of it is to be written to what this
    /// gives.
    fn id(&mut self, id: u16, bit: Option<bool>) -> &mut Vec<u8> {
        let step = u32::from(id - self.last);
        let number = match bit {
            None => step,
            Some(bit) => step << 1 | u32::from(bit),
        };
        put_number(&mut self.bytes, number);
        self.count += 1;
        self.last = id;
        &mut self.bytes
    }

    fn finish(self, out: &mut Vec<u8>) {
        put_number(out, self.count);
        out.extend(self.bytes);
    }
}

fn sorted<T>(things: impl Iterator<Item = (u16, T)>) -> Vec<(u16, T)> {
    let mut things: Vec<_> = things.collect();
    things.sort_unstable_by_key(|(id, _)| *id);
    things
}

/// Walks two sorted lists side by side: each id once, with what each list has of it.
fn merge<A: Numbered, B: Numbered>(
    old: &[A],
    new: &[B],
    mut each: impl FnMut(Option<&A>, Option<&B>),
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    while let Some(id) = [old.peek().map(|a| a.id()), new.peek().map(|b| b.id())]
        .into_iter()
        .flatten()
        .min()
    {
        each(old.next_if(|a| a.id() == id), new.next_if(|b| b.id() == id));
    }
}
