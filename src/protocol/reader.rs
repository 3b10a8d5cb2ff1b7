//! Borrowed decoders of the few bodies that QCP looks into. All else is forwarded unread.
//!
//! Most take a whole message. Those named for a *prefix* take as much of a message as has come, and answer `None` as
//! long as that is too little; what they say of a prefix is what they would say of the whole message. No decoder
//! trusts a peer: every slice is checked, and what does not fit is [`Malformed`].

use super::error::{Severity, SqlState, field};
use super::tag::{KEY_SIZE_MAX, KEY_SIZE_MIN, TargetKind, TransactionStatus};
use super::writer::authentication;
use super::{HEAD_SIZE, Malformed};
use memchr::memchr;
use std::ops::Range;

/// Where a name is in its message, without its terminating zero.
pub type NameRange = Range<usize>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub query: &'a [u8],
    /// As on the wire: a count and as many type ids, four bytes each.
    pub parameter_types: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindNames {
    pub portal: NameRange,
    pub statement: NameRange,
}

/// What a Describe or a Close names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: TargetKind,
    pub name: NameRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute<'a> {
    pub portal: &'a [u8],
    /// 0 and less is all of them.
    pub rows_max: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    pub mechanism: &'a [u8],
    pub data: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterStatus<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
}

/// What a cancel must show. The key has four bytes in protocol 3.0 and up to 256 in 3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendKey<'a> {
    pub process_id: u32,
    pub key: &'a [u8],
}

/// The key is a secret and stays out of logs.
impl std::fmt::Debug for BackendKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BackendKey({}, {} bytes)", self.process_id, self.key.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    Ok,
    CleartextPassword,
    Md5Password {
        salt: [u8; 4],
    },
    Sasl {
        mechanisms: Mechanisms<'a>,
    },
    SaslContinue {
        data: &'a [u8],
    },
    SaslFinal {
        data: &'a [u8],
    },
    Gss,
    GssContinue {
        data: &'a [u8],
    },
    Sspi,
    /// A method that this protocol does not name, such as the Kerberos V5 of old.
    Other {
        code: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegotiateProtocolVersion<'a> {
    /// The newest that the server speaks. The manual says the minor only, servers send all of it: compare the low half.
    pub version: u32,
    pub options: Strings<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    pub process_id: u32,
    pub channel: &'a [u8],
    pub payload: &'a [u8],
}

// What clients send.

/// The text of a Query.
pub fn query(message: &[u8]) -> Result<&[u8], Malformed> {
    let mut body = Body::of(message);
    let text = body.string()?;
    body.end()?;
    Ok(text)
}

pub fn parse(message: &[u8]) -> Result<Parse<'_>, Malformed> {
    let mut body = Body::of(message);
    let name = body.string()?;
    let query = body.string()?;
    let parameter_types = body.bytes;
    let count = body.u16()?;
    body.take(4 * usize::from(count))?;
    body.end()?;
    Ok(Parse { name, query, parameter_types })
}

pub fn parse_name(prefix: &[u8]) -> Result<Option<NameRange>, Malformed> {
    name_at(prefix, HEAD_SIZE)
}

pub fn bind_names(prefix: &[u8]) -> Result<Option<BindNames>, Malformed> {
    let Some(portal) = name_at(prefix, HEAD_SIZE)? else {
        return Ok(None);
    };
    let Some(statement) = name_at(prefix, portal.end + 1)? else {
        return Ok(None);
    };
    Ok(Some(BindNames { portal, statement }))
}

/// The parameters' values of a whole Bind.
pub fn bind_values(message: &[u8]) -> Result<Values<'_>, Malformed> {
    let mut body = Body::of(message);
    let (_portal, _statement) = (body.string()?, body.string()?);
    for _ in 0..body.u16()? {
        body.u16()?;
    }
    let count = body.u16()?;
    let values = Values { body, count };
    for _ in 0..count {
        body.value()?;
    }
    Ok(values)
}

/// Of a Describe or a Close.
pub fn target(prefix: &[u8]) -> Result<Option<Target>, Malformed> {
    let (tag, come, whole) = come(prefix);
    let Some(&kind) = come.get(HEAD_SIZE) else {
        return if whole { Err(Malformed::Truncated { tag }) } else { Ok(None) };
    };
    let kind = TargetKind::try_from(kind).map_err(|kind| Malformed::UnknownKind { tag, kind: kind.into() })?;
    Ok(name_at(prefix, HEAD_SIZE + 1)?.map(|name| Target { kind, name }))
}

pub fn execute(message: &[u8]) -> Result<Execute<'_>, Malformed> {
    let mut body = Body::of(message);
    let portal = body.string()?;
    let rows_max = body.u32()? as i32;
    body.end()?;
    Ok(Execute { portal, rows_max })
}

