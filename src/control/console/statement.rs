//! What is said at the console, read: PgBouncer's commands, ours, and the few statements that drivers send of themselves.

use std::fmt;

use super::show::Show;
use crate::control::command::Act;

/// One statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// Rows; with the one thing that they are asked of, where something follows.
    Show(Show, Option<String>),
    /// A setting of a session, as a server would show it.
    ShowParameter(&'static str, &'static str),
    /// A setting of a session, which is taken and has no effect.
    SetParameter(String),
    /// Another value for a key of the configuration.
    Set {
        key: String,
        value: String,
    },
    Act(Act, Option<String>),
    /// One client, by the id that SHOW CLIENTS has.
    KillClient(u64),
    /// Until no backend is left that is to be replaced.
    WaitClose(Option<String>),
    Reload,
    /// Without waiting for transactions, or after them.
    Shutdown {
        now: bool,
    },
    /// BEGIN and its like: drivers open transactions of themselves. Nothing is in them.
    Begin,
    Commit,
    Rollback,
    /// RESET, DISCARD, DEALLOCATE and CLOSE: there is nothing that they could take away, but prepared statements.
    Forget(&'static str),
}

/// Why something is no statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StatementFault {
    /// Not a command of the console.
    Unknown(String),
    /// What PgBouncer has, and QCP has not; and why.
    Never(&'static str, &'static str),
    Unterminated,
    NotText,
}

impl fmt::Display for StatementFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatementFault::Unknown(text) => write!(f, "invalid command '{text}', use SHOW HELP;"),
            StatementFault::Never(what, why) => write!(f, "{what} is not supported: {why}"),
            StatementFault::Unterminated => f.write_str("a quote or a comment that does not end"),
            StatementFault::NotText => f.write_str("the command is not valid UTF-8"),
        }
    }
}

/// What a driver may ask or set as if there were a server, with what it is told.
pub const PARAMETERS: [(&str, &str); 9] = [
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
    ("extra_float_digits", "2"),
    ("application_name", ""),
    ("statement_timeout", "0"),
];

/// A piece of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    /// Bare; case does not matter where it is a keyword.
    Word(String),
    /// In double quotes: a name, never a keyword.
    Name(String),
    /// In single quotes.
    Text(String),
    Equals,
    Comma,
    Semicolon,
}

impl Token {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// As the name of something.
    fn name(&self) -> Option<&str> {
        match self {
            Token::Word(text) | Token::Name(text) | Token::Text(text) => Some(text),
            Token::Equals | Token::Comma | Token::Semicolon => None,
        }
    }
}

/// The statements of a text, in turn. What is between two semicolons and empty is none.
pub fn statements(text: &[u8]) -> Vec<Result<Statement, StatementFault>> {
    let Ok(text) = std::str::from_utf8(text) else { return vec![Err(StatementFault::NotText)] };
    let tokens = match tokens(text) {
        Ok(tokens) => tokens,
        Err(fault) => return vec![Err(fault)],
    };
    let parts = tokens.split(|token| *token == Token::Semicolon).filter(|tokens| !tokens.is_empty());
    parts.map(|tokens| statement(tokens, text)).collect()
}

fn statement(tokens: &[Token], text: &str) -> Result<Statement, StatementFault> {
    let unknown = || StatementFault::Unknown(text.trim().chars().take(200).collect());
    let Some((Token::Word(verb), rest)) = tokens.split_first() else { return Err(unknown()) };
    let verb = verb.to_ascii_lowercase();
    // At most one name behind the verb.
    let one = |rest: &[Token]| match rest {
        [] => Ok(None),
        [name] => name.name().map(|name| Some(name.to_owned())).ok_or_else(unknown),
        _ => Err(unknown()),
    };
    let act = Act::ALL.into_iter().find(|act| act.name() == verb);
    if let Some(act) = act {
        let database = one(rest)?;
        return match database {
            None if act.needs_database() && act != Act::Kill => Err(unknown()),
            database => Ok(Statement::Act(act, database)),
        };
    }
    match verb.as_str() {
        "show" => show(rest, unknown),
        "set" => set(rest, unknown),
        "kill_client" => match rest {
            [id] => {
                let id = id.name().and_then(|id| id.parse().ok()).ok_or_else(unknown)?;
                Ok(Statement::KillClient(id))
            }
            _ => Err(unknown()),
        },
        "wait_close" => Ok(Statement::WaitClose(one(rest)?)),
        "reload" if rest.is_empty() => Ok(Statement::Reload),
        "shutdown" | "quit" => match rest {
            [] => Ok(Statement::Shutdown { now: verb == "shutdown" }),
            [how] if how.is("wait_for_servers") => Ok(Statement::Shutdown { now: false }),
            [how] if how.is("wait_for_clients") => Err(StatementFault::Never(
                "SHUTDOWN WAIT_FOR_CLIENTS",
                "use SHUTDOWN WAIT_FOR_SERVERS, which lets transactions finish",
            )),
            _ => Err(unknown()),
        },
        "suspend" => Err(StatementFault::Never("SUSPEND", "use PAUSE")),
        "begin" | "start" => Ok(Statement::Begin),
        "commit" | "end" => Ok(Statement::Commit),
        "rollback" | "abort" => Ok(Statement::Rollback),
        "reset" => Ok(Statement::Forget("RESET")),
        "discard" => Ok(Statement::Forget("DISCARD ALL")),
        "deallocate" => Ok(Statement::Forget("DEALLOCATE")),
        "close" => Ok(Statement::Forget("CLOSE CURSOR")),
        _ => Err(unknown()),
    }
}

