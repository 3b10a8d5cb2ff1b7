//! The world of one seed: shards, pipes, server, applications and a clock that jumps from one happening to the next.
//! After every step the oracles look.

macro_rules! trace {
    ($world:expr, $($argument:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($argument)*);
            $world.keep_line(line);
        }
    };
}

mod administrator;
mod clients;
mod oracles;
mod pipes;
mod plan;
mod servers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qcp::auth::secrets::Salts;
use qcp::ids::{ClientId, ConnectionId, ShardId};
use qcp::io::doorbell::Doorbell;
use qcp::io::{Errno, Event, SocketAddress};
use qcp::memory::Arena;
use qcp::session::RelayMode;
use qcp::shard::census::{Census, PoolCensus};
use qcp::shard::mailbox::{Address, mailboxes};
use qcp::shard::{Mail, Population, Settings, Shard};

use super::application::{self, Application, Heard};
use super::coverage::Coverage;
use super::dials::{Dials, Everything};
use super::random::Random;
use super::server::{Arrived, Manner, ServerConnection, Stage};
use super::shrink::Keep;
use super::transport::{NOBODY, Pipes, Roads, Wire, Wish, locked};
use super::wire::{self, Mark};
use administrator::Administrator;
use plan::{Action, Plan};

/// What a connection of a shard leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Application(usize),
    Server(usize),
    /// A client's cancel request, which was sent when it was accepted.
    Canceller,
}

/// A shard and what belongs to it.
struct Core {
    shard: Shard<Pipes>,
    arena: Arena,
    doorbell: Doorbell,
    ring_planned: bool,
    busy_at: u64,
    tick_at: u64,
    /// The number of the one that is to come.
    tick: u64,
    stopped: bool,
    /// As it was after the last event.
    last: Census,
    /// Who is first in a queue and needs what other shards have, by the pool, and since when.
    wanting: Vec<(String, String, (ClientId, Instant), u64)>,
}

pub struct World {
    pub dials: Dials,
    random: Random,
    base: Instant,
    /// Microseconds since the base.
    now: u64,
    plans: BinaryHeap<Reverse<Plan>>,
    cores: Vec<Core>,
    addresses: Vec<Address>,
    peers: Vec<Peer>,
    /// What moves between shards.
    roads: Arc<Mutex<Roads>>,
    /// When a backend last was on its way.
    moved_at: u64,
    /// Of each pool, by name and server: when one of its places went from one shard to another.
    places_moved_at: BTreeMap<(String, String), u64>,
    population: Arc<Population>,
    /// Clients that came to no shard, because it had ended or was full.
    strays: u32,
    applications: Vec<Application>,
    servers: Vec<ServerConnection>,
    executed: BTreeSet<Mark>,
    /// Until when each server takes no connection, and how it does so.
    down_until: [u64; 2],
    hangs: bool,
    administrator: Administrator,
    quitting: Option<u64>,
    pub steps: u64,
    pub requests: u64,
    pub coverage: Coverage,
    /// The last lines, when somebody wants to read them.
    pub trace: Option<VecDeque<String>>,
}

const MILLI: u64 = 1000;
const SECOND: u64 = 1_000_000;
const TRACE_LINES: usize = 200_000;
/// A connection to a server, with its login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any peer pauses.
const CLIENT_STALL_TIMEOUT: Duration = Duration::from_secs(40);
/// Nobody waits longer than this for anything: sleeps, outages and timeouts are far shorter.
const PATIENCE: u64 = 60 * SECOND;
/// A shard whose clients wait has asked the others several times by then.
const FOREIGN: u64 = 60 * MILLI;
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_TTL: Duration = Duration::from_millis(600);
const ROLE_CHECK_INTERVAL: Duration = Duration::from_millis(250);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const CLIENTS_MAX: u32 = 64;
const NODES: usize = 4096;
const CHECKS: u32 = 2;

