//! Reads a `.conv` file: what each client sends, what it then waits for, and what is expected to come.
//!
//! ```text
//! # A comment. $database stands for the database of the run, $user for the superuser.
//! not statement, smart-1: why   targets that it is not played in (see `Target::is`); or: only session: why
//! client A                      the lines that follow are A's; it is connected and logged in quietly when first named,
//!                               unless the first it sends is a packet without a tag
//! F Query "select 1"            a message to send; arguments are words, "strings" (\n \t \0 \" \\ \xNN, and
//!                               "x"*1000 for many, "a" + "b"), null and [lists]
//! repeat 3000 ... end           the F lines between, so often
//! split 1                       the next write goes out in pieces of so many bytes
//! send                          writes what was said since the last write, and does not wait
//! until ready [N]               writes, and waits for N (1) ReadyForQuery
//! until messages N              writes, and waits for N messages
//! until quiet | closed | byte   writes, and waits for 200 ms of silence, the end, or a byte that is no message
//! hang up                       closes the connection without a word
//! cancel                        asks, over a connection of its own, to cancel what this client is at
//! pause MS                      sleeps
//! B ReadyForQuery I             expected after the `until` above it
//! B@direct ... , B@qcp ...      expected in some targets only
//! ```
//!
//! The several `F` lines before a `send` or `until` go out in one write.

use super::messages::encode;

pub struct Script {
    /// Lines of the file, for rewriting it.
    pub lines: Vec<String>,
    pub steps: Vec<Step>,
    /// Words of targets that the script is not played in.
    pub excluded: Vec<String>,
    /// The one that it is played in, if it is one.
    pub only: Option<String>,
}

/// One act, and the line it stands on.
pub struct Step {
    pub line: usize,
    pub act: Act,
}

pub enum Act {
    Client(String),
    /// Bytes for the next write. `untagged`: it begins a connection, or is no message at all.
    Say {
        bytes: Vec<u8>,
        untagged: bool,
    },
    Split(usize),
    Send,
    Until {
        end: End,
        expected: Vec<Expected>,
    },
    HangUp,
    Cancel,
    Pause(u64),
}

/// When a client has heard enough.
#[derive(Clone, Copy)]
pub enum End {
    Ready(usize),
    Messages(usize),
    Quiet,
    Closed,
    Byte,
}

/// A line of the trace, in all targets or in those of one word.
pub struct Expected {
    pub target: Option<String>,
    pub text: String,
}

/// An argument of an `F` line.
#[derive(Clone, PartialEq, Debug)]
pub enum Argument {
    Word(String),
    Text(Vec<u8>),
    List(Vec<Argument>),
}

impl Script {
    /// `replace` puts names of the run in the place of `$names`.
    pub fn parse(text: &str, replace: impl Fn(&str) -> String) -> Result<Script, String> {
        let lines = text.lines().map(str::to_owned).collect();
        let mut script = Script { lines, steps: Vec::new(), excluded: Vec::new(), only: None };
        let mut repeated: Option<(usize, Vec<u8>)> = None;
        for (index, original) in text.lines().enumerate() {
            let wrong = |why: String| format!("line {}: {why}: {original}", index + 1);
            let line = original.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(expected) = parse_expected(line) {
                let last = script.steps.last_mut().map(|step| &mut step.act);
                let Some(Act::Until { expected: lines, .. }) = last else {
                    return Err(wrong("nothing is waited for here".to_owned()));
                };
                lines.push(expected);
                continue;
            }
            let arguments = parse_arguments(&replace(line)).map_err(&wrong)?;
            let words: Vec<&str> = arguments.iter().map(Argument::word).collect();
            let act = match words[..] {
                ["F", ..] => {
                    let (bytes, untagged) = encode(&arguments[1..]).map_err(wrong)?;
                    if let Some((_, block)) = &mut repeated {
                        block.extend_from_slice(&bytes);
                        continue;
                    }
                    Act::Say { bytes, untagged }
                }
                ["repeat", count] => {
                    repeated = Some((number(count).map_err(wrong)?, Vec::new()));
                    continue;
                }
                ["end"] => {
                    let Some((count, block)) = repeated.take() else {
                        return Err(wrong("no repeat to end".to_owned()));
                    };
                    Act::Say { bytes: block.repeat(count), untagged: false }
                }
                ["not", ..] => {
                    script.excluded.extend(target_words(line));
                    continue;
                }
                ["only", ..] => {
                    script.only = Some(target_words(line).remove(0));
                    continue;
                }
                ["client", name] => Act::Client(name.to_owned()),
                ["split", size] => Act::Split(number(size).map_err(wrong)?.max(1)),
                ["send"] => Act::Send,
                ["hang", "up"] => Act::HangUp,
                ["cancel"] => Act::Cancel,
                ["pause", milliseconds] => Act::Pause(number(milliseconds).map_err(wrong)? as u64),
                ["until", ref end @ ..] => Act::Until { end: parse_end(end).map_err(wrong)?, expected: Vec::new() },
                _ => return Err(wrong("unknown".to_owned())),
            };
            script.steps.push(Step { line: index, act });
        }
        if repeated.is_some() {
            return Err("a repeat without an end".to_owned());
        }
        Ok(script)
    }
}

