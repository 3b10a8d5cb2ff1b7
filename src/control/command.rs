//! What may be asked of a running pooler. A command is the same thing as words (`show memory`), as JSON on the control
//! socket, and as a value here; `Display` and [`Command::parse`] are each other's inverse.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Drain and exit; `now` does not wait for transactions.
    Quit {
        now: bool,
    },
    Status,
    /// Open the log file anew.
    Reopen,
    Show(Topic),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    Memory,
    Pools,
    Clients,
    Pins,
    /// Also by PgBouncer's word, servers.
    Backends,
    Shards,
    /// What pools have done, and how long it took.
    Stats,
    Errors,
}

/// Why words are not a command. Each says what would have been one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandFault {
    Missing,
    Unknown(String),
    TopicMissing,
    TopicUnknown(String),
    TooMuch { command: Command, word: String },
}

impl Command {
    /// Reads a command from its words. Case does not matter, so that `SHOW POOLS` works too.
    pub fn parse(words: &[&str]) -> Result<Command, CommandFault> {
        let Some((verb, rest)) = words.split_first() else {
            return Err(CommandFault::Missing);
        };
        let (command, rest) = match verb.to_ascii_lowercase().as_str() {
            "quit" => match rest.split_first() {
                Some((word, rest)) if word.eq_ignore_ascii_case("--now") => (Command::Quit { now: true }, rest),
                _ => (Command::Quit { now: false }, rest),
            },
            "status" => (Command::Status, rest),
            "reopen" => (Command::Reopen, rest),
            "show" => {
                let (topic, rest) = rest.split_first().ok_or(CommandFault::TopicMissing)?;
                (Command::Show(topic.parse()?), rest)
            }
            _ => return Err(CommandFault::Unknown(verb.to_string())),
        };
        match rest.first() {
            None => Ok(command),
            Some(word) => Err(CommandFault::TooMuch { command, word: word.to_string() }),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Quit { now: false } => f.write_str("quit"),
            Command::Quit { now: true } => f.write_str("quit --now"),
            Command::Status => f.write_str("status"),
            Command::Reopen => f.write_str("reopen"),
            Command::Show(topic) => write!(f, "show {}", topic.name()),
        }
    }
}

impl Topic {
    pub const ALL: [Topic; 8] = [
        Topic::Memory,
        Topic::Pools,
        Topic::Clients,
        Topic::Pins,
        Topic::Backends,
        Topic::Shards,
        Topic::Stats,
        Topic::Errors,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Topic::Memory => "memory",
            Topic::Pools => "pools",
            Topic::Clients => "clients",
            Topic::Pins => "pins",
            Topic::Backends => "backends",
            Topic::Shards => "shards",
            Topic::Stats => "stats",
            Topic::Errors => "errors",
        }
    }
}

impl FromStr for Topic {
    type Err = CommandFault;

    fn from_str(word: &str) -> Result<Topic, CommandFault> {
        if word.eq_ignore_ascii_case("servers") {
            return Ok(Topic::Backends);
        }
        let topic = Topic::ALL.into_iter().find(|topic| topic.name().eq_ignore_ascii_case(word));
        topic.ok_or_else(|| CommandFault::TopicUnknown(word.to_string()))
    }
}

impl fmt::Display for CommandFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COMMANDS: &str = "quit [--now], status, reopen, show TOPIC";
        let topics = Topic::ALL.map(Topic::name).join(", ");
        match self {
            CommandFault::Missing => write!(f, "no command; allowed are: {COMMANDS}"),
            CommandFault::Unknown(word) => write!(f, "unknown command {word:?}; allowed are: {COMMANDS}"),
            CommandFault::TopicMissing => write!(f, "show what? allowed are: {topics}"),
            CommandFault::TopicUnknown(word) => {
                write!(f, "nothing to show by the name {word:?}; allowed are: {topics}")
            }
            CommandFault::TooMuch { command: Command::Quit { now: false }, word } => {
                write!(f, "quit does not take {word:?}; allowed is: quit [--now]")
            }
            CommandFault::TooMuch { command, word } => write!(f, "{command} takes nothing more, found {word:?}"),
        }
    }
}

impl std::error::Error for CommandFault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Command::parse(&words).map_err(|fault| fault.to_string())
    }

    fn all() -> Vec<Command> {
        let shows = Topic::ALL.map(Command::Show);
        let others = [Command::Quit { now: false }, Command::Quit { now: true }, Command::Status, Command::Reopen];
        others.into_iter().chain(shows).collect()
    }

    #[test]
    fn words_and_back() {
        for command in all() {
            assert_eq!(parse(&command.to_string()), Ok(command));
            assert_eq!(parse(&command.to_string().to_uppercase()), Ok(command));
        }
    }

    #[test]
    fn pgbouncers_word_for_backends_is_known() {
        assert_eq!(parse("show servers"), Ok(Command::Show(Topic::Backends)));
    }

    #[test]
    fn json_and_back() {
        let lines: Vec<String> =
            all().iter().map(|command| serde_json::to_string(command).expect("plain data")).collect();
        let expected = [
            r#"{"quit":{"now":false}}"#,
            r#"{"quit":{"now":true}}"#,
            r#""status""#,
            r#""reopen""#,
            r#"{"show":"memory"}"#,
            r#"{"show":"pools"}"#,
            r#"{"show":"clients"}"#,
            r#"{"show":"pins"}"#,
            r#"{"show":"backends"}"#,
            r#"{"show":"shards"}"#,
            r#"{"show":"stats"}"#,
            r#"{"show":"errors"}"#,
        ];
        assert_eq!(lines, expected);
        let back: Vec<Command> = lines.iter().map(|line| serde_json::from_str(line).expect("written above")).collect();
        assert_eq!(back, all());
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let check = |line: &str, reason: &str| assert_eq!(parse(line), Err(reason.to_string()), "{line}");
        check("", "no command; allowed are: quit [--now], status, reopen, show TOPIC");
        check("stop", "unknown command \"stop\"; allowed are: quit [--now], status, reopen, show TOPIC");
        check("show", "show what? allowed are: memory, pools, clients, pins, backends, shards, stats, errors");
        check(
            "show tables",
            "nothing to show by the name \"tables\"; allowed are: memory, pools, clients, pins, backends, shards, stats, errors",
        );
        check("quit fast", "quit does not take \"fast\"; allowed is: quit [--now]");
        check("quit --now --now", "quit --now takes nothing more, found \"--now\"");
        check("status all", "status takes nothing more, found \"all\"");
        check("show pools a", "show pools takes nothing more, found \"a\"");
    }
}
