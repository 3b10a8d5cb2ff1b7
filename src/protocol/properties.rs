//! What must hold for any bytes at all, one function for each decoder: a property test here, a target in `tests/fuzz`.
//!
//! Each panics where its property fails. Most say: what a decoder accepts, the writer writes back byte for byte; and
//! what a decoder says of a prefix, it says of the whole.

use super::reader::{self, Authentication};
use super::startup::{self, Packet, Switch};
use super::tag::{backend, frontend};
use super::writer::{Full, Writer};
use super::{Direction, Framer, HEAD_SIZE, Malformed, Step, trace};

/// The name of a target, and what must hold.
pub type Property = (&'static str, fn(&[u8]));

pub const ALL: &[Property] = &[
    ("framer", any_split_gives_the_same_messages),
    ("startup", startup_packet),
    ("options", options),
    ("query", query),
    ("parse", parse),
    ("bind", bind),
    ("target", target),
    ("execute", execute),
    ("sasl_initial_response", sasl_initial_response),
    ("authentication", authentication),
    ("backend_key_data", backend_key_data),
    ("parameter_status", parameter_status),
    ("ready_for_query", ready_for_query),
    ("error_fields", error_fields),
    ("negotiate_protocol_version", negotiate_protocol_version),
    ("notification_response", notification_response),
    ("data_row", data_row),
    ("trace", trace_line),
];

/// A message as the caller of the framer saw it: its tag and all its bytes.
pub(super) type Seen = (u8, Vec<u8>);

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32 + 4;
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// Reads the pieces as the relay does, holding what is incomplete, and checks each step's own promises. Returns what
/// it saw, and the bytes still held or the fault.
pub(super) fn cut(
    direction: Direction,
    pieces: &[&[u8]],
    need: impl Fn(u8, u32) -> usize,
) -> (Vec<Seen>, Result<Vec<u8>, Malformed>) {
    let mut framer = Framer::new(direction);
    let mut seen: Vec<Seen> = Vec::new();
    let mut held = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match framer.next(&held[at..], &need) {
                Err(malformed) => return (seen, Err(malformed)),
                Ok(Step::End) => {
                    assert_eq!(at, held.len());
                    break;
                }
                Ok(Step::Incomplete { need }) => {
                    assert!(held.len() - at < need);
                    assert!(framer.at_boundary());
                    break;
                }
                Ok(Step::Message { tag, size, available }) => {
                    assert!(available >= need(tag, size).min(size as usize).max(HEAD_SIZE));
                    assert_eq!(framer.at_boundary(), available == size as usize);
                    seen.push((tag, held[at..at + available].to_vec()));
                    at += available;
                }
                Ok(Step::Rest { length, last }) => {
                    assert!(length > 0);
                    assert_eq!(framer.at_boundary(), last);
                    let (_, bytes) = seen.last_mut().expect("a rest follows a head");
                    bytes.extend_from_slice(&held[at..at + length]);
                    at += length;
                }
            }
        }
        held.drain(..at);
    }
    (seen, Ok(held))
}

/// The first bytes say which direction, what is needed and how large the pieces are; the others are the stream.
fn any_split_gives_the_same_messages(data: &[u8]) {
    let Some((&[direction, need, piece_size], stream)) = data.split_first_chunk() else {
        return;
    };
    let direction = if direction & 1 == 0 { Direction::Frontend } else { Direction::Backend };
    let need = |tag: u8, _size: u32| usize::from(need ^ tag);
    let pieces: Vec<&[u8]> = stream.chunks(1 + usize::from(piece_size)).collect();

    let whole = cut(direction, &[stream], need);
    assert_eq!(cut(direction, &pieces, need), whole);
    let (seen, Ok(held)) = whole else { return };
    let taken: usize = seen.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(taken + held.len(), stream.len());
}

fn startup_packet(data: &[u8]) {
    let whole = startup::packet(data);
    for size in 0..data.len() {
        let prefix = startup::packet(&data[..size]);
        assert!(prefix == Ok(None) || prefix == whole, "{size} bytes say {prefix:?}");
    }
    let Ok(Some((packet, size))) = whole else {
        return;
    };
    let _ = trace::packet_line(&packet, size);
    check_rewritten(&data[..size], |w| match packet {
        Packet::SslRequest => w.ssl_request(),
        Packet::GssEncRequest => w.gssenc_request(),
        Packet::CancelRequest(request) => w.cancel_request(request.process_id, request.key),
        Packet::StartupMessage(message) => {
            assert!(!message.user().is_empty());
            let _ = (message.database(), message.options(), message.replication());
            let special = message.parameters.count() - message.settings().count();
            assert!(special > message.protocol_options().count());
            w.startup_message(message.version, message.parameters)
        }
    });
}

