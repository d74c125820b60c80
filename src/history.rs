//! Topics that keep their last messages, and clients that come back for those they missed: the protocol
//! on the WebSocket, and the client's side of it.
//!
//! | from the server | |
//! |---|---|
//! | `msg OFFSET TOPIC`, a line feed, the payload | a message, text or binary as it was published |
//! | `gap OFFSET TOPIC`, a line feed | messages are missing that are kept no longer; what comes next is after OFFSET |
//! | `live OFFSET TOPIC`, a line feed | all up to OFFSET was sent; what follows is as it happens |
//! | `refused SINCE TOPIC`, a line feed | the answer to `follow SINCE TOPIC`: nothing will come |
//!
//! | from the client | |
//! |---|---|
//! | `follow OFFSET TOPIC` | what came after OFFSET, then live |
//! | `follow start TOPIC`, `follow now TOPIC` | all that is kept, then live; only live |
//!
//! OFFSET is opaque to clients: `EPOCH-NUMBER` or `EPOCH-NUMBER-TAG`, decimal numbers. TOPIC is the rest
//! of the line, so it may contain spaces, but no line feed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::message::{Bytes, Message, Utf8Bytes};

/// How much a topic keeps, by number, age and size; see [`Server::history`](crate::Server::history). The oldest
/// messages go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// How many messages are kept: the last ones. Each node that has subscribers holds them in memory.
    /// `usize::MAX`: any number.
    pub messages: usize,
    /// Messages older than this are not kept. Default: `None`, any age.
    pub age: Option<Duration>,
    /// The most bytes of one topic (in Redis perhaps a few hundredths less). Each message counts with the line
    /// before it and 80 bytes for keeping it. Default: 64 MiB; `usize::MAX`: any size.
    ///
    /// A message that is longer than this is not kept at all, and none of those before it are either. So where peers
    /// publish, [`max_message`](crate::Server::max_message) should be less.
    pub bytes: usize,
}

/// What keeping a message costs beside its bytes, about; in Redis too.
pub(crate) const BESIDE: usize = 80;

impl History {
    /// The last `messages` messages, however old, and no more than 64 MiB of a topic.
    pub fn last(messages: usize) -> Self {
        Self {
            messages,
            age: None,
            bytes: 64 << 20,
        }
    }

    /// The messages of the last `age`, however many, and no more than 64 MiB of a topic.
    pub fn for_the_last(age: Duration) -> Self {
        Self::last(usize::MAX).no_older_than(age)
    }

    /// Keeps at most this number of [`bytes`](Self::bytes) of a topic, instead of 64 MiB. `usize::MAX`: any size.
    #[must_use]
    pub fn no_larger_than(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Keeps no message that is older than this.
    #[must_use]
    pub fn no_older_than(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

/// The position of a message in a topic with history. Offsets of one epoch are in the order of the messages.
/// Another epoch begins when the history is lost, for instance when a server that keeps it in memory is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offset {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    /// Tells the message apart from another that got its number because it was lost. 0: not known.
    pub(crate) tag: u32,
}

impl Offset {
    /// The position with this number in this epoch.
    pub fn new(epoch: u64, number: u64) -> Self {
        Self {
            epoch,
            number,
            tag: 0,
        }
    }

    /// The number of the history that the message is in.
    pub fn epoch(self) -> u64 {
        self.epoch
    }

    /// The place of the message in that history, from 1 on.
    pub fn number(self) -> u64 {
        self.number
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)?;
        if self.tag != 0 {
            write!(f, "-{}", self.tag)?;
        }
        Ok(())
    }
}

impl FromStr for Offset {
    type Err = NoOffset;

