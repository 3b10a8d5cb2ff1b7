//! One core and all it owns: its clients, its backends, its part of every pool. The rim that carries out what the pure
//! layers decide.
//!
//! [`Shard::on_event`] is the only way in; it returns when all that follows from one event is done or queued. A query's
//! road is in `relay`: a client's bytes, `link` (checkout, replay), the server's answer, `link` again (checkin).
//!
//! Invariant: a backend is linked to one client at most, and that client to it. Only `link` writes either side.
#![forbid(unsafe_code)]

mod accept;
mod answers;
mod backend;
mod budget;
mod cancel;
pub mod census;
mod clean;
mod client;
pub mod console;
mod deadlines;
pub mod doors;
mod link;
mod listens;
mod login;
mod lookup;
pub mod mailbox;
mod names;
pub mod orders;
mod own_check;
mod own_login;
pub mod placement;
mod pools;
mod preserve;
mod proxied;
mod relay;
pub mod reload;
mod replies;
pub mod report;
mod reported;
mod requests;
mod room;
mod servers;
mod slow;
mod spliced;
mod statements;
mod stats;
mod tables;
pub mod tally;
pub mod tls;
mod unnamed;
mod welcome;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::{
    self,
    limiter::Limiter,
    secrets::{Salts, Verifier},
};
use crate::control::report::metrics::Origin;
use crate::ids::{BackendId, ClientId, ConnectionId, ShardId};
use crate::io::{Close, Event, Transport};
use crate::memory::{Nodes, Slab, Slice};
use crate::pool::Waiters;
use crate::protocol::{ErrorFields, TransactionStatus, Writer};
use crate::session::fault::Fault;
use crate::session::parameters::Vectors;
use crate::session::scanner::{Classes, Scanner};
use crate::session::suspects::Learned;

pub use mailbox::{Mail, Mailbox};
pub use placement::Population;
use pools::Pools;
pub use pools::{ClientsMax, PoolSettings, Upkeep};
pub use reload::Reload;
use statements::Statements;
use tables::{
    Backend, BackendState, Cancel, Carried, Client, ClientState, Discard, Owner, Purpose, SECRET_SIZE, Stamp, Tick,
    Unnamed,
};
pub use tls::TlsSettings;

/// A server of the configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Server {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// The socket file.
    Unix(std::path::PathBuf),
}

impl std::fmt::Display for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(formatter, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(formatter, "{host}:{port}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// Which databases and users there are, and what applies to each.
pub trait Catalogue {
    /// `None`: the database is not served.
    fn pool(&self, database: &str, user: &str) -> Option<PoolSettings>;

    /// How the console checks logins of a user, were it a database. `None`: there is no console.
    fn console(&self, _user: &str) -> Option<auth::settings::Method> {
        None
    }
}

/// What one shard is told; the same for all but `id`.
pub struct Settings {
    /// This shard.
    pub id: ShardId,
    /// All shards.
    pub shard_count: u16,
    /// Clients over all shards.
    pub clients_max: u32,
    /// Backends of this shard, at most.
    pub backends_max: usize,
    /// Nodes for clients' requests that wait or are held back.
    pub nodes_count: usize,
    /// From accept to the end of the login.
    pub login_timeout: Duration,
    /// For a client that takes nothing of its answer while others wait for the backend that it has; zero: no limit.
    pub client_stall_timeout: Duration,
    /// For a connection to a server, with its login.
    pub connect_timeout: Duration,
    /// For a cancel request to a server; its backend is closed then.
    pub cancel_timeout: Duration,
    /// How long a server's name is believed to mean what it meant; zero: it is looked up for each connection.
    pub dns_ttl: Duration,
    /// How often servers are asked what they are, where that matters.
    pub role_check_interval: Duration,
    /// Pauses between failed attempts.
    pub backoff: (Duration, Duration),
    /// Users, rules and limits of logins.
    pub auth: Arc<auth::settings::Settings>,
    /// The same in all shards, and new with each process.
    pub salts: Salts,
    /// Connections beyond the pool that check logins, of this shard.
    pub check_connections: u32,
    /// Bytes of clients' settings.
    pub settings_bytes: usize,
    /// Bytes of prepared statements' texts.
    pub statement_bytes: usize,
    /// Prepared statements on one backend.
    pub statements_max: usize,
    /// Seed for what may be predictable (backoff, schedule).
    pub seed: u64,
    /// TLS with clients and servers.
    pub tls: Arc<TlsSettings>,
    /// What the tables take, for `show memory`.
    pub memory_terms: Vec<crate::control::report::Term>,
}

/// What was counted since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// Clients accepted.
    pub accepted: u64,
    /// Links closed because an invariant broke.
    pub broken: u64,
    /// Panics caught at the rim.
    pub panics: u64,
}

/// How the end goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    Yes,
    /// Transactions end, then their clients; at the latest then.
    Draining(Instant),
    Stopped,
}