fn options(data: &[u8]) {
    let switches: Vec<Switch> = startup::switches(data).collect();
    for (index, switch) in switches.iter().enumerate() {
        match switch {
            Switch::Setting { name, .. } => assert!(!name.contains(&b'-') && !name.contains(&b'=')),
            Switch::NoValue { name } => assert!(!name.contains(&b'-') && !name.contains(&b'=')),
            Switch::Other { .. } => assert_eq!(index, switches.len() - 1),
        }
    }
}

fn query(data: &[u8]) {
    let message = message(frontend::QUERY, data);
    let Ok(text) = reader::query(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.query(text));
}

fn parse(data: &[u8]) {
    let message = message(frontend::PARSE, data);
    let name = check_prefixes(&message, reader::parse_name);
    let Ok(parse) = reader::parse(&message) else {
        return;
    };
    assert_eq!(&message[name.expect("the whole was valid")], parse.name);
    let (count, types) = parse.parameter_types.split_first_chunk().expect("a count is there");
    assert_eq!(types.len(), 4 * usize::from(u16::from_be_bytes(*count)));
    check_rewritten(&message, |w| w.parse(parse.name, parse.query, parse.parameter_types));
    check_rewritten(&message, |w| {
        let rest = &message[HEAD_SIZE + parse.name.len() + 1..];
        w.parse_head(parse.name, rest.len())?;
        w.raw(rest)
    });
}

fn bind(data: &[u8]) {
    let message = message(frontend::BIND, data);
    let Ok(names) = check_prefixes(&message, reader::bind_names) else {
        return;
    };
    let rest = &message[names.statement.end + 1..];
    let (portal, statement) = (&message[names.portal], &message[names.statement]);
    check_rewritten(&message, |w| w.bind(portal, statement, rest));
    check_rewritten(&message, |w| {
        w.bind_head(portal, statement, rest.len())?;
        w.raw(rest)
    });
}

fn target(data: &[u8]) {
    for tag in [frontend::DESCRIBE, frontend::CLOSE] {
        let message = message(tag, data);
        let Ok(target) = check_prefixes(&message, reader::target) else {
            continue;
        };
        let name = &message[target.name.clone()];
        if target.name.end + 1 < message.len() {
            continue; // what comes after the name is the server's to refuse
        }
        check_rewritten(&message, |w| match tag {
            frontend::DESCRIBE => w.describe(target.kind, name),
            _ => w.close(target.kind, name),
        });
    }
}

fn execute(data: &[u8]) {
    let message = message(frontend::EXECUTE, data);
    let Ok(execute) = reader::execute(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.execute(execute.portal, execute.rows_max));
}

fn sasl_initial_response(data: &[u8]) {
    let message = message(frontend::PASSWORD, data);
    assert_eq!(reader::sasl_response(&message), data);
    let Ok(response) = reader::sasl_initial_response(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.sasl_initial_response(response.mechanism, response.data));
}

fn authentication(data: &[u8]) {
    let message = message(backend::AUTHENTICATION, data);
    let Ok(authentication) = reader::authentication(&message) else {
        return;
    };
    check_rewritten(&message, |w| match authentication {
        Authentication::Ok => w.authentication_ok(),
        Authentication::CleartextPassword => w.authentication_cleartext_password(),
        Authentication::Md5Password { salt } => w.authentication_md5_password(salt),
        Authentication::Sasl { mechanisms } => {
            let offered: Vec<&[u8]> = mechanisms.iter().collect();
            assert!(offered.iter().all(|mechanism| mechanisms.offers(mechanism)));
            w.authentication_sasl(&offered)
        }
        Authentication::SaslContinue { data } => w.authentication_sasl_continue(data),
        Authentication::SaslFinal { data } => w.authentication_sasl_final(data),
        // QCP does not offer these.
        Authentication::Gss
        | Authentication::GssContinue { .. }
        | Authentication::Sspi
        | Authentication::Other { .. } => w.raw(&message),
    });
}

