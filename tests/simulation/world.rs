//! The world of one seed: shards, pipes, server, applications and a clock that jumps from one happening to the next.
//! After every step the oracles look.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qcp::ids::{ConnectionId, ShardId};
use qcp::io::doorbell::Doorbell;
use qcp::io::{Errno, Event, SocketAddress};
use qcp::memory::Arena;
use qcp::shard::census::{Census, PoolCensus};
use qcp::shard::mailbox::{Address, mailboxes};
use qcp::shard::{Mail, Population, Settings, Shard};

use super::application::{self, Application, Heard};
use super::coverage::Coverage;
use super::dials::{Dials, Everything};
use super::random::Random;
use super::server::{Arrived, Manner, ServerConnection, Stage};
use super::transport::{NOBODY, Pipes, Roads, Wire, Wish, locked};
use super::wire::{self, Mark};

/// What a connection of a shard leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Application(usize),
    Server(usize),
    /// A client's cancel request, which was sent when it was accepted.
    Canceller,
}

enum Action {
    /// The application connects, or does the next thing.
    Act(usize),
    /// The rest of a message that an application held back.
    Release(usize),
    Deliver(usize, ConnectionId),
    Drain(usize, ConnectionId),
    Connect(usize, ConnectionId, SocketAddress),
    Resolve(usize, u64, u16),
    Linger(usize, ConnectionId),
    /// The shard has given the connection up, and hears so.
    End(usize, ConnectionId),
    /// The connection leaves its shard.
    Depart(usize, ConnectionId),
    Rung(usize),
    Tick(usize),
    Process(usize),
    Alarm(usize, u64),
    Outage,
    Quit,
}

