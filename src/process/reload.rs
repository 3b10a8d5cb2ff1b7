//! A changed configuration: read, checked, compared with the one in force, and told to all shards; or nothing of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use ::log::{error, info};

use crate::config::{Change, Config, Warning};
use crate::control::command::Act;
use crate::control::report::{BackendState, show_keys};
use crate::control::report::{ChangedKey, ClientState, KeyRow, Ordered, Reloaded, ShardReport};
use crate::control::wire::Answer;
use crate::shard::orders::{Order, Scope};
use crate::shard::{Mail, Reload, TlsSettings};

use super::listeners::Plan;
use super::notify::Tell;
use super::{Desk, shards, tls};

/// Reads the configuration from where it came from at the start.
pub type Loader = Box<dyn Fn() -> Result<(Config, Vec<Warning>), String> + Send + Sync>;

/// What is in force.
pub(super) struct InForce {
    pub config: Arc<Config>,
    pub tls: Arc<TlsSettings>,
}

impl Desk {
    /// Reads all of it again. Connections that are there keep what they have.
    pub(super) fn reload(&self, recycle: bool) -> Result<Reloaded, String> {
        self.tell_systemd(Tell::Reloading);
        let outcome = (self.loader)().and_then(|(config, warnings)| self.put_in_force(config, warnings, recycle));
        if let Err(error) = &outcome {
            error!("nothing was reloaded: {error}");
        }
        self.tell_systemd(Tell::Ready);
        outcome
    }

    /// Changes one key until the next reload.
    pub(super) fn set(&self, key: &str, value: &str) -> Result<Reloaded, String> {
        let config = self.config();
        let mut over = config.over().to_vec();
        over.retain(|(known, _)| known != key);
        over.push((key.to_owned(), value.to_owned()));
        let (config, warnings) = config.with_over(over).map_err(|error| error.to_string())?;
        self.put_in_force(config, warnings, false)
    }

    pub(super) fn get(&self, key: Option<&str>) -> Answer {
        let known = self.config().keys();
        let of = |at: &str| key.is_none_or(|key| at == key || at.strip_prefix(key).is_some_and(|r| r.starts_with('.')));
        let rows = known.into_iter().filter(|known| of(&known.key)).map(|known| KeyRow {
            key: known.key,
            value: known.value,
            default: known.default,
            changeable: known.changeable,
        });
        let rows: Vec<KeyRow> = rows.collect();
        match key {
            Some(key) if rows.is_empty() => Err(format!("there is no key {key:?} that has a value or a default")),
            _ => Ok(show_keys(&rows)),
        }
    }

    fn put_in_force(&self, config: Config, warnings: Vec<Warning>, recycle: bool) -> Result<Reloaded, String> {
        // One at a time: a shard may be a reload behind another, but never two.
        let mut current = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let needs_restart = config.needs_restart_since(&self.started_with);
        let mut changed = config.changes_since(&current.config);
        changed.retain(|change| !needs_restart.iter().any(|needs| needs.key == change.key));
        let config = config.over_start(&self.started_with).map_err(|error| error.to_string())?;
        let tls = tls::load(&config, Some(&current.tls)).map_err(|error| error.to_string())?;
        // What cannot be listened on is known before anything is changed.
        let plan = self.plan_doors(&config)?;
        let (config, tls) = (Arc::new(config), Arc::new(tls));
        let cores = self.addresses.len();
        self.tell(|done| Mail::Reload(Box::new(reload(&config, &tls, cores, recycle)), done));
        if let Some(plan) = plan {
            self.change_doors(plan);
        }
        ::log::set_max_level(config.log.level);
        *current = InForce { config, tls };
        drop(current);
        let keys = |changes: Vec<Change>| {
            changes.into_iter().map(|Change { key, from, to }| ChangedKey { key, from, to }).collect::<Vec<_>>()
        };
        let warnings = warnings.iter().map(ToString::to_string).collect();
        let told = Reloaded { changed: keys(changed), needs_restart: keys(needs_restart), warnings, recycled: recycle };
        for change in &told.changed {
            info!("reloaded: {change}");
        }
        for change in &told.needs_restart {
            info!("reloaded, but needs a restart: {change}");
        }
        // Whether these have changed is not looked at.
        info!("reloaded the certificates, users and rules of access");
        Ok(told)
    }