impl World {
    pub fn new(seed: u64, keep: &Keep, traced: bool) -> Self {
        let mut random = Random(seed);
        let mut dials = Dials::new(&mut random);
        keep.turn(&mut dials);
        let base = Instant::now();
        let doorbells: Vec<Doorbell> =
            (0..dials.shards).map(|_| Doorbell::new().expect("descriptors are left")).collect();
        let (addresses, boxes) = mailboxes(&doorbells);
        let population = Arc::new(Population::new(dials.shards, 16));
        let catalogue = Rc::new(Everything(dials.clone()));
        let roads = Arc::new(Mutex::new(Roads::default()));
        let mut cores = Vec::new();
        for (index, (mailbox, doorbell)) in boxes.into_iter().zip(doorbells).enumerate() {
            let arena = Arena::new(dials.chunk_size, dials.chunks).expect("memory is left");
            let settings = Settings {
                id: ShardId(index as u16),
                shard_count: dials.shards as u16,
                clients_max: CLIENTS_MAX,
                backends_max: 64,
                nodes_count: NODES,
                login_timeout: LOGIN_TIMEOUT,
                client_stall_timeout: CLIENT_STALL_TIMEOUT,
                connect_timeout: CONNECT_TIMEOUT,
                cancel_timeout: CANCEL_TIMEOUT,
                dns_ttl: DNS_TTL,
                role_check_interval: ROLE_CHECK_INTERVAL,
                backoff: BACKOFF,
                auth: Arc::new(dials.auth()),
                salts: Salts::new([1; 32]),
                check_connections: CHECKS,
                settings_bytes: 64 << 10,
                statement_bytes: dials.chunks / 4 * dials.chunk_size,
                statements_max: dials.statements_max,
                seed: random.next(),
                tls: Default::default(),
                memory_terms: Vec::new(),
            };
            let pipes = Pipes::new(arena.clone(), base, dials.chunks / 4, roads.clone());
            let shard = Shard::new(pipes, settings, catalogue.clone(), mailbox, population.clone());
            cores.push(Core {
                shard,
                arena,
                doorbell,
                ring_planned: false,
                busy_at: 0,
                tick_at: 0,
                tick: 0,
                stopped: false,
                last: Census::default(),
                wanting: Vec::new(),
            });
        }
        let applications =
            (0..dials.clients as u32).map(|id| Application::new(id, &dials, keep, &mut random)).collect();
        let mut world = Self {
            random,
            base,
            now: 0,
            plans: BinaryHeap::new(),
            cores,
            addresses,
            peers: Vec::new(),
            roads,
            moved_at: 0,
            places_moved_at: BTreeMap::new(),
            population,
            strays: 0,
            applications,
            servers: Vec::new(),
            executed: BTreeSet::new(),
            down_until: [0; 2],
            hangs: false,
            administrator: Administrator::new(&dials),
            quitting: None,
            steps: 0,
            requests: 0,
            coverage: Coverage::default(),
            trace: traced.then(VecDeque::new),
            dials,
        };
        for index in 0..world.applications.len() {
            let at = world.random.between(0, 20 * MILLI);
            world.plan(at, Action::Act(index));
        }
        for index in 0..world.cores.len() {
            world.plan_tick(index, 5 * MILLI);
        }
        if world.dials.outages > 0 {
            world.plan(50 * MILLI, Action::Outage);
        }
        if world.dials.reloads > 0 || world.dials.orders > 0 {
            world.plan(5 * MILLI, Action::Administrate);
        }
        if world.dials.early_end {
            let at = world.random.between(20 * MILLI, SECOND);
            world.plan(at, Action::Quit);
        }
        world
    }

    fn keep_line(&mut self, line: String) {
        let now = self.now;
        let lines = self.trace.as_mut().expect("the macro has looked");
        if lines.len() == TRACE_LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{:>10.3} ms  {line}", now as f64 / 1000.0));
    }

    fn plan(&mut self, after: u64, action: Action) {
        let order = self.random.next();
        self.plans.push(Reverse(Plan { at: self.now + after, order, action }));
    }

    fn latency(&mut self) -> u64 {
        self.random.between(1, self.dials.latency_us)
    }

