//! Failed logins by address: first they wait, then they are refused. The table is bounded; one per shard, and the
//! shards tell each other of what they count.
//!
//! Addresses of IPv6 count by their /64, which is what one customer is given.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// What the limiter goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Failures of one address within [`Settings::window`] from which on it is refused. 0: no limit, and no delay.
    pub failures_max: u32,
    /// How long failures are remembered after the first of them.
    pub window: Duration,
    /// Addresses that are remembered.
    pub addresses_max: usize,
}

/// Failures that cost nothing: people mistype.
const FREE_FAILURES: u32 = 3;
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(3);
/// Entries that are looked at for one to give up when the table is full.
const LOOKED_AT: usize = 16;

/// What follows from a failed login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consequence {
    /// The client hears of it only then.
    pub delay: Duration,
    /// Whether this one is written to the log: the first of a window, and the one from which on the address is refused.
    pub is_logged: bool,
    /// Failures of this address in this window.
    pub failures: u32,
}

struct Entry {
    since: Instant,
    failures: u32,
}

/// The addresses that have failed.
pub struct Limiter {
    settings: Settings,
    entries: HashMap<IpAddr, Entry, foldhash::fast::RandomState>,
}

impl Limiter {
    /// With no failure yet.
    pub fn new(settings: Settings) -> Limiter {
        Limiter { settings, entries: HashMap::default() }
    }

    /// Whether nobody has failed lately: then every address may try.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an address may try to log in.
    pub fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let failures = self.entries.get(&network(address)).filter(|entry| self.is_fresh(entry, now));
        self.settings.failures_max == 0 || failures.is_none_or(|entry| entry.failures < self.settings.failures_max)
    }

    /// A login from there failed.
    pub fn failed(&mut self, address: IpAddr, now: Instant) -> Consequence {
        let address = network(address);
        if !self.entries.contains_key(&address) && self.entries.len() >= self.settings.addresses_max {
            self.make_room(now);
        }
        let window = self.settings.window;
        let entry = self.entries.entry(address).or_insert(Entry { since: now, failures: 0 });
        if now.duration_since(entry.since) >= window {
            *entry = Entry { since: now, failures: 0 };
        }
        entry.failures = entry.failures.saturating_add(1);
        let failures = entry.failures;
        let delay = match failures.checked_sub(FREE_FAILURES + 1).filter(|_| self.settings.failures_max > 0) {
            None => Duration::ZERO,
            Some(times) => DELAY_FIRST.saturating_mul(1 << times.min(10)).min(DELAY_MAX),
        };
        Consequence { delay, is_logged: failures == 1 || failures == self.settings.failures_max, failures }
    }

    /// A login from there went well: a person who had mistyped, most likely. One who guesses the passwords of others
    /// between logins of his own gains little: a success takes one failure back.
    /// `false`: there was none.
    pub fn succeeded(&mut self, address: IpAddr) -> bool {
        let address = network(address);
        let Some(entry) = self.entries.get_mut(&address) else { return false };
        entry.failures -= 1;
        if entry.failures == 0 {
            self.entries.remove(&address);
        }
        true
    }

    fn is_fresh(&self, entry: &Entry, now: Instant) -> bool {
        now.duration_since(entry.since) < self.settings.window
    }

    /// Gives up an entry that is over, or the mildest of a few.
    fn make_room(&mut self, now: Instant) {
        let some = self.entries.iter().take(LOOKED_AT);
        let mildest = some.min_by_key(|(_, entry)| (self.is_fresh(entry, now), entry.failures));
        if let Some(address) = mildest.map(|(address, _)| *address) {
            self.entries.remove(&address);
        }
    }
}

/// What an address counts as: itself, or the /64 that one customer is given.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { failures_max: 10, window: Duration::from_secs(60), addresses_max: 4 };

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn waits_then_refuses_then_forgets() {
        let (mut limiter, start) = (Limiter::new(SETTINGS), Instant::now());
        let one = address("192.0.2.1");
        let mut delays = Vec::new();
        let mut logged = 0;
        for _ in 0..10 {
            assert!(limiter.may_try(one, start));
            let consequence = limiter.failed(one, start);
            delays.push(consequence.delay.as_millis());
            logged += u32::from(consequence.is_logged);
        }
        assert_eq!(delays, [0, 0, 0, 100, 200, 400, 800, 1600, 3000, 3000]);
        assert_eq!(logged, 2);
        assert!(!limiter.may_try(one, start + Duration::from_secs(59)));
        assert!(limiter.may_try(address("192.0.2.2"), start));
        let later = start + Duration::from_secs(60);
        assert!(limiter.may_try(one, later));
        assert_eq!(limiter.failed(one, later), Consequence { delay: Duration::ZERO, is_logged: true, failures: 1 });
    }

    #[test]
    fn a_success_takes_a_failure_back() {
        let (mut limiter, start) = (Limiter::new(SETTINGS), Instant::now());
        let one = address("192.0.2.1");
        limiter.failed(one, start);
        limiter.failed(one, start);
        limiter.succeeded(one);
        assert_eq!(limiter.failed(one, start).failures, 2);
        for _ in 0..3 {
            limiter.succeeded(one);
        }
        assert!(limiter.entries.is_empty());
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let (mut limiter, start) = (Limiter::new(SETTINGS), Instant::now());
        let worst = address("192.0.2.1");
        for _ in 0..10 {
            limiter.failed(worst, start);
        }
        for other in 2..200 {
            limiter.failed(IpAddr::from([192, 0, 2, other]), start);
            assert!(limiter.entries.len() <= 4);
        }
        assert!(!limiter.may_try(worst, start));
    }

    #[test]
    fn ipv6_counts_by_its_network() {
        let (mut limiter, start) = (Limiter::new(SETTINGS), Instant::now());
        for host in 0..10u16 {
            limiter.failed(address(&format!("2001:db8::{host:x}")), start);
        }
        assert!(!limiter.may_try(address("2001:db8::ffff"), start));
        assert!(limiter.may_try(address("2001:db8:0:1::1"), start));
        for _ in 0..10 {
            limiter.failed(address("::ffff:192.0.2.1"), start);
        }
        assert!(!limiter.may_try(address("192.0.2.1"), start));
    }

    #[test]
    fn nought_is_no_limit() {
        let mut limiter = Limiter::new(Settings { failures_max: 0, ..SETTINGS });
        let (one, start) = (address("192.0.2.1"), Instant::now());
        for _ in 0..100 {
            assert_eq!(limiter.failed(one, start).delay, Duration::ZERO);
        }
        assert!(limiter.may_try(one, start));
    }
}
