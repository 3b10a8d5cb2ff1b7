//! What a text says of channels: its LISTEN and UNLISTEN statements.

use super::lexer::{Kind, Lexer};

/// Bytes of an identifier that the server looks at.
const NAME_SIZE_MAX: usize = 63;

/// One statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// LISTEN of this channel.
    Listen(Box<[u8]>),
    /// UNLISTEN of it.
    Unlisten(Box<[u8]>),
    /// UNLISTEN of all.
    UnlistenAll,
}

/// The statements of `text` that say so, in their order. `None`: it cannot be read.
pub fn channels(text: &[u8], backslashes: bool) -> Option<Vec<Said>> {
    let mut lexer = Lexer { text, at: 0, backslashes };
    let mut said = Vec::new();
    let mut begins = true;
    loop {
        let token = lexer.next();
        let bytes = &text[token.start..token.end];
        let says = |word: &str| bytes.eq_ignore_ascii_case(word.as_bytes());
        match token.kind {
            Kind::End => return Some(said),
            Kind::Unreadable => return None,
            Kind::Word if begins && (says("listen") || says("unlisten")) => {
                let listens = says("listen");
                let name = lexer.next();
                let name = match (name.kind, &text[name.start..name.end]) {
                    (Kind::Word, name) => Some(name.to_ascii_lowercase()),
                    (Kind::Quoted, name) => Some(unquoted(name)),
                    (Kind::Mark(b'*'), _) if !listens => None,
                    _ => return None,
                };
                let end = lexer.next().kind;
                if !matches!(end, Kind::End | Kind::Mark(b';')) {
                    return None;
                }
                let name = name.map(|name| Box::from(cut(&name)));
                said.push(match (listens, name) {
                    (true, Some(name)) => Said::Listen(name),
                    (false, Some(name)) => Said::Unlisten(name),
                    (_, None) => Said::UnlistenAll,
                });
                if end == Kind::End {
                    return Some(said);
                }
            }
            kind => begins = kind == Kind::Mark(b';'),
        }
    }
}

/// A quoted name without its quotes.
fn unquoted(name: &[u8]) -> Vec<u8> {
    let inner = name.get(1..name.len().saturating_sub(1)).unwrap_or_default();
    let mut plain = Vec::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        plain.push(inner[at]);
        at += if inner[at] == b'"' { 2 } else { 1 };
    }
    plain
}

/// "The system uses no more than NAMEDATALEN-1 bytes of an identifier" (Lexical Structure), and no part of a character.
fn cut(name: &[u8]) -> &[u8] {
    let mut size = name.len().min(NAME_SIZE_MAX);
    while size < name.len() && size > 0 && name[size] & 0xc0 == 0x80 {
        size -= 1;
    }
    &name[..size]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_channels() {
        let listen = |name: &str| Said::Listen(name.as_bytes().into());
        let unlisten = |name: &str| Said::Unlisten(name.as_bytes().into());
        let said = |text: &str| channels(text.as_bytes(), false);
        assert_eq!(said("LISTEN a"), Some(vec![listen("a")]));
        assert_eq!(said("UNLISTEN Jobs ;"), Some(vec![unlisten("jobs")]));
        assert_eq!(said(" unlisten /* x */ \"Jo\"\"bs\""), Some(vec![unlisten("Jo\"bs")]));
        assert_eq!(said("unlisten *; listen b; select 'listen c'"), Some(vec![Said::UnlistenAll, listen("b")]));
        assert_eq!(said("select 1; unlisten a; listen A"), Some(vec![unlisten("a"), listen("a")]));
        assert_eq!(said("do $$ begin listen a; end $$; select listen a"), Some(vec![]));
        let long = format!("x{}", "ü".repeat(40));
        assert_eq!(said(&format!("listen {long}")), Some(vec![listen(&long[..63])]));
        for text in ["unlisten", "listen *", "listen a b", "listen 'a'", "unlisten u&\"a\"", "listen a; select 'x"] {
            assert_eq!(said(text), None, "{text}");
        }
    }
}
