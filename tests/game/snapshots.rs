//! Deltas: whatever was sent, and whatever was left out, the client ends up with what is there.

use proptest::prelude::*;

use crate::interest::Cell;
use crate::picture::{Own, Picture};
use crate::ship::{Input, SIZE, UNIT};
use crate::snapshot::View;
use crate::world::World;

/// What happens between two ticks, or instead of one.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Steps(u8),
    Add,
    Remove(u16),
    Lose(u16),
    Steer(u16, i8, i8, bool),
    /// The client gets a snapshot; without these, it is one that was skipped.
    Snapshot,
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1u8..40).prop_map(Act::Steps),
        2 => Just(Act::Add),
        1 => (1u16..12).prop_map(Act::Remove),
        1 => (1u16..12).prop_map(Act::Lose),
        6 => (0u16..12, -89i8..=89, -89i8..=89, any::<bool>())
            .prop_map(|(id, x, y, dash)| Act::Steer(id, x, y, dash)),
        6 => Just(Act::Snapshot),
    ]
}

/// A world, and the view of its first ship.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) view: View,
    next: Vec<u32>,
}

impl Scene {
    pub(super) fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        (0..4).for_each(|n| assert_eq!(world.add(&format!("ship {n}")), Some(n)));
        Self {
            world,
            view: View::default(),
            next: vec![1; 1000],
        }
    }

    /// A snapshot, if this is one.
    pub(super) fn act(&mut self, act: Act) -> Option<Vec<u8>> {
        let world = &mut self.world;
        match act {
            Act::Steps(n) => (0..n).for_each(|_| drop(world.step())),
            Act::Add => {
                if let Some(id) = world.add("another") {
                    self.next[usize::from(id)] = 1;
                }
            }
            Act::Remove(id) => {
                if world.ship(id).is_some() {
                    world.remove(id);
                }
            }
            Act::Lose(id) => world.lose(id),
            Act::Steer(id, x, y, dash) => {
                if world.ship(id).is_some_and(|ship| !ship.is_lost()) {
                    let next = &mut self.next[usize::from(id)];
                    world.input(id, *next, &[Input { x, y, dash }; 12]).unwrap();
                    *next += 12;
                }
            }
            Act::Snapshot => {
                let mut bytes = Vec::new();
                assert!(self.view.delta(world, 0, &mut bytes));
                return Some(bytes);
            }
        }
        None
    }

    /// The picture that a client has which was never sent a delta: the world itself, in coarse places.
    fn whole(&self) -> Picture {
        let mut fresh = View::default();
        assert!(fresh.delta(&self.world, 0, &mut Vec::new()));
        fresh.picture().clone()
    }
}