    /// `None`: clients are not to come here any more.
    fn plan_doors(&self, config: &Config) -> Result<Option<Plan>, String> {
        if self.draining.load(Ordering::Relaxed) || self.in_succession.load(Ordering::Acquire) {
            return Ok(None);
        }
        self.listening().plan(&config.listen, Vec::new()).map(Some).map_err(|error| error.to_string())
    }

    /// Clients that are there stay, by whatever door they came.
    fn change_doors(&self, plan: Plan) {
        let (come, go) = self.listening().carry_out(plan);
        if !come.is_empty()
            && let Err(error) = self.accept_at(&come)
        {
            error!("nobody can come by a new address until the next reload: {error}");
            self.listening().forget(&come);
        }
        if !go.is_empty() {
            self.tell(|done| Mail::Close(go.clone(), done));
            self.listening().forget(&go);
        }
    }

    /// Has all shards do something, and says how things stand when they have.
    pub(super) fn order(&self, act: Act, database: Option<&str>) -> Answer {
        let scope = database.map_or(Scope::All, |name| Scope::Database(name.into()));
        let order = match act {
            Act::Pause => Order::Pause(scope),
            Act::Resume => Order::Resume(scope),
            Act::Drain => Order::Drain(scope),
            Act::Kill => Order::Kill(scope),
            Act::Disable => Order::Disable(scope),
            Act::Enable => Order::Enable(scope),
            Act::Reconnect => Order::Reconnect(scope),
        };
        self.tell(|done| Mail::Order(order.clone(), done));
        info!("{} {}", act.name(), database.unwrap_or("(all databases)"));
        Ok(ordered(act, database, &self.reports()?).reply())
    }

    /// Sends to all shards, and waits until each has done it (or has hung for as long as one may).
    pub(super) fn tell(&self, mut mail: impl FnMut(std::sync::mpsc::Sender<()>) -> Mail) {
        let (done, all_done) = std::sync::mpsc::channel();
        for address in &self.addresses {
            address.send(mail(done.clone()));
        }
        drop(done);
        // Nothing is ever sent: this ends when the last of them has dropped its sender.
        let _ = all_done.recv_timeout(super::REPORT_TIMEOUT);
    }
}

fn reload(config: &Arc<Config>, tls: &Arc<TlsSettings>, cores: usize, recycle: bool) -> Reload {
    Reload {
        catalogue: Box::new(shards::Settings(config.clone())),
        tls: tls.clone(),
        auth: config.auth.settings.clone(),
        clients_max: config.max_clients,
        login_timeout: config.login_timeout,
        client_stall_timeout: config.client_stall_timeout,
        connect_timeout: config.reconnect.connect_timeout,
        cancel_timeout: config.cancel_timeout,
        dns_ttl: config.dns_ttl,
        role_check_interval: config.role_check_interval,
        backoff: (config.reconnect.min_backoff, config.reconnect.max_backoff),
        check_connections: shards::check_connections(config, cores),
        recycle,
    }
}

fn ordered(act: Act, database: Option<&str>, reports: &[ShardReport]) -> Ordered {
    let mut ordered =
        Ordered { act: act.name().to_owned(), database: database.map(str::to_owned), ..Default::default() };
    let is_meant = |name: &str| database.is_none_or(|database| database == name);
    for client in reports.iter().flat_map(|report| &report.clients).filter(|client| is_meant(&client.database)) {
        ordered.clients += 1;
        ordered.waiting += u64::from(client.state == ClientState::Waiting);
    }
    for backend in reports.iter().flat_map(|report| &report.backends).filter(|backend| is_meant(&backend.database)) {
        ordered.backends += 1;
        ordered.idle += u64::from(backend.state == BackendState::Idle);
    }
    ordered
}
