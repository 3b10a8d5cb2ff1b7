//! Records of TLS 1.2 and 1.3 once the handshake is over: sealed and opened from slice to slice, without an allocation.
//!
//! ```text
//! 1.3       | 23 | 3 3 | length 2 | ciphertext of (content, type 1, zeros) | tag 16 |
//! 1.2 GCM   | type | 3 3 | length 2 | nonce 8 | ciphertext | tag 16 |
//! 1.2 ChaCha| type | 3 3 | length 2 | ciphertext | tag 16 |
//! ```
//!
//! rustls makes the handshake and derives the keys; its own record layer allocates for each record, and this one does
//! not. Invariant: no nonce is used twice with a key: `sequence` goes up with each record, and at the end of what a key
//! may seal nothing is sealed any more.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// What stands before each record.
pub(super) const HEADER_SIZE: usize = 5;
/// Content of one record, at most (RFC 8446, 5.1).
pub(super) const CONTENT_SIZE_MAX: usize = 1 << 14;
/// "The length MUST NOT exceed 2^14 + 2048" (RFC 5246, 6.2.3); in 1.3 it is 2^14 + 256.
const BODY_SIZE_MAX: usize = CONTENT_SIZE_MAX + 2048;
const BODY_SIZE_MAX_13: usize = CONTENT_SIZE_MAX + 256;
/// The longest record that is taken.
pub(super) const RECORD_SIZE_MAX: usize = HEADER_SIZE + BODY_SIZE_MAX;
/// What a record has beyond its content, at most.
pub(super) const OVERHEAD_MAX: usize = HEADER_SIZE + EXPLICIT_SIZE + TAG_SIZE;
const TAG_SIZE: usize = 16;
const EXPLICIT_SIZE: usize = 8;

/// Kinds of content.
pub(super) mod kind {
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const DATA: u8 = 23;
}

/// Descriptions of alerts (RFC 8446, 6).
pub(super) mod alert {
    pub const CLOSE_NOTIFY: u8 = 0;
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    pub const BAD_RECORD_MAC: u8 = 20;
    pub const RECORD_OVERFLOW: u8 = 22;
    pub const DECODE_ERROR: u8 = 50;
    pub const INTERNAL_ERROR: u8 = 80;
    pub const USER_CANCELED: u8 = 90;
    pub const NO_RENEGOTIATION: u8 = 100;
    pub const NO_APPLICATION_PROTOCOL: u8 = 120;
}

/// What is wrong with a record, and the alert that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    pub alert: u8,
    pub what: &'static str,
}

const fn wrong(alert: u8, what: &'static str) -> Wrong {
    Wrong { alert, what }
}

/// Which bytes are where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// TLS 1.3: the kind is within.
    Hidden,
    /// TLS 1.2 with GCM: half of the nonce is sent.
    Explicit,
    /// TLS 1.2 with ChaCha20-Poly1305.
    Implicit,
}

/// One direction's key, and how many records it has served.
struct Keys {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    form: Form,
    sequence: u64,
    /// Records that may be sealed with this key.
    limit: u64,
}

/// What makes records.
pub(super) struct Sealer(Keys);

/// What reads records.
pub(super) struct Opener(Keys);

/// In TLS 1.3 a key is renewed long before (RFC 8446, 5.5). TLS 1.2 cannot, and for a nonce that counts the bound is
/// NIST's (SP 800-38D, 8.3).
const LIMIT_13: u64 = 1 << 24;
const LIMIT_12: u64 = 1 << 32;

impl Keys {
    /// `None`: a cipher that was never offered.
    fn new(secrets: &ConnectionTrafficSecrets, sequence: u64, is_13: bool) -> Option<Self> {
        let (algorithm, key, iv, explicit) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv, true),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv, true),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv, false),
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).ok()?;
        let form = match (is_13, explicit) {
            (true, _) => Form::Hidden,
            (false, true) => Form::Explicit,
            (false, false) => Form::Implicit,
        };
        let limit = if is_13 { LIMIT_13 } else { LIMIT_12 };
        Some(Self { key: LessSafeKey::new(key), iv: iv.as_ref().try_into().ok()?, form, sequence, limit })
    }

    fn nonce(&self) -> [u8; aead::NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        nonce
    }

    /// The additional data of TLS 1.2; that of 1.3 is the header.
    fn additional(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut additional = [0; 13];
        additional[..8].copy_from_slice(&self.sequence.to_be_bytes());
        additional[8..11].copy_from_slice(&[kind, 3, 3]);
        additional[11..].copy_from_slice(&(length as u16).to_be_bytes());
        additional
    }
}

impl Sealer {
    pub(super) fn new(secrets: &ConnectionTrafficSecrets, sequence: u64, is_13: bool) -> Option<Self> {
        Keys::new(secrets, sequence, is_13).map(Self)
    }

    /// Where the content stands in a record.
    pub(super) fn content_at(&self) -> usize {
        HEADER_SIZE + if self.0.form == Form::Explicit { EXPLICIT_SIZE } else { 0 }
    }

    /// Whether the key should be renewed, and whether that is possible.
    pub(super) fn is_worn(&self) -> bool {
        self.0.form == Form::Hidden && self.0.sequence >= self.0.limit - 64
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.0.sequence = self.0.limit - 64;
    }

