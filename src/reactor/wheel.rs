//! A hierarchical timer wheel with at most one deadline per slot of the connection slab.
//!
//! Time is a `u64` of milliseconds since the loop began, and comes in as an argument. Absent: a
//! clock, what a deadline is for, and any allocation per timer. The cost is 12 bytes per slot
//! (up to the highest ever armed) and 1.3 KiB of bucket heads. Arming and cancelling are
//! O(1); a deadline moves down at most [`LEVELS`] - 1 times before it fires, plus once per
//! revolution of the last level (12.4 days); empty time costs nothing, however long.
//!
//! # Where a deadline sits
//!
//! Read a time as digits of six bits: a digit per level, the last level's also the uppermost. A
//! deadline sits on the level of the highest digit in which it differs from `now`, in the bucket
//! named by its own digit there:
//!
//! ```text
//! level    bucket is    level spans
//!   0          1 ms         64 ms    one bucket, one millisecond: fires
//!   1         64 ms        4.1 s     cascades to the levels above here,
//!   2        4.1 s         4.4 min     when `now` enters the bucket
//!   3        4.4 min       4.7 h
//!   4        4.7 h        12.4 d     bucket 0 has everything farther
//! ```
//!
//! So whatever is on a level is due before anything on the next, and the first bucket to visit is
//! the lowest set bit of the first level that has one. On levels above 0 a deadline's digit is
//! greater than that of `now`, hence never 0; that is why bucket 0 of the last level is free for
//! deadlines of later revolutions. It is visited when the next revolution begins.

const LEVELS: usize = 5;
const DIGIT_BITS: u32 = 6;
const BUCKETS: usize = 1 << DIGIT_BITS;
const LAST: usize = LEVELS - 1;

/// In `heads` and `Node::next`: no further node.
const NIL: u32 = u32::MAX;
/// In `Node::prev`: the node is in no list.
const IDLE: u32 = u32::MAX;
/// In `Node::prev`: the node is the first of the bucket named by the lower bits.
const HEAD: u32 = 1 << 31;

/// A deadline is kept as 32 bits: what is farther off than 49.7 days is due then.
const FARTHEST: u64 = u32::MAX as u64;

/// Deadlines by slot, in milliseconds.
///
/// `arm` and `cancel` at will; sleep until `next` at the latest; then `expire`.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Time of the last `expire`. No armed deadline is earlier, or more than [`FARTHEST`] later.
    now: u64,
    /// By slot. `nodes.len() <= HEAD`
    nodes: Vec<Node>,
    /// Bit `b` of `occupied[l]` is set if and only if `heads[l][b] != NIL`.
    occupied: [u64; LEVELS],
    heads: [[u32; BUCKETS]; LEVELS],
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// A slot, or `HEAD | bucket`, or `IDLE`.
    prev: u32,
    /// A slot, or `NIL`.
    next: u32,
    /// The low 32 bits of the deadline. The others follow from `now`, see [`Wheel::at`].
    at: u32,
}

impl Node {
    const UNARMED: Self = Self {
        prev: IDLE,
        next: NIL,
        at: 0,
    };
}

/// A bucket of a level, packed so that it fits into `Node::prev` beside `HEAD`.
#[derive(Clone, Copy)]
struct Bucket {
    level: usize,
    digit: usize,
}

impl Bucket {
    fn to_prev(self) -> u32 {
        HEAD | (self.level * BUCKETS + self.digit) as u32
    }

    /// `None` if `prev` is a slot. `prev` is not `IDLE`.
    fn from_prev(prev: u32) -> Option<Self> {
        let index = prev.checked_sub(HEAD)? as usize;
        Some(Self {
            level: index / BUCKETS,
            digit: index % BUCKETS,
        })
    }
}

impl Wheel {
    /// An empty wheel, at the time `now`.
    pub(crate) fn new(now: u64) -> Self {
        Self {
            now,
            nodes: Vec::new(),
            occupied: [0; LEVELS],
            heads: [[NIL; BUCKETS]; LEVELS],
        }
    }

    /// Sets the deadline of `slot`, in place of an earlier one. If `at` is over, it is due at the
    /// next `expire`; if it is farther off than [`FARTHEST`], too early: whoever sets such ones looks
    /// at the time when they fire. Slots are below 2^31.
    pub(crate) fn arm(&mut self, slot: u32, at: u64) {
        assert!(slot < HEAD, "slots of a wheel are below 2^31");
        let index = slot as usize;
        if index >= self.nodes.len() {
            self.nodes.resize(index + 1, Node::UNARMED);
        }
        self.unlink(slot);
        let farthest = self.now.saturating_add(FARTHEST);
        self.link(slot, at.clamp(self.now, farthest));
    }

