//! A shard's part of one pool: how many backends it may have, which are free, who waits.
//!
//! Invariant: `idle + lent + opening <= permits`, where *lent* counts every open backend that is not idle (linked to
//! a client, or being cleaned). A part that a reload made smaller is above that for a while ([`Part::excess`]): nothing
//! is lent again or opened then. Or it owes places ([`Part::debt`]): it had lent to other shards what is none of its own
//! any more, and takes back as many before it has one. [`Part`] is the only writer of these numbers. Owned by one shard.

use std::time::{Duration, Instant};

use super::Settings;
use super::waiters::{Queue, Waiters};
use crate::ids::{BackendId, ClientId};

/// A shard's part of a pool.
pub struct Part {
    /// As configured, for all shards together.
    pub settings: Settings,
    /// Below 0: places that it owes.
    permits: i32,
    /// Since when.
    owes_since: Option<Instant>,
    /// Of the reserve: what there is more of for as long as clients wait.
    drawn: u32,
    /// Last in, first out: the one used last is warm.
    idle: Vec<BackendId>,
    lent: u32,
    opening: u32,
    queue: Queue,
    refill: Refill,
    backoff: Backoff,
    /// Lends nothing and opens nothing; who comes waits.
    paused: bool,
}

/// Whether more backends can be opened than clients' logins bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refill {
    /// Not tried yet.
    Unknown,
    /// The server asks for no password.
    Free,
    /// The server asks for a password that nobody here knows.
    Impossible,
}

/// Pauses between failed attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure; doubles.
    pub min: Duration,
    /// Never longer.
    pub max: Duration,
    failures: u32,
    until: Option<Instant>,
}

/// What a client that needs a backend gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkout {
    /// This one.
    Ready(BackendId),
    /// A place in the queue; `open` more backends should be opened (see [`Part::may_open`]).
    Wait,
    /// Nothing: the queue is full.
    QueueFull,
}

/// What becomes of a backend that comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkin {
    /// The longest waiter gets it; it stays lent.
    HandTo(ClientId),
    /// Nobody waits.
    Idle,
}

/// Logins under way at once for one part, so that a server that comes back is not stormed.
const OPENING_MAX: u32 = 4;
/// Idle backends that are looked at for one that suits a client.
const LOOKED_AT_MAX: usize = 16;