    fn from_str(text: &str) -> Result<Self, NoOffset> {
        let (epoch, rest) = text.split_once('-').ok_or(NoOffset)?;
        let (number, tag) = rest.split_once('-').unwrap_or((rest, "0"));
        Ok(Self {
            epoch: epoch.parse().map_err(|_| NoOffset)?,
            number: number.parse().map_err(|_| NoOffset)?,
            tag: tag.parse().map_err(|_| NoOffset)?,
        })
    }
}

/// This text is not an [`Offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoOffset;

impl fmt::Display for NoOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an offset")
    }
}

impl std::error::Error for NoOffset {}

/// Where a subscriber wants a topic to begin; see [`Peer::subscribe_from`](crate::Peer::subscribe_from).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With the messages that are published from now on.
    Now,
    /// With all messages that are kept.
    Start,
    /// With the first message after this one.
    After(Offset),
}

impl Since {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "now" => Self::Now,
            "start" => Self::Start,
            offset => Self::After(offset.parse().ok()?),
        })
    }
}

impl From<Offset> for Since {
    fn from(offset: Offset) -> Self {
        Self::After(offset)
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Start => f.write_str("start"),
            Self::After(offset) => offset.fmt(f),
        }
    }
}

/// A client's request for a topic. The [`Handler`](crate::Handler) decides whether the client may have it:
///
/// ```no_run
/// use framemill::{Follow, History, Message, Peer, Server};
///
/// const TOPICS: [&str; 2] = ["news/world", "news/sport"];
///
/// fn main() -> framemill::Result<()> {
///     Server::bind("127.0.0.1:9001")?
///         .history("news/*", History::last(1000))
///         .run(|peer: &Peer, message: Message| match Follow::parse(&message) {
///             Some(follow) if TOPICS.contains(&&*follow.topic) => {
///                 peer.subscribe_from(&follow.topic, follow.since);
///             }
///             Some(follow) => drop(peer.send(follow.refusal())),
///             None => {}
///         })
/// }
/// ```
///
/// If a handler accepts any name, each client can make the server hold as many topics as
/// [`Server::max_subscriptions`](crate::Server::max_subscriptions) allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The topic.
    pub topic: String,
    /// Where the topic is to begin.
    pub since: Since,
}

impl Follow {
    /// Reads `follow SINCE TOPIC`. `None`: the message is something else.
    pub fn parse(message: &Message) -> Option<Self> {
        let Message::Text(text) = message else {
            return None;
        };
        let (since, topic) = text.strip_prefix("follow ")?.split_once(' ')?;
        let since = Since::parse(since)?;
        let topic = topic.to_owned();
        (!topic.contains('\n')).then_some(Self { topic, since })
    }

    /// The message that makes this request.
    pub fn message(&self) -> Message {
        Message::text(format!("follow {} {}", self.since, self.topic))
    }

    /// The server's answer if the client may not have the topic. The client's [`Follower`] takes it for
    /// [`Followed::Refused`]. [`Peer::subscribe_from`](crate::Peer::subscribe_from) sends it by itself to a peer that
    /// already subscribes to as many topics as it may.
    pub fn refusal(&self) -> Message {
        refused(&self.topic, self.since)
    }
}

/// A message as subscribers get it.
pub(crate) fn framed(topic: &str, offset: Offset, message: &Message) -> Message {
    let head = format!("msg {offset} {topic}\n");
    match message {
        Message::Text(text) => Message::text(head + text.as_str()),
        other => {
            let payload = other.clone().into_data();
            Message::binary([head.as_bytes(), &payload].concat())
        }
    }
}

/// What is said of a topic between its messages.
pub(crate) fn said(what: &str, topic: &str, offset: Offset) -> Message {
    Message::text(format!("{what} {offset} {topic}\n"))
}

/// What somebody asked for does not come.
pub(crate) fn refused(topic: &str, since: Since) -> Message {
    Message::text(format!("refused {since} {topic}\n"))
}

