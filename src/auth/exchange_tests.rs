//! QCP's two roles against one another: each method, each kind of secret, right and wrong.

use std::sync::Arc;

use super::channel::Channel;
use super::incoming::{self, Incoming, Kinds, Login, Method};
use super::outgoing::{Credentials, Failed, Outgoing, Step};
use super::scram::{Binding, Refusal};
use super::secrets::{Derivation, ITERATIONS, Salts, Secret, Verifier};
use crate::protocol::Writer;
use crate::protocol::reader;

const END_POINT: &[u8] = b"the hash of a certificate";

fn tls() -> Channel {
    Channel { tls: true, end_point: Some(END_POINT.to_vec()), certificate: None }
}

fn plain(password: &str) -> Secret {
    Secret::from_text(password)
}

fn md5(password: &str) -> Secret {
    let hash = super::md5::stored(password.as_bytes(), "alice");
    Secret::from_text(&format!("md5{}", String::from_utf8_lossy(&hash[..])))
}

fn scram(password: &str) -> Secret {
    let salted = Derivation::new(password.as_bytes(), b"a salt", 100).finish();
    Secret::Scram(Verifier::of(&salted, b"a salt", 100))
}

/// How it ended: who found the fault, and which.
#[derive(Debug)]
enum End {
    In(incoming::Proven),
    ClientGaveUp(Failed),
    Denied(incoming::Denied),
}

struct Setting<'a> {
    method: Method,
    known: Option<Secret>,
    users: Kinds,
    secret: Option<&'a Secret>,
    derived: Option<&'a incoming::Derived>,
    channel: Channel,
    binding: Binding,
}

fn setting(method: Method, known: Option<Secret>, secret: Option<&Secret>) -> Setting<'_> {
    let (users, channel, binding) = (Kinds::default(), Channel::default(), Binding::Prefer);
    Setting { method, known, users, secret, derived: None, channel, binding }
}

/// What somebody outside sees of a login, beside its end: how long each question is, and how often it is worked on.
#[derive(PartialEq, Eq, Debug, Default)]
struct Course {
    questions: Vec<usize>,
    work: u32,
}

fn login(setting: Setting<'_>) -> End {
    login_seen(setting, &mut Course::default())
}

/// A whole login; what one writes the other reads.
fn login_seen(setting: Setting<'_>, course: &mut Course) -> End {
    let Setting { method, known, users, secret, derived, channel, binding } = setting;
    let salts = Salts::new([9; 32]);
    let (mut questions, mut answers) = ([0; 4096], [0; 4096]);
    let mut client = Outgoing::new(binding, 1_000_000);
    let mut writer = Writer::new(&mut questions);
    let login = Login {
        method,
        user: "alice",
        secret: known.map(Arc::new),
        users,
        verifier: None,
        channel: &channel,
        salts: &salts,
        random: &[5; 18],
    };
    let (mut server, mut step) = Incoming::begin(login, &mut writer).expect("room");
    loop {
        let mut question = writer.written().to_vec();
        match step {
            incoming::Step::Asked => course.questions.push(question.len()),
            incoming::Step::Work => {
                course.work += 1;
                writer = Writer::new(&mut questions);
                step = server.work(1000, &mut writer).expect("room");
                continue;
            }
            incoming::Step::Denied(denied) => return End::Denied(denied),
            incoming::Step::Accepted(proven) => {
                // The signature, if there is one, then the word that it is in.
                let mut ok = [0; 16];
                let mut writer = Writer::new(&mut ok);
                writer.authentication_ok().expect("room");
                let ok = writer.written().to_vec();
                for message in [question, ok].iter().filter(|message| !message.is_empty()) {
                    let what = reader::authentication(message).expect("our own");
                    let mut nothing = [0; 16];
                    let credentials = Credentials { user: "alice", secret, derived };
                    let step =
                        client.on_message(&what, credentials, &channel, &[6; 18], &mut Writer::new(&mut nothing));
                    match step.expect("nothing to write") {
                        Step::Going | Step::In(_) => {}
                        Step::Failed(failed) => return End::ClientGaveUp(failed),
                        Step::Work => panic!("nothing is left to derive"),
                    }
                }
                return End::In(proven);
            }
        }
        let what = reader::authentication(&question).expect("our own");
        let mut writer_back = Writer::new(&mut answers);
        let credentials = Credentials { user: "alice", secret, derived };
        let mut answered = client.on_message(&what, credentials, &channel, &[6; 18], &mut writer_back).expect("room");
        while answered == Step::Work {
            answered = client.work(1000, &mut writer_back).expect("room");
        }
        if let Step::Failed(failed) = answered {
            return End::ClientGaveUp(failed);
        }
        question.clear();
        let answer = writer_back.written().to_vec();
        writer = Writer::new(&mut questions);
        step = server.on_answer(&answer, &mut writer).expect("room");
    }
}

