//! What QCP keeps of users' passwords, and the keys that follow from them.
//!
//! Nothing here is ever printed: `Debug` says which kind of secret it is, and memory is wiped when one is dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// Size of a key of SCRAM-SHA-256.
pub const KEY_SIZE: usize = 32;
/// A key of SCRAM-SHA-256.
pub type Key = [u8; KEY_SIZE];

/// Rounds of PBKDF2 for a password that is known in plain text; PostgreSQL's own default.
pub const ITERATIONS: u32 = 4096;
/// Longest secret that is taken from anywhere.
pub const SECRET_SIZE_MAX: usize = 2048;

const SCRAM_PREFIX: &str = "SCRAM-SHA-256$";
const SALT_SIZE_MAX: usize = 1024;

/// One user's secret, in any of the forms that PostgreSQL and PgBouncer keep.
pub enum Secret {
    /// The password.
    Plain(Zeroizing<Vec<u8>>),
    /// `md5` and the hash of password and user name, in hexadecimal.
    Md5(Zeroizing<[u8; 32]>),
    /// `SCRAM-SHA-256$iterations:salt$stored:server`.
    Scram(Verifier),
}

impl Secret {
    /// Reads a secret as PostgreSQL reads rolpassword: what is neither a hash nor a verifier is a password.
    pub fn from_text(text: &str) -> Secret {
        if let Some(hash) = text.strip_prefix("md5")
            && hash.len() == 32
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            let mut kept = Zeroizing::new([0; 32]);
            kept.copy_from_slice(hash.as_bytes());
            // Compared with hashes of our own, which are in lower case.
            kept.make_ascii_lowercase();
            return Secret::Md5(kept);
        }
        match Verifier::from_text(text) {
            Some(verifier) => Secret::Scram(verifier),
            None => Secret::Plain(Zeroizing::new(text.as_bytes().to_vec())),
        }
    }

    /// The password, where it is known.
    pub fn password(&self) -> Option<&[u8]> {
        match self {
            Secret::Plain(password) => Some(password),
            Secret::Md5(_) | Secret::Scram(_) => None,
        }
    }

    /// Whether two secrets say the same.
    pub fn is_same(&self, other: &Secret) -> bool {
        match (self, other) {
            (Secret::Plain(one), Secret::Plain(other)) => same(one, other),
            (Secret::Md5(one), Secret::Md5(other)) => same(&one[..], &other[..]),
            (Secret::Scram(one), Secret::Scram(other)) => one == other,
            (Secret::Plain(_) | Secret::Md5(_) | Secret::Scram(_), _) => false,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Plain(_) => "Secret(plain)",
            Secret::Md5(_) => "Secret(md5)",
            Secret::Scram(_) => "Secret(scram)",
        })
    }
}

/// What lets QCP check a password by SCRAM without knowing it.
#[derive(Clone)]
pub struct Verifier {
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// The salt of the password.
    pub salt: Vec<u8>,
    /// The hash of the client's key.
    pub stored_key: Key,
    /// The server's key.
    pub server_key: Key,
}

impl Verifier {
    /// Reads PostgreSQL's form. `None`: it is something else.
    pub fn from_text(text: &str) -> Option<Verifier> {
        let (parameters, keys) = text.strip_prefix(SCRAM_PREFIX)?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = decimal(iterations.as_bytes()).filter(|iterations| *iterations > 0)?;
        let salt = BASE64_STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty() && salt.len() <= SALT_SIZE_MAX)?;
        Some(Verifier { iterations, salt, stored_key: key(stored_key)?, server_key: key(server_key)? })
    }

    /// As PostgreSQL writes it.
    pub fn to_text(&self) -> Zeroizing<String> {
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        Zeroizing::new(format!(
            "{SCRAM_PREFIX}{}:{}${}:{}",
            self.iterations,
            encode(&self.salt),
            encode(&self.stored_key),
            encode(&self.server_key)
        ))
    }

    /// The verifier of a password whose rounds are done.
    pub fn of(salted: &SaltedPassword, salt: &[u8], iterations: u32) -> Verifier {
        let keys = salted.keys();
        Verifier { iterations, salt: salt.to_vec(), stored_key: hash(&keys.client_key), server_key: keys.server_key }
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Verifier) -> bool {
        self.iterations == other.iterations
            && self.salt == other.salt
            && same(&self.stored_key, &other.stored_key)
            && same(&self.server_key, &other.server_key)
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} iterations)", self.iterations)
    }
}

