//! A backend whose client is gone: drained, rolled back and reset, or closed; never lent dirty.

use std::time::Duration;

use crate::ids::BackendId;
use crate::io::{Close, Transport};
use crate::protocol::TransactionStatus;
use crate::protocol::tag::frontend;
use crate::protocol::writer::NO_PARAMETERS;
use crate::session::RelayMode;
use crate::session::parameters::{self, VectorId};
use crate::session::pipeline::Expect;

use super::link::MARK_REPLAY;
use super::preserve::LastValues;
use super::requests::NOBODYS_NAME;
use super::{BackendState, Shard};

/// How far the cleaning is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Answers of the client's requests are still due.
    Draining,
    /// ROLLBACK is under way.
    RollingBack,
    /// The reset query is under way.
    Resetting,
    /// Clean; about to be given back.
    Done,
}

/// Marks of the queries of this module. No other module's are the same.
const MARK_ROLLBACK: u32 = 3;
const MARK_RESET: u32 = 4;
const MARK_FORGET: u32 = 11;
const MARK_PROBE: u32 = 12;
const MARK_OWN_RESET: u32 = 13;
const MARK_UNTIMED: u32 = 15;

/// A backend that takes longer is closed.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(10);

/// A cancel that came before the server had begun with the query, or for which there was no connection, is repeated.
pub(super) const CANCEL_AGAIN: Duration = Duration::from_millis(500);

/// Brings a backend back to what it was after its login.
const RESET_QUERY: &[u8] = b"DISCARD ALL";

impl<T: Transport> Shard<T> {
    /// Takes a linked backend from its client, who is gone or has let go of it. `cancel`: nobody waits for what it is
    /// working on.
    pub(super) fn clean(&mut self, id: BackendId, cancel: bool) {
        let deadline = self.io.now() + CLEAN_TIMEOUT;
        self.count_wait(id);
        let Some(backend) = self.backend(id) else { return };
        backend.state = BackendState::Cleaning(Stage::Draining);
        backend.deadline = Some(deadline);
        backend.paused = false;
        backend.served = true;
        if !self.leave_kept(id) {
            return;
        }
        let backend = self.backend(id).expect("looked up above");
        let Some(connection) = backend.connection else { return self.close_backend(id, Close::Now) };
        if backend.pipeline.is_uncertain() || !backend.pipeline.has_room(3) {
            self.close_backend(id, Close::Flushed);
            return;
        }
        while backend.pipeline.next_virtual().is_some() {}
        // A question of our own is soon answered, and its error would cost the backend.
        let running = cancel && backend.pipeline.is_client_busy();
        let fail_copy = backend.pipeline.is_copying_in();
        if fail_copy {
            let _ = backend.pipeline.on_frontend(frontend::COPY_FAIL, 0);
        }
        // What was not synced is not to be committed: the implicit transaction is made to fail first, by a Bind that
        // cannot succeed.
        let sync = backend.pipeline.is_unsynced();
        if sync {
            let _ = backend.pipeline.ask(Expect::Bind, 0);
            let _ = backend.pipeline.ask(Expect::Sync, 0);
        }
        self.io.receive(connection, true);
        if fail_copy || sync {
            let written = self.write(connection, 64, |writer| {
                if fail_copy {
                    writer.copy_fail(b"the client is gone").expect("the room was asked for");
                }
                if sync {
                    writer.bind(b"", NOBODYS_NAME, NO_PARAMETERS).expect("the room was asked for");
                    writer.sync().expect("the room was asked for");
                }
            });
            if !written {
                self.close_backend(id, Close::Now);
                return;
            }
        }
        if running && !fail_copy {
            // Nobody waits for the answer: the server need not work on it.
            self.cancel_query(id);
            self.backend(id).expect("looked up above").cancel_again = Some(self.io.now() + CANCEL_AGAIN);
        }
        self.go_on_cleaning(id);
    }

    /// A backend that is drained still works although it was asked to stop.
    pub(super) fn cancel_again(&mut self, id: BackendId) {
        let now = self.io.now();
        let Some(backend) = self.backend(id) else { return };
        if backend.cancel_again.is_none_or(|at| now < at) {
            return;
        }
        let draining = matches!(backend.state, BackendState::Cleaning(Stage::Draining)) && backend.pipeline.is_busy();
        backend.cancel_again = draining.then(|| now + CANCEL_AGAIN);
        if draining {
            self.cancel_query(id);
        }
    }

