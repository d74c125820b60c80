//! What `--stats` prints each second: how long ticks take, what snapshots cost, and what the same would
//! cost as JSON.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::picture::{Picture, SeenShip};
use crate::snapshot::View;
use crate::world::World;

/// The tick times that percentiles are taken of: ten seconds of them.
const TICKS: usize = 600;

pub(crate) struct Stats {
    /// Somebody reads it.
    on: bool,
    wants_json: AtomicBool,
    now: Mutex<Now>,
}

struct Now {
    since: Instant,
    cpu: Option<Duration>,
    players: usize,
    /// Microseconds, a ring.
    took: Vec<u32>,
    late: Vec<u32>,
    ticks: usize,
    merged: u32,
    snapshots: usize,
    bytes: usize,
    skipped: usize,
    /// Of the last snapshot that was looked at: how long it was, its changes as JSON, all as JSON.
    sizes: Option<[usize; 3]>,
}

impl Stats {
    pub(crate) fn new(on: bool) -> Self {
        let now = Now {
            since: Instant::now(),
            cpu: cpu(),
            players: 0,
            took: Vec::new(),
            late: Vec::new(),
            ticks: 0,
            merged: 0,
            snapshots: 0,
            bytes: 0,
            skipped: 0,
            sizes: None,
        };
        Self {
            on,
            wants_json: AtomicBool::new(false),
            now: Mutex::new(now),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tick(&self, took: Duration, late: Duration, merged: u32, players: usize) {
        let mut now = self.now();
        let place = now.ticks % TICKS;
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        if now.took.len() <= place {
            now.took.push(0);
            now.late.push(0);
        }
        now.took[place] = us(took);
        now.late[place] = us(late);
        now.ticks += 1;
        now.merged += merged;
        now.players = players;
    }

    pub(crate) fn skip(&self) {
        self.now().skipped += 1;
    }

    pub(crate) fn sent(&self, bytes: usize) {
        let mut now = self.now();
        now.snapshots += 1;
        // With the header of its frame.
        now.bytes += bytes + if bytes < 126 { 2 } else { 4 };
    }

    /// Whether the next snapshot is to be compared: one a second, as it takes its time.
    pub(crate) fn wants_json(&self) -> bool {
        self.on && self.wants_json.swap(false, Ordering::Relaxed)
    }

    /// Compares a snapshot of so many bytes, which brings a client from `before` to `after`.
    pub(crate) fn json(&self, bytes: usize, before: &View, after: &View, world: &World, me: u16) {
        let (before, after) = (before.picture(), after.picture());
        let changes = as_json(world, me, after, Some(before));
        let all = as_json(world, me, after, None);
        self.now().sizes = Some([bytes, changes.to_string().len(), all.to_string().len()]);
    }

    /// A line about the time since the last one.
    pub(crate) fn line(&self) -> String {
        self.wants_json.store(true, Ordering::Relaxed);
        let mut now = self.now();
        let seconds = now.since.elapsed().as_secs_f64();
        let players = now.players.max(1) as f64;
        let mut line = format!("{} players", now.players);
        let per_player = now.bytes as f64 / seconds / players;
        let _ = write!(line, ", {per_player:.0} B/s each");
        if now.snapshots > 0 {
            let mean = now.bytes as f64 / now.snapshots as f64;
            let _ = write!(line, " in snapshots of {mean:.0} B");
        }
        let used = cpu();
        if let (Some(before), Some(used)) = (now.cpu, used) {
            let part = used.saturating_sub(before).as_secs_f64() / seconds;
            let (all, each) = (part * 100.0, part * 1e6 / players);
            let _ = write!(line, ", CPU {all:.0} % ({each:.0} µs/s each)");
        }
        let [p50, p99] = percentiles(&now.took);
        let [_, late] = percentiles(&now.late);
        let _ = write!(line, ", tick p50 {p50} p99 {p99} late p99 {late}");
        let _ = write!(line, ", {} merged, {} skipped", now.merged, now.skipped);
        if let Some([bytes, changes, all]) = now.sizes {
            let _ = write!(
                line,
                ", a snapshot of {bytes} B as JSON: {changes} B, with all in view {all} B"
            );
        }
        now.since = Instant::now();
        now.cpu = used;
        (now.snapshots, now.bytes, now.skipped, now.merged) = (0, 0, 0, 0);
        line
    }
}

/// The median and the 99th percentile of microseconds.
fn percentiles(us: &[u32]) -> [String; 2] {
    let mut sorted = us.to_vec();
    sorted.sort_unstable();
    [50, 99].map(|part| {
        let place = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
        let us = sorted.get(place).copied().unwrap_or(0);
        format!("{:.2} ms", f64::from(us) / 1000.0)
    })
}

/// The processor time of all threads that this process has now, where the system tells (Linux).
fn cpu() -> Option<Duration> {
    let mut ns = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let path = task.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ns += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse().ok())
            .unwrap_or(0);
    }
    Some(Duration::from_nanos(ns))
}