/// Both keys that a login by SCRAM as a client needs: of a password, or recovered from a client's proof.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Proves who the client is.
    pub client_key: Key,
    /// By it the client knows the server.
    pub server_key: Key,
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// A password after its rounds.
#[derive(Clone)]
pub struct SaltedPassword(Key);

impl SaltedPassword {
    /// `ClientKey` and `ServerKey`.
    pub fn keys(&self) -> Keys {
        Keys { client_key: keyed(&self.0, &[b"Client Key"]), server_key: keyed(&self.0, &[b"Server Key"]) }
    }
}

impl Drop for SaltedPassword {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SaltedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaltedPassword")
    }
}

/// PBKDF2 with HMAC-SHA-256, as many rounds at a time as one likes: all of them at once take a millisecond or many.
pub struct Derivation {
    keyed: Hmac<Sha256>,
    last: Key,
    sum: Key,
    rounds_left: u32,
}

impl Derivation {
    /// Begins with a password as the user typed it; it is prepared as PostgreSQL does.
    pub fn new(password: &[u8], salt: &[u8], iterations: u32) -> Derivation {
        let keyed = on_a_wiped_stack(|| {
            let password = prepared(password);
            Hmac::<Sha256>::new_from_slice(&password).expect("a key of any size will do")
        });
        let mut first = keyed.clone();
        first.update(salt);
        first.update(&1u32.to_be_bytes());
        let last: Key = first.finalize().into_bytes().into();
        Derivation { keyed, last, sum: last, rounds_left: iterations.max(1) - 1 }
    }

    /// Does at most so many rounds. `Some` when it was the last of them.
    pub fn step(&mut self, rounds_max: u32) -> Option<SaltedPassword> {
        let rounds = rounds_max.min(self.rounds_left);
        for _ in 0..rounds {
            let mut mac = self.keyed.clone();
            mac.update(&self.last);
            self.last = mac.finalize().into_bytes().into();
            for (sum, last) in self.sum.iter_mut().zip(self.last) {
                *sum ^= last;
            }
        }
        self.rounds_left -= rounds;
        (self.rounds_left == 0).then_some(SaltedPassword(self.sum))
    }

    /// All that is left at once: where nobody waits, and in tests.
    pub fn finish(mut self) -> SaltedPassword {
        self.step(u32::MAX).expect("more rounds than there are")
    }
}

impl Drop for Derivation {
    fn drop(&mut self) {
        self.last.zeroize();
        self.sum.zeroize();
    }
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derivation({} rounds left)", self.rounds_left)
    }
}

/// Stack that hashing one block takes, by far.
const STACK_WIPED: usize = 4096;

/// Runs `work` and wipes what it has left on the stack: digests copy their last block, which may be a password, more often
/// than they wipe it. (The crates' own feature wipes each digest; PBKDF2 throws two of them away in each round.)
pub(super) fn on_a_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn below<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    #[inline(never)]
    fn wipe() {
        std::hint::black_box(&mut [0u8; STACK_WIPED]);
    }

    let done = below(work);
    wipe();
    done
}

/// A password as SCRAM uses it: by SASLprep (RFC 4013), and as it is where that does not take it. PostgreSQL does the
/// same, so that passwords in other encodings than UTF-8 work.
pub fn prepared(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = std::str::from_utf8(password).ok();
    let prepared = text.and_then(|text| stringprep::saslprep(text).ok()).filter(|text| !text.is_empty());
    Zeroizing::new(prepared.map_or_else(|| password.to_vec(), |text| text.into_owned().into_bytes()))
}

/// Salts of users without a verifier of their own: those that are known in plain text, and those that nobody knows.
///
/// A user's salt stays the same as long as the process runs, whether the user exists or not, so that asking twice does
/// not tell who does.
#[derive(Clone)]
pub struct Salts(Zeroizing<Key>);

impl Salts {
    /// With a secret of this process.
    pub fn new(secret: Key) -> Salts {
        Salts(Zeroizing::new(secret))
    }

    /// The salt of a user.
    pub fn of(&self, user: &str) -> [u8; 16] {
        let whole = keyed(&self.0[..], &[b"salt", user.as_bytes()]);
        *whole.first_chunk().expect("a key is longer")
    }

    /// What a user that nobody knows is checked against; no proof fits it.
    pub fn mock(&self, user: &str) -> Verifier {
        let stored_key = keyed(&self.0[..], &[b"stored", user.as_bytes()]);
        Verifier { iterations: ITERATIONS, salt: self.of(user).to_vec(), stored_key, server_key: stored_key }
    }
}

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salts")
    }
}

/// Users and their secrets.
#[derive(Clone, Default)]
pub struct Users(HashMap<Box<str>, Arc<Secret>>);

