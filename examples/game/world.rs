//! The arena and its rules: ships collect sparks, dodge the mines that drift about, and rob each other by
//! dashing. No clock, no sockets: the same seed and the same calls give the same world.
//!
//! Every step costs O(ships + mines + what is near them); nothing looks at all pairs.

use crate::interest::Grid;
use crate::ship::{Input, Motion, RADIUS, SIZE, UNIT};
use crate::things::{BadInput, MINE_RADIUS, Mine, Random, Ship, Spark, touch, towards, whole};

/// Ticks a second.
pub(crate) const HERTZ: u32 = 60;
/// For how many ticks the ship of a lost connection waits for its player.
pub(crate) const LOST_TICKS: u32 = 20 * HERTZ;
/// The most ships.
pub(crate) const MAX_SHIPS: usize = 1000;
/// Within this a ship takes a spark.
const SPARK_REACH: i32 = 30 * UNIT;
const MINES: u16 = 96;
/// Sparks in an empty arena, and more for each ship.
const SPARKS: usize = 700;
const SPARKS_PER_SHIP: usize = 3;
const MAX_SPARKS: usize = 4000;
/// Sparks that a mine knocks out of a ship, and a dash, at most.
const SPILL: u32 = 24;
const LOOT: u32 = 5;
/// For how many ticks dropped sparks stay.
const SPILLED_TICKS: u32 = 12 * HERTZ;
/// Ticks without control after a mine and after a dash.
const MINE_STUN: u8 = 45;
const DASH_STUN: u8 = 20;

