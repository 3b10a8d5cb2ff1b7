//! The md5 method of PostgreSQL: `md5(md5(password user) salt)`, both roles. Old, and still in the field.

use ::md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::secrets::{Secret, on_a_wiped_stack, same};

/// What a client sends: `md5` and 32 hexadecimal digits.
pub const ANSWER_SIZE: usize = 35;

/// The hash that PostgreSQL stores, without its `md5`.
pub fn stored(password: &[u8], user: &str) -> Zeroizing<[u8; 32]> {
    hex(&[password, user.as_bytes()])
}

/// What a client answers to a salt. `None`: neither the password nor its hash is known.
pub fn answer(secret: &Secret, user: &str, salt: [u8; 4]) -> Option<Zeroizing<[u8; ANSWER_SIZE]>> {
    let hash = match secret {
        Secret::Plain(password) => &stored(password, user),
        Secret::Md5(hash) => hash,
        Secret::Scram(_) => return None,
    };
    let mut answer = Zeroizing::new([0; ANSWER_SIZE]);
    answer[..3].copy_from_slice(b"md5");
    answer[3..].copy_from_slice(&hex(&[&hash[..], &salt])[..]);
    Some(answer)
}

/// Whether a client's answer is right. An unknown user takes as long.
pub fn is_right(given: &[u8], secret: Option<&Secret>, user: &str, salt: [u8; 4]) -> bool {
    let unknown = Secret::Md5(Zeroizing::new([b'0'; 32]));
    let expected = answer(secret.unwrap_or(&unknown), user, salt);
    let fits = expected.is_some_and(|expected| same(given, &expected[..]));
    fits && secret.is_some()
}

/// Whether a password in plain text is a user's. `None`: only a derivation can
/// tell, whose verifier is compared.
pub fn is_password(given: &[u8], secret: &Secret, user: &str) -> Option<bool> {
    match secret {
        Secret::Plain(password) => Some(same(given, password)),
        Secret::Md5(hash) => Some(same(&stored(given, user)[..], &hash[..])),
        Secret::Scram(_) => None,
    }
}

fn hex(parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let hash: [u8; 16] = on_a_wiped_stack(|| {
        let mut digest = Md5::new();
        parts.iter().for_each(|part| digest.update(part));
        digest.finalize().into()
    });
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    Zeroizing::new(std::array::from_fn(|at| digit(if at % 2 == 0 { hash[at / 2] >> 4 } else { hash[at / 2] & 15 })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_postgresqls() {
        // SELECT md5('pencil' || 'alice'), and libpq's answer to the salt 1234.
        assert_eq!(&stored(b"pencil", "alice")[..], hex(&[b"pencilalice"]).as_slice());
        assert_eq!(&hex(&[b"abc"])[..], b"900150983cd24fb0d6963f7d28e17f72");
        let plain = Secret::from_text("pencil");
        let hashed = Secret::from_text(&format!("md5{}", String::from_utf8_lossy(&stored(b"pencil", "alice")[..])));
        let salt = *b"1234";
        let answer = answer(&plain, "alice", salt).expect("the password is known");
        assert_eq!(postgres_protocol_answer("alice", "pencil", salt).as_bytes(), &answer[..]);
        for secret in [&plain, &hashed] {
            assert!(is_right(&answer[..], Some(secret), "alice", salt));
            assert!(!is_right(&answer[..], Some(secret), "alice", *b"1235"));
            assert!(!is_right(&answer[..34], Some(secret), "alice", salt));
            assert!(!is_right(b"", Some(secret), "alice", salt));
            assert_eq!(is_password(b"pencil", secret, "alice"), Some(true));
            assert_eq!(is_password(b"pencils", secret, "alice"), Some(false));
        }
    }

    #[test]
    fn nobody_knows_an_unknown_user() {
        // Not even who guesses what the unknown are checked against.
        let guess = answer(&Secret::Md5(Zeroizing::new([b'0'; 32])), "x", *b"1234").expect("a hash");
        assert!(!is_right(&guess[..], None, "x", *b"1234"));
    }

    /// The formula once more, from the manual: concat('md5', md5(concat(md5(concat(password, username)), salt))).
    fn postgres_protocol_answer(user: &str, password: &str, salt: [u8; 4]) -> String {
        let text = |hash: Zeroizing<[u8; 32]>| String::from_utf8(hash.to_vec()).expect("digits");
        let inner = text(hex(&[format!("{password}{user}").as_bytes()]));
        format!("md5{}", text(hex(&[inner.as_bytes(), &salt])))
    }
}
