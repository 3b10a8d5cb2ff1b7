//! PgBouncer's userlist.txt as it is: `"name" "secret"` on each line, a doubled quote for a quote, `;` for a comment.

use std::fmt;

use super::secrets::{SECRET_SIZE_MAX, Secret, Users};

const NAME_SIZE_MAX: usize = 255;

/// Why a list is not taken. The line is never quoted: it may hold a password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Reads a list. What follows the secret on its line is passed over, and of two lines for one user the later counts,
/// as in PgBouncer.
pub fn read(text: &str) -> Result<Users, Broken> {
    let mut users = Users::default();
    for (index, line) in text.lines().enumerate() {
        let broken = |what| Broken { line: index + 1, what };
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let (name, rest) = quoted(line).map_err(broken)?;
        if name.is_empty() || name.len() > NAME_SIZE_MAX {
            return Err(broken("the name is empty or longer than 255 bytes"));
        }
        let (secret, _) = quoted(rest.trim_start()).map_err(broken)?;
        if secret.len() > SECRET_SIZE_MAX {
            return Err(broken("the secret is longer than 2048 bytes"));
        }
        users.insert(&name, Secret::from_text(&zeroize::Zeroizing::new(secret)));
    }
    Ok(users)
}

/// A string in quotes, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut rest = text.strip_prefix('"').ok_or("expected \"name\" \"secret\", both in double quotes")?;
    let mut content = String::new();
    loop {
        let at = rest.find('"').ok_or("a double quote is not closed")?;
        content.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                content.push('"');
                rest = more;
            }
            None => return Ok((content, rest)),
        }
    }
}

/// Writes a name or a secret as [`read`] takes it.
pub fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn password(users: &Users, name: &str) -> Option<String> {
        let password = users.get(name)?.password()?;
        Some(String::from_utf8_lossy(password).into_owned())
    }

    #[test]
    fn reads_what_pgbouncer_reads() {
        let users = read(
            "; a comment\n\"alice\" \"pencil\"\n\n   \"bob\"\t\"with \"\"quotes\"\"\" \"whatever\" follows\n\
             \"c\"\"d\" \"\"\n\"alice\" \"later\"\r\n\"e\" \"md5c4ca4238a0b923820dcc509a6f75849b\"",
        );
        let users = users.expect("valid");
        assert_eq!(users.len(), 4);
        assert_eq!(password(&users, "alice").as_deref(), Some("later"));
        assert_eq!(password(&users, "bob").as_deref(), Some("with \"quotes\""));
        assert_eq!(password(&users, "c\"d").as_deref(), Some(""));
        assert!(matches!(users.get("e").map(|secret| &**secret), Some(Secret::Md5(_))));
    }

    #[test]
    fn names_the_line_and_not_what_is_in_it() {
        for (text, line) in [
            ("alice pencil", 1),
            ("\"a\" \"b\"\n\"alice\" pencil", 2),
            ("\n\n\"alice\" \"pencil", 3),
            ("\"alice\"", 1),
            ("\"\" \"pencil\"", 1),
        ] {
            let broken = read(text).expect_err(text);
            assert_eq!(broken.line, line, "{text}");
            assert!(!broken.to_string().contains("pencil"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(name in "[^\\r\\n]{1,20}", secret in "[^\\r\\n]{0,40}") {
            let users = read(&format!("{} {}", quote(&name), quote(&secret))).expect("quoted");
            prop_assert_eq!(users.len(), 1);
            let expected = Secret::from_text(&secret);
            prop_assert!(users.get(&name).expect("the only one").is_same(&expected));
        }
    }
}
