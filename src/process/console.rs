//! The thread that answers clients at the console: shards hand it what they say, and it asks all shards, as the control
//! thread does. So nobody's queries wait for it, and it may wait for others.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::auth::console::Right;
use crate::config::{Listen, PoolConfig, ServerAddress, from_pgbouncer};
use crate::control::command::Command;
use crate::control::console::stats::{PERIOD, Periods, Sums, by_database};
use crate::control::console::{DatabaseEntry, May, Progress, Session, Source, UserEntry};
use crate::control::report::metrics::ShardMetrics;
use crate::control::report::{KeyRow, RelayMode, ShardReport};
use crate::control::wire::Answer;
use crate::ids::{ClientId, ShardId};
use crate::pool::Schedule;
use crate::session;
use crate::shard::console::{Request, Told, What};
use crate::shard::mailbox::Mail;

use super::Desk;

/// How often it is looked whether what somebody waits for has happened.
const WAIT_PAUSE: Duration = Duration::from_millis(50);
const DEFAULT_PORT: u16 = 8080;

type Visitor = (ShardId, ClientId);

/// The thread's own.
struct Console {
    desk: Desk,
    periods: Periods,
    sessions: HashMap<Visitor, Session>,
    /// Whose answer waits, with what they may do.
    waiting: Vec<(Visitor, May)>,
}

/// What a session is told and may do: the process, as the console sees it.
struct View<'c> {
    desk: &'c Desk,
    periods: &'c Periods,
}

/// Starts the thread; it ends when all shards have.
pub(super) fn start(desk: Desk, requests: Receiver<Request>) -> std::io::Result<()> {
    let run = move || {
        let mut console = Console { desk, periods: Periods::default(), sessions: HashMap::new(), waiting: Vec::new() };
        console.run(&requests);
    };
    std::thread::Builder::new().name("qcp-console".to_owned()).spawn(run).map(drop)
}