/// One shard.
pub struct Shard<T: Transport> {
    /// Its sockets and its clock.
    pub io: T,
    settings: Settings,
    /// Bytes from clients and from servers that belong to no pool, of connections that are gone: logins, for the most part.
    bytes_apart: (u64, u64),
    catalogue: Rc<dyn Catalogue>,
    asked: pools::Asked,
    /// The one before the last reload: other shards may go by it still.
    catalogue_before: Option<Rc<dyn Catalogue>>,
    mailbox: Mailbox,
    /// Who answers at the console, if there is one.
    console: Option<console::Desk>,
    /// Clients of all shards.
    population: Arc<Population>,
    clients: Slab<Client>,
    backends: Slab<Backend>,
    cancels: Slab<Cancel>,
    pools: Pools,
    servers: servers::Servers,
    names: names::Names,
    /// Pools whose clients wait for a backend at a server that has as many as it may have.
    room_claims: Vec<room::Claim>,
    nodes: Nodes,
    waiters: Waiters,
    vectors: Vectors,
    statements: Statements,
    scanner: Scanner,
    /// What it has found in texts that come again.
    classes: Classes,
    learned: Learned,
    /// Backends on which a transaction changes what texts do.
    changing: Vec<BackendId>,
    listeners: Vec<Option<listens::Listener>>,
    /// Whom a notification is for.
    ears: Vec<ClientId>,
    /// Statements of our own are put together here.
    sql: Vec<u8>,
    checks: u32,
    check_queue: VecDeque<ClientId>,
    /// Counts the reloads.
    generation: u32,
    /// What was ordered and holds until it is taken back.
    orders: orders::Orders,
    /// Logins to databases that are paused.
    parked: VecDeque<ClientId>,
    /// Places from shards that have seen a reload before this one has.
    given_ahead: Vec<budget::Given>,
    /// There are pools that their clients are to leave: retired by a reload, or at a server that does not suit.
    has_leaving: bool,
    /// Logins whose question is open again; looked at when the event is through.
    awake: VecDeque<ClientId>,
    /// Whose passwords go through their rounds, in turn.
    working: VecDeque<own_check::Working>,
    /// What servers have said of users (`auth.query`).
    found: HashMap<Box<str>, lookup::Found, foldhash::fast::RandomState>,
    /// The roles that they are members of.
    members: HashMap<Box<str>, lookup::Membership, foldhash::fast::RandomState>,
    limiter: Limiter,
    /// Connections that begin with something else than the protocol, for the log.
    junk: Limiter,
    /// For users without a verifier; the same in all shards.
    salts: Salts,
    /// Verifiers of users whose password is known in plain text, and of those that nobody knows: both take as long.
    verifiers: HashMap<Box<str>, (std::sync::Weak<auth::secrets::Secret>, Verifier), foldhash::fast::RandomState>,
    /// Clean backends to be handed on; so that a chain of hand-overs is a loop.
    returned: VecDeque<BackendId>,
    random: u64,
    /// Secrets that no client has been given yet.
    secrets: Vec<[u8; SECRET_SIZE]>,
    tls_failures: tls::Failures,
    counters: Counters,
    errors: stats::Errors,
    running: Running,
    doors: doors::Doors,
    scan_at: Instant,
    /// Since when no client can be received from, for want of memory.
    starved_since: Option<Instant>,
    started: Instant,
    clock: (Instant, Tick),
}

/// Bytes queued for a peer above which its source is not read: what streams is then read a chunk at a time, and costs
/// fewer and larger receives.
const QUEUED_MAX: usize = 16 * 1024;
/// Pieces queued for a peer above which its source is not read.
const QUEUED_PIECES_MAX: usize = 64;
/// Requests up to this size wait in a block rather than in the chunk they came in.
const STASH_MAX: usize = 16 * 1024;
/// Cancel connections under way at once; more wait for their clients to ask again.
const CANCELS_MAX: usize = 64;

