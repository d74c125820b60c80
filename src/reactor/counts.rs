//! What a connection is counted among, in one byte.

/// See the module's documentation. Each is left once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts(u8);

impl Counts {
    /// Those of which the metrics have not told yet what became of them: opened, answered, or refused
    /// for some reason.
    pub(super) const UNTOLD: u8 = 16;
    /// Those that are on their way to open.
    pub(super) const OPENING: u8 = 1;
    /// Those from its address.
    pub(super) const BY_IP: u8 = 2;
    /// Those over a limit, which are here only to be told so; not among those that are on their way.
    pub(super) const REFUSED: u8 = 4;
    /// Those of which some of what they missed of topics with history is still to be sent.
    pub(super) const BEHIND: u8 = 8;

    pub(super) fn none() -> Self {
        Self(0)
    }

    /// In addition, `if_so`.
    pub(super) fn and(self, what: u8, if_so: bool) -> Self {
        Self(self.0 | if if_so { what } else { 0 })
    }

    pub(super) fn enter(&mut self, what: u8) {
        self.0 |= what;
    }

    pub(super) fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    /// `false`: it was not among them (any more).
    pub(super) fn leave(&mut self, what: u8) -> bool {
        let was = self.has(what);
        self.0 &= !what;
        was
    }
}