impl Users {
    /// A user's secret.
    pub fn get(&self, user: &str) -> Option<&Arc<Secret>> {
        self.0.get(user)
    }

    /// Adds a user, or gives it another secret.
    pub fn insert(&mut self, user: &str, secret: Secret) {
        self.0.insert(user.into(), Arc::new(secret));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Secret>)> {
        self.0.iter().map(|(name, secret)| (&**name, secret))
    }
}

impl PartialEq for Users {
    fn eq(&self, other: &Users) -> bool {
        let is_in_other = |(name, secret): (&str, &Arc<Secret>)| {
            other.get(name).is_some_and(|other| Arc::ptr_eq(secret, other) || secret.is_same(other))
        };
        self.len() == other.len() && self.iter().all(is_in_other)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.len())
    }
}

/// Compares in a time that does not depend on where they differ.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    one.ct_eq(other).into()
}

/// HMAC-SHA-256.
pub(super) fn keyed(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any size will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

/// A number of digits only, without sign or spaces.
pub(super) fn decimal(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn key(text: &str) -> Option<Key> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_as_postgresql_does() {
        let kind = |text: &str| format!("{:?}", Secret::from_text(text));
        assert_eq!(kind("hunter2"), "Secret(plain)");
        assert_eq!(kind("md5"), "Secret(plain)");
        assert_eq!(kind("md5ab"), "Secret(plain)");
        assert_eq!(kind("md5c4ca4238a0b923820dcc509a6f75849b"), "Secret(md5)");
        assert_eq!(kind("md5c4ca4238a0b923820dcc509a6f75849g"), "Secret(plain)");
        assert_eq!(kind("SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA"), "Secret(plain)");
        let verifier = Verifier::of(&Derivation::new(b"x", b"salt", 5).finish(), b"salt", 5);
        assert_eq!(kind(&verifier.to_text()), "Secret(scram)");
        assert_eq!(Verifier::from_text(&verifier.to_text()), Some(verifier.clone()));
        let text = verifier.to_text();
        for wrong in [text.replace("$5:", "$0:"), text.replace("$5:", "$-5:"), text.replace("$5:", "$99999999999:")] {
            assert_eq!(kind(&wrong), "Secret(plain)", "{wrong}");
        }
    }

    #[test]
    fn nothing_is_printed() {
        let secret = Secret::from_text("correct horse");
        assert!(!format!("{secret:?}").contains("horse"));
        let mut users = Users::default();
        users.insert("alice", secret);
        assert!(!format!("{users:?}").contains("horse"));
    }

    #[test]
    fn a_derivation_in_steps_is_the_same() {
        let whole = Derivation::new(b"pencil", b"salt", 4096).finish();
        let mut steps = Derivation::new(b"pencil", b"salt", 4096);
        let mut count = 1;
        let stepped = loop {
            if let Some(salted) = steps.step(100) {
                break salted;
            }
            count += 1;
        };
        assert_eq!(count, 41);
        assert_eq!(stepped.keys(), whole.keys());
    }

    #[test]
    fn a_verifier_of_postgresql_fits_its_password() {
        // Made by PostgreSQL 15 for the password "pencil".
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        // RFC 7677's own example has the same password, salt and count.
        let verifier = Verifier::from_text(text).expect("valid");
        let made = Verifier::of(
            &Derivation::new(b"pencil", &verifier.salt, verifier.iterations).finish(),
            &verifier.salt,
            4096,
        );
        assert_eq!(*made.to_text(), text);
    }

    #[test]
    fn passwords_are_prepared_as_rfc_4013_says_or_left_alone() {
        let check = |given: &str, expected: &str| assert_eq!(&**prepared(given.as_bytes()), expected.as_bytes());
        check("I\u{ad}X", "IX");
        check("user", "user");
        check("USER", "USER");
        check("\u{aa}", "a");
        check("\u{2168}", "IX");
        // Prohibited, and a mixture of directions: as they are.
        check("\u{7}", "\u{7}");
        check("\u{627}1", "\u{627}1");
        // Nothing would be left.
        check("\u{ad}", "\u{ad}");
        assert_eq!(&**prepared(b"\xff\xfe"), b"\xff\xfe");
    }

    #[test]
    fn a_mock_is_stable_and_differs_by_user_and_process() {
        let (one, other) = (Salts::new([1; 32]), Salts::new([2; 32]));
        assert_eq!(one.mock("a"), one.mock("a"));
        assert_ne!(one.of("a"), one.of("b"));
        assert_ne!(one.of("a"), other.of("a"));
    }
}