impl<T: Transport> Shard<T> {
    /// Ready to accept. `population` is shared by all shards.
    pub fn new(
        io: T,
        settings: Settings,
        catalogue: Rc<dyn Catalogue>,
        mailbox: Mailbox,
        population: Arc<Population>,
    ) -> Self {
        let now = io.now();
        let clients_max = settings.clients_max as usize;
        Self {
            catalogue,
            asked: pools::Asked::default(),
            catalogue_before: None,
            mailbox,
            console: None,
            population,
            clients: Slab::new(clients_max),
            backends: Slab::new(settings.backends_max),
            cancels: Slab::new(CANCELS_MAX),
            pools: Pools::default(),
            nodes: Nodes::new(settings.nodes_count),
            waiters: Waiters::new(clients_max),
            vectors: Vectors::new(settings.settings_bytes),
            statements: Statements::new(io.arena().clone(), settings.statement_bytes),
            scanner: Scanner::default(),
            classes: Classes::default(),
            learned: Learned::default(),
            changing: Vec::new(),
            listeners: Vec::new(),
            ears: Vec::new(),
            sql: Vec::with_capacity(4096),
            checks: 0,
            check_queue: VecDeque::new(),
            generation: 0,
            orders: orders::Orders::default(),
            parked: VecDeque::new(),
            given_ahead: Vec::new(),
            has_leaving: false,
            servers: servers::Servers::default(),
            names: names::Names::default(),
            room_claims: Vec::new(),
            awake: VecDeque::new(),
            working: VecDeque::new(),
            found: HashMap::default(),
            members: HashMap::default(),
            limiter: Limiter::new(settings.auth.limiter),
            junk: Limiter::new(auth::settings::LIMITER),
            salts: settings.salts.clone(),
            verifiers: HashMap::default(),
            returned: VecDeque::with_capacity(settings.backends_max),
            random: settings.seed | 1,
            secrets: Vec::new(),
            tls_failures: tls::Failures::default(),
            counters: Counters::default(),
            errors: stats::Errors::new(),
            running: Running::Yes,
            doors: doors::Doors::default(),
            scan_at: now,
            starved_since: None,
            started: now,
            clock: (now, Tick::default()),
            settings,
            bytes_apart: (0, 0),
            io,
        }
    }

    /// Whether it has drained and can be dropped.
    pub fn is_stopped(&self) -> bool {
        self.running == Running::Stopped
    }

    /// One event of the transport.
    #[inline]
    pub fn on_event(&mut self, event: Event) {
        self.on_one_event(event);
        self.settle();
    }

    /// Does what the event has left to be done, until nothing is.
    #[inline]
    pub(crate) fn settle(&mut self) {
        loop {
            if let Some(backend) = self.returned.pop_front() {
                self.hand_on(backend);
            } else if let Some(client) = self.awake.pop_front() {
                self.authenticate(client);
            } else if !self.check_queue.is_empty() && self.checks < self.settings.check_connections {
                self.begin_next_check();
            } else {
                return;
            }
        }
    }

    #[inline]
    fn on_one_event(&mut self, event: Event) {
        match event {
            Event::Received { connection, bytes } => self.on_received(connection, bytes),
            Event::Drained { connection } => self.on_drained(connection),
            Event::Accepted { connection, local } => self.on_accepted(connection, local),
            Event::Connected { connection, error } => match self.owner(connection) {
                Some(Owner::Backend(id)) => self.on_backend_connected(id, error),
                Some(Owner::Cancel(index, generation)) => self.on_cancel_connected(index, generation, error.is_some()),
                Some(Owner::Client(_)) | None => {}
            },
            Event::Ended { connection, error } => match self.owner(connection) {
                Some(Owner::Client(id)) => self.on_client_gone(id, error),
                Some(Owner::Backend(id)) => {
                    let why = error.map_or_else(|| "the server closed it".to_owned(), |error| error.to_string());
                    self.on_backend_gone(id, &why);
                }
                Some(Owner::Cancel(index, generation)) => self.on_cancel_ended(index, generation),
                None => self.io.close(connection, Close::Now),
            },
            Event::Secured { connection, error } => match self.owner(connection) {
                Some(Owner::Client(id)) => self.on_client_secured(id, error),
                Some(Owner::Backend(id)) => self.on_backend_secured(id, error),
                Some(Owner::Cancel(index, generation)) => self.on_cancel_secured(index, generation, error.is_some()),
                None => self.io.close(connection, Close::Now),
            },
            Event::Detached { owner, parcel, .. } => match Owner::unpack(owner) {
                Some(Owner::Client(id)) => self.on_client_detached(id, parcel),
                Some(Owner::Backend(id)) => self.on_backend_detached(id, parcel),
                Some(Owner::Cancel(..)) | None => {}
            },
            Event::Resolved { ticket, addresses } => self.on_resolved(ticket, addresses),
            Event::Rung => self.on_mail(),
            Event::Tick => self.on_tick(),
        }
    }

