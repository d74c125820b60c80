//! Topics with history, in Redis Streams.
//!
//! | key | what |
//! |---|---|
//! | `PREFIX{TOPIC}:s` | the stream: entries `EPOCH-NUMBER` with `m`, an envelope, `t`, when it came, and `b` |
//! | `PREFIX{TOPIC}:m` | a hash: `e`, the epoch, `n`, the number of the latest, `b`, and `x`, when it was last seen to that all this expires |
//! | `PREFIX{TOPIC}:NODE` | the latest that was added of this node, so that nothing is added twice |
//!
//! `b` is what has been added so far, in bytes: so the difference of two tells what is kept between them.
//!
//! All of one topic are in one slot of a Redis Cluster. They expire after [`FORGOTTEN`] without a new
//! message, or after the age of the history if that is longer.
//!
//! Adding and publishing is one script, so it happens wholly or not at all, and what is published
//! comes in the order of its numbers. Times are those of Redis: a node whose clock is ahead would take
//! away what others have just published.

use std::time::Duration;

use redis::{Cmd, RedisResult, Value, cmd, from_redis_value, pipe};

use super::Inner;
use crate::backplane::envelope::Envelope;
use crate::backplane::{Kept, Post, Tail};
use crate::history::{BESIDE, History, Offset};
use crate::logging::Throttle;

/// A week.
const FORGOTTEN: Duration = Duration::from_secs(7 * 86_400);

/// That it expires is put off so often, and not with each message.
const PUT_OFF: Duration = Duration::from_secs(3600);

/// For how long it is known what a node has added: longer than it will try again.
const REPEATS: Duration = Duration::from_secs(86_400);

/// The largest number that Redis takes for a time to live, and more than it will ever hold of anything.
const MOST: u64 = i64::MAX as u64 / 2;

/// What `ADD` says if the one before is missing.
pub(super) const OUT_OF_ORDER: &str = "OUTOFORDER";

/// KEYS: stream, hash, node. ARGV: sequence, envelope, channel, most, age, expiry, repeats,
/// before, most bytes, bytes beside an envelope, put off; all times in milliseconds, an age of -1 means no limit.
/// `before` is the message that must have been added last of this node, as it was sent just before this one;
/// 0 if none was.
///
/// What is too many bytes is looked for whenever a 64th of them has been added, and then a 64th more goes, so
/// that there is room until the next time. Entries go one by one, unless they are many: then up to twice as
/// many go as would have to, or all would wait for it.
pub(super) const ADD: &str = "\
local added = tonumber(redis.call('GET', KEYS[3]) or '0')
if added >= tonumber(ARGV[1]) then return 0 end
local before = tonumber(ARGV[8])
if before > 0 and added ~= before then return redis.error_reply('OUTOFORDER one before it is missing') end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[7])
local beside = tonumber(ARGV[10])
local size = #ARGV[2] + beside
local known = redis.call('HMGET', KEYS[2], 'e', 'n', 'b', 'x')
local epoch = known[1]
local number, bytes = tonumber(known[2] or '0') + 1, tonumber(known[3] or '0') + size
if not epoch then
  epoch = now
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'e', epoch)
end
redis.call('HSET', KEYS[2], 'n', number, 'b', bytes)
local id = epoch .. '-' .. string.format('%.0f', number)
local fresh = redis.call('EXISTS', KEYS[1]) == 0
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[4], id, 'm', ARGV[2], 't', now, 'b', bytes)
local most = tonumber(ARGV[9])
local step = math.max(most / 64, 1)
if bytes > most and math.floor(bytes / step) > math.floor((bytes - size) / step) then
  local less = 1
  for try = 1, 64 do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if not oldest then break end
    local before = tonumber(oldest[2][6] or '0') - #oldest[2][2] - beside
    if bytes - before <= most - step then break end
    redis.call('XTRIM', KEYS[1], 'MAXLEN', math.max(redis.call('XLEN', KEYS[1]) - less, 0))
    if try > 16 then less = 2 * less end
  end
end
local age = tonumber(ARGV[5])
if age >= 0 then
  for _ = 1, 16 do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if not oldest or tonumber(oldest[2][4]) + age >= tonumber(now) then break end
    redis.call('XDEL', KEYS[1], oldest[1])
  end
end
if fresh or math.abs(now - tonumber(known[4] or '0')) >= tonumber(ARGV[11]) then
  redis.call('HSET', KEYS[2], 'x', now)
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
redis.call('PUBLISH', ARGV[3], id .. ' ' .. ARGV[2])
return 1";

/// A Redis that was killed, or a replica that took its place, may have lost the last of what it had
/// acknowledged. Numbers that were seen must not be given again: what follows is another epoch.
///
/// KEYS: hash. ARGV: the epoch, the latest number that was seen, the epoch after it.
const RAISE: &str = "\
local now = redis.call('HMGET', KEYS[1], 'e', 'n')
if now[1] == ARGV[1] and tonumber(now[2]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'e', ARGV[3], 'n', 0)
end
return 0";

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).map_or(MOST, |millis| millis.min(MOST))
}

