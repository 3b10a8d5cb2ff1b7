//! Which of several servers clients belong to: what each of them is known to be, and what they want. Pure: who finds out,
//! and when, is not asked here.
//!
//! Invariant: of several servers that call themselves the primary, one leads, the same one for all who know the same.

use std::time::{Duration, Instant};

use super::Schedule;

/// What a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Nobody has asked it yet, or it could not be reached since.
    #[default]
    Unknown,
    /// Takes writes.
    Primary,
    /// Is in recovery.
    Standby,
}

/// Which servers clients go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Route {
    /// The one that takes writes.
    Primary,
    /// Those in recovery.
    Standby,
    /// All of them.
    #[default]
    Any,
}

/// What is known of one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    role: Role,
    /// When it last said so.
    heard: Option<Instant>,
    /// Since when it is known as the primary, without a break.
    primary_since: Option<Instant>,
    /// When it was seen to become the primary.
    promoted: Option<Instant>,
    failures: u32,
    /// It could not be reached: it is left alone until then.
    down_until: Option<Instant>,
}

/// A server among those that clients may go to.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// What is known of it.
    pub standing: Standing,
    /// How many of the clients it is to have, compared with the others; 0: none while there are others.
    pub weight: u32,
    /// Clients that it has.
    pub load: u32,
}

/// What was said longer ago may not be so any more, where nobody keeps asking.
const FRESH_FOR: Duration = Duration::from_secs(1);

impl Standing {
    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it could not be reached when that was last tried.
    pub fn is_down(&self) -> bool {
        self.down_until.is_some()
    }

    /// When it was seen to become the primary, if it was.
    pub fn promoted(&self) -> Option<Instant> {
        self.promoted.filter(|_| self.role == Role::Primary)
    }

    /// Whether it may be tried: it is up, or it has been left alone for long enough.
    pub fn may_try(&self, now: Instant) -> bool {
        self.down_until.is_none_or(|until| now >= until)
    }

    /// It has said what it is; whether that is news. `promoted`: that others have seen it become the primary.
    pub fn hear(&mut self, role: Role, promoted: Option<Instant>, now: Instant) -> bool {
        let before = (self.role, self.is_down(), self.promoted);
        self.promoted = match role {
            Role::Standby => None,
            Role::Primary if self.role == Role::Standby => promoted.or(Some(now)),
            Role::Primary | Role::Unknown => self.promoted.max(promoted),
        };
        self.primary_since = if role == Role::Primary { self.primary_since.or(Some(now)) } else { None };
        self.role = role;
        self.heard = Some(now);
        self.reach();
        before != (self.role, self.is_down(), self.promoted)
    }

    /// It answers, whatever it is.
    pub fn reach(&mut self) {
        self.failures = 0;
        self.down_until = None;
    }

    /// It could not be reached; whether that is news. It is left alone for a pause that doubles from the first of
    /// `backoff` to the second; `jitter` is 0..=255.
    pub fn fail(&mut self, now: Instant, backoff: (Duration, Duration), jitter: u8) -> bool {
        let news = !self.is_down();
        // What fails together fails once.
        if self.may_try(now) {
            let doubled = backoff.0.saturating_mul(1 << self.failures.min(16)).min(backoff.1);
            self.failures = self.failures.saturating_add(1);
            self.down_until = Some(now + doubled * (3 * 255 + u32::from(jitter)) / (4 * 255));
        }
        // When it comes back it may be something else.
        self.role = Role::Unknown;
        self.primary_since = None;
        news
    }

    /// What it was may be otherwise by now: nobody keeps asking.
    fn is_stale(&self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.duration_since(heard) > FRESH_FOR)
    }
}

/// The primary, where there is one. Of several that say so, the one that was seen to become it last: another comes back
/// from before. Else the one that has been it longest.
pub fn leader(all: &[Standing]) -> Option<usize> {
    let primaries = all.iter().enumerate().filter(|(_, standing)| standing.role == Role::Primary);
    let precedence =
        |(at, standing): &(usize, &Standing)| (std::cmp::Reverse(standing.promoted), standing.primary_since, *at);
    primaries.min_by_key(precedence).map(|(at, _)| at)
}

