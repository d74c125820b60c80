//! Who is near whom: a grid of cells. Collisions look into the cells that a disc touches, and a client is
//! told of the cell it is in and the eight around it.

use crate::ship::{SIZE, UNIT};

/// The side of a cell, in steps.
pub(crate) const CELL: i32 = 512 * UNIT;
/// Cells along a side of the arena.
const ACROSS: i32 = SIZE / CELL;
/// How far over its border a ship must be before the view of its player moves to the next cell: else a
/// ship on a border would make a third of the view come and go.
const MARGIN: i32 = 64 * UNIT;

/// A cell, by column and row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    column: i32,
    row: i32,
}

impl Cell {
    /// The cell of a place; places outside the arena belong to the cells at its edge.
    pub(crate) fn of(x: i32, y: i32) -> Self {
        Self {
            column: x.div_euclid(CELL).clamp(0, ACROSS - 1),
            row: y.div_euclid(CELL).clamp(0, ACROSS - 1),
        }
    }

    /// The cell in the middle of a view that was at `self`, now that its ship is at `x`, `y`.
    pub(crate) fn follow(self, x: i32, y: i32) -> Self {
        let now = Self::of(x, y);
        let keeps =
            |at: i32, cell: i32| (cell * CELL - MARGIN..(cell + 1) * CELL + MARGIN).contains(&at);
        if keeps(x, self.column) && keeps(y, self.row) {
            self
        } else {
            now
        }
    }

    #[cfg(test)]
    /// Whether `other` is this cell or one of the eight around it.
    pub(crate) fn is_near(self, other: Self) -> bool {
        (self.column - other.column).abs() <= 1 && (self.row - other.row).abs() <= 1
    }

    fn index(self) -> usize {
        // Both are in 0..ACROSS.
        (self.row * ACROSS + self.column) as usize
    }
}

/// Things by the cell they are in. Each is known by a number that its owner chose.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    cells: Vec<Vec<u16>>,
}

impl Grid {
    pub(crate) fn new() -> Self {
        Self {
            cells: vec![Vec::new(); (ACROSS * ACROSS) as usize],
        }
    }

    /// Empties all cells, which keep their memory.
    pub(crate) fn clear(&mut self) {
        self.cells.iter_mut().for_each(Vec::clear);
    }

    pub(crate) fn insert(&mut self, id: u16, x: i32, y: i32) {
        self.cells[Cell::of(x, y).index()].push(id);
    }

    /// Takes out what was inserted at `x`, `y`.
    pub(crate) fn remove(&mut self, id: u16, x: i32, y: i32) {
        let cell = &mut self.cells[Cell::of(x, y).index()];
        if let Some(place) = cell.iter().position(|one| *one == id) {
            cell.swap_remove(place);
        }
    }

    /// What is in `centre` and the eight cells around it, in no order.
    pub(crate) fn near(&self, centre: Cell) -> impl Iterator<Item = u16> + '_ {
        self.rectangle(
            (centre.column - 1, centre.row - 1),
            (centre.column + 1, centre.row + 1),
        )
    }

    /// What is in the cells that a square of `2 * reach` around `x`, `y` touches: all that is within
    /// `reach`, and more.
    pub(crate) fn within(&self, x: i32, y: i32, reach: i32) -> impl Iterator<Item = u16> + '_ {
        let (from, to) = (
            Cell::of(x - reach, y - reach),
            Cell::of(x + reach, y + reach),
        );
        self.rectangle((from.column, from.row), (to.column, to.row))
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32)) -> impl Iterator<Item = u16> + '_ {
        let columns = from.0.max(0)..=to.0.min(ACROSS - 1);
        let rows = from.1.max(0)..=to.1.min(ACROSS - 1);
        rows.flat_map(move |row| columns.clone().map(move |column| Cell { column, row }))
            .flat_map(|cell| self.cells[cell.index()].iter().copied())
    }
}
