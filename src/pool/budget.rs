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

#[cfg(test)]
mod tests {
    use super::*;

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
