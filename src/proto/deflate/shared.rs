//! What compresses and inflates messages that stand alone: a few of each thread, lent to whatever
//! connection needs one, so that a connection without context holds no compression state at all.
//!
//! When a thread ends, its own are gone before the last of its destructors has run; whoever is that
//! late gets a fresh one.

use std::cell::RefCell;

use super::codec::{Deflater, InflateError, Inflater};

/// Settings differ by server, and by what a peer asked for: three kinds for each server at most. A thread
/// rarely meets more than this, and each takes a quarter to a third of a megabyte.
const MOST: usize = 4;

struct Kept {
    level: u32,
    bits: u8,
    deflater: Deflater,
}

thread_local! {
    /// At most [`MOST`]; the one used last is the last.
    static DEFLATERS: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
    /// One window fits all: see [`Inflater`].
    static INFLATER: RefCell<Option<Inflater>> = const { RefCell::new(None) };
}

/// Compresses a message that refers to no other.
pub(crate) fn compress_alone(payload: &[u8], level: u32, bits: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let kept = DEFLATERS.try_with(|list| {
        let mut list = list.borrow_mut();
        let deflater = choose(&mut list, level, bits);
        deflater.compress(payload, false, &mut out);
    });
    if kept.is_err() {
        Deflater::new(level, bits).compress(payload, false, &mut out);
    }
    out
}

/// Makes the one of this kind the last of the list, in place of the one unused for longest if it has
/// to be made.
fn choose(list: &mut Vec<Kept>, level: u32, bits: u8) -> &mut Deflater {
    let same = |kept: &Kept| kept.level == level && kept.bits == bits;
    match list.iter().position(same) {
        Some(at) => list[at..].rotate_left(1),
        None => {
            if list.len() == MOST {
                list.remove(0);
            }
            list.push(Kept {
                level,
                bits,
                deflater: Deflater::new(level, bits),
            });
        }
    }
    let last = list.last_mut().expect("it was found or pushed");
    &mut last.deflater
}

/// Inflates a message that refers to no other, to `limit` bytes at most.
pub(crate) fn inflate_alone(payload: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    INFLATER
        .try_with(|own| {
            let mut own = own.borrow_mut();
            let inflater = own.get_or_insert_with(Inflater::new);
            inflater.inflate(payload, limit, false)
        })
        .unwrap_or_else(|_| Inflater::new().inflate(payload, limit, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_the_four_used_last() {
        let kinds = |list: &Vec<Kept>| list.iter().map(|k| (k.level, k.bits)).collect::<Vec<_>>();
        let mut list = Vec::new();
        for bits in 9..=12 {
            choose(&mut list, 1, bits);
        }
        choose(&mut list, 1, 9);
        assert_eq!(kinds(&list), [(1, 10), (1, 11), (1, 12), (1, 9)]);
        choose(&mut list, 2, 9);
        assert_eq!(kinds(&list), [(1, 11), (1, 12), (1, 9), (2, 9)]);
        choose(&mut list, 1, 12);
        assert_eq!(kinds(&list), [(1, 11), (1, 9), (2, 9), (1, 12)]);
    }

    #[test]
    fn messages_alone_do_not_depend_on_what_went_before() {
        let text = b"to be or not to be, that is the question".repeat(50);
        let first = compress_alone(&text, 6, 15);
        assert_eq!(compress_alone(&text, 6, 15), first);
        assert_eq!(compress_alone(b"", 6, 15), [0]);
        assert_eq!(compress_alone(&text, 6, 15), first);
        assert_eq!(inflate_alone(&first, text.len()), Ok(text.clone()));
        // After each kind of failure the inflater is as new.
        assert_eq!(inflate_alone(&first, 99), Err(InflateError::TooBig));
        assert_eq!(inflate_alone(&first, text.len()), Ok(text.clone()));
        let cut = &first[..first.len() / 2];
        assert_eq!(inflate_alone(cut, 1 << 20), Err(InflateError::Corrupt));
        assert_eq!(inflate_alone(&first, text.len()), Ok(text));
    }

    /// User code may send from the destructor of a thread-local of its own.
    #[test]
    fn a_thread_that_ends_can_still_compress() {
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                let sent = compress_alone(b"bye", 1, 15);
                assert_eq!(inflate_alone(&sent, 3).as_deref(), Ok(&b"bye"[..]));
            }
        }
        thread_local!(static LATE: Late = const { Late });
        let thread = std::thread::spawn(|| {
            LATE.with(|_| ());
            compress_alone(b"hello", 1, 15)
        });
        assert!(thread.join().is_ok());
    }
}
