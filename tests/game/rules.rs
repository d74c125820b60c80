//! The world: that it is deterministic, and that its rules hold.

use proptest::prelude::*;

use crate::interest::{CELL, Cell, Grid};
use crate::ship::{FULL, Input, Motion, RADIUS, SIZE, UNIT};
use crate::things::{BadInput, MINE_RADIUS};
use crate::world::{LOST_TICKS, MAX_SHIPS, World};

fn thrust(x: i8, y: i8) -> Input {
    Input { x, y, dash: false }
}

/// Plays a little scene: ships come and go, everybody steers by a rule of their own.
fn play(seed: u64, ticks: u32) -> String {
    let mut world = World::new(seed);
    let mut next = [1u32; 40];
    for tick in 0..ticks {
        if tick % 20 == 0 && tick < 600 {
            world.add("ship");
        }
        if tick == 700 {
            world.lose(3);
        }
        for id in 0..40u16 {
            let turn = (tick / 30 + u32::from(id) * 7) % 8;
            let (x, y) = [(127, 0), (89, 89), (0, 127), (-89, 89)][turn as usize % 4];
            let side = if turn < 4 { 1 } else { -1 };
            let dash = tick % 97 == u32::from(id);
            let input = Input {
                x: x * side,
                y: y * side,
                dash,
            };
            if world.ship(id).is_some_and(|ship| !ship.is_lost()) {
                let first = &mut next[usize::from(id)];
                world.input(id, *first, &[input]).unwrap();
                *first += 1;
            }
        }
        world.step();
    }
    let ships = world
        .ships()
        .map(|(id, ship)| (id, ship.motion, ship.score, ship.shield));
    let sparks = (0..4000).filter_map(|id| world.spark(id));
    let mines = (0..96).filter_map(|id| world.mine(id));
    format!(
        "{:?}{:?}{:?}",
        ships.collect::<Vec<_>>(),
        sparks.collect::<Vec<_>>(),
        mines.collect::<Vec<_>>()
    )
}

#[test]
fn the_same_calls_make_the_same_world() {
    let first = play(7, 2000);
    assert_eq!(first, play(7, 2000));
    assert_ne!(first, play(8, 2000));
    assert!(first.contains("Motion"));
}

#[test]
fn something_happens() {
    let mut world = World::new(1);
    let id = world.add("a").unwrap();
    let mut first = 1;
    let (mut hits, mut best) = (0, 0);
    for tick in 0..60 * 120 {
        let (x, y) = [(120, 40), (-40, 120), (-120, -40), (40, -120), (89, -89)][tick / 50 % 5];
        world.input(id, first, &[thrust(x, y)]).unwrap();
        first += 1;
        let stunned = world.ship(id).unwrap().motion.stun;
        world.step();
        let ship = world.ship(id).unwrap();
        hits += u32::from(ship.motion.stun > stunned);
        best = best.max(ship.score);
        assert_eq!(ship.done, first - 1, "one input a tick");
    }
    assert!(best > 5, "{best} sparks in two minutes");
    assert!((1..100).contains(&hits), "{hits} mines in two minutes");
}

#[test]
fn a_ship_waits_for_inputs_and_catches_up_but_gains_nothing() {
    let mut world = World::new(1);
    let id = world.add("a").unwrap();
    let start = world.ship(id).unwrap().motion;
    (0..10).for_each(|_| drop(world.step()));
    assert_eq!(world.ship(id).unwrap().motion, start, "it waits");
    // Ten ticks late: they are made up for.
    world.input(id, 1, &[thrust(127, 0); 16]).unwrap();
    (0..11).for_each(|_| drop(world.step()));
    assert_eq!(world.ship(id).unwrap().done, 16);
    // Twice as many as there are ticks: no faster than one a tick.
    let (mut first, mut before) = (17, 0);
    for tick in 0..600 {
        world.input(id, first, &[thrust(0, 127); 2]).unwrap();
        first += 2;
        let y = world.ship(id).unwrap().motion.y;
        world.step();
        let moved = world.ship(id).unwrap().motion.y - y;
        if tick > 120 && y < SIZE - 40 * UNIT {
            assert!(moved <= 230 * 24, "{moved} in a tick");
            before += 1;
        }
        assert!(world.ship(id).unwrap().waiting() <= 30);
    }
    assert!(before > 100, "it was looked at");
}

#[test]
fn without_inputs_it_comes_to_rest() {
    let mut world = World::new(1);
    let id = world.add("a").unwrap();
    world.input(id, 1, &[thrust(127, 0); 16]).unwrap();
    (0..600).for_each(|_| drop(world.step()));
    let motion = world.ship(id).unwrap().motion;
    assert_eq!((motion.vx, motion.vy), (0, 0));
}

#[test]
fn bad_inputs_are_told() {
    let mut world = World::new(1);
    let id = world.add("a").unwrap();
    assert_eq!(world.input(id, 2, &[thrust(0, 0)]), Err(BadInput::Order));
    assert_eq!(world.input(id, 1, &[thrust(127, 1)]), Err(BadInput::Thrust));
    assert_eq!(
        world.input(id, 1, &[thrust(-128, 0)]),
        Err(BadInput::Thrust)
    );
    assert_eq!(world.input(id, 1, &[thrust(0, 0)]), Ok(()));
    assert_eq!(world.input(id, 1, &[thrust(0, 0)]), Err(BadInput::Order));
    assert_eq!(
        world.input(id, u32::MAX, &[thrust(0, 0)]),
        Err(BadInput::Order)
    );
}

