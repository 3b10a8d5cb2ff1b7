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
        write!(
            f,
            "BackendKey({}, {} bytes)",
            self.process_id,
            self.key.len()
        )
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
    Ok(Parse {
        name,
        query,
        parameter_types,
    })
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

/// Of a Describe or a Close.
pub fn target(prefix: &[u8]) -> Result<Option<Target>, Malformed> {
    let (tag, come, whole) = come(prefix);
    let Some(&kind) = come.get(HEAD_SIZE) else {
        return if whole {
            Err(Malformed::Truncated { tag })
        } else {
            Ok(None)
        };
    };
    let kind = TargetKind::try_from(kind).map_err(|kind| Malformed::UnknownKind {
        tag,
        kind: kind.into(),
    })?;
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
        authentication::MD5_PASSWORD => Authentication::Md5Password {
            salt: body.array()?,
        },
        authentication::GSS => Authentication::Gss,
        authentication::GSS_CONTINUE => Authentication::GssContinue { data: body.rest() },
        authentication::SSPI => Authentication::Sspi,
        authentication::SASL => Authentication::Sasl {
            mechanisms: Mechanisms(body.list()?),
        },
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
        return Err(Malformed::KeySize {
            tag: body.tag,
            size: key.len(),
        });
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
    TransactionStatus::try_from(status).map_err(|status| Malformed::UnknownKind {
        tag: body.tag,
        kind: status.into(),
    })
}

/// The command tag, such as `INSERT 0 1`.
pub fn command_complete(message: &[u8]) -> Result<&[u8], Malformed> {
    query(message)
}

/// Of an ErrorResponse or a NoticeResponse, whole or not.
pub fn fields(prefix: &[u8]) -> Fields<'_> {
    Fields {
        bytes: Body::of(prefix).bytes,
    }
}

pub fn negotiate_protocol_version(
    message: &[u8],
) -> Result<NegotiateProtocolVersion<'_>, Malformed> {
    let mut body = Body::of(message);
    let version = body.u32()?;
    let count = body.u32()?;
    let options = body.bytes;
    for _ in 0..count {
        body.string()?;
    }
    body.end()?;
    Ok(NegotiateProtocolVersion {
        version,
        options: Strings { bytes: options },
    })
}

pub fn notification_response(message: &[u8]) -> Result<Notification<'_>, Malformed> {
    let mut body = Body::of(message);
    let process_id = body.u32()?;
    let channel = body.string()?;
    let payload = body.string()?;
    body.end()?;
    Ok(Notification {
        process_id,
        channel,
        payload,
    })
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
        { self }
            .find(|(found, _)| *found == kind)
            .map(|(_, text)| text)
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
        let tag = message.first().copied().unwrap_or(0);
        Body {
            tag,
            bytes: message.get(HEAD_SIZE..).unwrap_or_default(),
        }
    }

    pub(super) fn take(&mut self, size: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(size)
            .ok_or(Malformed::Truncated { tag: self.tag })?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Malformed> {
        let (taken, rest) = self
            .bytes
            .split_first_chunk()
            .ok_or(Malformed::Truncated { tag: self.tag })?;
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
        Ok(Strings {
            bytes: &start[..size],
        })
    }

    /// With its size before it; a negative size is NULL.
    pub(super) fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let size = self.u32()?;
        if (size as i32) < 0 {
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
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(Malformed::TrailingBytes { tag: self.tag })
        }
    }
}