    /// Forgets the deadline of `slot`, if it has one.
    pub(crate) fn cancel(&mut self, slot: u32) {
        if self.is_armed(slot) {
            self.unlink(slot);
        }
    }

    /// Whether `slot` has a deadline.
    fn is_armed(&self, slot: u32) -> bool {
        let node = self.nodes.get(slot as usize);
        node.is_some_and(|node| node.prev != IDLE)
    }

    /// The deadline of an armed node.
    fn at(&self, node: Node) -> u64 {
        self.now + u64::from(node.at.wrapping_sub(self.now as u32))
    }

    /// When to call `expire` next: not later than the earliest deadline, and `None` without one.
    ///
    /// It is the earliest deadline itself if that is in the same 64 ms (of `now` / 64) as the last
    /// `expire`, and otherwise the time of the next cascade: `expire` may then find nothing due.
    /// For deadlines that were over when armed, it is the time of the last `expire`.
    pub(crate) fn next(&self) -> Option<u64> {
        self.first().map(|(_, start)| start)
    }

    /// Disarms every slot whose deadline is not after `now` and pushes it to `fired`.
    ///
    /// The slots come in the order of their deadlines; those of the same millisecond, and those
    /// that were over when armed (which come first), in no particular order. If time seems to go
    /// backwards, it stands still.
    pub(crate) fn expire(&mut self, now: u64, fired: &mut Vec<u32>) {
        let now = now.max(self.now);
        while let Some((bucket, start)) = self.first().filter(|&(_, start)| start <= now) {
            self.now = start;
            self.empty(bucket, fired);
        }
        // No bucket starts in between, so every deadline keeps its place.
        self.now = now;
    }

    /// The next bucket to visit, and when.
    fn first(&self) -> Option<(Bucket, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let bits = self.occupied[level];
        let digit = bits.trailing_zeros() as usize;
        if level < LAST {
            return Some((Bucket { level, digit }, self.start(level, digit)));
        }
        // Digit 0 of the last level is one past its end: visited after all others.
        match bits & !1 {
            0 => Some((Bucket { level, digit: 0 }, self.start(level, BUCKETS))),
            near => {
                let digit = near.trailing_zeros() as usize;
                Some((Bucket { level, digit }, self.start(level, digit)))
            }
        }
    }

    /// The first millisecond of a bucket: the digits of `now` above the level, `digit`, zeros.
    fn start(&self, level: usize, digit: usize) -> u64 {
        let shift = DIGIT_BITS * level as u32;
        let above = self.now >> shift >> DIGIT_BITS;
        ((above << DIGIT_BITS) + digit as u64) << shift
    }

    /// Where a deadline that is not before `now` belongs.
    fn bucket(&self, at: u64) -> Bucket {
        let differing = u64::BITS - (at ^ self.now).leading_zeros();
        let level = differing.saturating_sub(1) / DIGIT_BITS;
        if level > LAST as u32 {
            return Bucket {
                level: LAST,
                digit: 0,
            };
        }
        Bucket {
            level: level as usize,
            digit: (at >> (DIGIT_BITS * level)) as usize % BUCKETS,
        }
    }

    /// Fires a bucket of level 0; spreads any other over the levels below it.
    fn empty(&mut self, bucket: Bucket, fired: &mut Vec<u32>) {
        let mut slot = self.heads[bucket.level][bucket.digit];
        self.set_head(bucket, NIL);
        while slot != NIL {
            let node = self.nodes[slot as usize];
            if bucket.level == 0 {
                self.nodes[slot as usize] = Node::UNARMED;
                fired.push(slot);
            } else {
                self.link(slot, self.at(node));
            }
            slot = node.next;
        }
    }

    fn set_head(&mut self, Bucket { level, digit }: Bucket, slot: u32) {
        self.heads[level][digit] = slot;
        let bit = 1 << digit;
        if slot == NIL {
            self.occupied[level] &= !bit;
        } else {
            self.occupied[level] |= bit;
        }
    }