#[test]
fn a_lost_ship_waits_twenty_seconds() {
    let mut world = World::new(1);
    let (a, b) = (world.add("a").unwrap(), world.add("b").unwrap());
    world.lose(a);
    world.lose(b);
    (0..LOST_TICKS - 1).for_each(|_| assert!(world.step().is_empty()));
    assert!(world.find(b, "b"), "it is still there");
    assert_eq!(world.step(), [a]);
    assert!(!world.find(a, "a"));
    assert!(world.ship(a).is_none() && world.ship(b).is_some());
    assert_eq!(
        world.input(b, 1, &[thrust(1, 1)]),
        Ok(()),
        "numbers begin anew"
    );
}

#[test]
fn a_newcomer_takes_the_place_of_who_is_gone_for_longest() {
    let mut world = World::new(1);
    (0..MAX_SHIPS).for_each(|_| assert!(world.add("a").is_some()));
    assert_eq!(world.add("b"), None, "all are here");
    for id in [7, 3] {
        world.lose(id);
        world.step();
    }
    let lives = [7, 3].map(|id| world.ship(id).unwrap().life);
    assert_eq!([world.add("b"), world.add("c")], [Some(7), Some(3)]);
    assert_eq!(world.add("d"), None);
    for (id, life) in [7, 3].into_iter().zip(lives) {
        let ship = world.ship(id).unwrap();
        assert!(ship.life > life && !ship.is_lost(), "another ship");
    }
    assert_eq!(world.ships().count(), MAX_SHIPS);
}

#[test]
fn mines_stay_inside_and_are_known_by_their_last_bounce() {
    let mut world = World::new(3);
    for _ in 0..20_000 {
        world.step();
        for id in 0..96 {
            let (x, y) = world.mine(id).unwrap().at(world.tick);
            let inside = -MINE_RADIUS..SIZE + MINE_RADIUS;
            assert!(
                inside.contains(&x) && inside.contains(&y),
                "mine {id} at {x}, {y}"
            );
        }
    }
}

proptest! {
    #[test]
    fn ships_stay_inside(steps in prop::collection::vec((-127i32..=127, -127i32..=127, any::<bool>()), 0..400)) {
        let mut motion = Motion::at(RADIUS, SIZE / 2);
        for (x, y, dash) in steps {
            let length = f64::from(x * x + y * y).sqrt().max(f64::from(FULL));
            let scale = |v: i32| (f64::from(v) * f64::from(FULL) / length) as i8;
            let input = Input { x: scale(x), y: scale(y), dash };
            prop_assert!(input.is_sound());
            motion.step(input);
            for at in [motion.x, motion.y] {
                prop_assert!((RADIUS..=SIZE - RADIUS).contains(&at));
            }
            prop_assert!(i16::try_from(motion.vx).is_ok() && i16::try_from(motion.vy).is_ok());
        }
    }

    /// `within` and `near` against looking at everything.
    #[test]
    fn the_grid_finds_what_is_near(
        things in prop::collection::vec((0..SIZE, 0..SIZE), 1..200),
        at in (0..SIZE, 0..SIZE),
        reach in 1..2 * CELL,
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut grid = Grid::new();
        let mut there: Vec<(u16, (i32, i32))> = (0..).zip(things).collect();
        for (id, (x, y)) in &there {
            grid.insert(*id, *x, *y);
        }
        for index in gone {
            if !there.is_empty() {
                let (id, (x, y)) = there.swap_remove(index.index(there.len()));
                grid.remove(id, x, y);
            }
        }
        let found: Vec<u16> = grid.within(at.0, at.1, reach).collect();
        for (id, (x, y)) in &there {
            if (x - at.0).abs() <= reach && (y - at.1).abs() <= reach {
                prop_assert!(found.contains(id));
            }
        }
        let centre = Cell::of(at.0, at.1);
        let mut near: Vec<u16> = grid.near(centre).collect();
        let mut expected: Vec<u16> = there
            .iter()
            .filter(|(_, (x, y))| centre.is_near(Cell::of(*x, *y)))
            .map(|(id, _)| *id)
            .collect();
        near.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(near, expected);
    }

    /// A view moves on only when its ship is well over the border, and never leaves the ship behind.
    #[test]
    fn a_view_follows_its_ship(way in prop::collection::vec((-90 * UNIT..90 * UNIT, -90 * UNIT..90 * UNIT), 1..200)) {
        let (mut x, mut y) = (SIZE / 2, SIZE / 2);
        let mut centre = Cell::of(x, y);
        for (dx, dy) in way {
            x = (x + dx).clamp(0, SIZE - 1);
            y = (y + dy).clamp(0, SIZE - 1);
            let next = centre.follow(x, y);
            let margin = 64 * UNIT;
            let still = [(x - margin, y), (x + margin, y), (x, y - margin), (x, y + margin)];
            if still.iter().all(|(x, y)| Cell::of(*x, *y) == Cell::of(way_back(still).0, way_back(still).1)) {
                prop_assert_eq!(next, Cell::of(x, y), "in the middle of a cell it is that cell");
            }
            prop_assert!(next == centre || next == Cell::of(x, y));
            prop_assert!(next.is_near(Cell::of(x, y)));
            centre = next;
        }
    }
}

/// The middle of the four places.
fn way_back(around: [(i32, i32); 4]) -> (i32, i32) {
    (
        (around[0].0 + around[1].0) / 2,
        (around[2].1 + around[3].1) / 2,
    )
}
