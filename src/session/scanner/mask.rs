//! A statement's text for the log: constants are left out, so that no data and no password comes there.

use super::lexer::{Kind, Lexer};

/// The text with `?` for each constant and without comments. What cannot be read to its end (half a constant, for one)
/// ends it with dots.
pub fn mask(text: &[u8], backslashes: bool) -> String {
    let mut lexer = Lexer { text, at: 0, backslashes };
    let mut masked = Vec::with_capacity(text.len());
    let mut end = 0;
    loop {
        let before = lexer.at;
        let token = lexer.next();
        if token.kind == Kind::End {
            break;
        }
        if token.start > end && !masked.is_empty() {
            masked.push(b' ');
        }
        match token.kind {
            Kind::Text | Kind::Number => masked.push(b'?'),
            Kind::Unreadable => {
                masked.extend_from_slice(b"...");
                break;
            }
            Kind::Word | Kind::Quoted | Kind::Escaped | Kind::Parameter | Kind::Mark(_) | Kind::End => {
                masked.extend_from_slice(&text[token.start..token.end]);
            }
        }
        end = token.end;
        assert!(lexer.at > before, "each token takes something");
    }
    String::from_utf8_lossy(&masked).replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_constant_is_left() {
        let check = |text: &str, expected: &str| assert_eq!(mask(text.as_bytes(), false), expected, "{text}");
        check("SELECT 1, 'a''b', $1, x2 FROM \"T 1\"", "SELECT ?, ?, $1, x2 FROM \"T 1\"");
        check("SELECT E'a\\'b', b'01', $q$ it's $q$", "SELECT ?, ?, ?");
        check("/* secret */ SELECT -- secret\n  1.5e3", "SELECT ?");
        check("ALTER ROLE joe\tPASSWORD 'x'; COMMIT", "ALTER ROLE joe PASSWORD ?; COMMIT");
        check("SELECT 'cut off in the middl", "SELECT ...");
        check("SELECT a=-1 /* cut", "SELECT a=-? ...");
        check("", "");
        assert_eq!(mask(b"SELECT 'a\\' OR secret'", true), "SELECT ?");
    }
}