    /// Seals the `length` bytes that stand at [`Self::content_at`] in `room`, which is [`OVERHEAD_MAX`] longer at least.
    /// The size of the record; `None`: this key may seal no more.
    pub(super) fn seal(&mut self, kind: u8, room: &mut [u8], length: usize) -> Option<usize> {
        assert!(length <= CONTENT_SIZE_MAX);
        let Keys { key, form, sequence, limit, .. } = &self.0;
        if sequence >= limit {
            return None;
        }
        let nonce = self.0.nonce();
        let (outer, hidden) = if *form == Form::Hidden { (kind::DATA, 1) } else { (kind, 0) };
        let at = self.content_at();
        let end = at + length + hidden + TAG_SIZE;
        let body = end - HEADER_SIZE;
        room[..HEADER_SIZE].copy_from_slice(&[outer, 3, 3, (body >> 8) as u8, body as u8]);
        if *form == Form::Explicit {
            room[HEADER_SIZE..at].copy_from_slice(&nonce[4..]);
        }
        let additional = self.0.additional(kind, length);
        let mut header = [0; HEADER_SIZE];
        header.copy_from_slice(&room[..HEADER_SIZE]);
        let additional = if *form == Form::Hidden { &header[..] } else { &additional[..] };
        let (content, tag) = room[at..end].split_at_mut(length);
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_scatter(nonce, Aad::from(additional), content, &[kind][..hidden], tag).ok()?;
        self.0.sequence += 1;
        Some(end)
    }
}

impl Opener {
    pub(super) fn new(secrets: &ConnectionTrafficSecrets, sequence: u64, is_13: bool) -> Option<Self> {
        Keys::new(secrets, sequence, is_13).map(Self)
    }

    /// The size of the record that begins `bytes`, once its header is here.
    pub(super) fn record_size(&self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        let Some(&[outer, major, _, high, low]) = bytes.first_chunk::<HEADER_SIZE>() else { return Ok(None) };
        let body = usize::from(high) << 8 | usize::from(low);
        let is_known = match self.0.form {
            // A change_cipher_spec has no place behind the handshake, and nothing is sent in the clear any more.
            Form::Hidden => outer == kind::DATA,
            Form::Explicit | Form::Implicit => matches!(outer, kind::ALERT | kind::HANDSHAKE | kind::DATA),
        };
        if !is_known || major != 3 {
            return Err(wrong(alert::UNEXPECTED_MESSAGE, "what should be a record is none"));
        }
        let (least, most) = match self.0.form {
            Form::Hidden => (TAG_SIZE + 1, BODY_SIZE_MAX_13),
            Form::Explicit => (EXPLICIT_SIZE + TAG_SIZE, BODY_SIZE_MAX),
            Form::Implicit => (TAG_SIZE, BODY_SIZE_MAX),
        };
        if body > most {
            return Err(wrong(alert::RECORD_OVERFLOW, "a record is too long"));
        }
        if body < least {
            return Err(wrong(alert::DECODE_ERROR, "a record is too short"));
        }
        Ok(Some(HEADER_SIZE + body))
    }

    /// Room that [`Self::open`] needs for the content of a record of this size.
    pub(super) fn room(&self, record_size: usize) -> usize {
        record_size - HEADER_SIZE - TAG_SIZE - if self.0.form == Form::Explicit { EXPLICIT_SIZE } else { 0 }
    }

    /// Opens a whole record into `room`, which has [`Self::room`] bytes: the content's kind and size.
    pub(super) fn open(&mut self, record: &[u8], room: &mut [u8]) -> Result<(u8, usize), Wrong> {
        let Keys { key, form, .. } = &self.0;
        let form = *form;
        let mut nonce = self.0.nonce();
        let at = match form {
            Form::Explicit => {
                nonce[4..].copy_from_slice(&record[HEADER_SIZE..HEADER_SIZE + EXPLICIT_SIZE]);
                HEADER_SIZE + EXPLICIT_SIZE
            }
            Form::Hidden | Form::Implicit => HEADER_SIZE,
        };
        let (content, tag) = record[at..].split_at(record.len() - at - TAG_SIZE);
        let of_12 = self.0.additional(record[0], content.len());
        let additional = if form == Form::Hidden { &record[..HEADER_SIZE] } else { &of_12[..] };
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = key.open_separate_gather(nonce, Aad::from(additional), content, tag, room);
        if opened.is_err() {
            return Err(wrong(alert::BAD_RECORD_MAC, "a record was changed on its way"));
        }
        self.0.sequence += 1;
        let (kind, length) = match form {
            Form::Explicit | Form::Implicit => (record[0], room.len()),
            Form::Hidden => match room.iter().rposition(|&byte| byte != 0) {
                Some(at) => (room[at], at),
                None => return Err(wrong(alert::UNEXPECTED_MESSAGE, "a record without a kind")),
            },
        };
        if length > CONTENT_SIZE_MAX {
            return Err(wrong(alert::RECORD_OVERFLOW, "a record is too long"));
        }
        if length == 0 && kind != kind::DATA {
            return Err(wrong(alert::UNEXPECTED_MESSAGE, "an empty record"));
        }
        Ok((kind, length))
    }
}
