//! Code within a constant, as the body of a DO: which words that matter are there, wherever they stand. Quotes and comments are not
//! looked at, so that texts which the code runs by EXECUTE are found too.

use super::lexer::{Word, is_word, is_word_start};
use super::{COMPUTED, Effects, IDENTIFIER_SIZE_MAX, Names, is_lasting};

/// What code may change, beside what the server can be asked about; names of settings go to `names`.
pub(super) fn look_inside(code: &[u8], names: &mut Names) -> Effects {
    look_inside_until(code, code.len(), names)
}

/// The same, of words that begin before `end`.
pub(super) fn look_inside_until(code: &[u8], end: usize, names: &mut Names) -> Effects {
    let mut effects = Effects::NONE;
    let mut rest = code;
    while let Some(start) = rest.iter().position(|&byte| is_word_start(byte)) {
        if code.len() - rest.len() + start >= end {
            break;
        }
        let (word, behind) = split_word(&rest[start..]);
        rest = behind;
        let word = Word::new(word);
        effects = effects.and(match word.get() {
            b"set" => set(behind, names),
            b"set_config" => set_config(behind, names).and(Effects::RESETS),
            b"reset" | b"discard" => Effects::RESETS.and(Effects::ANY_SETTING),
            b"nextval" | b"setval" | b"insert" | b"merge" | b"copy" | b"default" => Effects::SEQUENCE,
            b"currval" | b"lastval" => Effects::LAST_VALUE,
            b"notify" | b"pg_notify" => Effects::NOTIFY,
            b"load" if behind.trim_ascii_start().starts_with(b"'") => Effects::LASTING,
            b"prepare" if prepares(behind) => Effects::LASTING,
            b"alter" | b"function" | b"procedure" | b"routine" | b"aggregate" | b"trigger" | b"extension" | b"rule"
            | b"policy" | b"view" | b"operator" | b"domain" | b"cast" | b"schema" => Effects::RELEARN,
            b"u" if behind.starts_with(b"&\"") => Effects::UNSEEN,
            name if is_lasting(name) => Effects::LASTING,
            _ => continue,
        });
    }
    effects
}

/// A word, and what is behind it.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&byte| !is_word(byte)).unwrap_or(text.len()))
}

/// Behind `prepare`: whether it is one of a statement, rather than a word of somebody's.
fn prepares(behind: &[u8]) -> bool {
    let (_, behind) = dotted(behind.trim_ascii_start());
    let behind = behind.trim_ascii_start();
    behind.starts_with(b"(") || split_word(behind).0.eq_ignore_ascii_case(b"as")
}

/// Behind `set`: only custom settings are of interest, all others are asked about. A name that is put together is not known.
fn set(behind: &[u8], names: &mut Names) -> Effects {
    let (mut name, mut after) = dotted(behind.trim_ascii_start());
    if name.eq_ignore_ascii_case(b"local") || name.eq_ignore_ascii_case(b"session") {
        (name, after) = dotted(after.trim_ascii_start());
    }
    // Put together with what follows, as in `'set ' || name`: not the last word of somebody's sentence.
    let goes_on = matches!(after, [] | [b'\'' | b'%' | b'|' | b'$', ..]);
    let apart = behind.first().is_none_or(u8::is_ascii_whitespace);
    let is_part = matches!(after, [b'%', ..]) || goes_on && (name.is_empty() && apart || name.ends_with(b"."));
    let name: Vec<u8> = name.iter().copied().filter(|&byte| byte != b'"').collect();
    if is_part || name.len() > IDENTIFIER_SIZE_MAX {
        COMPUTED
    } else if name.is_empty() || name.ends_with(b".") {
        Effects::NONE
    } else if name.contains(&b'.') || name.eq_ignore_ascii_case(b"seed") {
        names.add(&name)
    } else {
        Effects::NONE
    }
}

/// Parts of a name with dots between them, with their quotes, and what is behind them.
fn dotted(text: &[u8]) -> (&[u8], &[u8]) {
    let is_part = |byte: u8| is_word(byte) || matches!(byte, b'.' | b'"');
    text.split_at(text.iter().position(|&byte| !is_part(byte)).unwrap_or(text.len()))
}

/// Behind `set_config`: the name, where it is a constant.
fn set_config(behind: &[u8], names: &mut Names) -> Effects {
    let Some((b'(', arguments)) = behind.trim_ascii_start().split_first() else { return Effects::NONE };
    let arguments = arguments.trim_ascii_start();
    let quotes = arguments.iter().take_while(|&&byte| byte == b'\'').count();
    let (name, after) = dotted(&arguments[quotes..]);
    let after = after.strip_prefix(&arguments[..quotes]).map(<[u8]>::trim_ascii_start);
    match after {
        Some([b',', ..]) if quotes > 0 && !name.contains(&b'"') => names.add(name),
        _ => COMPUTED,
    }
}