    /// Closes what `connection` belongs to, both sides: handling an event of it panicked.
    pub fn on_panic(&mut self, connection: Option<ConnectionId>) {
        self.counters.panics += 1;
        let Some(connection) = connection else { return };
        match self.owner(connection) {
            Some(Owner::Client(id)) => self.break_client(id),
            Some(Owner::Backend(id)) => self.on_backend_broken(id),
            Some(Owner::Cancel(..)) | None => self.io.close(connection, Close::Now),
        }
    }

    #[inline]
    fn on_received(&mut self, connection: ConnectionId, bytes: Slice) {
        match self.owner(connection) {
            Some(Owner::Client(id)) => {
                self.on_client_bytes(id, bytes);
            }
            Some(Owner::Backend(id)) => {
                self.on_backend_bytes(id, bytes);
            }
            Some(Owner::Cancel(index, generation)) => self.on_cancel_bytes(index, generation, &bytes),
            None => {}
        }
    }

    fn on_mail(&mut self) {
        while let Some(mail) = self.mailbox.next() {
            self.on_one_mail(mail);
        }
    }

    fn on_one_mail(&mut self, mail: Mail) {
        #[cfg(debug_assertions)]
        mailbox::reached::note(&mail);
        match mail {
            Mail::Quit(within) => self.drain(within),
            Mail::Listen(listeners, done) => {
                self.open_doors(listeners);
                drop(done);
            }
            Mail::Close(doors, done) => self.close_doors(doors, done),
            Mail::SeeOff(within) => self.see_off(within),
            Mail::Report(answer) => {
                // Whoever asked may have given up waiting.
                let _ = answer.send(self.report());
            }
            Mail::Reload(reload, done) => {
                self.on_reload(*reload);
                drop(done);
            }
            Mail::Order(order, done) => {
                self.on_order(&order);
                drop(done);
            }
            Mail::Metrics(answer) => {
                let _ = answer.send(self.metrics());
            }
            Mail::Cancel { slot, secret } => self.on_cancel_request(slot, &secret),
            Mail::Client(arrival) => self.on_arrival(*arrival),
            Mail::Ask { key, from, waits, can_open, round } => self.on_ask(key, from, waits, can_open, round),
            Mail::Failed(address) => self.on_failure_elsewhere(address),
            Mail::Succeeded(address) => self.on_success_elsewhere(address),
            Mail::Nothing { key, from, round } => self.on_nothing(&key, from, round),
            Mail::Give(given) => self.on_give(*given),
            Mail::Room { server, from, serial, waits } => self.on_room(server, from, serial, waits),
            Mail::Role { server, role, promoted } => self.on_role_elsewhere(&server, role, promoted),
            Mail::LastValues(database) => self.pools.ask_last_values(&database),
            Mail::Change { begins } => self.on_change_elsewhere(begins),
            Mail::Told(client, told) => self.on_told(client, told),
            Mail::KillClient(process_id, answer) => {
                let _ = answer.send(self.kill_client(process_id));
            }
        }
    }

    fn on_drained(&mut self, connection: ConnectionId) {
        match self.owner(connection) {
            Some(Owner::Client(id)) => {
                if let Some(backend) = self.backend_of(id) {
                    self.resume_backend(backend);
                }
                if self.client(id).is_some_and(|client| client.paused) {
                    self.resume_client(id);
                }
                self.send_to_visitor(id);
                // It may have kept its backend only because it had not taken all of its answer.
                if let Some(backend) = self.backend_of(id)
                    && self.backend(backend).is_some_and(|backend| backend.pipeline.is_whole())
                {
                    self.try_release(backend);
                }
            }
            Some(Owner::Backend(id)) => {
                if let Some(client) = self.client_of(id) {
                    self.resume_client(client);
                }
                if self.backend(id).is_some() {
                    self.try_release(id);
                }
            }
            Some(Owner::Cancel(..)) | None => {}
        }
    }

