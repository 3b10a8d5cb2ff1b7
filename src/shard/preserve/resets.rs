//! RESET and DISCARD ALL by themselves: they go back to what the client began its session with, where the server goes back to
//! its own values.

use crate::ids::BackendId;
use crate::io::Transport;
use crate::protocol::TransactionStatus;
use crate::session::fault::Fault;
use crate::session::parameters::{self, Setting, VectorId};
use crate::session::scanner::{Effects, Only};

use super::super::link::MARK_REPLAY;
use super::{Reset, Shard};

impl<T: Transport> Shard<T> {
    /// The text under way is `only` this. `alone`: nothing was suspected before it.
    pub(super) fn begin_reset(&mut self, backend: BackendId, only: &Only, alone: bool) {
        let names = || {
            let names = self.scanner.names().filter_map(|name| std::str::from_utf8(name).ok());
            names.map(Into::into).collect()
        };
        let reset = match only {
            Only::Reset => Reset::Names(names()),
            Only::ResetAll => Reset::All,
            Only::DiscardAll => Reset::Discard,
            Only::Prepared { .. } | Only::Prepares { .. } => return,
        };
        let Some(link) = self.backend(backend) else { return };
        // Behind other requests it could not be told whose settings the server reports.
        if !link.pipeline.is_client_busy() {
            link.kept.reset = Some(reset);
            link.kept.reset_alone = alone;
            link.kept.resets = false;
        }
    }

    /// The query under way failed.
    pub(in crate::shard) fn forget_reset(&mut self, backend: BackendId) {
        if let Some(link) = self.backend(backend) {
            link.kept.reset = None;
        }
    }

    /// Whether the value that the server reports is the one of its own that a RESET went back to, while the client began
    /// its session with another.
    pub(in crate::shard) fn is_reset_away(&mut self, id: BackendId, name: &str) -> bool {
        let Some(client) = self.client_of(id) else { return false };
        let startup = self.client(client).expect("a linked client is there").startup;
        let reset = self.backend(id).is_some_and(|link| match &link.kept.reset {
            Some(Reset::Names(names)) => names.iter().any(|known| **known == *name),
            Some(Reset::All | Reset::Discard) => true,
            None => false,
        });
        reset && self.vectors.get(startup, name).is_some()
    }

    /// What has just been reset is set again, and nothing else: the rest of `has` may not be true any more, as a role that was
    /// set before in the same transaction. `false`: no memory.
    fn set_again(&mut self, id: BackendId, again: &[Setting], wanted: VectorId) -> bool {
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        parameters::write_sets(again, &mut sql);
        let asked = sql.is_empty() || self.ask_own(id, &sql, MARK_REPLAY);
        self.sql = sql;
        let held = self.vectors.hold(wanted);
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        self.vectors.let_go(std::mem::replace(&mut link.has, held));
        asked
    }

    /// A RESET by itself has been done, and ReadyForQuery is next: what the client began its session with comes back.
    pub(in crate::shard) fn finish_reset(&mut self, id: BackendId) {
        let Some(client_id) = self.client_of(id) else { return };
        let Some(link) = self.backend(id) else { return };
        let Some(reset) = link.kept.reset.take() else { return };
        let (status, has, alone) = (link.pipeline.status(), link.has, link.kept.reset_alone);
        let client = self.clients.get_mut(client_id.index, client_id.generation).expect("a linked client is there");
        let (connection, wanted, startup) = (client.connection, client.wanted, client.startup);
        let is_kept = |name: &str| match &reset {
            Reset::Names(names) => !names.iter().any(|reset| **reset == *name),
            // RESET ALL touches neither.
            Reset::All => matches!(name, "role" | "session_authorization"),
            Reset::Discard => false,
        };
        let kept = |vector: VectorId| -> Vec<Setting> {
            self.vectors.settings(vector).iter().filter(|setting| is_kept(&setting.name)).cloned().collect()
        };
        let again: Vec<Setting> =
            self.vectors.settings(startup).iter().filter(|setting| !is_kept(&setting.name)).cloned().collect();
        let told: Vec<Setting> = again
            .iter()
            .filter(|setting| parameters::is_tracked(setting.name.as_bytes()))
            .filter(|setting| self.vectors.get(wanted, &setting.name) != Some(&*setting.value))
            .cloned()
            .collect();
        // A custom setting that was set once is empty from then on rather than unknown, wherever the client goes.
        let emptied = |vector: VectorId| -> Vec<Setting> {
            let custom = |setting: &&Setting| !is_kept(&setting.name) && setting.name.contains('.');
            let settings = self.vectors.settings(vector).iter().filter(|_| !matches!(reset, Reset::Discard));
            settings.filter(custom).map(|setting| Setting { name: setting.name.clone(), value: "".into() }).collect()
        };
        let (mut new_has, mut new_wanted) = (kept(has), kept(wanted));
        new_has.extend(emptied(has));
        new_wanted.extend(emptied(wanted));
        new_wanted.extend(again.iter().cloned());
        let (Ok(new_has), Ok(new_wanted)) = (self.vectors.intern(new_has), self.vectors.intern(new_wanted)) else {
            self.suspect(id, Effects::OPAQUE);
            return;
        };
        let client = self.clients.get_mut(client_id.index, client_id.generation).expect("looked up above");
        client.wanted = new_wanted;
        let link = self.backends.get_mut(id.index, id.generation).expect("looked up above");
        self.vectors.let_go(std::mem::replace(&mut link.has, new_has));
        if status == TransactionStatus::Idle {
            // Done for good, and known without a question.
            let discards = matches!(reset, Reset::Discard);
            if discards {
                link.kept.pins = link.kept.pins.common(Effects::LASTING);
            }
            if alone || discards {
                link.kept.suspects.clear();
            }
        } else {
            // A ROLLBACK brings back what nobody would ask for any more.
            let names = self.vectors.settings(wanted).iter().map(|setting| setting.name.as_bytes());
            for name in names.filter(|name| !parameters::is_tracked(name)) {
                link.kept.suspects.add(Effects::SETTINGS);
                link.kept.suspects.add_name(name);
            }
        }
        self.vectors.let_go(wanted);
        self.tell_settings(connection, told);
        let done = new_has == new_wanted
            || match alone {
                true => self.replay(id, new_wanted),
                false => self.set_again(id, &again, new_wanted),
            };
        if !done {
            self.fail(client_id, &Fault::NoMemory);
        }
    }
}
