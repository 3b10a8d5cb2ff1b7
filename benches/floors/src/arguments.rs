//! `--name value` pairs from the command line; a name may be given more than once.

use std::fmt::Debug;
use std::str::FromStr;

pub struct Arguments {
    words: Vec<String>,
}

impl Arguments {
    pub fn from_command_line() -> Arguments {
        Arguments { words: std::env::args().skip(1).collect() }
    }

    /// Each value given for `name`, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.words.iter().zip(self.words.iter().skip(1));
        pairs.filter(move |(word, _)| word.strip_prefix("--") == Some(name)).map(|(_, value)| value.as_str())
    }

    pub fn text<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).last()
    }

    /// # Panics
    /// If the value cannot be read as a `T`: a measurement with a misread argument is worse than none.
    pub fn value<T: FromStr<Err: Debug>>(&self, name: &str, default: T) -> T {
        match self.text(name) {
            None => default,
            Some(text) => match text.parse() {
                Ok(value) => value,
                Err(error) => panic!("--{name} {text}: {error:?}"),
            },
        }
    }

    /// # Panics
    /// If `name` was not given.
    pub fn required<T: FromStr<Err: Debug>>(&self, name: &str) -> T {
        let Some(text) = self.text(name) else { panic!("--{name} is missing") };
        text.parse().unwrap_or_else(|error| panic!("--{name} {text}: {error:?}"))
    }
}
