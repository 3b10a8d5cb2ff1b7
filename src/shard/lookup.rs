//! `auth.query`: users' secrets asked for at the server, over a backend of a pool of its own.
//!
//! The client waits in that pool's queue like any other, so nobody else waits for it; meanwhile it belongs to that pool,
//! and to its own again when the answer is here. What was found is believed for [`FRESH_FOR`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::incoming;
use crate::auth::query::{Answer, Roles, roles_sql};
use crate::auth::secrets::Secret;
use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::protocol::error::field;
use crate::protocol::tag::backend as tag;
use crate::protocol::{TransactionStatus, reader};
use crate::session::fault::Fault;

use super::login::Stage;
use super::pools::Key;
use super::{BackendState, Shard};

/// How long an answer is believed.
const FRESH_FOR: Duration = Duration::from_secs(30);
/// An answer by which a login failed is not believed any longer, once it is so old: the password may be a new one.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);
/// A query that takes longer is given up, and its backend with it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// What a server has said of a user.
pub(super) struct Found {
    secret: Option<Arc<Secret>>,
    at: Instant,
}

/// The roles that a server has said a user is a member of.
pub(super) struct Membership {
    roles: Arc<[String]>,
    at: Instant,
}

/// A lookup under way, as the client's login keeps it.
pub(super) struct Lookup {
    /// The client's own pool, in which it stays counted.
    pub home: PoolId,
    what: Question,
    failed: Option<String>,
}

/// What is asked, and what has come of the answer.
enum Question {
    /// The user's secret, by which it is then checked.
    Secret(incoming::Method, Answer),
    /// The roles that it is a member of, by which the rules of access are then looked through again.
    Roles(Roles),
}

impl<T: Transport> Shard<T> {
    /// The secret of a client's user, from the list or from an answer that is fresh. `None`: it is asked for, and the
    /// login goes on when the answer is here.
    pub(super) fn secret_of(&mut self, id: ClientId, method: incoming::Method) -> Option<Option<Arc<Secret>>> {
        let (_, user) = self.names_of(id)?;
        let auth = self.settings.auth.clone();
        let listed = auth.users.get(&user).cloned();
        // What a server says of a user gives no right at the console.
        if self.login(id).is_some_and(|login| login.visit.is_some()) {
            return Some(listed);
        }
        let Some(query) = auth.query.as_ref().filter(|_| listed.is_none()) else { return Some(listed) };
        let now = self.io.now();
        let name = self.remembered_as(id)?;
        if let Some(found) = self.found.get(&name).filter(|found| now.duration_since(found.at) < FRESH_FOR) {
            return Some(found.secret.clone());
        }
        let (user, database) = (query.user.clone(), query.database.clone());
        self.begin_lookup(id, &user, database.as_deref(), Question::Secret(method, Answer::default()));
        None
    }

    /// The roles of a client's user, from an answer that is fresh. `None`: they are asked for, and the rules are looked
    /// through again when the answer is here.
    pub(super) fn roles_of(&mut self, id: ClientId) -> Option<Arc<[String]>> {
        let now = self.io.now();
        if self.login(id).is_some_and(|login| login.visit.is_some()) {
            return Some(Arc::new([]));
        }
        let name = self.remembered_as(id)?;
        if let Some(found) = self.members.get(&name).filter(|found| now.duration_since(found.at) < FRESH_FOR) {
            return Some(found.roles.clone());
        }
        let auth = self.settings.auth.clone();
        let Some(query) = &auth.query else {
            self.fail(id, &Fault::NoSecrets);
            return None;
        };
        self.begin_lookup(id, &query.user, query.database.as_deref(), Question::Roles(Roles::default()));
        None
    }

    /// The client waits for a backend of the pool of `auth.query_user`.
    fn begin_lookup(&mut self, id: ClientId, user: &str, database: Option<&str>, what: Question) {
        let Some(home) = self.client(id).and_then(|client| client.pool) else { return };
        let key = self.pools.get(home).key.clone();
        let database = database.unwrap_or(&key.database);
        let way = self.pools.get(home).settings.tls_to(&key.server);
        let asks = self.catalogue.pool(database, user).and_then(|mut settings| {
            // The server is the client's, also where that database is elsewhere for clients: the way to it is the client's too.
            if !settings.servers.contains(&key.server) {
                (settings.servers, settings.tls) = (vec![key.server.clone()], vec![way]);
            }
            let key = Key { server: key.server, database: database.into(), user: user.into() };
            self.pool_of(key, settings)
        });
        let Some(asks) = asks else {
            self.fail(id, &Fault::NoRoom("pools"));
            return;
        };
        self.pools.get_mut(asks).clients += 1;
        self.client(id).expect("looked up above").pool = Some(asks);
        let Some(login) = self.login(id) else { return };
        login.lookup = Some(Box::new(Lookup { home, what, failed: None }));
        login.stage = Stage::Lookup;
        if let Err(fault) = self.checkout(id) {
            self.fail(id, &Fault::NoServer(fault.answer().message));
        }
    }

    /// The pool's backend is here: asks.
    pub(super) fn ask_for_secret(&mut self, id: ClientId, backend: BackendId) {
        let auth = self.settings.auth.clone();
        let deadline = self.io.now() + QUERY_TIMEOUT;
        let (Some(query), Some((_, user))) = (&auth.query, self.names_of(id)) else { return self.give_back(backend) };
        let Some(login) = self.login(id) else { return self.give_back(backend) };
        let sql = match login.lookup.as_ref().map(|lookup| &lookup.what) {
            Some(Question::Roles(_)) => roles_sql(&user),
            Some(Question::Secret(..)) | None => query.sql(&user),
        };
        login.stage = Stage::LookingUp;
        let Some(link) = self.backend(backend) else { return };
        let Some(connection) = link.connection else { return };
        link.state = BackendState::LookingUp(id);
        link.deadline = Some(deadline);
        let written =
            self.write(connection, sql.len() + 16, |writer| writer.query(&sql).expect("the room was asked for"));
        if !written {
            self.on_backend_gone(backend, "the arena is used up");
        }
    }