/// How well a server suits, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fit {
    Right,
    /// May be right.
    Unknown,
    /// Cannot be reached, and may be right when it can.
    Down,
    Wrong,
}

fn fit(route: Route, all: &[Standing], at: usize) -> Fit {
    let standing = &all[at];
    let unknown = if standing.is_down() { Fit::Down } else { Fit::Unknown };
    match (route, standing.role) {
        (Route::Any, _) if standing.is_down() => Fit::Down,
        (Route::Any, _) | (Route::Standby, Role::Standby) => Fit::Right,
        (Route::Primary, Role::Primary) if leader(all) == Some(at) => Fit::Right,
        (Route::Primary, Role::Primary | Role::Standby) | (Route::Standby, Role::Primary) => Fit::Wrong,
        (Route::Primary | Route::Standby, Role::Unknown) => unknown,
    }
}

/// Whether clients who are at a server may stay: nothing better is known, and it is not what they must not have.
pub fn may_stay(route: Route, all: &[Standing], at: usize) -> bool {
    let own = fit(route, all, at);
    own != Fit::Wrong && (0..all.len()).all(|other| fit(route, all, other) >= own)
}

/// Whether the clients of a server that leads no more are cut off in the midst of what they do: somebody has taken its
/// place, so what they write now would be lost.
pub fn is_superseded(route: Route, all: &[Standing], at: usize) -> bool {
    let leader = leader(all).filter(|&leader| leader != at);
    route == Route::Primary && all[at].role != Role::Standby && leader.is_some_and(|at| all[at].promoted().is_some())
}

/// The server for a client that comes, of one or more. `turn` and `random` are for those schedules.
pub fn choose(
    route: Route,
    schedule: Schedule,
    candidates: &[Candidate],
    (turn, random): (usize, u64),
    now: Instant,
) -> usize {
    let all: Vec<Standing> = candidates.iter().map(|candidate| candidate.standing).collect();
    let rank = |at: usize| {
        let standing = &all[at];
        match fit(route, &all, at) {
            Fit::Right => 0,
            Fit::Unknown => 1,
            // Nobody asks it what it is, so a login has to.
            Fit::Wrong if standing.is_stale(now) && standing.role == Role::Standby => 2,
            Fit::Down if standing.may_try(now) => 3,
            Fit::Down => 4,
            Fit::Wrong => 5,
        }
    };
    let best = (0..all.len()).map(rank).min().unwrap_or_default();
    let mut suitable: Vec<usize> = (0..all.len()).filter(|&at| rank(at) == best).collect();
    let weight = |at: &usize| u64::from(candidates[*at].weight);
    let total: u64 = suitable.iter().map(weight).sum();
    if total > 0 {
        suitable.retain(|at| weight(at) > 0);
    }
    // Without weights all are alike.
    let weight = |at: &usize| if total > 0 { weight(at) } else { 1 };
    let total: u64 = suitable.iter().map(weight).sum();
    let at_ticket = |mut ticket: u64| {
        suitable.iter().copied().find(|at| {
            let is_it = ticket < weight(at);
            ticket = ticket.saturating_sub(weight(at));
            is_it
        })
    };
    let chosen = match schedule {
        Schedule::RoundRobin => at_ticket(spread(turn as u64 % total.max(1), total)),
        Schedule::Random => at_ticket(random % total.max(1)),
        Schedule::LoadBalancing => {
            // Clients for each unit of weight, compared without dividing.
            let load = |at: &usize| u64::from(candidates[*at].load);
            suitable.iter().copied().min_by(|a, b| (load(a) * weight(b)).cmp(&(load(b) * weight(a))))
        }
    };
    chosen.unwrap_or_default()
}

