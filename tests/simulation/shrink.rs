//! What is kept of a seed: some dials turned down, some actions left out, so that a failure can be read. All that may be
//! left out is data, and what is left is the same at each run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use super::dials::Dials;
use super::world;

/// `pool_size=1,deaths=0,c3=1.4.9`: dials by name, and the numbers of the actions of a client (`c3=` takes none).
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Keep {
    dials: BTreeMap<String, u64>,
    actions: BTreeMap<u32, Vec<u32>>,
}

impl Keep {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keep = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || format!("KEEP has name=number or cN=number.number, not {part}");
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            if let Some(client) = name.strip_prefix('c').and_then(|number| number.parse().ok()) {
                let numbers: Result<Vec<u32>, _> =
                    value.split('.').filter(|number| !number.is_empty()).map(str::parse).collect();
                keep.actions.insert(client, numbers.map_err(|_| wrong())?);
                continue;
            }
            if !Dials::REDUCIBLE.iter().any(|(known, _)| *known == name) {
                return Err(format!("there is no dial {name} to turn down"));
            }
            keep.dials.insert(name.to_owned(), value.parse().map_err(|_| wrong())?);
        }
        Ok(keep)
    }

    pub fn turn(&self, dials: &mut Dials) {
        for (name, value) in &self.dials {
            dials.set(name, *value);
        }
    }

    pub fn actions_of(&self, client: u32, count: usize) -> Vec<u32> {
        self.actions.get(&client).cloned().unwrap_or_else(|| (0..count as u32).collect())
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dials = self.dials.iter().map(|(name, value)| format!("{name}={value}"));
        let actions = self.actions.iter().map(|(client, numbers)| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            format!("c{client}={}", numbers.join("."))
        });
        formatter.write_str(&dials.chain(actions).collect::<Vec<_>>().join(","))
    }
}

thread_local! {
    /// Where the last panic of this thread was: which oracle it is that found something.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics quiet and remembers where they were.
pub fn listen() {
    std::panic::set_hook(Box::new(|cause| {
        let place = cause.location().map(|place| format!("{}:{}", place.file(), place.line()));
        PLACE.with_borrow_mut(|kept| *kept = place.unwrap_or_default());
    }));
}

/// Which oracle a seed fails by, if it fails. [`listen`] has been called.
pub fn oracle(seed: u64, keep: &Keep) -> Option<String> {
    let (_, result) = world::run(seed, keep, false);
    result.is_err().then(|| PLACE.with_borrow(Clone::clone))
}

/// The least that still fails by the same oracle, as far as it is found until then.
pub fn shrink(seed: u64, first: &Keep, until: Instant) -> Keep {
    let Some(wanted) = oracle(seed, first) else { return first.clone() };
    let mut kept = first.clone();
    let try_one = |kept: &mut Keep, smaller: Keep| {
        let better = smaller != *kept && Instant::now() < until && oracle(seed, &smaller).as_ref() == Some(&wanted);
        if better {
            *kept = smaller;
        }
        better
    };
    loop {
        let before = kept.clone();
        let dials = world::World::new(seed, &kept, false).dials;
        for (name, least) in Dials::REDUCIBLE {
            let now = dials.get(name);
            // All the way first; then half the way, which the next round halves again.
            for value in [*least, least + now.saturating_sub(*least) / 2] {
                let mut smaller = kept.clone();
                smaller.dials.insert((*name).to_owned(), value);
                if value < now && try_one(&mut kept, smaller) {
                    break;
                }
            }
        }
        let dials = world::World::new(seed, &kept, false).dials;
        for client in 0..dials.clients as u32 {
            // Runs of actions, from all of them down to single ones.
            let mut size = kept.actions_of(client, dials.actions).len();
            while size > 0 {
                let mut at = 0;
                loop {
                    let mut numbers = kept.actions_of(client, dials.actions);
                    if at >= numbers.len() {
                        break;
                    }
                    numbers.drain(at..numbers.len().min(at + size));
                    let mut smaller = kept.clone();
                    smaller.actions.insert(client, numbers);
                    if !try_one(&mut kept, smaller) {
                        at += size;
                    }
                }
                size /= 2;
            }
        }
        if kept == before || Instant::now() >= until {
            return kept;
        }
    }
}

#[test]
fn what_is_kept_is_read_as_written() {
    for text in ["", "deaths=0", "clients=3,pool_size=1,c0=,c2=1.4.9"] {
        assert_eq!(Keep::parse(text).unwrap().to_string(), text);
    }
    for text in ["deaths", "nothing=1", "deaths=x", "c1=a"] {
        assert!(Keep::parse(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_kept_runs_the_same_again() {
    let keep = Keep::parse("clients=3,deaths=0,c1=2.5").unwrap();
    let run = || {
        let (world, result) = world::run(7, &keep, false);
        (world.steps, world.requests, result)
    };
    let first = run();
    assert_eq!(first, run());
    assert_ne!(first.0, world::run(7, &Keep::default(), false).0.steps);
}