fn backend_key_data(data: &[u8]) {
    let message = message(backend::BACKEND_KEY_DATA, data);
    let Ok(key) = reader::backend_key_data(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.backend_key_data(key.process_id, key.key));
}

fn parameter_status(data: &[u8]) {
    let message = message(backend::PARAMETER_STATUS, data);
    let Ok(status) = reader::parameter_status(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.parameter_status(status.name, status.value));
}

fn ready_for_query(data: &[u8]) {
    let message = message(backend::READY_FOR_QUERY, data);
    let Ok(status) = reader::ready_for_query(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.ready_for_query(status));
}

fn error_fields(data: &[u8]) {
    let message = message(backend::ERROR_RESPONSE, data);
    let whole: Vec<_> = reader::fields(&message).collect();
    for size in 0..message.len() {
        let come: Vec<_> = reader::fields(&message[..size]).collect();
        assert!(whole.starts_with(&come));
    }
    let fields = reader::fields(&message);
    let _ = (fields.severity(), fields.code(), fields.message());
}

fn negotiate_protocol_version(data: &[u8]) {
    let message = message(backend::NEGOTIATE_PROTOCOL_VERSION, data);
    let Ok(answer) = reader::negotiate_protocol_version(&message) else {
        return;
    };
    check_rewritten(&message, |w| w.negotiate_protocol_version(answer.version, answer.options));
}

fn notification_response(data: &[u8]) {
    let message = message(backend::NOTIFICATION_RESPONSE, data);
    let Ok(notification) = reader::notification_response(&message) else {
        return;
    };
    let reader::Notification { process_id, channel, payload } = notification;
    check_rewritten(&message, |w| w.notification_response(process_id, channel, payload));
}

fn data_row(data: &[u8]) {
    let message = message(backend::DATA_ROW, data);
    let Ok(values) = reader::data_row(&message) else {
        return;
    };
    let values: Vec<Option<&[u8]>> = values.collect();
    check_rewritten(&message, |w| w.data_row(&values));
}

/// The first byte is the message's tag.
fn trace_line(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else {
        return;
    };
    let message = message(tag, body);
    for direction in [Direction::Frontend, Direction::Backend] {
        for line in [trace::line(direction, &message), trace::stable_line(direction, &message)] {
            assert!(line.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')), "{line}");
        }
    }
}

fn check_rewritten(message: &[u8], write: impl Fn(&mut Writer<'_>) -> Result<(), Full>) {
    let mut buffer = vec![0; message.len()];
    let mut writer = Writer::new(&mut buffer);
    assert_eq!(write(&mut writer), Ok(()));
    assert_eq!(writer.written(), message);

    let mut buffer = vec![0; message.len() - 1];
    assert_eq!(write(&mut Writer::new(&mut buffer)), Err(Full));
}

/// What `decode` says of the whole message, having checked that it says that or "more" of each prefix.
fn check_prefixes<T: PartialEq + std::fmt::Debug>(
    message: &[u8],
    decode: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
) -> Result<T, Malformed> {
    let whole = decode(message);
    for size in 0..message.len() {
        let prefix = decode(&message[..size]);
        assert!(prefix == Ok(None) || prefix == whole, "{size} bytes say {prefix:?}, all say {whole:?}");
    }
    whole.map(|found| found.expect("a whole message is enough"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few values, so that strings end and counts fit now and then.
    const LIKELY: &[u8] = b"\0\0\0\0\x01\x02\x05\xffSPabu=-c \\";

    proptest! {
        #[test]
        fn hold_for_noise(data in prop::collection::vec(any::<u8>(), 0..200)) {
            ALL.iter().for_each(|(_, property)| property(&data));
        }

        #[test]
        fn hold_for_what_is_nearly_valid(
            data in prop::collection::vec(prop::sample::select(LIKELY), 0..40),
        ) {
            ALL.iter().for_each(|(_, property)| property(&data));
        }
    }

    /// What the fuzzer once found stays found.
    #[test]
    fn hold_for_the_corpus() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, property) in ALL {
            let files = std::fs::read_dir(corpus.join(name)).expect("each target has a corpus");
            for file in files {
                let path = file.expect("the folder is ours").path();
                property(&std::fs::read(&path).expect("the file is ours"));
            }
        }
    }
}
