//! One connection's TLS behind the handshake: its two keys, and what control messages do to it. From slice to slice; knows
//! no socket.
//!
//! Invariant: each byte that came is opened once, in order; what is not data changes nothing but keys and what is due.

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::record::{Opener, RECORD_SIZE_MAX, Sealer, Wrong, alert, kind};

/// What derives the next keys.
pub(super) enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// An open connection.
pub(super) struct Channel {
    sealer: Sealer,
    opener: Opener,
    kernel: Kernel,
    is_13: bool,
    /// A record of which a part has come; empty and without memory most of the time.
    pub begun: Vec<u8>,
    message: Message,
    /// Records without data since the last one that had some.
    idle_records: u8,
    /// What has to be said before anything else is.
    due: Due,
    /// A renegotiation was refused once.
    refused: bool,
}

/// A message of the handshake protocol that comes behind the handshake.
#[derive(Clone, Copy, Default)]
struct Message {
    head: [u8; 4],
    have: u8,
    /// Bytes of it that are passed over.
    left: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    KeyUpdate,
    NoRenegotiation,
}

/// What a record held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// So many bytes for the owner, at the beginning of the room.
    Data(usize),
    /// Something for TLS itself.
    Control,
    /// The peer says that nothing more will come.
    Closed,
    /// The peer gives up, with this description.
    Alert(u8),
}

/// Records without data in a row: what a peer does that means no good.
const IDLE_RECORDS_MAX: u8 = 32;
/// A session ticket that is longer is no ticket.
const TICKET_SIZE_MAX: usize = 1 << 16;

mod message {
    pub const HELLO_REQUEST: u8 = 0;
    pub const CLIENT_HELLO: u8 = 1;
    pub const NEW_SESSION_TICKET: u8 = 4;
    pub const KEY_UPDATE: u8 = 24;
}

const WRONG_MESSAGE: Wrong = Wrong { alert: alert::UNEXPECTED_MESSAGE, what: "a message that has no place there" };

impl Channel {
    pub(super) fn new(kernel: Kernel, sealer: Sealer, opener: Opener, is_13: bool) -> Self {
        Self {
            sealer,
            opener,
            kernel,
            is_13,
            begun: Vec::new(),
            message: Message::default(),
            idle_records: 0,
            due: Due::Nothing,
            refused: false,
        }
    }

    /// The size of the record that begins `bytes`, once its header is here.
    pub(super) fn record_size(&self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        let size = self.opener.record_size(bytes)?;
        debug_assert!(size.is_none_or(|size| size <= RECORD_SIZE_MAX));
        Ok(size)
    }

    /// Room that [`Self::open`] needs.
    pub(super) fn room(&self, record_size: usize) -> usize {
        self.opener.room(record_size)
    }

