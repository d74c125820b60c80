//! What may be said, by what name, and how often.

use std::time::{Duration, Instant};

/// Characters of a nickname.
pub const NAME: usize = 24;
/// Characters of a room's name.
pub const ROOM: usize = 32;
/// Characters of what is said at once.
pub const TEXT: usize = 1000;
/// Bytes of a message to the server: the longest text, escaped as JSON likes it.
pub const MESSAGE: usize = 16 << 10;
/// Guests in a room.
pub const GUESTS: usize = 200;
/// What a room remembers.
pub const HISTORY: usize = 50;

/// A name in one line: trimmed, spaces put together. `None`: there is nothing left, it is longer than
/// `max` characters, or something in it can't be seen and could make it look like another name.
pub fn line(text: &str, max: usize) -> Option<String> {
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    let fits = (1..=max).contains(&line.chars().count());
    (fits && !line.contains(unseen)).then_some(line)
}

/// What is said: trimmed, with its line breaks. `None`: there is nothing left, or it is too long.
pub fn text(text: &str) -> Option<String> {
    let text = text.trim().replace("\r\n", "\n");
    let text = text.replace(|c: char| c.is_control() && c != '\n', " ");
    (1..=TEXT).contains(&text.chars().count()).then_some(text)
}

/// Control characters, and those that are nowhere or turn the direction of writing.
fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{FEFF}')
        || ('\u{200B}'..='\u{200F}').contains(&c)
        || ('\u{2028}'..='\u{202E}').contains(&c)
        || ('\u{2060}'..='\u{206F}').contains(&c)
}

/// So many at once, and one more each time a while has passed.
#[derive(Clone, Debug)]
pub struct Allowance {
    burst: u32,
    each: Duration,
    left: u32,
    /// When the last one was given; in between, `left < burst`.
    since: Instant,
}

impl Allowance {
    pub fn new(burst: u32, each: Duration, now: Instant) -> Self {
        Self {
            burst,
            each,
            left: burst,
            since: now,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        while self.left < self.burst && now.duration_since(self.since) >= self.each {
            self.left += 1;
            self.since += self.each;
        }
        if self.left == self.burst {
            self.since = now;
        }
        let some = self.left > 0;
        self.left -= u32::from(some);
        some
    }
}