/// The client's side: the topics that it follows, and how far it has got in each. Independent of connections, so
/// that it outlives them.
///
/// ```no_run
/// use framemill::{Client, ClientEvent, Followed, Follower, Reconnect, Since};
///
/// let mut follower = Follower::new();
/// follower.follow("news/today", Since::Now);
/// let client = Client::new("ws://127.0.0.1:9001/")?.reconnect(Reconnect::new());
/// let (handle, events) = client.connect()?;
/// // Now, and whenever the connection has been made again.
/// let ask = |follower: &Follower| {
///     for request in follower.requests() {
///         handle.send(request).ok();
///     }
/// };
/// ask(&follower);
/// for event in events.iter() {
///     match event {
///         ClientEvent::Open(..) => ask(&follower),
///         ClientEvent::Message(message) => match follower.take(message) {
///             Followed::Message { topic, message, .. } => println!("{topic}: {message}"),
///             Followed::Gap { topic, .. } => println!("{topic}: something is missing"),
///             _ => {}
///         },
///         _ => {}
///     }
/// }
/// # framemill::Result::Ok(())
/// ```
///
/// # Security
/// Every message whose first line is `msg OFFSET TOPIC` for a followed topic (or `gap`, `live` or `refused` in place of
/// `msg`) is taken for the server's. If the connection also carries other users' text as they sent it, for instance
/// from a topic without history, any of them could forge such messages. So relay users' text only inside something of
/// your own, such as JSON or a prefix, or publish it to a topic with history: there the first line is always the
/// server's.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    topics: BTreeMap<String, Since>,
}

/// What a message from the server means, see [`Follower::take`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// A message that was published to a topic.
    Message {
        /// The topic.
        topic: String,
        /// The position of the message in the topic.
        offset: Offset,
        /// The message as it was published.
        message: Message,
    },
    /// All missed messages have arrived.
    Live {
        /// The topic.
        topic: String,
        /// The position of the latest message.
        offset: Offset,
    },
    /// The history does not reach back to where this client was: messages are missing. Those that are kept follow.
    Gap {
        /// The topic.
        topic: String,
        /// The messages that follow are after this.
        offset: Offset,
    },
    /// The server refuses the topic, because the client follows too many or may not have this one. The topic is
    /// among the next connection's [requests](Follower::requests), unless it is [forgotten](Follower::forget).
    Refused {
        /// The topic.
        topic: String,
    },
    /// A message that is not about a followed topic.
    Other(Message),
}

impl Follower {
    /// A follower of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Follows a topic. Send the returned message, if there is a connection.
    pub fn follow(&mut self, topic: &str, since: Since) -> Message {
        self.topics.insert(topic.to_owned(), since);
        let topic = topic.to_owned();
        Follow { topic, since }.message()
    }

    /// Forgets a topic. The server goes on sending it until you tell it otherwise, in a message of your own.
    pub fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    /// The offset that this client has reached in a topic; `None` if it does not follow the topic, or has heard
    /// nothing of it yet.
    pub fn offset(&self, topic: &str) -> Option<Offset> {
        match self.topics.get(topic)? {
            Since::After(offset) => Some(*offset),
            _ => None,
        }
    }

    /// The messages to send on a new connection: one request for each topic.
    pub fn requests(&self) -> Vec<Message> {
        let ask = |(topic, &since): (&String, &Since)| {
            let topic = topic.clone();
            Follow { topic, since }.message()
        };
        self.topics.iter().map(ask).collect()
    }

    /// Tells what a message from the server means, and remembers how far this client has got.
    pub fn take(&mut self, message: Message) -> Followed {
        let Some((line, topic, len)) = self.line(&message) else {
            return Followed::Other(message);
        };
        let topic = topic.to_owned();
        if let Line::Message(offset) | Line::Live(offset) | Line::Gap(offset) = line {
            self.topics.insert(topic.clone(), Since::After(offset));
        }
        match line {
            Line::Refused => Followed::Refused { topic },
            Line::Live(offset) => Followed::Live { topic, offset },
            Line::Gap(offset) => Followed::Gap { topic, offset },
            Line::Message(offset) => {
                let rest = |payload: Bytes| payload.slice(len..);
                let message = match message {
                    // What is left of UTF-8 behind a line feed is UTF-8.
                    Message::Text(text) => Utf8Bytes::try_from(rest(text.into()))
                        .map_or_else(|_| Message::text(""), Message::Text),
                    other => Message::Binary(rest(other.into_data())),
                };
                Followed::Message {
                    topic,
                    offset,
                    message,
                }
            }
        }
    }