impl Inner {
    pub(super) fn key(&self, topic: &str, what: &str) -> String {
        format!("{}{{{topic}}}:{what}", self.prefix)
    }

    /// Adds a message, by the script of this digest.
    pub(super) fn add(
        &self,
        digest: &str,
        post: &Post,
        keep: &History,
        (before, sequence): (u64, u64),
        envelope: &[u8],
    ) -> Cmd {
        let age = keep.age.map(|age| millis(age) as i64);
        let expiry = keep.age.unwrap_or_default().max(FORGOTTEN);
        let expiry = expiry.saturating_add(PUT_OFF);
        let mut command = cmd("EVALSHA");
        command
            .arg(digest)
            .arg(3)
            .arg(self.key(&post.topic, "s"))
            .arg(self.key(&post.topic, "m"))
            .arg(self.key(&post.topic, &format!("{:016x}", self.node)))
            .arg(sequence)
            .arg(envelope)
            .arg(self.channel(&post.topic))
            .arg(MOST.min(keep.messages as u64))
            .arg(age.unwrap_or(-1))
            .arg(millis(expiry))
            .arg(millis(REPEATS))
            .arg(before)
            .arg(MOST.min(keep.bytes as u64))
            .arg(BESIDE)
            .arg(millis(PUT_OFF));
        command
    }

    /// A message of a topic with history, as it is published. `None`: it is not one.
    pub(super) fn kept(&self, topic: &str, payload: &[u8]) -> Option<Kept> {
        let space = payload.iter().position(|&byte| byte == b' ')?;
        let id = std::str::from_utf8(&payload[..space]).ok()?;
        self.with_offset(topic, id.parse().ok()?, &payload[space + 1..])
    }

    fn with_offset(&self, topic: &str, offset: Offset, envelope: &[u8]) -> Option<Kept> {
        let envelope = Envelope::decode(envelope)?;
        Some(Kept {
            post: Post {
                latest: envelope.latest,
                ..Post::new(topic, envelope.message)
            },
            offset,
            node: envelope.node,
            sequence: envelope.sequence,
            except: envelope.sender.filter(|_| envelope.node == self.node),
            age: Duration::ZERO,
        })
    }

    /// Fetches what there is after this offset, with the message that has it. If this fails, there may be
    /// answers to come on this connection.
    pub(super) fn tail(
        &self,
        connection: &mut redis::Connection,
        topic: &str,
        after: Offset,
    ) -> RedisResult<Tail> {
        // Of another epoch that is later, this is everything.
        let from = match after.number {
            0 => "-".into(),
            _ => after.to_string(),
        };
        // No transaction: Redis refuses those when its memory is full. What is added meanwhile is in the
        // second answer at most, and that is as good.
        let mut batch = pipe();
        batch
            .cmd("HMGET")
            .arg(self.key(topic, "m"))
            .arg("e")
            .arg("n");
        batch
            .cmd("XRANGE")
            .arg(self.key(topic, "s"))
            .arg(from)
            .arg("+");
        batch.cmd("TIME");
        connection.send_packed_command(&batch.get_packed_pipeline())?;
        // One that fails ends it: the crate would wait for each of the others as long.
        let mut answer = || connection.recv_response()?.extract_error();
        let (epoch, number): (Option<u64>, Option<u64>) = from_redis_value(answer()?)?;
        let entries: Vec<(String, Vec<Value>)> = from_redis_value(answer()?)?;
        let (seconds, micros): (u64, u64) = from_redis_value(answer()?)?;
        let now = seconds * 1000 + micros / 1000;
        let last = Offset {
            epoch: epoch.unwrap_or(0),
            number: number.unwrap_or(0),
            tag: 0,
        };
        if after.number > 0 && last.epoch < after.epoch {
            // It is earlier: a clock was put back.
            return self.tail(connection, topic, Offset::default());
        }
        if last.epoch == after.epoch && last.number < after.number {
            // Each time that it is tried, and of every topic.
            static LOSSES: Throttle = Throttle::new();
            if let Some(more) = LOSSES.pass() {
                log::warn!(target: "framemill::backplane", "Redis has lost what it had of {topic:?} after {last}{more}");
            }
            let mut raise = cmd("EVAL");
            let raise = raise.arg(RAISE).arg(1).arg(self.key(topic, "m"));
            raise.arg(after.epoch).arg(after.number);
            raise.arg(now.max(after.epoch + 1));
            raise.query::<()>(connection)?;
            return self.tail(connection, topic, after);
        }
        let kept = entries.iter().filter_map(|(id, fields)| {
            let [_, Value::BulkString(envelope), _, Value::BulkString(at), ..] = &fields[..] else {
                return None;
            };
            let kept = self.with_offset(topic, id.parse().ok()?, envelope)?;
            let at: u64 = std::str::from_utf8(at).ok()?.parse().ok()?;
            let age = Duration::from_millis(now.saturating_sub(at));
            Some(Kept { age, ..kept })
        });
        Ok(Tail {
            topic: topic.into(),
            last,
            kept: kept.collect(),
        })
    }
}
