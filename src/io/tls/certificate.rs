//! What QCP wants to know of a certificate beyond what verifying it tells: names, dates, and the hash that channel binding
//! takes. Reads DER; anything that is not as X.509 has it reads as `None`.

use aws_lc_rs::digest;

/// A certificate's names and dates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Certificate {
    /// The subject's last common name, if it is text.
    pub common_name: Option<String>,
    /// The whole subject as RFC 2253 writes it, the last part first.
    pub distinguished_name: String,
    /// DNS names among the alternative ones.
    pub dns_names: Vec<String>,
    /// Seconds since 1970 between which it is valid, both included.
    pub valid: (i64, i64),
}

mod tag {
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OBJECT_ID: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const TELETEX_STRING: u8 = 0x14;
    pub const IA5_STRING: u8 = 0x16;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const BMP_STRING: u8 = 0x1e;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    pub const VERSION: u8 = 0xa0;
    pub const HASH: u8 = 0xa0;
    pub const EXTENSIONS: u8 = 0xa3;
    pub const DNS_NAME: u8 = 0x82;
}

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Elements of DER, one behind the other.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and what is in it.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x83 => {
                let count = usize::from(first & 0x7f);
                let bytes = rest.get(..count)?;
                rest = &rest[count..];
                bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte))
            }
            _ => return None,
        };
        let content = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }

    /// The next element if it has this tag.
    fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        (self.0.first() == Some(&tag)).then(|| self.expect(tag)).flatten()
    }
}

/// The three parts of a certificate: what is signed, the algorithm, the signature.
fn parts(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut whole = Reader(Reader(der).expect(tag::SEQUENCE)?);
    let signed = whole.expect(tag::SEQUENCE)?;
    let algorithm = whole.expect(tag::SEQUENCE)?;
    whole.expect(tag::BIT_STRING)?;
    Some((signed, algorithm))
}

impl Certificate {
    /// Reads a certificate.
    pub fn read(der: &[u8]) -> Option<Self> {
        let mut signed = Reader(parts(der)?.0);
        signed.optional(tag::VERSION);
        signed.expect(tag::INTEGER)?;
        signed.expect(tag::SEQUENCE)?;
        let _issuer = signed.expect(tag::SEQUENCE)?;
        let mut validity = Reader(signed.expect(tag::SEQUENCE)?);
        let valid = (time(validity.next()?)?, time(validity.next()?)?);
        let subject = signed.expect(tag::SEQUENCE)?;
        let _public_key = signed.expect(tag::SEQUENCE)?;
        let mut certificate = Self { valid, ..Self::default() };
        certificate.read_subject(subject)?;
        while let Some((found, content)) = signed.next() {
            if found == tag::EXTENSIONS {
                certificate.read_extensions(content)?;
            }
        }
        Some(certificate)
    }

    fn read_subject(&mut self, subject: &[u8]) -> Option<()> {
        let mut sets = Reader(subject);
        let mut parts = Vec::new();
        while !sets.0.is_empty() {
            let mut set = Reader(sets.expect(tag::SET)?);
            let mut part = String::new();
            while !set.0.is_empty() {
                let mut attribute = Reader(set.expect(tag::SEQUENCE)?);
                let name = attribute.expect(tag::OBJECT_ID)?;
                let (kind, value) = attribute.next()?;
                let text = text(kind, value);
                if !part.is_empty() {
                    part.push('+');
                }
                match (short_name(name), &text) {
                    (Some(short), Some(text)) => {
                        part.push_str(short);
                        part.push('=');
                        escape(text, &mut part);
                    }
                    _ => {
                        part.push_str(&dotted(name));
                        part.push_str("=#");
                        // The value with its tag and length, as RFC 2253, 2.4 has it.
                        let mut whole = vec![kind];
                        match value.len() {
                            length @ 0..0x80 => whole.push(length as u8),
                            length @ 0x80..0x100 => whole.extend([0x81, length as u8]),
                            length => whole.extend([0x82, (length >> 8) as u8, length as u8]),
                        }
                        whole.extend(value);
                        whole.iter().for_each(|byte| part.push_str(&format!("{byte:02X}")));
                    }
                }
                if name == COMMON_NAME {
                    // A NUL within would let a name be taken for its beginning.
                    self.common_name = text.filter(|text| !text.contains('\0'));
                }
            }
            parts.push(part);
        }
        parts.reverse();
        self.distinguished_name = parts.join(",");
        Some(())
    }

