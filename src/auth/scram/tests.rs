//! RFC 7677's example in both roles, and each lie that must be found out.

use super::*;
use crate::auth::channel::Channel;
use crate::auth::secrets::{Derivation, Verifier};

const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &[u8] = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
const OWN_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

const RANDOM: [u8; NONCE_SIZE] = [7; NONCE_SIZE];
const END_POINT: &[u8] = b"the hash of a certificate";

fn verifier() -> Verifier {
    let salt = b"\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81";
    Verifier::of(&Derivation::new(b"pencil", salt, 4096).finish(), salt, 4096)
}

fn keys(challenged: &Challenged, password: &[u8]) -> Keys {
    Derivation::new(password, &challenged.salt, challenged.iterations).finish().keys()
}

fn tls() -> Channel {
    Channel { tls: true, end_point: Some(END_POINT.to_vec()), certificate: None }
}

fn server_first(mechanism: &[u8], message: &[u8], offer: Offer<'_>) -> Result<(Asked, Vec<u8>), Refusal> {
    let verifier = verifier();
    Server::first(mechanism, message, offer, &RANDOM, (&verifier.salt, verifier.iterations))
}

/// A client that begins in plain text, and what a server's first message makes of it.
fn challenged(message: &[u8]) -> Result<Challenged, Refusal> {
    let begun = Client::begin_with(|_| true, &Channel::default(), Binding::Prefer, "user", "rOprNGfwEbeRWgbNEkqO");
    begun.expect("no channel binding").0.on_server_first(message, 1_000_000)
}

/// A whole exchange between the two roles.
fn exchange(password: &[u8], client: &Channel, offer: Offer<'_>) -> Result<Keys, Refusal> {
    let (begun, mechanism, message) =
        Client::begin(|name| offer.mechanisms().contains(&name), client, Binding::Prefer, &[3; NONCE_SIZE])?;
    let (asked, message) = server_first(mechanism, &message, offer)?;
    let challenged = begun.on_server_first(&message, 1_000_000)?;
    let keys = keys(&challenged, password);
    let (answered, message) = challenged.answer(&keys);
    let (message, recovered) = asked.proof(&message, &verifier())?;
    answered.on_server_final(&message)?;
    assert_eq!(keys, recovered);
    Ok(recovered)
}

#[test]
fn the_server_follows_rfc_7677() {
    let verifier = verifier();
    let salted = (&verifier.salt[..], verifier.iterations);
    let (asked, message) =
        Server::first_with(MECHANISM, CLIENT_FIRST, Offer::Plain, OWN_NONCE, salted).expect("the RFC's");
    assert_eq!(message, SERVER_FIRST);
    let (message, keys) = asked.proof(CLIENT_FINAL, &verifier).expect("the RFC's");
    assert_eq!(message, SERVER_FINAL);
    assert_eq!(keys, Derivation::new(b"pencil", &verifier.salt, 4096).finish().keys());
}

#[test]
fn the_client_follows_rfc_7677() {
    let (begun, mechanism, message) =
        Client::begin_with(|_| true, &Channel::default(), Binding::Prefer, "user", "rOprNGfwEbeRWgbNEkqO")
            .expect("no channel binding");
    assert_eq!((mechanism, &message[..]), (MECHANISM, CLIENT_FIRST));
    let challenged = begun.on_server_first(SERVER_FIRST, 1_000_000).expect("the RFC's");
    let keys = keys(&challenged, b"pencil");
    let (answered, message) = challenged.answer(&keys);
    assert_eq!(message, CLIENT_FINAL);
    assert_eq!(answered.on_server_final(SERVER_FINAL), Ok(()));
}

#[test]
fn the_roles_understand_one_another_with_and_without_binding() {
    let plain = Channel::default();
    for (client, offer) in [
        (&plain, Offer::Plain),
        (&tls(), Offer::Both(END_POINT)),
        (&tls(), Offer::PlusOnly(END_POINT)),
        // A client over TLS whose server has no binding to offer says y, which is the truth.
        (&tls(), Offer::Plain),
        // A client that cannot bind, where both are offered.
        (&plain, Offer::Both(END_POINT)),
    ] {
        assert!(exchange(b"pencil", client, offer).is_ok(), "{client:?} {offer:?}");
        assert_eq!(exchange(b"pencils", client, offer), Err(Refusal::Proof), "{client:?} {offer:?}");
    }
    assert!(exchange(b"pencil", &plain, Offer::PlusOnly(END_POINT)).is_err());
}

