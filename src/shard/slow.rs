//! `slow_query`: transactions that last long are logged, with the texts of what they asked and without constants.
//!
//! Where that is on, each backend has room for the beginning of the texts, taken once; a query allocates nothing.

use std::time::Duration;

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::tag::frontend as tag;
use crate::protocol::{HEAD_SIZE, TransactionStatus, reader};
use crate::session::scanner::mask;

use super::relay::Request;
use super::{BackendState, Shard};

/// Of all texts of a transaction together; what is longer is cut.
const TEXTS_MAX: usize = 2048;

/// What a transaction has asked so far.
pub(super) struct Texts {
    bytes: [u8; TEXTS_MAX],
    used: usize,
    /// Not all of it found room.
    cut: bool,
}

impl Texts {
    fn add(&mut self, text: &[u8]) {
        let separator: &[u8] = if self.used == 0 || self.cut { b"" } else { b"; " };
        for part in [separator, text] {
            let fits = part.len().min(TEXTS_MAX - self.used);
            self.bytes[self.used..self.used + fits].copy_from_slice(&part[..fits]);
            self.used += fits;
            self.cut |= fits < part.len();
        }
    }
}

impl<T: Transport> Shard<T> {
    /// A client's Query, Parse or Bind, of whose pool slow transactions are logged.
    pub(super) fn note_slow_text(&mut self, id: ClientId, backend: BackendId, request: Request, bytes: &Slice) {
        let message = &bytes[request.at..request.at + request.available];
        let Some(link) = self.backend(backend) else { return };
        let begins = !link.pipeline.is_client_busy() && link.pipeline.status() == TransactionStatus::Idle;
        let texts = link.texts.get_or_insert_with(|| Box::new(Texts { bytes: [0; TEXTS_MAX], used: 0, cut: false }));
        if begins {
            (texts.used, texts.cut) = (0, false);
        }
        let up_to_zero = |text: &[u8]| text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        match request.tag {
            tag::QUERY => {
                let text = message.get(HEAD_SIZE..).unwrap_or_default();
                texts.add(&text[..up_to_zero(text)]);
            }
            tag::PARSE => {
                let Ok(Some(name)) = reader::parse_name(message) else { return };
                let text = message.get(name.end + 1..).unwrap_or_default();
                texts.add(&text[..up_to_zero(text)]);
            }
            _ => {
                // What was prepared before; what has just been parsed is there already.
                let Ok(Some(names)) = reader::bind_names(message) else { return };
                let Some(number) = self.find_name(id, &message[names.statement]).filter(|_| begins) else { return };
                let text = self.statements.text(number);
                let size = up_to_zero(text);
                let Some(link) = self.backends.get_mut(backend.index, backend.generation) else { return };
                if let Some(texts) = &mut link.texts {
                    texts.add(&text[..size]);
                }
            }
        }
    }

    /// A transaction is over, which `took` so long: logs it, if that was long.
    pub(super) fn log_if_slow(&mut self, id: BackendId, took: Duration) {
        let Some(backend) = self.backends.get(id.index, id.generation) else { return };
        let pool = self.pools.get(backend.pool);
        let limit = pool.settings.upkeep.slow_query;
        if !limit.is_zero()
            && took >= limit
            && let Some(texts) = &backend.texts
        {
            let text = mask(&texts.bytes[..texts.used], pool.backslashes);
            let more = if texts.cut { " (cut)" } else { "" };
            let who = match backend.state {
                BackendState::Linked(client) => self.clients.get(client.index, client.generation),
                _ => None,
            };
            let who = who.map(|client| self.peer(client.connection)).unwrap_or_default();
            let name = self.pool_name(backend.pool);
            log::info!("slow: {} ms, pool {name}, client {who}: {text}{more}", took.as_millis());
        }
        let texts = self.backend(id).and_then(|backend| backend.texts.as_mut());
        if let Some(texts) = texts {
            (texts.used, texts.cut) = (0, false);
        }
    }
}