    #[inline]
    fn owner(&self, connection: ConnectionId) -> Option<Owner> {
        Owner::unpack(self.io.owner(connection)?)
    }

    #[inline]
    fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(id.index, id.generation)
    }

    #[inline]
    fn backend(&mut self, id: BackendId) -> Option<&mut Backend> {
        self.backends.get_mut(id.index, id.generation)
    }

    /// The backend that a client has, in whatever mode.
    #[inline]
    fn backend_of(&self, id: ClientId) -> Option<BackendId> {
        match self.clients.get(id.index, id.generation)?.state {
            ClientState::Linked(backend) | ClientState::Piped(backend) => Some(backend),
            ClientState::Startup
            | ClientState::Moving(_)
            | ClientState::Login(_)
            | ClientState::Ready
            | ClientState::Waiting(_)
            | ClientState::Console(_) => None,
        }
    }

    /// The client that a backend serves, in whatever mode.
    #[inline]
    fn client_of(&self, id: BackendId) -> Option<ClientId> {
        match self.backends.get(id.index, id.generation)?.state {
            BackendState::Linked(client) | BackendState::Piped(client) => Some(client),
            BackendState::Resolving
            | BackendState::Connecting
            | BackendState::LoggingIn
            | BackendState::Idle
            | BackendState::LookingUp(_)
            | BackendState::Listening(_)
            | BackendState::Moving(_)
            | BackendState::Cleaning(_) => None,
        }
    }

    /// Whether so much waits to be sent to `connection` that its source should pause.
    #[inline]
    fn is_congested(&self, connection: ConnectionId) -> bool {
        let (bytes, pieces) = self.io.queued(connection);
        if bytes == 0 {
            return false;
        }
        // The less there is, the less one peer that does not read may hold.
        let allowed = if self.io.arena().is_tight() { 0 } else { QUEUED_MAX };
        bytes > allowed || pieces >= QUEUED_PIECES_MAX
    }

    /// Messages of our own, to `connection`. `false`: the arena is used up; the connection is given up.
    fn write(&mut self, connection: ConnectionId, room: usize, write: impl FnOnce(&mut Writer<'_>)) -> bool {
        let room = room.min(self.io.arena().chunk_size());
        let written = self.io.scratch().write(room, |free| {
            let mut writer = Writer::new(free);
            write(&mut writer);
            writer.written_size()
        });
        match written {
            Some(bytes) => {
                self.io.send(connection, bytes);
                true
            }
            None => {
                // A stream with a hole would be worse than none.
                self.io.abort(connection);
                false
            }
        }
    }

    fn write_error(&mut self, connection: ConnectionId, fault: &Fault, ready: Option<TransactionStatus>) {
        let answer = fault.answer();
        self.errors.count(answer.code, Origin::Pooler);
        let fields = ErrorFields {
            severity: answer.severity,
            code: answer.code,
            message: &answer.message,
            detail: None,
            hint: answer.hint,
        };
        let room = answer.message.len() + answer.hint.map_or(0, str::len) + 128;
        self.write(connection, room, |writer| {
            // A message longer than a chunk is not sent: the close that follows says enough.
            if writer.error_response(&fields).is_ok()
                && let Some(status) = ready
            {
                let _ = writer.ready_for_query(status);
            }
        });
    }

    /// A moment, as a client remembers it.
    fn stamp(&self, at: Instant) -> Stamp {
        Stamp::new(Tick::new(self.started, at))
    }

    /// Now, worked out once in a turn.
    #[inline]
    fn tick(&mut self) -> Tick {
        let now = self.io.now();
        if now != self.clock.0 {
            self.clock = (now, Tick::new(self.started, now));
        }
        self.clock.1
    }

    /// A number for what may be predictable (xorshift).
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn statements_max_of(&self, pool: crate::ids::PoolId) -> usize {
        self.pools.get(pool).settings.upkeep.statements_max.unwrap_or(self.settings.statements_max)
    }
}

pub use listens::channels_size_max;

/// Bytes of one entry of each table, for the sums: name, size, what for.
pub fn table_sizes() -> [(&'static str, usize, &'static str); 3] {
    [
        ("clients", Slab::<Client>::slot_size(), "connections from applications"),
        ("waiters", Waiters::link_size(), "places in the queues"),
        ("backends", Slab::<Backend>::slot_size(), "connections to servers"),
    ]
}
