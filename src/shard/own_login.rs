//! QCP's own logins to servers: with a password of the configuration or the user list, or with the keys of a client's
//! login. What is decided is in `auth::outgoing`.

use crate::auth::outgoing::{self, Credentials, Failed, Outgoing, Step};
use crate::auth::scram::Binding;
use crate::auth::settings::Method;
use crate::ids::BackendId;
use crate::ids::PoolId;
use crate::io::{Close, Transport};
use crate::pool::Refill;
use crate::protocol::error::Severity;
use crate::protocol::error::field;
use crate::protocol::reader::{self, Authentication};
use crate::protocol::{ErrorFields, SqlState, Writer};

use super::own_check::{MESSAGE_ROOM, Working, random};
use super::{Purpose, Shard};

impl<T: Transport> Shard<T> {
    /// Whether a backend's login is QCP's own, rather than relayed from a client.
    pub(super) fn logs_in_itself(&mut self, id: BackendId) -> bool {
        let Some(client) = self.backend(id).and_then(|backend| backend.checks) else { return true };
        self.login(client).is_some_and(|login| login.admitted)
    }

    /// The server's word in such a login.
    pub(super) fn on_own_authentication(&mut self, id: BackendId, what: &Authentication<'_>) {
        let iterations_max = self.settings.auth.scram_iterations_max;
        let Some(backend) = self.backend(id) else { return };
        let (Some(connection), pool) = (backend.connection, backend.pool) else { return };
        let mut login =
            backend.login.take().unwrap_or_else(|| Box::new(Outgoing::new(Binding::default(), iterations_max)));
        if !login.was_asked() {
            self.on_first_word(id, *what != Authentication::Ok);
        }
        let channel = self.channel(connection);
        let entry = self.pools.get(pool);
        let known = entry.settings.rules.credentials.as_deref();
        let user = known.and_then(|known| known.user.as_deref()).unwrap_or(&entry.key.user);
        let secret = known.and_then(|known| known.secret.as_deref());
        let credentials = Credentials { user, secret, derived: entry.derived.as_ref() };
        let mut room = zeroize::Zeroizing::new([0; MESSAGE_ROOM]);
        let mut writer = Writer::new(&mut room[..]);
        let step = login.on_message(what, credentials, &channel, &random(), &mut writer);
        let written = self.secret_copy(writer.written());
        if let Some(backend) = self.backend(id) {
            backend.challenged |= *what != Authentication::Ok;
            backend.login = Some(login);
        }
        self.on_login_step(id, step.expect("the room is for the longest"), written);
    }

    /// Some rounds more for a password of QCP's own.
    pub(super) fn work_on_own_login(&mut self, id: BackendId, rounds: u32) {
        let Some(mut login) = self.backend(id).and_then(|backend| backend.login.take()) else { return };
        let mut room = zeroize::Zeroizing::new([0; MESSAGE_ROOM]);
        let mut writer = Writer::new(&mut room[..]);
        let step = login.work(rounds, &mut writer);
        let written = self.secret_copy(writer.written());
        self.backend(id).expect("looked up above").login = Some(login);
        self.on_login_step(id, step.expect("the room is for the longest"), written);
    }

    /// What goes to a server may be a password in plain text.
    fn secret_copy(&mut self, bytes: &[u8]) -> Option<crate::memory::Slice> {
        self.io.scratch().copy(bytes).inspect(crate::memory::Slice::hold_secret)
    }

    fn on_login_step(&mut self, id: BackendId, step: Step, written: Option<crate::memory::Slice>) {
        let Some(backend) = self.backend(id) else { return };
        let (Some(connection), pool) = (backend.connection, backend.pool) else { return };
        match written {
            Some(bytes) if bytes.is_empty() => {}
            Some(bytes) => self.io.send(connection, bytes),
            None => return self.on_backend_gone(id, "the arena is used up"),
        }
        match step {
            Step::Going => {}
            Step::Work => self.working.push_back(Working::Backend(id)),
            Step::In(derived) => {
                self.backend(id).expect("looked up above").login = None;
                let name = self.pool_name(pool);
                let entry = self.pools.get_mut(pool);
                entry.part.set_refill(Refill::Free);
                if let Some(derived) = derived {
                    if outgoing::is_weak(&derived) {
                        log::warn!("{name}: the server's SCRAM secret has only {} iterations", derived.iterations);
                    }
                    entry.derived = Some(derived);
                }
            }
            Step::Failed(failed) => {
                if let Failed::NoSecret(_) = failed {
                    self.pools.get_mut(pool).part.set_refill(Refill::Impossible);
                    self.stop_asking(pool);
                }
                let why = match failed {
                    Failed::NoSecret(asked) if self.pools.get(pool).settings.rules.credentials.is_none() => {
                        format!("{asked}, and none is configured")
                    }
                    failed => failed.to_string(),
                };
                self.on_backend_gone(id, &why);
            }
        }
    }

    /// The server refuses a login of QCP's own: what clients are told says whose login it was.
    pub(super) fn own_refusal(&mut self, pool: PoolId, message: &[u8]) -> Option<Box<[u8]>> {
        let entry = self.pools.get_mut(pool);
        let rules = &entry.settings.rules;
        let fields = reader::fields(message);
        let code = fields.code().filter(|code| code.as_str().starts_with("28"))?;
        if rules.credentials.is_none() && matches!(rules.method, Method::Server | Method::Trust) {
            return None;
        }
        // The password may have changed since.
        entry.derived = None;
        let user = rules.credentials.as_deref().and_then(|known| known.user.as_deref()).unwrap_or(&entry.key.user);
        let said = String::from_utf8_lossy(fields.get(field::MESSAGE).unwrap_or_default()).into_owned();
        let text = format!("qcp could not log in to the server as \"{user}\": {said}");
        Some(fatal(code, &text))
    }

    /// Opens a dedicated client's backend when QCP has let the client in itself.
    pub(super) fn open_for_admitted(&mut self, id: crate::ids::ClientId) {
        if let Some(login) = self.login(id) {
            login.admitted = true;
        }
        self.open_for_login(id, Purpose::Dedicated, None);
    }

    /// A dedicated client's backend is refused: the client has been let in already.
    pub(super) fn refuse_admitted(&mut self, id: BackendId, client: crate::ids::ClientId, refusal: &[u8]) {
        self.refuse_in_servers_words(client, refusal);
        self.close_backend(id, Close::Now);
    }
}

fn fatal(code: SqlState, text: &str) -> Box<[u8]> {
    let hint = Some("The password that qcp has for the server is not the server's (auth.server_password, users).");
    let fields = ErrorFields { severity: Severity::Fatal, code, message: text, detail: None, hint };
    let mut room = vec![0; text.len() + 256];
    let mut writer = Writer::new(&mut room);
    writer.error_response(&fields).expect("the room is for it");
    writer.written().into()
}
