//! Which transactions a text prepares (PREPARE TRANSACTION): their names, as it writes them.

use super::lexer::{Kind, Lexer};

/// The constants that name transactions in `text`. `None`: one is there that cannot be read.
pub fn prepared_transactions(text: &[u8], backslashes: bool) -> Option<Vec<&[u8]>> {
    let mut lexer = Lexer { text, at: 0, backslashes };
    let mut names = Vec::new();
    let mut words = 0;
    loop {
        let token = lexer.next();
        let bytes = &text[token.start..token.end];
        let says = |word: &str| bytes.eq_ignore_ascii_case(word.as_bytes());
        words = match (words, token.kind) {
            (_, Kind::End) => return Some(names),
            (_, Kind::Unreadable) => return None,
            (2, Kind::Text) if matches!(bytes[0], b'\'' | b'$' | b'e' | b'E') => {
                names.push(bytes);
                0
            }
            (2, _) => return None,
            (1, Kind::Word) if says("transaction") => 2,
            (_, Kind::Word) if says("prepare") => 1,
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_prepared_transactions() {
        let names = |text: &'static str| {
            let names = prepared_transactions(text.as_bytes(), false)?;
            Some(names.into_iter().map(|name| std::str::from_utf8(name).unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(names("PREPARE /* now */ Transaction 'a''b' ;"), Some(vec!["'a''b'"]));
        assert_eq!(
            names("begin; prepare transaction E'x\\'y'; begin; prepare transaction $q$z$q$"),
            Some(vec!["E'x\\'y'", "$q$z$q$"])
        );
        assert_eq!(names("prepare p as select 'prepare transaction', 1; commit prepared 'x'"), Some(vec![]));
        for text in ["prepare transaction U&'x'", "prepare transaction 'x", "prepare transaction"] {
            assert_eq!(names(text).unwrap_or_default(), Vec::<&str>::new(), "{text}");
        }
    }
}