#[test]
fn another_channel_is_found_out() {
    let elsewhere = Channel { end_point: Some(b"another certificate".to_vec()), ..tls() };
    let refused = exchange(b"pencil", &elsewhere, Offer::Both(END_POINT));
    assert_eq!(refused, Err(Refusal::Binding("SCRAM channel binding check failed")));
}

#[test]
fn a_stripped_list_of_mechanisms_is_found_out() {
    // The client can bind, sees SCRAM-SHA-256 alone and says y; the server had offered both.
    let begun = Client::begin(|name| name == MECHANISM, &tls(), Binding::Prefer, &RANDOM).expect("prefer will do");
    assert!(begun.2.starts_with(b"y,,"));
    let refused = server_first(MECHANISM, &begun.2, Offer::Both(END_POINT)).err();
    assert!(matches!(refused, Some(Refusal::Binding(_))), "{refused:?}");
    // And a client that requires it does not begin.
    let refused = Client::begin(|name| name == MECHANISM, &tls(), Binding::Require, &RANDOM).err();
    assert!(matches!(refused, Some(Refusal::Binding(_))), "{refused:?}");
    let refused = Client::begin(|_| true, &Channel::default(), Binding::Require, &RANDOM).err();
    assert!(matches!(refused, Some(Refusal::Binding(_))), "{refused:?}");
}

#[test]
fn a_replayed_proof_is_refused() {
    let verifier = verifier();
    let salted = (&verifier.salt[..], verifier.iterations);
    let (asked, _) = Server::first(MECHANISM, CLIENT_FIRST, Offer::Plain, &RANDOM, salted).expect("as before");
    assert_eq!(asked.proof(CLIENT_FINAL, &verifier).err(), Some(Refusal::Nonce));
    // With the new nonce put in, the proof signs something else.
    let (asked, message) = Server::first(MECHANISM, CLIENT_FIRST, Offer::Plain, &RANDOM, salted).expect("as before");
    let nonce = message[2..].split(|byte| *byte == b',').next().expect("it is there");
    let forged = [b"c=biws,r=", nonce, b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="].concat();
    assert_eq!(asked.proof(&forged, &verifier).err(), Some(Refusal::Proof));
}

#[test]
fn the_name_is_ignored() {
    for message in [&b"n,,n=,r=abc"[..], b"n,,n=somebody else,r=abc", b"n,,n=\xff\xfe,r=abc", b"n,,n=x,r=abc,e=1,f="] {
        assert!(server_first(MECHANISM, message, Offer::Plain).is_ok(), "{message:?}");
    }
}

#[test]
fn what_clients_must_not_send_first() {
    let check = |mechanism: &[u8], message: &[u8], offer: Offer<'_>| {
        let refused = server_first(mechanism, message, offer).err();
        assert!(refused.is_some() && refused != Some(Refusal::Proof), "{}: {refused:?}", message.escape_ascii());
    };
    for message in [
        &b""[..],
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=",
        b"n,,r=abc",
        b"n,,r=abc,n=",
        b"n,,n=,r=",
        b"n,,n=,r=a\x01b",
        b"n,,n=,r=a\0",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,=",
        b"n,,m=x,n=,r=abc",
        b"n,a=root,n=,r=abc",
        b"x,,n=,r=abc",
        b"p=tls-server-end-point,,n=,r=abc",
    ] {
        check(MECHANISM, message, Offer::Plain);
    }
    check(MECHANISM, b"p=tls-server-end-point,,n=,r=abc", Offer::Both(END_POINT));
    check(MECHANISM_PLUS, b"p=tls-unique,,n=,r=abc", Offer::Both(END_POINT));
    check(MECHANISM_PLUS, b"n,,n=,r=abc", Offer::Both(END_POINT));
    check(MECHANISM_PLUS, b"y,,n=,r=abc", Offer::Both(END_POINT));
    check(MECHANISM_PLUS, b"p=tls-server-end-point,,n=,r=abc", Offer::Plain);
    check(MECHANISM, b"n,,n=,r=abc", Offer::PlusOnly(END_POINT));
    check(b"SCRAM-SHA-1", b"n,,n=,r=abc", Offer::Plain);
    let long = [b"n,,n=,r=", &[b'a'; MESSAGE_SIZE_MAX][..]].concat();
    check(MECHANISM, &long, Offer::Plain);
}