#[test]
fn every_method_with_every_secret_right_and_wrong() {
    use Method::{Md5, Password, Scram};
    type Make = fn(&str) -> Secret;
    let kinds: [(&str, Make); 3] = [("plain", plain), ("md5", md5), ("scram", scram)];
    for method in [Password, Md5, Scram] {
        for (kind, make) in kinds {
            // An md5 hash says nothing about SCRAM.
            let possible = !(method == Scram && kind == "md5");
            let right = login(setting(method, Some(make("pencil")), Some(&plain("pencil"))));
            assert_eq!(matches!(right, End::In(_)), possible, "{method:?} {kind}: {right:?}");
            let wrong = login(setting(method, Some(make("pencil")), Some(&plain("pencils"))));
            assert!(matches!(wrong, End::Denied(incoming::Denied::Password(_))), "{method:?} {kind}: {wrong:?}");
        }
        let unknown = login(setting(method, None, Some(&plain("pencil"))));
        assert!(matches!(unknown, End::Denied(incoming::Denied::Password(_))), "{method:?}: {unknown:?}");
        for users in [Kinds { plain: true, scram: false }, Kinds { plain: true, scram: true }] {
            let guess = plain("anything takes as long");
            let unknown = login(Setting { users, ..setting(method, None, Some(&guess)) });
            assert!(matches!(unknown, End::Denied(incoming::Denied::Password(_))), "{method:?}: {unknown:?}");
        }
        let empty = login(setting(method, Some(plain("")), Some(&plain(""))));
        assert!(matches!(empty, End::Denied(_)), "{method:?}: {empty:?}");
    }
}

#[test]
fn an_unknown_user_is_asked_the_same_and_takes_as_long() {
    let kept = || {
        let salted = Derivation::new(b"pencil", &[7; 16], ITERATIONS).finish();
        Secret::Scram(Verifier::of(&salted, &[7; 16], ITERATIONS))
    };
    for method in [Method::Password, Method::Md5, Method::Scram] {
        for (known, users) in
            [(plain("pencil"), Kinds { plain: true, scram: false }), (kept(), Kinds { plain: false, scram: true })]
        {
            let guess = plain("a guess");
            let seen = |known| {
                let mut course = Course::default();
                let end = login_seen(Setting { users, ..setting(method, known, Some(&guess)) }, &mut course);
                assert!(matches!(end, End::Denied(incoming::Denied::Password(_))), "{method:?}: {end:?}");
                course
            };
            let of_known = seen(Some(known));
            assert!(!of_known.questions.is_empty());
            assert_eq!(seen(None), of_known, "{method:?} {users:?}");
        }
    }
}

#[test]
fn an_md5_hash_logs_in_by_md5_and_by_nothing_else() {
    let secret = md5("pencil");
    assert!(matches!(login(setting(Method::Md5, Some(plain("pencil")), Some(&secret))), End::In(_)));
    for method in [Method::Password, Method::Scram] {
        let end = login(setting(method, Some(plain("pencil")), Some(&secret)));
        assert!(matches!(end, End::ClientGaveUp(Failed::NoSecret(_))), "{method:?}: {end:?}");
    }
}

#[test]
fn the_keys_of_a_clients_login_log_in_at_a_server_with_the_same_verifier() {
    let End::In(proven) = login(setting(Method::Scram, Some(scram("pencil")), Some(&plain("pencil")))) else {
        panic!("the password is right")
    };
    let keys = proven.keys.expect("by SCRAM");
    let with_keys = |known| login(Setting { derived: Some(&keys), ..setting(Method::Scram, Some(known), None) });
    assert!(matches!(with_keys(scram("pencil")), End::In(_)));
    // Another salt: the keys are of no use, and say so.
    let salted = Derivation::new(b"pencil", b"another", 100).finish();
    let other = Secret::Scram(Verifier::of(&salted, b"another", 100));
    assert!(matches!(with_keys(other), End::ClientGaveUp(Failed::NoSecret(_))));
    assert!(matches!(with_keys(scram("pencils")), End::Denied(incoming::Denied::Password(_))));
    // A password in plain text gives them as well.
    let End::In(proven) = login(setting(Method::Password, Some(scram("pencil")), Some(&plain("pencil")))) else {
        panic!("the password is right")
    };
    assert_eq!(proven.keys, Some(keys));
}