    /// Opens one whole record into `room`.
    pub(super) fn open(&mut self, record: &[u8], room: &mut [u8]) -> Result<Content, Wrong> {
        let (kind, length) = self.opener.open(record, room)?;
        if kind == kind::DATA && length > 0 {
            // "Handshake messages MUST NOT be interleaved with other record types" (RFC 8446, 5.1).
            if self.message.have > 0 {
                return Err(WRONG_MESSAGE);
            }
            self.idle_records = 0;
            return Ok(Content::Data(length));
        }
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(Wrong { alert: alert::UNEXPECTED_MESSAGE, what: "too many records without data" });
        }
        match kind {
            kind::DATA => Ok(Content::Control),
            kind::ALERT => self.on_alert(&room[..length]),
            kind::HANDSHAKE => self.on_messages(&room[..length]).map(|()| Content::Control),
            _ => Err(WRONG_MESSAGE),
        }
    }

    fn on_alert(&mut self, alert: &[u8]) -> Result<Content, Wrong> {
        let &[level, description] = alert else {
            return Err(Wrong { alert: alert::DECODE_ERROR, what: "an alert of a wrong size" });
        };
        // "Unknown Alert types ... MUST be treated as error alerts"; the level says something in 1.2 only.
        let warns = level == 1 && !self.is_13;
        match description {
            alert::CLOSE_NOTIFY => Ok(Content::Closed),
            alert::USER_CANCELED => Ok(Content::Control),
            _ if warns => Ok(Content::Control),
            _ => Ok(Content::Alert(description)),
        }
    }

    fn on_messages(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let Message { head, have, left } = &mut self.message;
            if usize::from(*have) < head.len() {
                head[usize::from(*have)] = bytes[0];
                *have += 1;
                bytes = &bytes[1..];
                if usize::from(*have) < head.len() {
                    continue;
                }
                *left = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            }
            let (head, left) = (self.message.head, self.message.left);
            match (head[0], self.is_13, &self.kernel) {
                // Not kept: a server connection lives long, and PostgreSQL gives no tickets.
                (message::NEW_SESSION_TICKET, true, Kernel::Client(_)) if left <= TICKET_SIZE_MAX => {
                    let passed = left.min(bytes.len());
                    bytes = &bytes[passed..];
                    self.message.left -= passed;
                    if self.message.left == 0 {
                        self.message = Message::default();
                    }
                }
                (message::KEY_UPDATE, true, _) if left == 1 => {
                    let Some((&wish, rest)) = bytes.split_first() else { return Ok(()) };
                    // "Handshake messages MUST NOT span key changes" (RFC 8446, 5.1).
                    if !rest.is_empty() || wish > 1 {
                        return Err(WRONG_MESSAGE);
                    }
                    self.message = Message::default();
                    self.on_key_update(wish == 1)?;
                    bytes = rest;
                }
                (message::HELLO_REQUEST, false, Kernel::Client(_))
                | (message::CLIENT_HELLO, false, Kernel::Server(_)) => {
                    if self.refused {
                        return Err(Wrong { alert: alert::NO_RENEGOTIATION, what: "it insists on a renegotiation" });
                    }
                    if left > TICKET_SIZE_MAX {
                        return Err(WRONG_MESSAGE);
                    }
                    let passed = left.min(bytes.len());
                    bytes = &bytes[passed..];
                    self.message.left -= passed;
                    if self.message.left == 0 {
                        self.message = Message::default();
                        self.refused = true;
                        self.due = Due::NoRenegotiation;
                    }
                }
                _ => return Err(WRONG_MESSAGE),
            }
        }
        Ok(())
    }

    fn on_key_update(&mut self, wished: bool) -> Result<(), Wrong> {
        let next = match &mut self.kernel {
            Kernel::Server(kernel) => kernel.update_rx_secret(),
            Kernel::Client(kernel) => kernel.update_rx_secret(),
        };
        let opener = next.ok().and_then(|(sequence, secrets)| Opener::new(&secrets, sequence, true));
        self.opener = opener.ok_or(Wrong { alert: alert::INTERNAL_ERROR, what: "no key can be derived" })?;
        if wished {
            // However many wishes come before it is said, it is said once.
            self.due = Due::KeyUpdate;
        }
        Ok(())
    }

    /// Whether something has to be said although there is no data to send.
    pub(super) fn is_due(&self) -> bool {
        self.due != Due::Nothing
    }

    /// Whether [`Self::seal_control`] has something to seal before more data is.
    pub(super) fn wants_control(&self) -> bool {
        self.is_due() || self.sealer.is_worn()
    }

    /// Where data stands in a record that is to be sealed.
    pub(super) fn content_at(&self) -> usize {
        self.sealer.content_at()
    }

    /// Room that [`Self::seal_control`] may need.
    pub(super) const CONTROL_SIZE_MAX: usize = 64;

    /// Seals what is due, and a change of keys where one is: to be sent before any data. 0: nothing is. `None`: no key is
    /// to be had.
    pub(super) fn seal_control(&mut self, room: &mut [u8]) -> Option<usize> {
        let renews = self.due == Due::KeyUpdate || self.sealer.is_worn();
        match std::mem::replace(&mut self.due, Due::Nothing) {
            Due::NoRenegotiation => self.seal_short(kind::ALERT, &[1, alert::NO_RENEGOTIATION], room),
            Due::Nothing | Due::KeyUpdate if renews => {
                // update_not_requested: the peer's keys are its own affair.
                let size = self.seal_short(kind::HANDSHAKE, &[message::KEY_UPDATE, 0, 0, 1, 0], room)?;
                let next = match &mut self.kernel {
                    Kernel::Server(kernel) => kernel.update_tx_secret(),
                    Kernel::Client(kernel) => kernel.update_tx_secret(),
                };
                let (sequence, secrets) = next.ok()?;
                self.sealer = Sealer::new(&secrets, sequence, true)?;
                Some(size)
            }
            Due::Nothing | Due::KeyUpdate => Some(0),
        }
    }

    /// Seals the data that stands at [`Self::content_at`]: the size of the record. `None`: no more can be sent.
    pub(super) fn seal_data(&mut self, room: &mut [u8], length: usize) -> Option<usize> {
        self.sealer.seal(kind::DATA, room, length)
    }

    /// Seals an alert.
    pub(super) fn seal_alert(&mut self, description: u8, room: &mut [u8]) -> Option<usize> {
        let level = if matches!(description, alert::CLOSE_NOTIFY | alert::NO_RENEGOTIATION) { 1 } else { 2 };
        self.seal_short(kind::ALERT, &[level, description], room)
    }

    /// As if the key had served long.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.sealer.wear_out();
    }

    fn seal_short(&mut self, kind: u8, content: &[u8], room: &mut [u8]) -> Option<usize> {
        let at = self.sealer.content_at();
        room[at..at + content.len()].copy_from_slice(content);
        self.sealer.seal(kind, room, content.len())
    }
}
