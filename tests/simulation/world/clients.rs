//! Applications at work: they come, ask, cancel, vanish, and hear answers.

use super::*;

impl World {
    pub(super) fn plan_act(&mut self, index: usize) {
        let after = self.random.between(1, self.dials.think_us);
        self.plan(after, Action::Act(index));
    }

    pub(super) fn send_from(&mut self, index: usize, bytes: &[u8]) {
        if let Some(wire) = self.under_way(Peer::Application(index)) {
            locked(&wire).arrive(bytes);
            return;
        }
        let (core, Some(connection)) = (self.applications[index].shard, self.applications[index].connection) else {
            return;
        };
        self.cores[core].shard.io.arrive(connection, bytes);
        self.plan_delivery(core, connection);
    }

    pub(super) fn act(&mut self, index: usize) {
        let one = &mut self.applications[index];
        match one.stage {
            application::Stage::Absent => self.arrive(index),
            application::Stage::Running => self.request(index),
            application::Stage::Encryption | application::Stage::Login => {
                if self.random.in_thousand(self.dials.vanish) {
                    self.vanish(index);
                } else {
                    self.plan(5 * MILLI, Action::Act(index));
                }
            }
            application::Stage::Dismissed | application::Stage::Gone => {}
        }
    }

    pub(super) fn arrive(&mut self, index: usize) {
        let core = self.applications[index].shard;
        if self.cores[core].stopped || !self.cores[core].shard.io.listening {
            self.applications[index].stage = application::Stage::Gone;
            return;
        }
        let peer = self.new_peer(Peer::Application(index));
        let (connection, event) = self.cores[core].shard.io.accept(peer);
        let one = &mut self.applications[index];
        one.connection = Some(connection);
        one.heard_at = self.now;
        let mut bytes = if self.random.below(4) == 0 { one.encryption_request() } else { one.startup_packet() };
        // Whoever knows that nothing will be asked can send on at once (of a dedicated client the server may ask).
        let eager = self.dials.trust
            && !self.dials.dedicated
            && one.stage == application::Stage::Login
            && !one.actions.is_empty();
        if eager && self.random.below(3) == 0 {
            bytes.extend(one.act(&self.dials));
            self.requests += 1;
            self.coverage.note("logs in with a request");
        }
        trace!(self, "client {index}: connects to shard {core}");
        self.feed(core, event);
        self.send_from(index, &bytes);
        self.plan(5 * MILLI, Action::Act(index));
    }

    pub(super) fn new_peer(&mut self, peer: Peer) -> super::super::transport::Peer {
        self.peers.push(peer);
        self.peers.len() as u32 - 1
    }

    pub(super) fn request(&mut self, index: usize) {
        if self.random.in_thousand(self.dials.vanish) {
            return self.vanish(index);
        }
        let Self { applications, dials, random, .. } = self;
        let one = &mut applications[index];
        let settled = one.is_settled();
        if one.held.is_empty() && !settled {
            if one.cancels < 3 && random.in_thousand(dials.cancels) {
                self.cancel(index);
            } else if one.is_copying() || one.alone || one.sent_size() > 30_000 || !random.in_thousand(dials.pipelining)
            {
                self.plan(5 * MILLI, Action::Act(index));
                return;
            }
        }
        let Self { applications, dials, random, .. } = self;
        let one = &mut applications[index];
        if !one.held.is_empty() {
            return;
        }
        if one.actions.is_empty() {
            if settled || random.below(100) == 0 {
                one.held.clear();
                trace!(self, "client {index}: leaves");
                self.send_from(index, &wire::message(b'X', b""));
                self.hang_up(index, None);
            } else {
                self.plan(5 * MILLI, Action::Act(index));
            }
            return;
        }
        if (one.is_copying() || one.alone) && !settled {
            self.plan(5 * MILLI, Action::Act(index));
            return;
        }
        let mut bytes = one.act(dials);
        if settled {
            one.heard_at = self.now;
        }
        self.requests += 1;
        if self.trace.is_some() {
            let mut rest = bytes.clone();
            while let Some(message) = wire::take(&mut rest) {
                trace!(self, "client {index}: sends {}", wire::show(&message));
            }
        }
        if self.random.in_thousand(self.dials.halves) && bytes.len() > 1 {
            let cut = 1 + self.random.below(bytes.len() - 1);
            self.applications[index].held = bytes.split_off(cut);
            self.send_from(index, &bytes);
            let after = self.random.between(1, 100 * MILLI);
            self.plan(after, Action::Release(index));
            return;
        }
        self.send_from(index, &bytes);
        self.plan_act(index);
    }

