//! What may be asked of a running pooler. A command is the same thing as words (`show memory`), as JSON on the control
//! socket, and as a value here; `Display` and [`Command::parse`] are each other's inverse. What poolers say to each other
//! has no words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Drain and exit; `now` does not wait for transactions.
    Quit {
        now: bool,
    },
    Status,
    /// All that `top` shows.
    Top,
    /// Open the log file anew.
    Reopen,
    Show(Topic),
    /// Read the configuration again; `recycle` replaces backends too.
    Reload {
        recycle: bool,
    },
    /// Something that changes what goes on, for one database or for all.
    Order(Act, Option<String>),
    /// One key of the configuration, or all.
    Get(Option<String>),
    /// Another value for a key, until the next reload.
    Set {
        key: String,
        value: String,
    },
    /// Log in to the servers of a database; without a password, as QCP itself does it.
    CheckLogin {
        database: String,
        user: String,
        password: Option<Password>,
    },
    /// Start the program anew, to take over from this process.
    Upgrade,
    /// Of a starting pooler, which wants to take over: not a command but the beginning of a conversation (`process::takeover`).
    Takeover,
    /// Of a pooler that has taken over: a cancel request that may be for a client that is left here.
    Cancel {
        process_id: u32,
        key: Vec<u8>,
    },
}

/// A password on its way; no log shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    Pause,
    Resume,
    Drain,
    Kill,
    Disable,
    Enable,
    Reconnect,
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
    DatabaseMissing(Act),
    LoginMissing,
    ValueMissing,
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
            "top" => (Command::Top, rest),
            "reopen" => (Command::Reopen, rest),
            "upgrade" => (Command::Upgrade, rest),
            "show" => {
                let (topic, rest) = rest.split_first().ok_or(CommandFault::TopicMissing)?;
                (Command::Show(topic.parse()?), rest)
            }
            "reload" => match rest.split_first() {
                Some((word, rest)) if word.eq_ignore_ascii_case("--recycle") => {
                    (Command::Reload { recycle: true }, rest)
                }
                _ => (Command::Reload { recycle: false }, rest),
            },
            "get" => match rest.split_first() {
                Some((key, rest)) => (Command::Get(Some((*key).to_owned())), rest),
                None => (Command::Get(None), rest),
            },
            "check-login" => match rest {
                [database, user, rest @ ..] => {
                    let (database, user) = ((*database).to_owned(), (*user).to_owned());
                    (Command::CheckLogin { database, user, password: None }, rest)
                }
                _ => return Err(CommandFault::LoginMissing),
            },
            // `set key value`, `set key = value`, `set key=value`
            "set" => {
                let text = rest.join(" ");
                let split = text.split_once('=').or_else(|| text.split_once(' '));
                let (key, value) = split.ok_or(CommandFault::ValueMissing)?;
                let (key, value) = (key.trim().to_owned(), value.trim().trim_matches('\'').to_owned());
                if key.is_empty() || value.is_empty() {
                    return Err(CommandFault::ValueMissing);
                }
                (Command::Set { key, value }, &[][..])
            }
            word => {
                let act = Act::ALL.into_iter().find(|act| act.name() == word);
                let act = act.ok_or_else(|| CommandFault::Unknown(verb.to_string()))?;
                match rest.split_first() {
                    Some((database, rest)) => (Command::Order(act, Some((*database).to_owned())), rest),
                    None if act.needs_database() => return Err(CommandFault::DatabaseMissing(act)),
                    None => (Command::Order(act, None), rest),
                }
            }
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
            Command::Top => f.write_str("top"),
            Command::Reopen => f.write_str("reopen"),
            Command::Upgrade => f.write_str("upgrade"),
            Command::Show(topic) => write!(f, "show {}", topic.name()),
            Command::Reload { recycle: false } => f.write_str("reload"),
            Command::Reload { recycle: true } => f.write_str("reload --recycle"),
            Command::Order(act, None) => f.write_str(act.name()),
            Command::Order(act, Some(database)) => write!(f, "{} {database}", act.name()),
            Command::Get(None) => f.write_str("get"),
            Command::Get(Some(key)) => write!(f, "get {key}"),
            Command::Set { key, value } => write!(f, "set {key} {value}"),
            Command::CheckLogin { database, user, .. } => write!(f, "check-login {database} {user}"),
            Command::Takeover => f.write_str("takeover"),
            Command::Cancel { process_id, .. } => write!(f, "cancel {process_id}"),
        }
    }
}

