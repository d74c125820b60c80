//! Several backplanes, each for its part of the topics.

use std::sync::Weak;
use std::time::Instant;

use super::{Backplane, BackplaneState, Node, Post};
use crate::error::{Error, Result};
use crate::history::History;
use crate::id::PeerId;

/// Spreads topics over several backplanes, when one Redis is not enough: each topic is on one of them, chosen by a
/// hash of its name. Every node must name the same backplanes in the same order.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # fn main() -> framemill::Result<()> {
/// use framemill::{Peer, Message, Redis, Server, Shards};
///
/// let shards = Shards::new(vec![Redis::new("redis://10.0.0.5/")?, Redis::new("redis://10.0.0.6/")?])?;
/// Server::bind("0.0.0.0:9001")?.backplane(shards).run(|_: &Peer, _: Message| ())
/// # }
/// # #[cfg(not(feature = "redis"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Shards<B>(Vec<B>);

impl<B: Backplane> Shards<B> {
    /// Spreads topics over these backplanes.
    ///
    /// # Errors
    /// [`Error::Config`] if the list is empty.
    pub fn new(shards: Vec<B>) -> Result<Self> {
        if shards.is_empty() {
            return Err(Error::Config("at least one shard is needed".into()));
        }
        Ok(Self(shards))
    }

    fn of(&self, topic: &str) -> &B {
        &self.0[place(topic, self.0.len())]
    }
}

/// Which of `shards` a topic is on.
fn place(topic: &str, shards: usize) -> usize {
    // FNV-1a: the same on each machine and in each version.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let hash = topic.bytes().fold(0xCBF2_9CE4_8422_2325, mix);
    // Names that differ in their last letter only would be together.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    (mixed >> 32) as usize % shards
}

impl<B: Backplane> Backplane for Shards<B> {
    fn start(&self, node: Weak<dyn Node>) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|shard| shard.start(node.clone()))
    }

    fn subscribe(&self, topic: &str) {
        self.of(topic).subscribe(topic);
    }

    fn unsubscribe(&self, topic: &str) {
        self.of(topic).unsubscribe(topic);
    }

    fn publish(&self, post: Post) {
        self.of(&post.topic).publish(post);
    }

    fn keeps_history(&self) -> bool {
        self.0.iter().all(B::keeps_history)
    }

    fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        self.of(&post.topic).publish_kept(post, keep, except)
    }

    fn mark(&self, topic: &str) -> Option<(u64, u64)> {
        self.of(topic).mark(topic)
    }

    fn refresh(&self, topic: &str) {
        self.of(topic).refresh(topic);
    }

    fn announce(&self, topic: &str, name: &str, present: bool) {
        self.of(topic).announce(topic, name, present);
    }

    fn who(&self, topic: &str) -> Option<Vec<String>> {
        self.of(topic).who(topic)
    }

    /// The sum of all; connected if all are.
    fn state(&self) -> BackplaneState {
        let first = BackplaneState {
            connected: true,
            ..BackplaneState::default()
        };
        self.0
            .iter()
            .map(B::state)
            .fold(first, |a, b| BackplaneState {
                connected: a.connected && b.connected,
                topics: a.topics + b.topics,
                subscribed: a.subscribed + b.subscribed,
                queued: a.queued + b.queued,
                queued_bytes: a.queued_bytes + b.queued_bytes,
                published: a.published + b.published,
                received: a.received + b.received,
                fetched: a.fetched + b.fetched,
                repeated: a.repeated + b.repeated,
                lost: a.lost + b.lost,
                failures: a.failures + b.failures,
            })
    }

    fn stop(&self, deadline: Instant) {
        self.0.iter().for_each(|shard| shard.stop(deadline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Local;

    #[test]
    fn topics_are_spread_evenly() {
        assert!(Shards::<Local>::new(Vec::new()).is_err());
        let mut counts = [0; 4];
        for n in 0..4000 {
            counts[place(&format!("room/{n}"), 4)] += 1;
        }
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
        let digits = (0..8).map(|n| place(&format!("kept{n}"), 2));
        assert!((1..8).contains(&digits.sum::<usize>()));
        assert_eq!(place("news", 1), 0);
    }
}
