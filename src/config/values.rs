//! The values at the end of a key: each knows how it is read and says what is allowed.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Unexpected, Visitor};

use super::LogFormat;
use super::SessionState;
use super::sizes::{DURATION_MAX, format_duration, parse_duration, parse_size};
use super::tls::{Negotiation, TlsMode, TlsVersion};
use crate::auth::hba::Network;
use crate::auth::secrets::SECRET_SIZE_MAX;
use crate::auth::settings::Method;
use crate::pool::{Route, Schedule};
use crate::session::RelayMode;
use crate::session::Transparency;

/// A value that is written as a text.
pub(super) trait FromText: Sized {
    /// Ends the sentence "found x: ...".
    fn allowed() -> String;
    fn from_text(text: &str) -> Option<Self>;
}

/// Makes serde read a [`FromText`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Parsed<T>(pub T);

impl<'de, T: FromText> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParsedVisitor<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for ParsedVisitor<T> {
            type Value = Parsed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&T::allowed())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Parsed<T>, E> {
                T::from_text(text).map(Parsed).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(ParsedVisitor(PhantomData))
    }
}

/// One of several words; capitals do not matter.
trait Word: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

impl Word for RelayMode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("Session", RelayMode::Session), ("Smart", RelayMode::Smart), ("Statement", RelayMode::Statement)];
}

impl Word for Schedule {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("round-robin", Schedule::RoundRobin),
        ("random", Schedule::Random),
        ("load-balancing", Schedule::LoadBalancing),
    ];
}

impl Word for Route {
    const WORDS: &'static [(&'static str, Self)] =
        &[("primary", Route::Primary), ("standby", Route::Standby), ("any", Route::Any)];
}

impl Word for log::LevelFilter {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("Off", log::LevelFilter::Off),
        ("Error", log::LevelFilter::Error),
        ("Warn", log::LevelFilter::Warn),
        ("Info", log::LevelFilter::Info),
        ("Debug", log::LevelFilter::Debug),
        ("Trace", log::LevelFilter::Trace),
    ];
}

impl Word for Method {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("server", Method::Server),
        ("trust", Method::Trust),
        ("reject", Method::Reject),
        ("password", Method::Password),
        ("md5", Method::Md5),
        ("scram-sha-256", Method::Scram),
        ("scram-sha-256-plus", Method::ScramPlus),
        ("cert", Method::Cert),
        ("peer", Method::Peer),
        ("hba", Method::Hba),
    ];
}

/// Whether something is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Switch {
    On,
    Off,
}

impl Word for Switch {
    const WORDS: &'static [(&'static str, Self)] = &[("on", Switch::On), ("off", Switch::Off)];
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
}

impl Word for SessionState {
    const WORDS: &'static [(&'static str, Self)] =
        &[("preserve", SessionState::Preserve), ("none", SessionState::None)];
}

impl Word for Transparency {
    const WORDS: &'static [(&'static str, Self)] =
        &[("fast", Transparency::Fast), ("balanced", Transparency::Balanced), ("strict", Transparency::Strict)];
}

impl Word for TlsMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Allow),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ];
}

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("TLSv1.2", TlsVersion::V1_2),
        ("TLSv1.3", TlsVersion::V1_3),
        ("1.2", TlsVersion::V1_2),
        ("1.3", TlsVersion::V1_3),
    ];
}

impl Word for Negotiation {
    const WORDS: &'static [(&'static str, Self)] =
        &[("postgres", Negotiation::Postgres), ("direct", Negotiation::Direct)];
}

impl<T: Word> FromText for T {
    fn allowed() -> String {
        match T::WORDS {
            [(only, _)] => (*only).to_owned(),
            words => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("one of {}", words.join(", "))
            }
        }
    }

    fn from_text(text: &str) -> Option<T> {
        T::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
    }
}

/// A duration of at least so many milliseconds; where 0 is allowed it switches something off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait<const MIN_MS: u64>(pub Duration);

impl<const MIN_MS: u64> FromText for Wait<MIN_MS> {
    fn allowed() -> String {
        let (min, max) = (format_duration(Duration::from_millis(MIN_MS)), format_duration(DURATION_MAX));
        format!("a duration from {min} to {max}, such as 100ms, 10s, 5m or 1h")
    }