impl Act {
    pub const ALL: [Act; 7] =
        [Act::Pause, Act::Resume, Act::Drain, Act::Kill, Act::Disable, Act::Enable, Act::Reconnect];

    pub fn name(self) -> &'static str {
        match self {
            Act::Pause => "pause",
            Act::Resume => "resume",
            Act::Drain => "drain",
            Act::Kill => "kill",
            Act::Disable => "disable",
            Act::Enable => "enable",
            Act::Reconnect => "reconnect",
        }
    }

    /// Too much to be meant for all of them by a word left out.
    pub fn needs_database(self) -> bool {
        matches!(self, Act::Kill | Act::Disable | Act::Enable | Act::Drain)
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
        const COMMANDS: &str = "quit [--now], status, top, reopen, upgrade, reload [--recycle], pause [DB], resume [DB], drain DB, \
                                kill DB, disable DB, enable DB, reconnect [DB], get [KEY], set KEY VALUE, check-login DB USER, show TOPIC";
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
            CommandFault::DatabaseMissing(act) => write!(f, "{} which database?", act.name()),
            CommandFault::LoginMissing => f.write_str("check the login at which database, and as which user?"),
            CommandFault::ValueMissing => f.write_str("set which key to what? for example: set pool.size 30"),
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
        others.into_iter().chain(shows).chain(changing()).collect()
    }

    fn changing() -> Vec<Command> {
        let named = Act::ALL.map(|act| Command::Order(act, Some("DB".to_owned())));
        let unnamed = Act::ALL.into_iter().filter(|act| !act.needs_database()).map(|act| Command::Order(act, None));
        let set = Command::Set { key: "POOL.SIZE".to_owned(), value: "3".to_owned() };
        let login = Command::CheckLogin { database: "DB".to_owned(), user: "JOE".to_owned(), password: None };
        let get = [
            Command::Get(None),
            Command::Get(Some("POOL.SIZE".to_owned())),
            set,
            login,
            Command::Top,
            Command::Upgrade,
        ];
        let reload = [Command::Reload { recycle: false }, Command::Reload { recycle: true }];
        reload.into_iter().chain(named).chain(unnamed).chain(get).collect()
    }

    #[test]
    fn words_and_back() {
        for command in all() {
            assert_eq!(parse(&command.to_string()), Ok(command.clone()));
            assert_eq!(parse(&command.to_string().to_uppercase()), Ok(command));
        }
        let set = Command::Set { key: "a.b".to_owned(), value: "1s".to_owned() };
        for line in ["set a.b 1s", "set a.b=1s", "set a.b = 1s", "SET a.b = '1s'"] {
            assert_eq!(parse(line), Ok(set.clone()), "{line}");
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
            r#"{"reload":{"recycle":false}}"#,
            r#"{"reload":{"recycle":true}}"#,
            r#"{"order":["pause","DB"]}"#,
        ];
        assert_eq!(&lines[..expected.len()], expected);
        assert!(lines.iter().any(|line| line == r#"{"set":{"key":"POOL.SIZE","value":"3"}}"#), "{lines:?}");
        let back: Vec<Command> = lines.iter().map(|line| serde_json::from_str(line).expect("written above")).collect();
        assert_eq!(back, all());
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let check = |line: &str, reason: &str| assert_eq!(parse(line), Err(reason.to_string()), "{line}");
        let allowed = "quit [--now], status, top, reopen, upgrade, reload [--recycle], pause [DB], resume [DB], drain DB, \
                       kill DB, disable DB, enable DB, reconnect [DB], get [KEY], set KEY VALUE, check-login DB USER, \
                       show TOPIC";
        check("", &format!("no command; allowed are: {allowed}"));
        check("stop", &format!("unknown command \"stop\"; allowed are: {allowed}"));
        check("kill", "kill which database?");
        check("pause a b", "pause a takes nothing more, found \"b\"");
        check("check-login db", "check the login at which database, and as which user?");
        check("set pool.size", "set which key to what? for example: set pool.size 30");
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
