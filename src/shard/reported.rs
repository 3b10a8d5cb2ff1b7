//! What a server says unasked (settings, notifications), and queries of our own with their answers.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::protocol::error::{Severity, field};
use crate::protocol::tag::frontend;
use crate::protocol::{ErrorFields, HEAD_SIZE, SqlState, TransactionStatus, reader};
use crate::session::fault::Fault;
use crate::session::parameters::{self, VectorId};
use crate::session::pipeline::Expect;

use super::link::MARK_REPLAY;
use super::listens::{MARK_CHANNELS, MARK_REAL};
use super::preserve::{MARK_CHECK, MARK_CHECK_AHEAD};
use super::replies::Pass;
use super::servers::ROLE_PARAMETER;
use super::welcome::MARK_APPLY;
use super::{ClientState, Discard, Shard};

const ENCODING: &str = "client_encoding";

/// Mark of the ROLLBACK of Statement mode.
pub(super) const MARK_STATEMENT_MODE: u32 = 5;

impl<T: Transport> Shard<T> {
    /// Sends the statements that make a backend's settings those of `to`. `false`: no memory, nothing was sent.
    pub(super) fn ask_settings(&mut self, backend: BackendId, to: VectorId, mark: u32) -> bool {
        let Some(from) = self.backend(backend).map(|backend| backend.has) else { return true };
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        let link = self.backends.get_mut(backend.index, backend.generation).expect("looked up above");
        self.vectors.write_change(from, to, std::mem::take(&mut link.touched), &link.unset, &mut sql);
        let encodings = [from, to].map(|vector| self.vectors.get(vector, ENCODING));
        let same = encodings[0] == encodings[1] && !link.unset.iter().any(|name| **name == *ENCODING);
        link.unset.clear();
        // Whoever had it may want to wait with each transaction until no other can disturb it.
        if !sql.is_empty() && self.vectors.get(from, "default_transaction_deferrable").is_some() {
            sql.splice(0..0, parameters::NO_WAITING.iter().copied());
        }
        // The values are in the client's own encoding, and the server reads a query in the one that it has when the query comes.
        let mut ahead = Vec::new();
        if mark == MARK_REPLAY && !same && !sql.is_ascii() {
            parameters::write_value(ENCODING, encodings[1], &mut ahead);
        }
        let asked = (ahead.is_empty() || self.ask_own(backend, &ahead, MARK_REPLAY))
            && (sql.is_empty() || self.ask_own(backend, &sql, mark));
        self.sql = sql;
        asked
    }

    /// A query of QCP's own. `false`: no memory for it (or it is longer than a chunk), nothing was sent.
    pub(super) fn ask_own(&mut self, id: BackendId, sql: &[u8], mark: u32) -> bool {
        // A startup packet may name thousands of settings, which are longer as SQL.
        if sql.len() + 16 > self.io.arena().chunk_size() {
            return false;
        }
        let Some(backend) = self.backend(id) else { return true };
        let Some(connection) = backend.connection else { return true };
        if backend.pipeline.ask(Expect::OwnQuery, mark).is_err() {
            return false;
        }
        // "a simple Query message also destroys the unnamed statement" (Extended Query): the client's comes along again.
        if matches!(backend.unnamed, super::Unnamed::Kept | super::Unnamed::Bound) {
            backend.unnamed = super::Unnamed::Others;
        }
        self.write(connection, sql.len() + 16, |writer| {
            writer.query(sql).expect("the room was asked for");
        })
    }