#[test]
fn what_clients_must_not_send_last() {
    let verifier = verifier();
    let first = || {
        let salted = (&verifier.salt[..], verifier.iterations);
        Server::first_with(MECHANISM, CLIENT_FIRST, Offer::Plain, OWN_NONCE, salted).expect("the RFC's").0
    };
    let text = std::str::from_utf8(CLIENT_FINAL).expect("ASCII");
    for wrong in [
        text.replace("c=biws", "c=eSws"),
        text.replace("c=biws", "c=b!ws"),
        text.replace("c=biws,", ""),
        text.replace(",r=", ",x="),
        text.replace("F$k0", "F$k1"),
        text.replace("p=dH", "p=eH"),
        text.replace("p=dH", "p=H"),
        text.replace("VQ=", "VQ"),
        text.replace(",p=", ",q="),
        format!("{text},x=1"),
        format!("{text},"),
        String::new(),
    ] {
        assert!(first().proof(wrong.as_bytes(), &verifier).is_err(), "{wrong}");
    }
    // An extension in its place changes what is signed, and is otherwise no harm.
    let extended = text.replace(",p=", ",x=1,p=");
    assert_eq!(first().proof(extended.as_bytes(), &verifier).err(), Some(Refusal::Proof));
}

#[test]
fn what_servers_must_not_send() {
    assert!(challenged(SERVER_FIRST).is_ok());
    let text = std::str::from_utf8(SERVER_FIRST).expect("ASCII");
    let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    for (wrong, expected) in [
        (text.replace("r=rOpr", "r=sOpr"), Some(Refusal::Nonce)),
        (text.replace(OWN_NONCE, ""), Some(Refusal::Nonce)),
        (text.replace("i=4096", "i=1000001"), Some(Refusal::Iterations { asked: 1_000_001, allowed: 1_000_000 })),
        (text.replace("i=4096", "i=4294967296"), None),
        (text.replace("i=4096", "i=0"), None),
        (text.replace("i=4096", "i=-1"), None),
        (text.replace("i=4096", "i="), None),
        (text.replace("s=W22", "s=!"), None),
        (format!("{nonce},s=,i=4096"), None),
        (format!("{nonce},s={},i=4096", "A".repeat(1028)), None),
        (format!("m=x,{text}"), None),
        (String::new(), None),
    ] {
        let refused = challenged(wrong.as_bytes()).err();
        assert!(refused.is_some() && (expected.is_none() || refused == expected), "{wrong}: {refused:?}");
    }
    assert!(challenged(text.replace("i=4096", "i=1000000").as_bytes()).is_ok());
}

#[test]
fn a_server_that_does_not_know_the_password_is_found_out() {
    let answered = || {
        let challenged = challenged(SERVER_FIRST).expect("the RFC's");
        let keys = keys(&challenged, b"pencil");
        challenged.answer(&keys).0
    };
    assert_eq!(answered().on_server_final(SERVER_FINAL), Ok(()));
    let wrong = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=";
    assert_eq!(answered().on_server_final(wrong), Err(Refusal::Impostor));
    assert_eq!(answered().on_server_final(b"v="), Err(Refusal::Impostor));
    assert_eq!(answered().on_server_final(b"e=other-error\n"), Err(Refusal::Server("other-error".to_owned())));
    assert!(matches!(answered().on_server_final(b""), Err(Refusal::Malformed(_))));
}
