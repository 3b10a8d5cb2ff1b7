//! What must hold for any bytes at all: a property test here, a target in `tests/fuzz`.

use std::io;
use std::path::{Path, PathBuf};

use super::channel::Channel;
use super::hba::{Access, Files, Found, Hba, IdentMaps};
use super::scram::{Binding, Client, MECHANISM, MECHANISM_PLUS, Offer, Server};
use super::secrets::{Derivation, Keys, Secret, Verifier};
use super::{proxy, userlist};
use crate::protocol::properties::Property;

/// The targets of this layer.
pub const ALL: &[Property] = &[
    ("scram_server", scram_server),
    ("scram_client", scram_client),
    ("secret", secret),
    ("userlist", list),
    ("hba", hba),
    ("ident", ident),
    ("proxy", proxy_header),
];

fn verifier() -> Verifier {
    Verifier::of(&Derivation::new(b"pencil", b"salt", 1).finish(), b"salt", 1)
}

/// Two messages, separated by a zero. Nobody gets in without the password.
fn scram_server(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (first, last) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let verifier = verifier();
    for (mechanism, offer) in
        [(MECHANISM, Offer::Plain), (MECHANISM, Offer::Both(b"hash")), (MECHANISM_PLUS, Offer::PlusOnly(b"hash"))]
    {
        let salted = (&verifier.salt[..], verifier.iterations);
        if let Ok((asked, answer)) = Server::first(mechanism, first, offer, &[1; 18], salted) {
            assert!(answer.starts_with(b"r=") && !first.starts_with(b"a"));
            assert!(!(first.starts_with(b"y") && offer != Offer::Plain));
            assert!(asked.proof(last, &verifier).is_err());
        }
    }
}

/// Two messages, separated by a zero. No server that does not know the password is believed.
fn scram_client(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (first, last) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let begun = Client::begin(|_| true, &Channel::default(), Binding::Prefer, &[1; 18]);
    let (client, ..) = begun.expect("no binding");
    if let Ok(challenged) = client.on_server_first(first, 1000) {
        assert!(challenged.iterations > 0 && challenged.iterations <= 1000);
        assert!(!challenged.salt.is_empty() && first.starts_with(b"r="));
        let (answered, message) = challenged.answer(&Keys { client_key: [1; 32], server_key: [2; 32] });
        assert!(message.starts_with(b"c=biws,r="));
        assert!(answered.on_server_final(last).is_err());
    }
}

/// A verifier that is read is written back so that it reads the same.
fn secret(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Secret::Scram(verifier) = Secret::from_text(text) {
        assert_eq!(Verifier::from_text(&verifier.to_text()), Some(verifier));
    }
}

/// Every user of a list can be written so that it is read again.
fn list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(users) = userlist::read(text) else { return };
    for (name, secret) in users.iter() {
        let Some(password) = secret.password().and_then(|password| std::str::from_utf8(password).ok()) else {
            continue;
        };
        let again = userlist::read(&format!("{} {}", userlist::quote(name), userlist::quote(password)));
        assert!(again.expect("written by us").get(name).is_some_and(|again| again.is_same(secret)));
    }
}

/// The one file that there is; it may include itself.
struct One<'a>(&'a str);

impl Files for One<'_> {
    fn read(&self, path: &Path) -> io::Result<String> {
        let is_it = path.file_name().is_some_and(|name| name == "f");
        if is_it { Ok(self.0.to_owned()) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(vec![folder.join("f")])
    }
}

/// A file is read or refused with a line that it has, and the rules give an answer.
fn hba(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Hba::read(Path::new("f"), &One(text)) {
        Ok(hba) => {
            for address in [None, Some("127.0.0.1"), Some("2001:db8::1")] {
                let address = address.map(|text| text.parse().expect("an address"));
                let access = Access {
                    database: "db",
                    user: "alice",
                    replication: false,
                    address,
                    tls: false,
                    own: &[],
                    roles: Some(&[]),
                };
                assert_ne!(hba.find(&access), Found::NeedsRoles);
            }
        }
        Err(broken) => assert!(broken.line <= text.lines().count(), "{broken}"),
    }
}

fn ident(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match IdentMaps::read(Path::new("f"), &One(text)) {
        Ok(maps) => {
            maps.may_be(Some("m"), "alice@example.com", "alice");
        }
        Err(broken) => assert!(broken.line <= text.lines().count(), "{broken}"),
    }
}

/// What is said of a prefix is said of the whole, and no header is longer than its bound.
fn proxy_header(data: &[u8]) {
    let whole = proxy::header(data);
    for size in 0..data.len() {
        let prefix = proxy::header(&data[..size]);
        assert!(prefix == Ok(None) || prefix == whole, "{size} bytes say {prefix:?}");
    }
    match whole {
        Ok(Some(header)) => assert!(header.size > 0 && header.size <= data.len() && header.size <= 16 + 2048),
        Ok(None) => assert!(data.len() < 16 + 2048),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            ALL.iter().for_each(|(_, target)| target(&data));
        }

        #[test]
        fn words_of_the_files(words in proptest::collection::vec(
            prop_oneof![
                Just("local"), Just("host"), Just("hostssl"), Just("all"), Just("md5"), Just("trust"), Just("\n"),
                Just("10.0.0.0/8"), Just("+r"), Just("\"a"), Just("\""), Just(","), Just("@f"), Just("include"),
                Just("f"), Just("/^(a)"), Just("\\1"), Just("\\\n"), Just("#"), Just("m"),
            ],
            0..30,
        )) {
            let text = words.join(" ");
            hba(text.as_bytes());
            ident(text.as_bytes());
        }
    }
}