impl Backoff {
    /// No failure yet.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0, until: None }
    }

    /// The pause after another failure; `jitter` is 0..=255. What was under way together fails as one.
    fn fail(&mut self, now: Instant, jitter: u8) {
        if !self.allows(now) {
            return;
        }
        let doubled = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        // Between three quarters and the whole of it, so that shards and poolers do not knock in step.
        self.until = Some(now + doubled * (3 * 255 + u32::from(jitter)) / (4 * 255));
    }

    fn succeed(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

impl Part {
    /// Nothing open yet.
    pub fn new(settings: Settings, permits: u32, backoff: Backoff) -> Self {
        Self {
            settings,
            permits: permits as i32,
            owes_since: None,
            drawn: 0,
            idle: Vec::with_capacity(permits as usize),
            lent: 0,
            opening: 0,
            queue: Queue::default(),
            refill: Refill::Unknown,
            backoff,
            paused: false,
        }
    }

    /// Whether nothing is lent or opened, until this is said again.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// See [`Part::pause`].
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A client needs a backend now. Waiters come first.
    pub fn checkout(&mut self, waiters: &mut Waiters, client: ClientId, now: Instant, queue_max: u32) -> Checkout {
        self.checkout_like(waiters, client, now, queue_max, |_| true)
    }

    /// The same, where some backends suit this client better: one of those that were used last, if one `suits`, or the last.
    pub fn checkout_like(
        &mut self,
        waiters: &mut Waiters,
        client: ClientId,
        now: Instant,
        queue_max: u32,
        suits: impl Fn(BackendId) -> bool,
    ) -> Checkout {
        if self.queue.is_empty()
            && !self.paused
            && let Some(backend) = self.pop_idle(suits)
        {
            self.lent += 1;
            return Checkout::Ready(backend);
        }
        if queue_max > 0 && self.queue.len() >= queue_max as usize {
            return Checkout::QueueFull;
        }
        waiters.push(&mut self.queue, client, now);
        Checkout::Wait
    }

    /// Whether who asks now gets a backend at once.
    pub fn has_free(&self) -> bool {
        self.queue.is_empty() && !self.paused && !self.idle.is_empty()
    }

    /// The others keep their order: those that nobody has used for long are closed first, as ever.
    #[inline]
    fn pop_idle(&mut self, suits: impl Fn(BackendId) -> bool) -> Option<BackendId> {
        let last = *self.idle.last()?;
        if suits(last) {
            return self.idle.pop();
        }
        let looked_at = self.idle.iter().enumerate().rev().take(LOOKED_AT_MAX);
        match looked_at.skip(1).find(|(_, backend)| suits(**backend)).map(|(at, _)| at) {
            Some(at) => Some(self.idle.remove(at)),
            None => self.idle.pop(),
        }
    }

    /// A lent backend comes back clean, or one that was opened is ready.
    pub fn checkin(&mut self, waiters: &mut Waiters, backend: BackendId) -> Checkin {
        assert!(self.lent > 0, "only a lent backend comes back");
        if !self.paused
            && let Some((client, _)) = waiters.pop(&mut self.queue)
        {
            return Checkin::HandTo(client);
        }
        self.lent -= 1;
        self.idle.push(backend);
        self.check();
        Checkin::Idle
    }

    /// Whether a backend should be opened for those who wait (or to keep `minimum`).
    pub fn may_open(&self, now: Instant, minimum: u32) -> bool {
        let wanted = (self.queue.len() as u32).max(minimum.saturating_sub(self.open())) > self.opening;
        wanted
            && !self.paused
            && self.has_unused()
            && self.opening < OPENING_MAX
            && self.refill != Refill::Impossible
            && self.backoff.allows(now)
    }

    /// Takes a place for a backend that is being opened; `false` when there is none.
    pub fn begin_open(&mut self) -> bool {
        if !self.has_unused() {
            return false;
        }
        self.opening += 1;
        self.check();
        true
    }

    /// It is open: it counts as lent until it is checked in.
    pub fn opened(&mut self) {
        assert!(self.opening > 0, "what is open was being opened");
        self.opening -= 1;
        self.lent += 1;
        self.backoff.succeed();
    }

    /// It could not be opened. `its_fault`: the server's, so that the next attempt waits.
    pub fn open_failed(&mut self, now: Instant, jitter: u8, its_fault: bool) {
        assert!(self.opening > 0, "what failed was being opened");
        self.opening -= 1;
        if its_fault {
            self.backoff.fail(now, jitter);
        }
    }

    /// A lent backend is closed.
    pub fn lost_lent(&mut self) {
        assert!(self.lent > 0, "a lent backend is counted");
        self.lent -= 1;
    }

    /// An idle backend is closed or taken away.
    pub fn lost_idle(&mut self, backend: BackendId) {
        let at = self.idle.iter().position(|&idle| idle == backend);
        self.idle.remove(at.expect("an idle backend stands in the list"));
    }

    /// An idle backend is taken for something other than a client.
    pub fn borrow_idle(&mut self, backend: BackendId) {
        self.lost_idle(backend);
        self.lent += 1;
    }

    /// The next client in the queue, taken out: it will be told that there is no backend.
    pub fn pop_waiter(&mut self, waiters: &mut Waiters) -> Option<(ClientId, Instant)> {
        waiters.pop(&mut self.queue)
    }

    /// The client that has waited longest.
    pub fn first_waiter(&self, waiters: &Waiters) -> Option<(ClientId, Instant)> {
        waiters.first(&self.queue)
    }

    /// Takes a client out of the queue (it hung up, or cancelled).
    pub fn remove_waiter(&mut self, waiters: &mut Waiters, client: ClientId) -> bool {
        waiters.remove(&mut self.queue, client)
    }

    /// Whether those who wait need what this shard does not have: a place, or, where none can be opened, a backend. Or it
    /// owes places.
    pub fn wants_more(&self) -> bool {
        let can_open = self.has_unused() && self.refill != Refill::Impossible;
        self.debt() > 0 || !self.paused && self.queue.len() as u32 > self.opening && !can_open
    }

    /// Since when that is so: since the longest waiter came, or since it owes.
    pub fn wants_since(&self, waiters: &Waiters) -> Option<Instant> {
        let waits = self.first_waiter(waiters).map(|(_, since)| since);
        waits.into_iter().chain(self.owes_since).min()
    }

    /// Gives a place away that nobody here uses or waits for; `false` when there is none.
    pub fn give_permit(&mut self) -> bool {
        let unused = self.queue.is_empty() && self.has_unused();
        if unused {
            self.permits -= 1;
        }
        unused
    }

    /// The idle backend that may go to another shard: the one used longest ago, where nobody waits.
    pub fn spare_idle(&self) -> Option<BackendId> {
        if self.queue.is_empty() { self.idle.first().copied() } else { None }
    }

    /// A lent backend has gone to another shard, and its place with it.
    pub fn left(&mut self) {
        assert!(self.lent > 0 && self.permits > 0, "only a lent backend, which has a place, moves");
        self.lent -= 1;
        self.permits -= 1;
    }

    /// A backend has come from another shard, whose place has been added: it counts as lent until it is checked in.
    pub fn arrived(&mut self) {
        self.lent += 1;
        self.check();
    }

    /// Whether a place has no backend.
    pub fn has_unused(&self) -> bool {
        self.open() < self.permits()
    }

    /// Gives a place without a backend away although clients may wait here: another shard's have waited longer.
    pub fn yield_permit(&mut self) {
        assert!(self.has_unused(), "only a place without a backend is given away");
        self.permits -= 1;
    }

    /// A place more, of the reserve.
    pub fn draw_reserve(&mut self) {
        self.drawn += 1;
        self.change_permits(1, None);
    }

    /// A place of the reserve goes back. Whatever has it by now, one place less is left: it may be owed by another shard.
    pub fn return_reserve(&mut self, now: Instant) {
        assert!(self.drawn > 0, "only what was drawn goes back");
        self.drawn -= 1;
        self.change_permits(-1, Some(now));
    }

    /// Places of the reserve.
    pub fn drawn(&self) -> u32 {
        self.drawn
    }

    /// Places that another shard gave.
    pub fn add_permits(&mut self, count: u32) {
        self.change_permits(count as i32, None);
    }

    /// The configuration has changed. `more`: by how much this shard's share has grown; what was lent to other shards and
    /// borrowed from them stays so.
    pub fn reconfigure(&mut self, settings: Settings, (min, max): (Duration, Duration), more: i32, now: Instant) {
        self.settings = settings;
        self.backoff.min = min;
        self.backoff.max = max;
        self.change_permits(more, Some(now));
    }

    fn change_permits(&mut self, more: i32, now: Option<Instant>) {
        self.permits += more;
        self.owes_since = if self.permits < 0 { self.owes_since.or(now) } else { None };
    }

    /// Backends above what this part may have, since it was made smaller: they are closed as they become free.
    pub fn excess(&self) -> u32 {
        self.open().saturating_sub(self.permits())
    }

    /// What a login told about opening more.
    pub fn set_refill(&mut self, refill: Refill) {
        self.refill = refill;
    }

    /// See [`Refill`].
    pub fn refill(&self) -> Refill {
        self.refill
    }

    /// Idle backends, the one used longest ago first.
    pub fn idle(&self) -> &[BackendId] {
        &self.idle
    }

    /// Backends that hold a place.
    pub fn open(&self) -> u32 {
        self.idle.len() as u32 + self.lent + self.opening
    }

    /// Lent backends.
    pub fn lent(&self) -> u32 {
        self.lent
    }

    /// Backends being opened.
    pub fn opening(&self) -> u32 {
        self.opening
    }

    /// Places of this part.
    pub fn permits(&self) -> u32 {
        self.permits.max(0) as u32
    }

    /// Places that it has to take back before it has one.
    pub fn debt(&self) -> u32 {
        self.permits.min(0).unsigned_abs()
    }

    /// Clients waiting.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn check(&self) {
        assert!(self.open() <= self.permits(), "no pool exceeds its size");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Schedule;

    fn part(permits: u32) -> Part {
        let settings = Settings {
            size: permits,
            min_size: 0,
            reserve_size: 0,
            reserve_timeout: Duration::ZERO,
            max_backends: 0,
            max_queue: 0,
            queue_timeout: Duration::from_secs(10),
            idle_timeout: Duration::ZERO,
            lifetime: Duration::ZERO,
            keepalive_interval: Duration::ZERO,
            keepalive_timeout: Duration::from_secs(1),
            schedule: Schedule::RoundRobin,
            placement: Schedule::LoadBalancing,
        };
        Part::new(settings, permits, Backoff::new(Duration::from_millis(100), Duration::from_secs(5)))
    }

    const fn client(index: u32) -> ClientId {
        ClientId { index, generation: 0 }
    }

    const fn backend(index: u32) -> BackendId {
        BackendId { index, generation: 0 }
    }

    #[test]
    fn like_goes_to_like_among_the_last_used() {
        let count = LOOKED_AT_MAX as u32 + 3;
        let (mut part, mut waiters, now) = (part(count), Waiters::new(4), Instant::now());
        for index in 0..count {
            assert!(part.begin_open());
            part.opened();
            part.checkin(&mut waiters, backend(index));
        }
        let mut take =
            |suits: &dyn Fn(u32) -> bool| match part
                .checkout_like(&mut waiters, client(0), now, 0, |backend| suits(backend.index))
            {
                Checkout::Ready(backend) => backend.index,
                other => panic!("{other:?}"),
            };
        assert_eq!(take(&|index| index < count - 2), count - 3);
        assert_eq!(take(&|_| true), count - 1);
        // Too far away, or nowhere: the last.
        assert_eq!(take(&|index| index == 0), count - 2);
        assert_eq!(take(&|_| false), count - 4);
        assert_eq!(part.idle().iter().map(|backend| backend.index).collect::<Vec<_>>(), Vec::from_iter(0..count - 4));
    }

    #[test]
    fn a_backend_goes_to_the_longest_waiter() {
        let (mut part, mut waiters, now) = (part(1), Waiters::new(4), Instant::now());
        assert_eq!(part.checkout(&mut waiters, client(0), now, 0), Checkout::Wait);
        assert!(part.may_open(now, 0) && part.begin_open());
        assert!(!part.may_open(now, 0) && !part.begin_open());
        assert_eq!(part.checkout(&mut waiters, client(1), now, 0), Checkout::Wait);
        assert_eq!(part.checkout(&mut waiters, client(2), now, 2), Checkout::QueueFull);
        part.opened();
        assert_eq!(part.checkin(&mut waiters, backend(9)), Checkin::HandTo(client(0)));
        assert!(part.remove_waiter(&mut waiters, client(1)));
        assert_eq!(part.checkin(&mut waiters, backend(9)), Checkin::Idle);
        assert_eq!(part.checkout(&mut waiters, client(3), now, 0), Checkout::Ready(backend(9)));
        part.lost_lent();
        assert_eq!(part.open(), 0);
    }

    #[test]
    fn only_what_nobody_uses_is_given_away() {
        let (mut part, mut waiters, now) = (part(1), Waiters::new(4), Instant::now());
        part.checkout(&mut waiters, client(0), now, 0);
        assert!(!part.give_permit(), "somebody waits for it");
        part.begin_open();
        part.opened();
        part.set_refill(Refill::Free);
        assert_eq!(part.checkin(&mut waiters, backend(1)), Checkin::HandTo(client(0)));
        assert!(!part.give_permit() && part.spare_idle().is_none());
        part.checkout(&mut waiters, client(1), now, 0);
        assert!(part.wants_more());
        part.add_permits(1);
        assert!(!part.wants_more() && part.may_open(now, 0));
        part.remove_waiter(&mut waiters, client(1));
        assert!(part.give_permit() && !part.give_permit());
        part.checkin(&mut waiters, backend(1));
        assert_eq!(part.spare_idle(), Some(backend(1)));
        part.borrow_idle(backend(1));
        part.left();
        assert_eq!((part.permits(), part.open()), (0, 0));
        part.add_permits(1);
        part.arrived();
        assert_eq!((part.permits(), part.open(), part.lent()), (1, 1, 1));
        part.set_refill(Refill::Impossible);
        part.add_permits(1);
        part.checkout(&mut waiters, client(2), now, 0);
        assert!(part.wants_more(), "a place is there, and nothing can be opened");
    }

    #[test]
    fn what_was_lent_and_is_none_of_its_own_any_more_is_owed() {
        let (mut part, mut waiters, now) = (part(2), Waiters::new(4), Instant::now());
        let backoff = (Duration::from_millis(100), Duration::from_secs(5));
        assert!(part.give_permit() && part.give_permit());
        part.reconfigure(part.settings.clone(), backoff, -1, now);
        assert_eq!((part.permits(), part.debt(), part.excess()), (0, 1, 0));
        assert!(part.wants_more() && part.wants_since(&waiters) == Some(now), "though nobody waits");
        let later = now + Duration::from_secs(1);
        part.checkout(&mut waiters, client(0), later, 0);
        assert_eq!(part.wants_since(&waiters), Some(now));
        part.add_permits(1);
        assert_eq!((part.permits(), part.debt()), (0, 0));
        assert!(!part.may_open(later, 0) && part.wants_since(&waiters) == Some(later), "that one paid the debt");
        part.add_permits(1);
        assert!(part.may_open(later, 0) && !part.wants_more());
    }

    #[test]
    fn the_reserve_is_more_places_for_a_while() {
        let (mut part, mut waiters, now) = (part(1), Waiters::new(4), Instant::now());
        part.checkout(&mut waiters, client(0), now, 0);
        assert!(part.begin_open() && !part.begin_open());
        part.draw_reserve();
        assert!(part.begin_open() && !part.has_unused());
        part.opened();
        part.opened();
        assert_eq!(part.checkin(&mut waiters, backend(0)), Checkin::HandTo(client(0)));
        part.return_reserve(now);
        assert_eq!((part.permits(), part.drawn(), part.excess()), (1, 0, 1));
        // Its place has gone to another shard meanwhile: that one owes it.
        let mut part = super::tests::part(1);
        part.draw_reserve();
        assert!(part.give_permit() && part.give_permit());
        part.return_reserve(now);
        assert_eq!((part.permits(), part.debt(), part.wants_since(&waiters)), (0, 1, Some(now)));
    }

    #[test]
    fn failures_are_followed_by_growing_pauses() {
        let (mut part, mut waiters, mut now) = (part(2), Waiters::new(4), Instant::now());
        part.checkout(&mut waiters, client(0), now, 0);
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert!(part.may_open(now, 0));
            part.begin_open();
            part.open_failed(now, 255, true);
            assert!(!part.may_open(now + Duration::from_millis(expected - 1), 0));
            now += Duration::from_millis(expected);
        }
        part.set_refill(Refill::Impossible);
        assert!(!part.may_open(now, 0));
    }

    #[test]
    fn attempts_that_fail_together_are_one_failure() {
        let (mut part, mut waiters, mut now) = (part(4), Waiters::new(8), Instant::now());
        for index in 0..4 {
            part.checkout(&mut waiters, client(index), now, 0);
        }
        for expected in [100, 200, 400] {
            for _ in 0..4 {
                assert!(part.may_open(now, 0) && part.begin_open());
            }
            for _ in 0..4 {
                part.open_failed(now, 255, true);
            }
            assert!(!part.may_open(now + Duration::from_millis(expected - 1), 0));
            now += Duration::from_millis(expected);
        }
    }
}