    /// A setting that the server reports follows the client.
    pub(super) fn on_parameter(&mut self, id: BackendId, message: &[u8], size: u32) -> Pass {
        let head = self.backend(id).and_then(|backend| backend.pipeline.head());
        let own = head.filter(|head| head.expect == Expect::OwnQuery).map(|head| head.mark);
        if message.len() < size as usize {
            // Too long to be remembered, so the backend is not lent to others.
            if let Some(backend) = self.backend(id) {
                backend.tainted = true;
            }
            return Pass::Client;
        }
        let Ok(status) = reader::parameter_status(message) else { return Pass::Client };
        let (Ok(name), Ok(value)) = (std::str::from_utf8(status.name), std::str::from_utf8(status.value)) else {
            return Pass::Client;
        };
        if status.name == ROLE_PARAMETER
            && let Some(pool) = self.backends.get(id.index, id.generation).map(|backend| backend.pool)
        {
            self.overhear_role(pool, status.value);
        }
        let Some(client) = self.client_of(id) else {
            self.note_parameter(id, message);
            return Pass::Nobody;
        };
        // What a replay sets, the client knows already; what a RESET in it does, is not the client's wish.
        if own == Some(MARK_REPLAY) {
            return Pass::Nobody;
        }
        let applying = self.client(client).is_some_and(|client| matches!(client.state, ClientState::Login(_)));
        // What a login is greeted with is what the server makes of its wishes: `on` of `true`.
        if !applying && !parameters::is_tracked(status.name) {
            return if own.is_some() { Pass::Nobody } else { Pass::Client };
        }
        let name = name.to_ascii_lowercase();
        if self.is_reset_away(id, &name) {
            return Pass::Nobody;
        }
        let wanted = self.client(client).expect("a linked client is there").wanted;
        if applying && self.vectors.get(wanted, &name).is_none() {
            return Pass::Nobody;
        }
        match self.vectors.change(wanted, &name, value) {
            Ok(changed) => {
                self.client(client).expect("looked up above").wanted = changed;
                let held = self.vectors.hold(changed);
                if let Some(backend) = self.backend(id) {
                    let old = std::mem::replace(&mut backend.has, held);
                    self.vectors.let_go(old);
                }
                self.note_unset(id, &name, Some(value));
            }
            Err(_full) => {
                if let Some(backend) = self.backend(id) {
                    backend.tainted = true;
                }
            }
        }
        if applying { Pass::Nobody } else { Pass::Client }
    }

