//! Lines, fields and tokens, as both files have them; `include` and `@file`.

use std::path::{Path, PathBuf};

use super::{Broken, Files};

/// PostgreSQL's own bound on files that include files.
const DEPTH_MAX: usize = 10;
const FILE_SIZE_MAX: usize = 4 << 20;
/// Lines and tokens of all files together; `@file` can name a long list many times.
const TOKENS_MAX: usize = 1 << 20;

/// A word, and whether it stood in quotes, where keywords lose their meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub text: String,
    pub quoted: bool,
}

impl Token {
    pub(super) fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// A line that says something: its fields, each a list of tokens.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub file: PathBuf,
    pub number: usize,
    pub fields: Vec<Vec<Token>>,
}

impl Line {
    pub(super) fn broken(&self, what: impl Into<String>) -> Broken {
        Broken { file: self.file.clone(), line: self.number, what: what.into() }
    }
}

/// Reads a file with all that it includes.
pub(super) fn lines(path: &Path, files: &dyn Files) -> Result<Vec<Line>, Broken> {
    let mut reader = Reader { files, tokens: 0 };
    let mut lines = Vec::new();
    reader.file(path, 0, &mut lines)?;
    Ok(lines)
}

struct Reader<'a> {
    files: &'a dyn Files,
    tokens: usize,
}

impl Reader<'_> {
    fn text(&self, path: &Path) -> Result<String, std::io::Error> {
        let text = self.files.read(path)?;
        if text.len() > FILE_SIZE_MAX {
            return Err(std::io::Error::other("it is larger than 4 MB"));
        }
        Ok(text)
    }

    fn file(&mut self, path: &Path, depth: usize, into: &mut Vec<Line>) -> Result<(), Broken> {
        let text = self.text(path);
        let text = text.map_err(|error| Broken { file: path.to_owned(), line: 0, what: error.to_string() })?;
        self.lines_of(path, &text, depth, into)
    }

    fn lines_of(&mut self, path: &Path, text: &str, depth: usize, into: &mut Vec<Line>) -> Result<(), Broken> {
        for (number, joined) in joined_lines(text) {
            let mut line = Line { file: path.to_owned(), number, fields: Vec::new() };
            let mut rest = &joined[..];
            while let Some(field) = self.field(&line, &mut rest, depth)? {
                line.fields.push(field);
            }
            if line.fields.is_empty() {
                continue;
            }
            let keyword = line.fields[0].first().filter(|token| !token.quoted).map(|token| token.text.clone());
            match keyword.as_deref() {
                Some(keyword @ ("include" | "include_if_exists" | "include_dir")) => {
                    self.include(keyword, &line, depth, into)?;
                }
                _ => into.push(line),
            }
        }
        Ok(())
    }

    fn include(&mut self, keyword: &str, line: &Line, depth: usize, into: &mut Vec<Line>) -> Result<(), Broken> {
        let [_, field] = &line.fields[..] else { return Err(line.broken(format!("{keyword} takes one file"))) };
        let [named] = &field[..] else { return Err(line.broken(format!("{keyword} takes one file"))) };
        if depth >= DEPTH_MAX {
            return Err(line.broken("files include one another more than 10 deep"));
        }
        let path = beside(&line.file, &named.text);
        let unreadable = |error: std::io::Error| line.broken(format!("{}: {error}", path.display()));
        match keyword {
            "include_dir" => {
                // As PostgreSQL: what ends in .conf and does not begin with a dot, in the order of names.
                let mut listed = self.files.list(&path).map_err(unreadable)?;
                listed.retain(|file| {
                    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    name.ends_with(".conf") && !name.starts_with('.')
                });
                listed.sort();
                listed.iter().try_for_each(|file| self.file(file, depth + 1, into))
            }
            _ => match self.text(&path) {
                Ok(text) => self.lines_of(&path, &text, depth + 1, into),
                Err(error) if keyword == "include_if_exists" && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(unreadable(error)),
            },
        }
    }

    /// The next field: tokens with commas between them. `None`: the line is over.
    fn field(&mut self, line: &Line, rest: &mut &str, depth: usize) -> Result<Option<Vec<Token>>, Broken> {
        let mut tokens = Vec::new();
        loop {
            let (token, comma) = match token(rest) {
                Ok(Some(found)) => found,
                Ok(None) if tokens.is_empty() => return Ok(None),
                Ok(None) => break,
                Err(what) => return Err(line.broken(what)),
            };
            self.tokens += 1;
            if self.tokens > TOKENS_MAX {
                return Err(line.broken("there are more than a million words"));
            }
            match token.text.strip_prefix('@').filter(|name| !name.is_empty() && !token.quoted) {
                Some(name) => self.list(line, name, depth, &mut tokens)?,
                None => tokens.push(token),
            }
            if !comma {
                break;
            }
        }
        Ok(Some(tokens))
    }

    /// `@file`: all tokens of all its lines.
    fn list(&mut self, line: &Line, name: &str, depth: usize, into: &mut Vec<Token>) -> Result<(), Broken> {
        if depth >= DEPTH_MAX {
            return Err(line.broken("files include one another more than 10 deep"));
        }
        let path = beside(&line.file, name);
        let text = self.text(&path).map_err(|error| line.broken(format!("{}: {error}", path.display())))?;
        let mut lines = Vec::new();
        self.lines_of(&path, &text, depth + 1, &mut lines)?;
        into.extend(lines.into_iter().flat_map(|line| line.fields).flatten());
        Ok(())
    }
}

/// A file named in another: relative to the folder of that one.
fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
}

/// Lines with their numbers; a backslash at the end joins a line with the next.
fn joined_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut lines = text.lines().enumerate();
    std::iter::from_fn(move || {
        let (index, first) = lines.next()?;
        let mut joined = first.to_owned();
        while joined.ends_with('\\') {
            joined.pop();
            match lines.next() {
                Some((_, next)) => joined.push_str(next),
                None => break,
            }
        }
        Some((index + 1, joined))
    })
}

/// The next token, and whether a comma follows it.
fn token(rest: &mut &str) -> Result<Option<(Token, bool)>, &'static str> {
    let start = rest.trim_start_matches([' ', '\t', '\r', '\n', ',']);
    let mut token = Token { text: String::new(), quoted: false };
    let (mut in_quotes, mut was_quoted) = (false, false);
    let mut comma = false;
    let mut end = start.len();
    for (at, character) in start.char_indices() {
        let after_quote = std::mem::take(&mut was_quoted);
        match character {
            // The rest of the line is a comment.
            '#' if !in_quotes => break,
            ',' | ' ' | '\t' | '\r' | '\n' if !in_quotes => {
                comma = character == ',';
                end = at + 1;
                break;
            }
            '"' => {
                in_quotes = !in_quotes;
                // A doubled quote within quotes is a quote.
                if in_quotes && after_quote {
                    token.text.push('"');
                }
                was_quoted = !in_quotes;
                token.quoted |= at == 0;
            }
            _ => token.text.push(character),
        }
    }
    if in_quotes {
        return Err("a double quote is not closed");
    }
    *rest = &start[end..];
    let is_there = !token.text.is_empty() || token.quoted;
    Ok(is_there.then_some((token, comma)))
}
