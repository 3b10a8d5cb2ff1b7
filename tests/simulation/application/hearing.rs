//! What the reference says of each message that an application is sent.

use super::*;

impl Application {
    /// Bytes from the pooler; `note` is given each message.
    pub fn hear(&mut self, bytes: &[u8], mut note: impl FnMut(&[u8])) -> Result<Vec<Heard>, String> {
        self.inbox.extend_from_slice(bytes);
        let mut heard = Vec::new();
        if self.stage == Stage::Encryption && !self.inbox.is_empty() {
            match self.inbox[0] {
                b'N' => {
                    self.inbox.remove(0);
                    heard.push(Heard::Send(self.startup_packet()));
                }
                // Turned away before it has said who it is: there are too many, or no memory is left.
                b'E' => self.stage = Stage::Login,
                other => return Err(format!("encryption was answered by {:?}", other as char)),
            }
        }
        while let Some(message) = wire::take(&mut self.inbox) {
            note(&message);
            heard.push(match self.stage {
                Stage::Login => self.hear_login(&message)?,
                Stage::Running => self.hear_answer(&message)?,
                // Nobody reads on behind a fatal error.
                Stage::Dismissed => Heard::Nothing,
                Stage::Absent | Stage::Encryption | Stage::Gone => {
                    return Err(format!("{:?}: nothing more was to come: {}", self.stage, wire::show(&message)));
                }
            });
        }
        Ok(heard)
    }

    /// Whether part of a message has come.
    pub fn hears_half(&self) -> bool {
        !self.inbox.is_empty()
    }

    pub(super) fn hear_login(&mut self, message: &[u8]) -> Result<Heard, String> {
        match message[0] {
            b'R' if message[5..9] == [0, 0, 0, 3] => {
                let password: &[u8] = if self.wrong_password { b"wrong\0" } else { b"right\0" };
                return Ok(Heard::Send(wire::message(b'p', password)));
            }
            b'R' | b'N' | b'v' => {}
            b'S' => {
                let mut at = 5;
                let name = wire::string(message, &mut at).to_owned();
                self.reported.push((name, wire::string(message, &mut at).to_owned()));
            }
            b'K' => {
                self.process_id = u32::from_be_bytes(message[5..9].try_into().unwrap());
                self.key = message[9..].to_vec();
            }
            b'Z' => {
                for (name, _) in REPORTED {
                    let value = self.reported.iter().rev().find(|(known, _)| known == name).map(|(_, value)| &**value);
                    let wanted = self.reference.setting(&name.to_lowercase());
                    if value != Some(wanted) {
                        return Err(format!("the login reports {name} as {value:?}, not {wanted:?}"));
                    }
                }
                self.stage = Stage::Running;
            }
            b'E' => {
                self.stage = Stage::Dismissed;
                return Ok(Heard::Fatal(wire::fields(message)));
            }
            _ => return Err(format!("no message of a login: {}", wire::show(message))),
        }
        Ok(Heard::Nothing)
    }

    pub(super) fn hear_answer(&mut self, message: &[u8]) -> Result<Heard, String> {
        if message[0] == b'E' && wire::fields(message).severity == "FATAL" {
            self.stage = Stage::Dismissed;
            return Ok(Heard::Fatal(wire::fields(message)));
        }
        loop {
            if let Some(wanted) = wire::take(&mut self.reference.out) {
                self.reference.flushed = self.reference.flushed.saturating_sub(wanted.len());
                self.answers += 1;
                return if is_same(&wanted, message) {
                    Ok(Heard::Nothing)
                } else {
                    Err(format!("got {}, but a server says {}", wire::show(message), wire::show(&wanted)))
                };
            }
            if self.reference.sleeping().is_some() {
                let cancelled = message[0] == b'E' && self.cancels > 0;
                self.reference.wake(cancelled);
                continue;
            }
            if message[0] == b'E' && self.is_fault(message) {
                return Ok(Heard::Nothing);
            }
            let Some(sent) = self.sent.pop_front() else {
                return Err(format!("nobody asked for {}", wire::show(message)));
            };
            self.reference.process(&sent);
        }
    }

    /// Whether an error is the pooler's own, in the place of the next request.
    pub(super) fn is_fault(&mut self, message: &[u8]) -> bool {
        let fields = wire::fields(message);
        let its_own = match &*fields.code {
            "53300" | "53200" => !fields.text.starts_with("pg: "),
            "57014" => self.cancels > 0 && !fields.text.starts_with("pg: "),
            "0A000" => !fields.text.starts_with("pg: "),
            _ => false,
        };
        if !its_own || self.reference.status != Status::Idle {
            return false;
        }
        self.skip_silent();
        let Some(next) = self.sent.front() else { return false };
        let tag = next[0];
        if matches!(tag, b'Q' | b'F') {
            self.sent.pop_front();
        }
        self.reference.refuse(tag);
        self.unnamed = false;
        self.faults.push(fields);
        true
    }

    /// Lets the reference read what brings no answer.
    pub(super) fn skip_silent(&mut self) {
        while self.reference.sleeping().is_none()
            && let Some(next) = self.sent.front()
            && (self.reference.ignores(next[0])
                || self.reference.is_copying_in() && matches!(next[0], b'd' | b'H' | b'S'))
        {
            let next = self.sent.pop_front().unwrap();
            self.reference.process(&next);
        }
    }

    /// Whether all that is due has come.
    pub fn is_settled(&mut self) -> bool {
        if self.stage != Stage::Running || self.reference.sleeping().is_some() || !self.inbox.is_empty() {
            return false;
        }
        self.skip_silent();
        self.sent.is_empty() && self.reference.flushed == 0 && self.held.is_empty()
    }

    /// What it waits for, for people.
    pub fn waits_for(&self) -> String {
        let next: Vec<String> = self.sent.iter().take(3).map(|message| wire::show(message)).collect();
        let mut out = self.reference.out.clone();
        let due = wire::take(&mut out).map(|message| wire::show(&message));
        format!("due {due:?}, sleeping {:?}, then {next:?}", self.reference.sleeping())
    }

    pub fn sent_size(&self) -> usize {
        self.sent.iter().map(Vec::len).sum()
    }

    pub fn is_copying(&self) -> bool {
        self.copying.is_some()
    }
}

/// Errors are compared by what they say; a missing statement by its code, since its name on the backend is another, and
/// so one that exists twice: of several names for one text the pooler may name another.
fn is_same(wanted: &[u8], got: &[u8]) -> bool {
    if wanted[0] != got[0] || !matches!(wanted[0], b'E' | b'N') {
        return wanted == got;
    }
    let (wanted, got) = (wire::fields(wanted), wire::fields(got));
    // In a failed transaction the pooler may have to prepare what is to exist twice, and cannot.
    let by_code = matches!((&*wanted.code, &*got.code), ("26000", "26000") | ("42P05", "42P05" | "25P02"));
    wanted == got || by_code
}