impl Argument {
    /// The word it is; empty if it is none.
    pub fn word(&self) -> &str {
        match self {
            Argument::Word(word) => word,
            Argument::Text(_) | Argument::List(_) => "",
        }
    }
}

/// The targets that a line names between its first word and its colon.
fn target_words(line: &str) -> Vec<String> {
    let named = line.split_once(' ').map_or("", |(_, named)| named);
    let named = named.split_once(':').map_or(named, |(named, _)| named);
    named.split(',').map(|name| name.trim().to_owned()).collect()
}

fn parse_expected(line: &str) -> Option<Expected> {
    let (mark, text) = line.split_once(' ')?;
    let target = match mark.strip_prefix('B')? {
        "" => None,
        target => Some(target.strip_prefix('@')?.to_owned()),
    };
    Some(Expected { target, text: text.to_owned() })
}

fn parse_end(words: &[&str]) -> Result<End, String> {
    match words {
        ["ready"] => Ok(End::Ready(1)),
        ["ready", count] => Ok(End::Ready(number(count)?)),
        ["messages", count] => Ok(End::Messages(number(count)?)),
        ["quiet"] => Ok(End::Quiet),
        ["closed"] => Ok(End::Closed),
        ["byte"] => Ok(End::Byte),
        _ => Err("until what".to_owned()),
    }
}

pub fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}

fn parse_arguments(line: &str) -> Result<Vec<Argument>, String> {
    let characters: Vec<char> = line.chars().collect();
    let mut position = 0;
    let mut lists = vec![Vec::new()];
    while position < characters.len() {
        let argument = match characters[position] {
            space if space.is_whitespace() => {
                position += 1;
                continue;
            }
            '[' => {
                position += 1;
                lists.push(Vec::new());
                continue;
            }
            ']' => {
                position += 1;
                let list = lists.pop().ok_or("a ] too many")?;
                Argument::List(list)
            }
            '"' => parse_text(&characters, &mut position)?,
            _ => {
                let start = position;
                let ends = |character: &char| character.is_whitespace() || "[]\"".contains(*character);
                while characters.get(position).is_some_and(|character| !ends(character)) {
                    position += 1;
                }
                Argument::Word(characters[start..position].iter().collect())
            }
        };
        let list = lists.last_mut().ok_or("a ] too many")?;
        list.push(argument);
        if let [.., Argument::Text(_), Argument::Word(plus), Argument::Text(second)] = &mut list[..]
            && plus == "+"
        {
            let second = std::mem::take(second);
            list.truncate(list.len() - 2);
            let Some(Argument::Text(first)) = list.last_mut() else { unreachable!("matched above") };
            first.extend_from_slice(&second);
        }
    }
    match lists.pop() {
        Some(arguments) if lists.is_empty() => Ok(arguments),
        _ => Err("a ] is missing".to_owned()),
    }
}

/// A string from its opening quote on, with its `*N`.
fn parse_text(characters: &[char], position: &mut usize) -> Result<Argument, String> {
    let mut bytes = Vec::new();
    *position += 1;
    loop {
        let character = *characters.get(*position).ok_or("a quote is missing")?;
        *position += 1;
        match character {
            '"' => break,
            '\\' => {
                let escaped = *characters.get(*position).ok_or("a quote is missing")?;
                *position += 1;
                match escaped {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    '0' => bytes.push(0),
                    '"' => bytes.push(b'"'),
                    '\\' => bytes.push(b'\\'),
                    'x' => {
                        let digits: String = characters.iter().skip(*position).take(2).collect();
                        bytes.push(u8::from_str_radix(&digits, 16).map_err(|error| error.to_string())?);
                        *position += 2;
                    }
                    other => return Err(format!("unknown escape \\{other}")),
                }
            }
            plain => bytes.extend_from_slice(plain.to_string().as_bytes()),
        }
    }
    if characters.get(*position) == Some(&'*') {
        *position += 1;
        let digits: String = characters[*position..].iter().take_while(|digit| digit.is_ascii_digit()).collect();
        *position += digits.len();
        bytes = bytes.repeat(number(&digits)?);
    }
    Ok(Argument::Text(bytes))
}