fn show(rest: &[Token], unknown: impl Fn() -> StatementFault) -> Result<Statement, StatementFault> {
    let Some((Token::Word(what), rest)) = rest.split_first() else {
        // PgBouncer explains itself when nothing follows.
        return if rest.is_empty() { Ok(Statement::Show(Show::Help, None)) } else { Err(unknown()) };
    };
    if what.eq_ignore_ascii_case("fds") {
        return Err(StatementFault::Never("SHOW FDS", "no descriptors are handed over at the console"));
    }
    if let Some(show) = Show::ALL.into_iter().find(|show| show.name().eq_ignore_ascii_case(what)) {
        return match rest {
            [] => Ok(Statement::Show(show, None)),
            [of] if show.takes_one() => Ok(Statement::Show(show, Some(of.name().ok_or_else(unknown)?.to_owned()))),
            _ => Err(unknown()),
        };
    }
    let words: Vec<&str> = std::iter::once(what.as_str()).chain(rest.iter().filter_map(Token::name)).collect();
    let spelled = words.join("_").to_ascii_lowercase();
    let spelled = match spelled.as_str() {
        "transaction_isolation_level" => "transaction_isolation",
        "time_zone" => "timezone",
        spelled => spelled,
    };
    if spelled == "server_version" {
        return Ok(Statement::ShowParameter("server_version", super::SERVER_VERSION));
    }
    let parameter = PARAMETERS.into_iter().find(|(name, _)| *name == spelled);
    parameter.map(|(name, value)| Statement::ShowParameter(name, value)).ok_or_else(unknown)
}

