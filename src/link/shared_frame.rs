//! One message for many connections, encoded once.

#[cfg(feature = "deflate")]
use std::collections::BTreeSet;

use super::Link;
use super::outbox::Segment;
use super::shared::Shared;
use crate::config::Compress;
use crate::message::Message;

/// A frame for many: plain, and once more for each class of connections that agreed to compress and
/// have the same window.
#[derive(Debug)]
pub(crate) struct SharedFrame {
    plain: Segment,
    #[cfg(feature = "deflate")]
    compressed: Vec<(u8, Segment)>,
}

impl SharedFrame {
    /// For the connections of this server. `None` if it isn't a data message.
    pub(crate) fn encode(message: &Message, shared: &Shared, compress: Compress) -> Option<Self> {
        if !(message.is_text() || message.is_binary()) {
            return None;
        }
        let plain = Segment::encode(message)?;
        #[cfg(feature = "deflate")]
        let compressed = match &shared.config.deflate {
            Some(settings) if compress.wants(message.len(), &shared.config) => {
                // One that would not become shorter is sent to this class as it is.
                let compress = |class| {
                    let frame = super::deflate::alone(message, settings, class);
                    let shorter = frame.len() < message.len();
                    Some((class, Segment::encode(&frame).filter(|_| shorter)?))
                };
                shared.classes().filter_map(compress).collect()
            }
            _ => Vec::new(),
        };
        #[cfg(not(feature = "deflate"))]
        let _ = (shared, compress);
        Some(Self {
            plain,
            #[cfg(feature = "deflate")]
            compressed,
        })
    }

    /// Bytes of the plain frame.
    pub(crate) fn len(&self) -> usize {
        self.plain.len()
    }

    /// All of these, one behind the other.
    pub(crate) fn join(frames: &[&Self]) -> Self {
        #[cfg(feature = "deflate")]
        let compressed = {
            let classes = frames.iter().flat_map(|frame| &frame.compressed);
            let classes: BTreeSet<u8> = classes.map(|(class, _)| *class).collect();
            let join = |class| {
                let of_class = |frame: &&Self| frame.for_class(class).clone();
                (class, Segment::join(frames.iter().map(of_class)))
            };
            classes.into_iter().map(join).collect()
        };
        Self {
            plain: Segment::join(frames.iter().map(|frame| frame.plain.clone())),
            #[cfg(feature = "deflate")]
            compressed,
        }
    }

    /// What this connection gets. One whose class is new since the message was encoded gets it plain.
    pub(super) fn for_link(&self, link: &Link) -> &Segment {
        #[cfg(feature = "deflate")]
        if let Some(class) = link.compression().map(super::Compression::class) {
            return self.for_class(class);
        }
        let _ = link;
        &self.plain
    }

    #[cfg(feature = "deflate")]
    fn for_class(&self, class: u8) -> &Segment {
        let mut compressed = self.compressed.iter();
        let found = compressed.find(|(other, _)| *other == class);
        found.map_or(&self.plain, |(_, frame)| frame)
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;
    use crate::config::{Config, Deflate};

    fn bytes(segment: &Segment) -> Vec<u8> {
        let (head, tail) = segment.parts();
        [head, tail].concat()
    }

    /// What each class gets of several that are joined is what it gets of each, in order; also where
    /// some are compressed and some are not.
    #[test]
    fn joined_is_one_behind_the_other() {
        let deflate = Some(Deflate::new().threshold(100));
        let shared = Shared::new(Config {
            deflate,
            ..Config::default()
        });
        shared.enter_class(10);
        shared.enter_class(15);
        let texts = ["short".to_owned(), "long ".repeat(100), "x".repeat(3000)];
        let frames: Vec<_> = texts
            .iter()
            .filter_map(|text| {
                SharedFrame::encode(&Message::text(text.clone()), &shared, Compress::Auto)
            })
            .collect();
        let joined = SharedFrame::join(&frames.iter().collect::<Vec<_>>());
        let plain: Vec<u8> = frames.iter().flat_map(|f| bytes(&f.plain)).collect();
        assert_eq!(bytes(&joined.plain), plain);
        for class in [10, 15] {
            let each: Vec<u8> = frames
                .iter()
                .flat_map(|f| bytes(f.for_class(class)))
                .collect();
            assert_eq!(bytes(joined.for_class(class)), each);
            assert!(each.len() < plain.len());
        }
        assert_eq!(bytes(joined.for_class(9)), plain, "a class that came later");
    }
}
