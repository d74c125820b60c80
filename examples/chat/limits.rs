//! What may be said, by what name, and how often.

use std::time::{Duration, Instant};

/// Characters of a nickname.
pub const NAME: usize = 24;
/// Characters of a room's name.
pub const ROOM: usize = 32;
/// Marks on one character of a name: a vowel and a tone, say.
const MARKS: i32 = 2;
/// Characters of what is said at once.
pub const TEXT: usize = 1000;
/// Bytes of a message to the server: the longest text, escaped as JSON likes it.
pub const MESSAGE: usize = 16 << 10;
/// Guests in a room.
pub const GUESTS: usize = 200;
/// What a room remembers.
pub const HISTORY: usize = 50;

/// A name in one line: trimmed, spaces put together, without what only chooses a variant of the character
/// before it or joins two (emoji come with that). `None`: there is nothing left, it is longer than `max` characters,
/// something in it can't be seen or could make it look like another name, or marks are where no letter is, or too many.
pub fn line(text: &str, max: usize) -> Option<String> {
    let text = text.replace(varies_or_joins, "");
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    let fits = (1..=max).contains(&line.chars().count());
    (fits && !line.contains(unseen) && !line.contains(composes) && well_marked(&line))
        .then_some(line)
}

/// Each mark belongs to a character before it, which has no more than [`MARKS`]: more are drawn over other lines.
fn well_marked(line: &str) -> bool {
    let mut room = 0;
    line.chars().all(|c| {
        room = match c {
            ' ' => 0, // it takes none
            _ if is_mark(c) => room - 1,
            _ => MARKS,
        };
        room >= 0
    })
}

/// Whether it is drawn onto the character before it (or is none that is known). The standard library has no word for
/// this, but writes such a character as an escape, as alone it would be drawn onto a quote.
fn is_mark(c: char) -> bool {
    !c.is_ascii() && c.escape_debug().len() > 1
}

/// Accents and parts of letters that there are in one piece, as the page sends them: é, が, 한. In two
/// pieces they would look the same, and be another name.
fn composes(c: char) -> bool {
    matches!(
        c,
        '\u{300}'..='\u{36F}'
            | '\u{653}'..='\u{655}'
            | '\u{1100}'..='\u{11FF}'
            | '\u{3099}'..='\u{309A}'
    )
}

/// What is said: trimmed, with its line breaks. `None`: there is nothing left, or it is too long.
pub fn text(text: &str) -> Option<String> {
    let text = text.trim().replace("\r\n", "\n");
    let text = text.replace(|c: char| c.is_control() && c != '\n', " ");
    (1..=TEXT).contains(&text.chars().count()).then_some(text)
}

fn varies_or_joins(c: char) -> bool {
    matches!(
        c,
        '\u{180B}'..='\u{180D}'
            | '\u{180F}'
            | '\u{200C}'..='\u{200D}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{E0020}'..='\u{E007F}'
            | '\u{E0100}'..='\u{E01EF}'
    )
}

/// Control characters, those that are nowhere or turn the direction of writing, and letters that are blank.
fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{AD}'
                | '\u{34F}'
                | '\u{61C}'
                | '\u{115F}'..='\u{1160}'
                | '\u{17B4}'..='\u{17B5}'
                | '\u{180E}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{FEFF}'
                | '\u{FFA0}'
                | '\u{FFF0}'..='\u{FFFB}'
                | '\u{1BCA0}'..='\u{1BCA3}'
                | '\u{1D173}'..='\u{1D17A}'
                | '\u{E0000}'..='\u{E0FFF}'
        )
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