    /// The application is gone, whatever was under way.
    pub(super) fn vanish(&mut self, index: usize) {
        trace!(self, "client {index}: vanishes");
        self.coverage.note("client vanished");
        if self.applications[index].is_copying() {
            self.coverage.note("client vanished in COPY");
        }
        let reset = self.random.below(2) == 0;
        if self.random.below(2) == 0 {
            // In the middle of a message.
            let whole = wire::message(b'Q', format!("echo c{index}.999999 never\0").as_bytes());
            let cut = 1 + self.random.below(whole.len() - 1);
            let held = !self.applications[index].held.is_empty();
            if self.applications[index].stage == application::Stage::Running && !held {
                self.send_from(index, &whole[..cut]);
            }
        }
        self.hang_up(index, reset.then_some(Errno(libc::ECONNRESET)));
    }

    pub(super) fn hang_up(&mut self, index: usize, error: Option<Errno>) {
        let one = &mut self.applications[index];
        one.stage = application::Stage::Gone;
        let (core, Some(connection)) = (one.shard, one.connection) else { return };
        if let Some(wire) = self.under_way(Peer::Application(index)) {
            locked(&wire).hang_up(error);
            return;
        }
        self.cores[core].shard.io.hang_up(connection, error);
        self.plan_delivery(core, connection);
        self.plan_drain(core, connection);
    }

    pub(super) fn cancel(&mut self, index: usize) {
        let core = self.random.below(self.cores.len());
        if self.cores[core].stopped || !self.cores[core].shard.io.listening {
            return;
        }
        let one = &mut self.applications[index];
        one.cancels += 1;
        let (process_id, mut key) = (one.process_id, one.key.clone());
        if self.random.below(8) == 0 {
            key[0] ^= 1;
        }
        let mut packet = (12 + key.len() as u32).to_be_bytes().to_vec();
        packet.extend_from_slice(&80_877_102u32.to_be_bytes());
        packet.extend_from_slice(&process_id.to_be_bytes());
        packet.extend_from_slice(&key);
        trace!(self, "client {index}: cancels by shard {core}");
        self.coverage.note("cancel");
        let peer = self.new_peer(Peer::Canceller);
        let (connection, event) = self.cores[core].shard.io.accept(peer);
        self.feed(core, event);
        self.cores[core].shard.io.arrive(connection, &packet);
        self.plan_delivery(core, connection);
    }

    /// Bytes for an application.
    pub(super) fn heard(&mut self, index: usize, bytes: &[u8]) {
        let now = self.now;
        let mut lines = Vec::new();
        let traced = self.trace.is_some();
        let one = &mut self.applications[index];
        one.heard_at = now;
        let heard = one.hear(bytes, |message| {
            if traced {
                lines.push(format!("client {index}: hears {}", wire::show(message)));
            }
        });
        for line in lines {
            self.keep_line(line);
        }
        let heard = heard.unwrap_or_else(|why| panic!("client {index}: {why}"));
        for fault in std::mem::take(&mut self.applications[index].faults) {
            self.coverage.note(&format!("fault: {}", without_numbers(&fault.text)));
        }
        for one in heard {
            match one {
                Heard::Nothing => {}
                Heard::Send(bytes) => self.send_from(index, &bytes),
                Heard::Fatal(fields) => self.dismissed(index, &fields),
            }
        }
    }

    /// A fatal error must have a reason.
    pub(super) fn dismissed(&mut self, index: usize, fields: &wire::Fields) {
        self.coverage.note(&format!("fatal: {} {}", fields.code, without_numbers(&fields.text)));
        let one = &self.applications[index];
        let excused = match &*fields.code {
            "57P01" => self.quitting.is_some() || self.dials.has_faults() || self.administrator.has_dismissed,
            "57P03" if self.administrator.has_refused && fields.text.contains("is disabled") => true,
            "3D000" => self.administrator.has_unserved,
            "28P01" => self.dials.asks_password() && one.has_wrong_password() || self.dials.refusals > 0,
            // Others of its address may have had wrong ones.
            "28000" => self.dials.asks_password() && self.dials.wrong_password > 0 || self.dials.refusals > 0,
            "22023" => one.has_bad_settings(),
            // The server asks a password that nobody keeps, so a lost backend cannot be had again.
            "08006" if self.dials.password => true,
            "08006" | "57P03" => self.dials.has_faults() || self.login_may_wait(fields),
            "53300" => self.dials.has_faults() || fields.text.contains("(pool."),
            // Small arenas run out.
            "53200" | "53400" => true,
            _ => false,
        };
        assert!(excused, "client {index} was dismissed without need: {fields:?}");
    }

    /// A login that finds no backend within the time is told so by a fatal error.
    pub(super) fn login_may_wait(&self, fields: &wire::Fields) -> bool {
        fields.text.contains("(pool.")
    }
}

/// A text with every run of digits as one sign, and names taken out.
fn without_numbers(text: &str) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        match letter {
            '0'..='9' => {
                if !short.ends_with('#') {
                    short.push('#');
                }
            }
            _ => short.push(letter),
        }
    }
    short
}