/// `SET key = value`, `SET key TO value`, `SET SESSION CHARACTERISTICS ..`, `SET TIME ZONE ..`, `SET NAMES ..`.
fn set(rest: &[Token], unknown: impl Fn() -> StatementFault) -> Result<Statement, StatementFault> {
    let rest = match rest.split_first() {
        Some((first, more)) if (first.is("session") || first.is("local")) && more.len() > 1 => more,
        _ => rest,
    };
    match rest {
        [first, ..] if ["characteristics", "transaction", "names", "time"].iter().any(|word| first.is(word)) => {
            Ok(Statement::SetParameter(first.name().unwrap_or_default().to_ascii_lowercase()))
        }
        [key, to, values @ ..] if (*to == Token::Equals || to.is("to")) && !values.is_empty() => {
            let key = key.name().ok_or_else(&unknown)?;
            if PARAMETERS.iter().any(|(name, _)| name.eq_ignore_ascii_case(key)) {
                return Ok(Statement::SetParameter(key.to_ascii_lowercase()));
            }
            match values {
                [value] => {
                    let value = value.name().ok_or_else(unknown)?.to_owned();
                    Ok(Statement::Set { key: key.to_owned(), value })
                }
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

/// The text in pieces, without its comments.
fn tokens(text: &str) -> Result<Vec<Token>, StatementFault> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        if rest.starts_with("--") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        if let Some(inside) = rest.strip_prefix("/*") {
            rest = inside.split_once("*/").ok_or(StatementFault::Unterminated)?.1;
            continue;
        }
        let mut single = |token, length| {
            tokens.push(token);
            &rest[length..]
        };
        rest = match first {
            '=' => single(Token::Equals, 1),
            ',' => single(Token::Comma, 1),
            ';' => single(Token::Semicolon, 1),
            '\'' | '"' => {
                let (inside, after) = quoted(&rest[1..], first).ok_or(StatementFault::Unterminated)?;
                tokens.push(if first == '"' { Token::Name(inside) } else { Token::Text(inside) });
                after
            }
            _ => {
                let ends = |character: char| character.is_whitespace() || "=,;'\"".contains(character);
                let end = rest.find(ends).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                &rest[end..]
            }
        };
    }
}

/// What is in quotes, and what is behind them. A quote written twice is one of the text.
fn quoted(rest: &str, quote: char) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut from = rest;
    loop {
        let (before, after) = from.split_once(quote)?;
        inside += before;
        match after.strip_prefix(quote) {
            Some(more) => {
                inside.push(quote);
                from = more;
            }
            None => return Some((inside, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Statement, StatementFault> {
        let mut all = statements(text.as_bytes());
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn pgbouncers_commands() {
        for show in Show::ALL {
            let text = format!("  sHoW {} ; ", show.name());
            assert_eq!(one(&text), Ok(Statement::Show(show, None)), "{text}");
        }
        assert_eq!(one("SHOW"), Ok(Statement::Show(Show::Help, None)));
        let db = Some("my db".to_owned());
        for act in Act::ALL {
            assert_eq!(one(&format!("{} \"my db\";", act.name())), Ok(Statement::Act(act, db.clone())));
        }
        assert_eq!(one("PAUSE"), Ok(Statement::Act(Act::Pause, None)));
        assert_eq!(one("KILL"), Ok(Statement::Act(Act::Kill, None)));
        assert!(one("DISABLE").is_err());
        assert_eq!(one("KILL_CLIENT 17"), Ok(Statement::KillClient(17)));
        assert_eq!(one("WAIT_CLOSE db"), Ok(Statement::WaitClose(Some("db".to_owned()))));
        assert_eq!(one("RELOAD"), Ok(Statement::Reload));
        assert_eq!(one("SHUTDOWN"), Ok(Statement::Shutdown { now: true }));
        assert_eq!(one("shutdown wait_for_servers"), Ok(Statement::Shutdown { now: false }));
        assert!(matches!(one("shutdown wait_for_clients"), Err(StatementFault::Never(..))));
        assert!(matches!(one("SUSPEND"), Err(StatementFault::Never(..))));
        assert!(matches!(one("SHOW FDS"), Err(StatementFault::Never(..))));
    }

    #[test]
    fn keys_are_set_in_pgbouncers_ways() {
        let set = |key: &str, value: &str| Ok(Statement::Set { key: key.to_owned(), value: value.to_owned() });
        assert_eq!(one("SET pool.size = 30"), set("pool.size", "30"));
        assert_eq!(one("set default_pool_size to '30';"), set("default_pool_size", "30"));
        assert_eq!(one("SET a.b='it''s'"), set("a.b", "it's"));
        for driver in [
            "SET extra_float_digits = 3",
            "SET client_encoding TO 'UTF8'",
            "set session characteristics as transaction isolation level read committed",
            "SET DateStyle TO ISO, MDY",
            "SET TIME ZONE 'UTC'",
        ] {
            assert!(matches!(one(driver), Ok(Statement::SetParameter(_))), "{driver}: {:?}", one(driver));
        }
        assert!(one("SET pool.size").is_err());
        assert!(one("SET = 3").is_err());
    }

    #[test]
    fn drivers_are_understood() {
        assert_eq!(one("BEGIN"), Ok(Statement::Begin));
        assert_eq!(one("START TRANSACTION READ ONLY"), Ok(Statement::Begin));
        assert_eq!(one("ROLLBACK"), Ok(Statement::Rollback));
        assert_eq!(
            one("show transaction isolation level"),
            Ok(Statement::ShowParameter("transaction_isolation", "read committed"))
        );
        assert!(matches!(one("SHOW server_version"), Ok(Statement::ShowParameter("server_version", _))));
        assert!(statements(b"").is_empty());
        assert!(statements(b";").is_empty());
        assert!(statements(b"-- ping").is_empty());
        assert_eq!(statements(b"/* a */ SHOW POOLS; show stats -- b\n;").len(), 2);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for text in
            ["SELECT 1", "SHOW NOTHING", "pause a b", "SHOW VERSION now", "'SHOW POOLS'", "\"show\" pools", "= ="]
        {
            assert!(matches!(one(text), Err(StatementFault::Unknown(_))), "{text}: {:?}", one(text));
        }
        assert_eq!(one("SHOW \"po"), Err(StatementFault::Unterminated));
        assert_eq!(one("/* SHOW"), Err(StatementFault::Unterminated));
        assert_eq!(statements(b"\xff"), [Err(StatementFault::NotText)]);
    }
}