    /// The next step, when the last one's answers are here.
    pub(super) fn go_on_cleaning(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        let BackendState::Cleaning(stage) = backend.state else { return };
        if backend.pipeline.is_uncertain() {
            self.close_backend(id, Close::Flushed);
            return;
        }
        if backend.pipeline.is_busy() || backend.cancels > 0 || !backend.framer.at_boundary() {
            return;
        }
        let (status, pool) = (backend.pipeline.status(), backend.pool);
        // What is known to be there has to be gone for certain.
        let all = backend.kept.must_reset || backend.has_statements();
        let must_reset = backend.mode == RelayMode::Session || backend.kept.must_reset;
        let configured = self.pools.get(pool).settings.upkeep.reset_query.clone();
        let configured = configured.as_ref().filter(|_| !all).map(|sql| sql.as_bytes());
        let reset_query = configured.unwrap_or(RESET_QUERY);
        let reset = must_reset && !reset_query.is_empty();
        let (next, sql, mark): (_, &[u8], _) = match stage {
            Stage::Draining if status != TransactionStatus::Idle => (Stage::RollingBack, b"ROLLBACK", MARK_ROLLBACK),
            Stage::Draining | Stage::RollingBack if reset => (
                Stage::Resetting,
                reset_query,
                if reset_query.eq_ignore_ascii_case(RESET_QUERY) { MARK_RESET } else { MARK_OWN_RESET },
            ),
            Stage::Draining | Stage::RollingBack | Stage::Resetting | Stage::Done => (Stage::Done, b"", 0),
        };
        let backend = self.backend(id).expect("looked up above");
        backend.state = BackendState::Cleaning(next);
        if next == Stage::Done {
            backend.deadline = None;
            if !backend.pipeline.is_whole() {
                self.close_backend(id, Close::Flushed);
                return;
            }
            self.give_back(id);
        } else if !self.ask_own(id, sql, mark) {
            self.close_backend(id, Close::Now);
        }
    }

    /// Asks an idle backend whether it is there: what does not answer in time is closed, by [`Self::scan_backends`].
    pub(super) fn probe(&mut self, id: BackendId) {
        let now = self.io.now();
        let Some(backend) = self.backend(id) else { return };
        let pool = backend.pool;
        self.pools.get_mut(pool).part.borrow_idle(id);
        let deadline = now + self.pools.get(pool).settings.pool.keepalive_timeout;
        let backend = self.backend(id).expect("looked up above");
        backend.state = BackendState::Cleaning(Stage::Resetting);
        backend.deadline = Some(deadline);
        backend.probed = now;
        backend.probing = true;
        if !self.ask_own(id, b"", MARK_PROBE) {
            self.close_backend(id, Close::Now);
        }
    }

    /// What ends an idle client must not end the backend that it leaves behind, perhaps just when another client is given
    /// it. The client's time QCP looks after (`deadlines`).
    #[cold]
    pub(super) fn end_idle_timeout(&mut self, id: BackendId) {
        let deadline = self.io.now() + CLEAN_TIMEOUT;
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        backend.state = BackendState::Cleaning(Stage::Resetting);
        backend.deadline = Some(deadline);
        let changed = self.vectors.change(backend.has, parameters::IDLE_SESSION_TIMEOUT, "0");
        if let Ok(has) = changed {
            backend.has = has;
        }
        if changed.is_err() || !self.ask_own(id, b"SET idle_session_timeout = 0", MARK_UNTIMED) {
            self.close_backend(id, Close::Now);
        }
    }

    /// Has a backend that came from another shard drop its prepared statements: their names are of that shard's making.
    pub(super) fn forget_statements(&mut self, id: BackendId) {
        let deadline = self.io.now() + CLEAN_TIMEOUT;
        let Some(backend) = self.backend(id) else { return };
        backend.state = BackendState::Cleaning(Stage::Resetting);
        backend.deadline = Some(deadline);
        if !self.ask_own(id, b"DEALLOCATE ALL", MARK_FORGET) {
            self.close_backend(id, Close::Now);
        }
    }

    /// Of a backend that has just been lent: what others have prepared on it is gone before the client's request is there.
    /// `false`: there is no memory for that.
    pub(super) fn forget_before(&mut self, id: BackendId) -> bool {
        if !self.ask_own(id, b"DEALLOCATE ALL", MARK_REPLAY) {
            return false;
        }
        if let Some(backend) = self.backend(id) {
            backend.prepared.clear();
            backend.stale.clear();
        }
        true
    }

    /// The reset query was accepted.
    pub(super) fn on_own_answer(&mut self, id: BackendId, mark: u32) {
        if mark == MARK_OWN_RESET
            && let Some(backend) = self.backend(id)
        {
            // What it has reset, only its author knows: what the server reports is known anyway, the rest is set again.
            backend.touched = true;
        }
        if mark != MARK_RESET {
            return;
        }
        let Some(backend) = self.backend(id) else { return };
        backend.prepared.clear();
        backend.stale.clear();
        backend.touched = false;
        backend.unset.clear();
        backend.last_values = LastValues::Nobodys;
        backend.kept.must_reset = false;
        let old = std::mem::replace(&mut backend.has, VectorId::NEUTRAL);
        self.vectors.let_go(old);
    }

    /// An error in one of our own queries: the backend's state is not known any more.
    pub(super) fn on_own_error(&mut self, id: BackendId) {
        if let Some(backend) = self.backend(id) {
            backend.pipeline.doubt();
        }
    }
}