struct Plan {
    at: u64,
    /// Among what happens at one time, the seed decides.
    order: u64,
    action: Action,
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Plan {}

impl PartialOrd for Plan {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Plan {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A shard and what belongs to it.
struct Core {
    shard: Shard<Pipes>,
    arena: Arena,
    doorbell: Doorbell,
    ring_planned: bool,
    busy_at: u64,
    stopped: bool,
    /// As it was after the last event.
    last: Census,
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
    applications: Vec<Application>,
    servers: Vec<ServerConnection>,
    executed: BTreeSet<Mark>,
    /// Until when each server takes no connection, and how it does so.
    down_until: [u64; 2],
    hangs: bool,
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
const NODES: usize = 4096;
const CHECKS: u32 = 2;

macro_rules! trace {
    ($world:expr, $($argument:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($argument)*);
            $world.keep_line(line);
        }
    };
}

impl World {
    pub fn new(seed: u64, dials: Option<Dials>, traced: bool) -> Self {
        let mut random = Random(seed);
        let drawn = Dials::new(&mut random);
        let dials = dials.unwrap_or(drawn);
        let base = Instant::now();
        let doorbells: Vec<Doorbell> =
            (0..dials.shards).map(|_| Doorbell::new().expect("descriptors are left")).collect();
        let (addresses, boxes) = mailboxes(&doorbells);
        let population = Arc::new(Population::new(dials.shards));
        let catalogue = Rc::new(Everything(dials.clone()));
        let roads = Arc::new(Mutex::new(Roads::default()));
        let mut cores = Vec::new();
        for (index, (mailbox, doorbell)) in boxes.into_iter().zip(doorbells).enumerate() {
            let arena = Arena::new(dials.chunk_size, dials.chunks).expect("memory is left");
            let settings = Settings {
                id: ShardId(index as u16),
                shard_count: dials.shards as u16,
                clients_max: 64,
                backends_max: 64,
                nodes_count: NODES,
                login_timeout: LOGIN_TIMEOUT,
                client_stall_timeout: CLIENT_STALL_TIMEOUT,
                connect_timeout: CONNECT_TIMEOUT,
                cancel_timeout: Duration::from_secs(10),
                backoff: (Duration::from_millis(100), Duration::from_secs(5)),
                trust: dials.trust,
                check_connections: CHECKS,
                settings_bytes: 64 << 10,
                statement_bytes: dials.chunks / 4 * dials.chunk_size,
                statements_max: dials.statements_max,
                seed: random.next(),
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
                stopped: false,
                last: Census::default(),
            });
        }
        let applications = (0..dials.clients as u32).map(|id| Application::new(id, &dials, &mut random)).collect();
        let mut world = Self {
            random,
            base,
            now: 0,
            plans: BinaryHeap::new(),
            cores,
            addresses,
            peers: Vec::new(),
            roads,
            applications,
            servers: Vec::new(),
            executed: BTreeSet::new(),
            down_until: [0; 2],
            hangs: false,
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
            world.plan(5 * MILLI, Action::Tick(index));
        }
        if world.dials.outages > 0 {
            world.plan(50 * MILLI, Action::Outage);
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
                let Self { cores, random, .. } = self;
                match cores[core].shard.io.depart(connection, random) {
                    Ok(None) => {}
                    Ok(Some(event)) => self.feed(core, event),
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
            Action::Tick(core) => self.tick(core),
            Action::Process(index) => self.process(index),
            Action::Alarm(index, alarm) => {
                let server = &mut self.servers[index];
                if server.alarm == alarm && server.stage == Stage::Ready && server.session.sleeping().is_some() {
                    server.session.wake(false);
                    self.after_processing(index);
                }
            }
            Action::Outage => self.outage(),
            Action::Quit => {
                self.quitting.get_or_insert(self.now);
                trace!(self, "QUIT");
                self.coverage.note("mail: Quit");
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
        let Core { shard, busy_at, .. } = &mut self.cores[core];
        shard.io.set_now(now);
        if !matches!(event, Event::Tick) {
            *busy_at = self.now;
        }
        shard.on_event(event);
        shard.io.end_turn();
        self.cores[core].stopped = self.cores[core].shard.is_stopped();
        self.grant(core);
        self.look_for_mail();
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
                    if let Some(&Peer::Server(index)) =
                        self.cores[core].shard.io.peer_of(connection).and_then(|peer| self.peers.get(peer as usize))
                    {
                        self.servers[index].left = true;
                    }
                    self.plan(5 * SECOND, Action::Linger(core, connection));
                    self.plan_drain(core, connection);
                }
                Wish::Aborted { connection } => {
                    self.coverage.note("connection given up");
                    self.plan(0, Action::End(core, connection));
                }
                Wish::Detaching { connection } => {
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

    fn look_for_mail(&mut self) {
        let dropped = std::mem::take(&mut locked(&self.roads).dropped);
        for peer in dropped {
            self.coverage.note("closed on its way");
            self.closed_by_pooler(peer);
        }
        for core in 0..self.cores.len() {
            if self.cores[core].doorbell.silence() && !self.cores[core].ring_planned {
                self.cores[core].ring_planned = true;
                let after = self.latency();
                self.plan(after, Action::Rung(core));
            }
        }
    }

    fn plan_delivery(&mut self, core: usize, connection: ConnectionId) {
        if self.cores[core].shard.io.plan_delivery(connection) {
            let after = self.latency();
            self.plan(after, Action::Deliver(core, connection));
        }
    }

    fn plan_drain(&mut self, core: usize, connection: ConnectionId) {
        if self.cores[core].shard.io.plan_drain(connection) {
            let slow = self.peer(core, connection).is_some_and(|peer| match peer {
                Peer::Application(index) => self.applications[index].slow,
                Peer::Server(_) | Peer::Canceller => false,
            });
            let after = if slow { self.random.between(MILLI, 20 * MILLI) } else { self.latency() };
            self.plan(after, Action::Drain(core, connection));
        }
    }

    fn peer(&self, core: usize, connection: ConnectionId) -> Option<Peer> {
        let peer = self.cores[core].shard.io.peer_of(connection)?;
        (peer != NOBODY).then(|| self.peers[peer as usize])
    }

    fn tick(&mut self, core: usize) {
        if self.cores[core].stopped {
            return;
        }
        // As the pump does: often while there is traffic, and for as long as somebody waits.
        let busy = self.now < self.cores[core].busy_at + 20 * MILLI;
        let waits = self.cores[core].last.pools.iter().any(|pool| pool.waiting > 0);
        self.plan(if busy || waits { 5 * MILLI } else { 100 * MILLI }, Action::Tick(core));
        self.feed(core, Event::Tick);
        self.look_at_waits();
    }

    fn deliver(&mut self, core: usize, connection: ConnectionId) {
        let Self { cores, random, .. } = self;
        match cores[core].shard.io.deliver(connection, random, self.dials.halves == 0) {
            Ok(Some(event)) => {
                if let (Event::Received { bytes, .. }, true) = (&event, self.trace.is_some()) {
                    let line = format!("{:?} -> shard {core}: {} bytes", self.peer(core, connection), bytes.len());
                    self.keep_line(line);
                }
                if let Some(Peer::Server(index)) = self.peer(core, connection) {
                    self.look_whether_clean(index);
                }
                self.feed(core, event);
                self.plan_delivery(core, connection);
            }
            Ok(None) => {}
            Err(()) => {
                self.coverage.note("no chunk left to receive into");
                if self.cores[core].shard.io.plan_delivery(connection) {
                    self.plan(MILLI, Action::Deliver(core, connection));
                }
            }
        }
    }

    fn drain(&mut self, core: usize, connection: ConnectionId) {
        let Some(peer) = self.peer(core, connection) else { return };
        let gone = match peer {
            Peer::Application(index) => self.applications[index].stage == application::Stage::Gone,
            Peer::Server(index) => self.servers[index].stage == Stage::Dead,
            Peer::Canceller => false,
        };
        let slow = matches!(peer, Peer::Application(index) if self.applications[index].slow);
        let most = match self.random.below(3) {
            _ if slow => 1 + self.random.below(2000),
            0 => 1 + self.random.below(100),
            _ => 65536,
        };
        let drained = self.cores[core].shard.io.drain(connection, most, gone);
        if !drained.bytes.is_empty() {
            match peer {
                Peer::Application(index) => self.heard(index, &drained.bytes),
                Peer::Server(index) => self.served(index, &drained.bytes),
                // "there is no reply", but an error when the pooler is ending or has no memory.
                Peer::Canceller => {
                    assert!(self.quitting.is_some() || self.dials.chunks < 64, "a cancel request is never answered")
                }
            }
        }
        if let Some(event) = drained.event {
            self.feed(core, event);
        }
        match drained.closed {
            Some(peer) => self.closed_by_pooler(peer),
            None => self.plan_drain(core, connection),
        }
    }

    fn closed_by_pooler(&mut self, peer: super::transport::Peer) {
        if peer == NOBODY {
            return;
        }
        match self.peers[peer as usize] {
            Peer::Application(index) => {
                let one = &mut self.applications[index];
                one.connection = None;
                if one.stage == application::Stage::Gone {
                    return;
                }
                let told = one.stage == application::Stage::Dismissed;
                let half = one.hears_half();
                one.stage = application::Stage::Gone;
                trace!(self, "client {index}: closed by the pooler");
                let excused = told || self.dials.has_faults() || self.quitting.is_some();
                assert!(excused, "client {index} was closed without a word");
                assert!(
                    !half || self.dials.has_faults() || self.quitting.is_some(),
                    "client {index} got half a message"
                );
            }
            Peer::Server(index) => {
                self.servers[index].left = true;
                self.servers[index].stage = Stage::Dead;
                trace!(self, "server {index}: closed by the pooler");
            }
            Peer::Canceller => {}
        }
    }

    // Applications.

    fn plan_act(&mut self, index: usize) {
        let after = self.random.between(1, self.dials.think_us);
        self.plan(after, Action::Act(index));
    }

    fn send_from(&mut self, index: usize, bytes: &[u8]) {
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

    fn act(&mut self, index: usize) {
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

    fn arrive(&mut self, index: usize) {
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
        let bytes = if self.random.below(4) == 0 { one.encryption_request() } else { one.startup_packet() };
        trace!(self, "client {index}: connects to shard {core}");
        self.feed(core, event);
        self.send_from(index, &bytes);
        self.plan(5 * MILLI, Action::Act(index));
    }

    fn new_peer(&mut self, peer: Peer) -> super::transport::Peer {
        self.peers.push(peer);
        self.peers.len() as u32 - 1
    }

    fn request(&mut self, index: usize) {
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
        if one.actions_left == 0 {
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
        let mut bytes = one.act(dials, random);
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
    fn vanish(&mut self, index: usize) {
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

    fn hang_up(&mut self, index: usize, error: Option<Errno>) {
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

    fn cancel(&mut self, index: usize) {
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
        self.coverage.note(if process_id >> 24 == core as u32 { "cancel" } else { "mail: Cancel" });
        let peer = self.new_peer(Peer::Canceller);
        let (connection, event) = self.cores[core].shard.io.accept(peer);
        self.feed(core, event);
        self.cores[core].shard.io.arrive(connection, &packet);
        self.plan_delivery(core, connection);
    }

    /// Bytes for an application.
    fn heard(&mut self, index: usize, bytes: &[u8]) {
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
    fn dismissed(&mut self, index: usize, fields: &wire::Fields) {
        self.coverage.note(&format!("fatal: {} {}", fields.code, without_numbers(&fields.text)));
        let one = &self.applications[index];
        let excused = match &*fields.code {
            "57P01" => self.quitting.is_some() || self.dials.has_faults(),
            "28P01" => self.dials.password && one.has_wrong_password() || self.dials.refusals > 0,
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
    fn login_may_wait(&self, fields: &wire::Fields) -> bool {
        fields.text.contains("(pool.")
    }

    // The server.

    fn connect(&mut self, core: usize, connection: ConnectionId, address: &SocketAddress) {
        let port = match address {
            SocketAddress::Tcp(address) => address.port(),
            SocketAddress::Unix(path) => {
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a port")
            }
        };
        let down = self.now < self.down_until[usize::from(port - 5000)];
        let second = matches!(address, SocketAddress::Tcp(address) if address.ip().to_string() == "127.0.0.2");
        if down && self.hangs {
            self.coverage.note("connect hangs");
            return;
        }
        let result = if down || self.dials.names && !self.dials.unix && !second && self.random.below(4) == 0 {
            self.coverage.note("connect refused");
            Err(Errno(libc::ECONNREFUSED))
        } else {
            let index = self.servers.len();
            let process_id = 100_000 + index as u32;
            let server = ServerConnection::new(core, connection, process_id, port, &mut self.random);
            self.servers.push(server);
            Ok(self.new_peer(Peer::Server(index)))
        };
        if let Some(event) = self.cores[core].shard.io.connected(connection, result) {
            self.feed(core, event);
            self.plan_drain(core, connection);
        }
    }

    /// Bytes for the server.
    fn served(&mut self, index: usize, bytes: &[u8]) {
        let refused = self.dials.refusals > 0 && self.random.in_thousand(self.dials.refusals);
        let code = *self.random.one_of(&["53300", "57P03", "28P01"]);
        let manner = Manner { password: self.dials.password, refuses: refused.then_some(code) };
        let arrived = self.servers[index].arrive(bytes, &manner);
        match arrived.unwrap_or_else(|why| panic!("{why}")) {
            Arrived::Nothing => {}
            Arrived::Messages => self.plan_processing(index),
            Arrived::Answer(answer) => {
                self.answer(index, &answer);
                if self.servers[index].stage == Stage::Ready {
                    self.look_at_pool_size(index);
                }
            }
            Arrived::Refused(answer) => {
                self.coverage.note("login refused");
                self.answer(index, &answer);
                self.die(index, None);
            }
            Arrived::Cancel { process_id, key } => {
                self.cancelled(process_id, key);
                self.die(index, None);
            }
        }
    }

    fn plan_processing(&mut self, index: usize) {
        let server = &mut self.servers[index];
        if std::mem::replace(&mut server.planned, true) {
            return;
        }
        let stalls = self.random.in_thousand(self.dials.stalls);
        let after = if stalls { self.random.between(1, 2 * SECOND) } else { self.random.between(1, 500) };
        self.plan(after, Action::Process(index));
    }

    fn process(&mut self, index: usize) {
        self.servers[index].planned = false;
        if self.servers[index].stage != Stage::Ready {
            return;
        }
        if self.dials.deaths > 0 && self.random.in_thousand(self.dials.deaths) {
            return self.kill(index);
        }
        let most = 1 + self.random.below(8);
        for _ in 0..most {
            let server = &mut self.servers[index];
            if server.session.sleeping().is_some() {
                break;
            }
            let Some(message) = server.queue.pop_front() else { break };
            trace!(self, "server {index}: processes {}", wire::show(&message));
            self.servers[index].session.process(&message);
        }
        self.after_processing(index);
    }

    fn after_processing(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let effects = std::mem::take(&mut server.session.effects);
        for mark in effects.executed {
            assert!(self.executed.insert(mark), "{mark} was executed twice");
        }
        let answer = server.flush();
        let sleeping = server.session.sleeping();
        self.answer(index, &answer);
        if effects.dies.is_some() {
            self.die(index, None);
            return;
        }
        if let Some((_, ms)) = sleeping {
            self.servers[index].alarm += 1;
            let alarm = self.servers[index].alarm;
            self.plan(ms * MILLI, Action::Alarm(index, alarm));
        } else if !self.servers[index].queue.is_empty() {
            self.plan_processing(index);
        }
        self.look_whether_clean(index);
    }

    fn answer(&mut self, index: usize, bytes: &[u8]) {
        let server = &self.servers[index];
        let (core, connection) = (server.shard, server.connection);
        if self.trace.is_some() {
            let mut rest = bytes.to_vec();
            while let Some(message) = wire::take(&mut rest) {
                trace!(self, "server {index}: says {}", wire::show(&message));
            }
        }
        if let Some(wire) = self.under_way(Peer::Server(index)) {
            locked(&wire).arrive(bytes);
            return;
        }
        self.cores[core].shard.io.arrive(connection, bytes);
        self.plan_delivery(core, connection);
    }

    /// The connection ends behind what was said.
    fn die(&mut self, index: usize, error: Option<Errno>) {
        let server = &mut self.servers[index];
        server.stage = Stage::Dead;
        let (core, connection) = (server.shard, server.connection);
        if let Some(wire) = self.under_way(Peer::Server(index)) {
            locked(&wire).hang_up(error);
            return;
        }
        self.cores[core].shard.io.hang_up(connection, error);
        self.plan_delivery(core, connection);
        self.plan_drain(core, connection);
    }

    /// The server process dies, at any byte of what it says.
    fn kill(&mut self, index: usize) {
        trace!(self, "server {index}: dies");
        self.coverage.note("server connection died");
        match self.random.below(3) {
            0 => {
                let mut last = Vec::new();
                wire::put_fields(&mut last, b'E', "FATAL", "57P01", "pg: terminating connection");
                self.answer(index, &last);
                self.die(index, None);
            }
            1 => {
                let server = &mut self.servers[index];
                while server.session.sleeping().is_none()
                    && let Some(message) = server.queue.pop_front()
                {
                    server.session.process(&message);
                }
                let marks = std::mem::take(&mut server.session.effects).executed;
                for mark in marks {
                    assert!(self.executed.insert(mark), "{mark} was executed twice");
                }
                let mut bytes = self.servers[index].flush();
                bytes.truncate(self.random.below(bytes.len() + 1));
                self.answer(index, &bytes);
                self.die(index, None);
            }
            _ => self.die(index, Some(Errno(libc::ECONNRESET))),
        }
    }

    /// A server goes down for a while, and now and then takes its connections with it.
    fn outage(&mut self) {
        if self.quitting.is_some() {
            return;
        }
        let after = self.random.between(20 * MILLI, SECOND);
        self.plan(after, Action::Outage);
        if !self.random.in_thousand(self.dials.outages) {
            return;
        }
        let server = self.random.below(2);
        self.down_until[server] = self.now + self.random.between(10 * MILLI, 5 * SECOND);
        self.hangs = self.random.below(3) == 0;
        trace!(self, "server {server} is down, connects hang: {}", self.hangs);
        if self.random.below(2) == 0 {
            for index in 0..self.servers.len() {
                let one = &self.servers[index];
                if usize::from(one.port - 5000) == server && one.stage != Stage::Dead {
                    self.kill(index);
                }
            }
        }
    }

    /// A cancel request has come to the server.
    fn cancelled(&mut self, process_id: u32, key: u32) {
        let found = self.servers.iter().position(|server| server.process_id == process_id && server.key == key);
        let index = found.unwrap_or_else(|| panic!("a cancel with a wrong key for {process_id}"));
        if self.servers[index].stage != Stage::Ready {
            return;
        }
        if let Some(holder) = self.servers[index].holder {
            let one = &self.applications[holder as usize];
            let wanted =
                one.cancels > 0 || one.stage == application::Stage::Gone || one.stage == application::Stage::Dismissed;
            assert!(wanted, "client {holder} is hit by a cancel that is not its own");
        }
        self.coverage.note("cancel reached the server");
        if self.servers[index].session.sleeping().is_some() {
            self.coverage.note("cancel ended a query");
            self.servers[index].alarm += 1;
            self.servers[index].session.wake(true);
            self.after_processing(index);
        }
    }

    // Oracles.

    /// Nothing of its last client is left, here or on the way: the next may have it.
    fn look_whether_clean(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let undelivered = self.cores[server.shard].shard.io.undelivered(server.connection);
        if server.is_clean(undelivered) {
            server.holder = None;
        }
    }

    fn look_at_pool_size(&self, index: usize) {
        let server = &self.servers[index];
        if self.dials.dedicated {
            return;
        }
        let same = self.servers.iter().filter(|one| {
            one.stage == Stage::Ready
                && !one.left
                && (one.port, &one.user, &one.database) == (server.port, &server.user, &server.database)
        });
        let checks = if self.dials.trust { 0 } else { CHECKS as usize * self.cores.len() };
        // Settings that only a startup packet can give make a client dedicated; the simulation has none.
        let most = self.dials.pool_size as usize + checks;
        let count = same.count();
        assert!(count <= most, "{count} backends of {}/{}, at most {most}", server.database, server.user);
    }

    /// What must hold in a shard at any time.
    fn look_at(&mut self, core: usize) {
        let census = self.cores[core].shard.census();
        assert_eq!(census.broken, 0, "a link broke, or a panic was caught");
        assert_eq!(census.clients_links, census.backends_links, "a backend has one client, and that client it");
        for pool in &census.pools {
            assert!(pool.open <= pool.permits, "{pool:?}");
            assert_eq!(pool.open, pool.counted, "{pool:?}");
            assert_eq!(pool.waiting, pool.queue.len(), "{pool:?}");
        }
        self.look_at_order(core, &census);
        self.cores[core].last = census;
    }

    /// Who waits longest in a shard's queue is served first.
    fn look_at_order(&mut self, core: usize, census: &Census) {
        for before in &self.cores[core].last.pools {
            let same = |pool: &&PoolCensus| (&pool.name, &pool.server) == (&before.name, &before.server);
            let Some(after) = census.pools.iter().find(same) else { continue };
            if after.permits > before.permits {
                self.coverage.note("mail: Give");
            }
            for (client, since) in &before.queue {
                let served = census.clients_links.iter().any(|(linked, _)| linked == client);
                let passed = after.queue.iter().find(|(_, other)| other < since);
                if let (true, Some((older, _))) = (served, passed) {
                    panic!("{client:?} is served before {older:?}, who has waited longer");
                }
            }
        }
    }

    /// A pool's places over all shards are never more than its size, and its size when no message is under way.
    fn look_at_permits(&self) {
        let in_messages = self.cores.iter().any(|core| core.ring_planned);
        let parts: Vec<Census> = self.cores.iter().map(|core| core.shard.census()).collect();
        let mut names: Vec<_> =
            parts.iter().flat_map(|part| &part.pools).map(|pool| (&pool.name, &pool.server)).collect();
        names.sort();
        names.dedup();
        for (name, server) in names {
            let size = self.dials.pool_size;
            let part_of =
                |part: &'_ Census| part.pools.iter().position(|pool| &pool.name == name && &pool.server == server);
            let shares = parts.iter().find_map(|part| Some(part.pools[part_of(part)?].shares.clone()));
            let shares = shares.expect("the name comes from one of them");
            assert_eq!(shares.iter().sum::<u32>(), size, "shares of {name} at {server}");
            let places = parts.iter().zip(&shares).map(|(part, share)| {
                // A shard that has not made its part yet will make it with its share.
                part_of(part).map_or(*share, |at| part.pools[at].permits)
            });
            let places: u32 = places.sum();
            assert!(places <= size, "{places} places of {name} at {server}");
            assert!(places == size || in_messages, "{places} places of {name} at {server}");
        }
    }

    /// Every waiter is served or told by its deadline, and nobody waits for ever.
    fn look_at_waits(&mut self) {
        // A quiet shard looks at its clock ten times a second.
        let limit = self.dials.queue_timeout() + Duration::from_millis(105);
        for core in &self.cores {
            for pool in core.shard.census().pools {
                assert!(pool.oldest_wait <= limit || core.stopped, "a waiter was not told: {pool:?}");
            }
        }
        for one in &mut self.applications {
            if one.stage == application::Stage::Gone || one.stage == application::Stage::Absent {
                continue;
            }
            if self.now > one.heard_at + PATIENCE && !one.is_settled() && one.held.is_empty() {
                panic!("client {} in {:?} waits without end: {}", one.id, one.stage, one.waits_for());
            }
        }
    }

    fn look_at_the_end(&mut self) {
        for (index, core) in self.cores.iter_mut().enumerate() {
            let census = core.shard.census();
            assert!(core.stopped, "shard {index} has not stopped: {census:?}");
            let left = (census.clients, census.backends, census.nodes_used);
            assert_eq!(left, (0, 0, 0), "shard {index} keeps something: {census:?}");
            // Texts of prepared statements stay, each in a block: what a client or a backend held has come back.
            core.shard.io.end();
            let kept = core.arena.chunk_count() - core.arena.free_count();
            assert!(kept <= census.statements, "shard {index} keeps {kept} chunks: {census:?}");
        }
        for one in &self.applications {
            assert!(self.quitting.is_some() || one.stage == application::Stage::Gone);
        }
        let late: u64 = self.cores.iter().map(|core| core.shard.io.late).sum();
        if late > 0 {
            self.coverage.note("bytes after a stop");
        }
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

/// Runs a seed. Errors: why it failed.
pub fn run(seed: u64, dials: Option<Dials>, traced: bool) -> (World, Result<(), String>) {
    let mut world = World::new(seed, dials, traced);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let result = result.map_err(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => cause.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
    });
    (world, result)
}
