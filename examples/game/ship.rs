//! How a ship moves. Integers only: `sim.js` computes the very same numbers, so what the page predicts
//! is what the server does, to the last bit (`tests/game/page.rs` compares them).
//!
//! Lengths are in steps of 1/1024 unit, times in ticks of 1/60 s, and all divisions round towards zero.

/// Steps to a unit.
pub(crate) const UNIT: i32 = 1024;
/// The arena is a square with sides of 4096 units.
pub(crate) const SIZE: i32 = 4096 * UNIT;
/// A ship is a disc, where it matters.
pub(crate) const RADIUS: i32 = 14 * UNIT;
/// The longest input vector: full thrust.
pub(crate) const FULL: i32 = 127;

/// Speed gained in a tick at full thrust; with the drag it makes 320 units a second.
const THRUST: i32 = 230;
/// Part of its speed that a ship loses in a tick.
const DRAG: i32 = 24;
/// Speed gained by a dash: it carries some 200 units far.
const DASH: i32 = 9000;
/// No push makes a ship faster; it fits an `i16`.
const TOP_SPEED: i32 = 20_000;
/// For how many ticks a dash pierces mines and robs ships.
const DASH_TICKS: u8 = 15;
/// Ticks from one dash to the next.
const DASH_PAUSE: u8 = 75;

/// What a player wants in one tick: a direction of thrust of at most [`FULL`], and whether to dash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) x: i8,
    pub(crate) y: i8,
    pub(crate) dash: bool,
}

impl Input {
    /// Whether the thrust is one that a ship has.
    pub(crate) fn is_sound(self) -> bool {
        let (x, y) = (i32::from(self.x), i32::from(self.y));
        x * x + y * y <= FULL * FULL
    }
}

/// All that the next step of a ship depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Motion {
    pub(crate) x: i32,
    pub(crate) y: i32,
    /// Per tick.
    pub(crate) vx: i32,
    pub(crate) vy: i32,
    /// Ticks that the dash still lasts.
    pub(crate) dash: u8,
    /// Ticks until the next dash.
    pub(crate) pause: u8,
    /// Ticks without control, after a hit.
    pub(crate) stun: u8,
}

impl Motion {
    /// At rest.
    pub(crate) fn at(x: i32, y: i32) -> Self {
        Self {
            x,
            y,
            ..Self::default()
        }
    }

    /// One tick.
    pub(crate) fn step(&mut self, mut input: Input) {
        if self.stun > 0 {
            self.stun -= 1;
            input = Input::default();
        }
        self.dash = self.dash.saturating_sub(1);
        self.pause = self.pause.saturating_sub(1);
        let (x, y) = (i32::from(input.x), i32::from(input.y));
        let mut push = THRUST;
        if input.dash && self.pause == 0 && (x, y) != (0, 0) {
            push += DASH;
            self.dash = DASH_TICKS;
            self.pause = DASH_PAUSE;
        }
        (self.x, self.vx) = glide(self.x, self.vx + x * push / FULL);
        (self.y, self.vy) = glide(self.y, self.vy + y * push / FULL);
    }

    /// A push from outside.
    pub(crate) fn push(&mut self, vx: i32, vy: i32) {
        self.vx = (self.vx + vx).clamp(-TOP_SPEED, TOP_SPEED);
        self.vy = (self.vy + vy).clamp(-TOP_SPEED, TOP_SPEED);
    }
}

/// One axis of a step: drag, then the way, then the wall, off which a ship bounces.
fn glide(at: i32, speed: i32) -> (i32, i32) {
    let speed = speed.clamp(-TOP_SPEED, TOP_SPEED);
    // The sign brings a slow ship to a full stop.
    let speed = speed - speed / DRAG - speed.signum();
    let to = at + speed;
    let inside = to.clamp(RADIUS, SIZE - RADIUS);
    (inside, if to == inside { speed } else { -speed / 2 })
}