/// A password in clear, or an md5 answer.
pub fn password(message: &[u8]) -> Result<&[u8], Malformed> {
    query(message)
}

pub fn sasl_initial_response(message: &[u8]) -> Result<SaslInitialResponse<'_>, Malformed> {
    let mut body = Body::of(message);
    let mechanism = body.string()?;
    let data = body.value()?;
    body.end()?;
    Ok(SaslInitialResponse { mechanism, data })
}

pub fn sasl_response(message: &[u8]) -> &[u8] {
    Body::of(message).bytes
}

// What servers send.

pub fn authentication(message: &[u8]) -> Result<Authentication<'_>, Malformed> {
    let mut body = Body::of(message);
    let authentication = match body.u32()? {
        authentication::OK => Authentication::Ok,
        authentication::CLEARTEXT_PASSWORD => Authentication::CleartextPassword,
        authentication::MD5_PASSWORD => Authentication::Md5Password { salt: body.array()? },
        authentication::GSS => Authentication::Gss,
        authentication::GSS_CONTINUE => Authentication::GssContinue { data: body.rest() },
        authentication::SSPI => Authentication::Sspi,
        authentication::SASL => Authentication::Sasl { mechanisms: Mechanisms(body.list()?) },
        authentication::SASL_CONTINUE => Authentication::SaslContinue { data: body.rest() },
        authentication::SASL_FINAL => Authentication::SaslFinal { data: body.rest() },
        code => {
            body.rest();
            Authentication::Other { code }
        }
    };
    body.end()?;
    Ok(authentication)
}

pub fn backend_key_data(message: &[u8]) -> Result<BackendKey<'_>, Malformed> {
    let mut body = Body::of(message);
    let process_id = body.u32()?;
    let key = body.rest();
    if key.len() < KEY_SIZE_MIN || key.len() > KEY_SIZE_MAX {
        return Err(Malformed::KeySize { tag: body.tag, size: key.len() });
    }
    Ok(BackendKey { process_id, key })
}

pub fn parameter_status(message: &[u8]) -> Result<ParameterStatus<'_>, Malformed> {
    let mut body = Body::of(message);
    let name = body.string()?;
    let value = body.string()?;
    body.end()?;
    Ok(ParameterStatus { name, value })
}

pub fn ready_for_query(message: &[u8]) -> Result<TransactionStatus, Malformed> {
    let mut body = Body::of(message);
    let [status] = body.array()?;
    body.end()?;
    TransactionStatus::try_from(status).map_err(|status| Malformed::UnknownKind { tag: body.tag, kind: status.into() })
}

/// The command tag, such as `INSERT 0 1`.
pub fn command_complete(message: &[u8]) -> Result<&[u8], Malformed> {
    query(message)
}

/// Of an ErrorResponse or a NoticeResponse, whole or not.
pub fn fields(prefix: &[u8]) -> Fields<'_> {
    Fields { bytes: Body::of(prefix).bytes }
}

pub fn negotiate_protocol_version(message: &[u8]) -> Result<NegotiateProtocolVersion<'_>, Malformed> {
    let mut body = Body::of(message);
    let version = body.u32()?;
    let count = body.u32()?;
    let options = body.bytes;
    for _ in 0..count {
        body.string()?;
    }
    body.end()?;
    Ok(NegotiateProtocolVersion { version, options: Strings { bytes: options } })
}

pub fn notification_response(message: &[u8]) -> Result<Notification<'_>, Malformed> {
    let mut body = Body::of(message);
    let process_id = body.u32()?;
    let channel = body.string()?;
    let payload = body.string()?;
    body.end()?;
    Ok(Notification { process_id, channel, payload })
}

/// Of a DataRow; `None` is NULL.
pub fn data_row(message: &[u8]) -> Result<Values<'_>, Malformed> {
    let mut body = Body::of(message);
    let count = body.u16()?;
    let values = Values { body, count };
    for _ in 0..count {
        body.value()?;
    }
    body.end()?;
    Ok(values)
}

/// Strings one after another, each known to have its terminating zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strings<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr(0, self.bytes)?;
        let string = &self.bytes[..end];
        self.bytes = &self.bytes[end + 1..];
        Some(string)
    }
}

/// The SASL mechanisms that a server offers, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanisms<'a>(Strings<'a>);

impl<'a> Mechanisms<'a> {
    pub fn iter(self) -> Strings<'a> {
        self.0
    }

    pub fn offers(self, mechanism: &[u8]) -> bool {
        self.iter().any(|offered| offered == mechanism)
    }
}

/// The values of a row that was found whole.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    body: Body<'a>,
    count: u16,
}

