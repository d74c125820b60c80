//! What a client knows of the world around its ship, and how it takes a snapshot in. The layout is in
//! `snapshot.rs`.

use crate::ship::{Motion, UNIT};
use crate::things::Mine;
use crate::wire::{Reader, unzigzag};

pub(crate) const KIND: u8 = 2;

/// Flags of a ship.
pub(crate) const STUNNED: u8 = 1;
pub(crate) const SHIELDED: u8 = 2;
pub(crate) const LOST: u8 = 4;
pub(crate) const DASHING: u8 = 8;

/// A ship of others, as a client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenShip {
    pub(crate) id: u16,
    pub(crate) x: u16,
    pub(crate) y: u16,
    /// The way it made from the snapshot before to the last one.
    pub(crate) dx: u16,
    pub(crate) dy: u16,
    pub(crate) flags: u8,
    pub(crate) score: u32,
    /// Which of the ships with this number; only the server knows.
    pub(crate) life: u32,
    /// Only the client keeps it.
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeenMine {
    pub(crate) id: u16,
    pub(crate) mine: Mine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeenSpark {
    pub(crate) id: u16,
    pub(crate) x: u16,
    pub(crate) y: u16,
    pub(crate) gold: bool,
}

/// What a client knows of the world around its ship. All sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) ships: Vec<SeenShip>,
    pub(crate) mines: Vec<SeenMine>,
    pub(crate) sparks: Vec<SeenSpark>,
}

/// The part of a snapshot that is about the client's own ship.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) tick: u32,
    pub(crate) done: u32,
    pub(crate) waiting: u8,
    pub(crate) motion: Motion,
    pub(crate) flags: u8,
    pub(crate) score: u32,
}

impl Own {
    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        (reader.u8()? == KIND).then_some(())?;
        let (tick, done, waiting) = (reader.u32()?, reader.u32()?, reader.u8()?);
        let motion = Motion {
            x: reader.i32()?,
            y: reader.i32()?,
            vx: reader.i16()?.into(),
            vy: reader.i16()?.into(),
            dash: reader.u8()?,
            pause: reader.u8()?,
            stun: reader.u8()?,
        };
        Some(Self {
            tick,
            done,
            waiting,
            motion,
            flags: reader.u8()?,
            score: reader.number()?,
        })
    }
}

impl Picture {
    /// The client's side: takes a snapshot in. `None`: it is none, and nothing is to be trusted any
    /// more.
    pub(crate) fn apply(&mut self, bytes: &[u8]) -> Option<Own> {
        let mut reader = Reader(bytes);
        let reader = &mut reader;
        let own = Own::decode(reader)?;
        for ship in &mut self.ships {
            ship.x = ship.x.wrapping_add(ship.dx);
            ship.y = ship.y.wrapping_add(ship.dy);
        }
        each(reader, false, |_, id, _| take(&mut self.ships, id))?;
        each(reader, false, |reader, id, _| {
            let ship = SeenShip {
                id,
                x: reader.u16()?,
                y: reader.u16()?,
                dx: 0,
                dy: 0,
                flags: reader.u8()?,
                score: reader.number()?,
                life: 0,
                name: reader.name()?.into(),
            };
            put(&mut self.ships, ship);
            Some(())
        })?;
        each(reader, true, |reader, id, more| {
            let place = find(&self.ships, id).ok()?;
            let ship = &mut self.ships[place];
            let mut off = || Some(unzigzag(reader.number()?)? as u16); // the same bits
            let (x, y) = (off()?, off()?);
            ship.x = ship.x.wrapping_add(x);
            ship.y = ship.y.wrapping_add(y);
            ship.dx = ship.dx.wrapping_add(x);
            ship.dy = ship.dy.wrapping_add(y);
            if more {
                ship.flags = reader.u8()?;
                ship.score = reader.number()?;
            }
            Some(())
        })?;
        each(reader, false, |_, id, _| take(&mut self.mines, id))?;
        each(reader, false, |reader, id, _| {
            let mine = Mine {
                since: own.tick.wrapping_sub(reader.number()?),
                from: (fine(reader.u16()?), fine(reader.u16()?)),
                speed: (reader.i16()?.into(), reader.i16()?.into()),
            };
            put(&mut self.mines, SeenMine { id, mine });
            Some(())
        })?;
        each(reader, false, |_, id, _| take(&mut self.sparks, id))?;
        each(reader, true, |reader, id, gold| {
            let (x, y) = (reader.u16()?, reader.u16()?);
            put(&mut self.sparks, SeenSpark { id, x, y, gold });
            Some(())
        })?;
        reader.0.is_empty().then_some(own)
    }
}

fn fine(at: u16) -> i32 {
    i32::from(at) * (UNIT / 16)
}

/// Reads one list: calls `entry` with each id and the bit beside it.
fn each<'a>(
    reader: &mut Reader<'a>,
    bit: bool,
    mut entry: impl FnMut(&mut Reader<'a>, u16, bool) -> Option<()>,
) -> Option<()> {
    let mut id = 0u16;
    for _ in 0..reader.number()? {
        let number = reader.number()?;
        let step = if bit { number >> 1 } else { number };
        id = id.checked_add(u16::try_from(step).ok()?)?;
        entry(reader, id, bit && number & 1 == 1)?;
    }
    Some(())
}

pub(crate) trait Numbered {
    fn id(&self) -> u16;
}

impl Numbered for SeenShip {
    fn id(&self) -> u16 {
        self.id
    }
}

impl Numbered for SeenMine {
    fn id(&self) -> u16 {
        self.id
    }
}

impl Numbered for SeenSpark {
    fn id(&self) -> u16 {
        self.id
    }
}

impl<T> Numbered for (u16, T) {
    fn id(&self) -> u16 {
        self.0
    }
}

fn find<T: Numbered>(things: &[T], id: u16) -> Result<usize, usize> {
    things.binary_search_by_key(&id, Numbered::id)
}

fn take<T: Numbered>(things: &mut Vec<T>, id: u16) -> Option<()> {
    things.remove(find(things, id).ok()?);
    Some(())
}

fn put<T: Numbered>(things: &mut Vec<T>, thing: T) {
    match find(things, thing.id()) {
        Ok(place) => things[place] = thing,
        Err(place) => things.insert(place, thing),
    }
}
