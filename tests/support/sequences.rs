//! Messages that say who sent them, and the how-manieth of this sender they are: "sender:number".

use std::collections::HashMap;

use super::Raw;

/// For each sender, the number that comes next.
#[derive(Default)]
pub struct Sequences(HashMap<u32, u32>);

impl Sequences {
    /// Looks at the payload of a message.
    pub fn next(&mut self, payload: &[u8]) {
        let text = std::str::from_utf8(payload).unwrap();
        let (sender, n) = text.split_once(':').expect("a number");
        let expected = self.0.entry(sender.parse().unwrap()).or_default();
        assert_eq!(n.parse(), Ok(*expected), "the next of sender {sender}");
        *expected += 1;
    }

    /// Looks at the next `count` messages of `raw`.
    pub fn read(&mut self, raw: &mut Raw, count: u32) {
        for _ in 0..count {
            let (first, payload) = raw.frame().expect("more messages");
            assert_eq!(first, 0x81);
            self.next(&payload);
        }
    }
}