pub(crate) struct World {
    pub(crate) tick: u32,
    random: Random,
    lives: u32,
    ships: Vec<Option<Ship>>,
    mines: Vec<Mine>,
    sparks: Vec<Option<Spark>>,
    /// Numbers of sparks that are not there.
    no_sparks: Vec<u16>,
    pub(crate) ship_grid: Grid,
    pub(crate) mine_grid: Grid,
    pub(crate) spark_grid: Grid,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            tick: 0,
            random: Random(seed),
            lives: 0,
            ships: Vec::new(),
            mines: Vec::new(),
            sparks: vec![None; MAX_SPARKS],
            no_sparks: (0..MAX_SPARKS as u16).rev().collect(),
            ship_grid: Grid::new(),
            mine_grid: Grid::new(),
            spark_grid: Grid::new(),
        };
        for _ in 0..MINES {
            let from = (world.random.place(), world.random.place());
            let speed = (world.random.within(1100), world.random.within(1100));
            world.mines.push(Mine {
                since: 0,
                from: (whole(from.0), whole(from.1)),
                speed,
            });
        }
        while world.strew() {}
        world.index();
        world
    }

    /// Adds a ship somewhere in the middle. If there are [`MAX_SHIPS`], one without a player makes room, that
    /// which has waited longest: who is here goes before who may come back. `None` if there is no such ship.
    pub(crate) fn add(&mut self, name: &str) -> Option<u16> {
        let place = match self.ships.iter().position(Option::is_none) {
            Some(place) => place,
            None if self.ships.len() < MAX_SHIPS => {
                self.ships.push(None);
                self.ships.len() - 1
            }
            None => {
                let lost = self.ships().filter_map(|(id, ship)| Some((ship.lost?, id)));
                let (_, longest) = lost.min()?;
                self.remove(longest);
                longest.into()
            }
        };
        // The more there are, the more of the arena they need.
        let spread = (160 + 24 * self.ships.len() as i32).min(1900) * UNIT;
        let x = SIZE / 2 + self.random.within(spread);
        let y = SIZE / 2 + self.random.within(spread);
        self.lives += 1;
        self.ships[place] = Some(Ship::new(name, x, y, self.lives));
        self.ship_grid.insert(place as u16, x, y);
        Some(place as u16)
    }

    pub(crate) fn remove(&mut self, id: u16) {
        self.ships[usize::from(id)] = None;
        self.index();
    }

    pub(crate) fn ship(&self, id: u16) -> Option<&Ship> {
        self.ships.get(usize::from(id))?.as_ref()
    }

    pub(crate) fn ships(&self) -> impl Iterator<Item = (u16, &Ship)> {
        let numbered = (0..).zip(&self.ships);
        numbered.filter_map(|(id, ship)| Some((id, ship.as_ref()?)))
    }

    pub(crate) fn mine(&self, id: u16) -> Option<&Mine> {
        self.mines.get(usize::from(id))
    }

    pub(crate) fn spark(&self, id: u16) -> Option<&Spark> {
        self.sparks.get(usize::from(id))?.as_ref()
    }

    /// The connection of a ship is lost: it glides on, safe, until it is found again or its time is up.
    pub(crate) fn lose(&mut self, id: u16) {
        let tick = self.tick;
        if let Some(ship) = self.ship_mut(id) {
            ship.lose(tick);
        }
    }

    /// Its player is back, perhaps by another name, and counts inputs from one again.
    pub(crate) fn find(&mut self, id: u16, name: &str) -> bool {
        self.lives += 1;
        let life = self.lives;
        let Some(ship) = self.ship_mut(id) else {
            return false;
        };
        if *ship.name != *name {
            ship.name = name.into();
            ship.life = life; // so that the others are told
        }
        ship.find();
        true
    }

    /// Queues inputs with the numbers `first`, `first + 1`, …
    pub(crate) fn input(&mut self, id: u16, first: u32, inputs: &[Input]) -> Result<(), BadInput> {
        match self.ship_mut(id) {
            Some(ship) => ship.queue(first, inputs),
            None => Ok(()),
        }
    }

    /// One tick. Gives the ships that were given up.
    pub(crate) fn step(&mut self) -> Vec<u16> {
        self.tick += 1;
        let tick = self.tick;
        for mine in &mut self.mines {
            mine.bounce(tick);
        }
        for ship in self.ships.iter_mut().flatten() {
            ship.steer();
        }
        self.index();
        self.fade();
        for id in 0..self.ships.len() as u16 {
            self.collect(id);
            self.run_into_mines(id);
            self.rob(id);
        }
        self.strew();
        let given_up = |ship: &Ship| ship.lost.is_some_and(|lost| tick - lost >= LOST_TICKS);
        let gone: Vec<u16> = self
            .ships()
            .filter_map(|(id, ship)| given_up(ship).then_some(id))
            .collect();
        gone.iter().for_each(|id| self.remove(*id));
        gone
    }

    fn ship_mut(&mut self, id: u16) -> Option<&mut Ship> {
        self.ships.get_mut(usize::from(id))?.as_mut()
    }

    /// Puts ships and mines, which move, into their cells.
    fn index(&mut self) {
        self.ship_grid.clear();
        for (id, ship) in (0..).zip(&self.ships) {
            if let Some(ship) = ship {
                self.ship_grid.insert(id, ship.motion.x, ship.motion.y);
            }
        }
        self.mine_grid.clear();
        for (id, mine) in (0..).zip(&self.mines) {
            let (x, y) = mine.at(self.tick);
            self.mine_grid.insert(id, x, y);
        }
    }

    fn collect(&mut self, id: u16) {
        let Some(ship) = self.ship(id).filter(|ship| !ship.is_lost()) else {
            return;
        };
        let Motion { x, y, .. } = ship.motion;
        let taken = |id: &u16| {
            self.spark(*id)
                .is_some_and(|spark| touch((x, y), (spark.x, spark.y), SPARK_REACH))
        };
        let near = self.spark_grid.within(x, y, SPARK_REACH);
        for spark in near.filter(taken).collect::<Vec<_>>() {
            let worth = self
                .unspark(spark)
                .map_or(0, |s| if s.gold { 5 } else { 1 });
            if let Some(ship) = self.ship_mut(id) {
                ship.score += worth;
            }
        }
    }

    fn run_into_mines(&mut self, id: u16) {
        let Some(ship) = self.ship(id).filter(|s| !s.is_safe() && s.motion.dash == 0) else {
            return;
        };
        let at = (ship.motion.x, ship.motion.y);
        let reach = RADIUS + MINE_RADIUS;
        let hit = {
            let near = self.mine_grid.within(at.0, at.1, reach);
            let mut places = near.filter_map(|id| Some(self.mine(id)?.at(self.tick)));
            places.find(|mine| touch(at, *mine, reach))
        };
        let Some(mine) = hit else { return };
        let spilled = (ship.score / 3).min(SPILL);
        let push = towards(mine, at, 8000);
        if let Some(ship) = self.ship_mut(id) {
            ship.score -= spilled;
            ship.hit(push, MINE_STUN);
        }
        for _ in 0..spilled {
            let spread = |random: &mut Random| random.within(130 * UNIT);
            let (x, y) = (
                at.0 + spread(&mut self.random),
                at.1 + spread(&mut self.random),
            );
            self.spark_at(x, y, false, Some(self.tick + SPILLED_TICKS));
        }
    }

    /// A ship that dashes takes a few sparks from each that it hits.
    fn rob(&mut self, id: u16) {
        let Some(ship) = self.ship(id).filter(|s| s.motion.dash > 0 && !s.is_lost()) else {
            return;
        };
        let (x, y) = (ship.motion.x, ship.motion.y);
        let (vx, vy) = (ship.motion.vx, ship.motion.vy);
        let is_victim = |other: &u16| {
            *other != id
                && self.ship(*other).is_some_and(|ship| {
                    let at = (ship.motion.x, ship.motion.y);
                    !ship.is_safe() && ship.motion.dash == 0 && touch((x, y), at, 2 * RADIUS)
                })
        };
        let near = self.ship_grid.within(x, y, 2 * RADIUS);
        for victim in near.filter(is_victim).collect::<Vec<_>>() {
            let mut loot = 0;
            if let Some(ship) = self.ship_mut(victim) {
                loot = ship.score.min(LOOT);
                ship.score -= loot;
                ship.hit((vx / 2, vy / 2), DASH_STUN);
            }
            if let Some(ship) = self.ship_mut(id) {
                ship.score += loot;
            }
        }
    }

    /// Adds a handful of sparks if there are too few.
    fn strew(&mut self) -> bool {
        let ships = self.ships.iter().flatten().count();
        let there = MAX_SPARKS - self.no_sparks.len();
        if there >= SPARKS + SPARKS_PER_SHIP * ships {
            return false;
        }
        let (x, y) = (self.random.place(), self.random.place());
        let gold = self.random.below(5) == 0;
        self.spark_at(x, y, gold, None);
        for _ in 0..self.random.below(6) {
            let (dx, dy) = (
                self.random.within(110 * UNIT),
                self.random.within(110 * UNIT),
            );
            self.spark_at(x + dx, y + dy, false, None);
        }
        true
    }

    /// If there is no number for one more, there is one spark less.
    fn spark_at(&mut self, x: i32, y: i32, gold: bool, until: Option<u32>) {
        let Some(id) = self.no_sparks.pop() else {
            return;
        };
        let inside = |at: i32| whole(at.clamp(RADIUS, SIZE - RADIUS));
        let (x, y) = (inside(x), inside(y));
        self.spark_grid.insert(id, x, y);
        self.sparks[usize::from(id)] = Some(Spark { x, y, gold, until });
    }

    fn unspark(&mut self, id: u16) -> Option<Spark> {
        let spark = self.sparks[usize::from(id)].take()?;
        self.spark_grid.remove(id, spark.x, spark.y);
        self.no_sparks.push(id);
        Some(spark)
    }

    /// What was dropped and not taken goes.
    fn fade(&mut self) {
        // A quarter of them in turn: it need not be to the tick.
        let turn = self.tick as usize % 4;
        for id in (turn..self.sparks.len()).step_by(4) {
            let until = self.sparks[id].and_then(|spark| spark.until);
            if until.is_some_and(|until| self.tick >= until) {
                self.unspark(id as u16);
            }
        }
    }
}