    fn read_extensions(&mut self, content: &[u8]) -> Option<()> {
        let mut extensions = Reader(Reader(content).expect(tag::SEQUENCE)?);
        while !extensions.0.is_empty() {
            let mut extension = Reader(extensions.expect(tag::SEQUENCE)?);
            if extension.expect(tag::OBJECT_ID)? != SUBJECT_ALT_NAME {
                continue;
            }
            let _critical = extension.optional(0x01);
            let mut names = Reader(Reader(extension.expect(tag::OCTET_STRING)?).expect(tag::SEQUENCE)?);
            while let Some((kind, name)) = names.next() {
                if kind == tag::DNS_NAME
                    && let Ok(name) = std::str::from_utf8(name)
                    && !name.contains('\0')
                {
                    self.dns_names.push(name.to_owned());
                }
            }
        }
        Some(())
    }

    /// Names by which it can be asked for: the alternative ones, or, without any, the common name.
    pub fn host_names(&self) -> impl Iterator<Item = &str> {
        let common = self.common_name.as_deref().filter(|_| self.dns_names.is_empty());
        self.dns_names.iter().map(String::as_str).chain(common)
    }
}

/// Whether a name of a certificate stands for a host, as libpq has it: "*." stands for one label, and only at the front.
pub(super) fn is_for(name: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    match name.strip_prefix("*.") {
        None => name.eq_ignore_ascii_case(host),
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
        }),
    }
}

/// `tls-server-end-point` (RFC 5929, 4.1): the certificate's hash by the hash of its signature, MD5 and SHA-1 replaced by
/// SHA-256. Empty: there is none for its kind of signature.
pub(super) fn end_point(der: &[u8]) -> Box<[u8]> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    const SHA: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    let algorithm = || {
        let mut algorithm = Reader(parts(der)?.1);
        let name = algorithm.expect(tag::OBJECT_ID)?;
        let (&last, family) = name.split_last()?;
        match (family, last) {
            // RSASSA-PSS: the hash is a parameter, and SHA-1 where it is left out.
            (RSA, 10) => {
                let mut parameters = Reader(algorithm.expect(tag::SEQUENCE)?);
                let Some(hash) = parameters.optional(tag::HASH) else { return Some(&digest::SHA256) };
                let hash = Reader(Reader(hash).expect(tag::SEQUENCE)?).expect(tag::OBJECT_ID)?;
                match hash.split_last()? {
                    (1, SHA) => Some(&digest::SHA256),
                    (2, SHA) => Some(&digest::SHA384),
                    (3, SHA) => Some(&digest::SHA512),
                    _ => None,
                }
            }
            (RSA, 4 | 5 | 11) | (ECDSA, 2) => Some(&digest::SHA256),
            (RSA, 12) | (ECDSA, 3) => Some(&digest::SHA384),
            (RSA, 13) | (ECDSA, 4) => Some(&digest::SHA512),
            _ if name == ECDSA_SHA1 => Some(&digest::SHA256),
            _ => None,
        }
    };
    algorithm().map(|algorithm| digest::digest(algorithm, der).as_ref().into()).unwrap_or_default()
}

fn text(kind: u8, value: &[u8]) -> Option<String> {
    match kind {
        tag::UTF8_STRING | tag::PRINTABLE_STRING | tag::IA5_STRING => String::from_utf8(value.to_vec()).ok(),
        // Most often Latin 1.
        tag::TELETEX_STRING => Some(value.iter().map(|&byte| char::from(byte)).collect()),
        tag::BMP_STRING => {
            let units = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<String, _>>().ok()
        }
        _ => None,
    }
}