    /// A whole message of the answer.
    pub(super) fn on_looked_up(&mut self, backend: BackendId, id: ClientId, kind: u8, message: &[u8]) {
        let user = self.names_of(id).map(|(_, user)| user);
        let lookup = self.login(id).and_then(|login| login.lookup.as_mut());
        match kind {
            tag::DATA_ROW => {
                let (Some(user), Some(lookup)) = (user, lookup) else { return };
                let outcome = reader::data_row(message).map(|values| match &mut lookup.what {
                    Question::Secret(_, answer) => answer.row(&user, values),
                    Question::Roles(roles) => roles.row(values),
                });
                if !matches!(outcome, Ok(Ok(()))) {
                    lookup.failed = Some(format!("its answer is of no use: {outcome:?}"));
                }
            }
            tag::ERROR_RESPONSE => {
                let said = reader::fields(message).get(field::MESSAGE).unwrap_or_default();
                let said = String::from_utf8_lossy(said).into_owned();
                if let Some(lookup) = lookup {
                    lookup.failed = Some(said);
                }
            }
            tag::READY_FOR_QUERY => {
                let is_idle = reader::ready_for_query(message) == Ok(TransactionStatus::Idle);
                if let Some(link) = self.backend(backend) {
                    link.deadline = None;
                    link.state = BackendState::Cleaning(super::clean::Stage::Done);
                }
                if is_idle {
                    self.give_back(backend)
                } else {
                    self.close_backend(backend, Close::Flushed)
                }
                self.go_on_with_answer(id);
            }
            tag::PARAMETER_STATUS => self.note_parameter(backend, message),
            _ => {}
        }
    }

    /// The client is its own pool's again, and its login goes on.
    fn go_on_with_answer(&mut self, id: ClientId) {
        let Some(login) = self.login(id) else { return };
        if login.stage != Stage::LookingUp {
            return;
        }
        let Some(lookup) = login.lookup.take() else { return };
        login.stage = Stage::Answer;
        self.come_home(id, lookup.home);
        let Lookup { what, failed, .. } = *lookup;
        if let Some(why) = failed {
            log::warn!("auth.query failed: {why}");
            self.fail(id, &Fault::NoSecrets);
            return;
        }
        let Some(name) = self.remembered_as(id) else { return };
        let at = self.io.now();
        let (method, answer) = match what {
            Question::Secret(method, answer) => (method, answer),
            Question::Roles(Roles { names }) => {
                if self.members.len() >= REMEMBERED_MAX && !self.members.contains_key(&name) {
                    let any = self.members.keys().next().cloned();
                    any.and_then(|any| self.members.remove(&any));
                }
                self.members.insert(name, Membership { roles: names.into(), at });
                self.check_by_rules(id);
                return;
            }
        };
        if self.found.len() >= REMEMBERED_MAX && !self.found.contains_key(&name) {
            let any = self.found.keys().next().cloned();
            any.and_then(|any| self.found.remove(&any));
        }
        let secret = answer.secret.map(Arc::new);
        // The same secret stays the same object, by which verifiers that were made of it are known.
        let old = self.found.get(&name).and_then(|found| found.secret.clone());
        let secret = match (old, secret) {
            (Some(old), Some(new)) if old.is_same(&new) => Some(old),
            (_, new) => new,
        };
        self.found.insert(name, Found { secret: secret.clone(), at });
        self.ask_with(id, method, secret);
    }

    fn come_home(&mut self, id: ClientId, home: PoolId) {
        let Some(client) = self.client(id) else { return };
        // In its own pool it has been counted all the time.
        if let Some(away) = client.pool.replace(home) {
            self.pools.get_mut(away).clients -= 1;
        }
    }

    /// A login failed: what is remembered of the user is asked for again at the next.
    pub(super) fn doubt_secret(&mut self, id: ClientId) {
        let now = self.io.now();
        if let Some(name) = self.remembered_as(id)
            && self.found.get(&name).is_some_and(|found| now.duration_since(found.at) >= DOUBTED_AFTER)
        {
            self.found.remove(&name);
        }
    }

    /// The secret that a login was checked by, wherever it came from.
    pub(super) fn secret_in_use(&mut self, id: ClientId) -> Option<Arc<Secret>> {
        let (_, user) = self.names_of(id)?;
        if let Some(listed) = self.settings.auth.users.get(&user) {
            return Some(listed.clone());
        }
        let name = self.remembered_as(id)?;
        self.found.get(&name)?.secret.clone()
    }

    /// Servers differ in their users; with a query of one's own databases may too.
    fn remembered_as(&mut self, id: ClientId) -> Option<Box<str>> {
        let home = self.home_of(id)?;
        let key = &self.pools.get(home).key;
        Some(format!("{}\0{}\0{}", key.server, key.database, key.user).into())
    }

    /// The pool that a client wants, also while it waits in another's queue for a lookup.
    pub(super) fn home_of(&mut self, id: ClientId) -> Option<PoolId> {
        let away = self.login(id).and_then(|login| login.lookup.as_ref()).map(|lookup| lookup.home);
        away.or_else(|| self.client(id)?.pool)
    }
}
