//! What is in the arena: ships, mines, sparks; and the arithmetic of places.

use std::collections::VecDeque;

use crate::ship::{Input, Motion, SIZE, UNIT};

pub(crate) const MINE_RADIUS: i32 = 22 * UNIT;
/// Ticks without another hit.
const SHIELD: u8 = 120;
/// Inputs that may wait; if more come, the oldest are passed over.
const MAX_QUEUE: usize = 30;
/// A ship that had to wait for inputs may make up for so many ticks later. So a connection that stutters
/// loses nothing, and one that sends too much gains nothing.
const MAX_CREDIT: u8 = 15;
/// Waiting inputs from which on it makes up for them.
const CATCH_UP: usize = 6;

#[derive(Clone, Debug)]
pub(crate) struct Ship {
    pub(crate) name: Box<str>,
    pub(crate) motion: Motion,
    pub(crate) score: u32,
    /// Ticks for which nothing can hit it.
    pub(crate) shield: u8,
    /// Its connection was lost at this tick.
    pub(crate) lost: Option<u32>,
    /// Tells this ship from others that have had its number.
    pub(crate) life: u32,
    /// It has had an input from a player.
    pub(crate) steered: bool,
    /// The number of the last input that was carried out.
    pub(crate) done: u32,
    waiting: VecDeque<Input>,
    /// Ticks in which it found no input, up to a limit.
    credit: u8,
    /// It had nothing to do in this many ticks in a row.
    idle: u8,
}

/// An input that no honest page sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadInput {
    /// More thrust than a ship has.
    Thrust,
    /// Not the input that follows the last one.
    Order,
}

impl Ship {
    /// At rest.
    pub(crate) fn new(name: &str, x: i32, y: i32, life: u32) -> Self {
        Self {
            name: name.into(),
            motion: Motion::at(x, y),
            score: 0,
            shield: SHIELD,
            lost: None,
            life,
            steered: false,
            done: 0,
            waiting: VecDeque::new(),
            credit: 0,
            idle: 0,
        }
    }

    /// Inputs that have arrived and not been carried out.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether nothing can hit it.
    pub(crate) fn is_safe(&self) -> bool {
        self.shield > 0 || self.is_lost()
    }

    pub(crate) fn lose(&mut self, tick: u32) {
        self.lost = Some(tick);
        self.waiting.clear();
    }

    /// Its player is back, and counts inputs from one again.
    pub(crate) fn find(&mut self) {
        self.lost = None;
        self.shield = SHIELD;
        self.done = 0;
        self.credit = 0;
        self.waiting.clear();
    }

    /// A push, and for so many ticks no control.
    pub(crate) fn hit(&mut self, (vx, vy): (i32, i32), stun: u8) {
        self.motion.push(vx, vy);
        self.motion.stun = stun;
        self.shield = SHIELD;
    }

    /// Queues inputs with the numbers `first`, `first + 1`, …
    pub(crate) fn queue(&mut self, first: u32, inputs: &[Input]) -> Result<(), BadInput> {
        if first != self.done + self.waiting.len() as u32 + 1 {
            return Err(BadInput::Order);
        }
        if !inputs.iter().all(|input| input.is_sound()) {
            return Err(BadInput::Thrust);
        }
        self.steered = true;
        self.waiting.extend(inputs);
        let over = self.waiting.len().saturating_sub(MAX_QUEUE);
        self.waiting.drain(..over);
        self.done += over as u32;
        Ok(())
    }

    /// One tick: carries out the next input, and one more if it is behind and has the credit.
    ///
    /// While a ship has no input it stands still in time, for a quarter of a second: what its player has
    /// predicted then comes true, only later. After that it glides on by itself.
    pub(crate) fn steer(&mut self) {
        self.shield = self.shield.saturating_sub(1);
        if self.waiting.len() > CATCH_UP && self.credit > 0 {
            self.credit -= 1;
            self.carry_out();
        }
        if self.carry_out() {
            self.idle = 0;
        } else if self.idle < MAX_CREDIT {
            self.idle += 1;
            self.credit = (self.credit + 1).min(MAX_CREDIT);
        } else {
            self.credit = 0;
            self.motion.step(Input::default());
        }
    }

    fn carry_out(&mut self) -> bool {
        let Some(input) = self.waiting.pop_front() else {
            return false;
        };
        self.done += 1;
        self.motion.step(input);
        true
    }
}

/// Drifts straight on until it bounces off a wall: known for good by where and when it last did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mine {
    pub(crate) since: u32,
    pub(crate) from: (i32, i32),
    /// Per tick.
    pub(crate) speed: (i32, i32),
}

impl Mine {
    pub(crate) fn at(&self, tick: u32) -> (i32, i32) {
        // A mine crosses the arena in minutes: far from an overflow.
        let ticks = tick.wrapping_sub(self.since) as i32;
        (
            self.from.0 + self.speed.0 * ticks,
            self.from.1 + self.speed.1 * ticks,
        )
    }

    /// Turns it around if it is at a wall.
    pub(crate) fn bounce(&mut self, tick: u32) {
        let (x, y) = self.at(tick);
        let turned = |at: i32, speed: i32| match at {
            ..MINE_RADIUS => speed.abs(),
            at if at > SIZE - MINE_RADIUS => -speed.abs(),
            _ => speed,
        };
        let speed = (turned(x, self.speed.0), turned(y, self.speed.1));
        if speed != self.speed {
            *self = Self {
                since: tick,
                from: (whole(x), whole(y)),
                speed,
            };
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spark {
    pub(crate) x: i32,
    pub(crate) y: i32,
    /// Worth five.
    pub(crate) gold: bool,
    /// It fades at this tick.
    pub(crate) until: Option<u32>,
}

/// On the raster of 1/16 unit that places travel in, so that both sides have the same.
pub(crate) fn whole(at: i32) -> i32 {
    at.clamp(0, SIZE - 1) & !(UNIT / 16 - 1)
}

pub(crate) fn touch(a: (i32, i32), b: (i32, i32), reach: i32) -> bool {
    let (dx, dy) = (i64::from(a.0 - b.0), i64::from(a.1 - b.1));
    dx * dx + dy * dy <= i64::from(reach) * i64::from(reach)
}

/// A vector of this length that points from `a` to `b`.
pub(crate) fn towards(a: (i32, i32), b: (i32, i32), length: i64) -> (i32, i32) {
    let (dx, dy) = (i64::from(b.0 - a.0), i64::from(b.1 - a.1));
    let distance = (dx * dx + dy * dy).isqrt().max(1);
    // No longer than `length`, which is small.
    (
        (dx * length / distance) as i32,
        (dy * length / distance) as i32,
    )
}

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end`, without `end`.
    pub(crate) fn below(&mut self, end: i32) -> i32 {
        // The remainder is below an i32.
        (self.next() % end.max(1) as u64) as i32
    }

    /// -reach to reach.
    pub(crate) fn within(&mut self, reach: i32) -> i32 {
        self.below(2 * reach + 1) - reach
    }

    /// A coordinate somewhere in the arena, not at its very edge.
    pub(crate) fn place(&mut self) -> i32 {
        48 * UNIT + self.below(SIZE - 96 * UNIT)
    }
}
