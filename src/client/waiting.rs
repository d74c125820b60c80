//! Attempts that can't begin yet, and what each of them waits for: the end of a pause, or the address of
//! a name. No thread, no clock and no resolver is in here.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handle::Control;
use super::session::Session;
use super::url::Place;
use crate::error::{Error, duplicate};
use crate::link::Target;

/// What a name resolved to is good for this long: thousands of clients of one server ask once. A failure
/// is not kept, only told to all who wait for that name.
const FRESH: Duration = Duration::from_secs(1);

/// When the time of something that waits is up; the number keeps equals in their order.
type Key = (Instant, u64);

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Waiting {
    all: BTreeMap<Key, Attempt>,
    count: u64,
    /// Who waits for which name; each is either being asked for or among the `unasked`.
    names: HashMap<String, BTreeSet<Key>>,
    unasked: VecDeque<String>,
    last: Option<Resolved>,
}

struct Attempt {
    session: Box<Session>,
    /// For the address of this one, until the time for its opening handshake is up; or for the end of a
    /// pause.
    name: Option<String>,
}

struct Resolved {
    host: String,
    at: Instant,
    addrs: Vec<IpAddr>,
}

/// An attempt that waits no longer: where to connect to, or why not.
pub(super) struct Ready {
    pub(super) session: Box<Session>,
    pub(super) targets: Result<VecDeque<Target>, Error>,
    /// When the opening handshake must be through.
    pub(super) deadline: Instant,
}

impl Ready {
    /// It will not come to that.
    pub(super) fn failed(session: Box<Session>, error: Error) -> Self {
        Self {
            session,
            targets: Err(error),
            deadline: Instant::now(),
        }
    }
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// When the next time is up.
    pub(super) fn next(&self) -> Option<Instant> {
        self.all.keys().next().map(|(at, _)| *at)
    }

    /// Begins when the pause is over.
    pub(super) fn pause(&mut self, session: Box<Session>, until: Instant) {
        self.add(
            until,
            Attempt {
                session,
                name: None,
            },
        );
    }

    /// Begins now; `None` if that means to wait for the address of a name.
    pub(super) fn begin(&mut self, session: Box<Session>, now: Instant) -> Option<Ready> {
        let deadline = now + session.plan.config.handshake_timeout;
        let targets = match &session.plan.place {
            #[cfg(unix)]
            Place::Unix(path) => Ok(VecDeque::from([Target::Unix(path.clone())])),
            Place::Host { host, port } => match (host.parse(), self.remembered(host, now)) {
                (Ok(ip), _) => Ok(targets(&[ip], *port)),
                (Err(_), Some(addrs)) => Ok(targets(addrs, *port)),
                (Err(_), None) => Err(host.clone()),
            },
        };
        match targets {
            Ok(targets) => Some(Ready {
                session,
                targets: Ok(targets),
                deadline,
            }),
            Err(host) => {
                let name = Some(host.clone());
                let key = self.add(deadline, Attempt { session, name });
                match self.names.entry(host) {
                    Entry::Occupied(mut keys) => drop(keys.get_mut().insert(key)),
                    Entry::Vacant(entry) => {
                        self.unasked.push_back(entry.key().clone());
                        entry.insert(BTreeSet::from([key]));
                    }
                }
                None
            }
        }
    }

    /// One whose time is up, if there is any: its pause is over, or it has waited for too long.
    pub(super) fn due(&mut self, now: Instant) -> Option<Ready> {
        while let Some(key) = self.all.keys().next().copied().filter(|(at, _)| *at <= now) {
            let Attempt { session, name } = self.remove(key)?;
            if name.is_some() {
                return Some(Ready::failed(session, Error::Timeout));
            }
            if let Some(ready) = self.begin(session, now) {
                return Some(ready);
            }
        }
        None
    }

    pub(super) fn has_unasked(&self) -> bool {
        !self.unasked.is_empty()
    }

    /// A name that somebody waits for and nobody asks for yet; the caller does.
    pub(super) fn ask(&mut self) -> Option<String> {
        while let Some(host) = self.unasked.pop_front() {
            if self.names.get(&host).is_some_and(|keys| !keys.is_empty()) {
                return Some(host);
            }
            self.names.remove(&host);
        }
        None
    }

    /// The answer, for all who wait for it.
    pub(super) fn answered(&mut self, host: String, answer: io::Result<Vec<IpAddr>>) -> Vec<Ready> {
        let mut ready = Vec::new();
        for key in self.names.remove(&host).unwrap_or_default() {
            let Some(Attempt { session, .. }) = self.all.remove(&key) else {
                continue;
            };
            let port = match session.plan.place {
                Place::Host { port, .. } => port,
                #[cfg(unix)]
                Place::Unix(_) => continue,
            };
            let targets = match &answer {
                Ok(addrs) => Ok(targets(addrs, port)),
                Err(source) => Err(Error::Resolve {
                    host: host.clone(),
                    source: duplicate(source),
                }),
            };
            let (deadline, _) = key;
            ready.push(Ready {
                session,
                targets,
                deadline,
            });
        }
        if let Ok(addrs) = answer {
            let at = Instant::now();
            self.last = Some(Resolved { host, at, addrs });
        }
        ready
    }

    /// The attempt of this client, which is not wanted any more.
    pub(super) fn call_off(&mut self, control: &Arc<Control>) -> Option<Box<Session>> {
        let is_its = |attempt: &Attempt| Arc::ptr_eq(&attempt.session.control, control);
        let (key, _) = self.all.iter().find(|(_, attempt)| is_its(attempt))?;
        let key = *key;
        self.remove(key).map(|attempt| attempt.session)
    }

    /// All of them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Box<Session>> + use<> {
        self.names.clear();
        self.unasked.clear();
        let all = std::mem::take(&mut self.all).into_values();
        all.map(|attempt| attempt.session)
    }

    fn add(&mut self, at: Instant, attempt: Attempt) -> Key {
        self.count += 1;
        let key = (at, self.count);
        self.all.insert(key, attempt);
        key
    }

    fn remove(&mut self, key: Key) -> Option<Attempt> {
        let attempt = self.all.remove(&key)?;
        let keys = attempt
            .name
            .as_ref()
            .and_then(|name| self.names.get_mut(name));
        if let Some(keys) = keys {
            keys.remove(&key);
        }
        Some(attempt)
    }

    fn remembered(&self, host: &str, now: Instant) -> Option<&[IpAddr]> {
        let is_fresh =
            |last: &&Resolved| last.host == host && now.saturating_duration_since(last.at) < FRESH;
        self.last.as_ref().filter(is_fresh).map(|last| &*last.addrs)
    }
}

fn targets(addrs: &[IpAddr], port: u16) -> VecDeque<Target> {
    let target = |ip: &IpAddr| Target::Ip(SocketAddr::new(*ip, port));
    addrs.iter().map(target).collect()
}
