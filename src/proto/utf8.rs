//! UTF-8 validation of text that arrives in arbitrary pieces.
//!
//! RFC 6455, section 8.1: an endpoint that finds a text message "is not, in fact, a valid UTF-8
//! stream" must fail the connection. The validator fails with the first piece after which no
//! continuation could make the text valid: a surrogate (`ED A0`), an overlong form (`C0`, `E0 80`,
//! `F0 80`) or a value above U+10FFFF (`F4 90`, `F5`) is refused at the byte that decides it, not
//! at the end of the character or of the message.
//!
//! Pieces may be cut anywhere, inside frames and across them; the validator does not know which.
//! Absent: the text itself. Only an unfinished last character is kept, at most three bytes.

use std::str;

/// The text can no longer become valid UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidUtf8;

/// The state of one text message; `default()` is its beginning.
///
/// [`push`](Self::push) each piece in order. An unfinished last character is found when the whole becomes
/// a text. After an error the validator has no meaning; start the next message with a new one.
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct Utf8Validator {
    /// `pending[..len]` is the proper prefix of at least one valid character.
    pending: [u8; 3],
    /// `0 <= len <= 3`; zero between characters.
    len: u8,
}

impl Utf8Validator {
    /// Takes the next piece, and fails if everything pushed so far, taken as one text, has become
    /// impossible to complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.complete_pending(bytes)?;
        let Err(error) = str::from_utf8(rest) else {
            return Ok(());
        };
        if error.error_len().is_some() {
            return Err(InvalidUtf8);
        }
        // `rest` is not empty here, so the character pending before it is complete.
        self.keep(&rest[error.valid_up_to()..]);
        Ok(())
    }

    /// Whether the text so far ends between two characters.
    fn is_complete(&self) -> bool {
        self.len == 0
    }

    /// Moves bytes to the pending character until it is whole; returns the bytes after it.
    /// If it is still unfinished, nothing is left of `bytes`.
    fn complete_pending<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        while !self.is_complete() {
            let Some((&byte, rest)) = bytes.split_first() else {
                break;
            };
            bytes = rest;
            self.extend_pending(byte)?;
        }
        Ok(bytes)
    }

    fn extend_pending(&mut self, byte: u8) -> Result<(), InvalidUtf8> {
        let len = usize::from(self.len);
        let mut character = [0; 4];
        character[..len].copy_from_slice(&self.pending[..len]);
        character[len] = byte;
        match str::from_utf8(&character[..=len]) {
            Ok(_) => self.len = 0,
            Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
            Err(_) => self.keep(&character[..=len]),
        }
        Ok(())
    }

    /// `prefix` is an unfinished character, so shorter than the longest character of four bytes.
    fn keep(&mut self, prefix: &[u8]) {
        self.pending[..prefix.len()].copy_from_slice(prefix);
        self.len = prefix.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether some continuation of `prefix`, possibly none, is valid.
    fn possible(prefix: &[u8]) -> bool {
        str::from_utf8(prefix).map_or_else(|error| error.error_len().is_none(), |_| true)
    }

    /// Length of the shortest prefix that cannot be completed.
    fn failing_prefix(text: &[u8]) -> Option<usize> {
        (1..=text.len()).find(|&end| !possible(&text[..end]))
    }

    /// Pushes the pieces between `cuts` (sorted) and compares each step with the oracle.
    fn check(text: &[u8], cuts: &[usize]) {
        let fails_at = failing_prefix(text).unwrap_or(usize::MAX);
        let mut validator = Utf8Validator::default();
        let mut start = 0;
        for &end in cuts.iter().chain([&text.len()]) {
            let pushed = validator.push(&text[start..end]);
            assert_eq!(pushed.is_err(), end >= fails_at, "{text:x?} {cuts:?}");
            if pushed.is_err() {
                return;
            }
            let complete = str::from_utf8(&text[..end]).is_ok();
            assert_eq!(validator.is_complete(), complete);
            start = end;
        }
    }

    fn check_byte_by_byte_and_at_every_split(text: &[u8]) {
        check(text, &(0..text.len()).collect::<Vec<_>>());
        for cut in 0..=text.len() {
            check(text, &[cut]);
        }
    }

    #[test]
    fn the_state_is_four_bytes() {
        assert_eq!(size_of::<Utf8Validator>(), 4);
    }

    #[test]
    fn impossible_text_is_refused_at_the_deciding_byte() {
        let cases: [(&[u8], usize); 12] = [
            (b"\x80", 1),
            (b"\xc0\x80", 1),
            (b"\xc1\xbf", 1),
            (b"\xe0\x80\x80", 2),
            (b"\xe0\x9f\xbf", 2),
            (b"\xed\xa0\x80", 2),
            (b"\xf0\x80\x80\x80", 2),
            (b"\xf0\x8f\xbf\xbf", 2),
            (b"\xf4\x90\x80\x80", 2),
            (b"\xf5\x80\x80\x80", 1),
            (b"\xf0\x9f\x98a", 4),
            // Autobahn 6.4: "κόσμε", U+110000, "edited".
            (
                b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
                13,
            ),
        ];
        for (text, fails_at) in cases {
            assert_eq!(failing_prefix(text), Some(fails_at), "{text:x?}");
            check_byte_by_byte_and_at_every_split(text);
        }
    }

    #[test]
    fn every_start_of_a_character_agrees_with_std() {
        for first in 0..=0xff {
            for second in 0..=0xff {
                check(&[first, second], &[1]);
                check(&[first, second, 0x80, 0xbf], &[1, 2, 3]);
            }
        }
    }

    #[test]
    fn empty_pieces_change_nothing() {
        check("aé€😀".as_bytes(), &[0, 0, 1, 2, 2, 5, 5, 7, 7, 9, 9]);
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(
            text in any::<String>(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut text = text.into_bytes();
            if let (Some((at, byte)), false) = (damage, text.is_empty()) {
                let at = at.index(text.len());
                text[at] = byte;
            }
            check_byte_by_byte_and_at_every_split(&text);
            cuts.sort_by_key(|cut| cut.index(text.len() + 1));
            let cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            check(&text, &cuts);
        }

        #[test]
        fn arbitrary_bytes_agree_with_std(
            text in prop::collection::vec(prop::sample::select(
                b"a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xdf\xe0\xe1\xed\xee\xef\xf0\xf1\xf4\xf5\xff".to_vec()
            ), 0..12),
        ) {
            check_byte_by_byte_and_at_every_split(&text);
        }
    }
}