    fn from_text(text: &str) -> Option<Self> {
        parse_duration(text).filter(|duration| *duration >= Duration::from_millis(MIN_MS)).map(Wait)
    }
}

impl FromText for SocketAddr {
    fn allowed() -> String {
        "\"address:port\" with a numeric address, such as 127.0.0.1:9930 or [::1]:9930".to_owned()
    }

    fn from_text(text: &str) -> Option<SocketAddr> {
        text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
    }
}

impl FromText for PathBuf {
    fn allowed() -> String {
        "the path of a file".to_owned()
    }

    fn from_text(text: &str) -> Option<PathBuf> {
        (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
    }
}

impl FromText for Network {
    fn allowed() -> String {
        "a network, such as 10.0.0.0/8 or fd00::/8, or an address".to_owned()
    }

    fn from_text(text: &str) -> Option<Network> {
        Network::from_text(text)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Count<const MIN: u32, const MAX: u32>(pub u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for CountVisitor<MIN, MAX> {
            type Value = Count<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                let allowed: RangeInclusive<u32> = MIN..=MAX;
                let count = u32::try_from(value).ok().filter(|count| allowed.contains(count));
                count.map(Count).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
            }
        }

        deserializer.deserialize_u64(CountVisitor)
    }
}

/// A statement for servers; empty: none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Query(pub String);

/// A statement that is sent often.
const QUERY_SIZE_MAX: usize = 1000;

impl FromText for Query {
    fn allowed() -> String {
        format!("a statement of at most {QUERY_SIZE_MAX} bytes, or an empty text for none")
    }

    fn from_text(text: &str) -> Option<Query> {
        (text.len() <= QUERY_SIZE_MAX && !text.contains('\0')).then(|| Query(text.trim().to_owned()))
    }
}

/// A number of bytes: plain, or with a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a size such as 64 KB or 3.1 GB (B, KB, MB, GB)")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map(Size).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

/// The name of a database or user. One that looks like a number needs no quotes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name(pub String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name (in quotes, if YAML takes it for something else)")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Name, E> {
                Ok(Name(value.to_string()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
                // The startup packet ends a name with a zero byte, and an empty one means "none".
                if text.is_empty() || text.contains('\0') {
                    return Err(E::invalid_value(Unexpected::Str(text), &self));
                }
                Ok(Name(text.to_owned()))
            }
        }

        deserializer.deserialize_any(NameVisitor)
    }
}

/// A secret. No error and no log shows what was written.
#[derive(Clone)]
pub(super) struct Hidden(pub zeroize::Zeroizing<String>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HiddenVisitor;

        impl Visitor<'_> for HiddenVisitor {
            type Value = Hidden;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a secret in quotes, of 1 to {SECRET_SIZE_MAX} bytes")
            }

            // YAML would make 007 a 7.
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Hidden, E> {
                Err(E::invalid_value(Unexpected::Other("a number"), &self))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Hidden, E> {
                Err(E::invalid_value(Unexpected::Other("a number"), &self))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Hidden, E> {
                Err(E::invalid_value(Unexpected::Other("a number"), &self))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Hidden, E> {
                Err(E::invalid_value(Unexpected::Other("a word that YAML takes for a truth value"), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hidden, E> {
                if text.is_empty() || text.len() > SECRET_SIZE_MAX || text.contains('\0') {
                    return Err(E::invalid_value(Unexpected::Other("an empty, too long or broken text"), &self));
                }
                Ok(Hidden(text.to_owned().into()))
            }
        }

        deserializer.deserialize_any(HiddenVisitor)
    }
}

/// One value, or a list of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: FromText> Deserialize<'de> for OneOrMany<Parsed<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<T>(PhantomData<T>);

        impl<'de, T: FromText> Visitor<'de> for OneOrManyVisitor<T> {
            type Value = OneOrMany<Parsed<T>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}; or a list of these", T::allowed())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let one = T::from_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
                Ok(OneOrMany(vec![Parsed(one)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }

        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}