/// The tickets 0, 1, 2 .. of a round in an order that spreads neighbours: with weights 3 and 1 not three in a row go to the
/// first. A step that has no divisor in common with the round visits each once.
fn spread(ticket: u64, round: u64) -> u64 {
    fn divisor(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { divisor(b, a % b) }
    }
    let step = (round / 2..round).find(|&step| step > 0 && divisor(step, round) == 1).unwrap_or(1);
    if round == 0 { 0 } else { ticket * step % round }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

    fn heard(role: Role, now: Instant) -> Standing {
        let mut standing = Standing::default();
        standing.hear(role, None, now);
        standing
    }

    fn down(now: Instant) -> Standing {
        let mut standing = Standing::default();
        standing.fail(now, BACKOFF, 255);
        standing
    }

    fn chosen(route: Route, all: &[Standing], now: Instant) -> usize {
        let of = |&standing: &Standing| Candidate { standing, weight: 1, load: 0 };
        let candidates: Vec<Candidate> = all.iter().map(of).collect();
        choose(route, Schedule::LoadBalancing, &candidates, (0, 0), now)
    }

    /// The whole table of two servers: for each route, whether the clients of the first may stay, and where one goes who comes.
    #[test]
    fn who_stays_and_who_goes_where() {
        let now = Instant::now();
        let kinds = [
            ("primary", heard(Role::Primary, now)),
            ("standby", heard(Role::Standby, now)),
            ("unknown", Standing::default()),
            ("down", down(now)),
        ];
        let mut table = String::new();
        for (own_name, own) in kinds {
            for (other_name, other) in kinds {
                let of = |route| {
                    let all = [own, other];
                    let stays = if may_stay(route, &all, 0) { "stays" } else { "leaves" };
                    format!("{stays} {}", chosen(route, &all, now))
                };
                let (primary, standby, any) = (of(Route::Primary), of(Route::Standby), of(Route::Any));
                table += &format!("{own_name} {other_name}: {primary}, {standby}, {any}\n");
            }
        }
        let expected = "\
primary primary: stays 0, leaves 0, stays 0
primary standby: stays 0, leaves 1, stays 0
primary unknown: stays 0, leaves 1, stays 0
primary down: stays 0, leaves 1, stays 0
standby primary: leaves 1, stays 0, stays 0
standby standby: leaves 0, stays 0, stays 0
standby unknown: leaves 1, stays 0, stays 0
standby down: leaves 1, stays 0, stays 0
unknown primary: leaves 1, stays 0, stays 0
unknown standby: stays 0, leaves 1, stays 0
unknown unknown: stays 0, stays 0, stays 0
unknown down: stays 0, stays 0, stays 0
down primary: leaves 1, stays 0, leaves 1
down standby: stays 0, leaves 1, leaves 1
down unknown: leaves 1, leaves 1, leaves 1
down down: stays 0, stays 0, stays 0
";
        assert_eq!(table, expected);
    }

    #[test]
    fn who_was_seen_to_be_promoted_leads() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut old = heard(Role::Primary, start);
        let mut new = heard(Role::Standby, start);
        assert!(new.hear(Role::Primary, None, after(1)));
        assert_eq!(new.promoted(), Some(after(1)));
        assert_eq!(leader(&[old, new]), Some(1));
        assert!(is_superseded(Route::Primary, &[old, new], 0) && !is_superseded(Route::Primary, &[old, new], 1));
        assert!(!is_superseded(Route::Any, &[old, new], 0) && !may_stay(Route::Primary, &[old, new], 0));
        // It comes back from before, and says what it said.
        old.fail(after(2), BACKOFF, 0);
        assert!(old.hear(Role::Primary, None, after(3)));
        assert_eq!((leader(&[old, new]), chosen(Route::Primary, &[old, new], after(3))), (Some(1), 1));
        // As a standby it is one like any other.
        old.hear(Role::Standby, None, after(4));
        assert!(!is_superseded(Route::Primary, &[old, new], 0));
        // The new one was away for a moment, and nobody else has been promoted since.
        new.fail(after(5), BACKOFF, 0);
        assert_eq!(new.promoted(), None);
        new.hear(Role::Primary, None, after(6));
        assert_eq!(new.promoted(), Some(after(1)));
        // Of two that nobody has seen change, the one that was there first.
        let (first, second) = (heard(Role::Primary, start), heard(Role::Primary, after(1)));
        assert_eq!((leader(&[second, first]), leader(&[first, second])), (Some(1), Some(0)));
        assert!(!is_superseded(Route::Primary, &[second, first], 0), "nobody knows which of them is right");
    }

    #[test]
    fn who_is_down_is_left_alone_for_longer_and_longer() {
        let mut now = Instant::now();
        let mut standing = heard(Role::Primary, now);
        assert!(standing.fail(now, BACKOFF, 255) && standing.role() == Role::Unknown);
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert!(!standing.fail(now, BACKOFF, 255), "that failed with it");
            assert!(!standing.may_try(now + Duration::from_millis(pause - 1)));
            now += Duration::from_millis(pause);
            assert!(standing.may_try(now) && standing.is_down());
            standing.fail(now, BACKOFF, 255);
        }
        assert!(standing.hear(Role::Standby, None, now) && !standing.is_down());
        assert!(!standing.hear(Role::Standby, None, now), "no news");
    }

    #[test]
    fn a_login_asks_whom_nobody_asks() {
        let now = Instant::now();
        let later = now + FRESH_FOR + Duration::from_millis(1);
        let all = [down(now), heard(Role::Standby, now)];
        assert_eq!(chosen(Route::Primary, &all, now), 0, "it has just said that it is a standby");
        assert_eq!(chosen(Route::Primary, &all, later), 1, "it may have been promoted");
        assert!(!may_stay(Route::Primary, &all, 1), "but nobody is kept there");
        let all = [heard(Role::Standby, now), Standing::default()];
        assert_eq!(chosen(Route::Primary, &all, later), 1);
    }

    #[test]
    fn weights_are_kept() {
        let now = Instant::now();
        let candidate = |weight, load| Candidate { standing: heard(Role::Primary, now), weight, load };
        let counts = |schedule, candidates: &[Candidate]| {
            let mut counts = vec![0; candidates.len()];
            for turn in 0..1200 {
                // Any odd multiplier visits all remainders.
                let random = (turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                counts[choose(Route::Any, schedule, candidates, (turn, random), now)] += 1;
            }
            counts
        };
        let three = [candidate(3, 0), candidate(2, 0), candidate(1, 0)];
        assert_eq!(counts(Schedule::RoundRobin, &three), [600, 400, 200]);
        let random = counts(Schedule::Random, &three);
        assert!(
            random.iter().zip([600, 400, 200]).all(|(count, due): (&i32, i32)| (count - due).abs() < 60),
            "{random:?}"
        );
        let idle = [candidate(1, 0), candidate(0, 0)];
        assert_eq!(counts(Schedule::RoundRobin, &idle), [1200, 0]);
        assert_eq!(counts(Schedule::RoundRobin, &[candidate(0, 0), candidate(0, 0)]), [600, 600]);
        let loaded = [candidate(2, 10), candidate(1, 4)];
        assert_eq!(choose(Route::Any, Schedule::LoadBalancing, &loaded, (0, 0), now), 1);
        let loaded = [candidate(2, 7), candidate(1, 4)];
        assert_eq!(choose(Route::Any, Schedule::LoadBalancing, &loaded, (0, 0), now), 0);
        let turns: Vec<usize> = (0..8)
            .map(|turn| choose(Route::Any, Schedule::RoundRobin, &[candidate(1, 0); 4], (turn, 0), now))
            .collect();
        let mut once = turns[..4].to_vec();
        once.sort_unstable();
        assert_eq!((once, &turns[..4]), (vec![0, 1, 2, 3], &turns[4..]));
    }
}
