//! When a backend goes to another shard although clients wait here: to the longest waiter, as nearly as messages allow.

use std::time::{Duration, Instant};

/// Waits that differ by less are the same: what moved would come back at once.
const SAME: Duration = Duration::from_millis(2);

/// Whether a client of another shard, waiting since `foreign`, goes before this shard's own longest waiter. The foreign
/// wait must be longer by a quarter: moving a backend costs more than handing it on.
pub fn goes_away(foreign: Instant, own: Option<Instant>, now: Instant) -> bool {
    let Some(own) = own else { return true };
    let (foreign, own) = (now.saturating_duration_since(foreign), now.saturating_duration_since(own));
    foreign > own + SAME.max(own / 4)
}

/// What a shard has said of its clients that wait for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Since when the longest of them waits.
    pub since: Instant,
    /// They are served in turn, only not at once: whoever waits longest has then waited about as long, for so long after it
    /// was said.
    pub steady_for: Duration,
}

impl Waits {
    /// Since when the longest of them waits `now`, as far as it was known `at` an earlier moment.
    pub fn since(&self, at: Instant, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(at);
        if passed < self.steady_for { self.since + passed } else { self.since }
    }
}

/// How a pool stands that wants a backend at a server that has as many as it may have.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Backends that it has.
    pub open: u32,
    /// Since when the longest of its clients waits; `None`: none does.
    pub since: Option<Instant>,
}

/// A pool that has just as few waits so long before a backend of another is closed for it: connections cost more than a turn.
const ROOM_AFTER: Duration = Duration::from_millis(50);

/// Whether the one goes before the other to a seat that is free: who has fewer, and of two that have as many who waits longer.
pub fn sits_first(one: &Standing, other: &Standing) -> bool {
    let Some(since) = one.since else { return false };
    match one.open.cmp(&other.open) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => other.since.is_none_or(|other| since < other),
        std::cmp::Ordering::Greater => false,
    }
}

/// Whether a pool gives up a backend that comes back to it for another that waits: it has more even then, or as many, and its
/// own clients have waited less long.
pub fn makes_room(own: &Standing, other: &Standing, now: Instant) -> bool {
    let Some(since) = other.since else { return false };
    if own.open > other.open + 1 {
        return true;
    }
    own.open > other.open && now.saturating_duration_since(since) >= ROOM_AFTER && goes_away(since, own.since, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_shared_evenly_and_in_turn() {
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |ms| Some(now - Duration::from_millis(ms));
        let pool = |open, since| Standing { open, since };
        assert!(makes_room(&pool(3, ago(500)), &pool(1, ago(1)), now), "it has more even then");
        assert!(!makes_room(&pool(1, None), &pool(1, ago(900)), now), "as many as the other");
        assert!(
            !makes_room(&pool(2, None), &pool(1, ago(40)), now) && makes_room(&pool(2, None), &pool(1, ago(60)), now)
        );
        assert!(!makes_room(&pool(1, ago(90)), &pool(0, ago(100)), now), "about as long");
        assert!(
            makes_room(&pool(1, ago(50)), &pool(0, ago(100)), now) && !makes_room(&pool(9, None), &pool(0, None), now)
        );
        assert!(sits_first(&pool(0, ago(1)), &pool(1, ago(100))) && !sits_first(&pool(1, ago(100)), &pool(0, None)));
        assert!(sits_first(&pool(1, ago(2)), &pool(1, ago(1))) && !sits_first(&pool(1, ago(1)), &pool(1, ago(1))));
        assert!(sits_first(&pool(1, ago(1)), &pool(1, None)) && !sits_first(&pool(0, None), &pool(1, None)));
    }

    #[test]
    fn who_is_served_in_turn_does_not_wait_longer_and_longer() {
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |ms| now - Duration::from_millis(ms);
        // Said 4 ms ago of one who had waited 1 ms then.
        let since = |steady_for| {
            let waits = Waits { since: ago(5), steady_for: Duration::from_millis(steady_for) };
            waits.since(ago(4), now)
        };
        assert!(since(10) == ago(1) && !goes_away(since(10), Some(ago(1)), now));
        assert!(since(0) == ago(5) && goes_away(since(0), Some(ago(1)), now));
        assert_eq!(since(4), ago(5), "not repeated in time: who knows what has become of it");
    }

    #[test]
    fn the_older_goes_first_and_the_same_age_stays() {
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |ms| now - Duration::from_millis(ms);
        assert!(goes_away(ago(1), None, now));
        assert!(!goes_away(ago(2), Some(ago(1)), now));
        assert!(goes_away(ago(4), Some(ago(1)), now));
        assert!(!goes_away(ago(120), Some(ago(100)), now) && goes_away(ago(126), Some(ago(100)), now));
        assert!(!goes_away(ago(1), Some(ago(100)), now));
    }
}
