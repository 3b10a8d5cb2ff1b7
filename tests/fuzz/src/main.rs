//! Throws mutated inputs at what reads foreign bytes. `scripts/fuzz` runs it.
//!
//! A target is a function that lies next to the code it attacks and panics where a property fails; a layer lists its
//! targets in `properties::ALL`. `corpus/<target>/` holds what to begin with, and every input that once failed.

mod driver;
mod random;

use driver::Options;
use qcp::auth;
use qcp::import;
use qcp::protocol::properties::{self, Property};
use std::process::ExitCode;

const USAGE: &str = "usage: fuzz [--seconds N] [--seed S] [--list] [TARGET]...";

fn targets() -> Vec<Property> {
    let layers = [properties::ALL, auth::properties::ALL, import::properties::ALL];
    layers.iter().flat_map(|layer| layer.iter().copied()).collect()
}

fn main() -> ExitCode {
    let mut options = Options { seconds: 2, seed: None };
    let mut chosen: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--list" => {
                targets().iter().for_each(|(name, _)| println!("{name}"));
                return ExitCode::SUCCESS;
            }
            "--seconds" => match number() {
                Some(seconds) => options.seconds = seconds,
                None => return usage(),
            },
            "--seed" => match number() {
                Some(seed) => options.seed = Some(seed),
                None => return usage(),
            },
            name if targets().iter().any(|(known, _)| *known == name) => chosen.push(argument),
            _ => return usage(),
        }
    }

    let mut failed = false;
    for target in targets() {
        if chosen.is_empty() || chosen.iter().any(|name| name == target.0) {
            failed |= driver::run(target, &options).is_err();
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