impl Console {
    fn run(&mut self, requests: &Receiver<Request>) {
        let mut turn_at = Instant::now() + PERIOD;
        loop {
            let until_turn = turn_at.saturating_duration_since(Instant::now());
            let patience = if self.waiting.is_empty() { until_turn } else { until_turn.min(WAIT_PAUSE) };
            match requests.recv_timeout(patience) {
                Ok(request) => self.on_request(request),
                Err(RecvTimeoutError::Timeout) => self.on_time(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= turn_at {
                turn_at += PERIOD;
                if let Ok(counted) = self.desk.counted() {
                    self.periods.turn(self.desk.started.elapsed(), by_database(&counted));
                }
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        let visitor = (request.shard, request.client);
        let (bytes, right) = match request.what {
            What::Said(bytes, right) => (bytes, right),
            What::Left => {
                self.sessions.remove(&visitor);
                self.waiting.retain(|(waiting, _)| *waiting != visitor);
                return;
            }
        };
        let may = match right {
            None => May::Nothing,
            Some(Right::Look) => May::Look,
            Some(Right::Rule) => May::Everything,
        };
        let view = View { desk: &self.desk, periods: &self.periods };
        let mut out = Vec::new();
        let progress = self.sessions.entry(visitor).or_default().on_bytes(&bytes, may, &view, &mut out);
        self.tell(visitor, may, out, progress);
    }

    fn on_time(&mut self) {
        for (visitor, may) in std::mem::take(&mut self.waiting) {
            let Some(session) = self.sessions.get_mut(&visitor) else { continue };
            let view = View { desk: &self.desk, periods: &self.periods };
            let mut out = Vec::new();
            let progress = session.on_time(may, &view, &mut out);
            self.tell(visitor, may, out, progress);
        }
    }

    fn tell(&mut self, visitor: Visitor, may: May, bytes: Vec<u8>, progress: Progress) {
        if progress == Progress::Waits {
            self.waiting.push((visitor, may));
            if bytes.is_empty() {
                return;
            }
        }
        let (shard, client) = visitor;
        let told = Told { bytes, ends: progress == Progress::Ended, more: progress == Progress::Waits };
        if let Some(address) = self.desk.addresses.get(shard.0 as usize) {
            address.send(Mail::Told(client, told));
        }
        // Behind the answer, which says that it will be done.
        if let Progress::Quit { now } = progress {
            self.desk.quit(now);
        }
    }
}

impl Source for View<'_> {
    fn reports(&self) -> Result<Vec<ShardReport>, String> {
        let mut reports = self.desk.reports()?;
        if let Some(first) = reports.first_mut() {
            first.memory.rss_bytes = super::resident_bytes();
        }
        Ok(reports)
    }

    fn counted(&self) -> Result<Vec<ShardMetrics>, String> {
        self.desk.counted()
    }

    fn averages(&self, counted: &BTreeMap<String, Sums>) -> BTreeMap<String, Sums> {
        self.periods.averages(self.desk.started.elapsed(), counted)
    }

    fn averages_of_all(&self, counted: &BTreeMap<String, Sums>) -> Sums {
        self.periods.averages_of_all(self.desk.started.elapsed(), counted)
    }

    fn keys(&self) -> Vec<KeyRow> {
        let config = self.desk.config();
        let known = config.pgbouncer_keys().into_iter().chain(config.keys());
        let row = |known: crate::config::Known| KeyRow {
            key: known.key,
            value: known.value,
            default: known.default,
            changeable: known.changeable,
        };
        known.map(row).collect()
    }

    fn databases(&self) -> Vec<String> {
        self.desk.config().database_names().map(str::to_owned).collect()
    }

    fn database(&self, name: &str) -> Option<DatabaseEntry> {
        let config = self.desk.config();
        config.pool(name, "").map(|pool| entry(&pool))
    }

    fn users(&self) -> Vec<String> {
        self.desk.config().user_names().map(str::to_owned).collect()
    }

    fn user(&self, name: &str) -> UserEntry {
        let (pool_size, mode, max_clients) = self.desk.config().user_settings(name);
        UserEntry {
            pool_size: pool_size.map(u64::from),
            reserve_pool_size: None,
            mode: mode.map(mode_of),
            max_clients: max_clients.into(),
        }
    }

    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn clients_max(&self) -> u64 {
        self.desk.config().max_clients.into()
    }

    fn port(&self) -> u16 {
        let port = |listen: &Listen| match listen {
            Listen::Tcp(address) => Some(address.port()),
            Listen::Unix { .. } => None,
        };
        self.desk.listening().addresses().find_map(port).unwrap_or(DEFAULT_PORT)
    }

    fn answer(&self, command: &Command) -> Answer {
        self.desk.answer(command)
    }

    fn set(&self, key: &str, value: &str) -> Result<(), String> {
        let (key, value) = from_pgbouncer(key, value);
        let known = self.desk.started_with.file().to_owned();
        let told = self.desk.set(&key, &value).map_err(|why| why.replace(&known, "SET"))?;
        match told.needs_restart.iter().find(|change| change.key == key) {
            Some(change) => Err(format!("{} can be changed only at the start", change.key)),
            None => Ok(()),
        }
    }

    fn kill_client(&self, id: u64) -> bool {
        let Ok(id) = u32::try_from(id) else { return false };
        let killed = self.desk.ask(|answer| Mail::KillClient(id, answer));
        killed.is_ok_and(|killed| killed.contains(&true))
    }
}

fn entry(pool: &PoolConfig) -> DatabaseEntry {
    let host = |server: &ServerAddress| match server {
        ServerAddress::Tcp { host, port } => (host.clone(), Some(*port)),
        ServerAddress::Unix { path } => (path.display().to_string(), None),
    };
    DatabaseEntry {
        hosts: pool.servers.iter().map(host).collect(),
        database: pool.server_database.clone(),
        force_user: pool.rules.credentials.as_ref().and_then(|credentials| credentials.user.clone()),
        pool_size: pool.pool.size.into(),
        min_pool_size: pool.pool.min_size.into(),
        reserve_pool_size: pool.pool.reserve_size.into(),
        server_lifetime_s: pool.pool.lifetime.as_secs(),
        mode: mode_of(pool.relay_mode),
        schedule: match pool.pool.schedule {
            Schedule::RoundRobin => "round-robin",
            Schedule::Random => "random",
            Schedule::LoadBalancing => "load-balancing",
        }
        .to_owned(),
        max_connections: pool.pool.max_backends.into(),
        max_clients: pool.clients_max.0.into(),
    }
}

fn mode_of(mode: session::RelayMode) -> RelayMode {
    match mode {
        session::RelayMode::Session => RelayMode::Session,
        session::RelayMode::Smart => RelayMode::Smart,
        session::RelayMode::Statement => RelayMode::Statement,
    }
}
