//! Runs one target: the corpus as it is, then mutations of it until the time is up.
//!
//! There is no coverage to steer by on a stable compiler, so the pool of inputs wanders: now and then a mutation takes
//! the place of an earlier one, and what is written by hand stays.

use crate::random::Random;
use qcp::protocol::properties::Property;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub struct Options {
    pub seconds: u64,
    /// Without one the clock gives it.
    pub seed: Option<u64>,
}

/// The target failed, and standard error says on what.
pub struct Failed;

const INPUT_SIZE_MAX: usize = 4096;
const WANDERERS_MAX: usize = 256;
/// Reading the clock costs more than most inputs do.
const INPUTS_PER_CLOCK: u64 = 256;

/// Where decoders tend to turn: ends of strings, marks of NULL, sizes at a limit, and what an input is made of.
const BYTES: &[u8] = b"\0\0\0\x01\x03\x04\x05\x08\x7f\x80\xff =-\\'\"$;SPQBDECXRZKTINVCMc";
const WORDS: &[u32] =
    &[0, 1, 3, 4, 5, 8, 9, 16, 264, 10_000, 10_004, 0x0003_0000, 0x0003_0002, 0x3fff_fffe, 0x7fff_ffff, u32::MAX];

pub fn run((name, target): Property, options: &Options) -> Result<(), Failed> {
    let seed = options.seed.unwrap_or_else(seed_of_the_clock);
    let mut random = Random(seed);
    let corpus = corpus(name);
    for input in &corpus {
        attempt(name, target, seed, input)?;
    }

    let deadline = Instant::now() + Duration::from_secs(options.seconds);
    let mut wanderers = vec![Vec::new()];
    let mut count = 0u64;
    while !count.is_multiple_of(INPUTS_PER_CLOCK) || Instant::now() < deadline {
        let from_corpus = !corpus.is_empty() && random.below(2) == 0;
        let pool = if from_corpus { &corpus } else { &wanderers };
        let mut input = random.one_of(pool).clone();
        for _ in 0..=random.below(4) {
            let other = random.one_of(pool.as_slice());
            mutate(&mut input, other, &mut random);
        }
        input.truncate(INPUT_SIZE_MAX);
        attempt(name, target, seed, &input)?;
        count += 1;
        if wanderers.len() < WANDERERS_MAX {
            wanderers.push(input);
        } else if random.below(64) == 0 {
            let index = random.below(WANDERERS_MAX);
            wanderers[index] = input;
        }
    }
    println!("{name}: {count} inputs, seed {seed}");
    Ok(())
}

fn seed_of_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(files) = fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.sort(); // one seed, one run
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below(input.len() - at + 1).min(random.below(16));
    match random.below(8) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => drop(input.splice(at..at, [*random.one_of(BYTES)])),
        3 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        4 => {
            let start = random.below(other.len() + 1);
            input.splice(at..end, other[start..].iter().copied());
        }
        5 => {
            let word = random.one_of(WORDS).to_be_bytes();
            let end = (at + word.len()).min(input.len());
            input.splice(at..end, word);
        }
        6 => input[at..end].fill(*random.one_of(BYTES)),
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

fn attempt(name: &str, target: fn(&[u8]), seed: u64, input: &[u8]) -> Result<(), Failed> {
    if survives(target, input) {
        return Ok(());
    }
    // The panic has been printed once; the smaller inputs would print it again.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let input = shrunk(target, input.to_vec());
    panic::set_hook(hook);

    let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    eprintln!("{name} FAILED, seed {seed}, {} bytes: {hex}", input.len());
    eprintln!("keep it: echo {hex} | xxd -r -p > tests/fuzz/corpus/{name}/NAME");
    Err(Failed)
}

fn survives(target: fn(&[u8]), input: &[u8]) -> bool {
    panic::catch_unwind(AssertUnwindSafe(|| target(input))).is_ok()
}

/// Takes away what is not needed to fail, larger pieces first.
fn shrunk(target: fn(&[u8]), mut input: Vec<u8>) -> Vec<u8> {
    let mut size = input.len();
    while size > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut smaller = input.clone();
            smaller.drain(at..(at + size).min(input.len()));
            if survives(target, &smaller) { at += size } else { input = smaller }
        }
        size /= 2;
    }
    input
}
