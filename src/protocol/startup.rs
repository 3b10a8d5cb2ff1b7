//! The packets before the first tagged message: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
//!
//! ```text
//! | length 4 | code or version 4 | parameters: (name 0 value 0)* 0, or process id 4 and key |
//! ```
//!
//! Verdicts and their words are those of PostgreSQL's `ProcessStartupPacket`. Logins are rare, so the splitting of
//! `options` may allocate; nothing else here does.

use super::SqlState;
use super::tag::{KEY_SIZE_MAX, KEY_SIZE_MIN};
use super::writer::{Full, Writer};
use std::fmt;

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`, which does not count the length field.
pub const PACKET_SIZE_MAX: usize = 10_000 + LENGTH_SIZE;

/// A length and a code: the least that there is, and all there is of SSLRequest and GSSENCRequest.
pub const PACKET_SIZE_MIN: usize = 8;

const LENGTH_SIZE: usize = 4;

/// The first byte of a client that begins with TLS at once; no packet begins so, it would be too long.
pub const TLS_HANDSHAKE: u8 = 0x16;

/// One byte answers SSLRequest and GSSENCRequest. Or an ErrorResponse does, of a server that never heard of them.
pub const TLS_ACCEPTED: u8 = b'S';
pub const GSS_ACCEPTED: u8 = b'G';
pub const ENCRYPTION_REFUSED: u8 = b'N';

/// An SSLRequest, whole.
pub const SSL_REQUEST_PACKET: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

const PROTOCOL_OPTION_PREFIX: &[u8] = b"_pq_.";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

impl Version {
    pub const V3_0: Version = Version { major: 3, minor: 0 };
    pub const V3_2: Version = Version { major: 3, minor: 2 };

    pub const fn from_code(code: u32) -> Version {
        Version { major: (code >> 16) as u16, minor: code as u16 }
    }

    pub const fn code(self) -> u32 {
        (self.major as u32) << 16 | self.minor as u32
    }

    /// The version to speak with a client that asks for this one; `None` if there is none in common. Where it is
    /// another, or where the client names protocol options, NegotiateProtocolVersion says so.
    pub const fn negotiate(self) -> Option<Version> {
        match (self.major, self.minor) {
            // "Version 3.1 has not been used by any PostgreSQL version" (Frontend/Backend Protocol, Versions).
            (3, 0 | 1) => Some(Version::V3_0),
            (3, _) => Some(Version::V3_2),
            _ => None,
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a client says before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    SslRequest,
    GssEncRequest,
    CancelRequest(CancelRequest<'a>),
    StartupMessage(StartupMessage<'a>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CancelRequest<'a> {
    pub process_id: u32,
    pub key: &'a [u8],
}

/// The key is a secret and stays out of logs.
impl fmt::Debug for CancelRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelRequest({}, {} bytes)", self.process_id, self.key.len())
    }
}

/// Its user is there and not empty, and its version is one to negotiate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartupMessage<'a> {
    pub version: Version,
    pub parameters: Parameters<'a>,
    /// What the protocol itself gives a meaning, found when the packet was read.
    known: Known<'a>,
}

/// Where one is named twice, the last holds, as in PostgreSQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known<'a> {
    user: &'a [u8],
    database: &'a [u8],
    options: Option<&'a [u8]>,
    replication: Option<&'a [u8]>,
}

/// Why a first packet is refused. The client wrote it, so it is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The length field. PostgreSQL only hangs up on these.
    Length(u32),
    KeySize(usize),
    UnsupportedVersion(Version),
    NoTerminator,
    NoUser,
}

impl Refused {
    pub const fn code(self) -> SqlState {
        match self {
            Refused::Length(_) | Refused::KeySize(_) | Refused::NoTerminator => SqlState::PROTOCOL_VIOLATION,
            Refused::UnsupportedVersion(_) => SqlState::FEATURE_NOT_SUPPORTED,
            Refused::NoUser => SqlState::INVALID_AUTHORIZATION,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Length(_) => f.write_str("invalid length of startup packet"),
            Refused::KeySize(_) => f.write_str("invalid length of cancel key in cancel request"),
            Refused::UnsupportedVersion(version) => {
                write!(f, "unsupported frontend protocol {version}: server supports 3.0 to 3.2")
            }
            Refused::NoTerminator => f.write_str("invalid startup packet layout: expected terminator as last byte"),
            Refused::NoUser => f.write_str("no PostgreSQL user name specified in startup packet"),
        }
    }
}

impl std::error::Error for Refused {}

/// The packet that begins `prefix`, and its size; `None` as long as it has not come whole. Bytes may follow it.
pub fn packet(prefix: &[u8]) -> Result<Option<(Packet<'_>, usize)>, Refused> {
    let Some(length) = prefix.first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    let size = length as usize;
    if !(PACKET_SIZE_MIN..=PACKET_SIZE_MAX).contains(&size) {
        return Err(Refused::Length(length));
    }
    let Some(packet) = prefix.get(..size) else {
        return Ok(None);
    };

    let (head, body) = packet.split_at(PACKET_SIZE_MIN);
    let code = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let packet = match code {
        SSL_REQUEST | GSSENC_REQUEST if !body.is_empty() => return Err(Refused::Length(length)),
        SSL_REQUEST => Packet::SslRequest,
        GSSENC_REQUEST => Packet::GssEncRequest,
        CANCEL_REQUEST => Packet::CancelRequest(cancel_request(body, length)?),
        version => Packet::StartupMessage(startup_message(Version::from_code(version), body)?),
    };
    Ok(Some((packet, size)))
}

fn cancel_request(body: &[u8], length: u32) -> Result<CancelRequest<'_>, Refused> {
    let (process_id, key) = body.split_first_chunk().ok_or(Refused::Length(length))?;
    if !(KEY_SIZE_MIN..=KEY_SIZE_MAX).contains(&key.len()) {
        return Err(Refused::KeySize(key.len()));
    }
    Ok(CancelRequest { process_id: u32::from_be_bytes(*process_id), key })
}

fn startup_message(version: Version, body: &[u8]) -> Result<StartupMessage<'_>, Refused> {
    if version.negotiate().is_none() {
        return Err(Refused::UnsupportedVersion(version));
    }
    let (parameters, known) = Parameters::checked(body).ok_or(Refused::NoTerminator)?;
    if known.user.is_empty() {
        return Err(Refused::NoUser);
    }
    Ok(StartupMessage { version, parameters, known })
}

impl<'a> StartupMessage<'a> {
    pub fn user(&self) -> &'a [u8] {
        self.known.user
    }

    /// "Defaults to the user name" (Message Formats, StartupMessage).
    pub fn database(&self) -> &'a [u8] {
        if self.known.database.is_empty() { self.known.user } else { self.known.database }
    }

    /// The text of `options`, for [`switches`].
    pub fn options(&self) -> Option<&'a [u8]> {
        self.known.options
    }

    /// What `replication` asks for; `Err` is a value that it cannot have (22023).
    pub fn replication(&self) -> Result<Replication, &'a [u8]> {
        self.known.replication.map_or(Ok(Replication::No), |value| Replication::from_value(value).ok_or(value))
    }

    /// The settings that the client names outright: all but what this protocol gives a meaning of its own.
    pub fn settings(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.parameters.filter(|(name, _)| {
            !matches!(*name, b"user" | b"database" | b"options" | b"replication") && !is_protocol_option(name)
        })
    }

    /// The names of protocol options. None are understood, so NegotiateProtocolVersion lists them all.
    pub fn protocol_options(&self) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.parameters.map(|(name, _)| name).filter(|name| is_protocol_option(name))
    }
}

fn is_protocol_option(name: &[u8]) -> bool {
    name.starts_with(PROTOCOL_OPTION_PREFIX)
}

/// Names and values as the client listed them, and the zero after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters<'a> {
    bytes: &'a [u8],
}

impl<'a> Parameters<'a> {
    /// `None` unless these are pairs of strings and then one zero, the last byte.
    fn checked(bytes: &'a [u8]) -> Option<(Self, Known<'a>)> {
        let (mut parameters, mut known) = (Parameters { bytes }, Known::default());
        for (name, value) in &mut parameters {
            match name {
                b"user" => known.user = value,
                b"database" => known.database = value,
                b"options" => known.options = Some(value),
                b"replication" => known.replication = Some(value),
                _ => {}
            }
        }
        (parameters.bytes == [0]).then_some((Parameters { bytes }, known))
    }

    /// Where one is named twice, the last holds, as in PostgreSQL.
    pub fn get(self, name: &[u8]) -> Option<&'a [u8]> {
        self.filter(|(found, _)| *found == name).map(|(_, value)| value).last()
    }
}

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // Byte by byte: these are words, too short for anything cleverer to pay.
        let end_of = |bytes: &[u8]| bytes.iter().position(|byte| *byte == 0);
        let name_end = end_of(self.bytes).filter(|end| *end > 0)?;
        let (name, value) = (&self.bytes[..name_end], &self.bytes[name_end + 1..]);
        let value_end = end_of(value)?;
        self.bytes = &value[value_end + 1..];
        Some((name, &value[..value_end]))
    }
}

/// What kind of replication connection it is, if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    No,
    Physical,
    Logical,
}

impl Replication {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Replication::No => "none",
            Replication::Physical => "physical",
            Replication::Logical => "logical",
        }
    }

    /// `database`, or what PostgreSQL's `parse_bool` takes: any beginning of these words that is not ambiguous.
    fn from_value(value: &[u8]) -> Option<Replication> {
        const WORDS: [(&[u8], usize, Replication); 8] = [
            (b"true", 1, Replication::Physical),
            (b"false", 1, Replication::No),
            (b"yes", 1, Replication::Physical),
            (b"no", 1, Replication::No),
            (b"on", 2, Replication::Physical),
            (b"off", 2, Replication::No),
            (b"1", 1, Replication::Physical),
            (b"0", 1, Replication::No),
        ];
        if value == b"database" {
            return Some(Replication::Logical);
        }
        let is_beginning = |word: &[u8], size_min: usize| {
            value.len() >= size_min && word.get(..value.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(value))
        };
        WORDS.iter().find(|(word, size_min, _)| is_beginning(word, *size_min)).map(|(.., found)| *found)
    }
}

/// What one switch in `options` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// `-c name=value`, `-cname=value` or `--name=value`; dashes in the name have become underscores.
    Setting { name: Vec<u8>, value: Vec<u8> },
    /// One of these forms without its value: PostgreSQL refuses the login (42601).
    NoValue { name: Vec<u8> },
    /// A switch that only a server can obey, or refuse. It may have taken what follows as its argument, so the list
    /// ends here.
    Other { switch: Vec<u8> },
}

/// The switches in the text of `options`, split as PostgreSQL's `pg_split_opts` and `getopt` do.
pub fn switches(options: &[u8]) -> Switches<'_> {
    Switches { options }
}

pub struct Switches<'a> {
    options: &'a [u8],
}

impl Iterator for Switches<'_> {
    type Item = Switch;

    fn next(&mut self) -> Option<Switch> {
        let switch = self.next_word()?;
        let setting = match switch.as_slice() {
            // Alone it ends the switches, and words that are none are refused.
            b"--" => None,
            [b'-', b'-', setting @ ..] => Some(setting.to_vec()),
            b"-c" => Some(self.next_word().unwrap_or_default()),
            [b'-', b'c', setting @ ..] => Some(setting.to_vec()),
            _ => None,
        };
        let Some(setting) = setting else {
            self.options = &[];
            return Some(Switch::Other { switch });
        };
        Some(setting_switch(setting))
    }
}

impl Switches<'_> {
    /// "Spaces within this string are considered to separate arguments, unless escaped with a backslash; write \\ to
    /// represent a literal backslash" (libpq, Parameter Key Words, options).
    fn next_word(&mut self) -> Option<Vec<u8>> {
        let start = self.options.iter().position(|byte| !is_space(*byte))?;
        let mut word = Vec::new();
        let mut escaped = false;
        let mut size = start;
        for &byte in &self.options[start..] {
            if !escaped && is_space(byte) {
                break;
            }
            size += 1;
            escaped = !escaped && byte == b'\\';
            if !escaped {
                word.push(byte);
            }
        }
        self.options = &self.options[size..];
        Some(word)
    }
}

/// C's `isspace`, which knows the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn setting_switch(setting: Vec<u8>) -> Switch {
    let mut parts = setting.splitn(2, |byte| *byte == b'=');
    let name = parts.next().unwrap_or_default();
    let name = name.iter().map(|byte| if *byte == b'-' { b'_' } else { *byte }).collect();
    match parts.next() {
        Some(value) => Switch::Setting { name, value: value.to_vec() },
        None => Switch::NoValue { name },
    }
}

impl Writer<'_> {
    pub fn ssl_request(&mut self) -> Result<(), Full> {
        self.packet(SSL_REQUEST, |_| Ok(()))
    }

    pub fn gssenc_request(&mut self) -> Result<(), Full> {
        self.packet(GSSENC_REQUEST, |_| Ok(()))
    }

    pub fn cancel_request(&mut self, process_id: u32, key: &[u8]) -> Result<(), Full> {
        self.packet(CANCEL_REQUEST, |w| {
            w.put(&process_id.to_be_bytes())?;
            w.put(key)
        })
    }

    pub fn startup_message<'p>(
        &mut self,
        version: Version,
        parameters: impl IntoIterator<Item = (&'p [u8], &'p [u8])>,
    ) -> Result<(), Full> {
        self.packet(version.code(), |w| {
            for (name, value) in parameters {
                w.put_string(name)?;
                w.put_string(value)?;
            }
            w.put(&[0])
        })
    }

    fn packet(&mut self, code: u32, body: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        self.whole(|w| {
            w.counted(0, |w| {
                w.put(&code.to_be_bytes())?;
                body(w)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
        let mut buffer = [0; 20_000];
        let mut writer = Writer::new(&mut buffer);
        write(&mut writer).expect("the buffer is large enough");
        writer.written().to_vec()
    }

    fn startup(code: u32, body: &[u8]) -> Vec<u8> {
        let length = (body.len() + PACKET_SIZE_MIN) as u32;
        [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
    }

    fn check(bytes: &[u8]) -> Packet<'_> {
        for size in 0..bytes.len() {
            assert_eq!(packet(&bytes[..size]), Ok(None));
        }
        let (found, size) = packet(bytes).expect("this is valid").expect("this is whole");
        assert_eq!(size, bytes.len());
        found
    }

    fn message(bytes: &[u8]) -> StartupMessage<'_> {
        let Packet::StartupMessage(message) = check(bytes) else { panic!("not a StartupMessage") };
        message
    }

    #[test]
    fn reads_the_requests() {
        assert_eq!(check(&written(|w| w.ssl_request())), Packet::SslRequest);
        assert_eq!(check(&written(|w| w.gssenc_request())), Packet::GssEncRequest);
        for size in [4, 32, 256] {
            let key = vec![7; size];
            let request = CancelRequest { process_id: 0xdead_beef, key: &key };
            let bytes = written(|w| w.cancel_request(0xdead_beef, &key));
            assert_eq!(check(&bytes), Packet::CancelRequest(request));
        }
    }

    #[test]
    fn reads_parameters() {
        let bytes = startup(Version::V3_2.code(), b"user\0ann\0user\0bob\0_pq_.x\0on\0TimeZone\0\0\0");
        let message = message(&bytes);
        assert_eq!(message.version, Version::V3_2);
        assert_eq!((message.user(), message.database()), (&b"bob"[..], &b"bob"[..]));
        assert_eq!(message.settings().collect::<Vec<_>>(), [(&b"TimeZone"[..], &b""[..])]);
        assert_eq!(message.protocol_options().collect::<Vec<_>>(), [b"_pq_.x"]);
        assert_eq!((message.options(), message.replication()), (None, Ok(Replication::No)));
    }

    #[test]
    fn refuses_what_postgresql_refuses() {
        let v3 = Version::V3_0.code();
        let cases: [(Vec<u8>, Refused); 16] = [
            (b"\0\0\0\x07".to_vec(), Refused::Length(7)),
            (b"\0\0\x27\x15".to_vec(), Refused::Length(10_005)),
            (b"GET / HTTP/1.1".to_vec(), Refused::Length(0x4745_5420)),
            (startup(SSL_REQUEST, b"x"), Refused::Length(9)),
            (startup(CANCEL_REQUEST, b"abc"), Refused::Length(11)),
            (startup(CANCEL_REQUEST, b"1234abc"), Refused::KeySize(3)),
            (startup(CANCEL_REQUEST, &[0; 261]), Refused::KeySize(257)),
            (startup(0x0002_0000, b""), Refused::UnsupportedVersion(Version { major: 2, minor: 0 })),
            (startup(0x0004_0001, b""), Refused::UnsupportedVersion(Version { major: 4, minor: 1 })),
            (startup(v3, b""), Refused::NoTerminator),
            (startup(v3, b"user\0ann\0"), Refused::NoTerminator),
            (startup(v3, b"user\0ann"), Refused::NoTerminator),
            (startup(v3, b"user\0"), Refused::NoTerminator),
            (startup(v3, b"user\0ann\0\0x"), Refused::NoTerminator),
            (startup(v3, b"\0"), Refused::NoUser),
            (startup(v3, b"user\0\0\0"), Refused::NoUser),
        ];
        for (bytes, refused) in cases {
            assert_eq!(packet(&bytes), Err(refused), "{bytes:?}");
        }
        assert_eq!(
            Refused::UnsupportedVersion(Version::from_code(0x0002_0000)).to_string(),
            "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"
        );
    }

    #[test]
    fn negotiates_the_version() {
        let negotiated = |code| Version::from_code(code).negotiate();
        assert_eq!(negotiated(0x0003_0000), Some(Version::V3_0));
        assert_eq!(negotiated(0x0003_0001), Some(Version::V3_0));
        assert_eq!(negotiated(0x0003_0002), Some(Version::V3_2));
        assert_eq!(negotiated(0x0003_270f), Some(Version::V3_2));
        assert_eq!(negotiated(0x0002_0000), None);
    }

    #[test]
    fn reads_replication_as_a_bool_or_database() {
        for (value, expected) in [
            (&b"database"[..], Some(Replication::Logical)),
            (b"TRUE", Some(Replication::Physical)),
            (b"t", Some(Replication::Physical)),
            (b"on", Some(Replication::Physical)),
            (b"of", Some(Replication::No)),
            (b"0", Some(Replication::No)),
            (b"o", None),
            (b"", None),
            (b"Database", None),
            (b"truely", None),
        ] {
            assert_eq!(Replication::from_value(value), expected, "{value:?}");
        }
    }

    #[test]
    fn splits_options() {
        let setting = |name: &str, value: &str| Switch::Setting { name: name.into(), value: value.into() };
        let check = |options: &str, expected: &[Switch]| {
            assert_eq!(switches(options.as_bytes()).collect::<Vec<_>>(), expected, "{options}");
        };
        check("", &[]);
        check(" \t\x0b\n", &[]);
        check("-c geqo=off", &[setting("geqo", "off")]);
        check("  -cgeqo=off  ", &[setting("geqo", "off")]);
        check("--search-path=a,b -c work-mem=1MB", &[setting("search_path", "a,b"), setting("work_mem", "1MB")]);
        check(r"-c search_path=a\ b\\c", &[setting("search_path", r"a b\c")]);
        check(r"-c a.b=x=y\", &[setting("a.b", "x=y")]);
        check("-c\n a=", &[setting("a", "")]);
        check("-c geqo", &[Switch::NoValue { name: "geqo".into() }]);
        check("--", &[Switch::Other { switch: "--".into() }]);
        check("-c", &[Switch::NoValue { name: "".into() }]);
        check("-c a=1 -B 16 -c b=2", &[setting("a", "1"), Switch::Other { switch: "-B".into() }]);
        check("word", &[Switch::Other { switch: "word".into() }]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            pairs in prop::collection::vec(("[a-z_.]{1,12}", "[^\0]{0,20}"), 0..8),
            minor in 0u16..5,
        ) {
            let pairs: Vec<(&[u8], &[u8])> = [(&b"user"[..], &b"ann"[..])].into_iter()
                .chain(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
                .filter(|(name, value)| *name != b"user" || !value.is_empty())
                .collect();
            let version = Version { major: 3, minor };
            let bytes = written(|w| w.startup_message(version, pairs.iter().copied()));
            let message = message(&bytes);
            prop_assert_eq!(message.version, version);
            prop_assert_eq!(message.parameters.collect::<Vec<_>>(), pairs);
        }
    }
}