    /// Runs the seed to its end.
    pub fn run(&mut self) {
        while let Some(Reverse(plan)) = self.plans.pop() {
            self.now = self.now.max(plan.at);
            self.steps += 1;
            assert!(self.steps < 5_000_000, "the seed comes to no end");
            self.step(plan.action);
            if self.quitting.is_none() && self.applications.iter().all(|one| one.stage == application::Stage::Gone) {
                self.plan(0, Action::Quit);
                self.quitting = Some(self.now);
            }
            if self.cores.iter().all(|core| core.stopped) {
                break;
            }
            let stuck = self.quitting.is_some_and(|since| self.now > since + PATIENCE);
            assert!(!stuck, "a shard does not come to its end: {:?}", self.cores[0].shard.census());
        }
        self.look_at_the_end();
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Act(index) => self.act(index),
            Action::Release(index) => {
                let bytes = std::mem::take(&mut self.applications[index].held);
                self.send_from(index, &bytes);
                self.plan_act(index);
            }
            Action::Deliver(core, connection) => self.deliver(core, connection),
            Action::Drain(core, connection) => self.drain(core, connection),
            Action::Connect(core, connection, address) => self.connect(core, connection, &address),
            Action::Resolve(core, ticket, port) => {
                let failed = self.dials.outages > 0 && self.random.below(8) == 0;
                let addresses = vec![([127, 0, 0, 1], port).into(), ([127, 0, 0, 2], port).into()];
                let addresses = if failed { Err("no such host".to_owned()) } else { Ok(addresses) };
                self.feed(core, Event::Resolved { ticket, addresses });
            }
            Action::Linger(core, connection) => {
                if let Some(peer) = self.cores[core].shard.io.give_up(connection) {
                    self.closed_by_pooler(peer);
                }
            }
            Action::End(core, connection) => {
                let error = Some(Errno(libc::ENOBUFS));
                self.feed(core, Event::Ended { connection, error });
            }
            Action::Depart(core, connection) => {
                let peer = self.peer(core, connection);
                let Self { cores, random, .. } = self;
                match cores[core].shard.io.depart(connection, random) {
                    Ok(None) => {}
                    Ok(Some(event)) => {
                        trace!(self, "{peer:?} is out of shard {core}");
                        self.feed(core, event);
                    }
                    Err(()) => {
                        let after = self.latency();
                        self.plan(after, Action::Depart(core, connection));
                    }
                }
            }
            Action::Rung(core) => {
                self.cores[core].ring_planned = false;
                self.feed(core, Event::Rung);
            }
            Action::Tick(core, number) => self.tick(core, number),
            Action::Process(index) => self.process(index),
            Action::Alarm(index, alarm) => {
                let server = &mut self.servers[index];
                if server.alarm == alarm && server.stage == Stage::Ready && server.session.sleeping().is_some() {
                    server.session.wake(false);
                    self.after_processing(index);
                }
            }
            Action::Outage => self.outage(),
            Action::Administrate => self.administrate(),
            Action::Order(order) => self.order(order),
            Action::Quit => {
                self.quitting.get_or_insert(self.now);
                trace!(self, "QUIT");
                for address in &self.addresses {
                    address.send(Mail::Quit(Duration::from_secs(2)));
                }
                self.look_for_mail();
            }
        }
    }

    /// Hands an event to a shard and does what it wishes.
    fn feed(&mut self, core: usize, event: Event) {
        let now = self.base + Duration::from_micros(self.now);
        if !matches!(event, Event::Tick) {
            self.cores[core].busy_at = self.now;
            if self.cores[core].tick_at > self.now + 10 * MILLI {
                self.plan_tick(core, 5 * MILLI);
            }
        }
        let Core { shard, .. } = &mut self.cores[core];
        shard.io.set_now(now);
        shard.on_event(event);
        while shard.has_work() {
            shard.work();
        }
        shard.io.end_turn();
        self.cores[core].stopped = self.cores[core].shard.is_stopped();
        self.grant(core);
        self.look_for_mail();
        self.look_at_pending();
        self.look_at_reports();
        self.look_at(core);
        self.look_at_permits();
    }

    /// Does what a shard wished for.
    fn grant(&mut self, core: usize) {
        let wishes = std::mem::take(&mut self.cores[core].shard.io.wishes);
        for wish in wishes {
            match wish {
                Wish::Connect { connection, address } => {
                    let after = self.latency();
                    self.plan(after, Action::Connect(core, connection, address));
                }
                Wish::Wrote { connection } => self.plan_drain(core, connection),
                Wish::Receives { connection } => self.plan_delivery(core, connection),
                Wish::Closed { peer } => self.closed_by_pooler(peer),
                Wish::Closing { connection } => {
                    match self.peer(core, connection) {
                        Some(Peer::Server(index)) => self.servers[index].left = true,
                        Some(Peer::Application(index)) => self.applications[index].left = true,
                        Some(Peer::Canceller) | None => {}
                    }
                    self.plan(5 * SECOND, Action::Linger(core, connection));
                    self.plan_drain(core, connection);
                }
                Wish::Aborted { connection } => {
                    self.coverage.note("connection given up");
                    self.plan(0, Action::End(core, connection));
                }
                Wish::Detaching { connection } => {
                    self.moved_at = self.now;
                    let after = self.latency();
                    self.plan(after, Action::Depart(core, connection));
                }
                Wish::Adopted { peer, connection } => match self.peers[peer as usize] {
                    Peer::Application(index) => {
                        self.coverage.note("client moved");
                        trace!(self, "client {index}: moves to shard {core}");
                        self.applications[index].shard = core;
                        self.applications[index].connection = Some(connection);
                    }
                    Peer::Server(index) => {
                        self.coverage.note("backend moved");
                        self.moved_at = self.now;
                        trace!(self, "server {index}: moves to shard {core}");
                        self.servers[index].shard = core;
                        self.servers[index].connection = connection;
                    }
                    Peer::Canceller => unreachable!("a cancel request is answered where it came"),
                },
                Wish::Resolve { ticket, port } => {
                    let after = self.latency();
                    self.plan(after, Action::Resolve(core, ticket, port));
                }
            }
        }
    }

    /// Where a connection's bytes go while it is between two shards.
    fn under_way(&self, peer: Peer) -> Option<Arc<Mutex<Wire>>> {
        if locked(&self.roads).is_empty() {
            return None;
        }
        let number = self.peers.iter().rposition(|one| *one == peer)?;
        locked(&self.roads).wire(number as u32)
    }

    /// Connections that were on the way to a shard that has ended.
    fn count_strays(&mut self) {
        let dropped = std::mem::take(&mut locked(&self.roads).dropped);
        for peer in dropped {
            self.coverage.note("closed on its way");
            self.strays += u32::from(matches!(self.peers[peer as usize], Peer::Application(_)));
            self.closed_by_pooler(peer);
        }
    }

    fn look_for_mail(&mut self) {
        self.count_strays();
        for core in 0..self.cores.len() {
            if self.cores[core].doorbell.silence() && !self.cores[core].ring_planned {
                self.cores[core].ring_planned = true;
                let after = self.latency();
                self.plan(after, Action::Rung(core));
            }
        }
    }

    fn plan_tick(&mut self, core: usize, after: u64) {
        let Core { tick_at, tick, .. } = &mut self.cores[core];
        *tick_at = self.now + after;
        *tick += 1;
        let number = *tick;
        self.plan(after, Action::Tick(core, number));
    }

    fn tick(&mut self, core: usize, number: u64) {
        if self.cores[core].stopped || self.cores[core].tick != number {
            return;
        }
        // As the pump does: often while there is traffic.
        let busy = self.now < self.cores[core].busy_at + 20 * MILLI;
        self.plan_tick(core, if busy { 5 * MILLI } else { 100 * MILLI });
        self.feed(core, Event::Tick);
        self.look_at_waits();
    }
}

/// Runs a seed. Errors: why it failed.
pub fn run(seed: u64, keep: &Keep, traced: bool) -> (World, Result<(), String>) {
    let mut world = World::new(seed, keep, traced);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let result = result.map_err(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => cause.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
    });
    (world, result)
}