    /// Puts a node that is in no list first into the bucket of `at`.
    fn link(&mut self, slot: u32, at: u64) {
        let bucket = self.bucket(at);
        let next = self.heads[bucket.level][bucket.digit];
        if next != NIL {
            self.nodes[next as usize].prev = slot;
        }
        self.nodes[slot as usize] = Node {
            prev: bucket.to_prev(),
            next,
            at: at as u32,
        };
        self.set_head(bucket, slot);
    }

    /// Takes a node out of its list, if it is in one.
    fn unlink(&mut self, slot: u32) {
        let Node { prev, next, .. } = self.nodes[slot as usize];
        if prev == IDLE {
            return;
        }
        match Bucket::from_prev(prev) {
            Some(bucket) => self.set_head(bucket, next),
            None => self.nodes[prev as usize].next = next,
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        self.nodes[slot as usize] = Node::UNARMED;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The naive twin: a map from slot to deadline, searched from end to end.
    #[derive(Default)]
    struct Naive {
        now: u64,
        deadlines: BTreeMap<u32, u64>,
    }

    impl Naive {
        /// What is already over is due now, and what is too far off, as far off as can be.
        fn arm(&mut self, slot: u32, at: u64) {
            let at = at.max(self.now).min(self.now + FARTHEST);
            self.deadlines.insert(slot, at);
        }

        fn earliest(&self) -> Option<u64> {
            self.deadlines.values().copied().min()
        }

        fn expire(&mut self, now: u64) -> Vec<(u64, u32)> {
            let now = now.max(self.now);
            let due = self.deadlines.iter().filter(|&(_, &at)| at <= now);
            let mut fired: Vec<_> = due.map(|(&slot, &at)| (at, slot)).collect();
            fired.sort_unstable();
            self.deadlines.retain(|_, at| *at > now);
            self.now = now;
            fired
        }
    }

    /// Expires both and compares: the same slots, in the order of their deadlines.
    fn expire_both(wheel: &mut Wheel, naive: &mut Naive, now: u64) {
        let mut fired = Vec::new();
        wheel.expire(now, &mut fired);
        let fired: Vec<_> = fired
            .iter()
            .map(|slot| (naive.deadlines[slot], *slot))
            .collect();
        assert!(fired.is_sorted_by_key(|&(due, _)| due));
        let mut sorted = fired;
        sorted.sort_unstable();
        assert_eq!(sorted, naive.expire(now));
    }

    fn deadline(wheel: &Wheel, slot: u32) -> Option<u64> {
        wheel
            .is_armed(slot)
            .then(|| wheel.at(wheel.nodes[slot as usize]))
    }

    /// `next` is never late, nor in the past, and exact within the current 64 ms.
    fn check_next(wheel: &Wheel, naive: &Naive) {
        let (next, earliest) = (wheel.next(), naive.earliest());
        assert_eq!(next.is_some(), earliest.is_some());
        if let (Some(next), Some(earliest)) = (next, earliest) {
            assert!(naive.now <= next && next <= earliest);
            assert!(next == earliest || earliest / 64 > naive.now / 64);
        }
    }

    fn check_lists(wheel: &Wheel) {
        let mut listed = 0;
        for level in 0..LEVELS {
            for digit in 0..BUCKETS {
                let bucket = Bucket { level, digit };
                let mut slot = wheel.heads[level][digit];
                assert_eq!(slot != NIL, wheel.occupied[level] & 1 << digit != 0);
                let mut prev = bucket.to_prev();
                while slot != NIL {
                    let node = wheel.nodes[slot as usize];
                    assert_eq!(node.prev, prev);
                    assert_eq!(wheel.bucket(wheel.at(node)).to_prev(), bucket.to_prev());
                    (prev, slot) = (slot, node.next);
                    listed += 1;
                }
            }
        }
        let armed = wheel.nodes.iter().filter(|node| node.prev != IDLE);
        assert_eq!(listed, armed.count());
    }

    #[test]
    fn a_node_is_twelve_bytes() {
        assert_eq!(size_of::<Node>(), 12);
    }

    #[test]
    fn a_deadline_already_over_is_due_at_once() {
        let mut wheel = Wheel::new(1000);
        wheel.arm(3, 10);
        assert_eq!(
            (wheel.next(), deadline(&wheel, 3)),
            (Some(1000), Some(1000))
        );
        let mut fired = Vec::new();
        wheel.expire(1000, &mut fired);
        assert_eq!((fired, wheel.next()), (vec![3], None));
    }

    #[test]
    fn time_that_goes_backwards_stands_still() {
        let mut wheel = Wheel::new(1000);
        wheel.arm(0, 1001);
        let mut fired = Vec::new();
        wheel.expire(10, &mut fired);
        assert_eq!((&fired[..], wheel.next()), (&[][..], Some(1001)));
        wheel.arm(1, 500);
        wheel.expire(10, &mut fired);
        assert_eq!(fired, [1]);
    }

    #[test]
    fn the_last_revolution_of_time_has_an_end() {
        let mut wheel = Wheel::new(u64::MAX - (1 << 31));
        wheel.arm(0, u64::MAX);
        wheel.arm(1, u64::MAX - 1);
        wheel.arm(2, u64::MAX - (1 << 30));
        let mut fired = Vec::new();
        wheel.expire(u64::MAX - 1, &mut fired);
        assert_eq!((&fired[..], wheel.next()), (&[2, 1][..], Some(u64::MAX)));
        wheel.expire(u64::MAX, &mut fired);
        assert_eq!((fired, wheel.next()), (vec![2, 1, 0], None));
    }

    /// Spans that reach every level, the borders between them, and later revolutions.
    fn span() -> impl Strategy<Value = u64> {
        let near_border =
            |level: u32| (1 << (DIGIT_BITS * level)) - 3u64..=(1 << (DIGIT_BITS * level)) + 3;
        prop_oneof![
            0u64..3,
            0u64..200,
            0u64..100_000,
            0u64..100_000_000,
            0u64..1 << 33,
            (1u32..6).prop_flat_map(near_border),
        ]
    }

    #[derive(Clone, Debug)]
    enum Op {
        Arm(u32, u64),
        ArmOver(u32, u64),
        Cancel(u32),
        Expire(u64),
        ExpireAtNext,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u32..40, span()).prop_map(|(slot, span)| Op::Arm(slot, span)),
            1 => (0u32..40, span()).prop_map(|(slot, span)| Op::ArmOver(slot, span)),
            2 => (0u32..44).prop_map(Op::Cancel),
            2 => span().prop_map(Op::Expire),
            2 => Just(Op::ExpireAtNext),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(
            start in span(),
            ops in prop::collection::vec(op(), 0..200),
        ) {
            let mut wheel = Wheel::new(start);
            let mut naive = Naive { now: start, ..Naive::default() };
            let arm = |wheel: &mut Wheel, naive: &mut Naive, slot, at| {
                wheel.arm(slot, at);
                naive.arm(slot, at);
            };
            for op in ops {
                let now = naive.now;
                match op {
                    Op::Arm(slot, span) => arm(&mut wheel, &mut naive, slot, now + span),
                    Op::ArmOver(slot, span) => arm(&mut wheel, &mut naive, slot, now.saturating_sub(span)),
                    Op::Cancel(slot) => {
                        wheel.cancel(slot);
                        naive.deadlines.remove(&slot);
                    }
                    Op::Expire(span) => expire_both(&mut wheel, &mut naive, now + span),
                    Op::ExpireAtNext => {
                        let next = wheel.next().unwrap_or(now);
                        expire_both(&mut wheel, &mut naive, next);
                    }
                }
                check_lists(&wheel);
                check_next(&wheel, &naive);
                for slot in 0..44 {
                    prop_assert_eq!(deadline(&wheel, slot), naive.deadlines.get(&slot).copied());
                    prop_assert_eq!(wheel.is_armed(slot), naive.deadlines.contains_key(&slot));
                }
            }
        }

        #[test]
        fn sleeping_until_next_fires_each_at_its_millisecond(
            start in span(),
            spans in prop::collection::vec(span(), 1..50),
        ) {
            let mut wheel = Wheel::new(start);
            let deadlines: Vec<_> = spans.iter().map(|&span| start + span.min(FARTHEST)).collect();
            for (slot, &at) in (0..).zip(&deadlines) {
                wheel.arm(slot, at);
            }
            let (mut fired, mut seen, mut turns) = (Vec::new(), 0, 0);
            while let Some(next) = wheel.next() {
                wheel.expire(next, &mut fired);
                for slot in fired.drain(..) {
                    prop_assert_eq!(deadlines[slot as usize], next);
                    seen += 1;
                }
                turns += 1;
            }
            prop_assert_eq!(seen, deadlines.len());
            // Each wake-up moves at least one deadline down; the farthest is 4 revolutions ahead.
            prop_assert!(turns <= deadlines.len() * LEVELS + 4);
        }
    }
}