    /// A backend without a client reports a setting: that is what it has now.
    pub(super) fn note_parameter(&mut self, id: BackendId, message: &[u8]) {
        let Ok(status) = reader::parameter_status(message) else { return };
        if !parameters::is_tracked(status.name) {
            return;
        }
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        let name = String::from_utf8_lossy(status.name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(status.value);
        match self.vectors.change(backend.has, &name, &value) {
            Ok(changed) => backend.has = changed,
            Err(_full) => backend.tainted = true,
        }
    }

    /// The process id in it is the backend's; a client that notifies itself knows itself by another.
    pub(super) fn on_notification(&mut self, id: BackendId, message: &[u8], size: u32) -> Pass {
        if message.len() < size as usize {
            return Pass::Client;
        }
        if self.is_heard_elsewhere(id, message) {
            return Pass::Nobody;
        }
        if !self.is_own_notification(id, message) {
            return Pass::Client;
        }
        let Some(client) = self.client_of(id) else { return Pass::Nobody };
        let process_id = self.process_id(client);
        let (Ok(notification), Some(connection)) =
            (reader::notification_response(message), self.client(client).map(|client| client.connection))
        else {
            return Pass::Client;
        };
        self.write(connection, message.len(), |writer| {
            let _ = writer.notification_response(process_id, notification.channel, notification.payload);
        });
        Pass::Nobody
    }

    pub(super) fn on_own_query_done(&mut self, id: BackendId, mark: u32) {
        self.cancel_held(id);
        match mark {
            MARK_APPLY => {
                if let Some(client) = self.client_of(id) {
                    self.on_settings_applied(client, id);
                }
            }
            MARK_STATEMENT_MODE => {
                let Some(id) = self.client_of(id) else { return };
                let Some(client) = self.client(id) else { return };
                let connection = client.connection;
                self.write_error(connection, &Fault::TransactionInStatementMode, Some(TransactionStatus::Idle));
            }
            MARK_REPLAY => self.on_replayed(id),
            MARK_CHECK_AHEAD => {}
            MARK_CHECK => {
                self.keep_forbidden(id);
                self.on_check_done(id);
            }
            MARK_CHANNELS..=MARK_REAL => self.on_sharing_answer(id, mark),
            _ => self.on_own_answer(id, mark),
        }
    }

    pub(super) fn on_own_query_error(&mut self, id: BackendId, mark: u32, message: &[u8]) -> Pass {
        let Some(client) = self.client_of(id) else {
            self.on_own_error(id);
            return Pass::Nobody;
        };
        let text =
            String::from_utf8_lossy(reader::fields(message).get(field::MESSAGE).unwrap_or_default()).into_owned();
        let is_last = self.backend(id).is_some_and(|backend| backend.fatal);
        if mark == MARK_REPLAY && self.backend(id).is_some_and(|link| link.kept.proving) {
            self.on_replay_refused(id, client, message);
        } else if mark != MARK_APPLY && is_last {
            // The server ends the connection, for whatever reason, and not for what was asked.
            self.on_own_error(id);
            match self.is_whole_last_word(id, message) {
                true => self.refuse_in_servers_words(client, message),
                false => self.fail(client, &Fault::ServerGone(text)),
            }
        } else if matches!(mark, MARK_CHECK | MARK_CHECK_AHEAD) {
            self.on_check_error(id, &text);
        } else if mark == MARK_APPLY {
            // As on a direct connection: the server's own words, but fatal. The backend is as it was: what several
            // statements in one query set, their error has undone.
            self.refuse_settings(client, message, &text);
        } else {
            self.on_own_error(id);
            self.fail(client, &Fault::ReplayRefused(text));
        }
        if self.backend(id).is_some() { Pass::Nobody } else { Pass::Gone }
    }

    /// Whether a message is the whole of an error after which the server hangs up.
    pub(super) fn is_whole_last_word(&self, id: BackendId, message: &[u8]) -> bool {
        let length = message.get(1..HEAD_SIZE).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let fatal = self.backends.get(id.index, id.generation).is_some_and(|backend| backend.fatal);
        fatal && length.is_some_and(|length| message.len() == length as usize + 1)
    }

    pub(super) fn refuse_settings(&mut self, id: ClientId, message: &[u8], text: &str) {
        self.tell_refusal(id, message, text, Severity::Fatal);
        self.dismiss(id);
    }

    /// The server's words of what it refuses.
    fn tell_refusal(&mut self, id: ClientId, message: &[u8], text: &str, severity: Severity) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let fields = reader::fields(message);
        let text_of = |kind| fields.get(kind).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let answer = ErrorFields {
            severity,
            code: fields.code().unwrap_or(SqlState::INVALID_PARAMETER_VALUE),
            message: text,
            detail: text_of(field::DETAIL),
            hint: text_of(field::HINT),
        };
        self.write(connection, message.len() + 64, |writer| {
            let _ = writer.error_response(&answer);
        });
    }

    /// Answers the request that waited for the client's settings with what the server says of these; the client stays.
    pub(super) fn refuse_for_settings(&mut self, id: ClientId, message: &[u8]) {
        let text = reader::fields(message).get(field::MESSAGE).map(String::from_utf8_lossy).unwrap_or_default();
        self.tell_refusal(id, message, &text, Severity::Error);
        let simple = matches!(self.first_tag(id), Some(frontend::QUERY | frontend::FUNCTION_CALL));
        let Some(client) = self.client(id) else { return };
        client.discard = if simple { Discard::Message } else { Discard::UntilSync };
        let connection = client.connection;
        if simple {
            self.write(connection, 8, |writer| {
                writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
            });
        }
        self.resume_client(id);
    }
}