impl<'a> Iterator for Values<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        self.body.value().ok()
    }
}

/// Type and text of each field. A field that is cut off ends the list: half an error is better than none.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn get(self, kind: u8) -> Option<&'a [u8]> {
        { self }.find(|(found, _)| *found == kind).map(|(_, text)| text)
    }

    /// `None` where the server has no such field (before 9.6) or a word we do not know.
    pub fn severity(self) -> Option<Severity> {
        Severity::from_bytes(self.get(field::SEVERITY)?)
    }

    pub fn code(self) -> Option<SqlState> {
        SqlState::from_bytes(self.get(field::CODE)?)
    }

    pub fn message(self) -> Option<&'a [u8]> {
        self.get(field::MESSAGE)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&kind, text) = self.bytes.split_first()?;
        if kind == 0 {
            return None;
        }
        let end = memchr(0, text)?;
        self.bytes = &text[end + 1..];
        Some((kind, &text[..end]))
    }
}

/// The tag of a message, what has come of it, and whether that is the whole. Without a whole head nothing is known
/// but that more must come.
fn come(prefix: &[u8]) -> (u8, &[u8], bool) {
    let Some(&[tag, length @ ..]) = prefix.first_chunk::<HEAD_SIZE>() else {
        return (prefix.first().copied().unwrap_or(0), &[], false);
    };
    let size = 1 + u32::from_be_bytes(length) as usize;
    (tag, &prefix[..prefix.len().min(size)], prefix.len() >= size)
}

fn name_at(prefix: &[u8], start: usize) -> Result<Option<NameRange>, Malformed> {
    let (tag, come, whole) = come(prefix);
    match come.get(start..).and_then(|bytes| memchr(0, bytes)) {
        Some(length) => Ok(Some(start..start + length)),
        None if whole => Err(Malformed::Unterminated { tag }),
        None => Ok(None),
    }
}