/// What a snapshot says, as a game would say it that sends JSON: short keys, places with one decimal.
/// With `before`, only what has changed since then.
fn as_json(world: &World, me: u16, after: &Picture, before: Option<&Picture>) -> Value {
    let place = |at: u16| (f64::from(at) / 1.6).round() / 10.0;
    let fine = |at: i32| (f64::from(at) / 102.4).round() / 10.0;
    let empty = Picture::default();
    let before = before.unwrap_or(&empty);
    let ship = |ship: &SeenShip| {
        let mut value = json!({"id": ship.id, "x": place(ship.x), "y": place(ship.y),
            "score": ship.score, "flags": ship.flags});
        if !before.ships.iter().any(|old| old.id == ship.id) {
            value["name"] = world.ship(ship.id).map_or("", |ship| &ship.name).into();
        }
        value
    };
    let ships = after.ships.iter().filter(|ship| {
        let old = before.ships.iter().find(|old| old.id == ship.id);
        old.is_none_or(|old| {
            (old.x, old.y, old.flags, old.score) != (ship.x, ship.y, ship.flags, ship.score)
        })
    });
    let mines = after
        .mines
        .iter()
        .filter(|mine| !before.mines.contains(mine));
    let mines = mines.map(|seen| {
        let (x, y) = seen.mine.at(world.tick);
        let (vx, vy) = seen.mine.speed;
        json!({"id": seen.id, "x": fine(x), "y": fine(y), "vx": fine(vx * 60), "vy": fine(vy * 60)})
    });
    let sparks = after
        .sparks
        .iter()
        .filter(|spark| !before.sparks.contains(spark));
    let sparks = sparks.map(
        |spark| json!({"id": spark.id, "x": place(spark.x), "y": place(spark.y), "gold": spark.gold}),
    );
    let mut value = json!({
        "ships": ships.map(ship).collect::<Vec<_>>(),
        "mines": mines.collect::<Vec<_>>(),
        "sparks": sparks.collect::<Vec<_>>(),
    });
    let ids = |left: Vec<u16>| {
        if left.is_empty() {
            Value::Null
        } else {
            left.into()
        }
    };
    let left = |was: &mut dyn Iterator<Item = u16>, is: &dyn Fn(u16) -> bool| {
        ids(was.filter(|id| !is(*id)).collect())
    };
    value["gone"] = json!([
        left(&mut before.ships.iter().map(|s| s.id), &|id| after
            .ships
            .iter()
            .any(|s| s.id == id)),
        left(&mut before.mines.iter().map(|m| m.id), &|id| after
            .mines
            .iter()
            .any(|m| m.id == id)),
        left(&mut before.sparks.iter().map(|s| s.id), &|id| after
            .sparks
            .iter()
            .any(|s| s.id == id)),
    ]);
    if let Some(ship) = world.ship(me) {
        let motion = ship.motion;
        value["tick"] = world.tick.into();
        value["done"] = ship.done.into();
        value["me"] = json!({"x": fine(motion.x), "y": fine(motion.y), "vx": fine(motion.vx * 60),
            "vy": fine(motion.vy * 60), "dash": motion.dash, "pause": motion.pause,
            "stun": motion.stun, "score": ship.score});
    }
    value
}