#[test]
fn channel_binding() {
    let secret = plain("pencil");
    let with = |method, channel: Channel, binding| {
        login(Setting { channel, binding, ..setting(method, Some(scram("pencil")), Some(&secret)) })
    };
    for binding in [Binding::Disable, Binding::Prefer, Binding::Require] {
        assert!(matches!(with(Method::Scram, tls(), binding), End::In(_)), "{binding:?}");
        let plus = with(Method::ScramPlus, tls(), binding);
        assert_eq!(matches!(plus, End::In(_)), binding != Binding::Disable, "{binding:?}: {plus:?}");
    }
    let none = with(Method::ScramPlus, Channel::default(), Binding::Prefer);
    assert!(matches!(none, End::Denied(incoming::Denied::NoChannel)), "{none:?}");
    for method in [Method::Password, Method::Md5] {
        let known = Some(plain("pencil"));
        let end = login(Setting { channel: tls(), binding: Binding::Require, ..setting(method, known, Some(&secret)) });
        assert!(matches!(end, End::ClientGaveUp(Failed::Method(_))), "{method:?}: {end:?}");
    }
}

#[test]
fn a_server_that_stops_half_way_has_not_let_qcp_in() {
    let channel = Channel::default();
    let secret = plain("pencil");
    let credentials = Credentials { user: "alice", secret: Some(&secret), derived: None };
    let mut room = [0; 4096];
    let mut writer = Writer::new(&mut room);
    writer.authentication_sasl(&[b"SCRAM-SHA-256"]).expect("room");
    let sasl = writer.written().to_vec();
    let mut room = [0; 16];
    let mut writer = Writer::new(&mut room);
    writer.authentication_ok().expect("room");
    let ok = writer.written().to_vec();

    let mut client = Outgoing::new(Binding::Prefer, 1_000_000);
    let mut answers = [0; 4096];
    let mut step = |message: &[u8]| {
        let what = reader::authentication(message).expect("our own");
        client.on_message(&what, credentials, &channel, &[1; 18], &mut Writer::new(&mut answers)).expect("room")
    };
    assert_eq!(step(&sasl), Step::Going);
    assert_eq!(step(&ok), Step::Failed(Failed::OutOfPlace));
}

#[test]
fn a_server_cannot_make_qcp_work_without_end() {
    let known =
        Secret::Scram(Verifier { iterations: 1_000_001, salt: vec![1], stored_key: [1; 32], server_key: [1; 32] });
    let end = login(setting(Method::Scram, Some(known), Some(&plain("pencil"))));
    let expected = Failed::Exchange(Refusal::Iterations { asked: 1_000_001, allowed: 1_000_000 });
    assert!(matches!(&end, End::ClientGaveUp(failed) if *failed == expected), "{end:?}");
}

#[test]
fn answers_out_of_place_are_refused() {
    for method in [Method::Password, Method::Md5, Method::Scram] {
        let salts = Salts::new([9; 32]);
        let channel = Channel::default();
        let mut room = [0; 4096];
        let login = Login {
            method,
            user: "alice",
            secret: Some(Arc::new(plain("pencil"))),
            users: Kinds::default(),
            verifier: None,
            channel: &channel,
            salts: &salts,
            random: &[5; 18],
        };
        let (mut server, _) = Incoming::begin(login, &mut Writer::new(&mut room)).expect("room");
        let step = server.on_answer(b"p\0\0\0\x07abc", &mut Writer::new(&mut room)).expect("room");
        assert!(matches!(step, incoming::Step::Denied(_)), "{method:?}: {step:?}");
        // And nothing after that.
        let step = server.on_answer(b"p\0\0\0\x0bpencil\0", &mut Writer::new(&mut room)).expect("room");
        assert!(matches!(step, incoming::Step::Denied(_)), "{method:?}: {step:?}");
    }
}