/// Without what one side only knows, and without the last way, which depends on what was sent before.
fn plain(picture: &Picture) -> Picture {
    let mut plain = picture.clone();
    for ship in &mut plain.ships {
        ship.life = 0;
        ship.name.clear();
        (ship.dx, ship.dy) = (0, 0);
    }
    plain
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn deltas_add_up_to_the_world(seed in any::<u64>(), acts in prop::collection::vec(act(), 1..120)) {
        let mut scene = Scene::new(seed);
        let mut client = Picture::default();
        for act in acts {
            let Some(bytes) = scene.act(act) else { continue };
            let own = client.apply(&bytes).expect("a snapshot is readable");
            let ship = scene.world.ship(0).unwrap();
            prop_assert_eq!((own.motion, own.score, own.done), (ship.motion, ship.score, ship.done));
            prop_assert_eq!(own.tick, scene.world.tick);
            for seen in &client.ships {
                let name = &scene.world.ship(seen.id).unwrap().name;
                prop_assert_eq!(seen.name.as_str(), &**name);
            }
            let known = scene.view.picture();
            for (a, b) in client.ships.iter().zip(&known.ships) {
                prop_assert_eq!((a.dx, a.dy), (b.dx, b.dy));
            }
            prop_assert_eq!(plain(&client), plain(known), "both sides have the same baseline");
            // The view lags behind at the border of a cell; apart from that it is all there is.
            let ship = scene.world.ship(0).unwrap().motion;
            if well_inside(ship.x) && well_inside(ship.y) {
                prop_assert_eq!(plain(&client), plain(&scene.whole()), "and it is what is there");
            }
        }
    }

    #[test]
    fn rubbish_does_no_harm(seed in any::<u64>(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut scene = Scene::new(seed);
        let mut bytes = scene.act(Act::Snapshot).unwrap();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Picture::default().apply(&bytes);
    }
}

/// Further than the margin from any border of cells.
fn well_inside(at: i32) -> bool {
    (64 * UNIT..448 * UNIT).contains(&(at % (512 * UNIT)))
}

#[test]
fn half_a_snapshot_is_none() {
    let mut scene = Scene::new(1);
    let bytes = scene.act(Act::Snapshot).unwrap();
    for end in 0..bytes.len() {
        assert_eq!(Picture::default().apply(&bytes[..end]), None, "{end} bytes");
    }
    assert!(Picture::default().apply(&bytes).is_some());
}

#[test]
fn what_stands_still_costs_nothing() {
    let mut scene = Scene::new(1);
    scene.act(Act::Steps(120));
    let first = scene.act(Act::Snapshot).unwrap();
    // A quarter of a second in which nobody steers; mines drift on.
    scene.act(Act::Steps(1));
    let second = scene.act(Act::Snapshot).unwrap();
    assert!(first.len() > 300, "{} bytes", first.len());
    assert!(second.len() < 40, "{} bytes", second.len());
}

#[test]
fn a_ship_under_thrust_costs_three_bytes() {
    let mut scene = Scene::new(1);
    scene.act(Act::Steps(120)); // the shields are down
    let mut lengths = Vec::new();
    for _ in 0..30 {
        scene.act(Act::Steer(1, 0, -89, false));
        scene.act(Act::Steps(3));
        let resting = scene.act(Act::Snapshot).unwrap();
        lengths.push(resting.len());
    }
    let near = scene.view.picture().ships.iter().any(|ship| ship.id == 1);
    assert!(near, "it is in view");
    lengths.sort_unstable();
    assert!(lengths[15] <= 33 + 7 + 3, "{lengths:?}");
}

#[test]
fn ships_come_and_leave_by_cells() {
    let mut scene = Scene::new(5);
    let mut client = Picture::default();
    let (mut comings, mut leavings) = (0, 0);
    let mut before: Vec<u16> = Vec::new();
    for turn in 0..400 {
        // The first ship goes around; the others stay.
        let (x, y) = [(89, 89), (-89, 89), (-89, -89), (89, -89)][turn / 50 % 4];
        scene.act(Act::Steer(0, x, y, false));
        scene.act(Act::Steps(12));
        let bytes = scene.act(Act::Snapshot).unwrap();
        let own: Own = client.apply(&bytes).unwrap();
        let centre = Cell::of(own.motion.x, own.motion.y);
        let ids: Vec<u16> = client.ships.iter().map(|ship| ship.id).collect();
        for (id, ship) in scene.world.ships().filter(|(id, _)| *id != 0) {
            let (dx, dy) = (ship.motion.x - own.motion.x, ship.motion.y - own.motion.y);
            let distance = dx.abs().max(dy.abs());
            assert!(
                distance > 448 * UNIT || ids.contains(&id),
                "{id} is close, and not known"
            );
            assert!(
                distance < SIZE / 4 + 64 * UNIT || !ids.contains(&id),
                "{id} is far, and known"
            );
        }
        assert!(centre.is_near(centre));
        comings += ids.iter().filter(|id| !before.contains(id)).count();
        leavings += before.iter().filter(|id| !ids.contains(id)).count();
        before = ids;
    }
    assert!(
        comings > 3 && leavings > 3,
        "{comings} came, {leavings} left"
    );
}