    /// The first line, the topic it is about, and its length, if that topic is followed.
    fn line<'a>(&self, message: &'a Message) -> Option<(Line, &'a str, usize)> {
        let bytes: &[u8] = match message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
            _ => return None,
        };
        let end = bytes.iter().position(|&byte| byte == b'\n')?;
        let line = std::str::from_utf8(&bytes[..end]).ok()?;
        let (kind, rest) = line.split_once(' ')?;
        let (place, topic) = rest.split_once(' ')?;
        if !self.topics.contains_key(topic) {
            return None;
        }
        let line = match kind {
            "msg" => Line::Message(place.parse().ok()?),
            "live" => Line::Live(place.parse().ok()?),
            "gap" => Line::Gap(place.parse().ok()?),
            "refused" => Since::parse(place).map(|_| Line::Refused)?,
            _ => return None,
        };
        Some((line, topic, end + 1))
    }
}

enum Line {
    Message(Offset),
    Live(Offset),
    Gap(Offset),
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_requests_are_read_as_written() {
        let offset = Offset {
            epoch: u64::MAX,
            number: 7,
            tag: 0,
        };
        let tagged = Offset { tag: 9, ..offset };
        for offset in [offset, tagged] {
            assert_eq!(offset.to_string().parse(), Ok(offset));
        }
        for wrong in ["", "1", "-", "1-", "-1", "1-2-", "1-2-3-4", "a-1", "1--1"] {
            assert_eq!(wrong.parse::<Offset>(), Err(NoOffset), "{wrong:?}");
        }
        for since in [Since::Now, Since::Start, Since::After(offset)] {
            let topic = "with blanks ".to_owned();
            let follow = Follow { topic, since };
            assert_eq!(Follow::parse(&follow.message()), Some(follow));
        }
        for wrong in ["follow", "follow now", "follow 1 a", "follow now a\nb", "x"] {
            assert_eq!(Follow::parse(&Message::text(wrong)), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_follower_knows_how_far_it_is() {
        let mut follower = Follower::new();
        follower.follow("a b", Since::Start);
        let offset = Offset {
            epoch: 5,
            number: 3,
            tag: 0,
        };
        for message in [Message::text("x\ny"), Message::binary(vec![0, 10, 255])] {
            let framed = framed("a b", offset, &message);
            let topic = "a b".to_owned();
            let taken = follower.take(framed);
            let expected = Followed::Message {
                topic,
                offset,
                message,
            };
            assert_eq!(taken, expected);
        }
        assert_eq!(follower.requests(), [Message::text("follow 5-3 a b")]);
        let offset = Offset {
            epoch: 5,
            number: 9,
            tag: 7,
        };
        let topic = || "a b".to_owned();
        let gap = follower.take(said("gap", "a b", offset));
        assert_eq!(
            gap,
            Followed::Gap {
                topic: topic(),
                offset
            }
        );
        assert_eq!(follower.offset("a b"), Some(offset));
        let live = follower.take(said("live", "a b", offset));
        assert_eq!(
            live,
            Followed::Live {
                topic: topic(),
                offset
            }
        );
        for other in ["", "msg 1-1 other\nx", "msg 1 a b\n", "msg 1-1 a b", "\n"] {
            let other = Message::text(other);
            assert_eq!(follower.take(other.clone()), Followed::Other(other));
        }
    }
}