/// What is left to read of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a> {
    /// Of the message, for the fault.
    tag: u8,
    bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// Of a message, or of what has come of it; not of what comes after it.
    pub(super) fn of(message: &'a [u8]) -> Self {
        let (tag, come, _) = come(message);
        Body { tag, bytes: come.get(HEAD_SIZE..).unwrap_or_default() }
    }

    pub(super) fn take(&mut self, size: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(size).ok_or(Malformed::Truncated { tag: self.tag })?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Malformed::Truncated { tag: self.tag })?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Without its terminating zero.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = memchr(0, self.bytes).ok_or(Malformed::Unterminated { tag: self.tag })?;
        let string = &self.bytes[..length];
        self.bytes = &self.bytes[length + 1..];
        Ok(string)
    }

    /// Strings up to an empty one.
    pub(super) fn list(&mut self) -> Result<Strings<'a>, Malformed> {
        let start = self.bytes;
        while !self.string()?.is_empty() {}
        // The empty string, a zero, is not one of the list.
        let size = start.len() - self.bytes.len() - 1;
        Ok(Strings { bytes: &start[..size] })
    }

    /// With its size before it; the size -1 is NULL, and any other below 0 more than there is.
    pub(super) fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let size = self.u32()?;
        if size as i32 == -1 {
            return Ok(None);
        }
        self.take(size as usize).map(Some)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes { tag: self.tag }) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::message;
    use super::super::tag::{backend, frontend};
    use super::*;

    #[test]
    fn reads_what_clients_send() {
        let parse = message(frontend::PARSE, b"s1\0SELECT $1\0\0\x01\0\0\0\x17");
        let parse = super::parse(&parse).expect("valid");
        assert_eq!((parse.name, parse.query), (&b"s1"[..], &b"SELECT $1"[..]));
        assert_eq!(parse.parameter_types, b"\0\x01\0\0\0\x17");

        let bind = message(frontend::BIND, b"p1\0s1\0\0\0\0\0\0\0");
        let names = bind_names(&bind).expect("valid").expect("whole");
        assert_eq!((&bind[names.portal], &bind[names.statement]), (&b"p1"[..], &b"s1"[..]));

        let close = message(frontend::CLOSE, b"Ss1\0");
        let expected = Target { kind: TargetKind::Statement, name: 6..8 };
        assert_eq!(target(&close), Ok(Some(expected)));

        let execute = message(frontend::EXECUTE, b"p1\0\0\0\x01\0");
        let expected = Execute { portal: b"p1", rows_max: 256 };
        assert_eq!(super::execute(&execute), Ok(expected));
    }

    #[test]
    fn reads_what_servers_send() {
        let sasl = message(backend::AUTHENTICATION, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let Ok(Authentication::Sasl { mechanisms }) = authentication(&sasl) else { panic!("{sasl:?}") };
        assert_eq!(mechanisms.iter().count(), 2);
        assert!(mechanisms.offers(b"SCRAM-SHA-256") && !mechanisms.offers(b"SCRAM"));

        let key = message(backend::BACKEND_KEY_DATA, b"\0\0\x01\0abcd");
        assert_eq!(backend_key_data(&key), Ok(BackendKey { process_id: 256, key: b"abcd" }));
        let status = message(backend::PARAMETER_STATUS, b"TimeZone\0UTC\0");
        let expected = ParameterStatus { name: b"TimeZone", value: b"UTC" };
        assert_eq!(parameter_status(&status), Ok(expected));
        let ready = message(backend::READY_FOR_QUERY, b"T");
        assert_eq!(ready_for_query(&ready), Ok(TransactionStatus::InTransaction));
        let complete = message(backend::COMMAND_COMPLETE, b"INSERT 0 1\0");
        assert_eq!(command_complete(&complete), Ok(&b"INSERT 0 1"[..]));
    }

    #[test]
    fn reads_an_error_as_far_as_it_goes() {
        let error = message(backend::ERROR_RESPONSE, b"SFEHLER\0VERROR\0C22012\0Mdivision by zero\0\0");
        let whole = fields(&error);
        assert_eq!(whole.severity(), Some(Severity::Error));
        assert_eq!(whole.code(), SqlState::from_bytes(b"22012"));
        assert_eq!(whole.message(), Some(&b"division by zero"[..]));
        let cut_off = fields(&error[..error.len() - 4]);
        assert_eq!((cut_off.message(), cut_off.count()), (None, 3));
        let lower_case = message(backend::ERROR_RESPONSE, b"Cxx000\0\0");
        assert_eq!(fields(&lower_case).code(), None);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        use Malformed::*;
        let of = message;
        assert_eq!(query(&of(b'Q', b"SELECT 1")), Err(Unterminated { tag: b'Q' }));
        assert_eq!(query(&of(b'Q', b"SELECT 1\0;\0")), Err(TrailingBytes { tag: b'Q' }));
        assert_eq!(parse(&of(b'P', b"\0\0")), Err(Truncated { tag: b'P' }));
        assert_eq!(parse(&of(b'P', b"\0\0\0\x01")), Err(Truncated { tag: b'P' }));
        assert_eq!(parse(&of(b'P', b"\0\0\0\0\0")), Err(TrailingBytes { tag: b'P' }));
        assert_eq!(bind_names(&of(b'B', b"\0s1")), Err(Unterminated { tag: b'B' }));
        assert_eq!(target(&of(b'D', b"")), Err(Truncated { tag: b'D' }));
        assert_eq!(target(&of(b'D', b"Q\0")), Err(UnknownKind { tag: b'D', kind: b'Q'.into() }));
        assert_eq!(target(&of(b'C', b"S")), Err(Unterminated { tag: b'C' }));
        assert_eq!(execute(&of(b'E', b"\0\0\0\0")), Err(Truncated { tag: b'E' }));
        assert_eq!(authentication(&of(b'R', b"\0\0\0\x05abc")), Err(Truncated { tag: b'R' }));
        assert_eq!(authentication(&of(b'R', b"\0\0\0\x0aX\0")), Err(Unterminated { tag: b'R' }));
        assert_eq!(authentication(&of(b'R', b"\0\0\0\0\0")), Err(TrailingBytes { tag: b'R' }));
        assert_eq!(backend_key_data(&of(b'K', b"\0\0\0\0abc")), Err(KeySize { tag: b'K', size: 3 }));
        assert_eq!(backend_key_data(&of(b'K', &[0; 261])), Err(KeySize { tag: b'K', size: 257 }));
        assert_eq!(ready_for_query(&of(b'Z', b"X")), Err(UnknownKind { tag: b'Z', kind: b'X'.into() }));
        assert_eq!(data_row(&of(b'D', b"\0\x01\0\0\0\x05abcd")).err(), Some(Truncated { tag: b'D' }));
        let many = of(b'v', b"\0\x03\0\0\xff\xff\xff\xff_pq_.a\0");
        assert_eq!(negotiate_protocol_version(&many), Err(Unterminated { tag: b'v' }));
    }

    /// A slice may hold the next message too.
    #[test]
    fn stops_at_the_end_of_the_message() {
        let two = [message(frontend::DESCRIBE, b"S"), message(frontend::QUERY, b"x\0")].concat();
        assert_eq!(target(&two), Err(Malformed::Unterminated { tag: frontend::DESCRIBE }));
        let two = [message(frontend::QUERY, b"x\0"), message(frontend::SYNC, b"")].concat();
        assert_eq!(query(&two), Ok(&b"x"[..]));
    }
}