fn short_name(object: &[u8]) -> Option<&'static str> {
    const EMAIL: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01];
    const COMPONENT: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19];
    const USER: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01];
    Some(match object {
        [0x55, 0x04, 0x03] => "CN",
        [0x55, 0x04, 0x04] => "SN",
        [0x55, 0x04, 0x05] => "serialNumber",
        [0x55, 0x04, 0x06] => "C",
        [0x55, 0x04, 0x07] => "L",
        [0x55, 0x04, 0x08] => "ST",
        [0x55, 0x04, 0x09] => "street",
        [0x55, 0x04, 0x0a] => "O",
        [0x55, 0x04, 0x0b] => "OU",
        [0x55, 0x04, 0x0c] => "title",
        [0x55, 0x04, 0x2a] => "GN",
        EMAIL => "emailAddress",
        COMPONENT => "DC",
        USER => "UID",
        _ => return None,
    })
}

fn dotted(object: &[u8]) -> String {
    let mut numbers = Vec::new();
    let mut number = 0u64;
    for &byte in object {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if numbers.is_empty() {
                let first = (number / 40).min(2);
                numbers.extend([first, number - first * 40]);
            } else {
                numbers.push(number);
            }
            number = 0;
        }
    }
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// RFC 2253, 2.4, with what OpenSSL adds: control characters as their code.
fn escape(value: &str, into: &mut String) {
    let count = value.chars().count();
    for (at, character) in value.chars().enumerate() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => into.extend(['\\', character]),
            '#' if at == 0 => into.push_str("\\#"),
            ' ' if at == 0 || at + 1 == count => into.push_str("\\ "),
            '\0'..='\x1f' | '\x7f' => into.push_str(&format!("\\{:02X}", character as u32)),
            '\u{80}'.. => {
                let mut bytes = [0; 4];
                character.encode_utf8(&mut bytes).bytes().for_each(|byte| into.push_str(&format!("\\{byte:02X}")));
            }
            _ => into.push(character),
        }
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, in seconds since 1970.
fn time((kind, content): (u8, &[u8])) -> Option<i64> {
    let digits = content.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize| Some(i64::from(digits.get(from)? - b'0') * 10 + i64::from(digits.get(from + 1)? - b'0'));
    let (year, at) = match (kind, digits.len()) {
        (tag::UTC_TIME, 12) => (number(0)? + if number(0)? < 50 { 2000 } else { 1900 }, 2),
        (tag::GENERALIZED_TIME, 14) => (number(0)? * 100 + number(2)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at)?, number(at + 2)?);
    if !(1..=12).contains(&month) {
        return None;
    }
    // Days since 1970 by the count of years that begin in March.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + number(at + 4)? * 3600 + number(at + 6)? * 60 + number(at + 8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time((tag::UTC_TIME, b"700101000000Z")), Some(0));
        assert_eq!(time((tag::UTC_TIME, b"491231235959Z")), Some(2_524_607_999));
        assert_eq!(time((tag::GENERALIZED_TIME, b"20240229120000Z")), Some(1_709_208_000));
        assert_eq!(time((tag::GENERALIZED_TIME, b"20241329120000Z")), None);
        assert_eq!(time((tag::UTC_TIME, b"7001010000Z")), None);
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        let check = |name, host, expected| assert_eq!(is_for(name, host), expected, "{name} for {host}");
        check("db.example.com", "DB.example.com.", true);
        check("*.example.com", "db.example.com", true);
        check("*.example.com", "a.db.example.com", false);
        check("*.example.com", ".example.com", false);
        check("*.com", "example.com", false);
        check("d*.example.com", "db.example.com", false);
    }

    /// Whatever stands in its place, reading ends.
    #[test]
    fn no_bytes_panic() {
        let certificate = rcgen::generate_simple_self_signed(vec!["db.example.com".to_owned()]).unwrap();
        let der = certificate.cert.der().to_vec();
        let read = Certificate::read(&der).unwrap();
        assert_eq!(read.dns_names, ["db.example.com"]);
        assert_eq!(read.common_name.as_deref(), Some("rcgen self signed cert"));
        assert_eq!(read.distinguished_name, "CN=rcgen self signed cert");
        assert_eq!(end_point(&der).len(), 32);
        for at in 0..der.len() {
            for bit in 0..8 {
                let mut changed = der.clone();
                changed[at] ^= 1 << bit;
                let _ = (Certificate::read(&changed), end_point(&changed));
            }
            let _ = (Certificate::read(&der[..at]), end_point(&der[..at]));
        }
    }
}
