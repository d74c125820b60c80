//! Who comes from where, and how fast: the limits that count by address, and the rate of all together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Instant;

use crate::config::Config;
use crate::sync::lock;
use crate::token_bucket::TokenBucket;

/// Addresses that are remembered before those that are of no interest any more are looked for.
const TIDY_AT: usize = 1024;

/// What is counted of arrivals. Nothing is, and no lock is taken, without a limit that needs it.
#[derive(Debug)]
pub(crate) struct Arrivals {
    start: Instant,
    all: Option<Mutex<TokenBucket>>,
    by_ip: Mutex<ByIp>,
}

#[derive(Debug, Default)]
struct ByIp {
    known: HashMap<IpAddr, Arrived>,
    /// When this many are known, the uninteresting ones are forgotten.
    tidy_at: usize,
}

/// From one address.
#[derive(Debug, Default)]
struct Arrived {
    open: usize,
    /// `None` without a limit on the rate.
    rate: Option<TokenBucket>,
}

impl Arrived {
    /// Nothing is open, and the rate is as good as new.
    fn is_over(&self, now: u64) -> bool {
        self.open == 0 && self.rate.is_none_or(|rate| rate.is_full(now))
    }
}

impl Arrivals {
    pub(crate) fn new(config: &Config) -> Self {
        let all = config.accept_rate.map(|rate| TokenBucket::new(rate, 0));
        Self {
            start: Instant::now(),
            all: all.map(Mutex::new),
            by_ip: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Whether one more may be accepted now; if not, in how many milliseconds.
    pub(crate) fn wait(&self) -> Option<u64> {
        let bucket = lock(self.all.as_ref()?);
        let now = self.now();
        bucket.is_empty(now).then(|| bucket.ready_at(now) - now)
    }

    /// One was accepted. Several loops may have found the same token, so what is missing is owed.
    pub(crate) fn count(&self) {
        if let Some(all) = &self.all {
            lock(all).draw(1, self.now());
        }
    }

    /// Counts a connection from `ip` in. `false`: there are too many, or they come too fast.
    pub(crate) fn admit(&self, ip: Option<IpAddr>, config: &Config) -> bool {
        let (Some(ip), true) = (ip, counts_ips(config)) else {
            return true;
        };
        let now = self.now();
        let mut by_ip = lock(&self.by_ip);
        by_ip.tidy(now);
        let arrived = by_ip.known.entry(group(ip, config)).or_insert_with(|| {
            let rate = config.accept_rate_per_ip;
            Arrived {
                open: 0,
                rate: rate.map(|rate| TokenBucket::new(rate, now)),
            }
        });
        if arrived.open >= config.max_connections_per_ip {
            return false;
        }
        let in_time = arrived.rate.as_mut().is_none_or(|rate| rate.try_take(now));
        arrived.open += usize::from(in_time);
        in_time
    }

    /// Counts it out.
    pub(crate) fn discharge(&self, ip: Option<IpAddr>, config: &Config) {
        let (Some(ip), true) = (ip, counts_ips(config)) else {
            return;
        };
        let mut by_ip = lock(&self.by_ip);
        if let Entry::Occupied(mut entry) = by_ip.known.entry(group(ip, config)) {
            entry.get_mut().open -= 1;
            if entry.get().is_over(self.now()) {
                entry.remove();
            }
        }
    }
}

impl ByIp {
    /// Forgets who has gone and whose rate is as good as new: each arrival pays for one or two.
    fn tidy(&mut self, now: u64) {
        if self.known.len() >= self.tidy_at.max(TIDY_AT) {
            self.known.retain(|_, arrived| !arrived.is_over(now));
            self.tidy_at = 2 * self.known.len();
        }
    }
}

fn counts_ips(config: &Config) -> bool {
    config.max_connections_per_ip != usize::MAX || config.accept_rate_per_ip.is_some()
}

/// What one address counts as: an IPv6 site usually has a whole /64 to itself.
fn group(ip: IpAddr, config: &Config) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let rest = 128 - u32::from(config.ipv6_prefix.min(128));
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;

    #[test]
    fn prefixes_group() {
        let mut config = Config::default();
        let mut of = |prefix, ip: &str| {
            config.ipv6_prefix = prefix;
            group(ip.parse().unwrap(), &config).to_string()
        };
        assert_eq!(of(64, "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of(56, "2001:db8:1:2ff:3::"), "2001:db8:1:200::");
        assert_eq!(of(128, "2001:db8::1"), "2001:db8::1");
        assert_eq!(of(1, "2001:db8::1"), "::");
        assert_eq!(of(48, "::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of(48, "192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn what_several_loops_take_at_once_is_paid_back() {
        let arrivals = Arrivals::new(&Config {
            accept_rate: Some(Rate {
                per_second: 1,
                burst: 1,
            }),
            ..Config::default()
        });
        assert_eq!([arrivals.wait(), arrivals.wait()], [None, None]);
        arrivals.count();
        arrivals.count();
        let wait = arrivals.wait().unwrap();
        assert!(wait > 1000 && wait <= 2000, "{wait} ms");
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let config = Config {
            max_connections_per_ip: 1,
            accept_rate_per_ip: Some(Rate {
                per_second: 1_000_000_000,
                burst: 1,
            }),
            ..Config::default()
        };
        let arrivals = Arrivals::new(&config);
        for n in 0..100_000_u32 {
            let ip = Some(IpAddr::V4(n.into()));
            assert!(arrivals.admit(ip, &config));
            assert!(!arrivals.admit(ip, &config));
            arrivals.discharge(ip, &config);
        }
        assert!(lock(&arrivals.by_ip).known.len() <= 2 * TIDY_AT);
    }
}
