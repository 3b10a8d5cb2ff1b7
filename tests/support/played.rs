//! A shard between clients and a played server, over pipes in memory: the test of allocations and the benchmark of the
//! relay step it. Everything around the shard is written to be simple; only what the shard does is counted or timed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qcp::auth::secrets::Salts;
use qcp::auth::settings::{Method, Rules};
use qcp::ids::{ConnectionId, ShardId};
use qcp::io::doorbell::Doorbell;
use qcp::io::{Close, Errno, Event, Group, Parcel, SocketAddress, Transport};
use qcp::memory::{Arena, Nodes, Outbox, Scratch, Slice};
use qcp::pool::{self, Schedule};
use qcp::protocol::startup::{self, Version};
use qcp::protocol::tag::{TargetKind, frontend as tag};
use qcp::protocol::writer::{Full, NO_PARAMETER_TYPES, NO_PARAMETERS};
use qcp::protocol::{Direction, Framer, Step, TransactionStatus, Writer, reader};
use qcp::session::{RelayMode, Transparency};
use qcp::shard::mailbox::mailboxes;
use qcp::shard::{Catalogue, ClientsMax, PoolSettings, Population, Server as ServerName, Settings, Shard};

/// How many of each there are.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub clients: usize,
    pub backends: usize,
    /// Different statements of all clients.
    pub texts: usize,
    /// Prepared statements on one backend.
    pub statements_max: usize,
    /// Whether sessions are kept, and how closely.
    pub preserve: Option<Transparency>,
}

// What clients ask.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Simple,
    /// The unnamed statement.
    Extended,
    /// A statement that was prepared long ago.
    Prepared,
    /// A named statement, parsed and closed within the transaction.
    PreparedEachTime,
}

#[derive(Clone, Copy)]
pub enum Part {
    /// What comes before the transactions.
    Prepare,
    Transaction,
}

/// Every client calls its statement so, whatever it says.
const NAME: &[u8] = b"s";

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Simple, Kind::Extended, Kind::Prepared, Kind::PreparedEachTime];

    /// `text`: the number of the statement.
    fn request(self, part: Part, text: usize) -> Vec<u8> {
        let text = format!("SELECT {text}");
        let run = |writer: &mut Writer<'_>, name| {
            writer.bind(b"", name, NO_PARAMETERS)?;
            writer.describe(TargetKind::Portal, b"")?;
            writer.execute(b"", 0)
        };
        written(|writer| match (self, part) {
            (Kind::Prepared, Part::Prepare) => {
                writer.parse(NAME, text.as_bytes(), NO_PARAMETER_TYPES)?;
                writer.sync()
            }
            (Kind::Simple, _) | (_, Part::Prepare) => writer.query(text.as_bytes()),
            (Kind::Extended, Part::Transaction) => {
                writer.parse(b"", text.as_bytes(), NO_PARAMETER_TYPES)?;
                run(writer, b"")?;
                writer.sync()
            }
            (Kind::Prepared, Part::Transaction) => {
                run(writer, NAME)?;
                writer.sync()
            }
            (Kind::PreparedEachTime, Part::Transaction) => {
                writer.parse(b"t", text.as_bytes(), NO_PARAMETER_TYPES)?;
                run(writer, b"t")?;
                writer.close(TargetKind::Statement, b"t")?;
                writer.sync()
            }
        })
    }
}

fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut room = [0; 1024];
    let mut writer = Writer::new(&mut room);
    write(&mut writer).expect("there is room");
    writer.written().to_vec()
}

// What a server answers.

/// One connection of a PostgreSQL whose statements all return one row: their own text.
struct Server {
    has_begun: bool,
    received: Vec<u8>,
    statements: HashMap<Vec<u8>, Vec<u8>>,
    /// What the unnamed portal runs.
    bound: Vec<u8>,
}

impl Server {
    fn new() -> Server {
        Server { has_begun: false, received: Vec::new(), statements: HashMap::new(), bound: Vec::new() }
    }

    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.received.extend_from_slice(bytes);
        let mut replies = Vec::new();
        if !self.has_begun {
            let Ok(Some((_, size))) = startup::packet(&self.received) else { return replies };
            self.received.drain(..size);
            self.has_begun = true;
            replies.extend(written(|writer| {
                writer.authentication_ok()?;
                writer.parameter_status(b"server_version", b"15.14")?;
                writer.parameter_status(b"TimeZone", b"UTC")?;
                writer.backend_key_data(7, &[1, 2, 3, 4])?;
                writer.ready_for_query(TransactionStatus::Idle)
            }));
        }
        // Messages are asked for whole, so the framer has nothing to remember.
        let next = |bytes: &[u8]| Framer::new(Direction::Frontend).next(bytes, |_, size| size as usize);
        while let Step::Message { available, .. } = next(&self.received).expect("the shard speaks the protocol") {
            let message: Vec<u8> = self.received.drain(..available).collect();
            replies.extend(self.answer_one(&message));
        }
        replies
    }

    fn answer_one(&mut self, message: &[u8]) -> Vec<u8> {
        let row = |writer: &mut Writer<'_>, text: &[u8]| {
            writer.data_row(&[Some(text)])?;
            writer.command_complete(b"SELECT 1")
        };
        match message[0] {
            // The shard asks what a session has come to: nothing at all.
            tag::QUERY if reader::query(message).expect("well formed").starts_with(b"SELECT EXISTS(") => {
                written(|writer| {
                    writer.row_description(&[&b"?column?"[..]; 6])?;
                    writer.data_row(&[Some(&b"f"[..]); 6])?;
                    writer.command_complete(b"SELECT 1")?;
                    writer.row_description(&[b"lower", b"setting"])?;
                    writer.command_complete(b"SELECT 0")?;
                    writer.ready_for_query(TransactionStatus::Idle)
                })
            }
            tag::QUERY => written(|writer| {
                writer.row_description(&[b"text"])?;
                row(writer, reader::query(message).expect("well formed"))?;
                writer.ready_for_query(TransactionStatus::Idle)
            }),
            tag::PARSE => {
                let parse = reader::parse(message).expect("well formed");
                let old = self.statements.insert(parse.name.to_vec(), parse.query.to_vec());
                assert!(old.is_none() || parse.name.is_empty(), "prepared twice: {message:?}");
                written(|writer| writer.parse_complete())
            }
            tag::BIND => {
                let names = reader::bind_names(message).expect("well formed").expect("whole");
                self.bound.clone_from(self.statements.get(&message[names.statement]).expect("prepared before"));
                written(|writer| writer.bind_complete())
            }
            tag::DESCRIBE => written(|writer| writer.row_description(&[b"text"])),
            tag::EXECUTE => written(|writer| row(writer, &self.bound)),
            tag::CLOSE => {
                let target = reader::target(message).expect("well formed").expect("whole");
                self.statements.remove(&message[target.name]);
                written(|writer| writer.close_complete())
            }
            // Everything has been answered by then.
            tag::FLUSH => Vec::new(),
            tag::SYNC => written(|writer| writer.ready_for_query(TransactionStatus::Idle)),
            other => panic!("nobody sends a {}", char::from(other)),
        }
    }
}

// The world around the shard.

pub struct World {
    sizes: Sizes,
    shard: Shard<Pipes>,
    /// Who is at the other end, by the connection's index.
    peers: Vec<Peer>,
    /// Who asks first this time, so that the same clients do not meet the same backends again and again.
    first: usize,
    /// What the shard is told next.
    events: Vec<Event>,
    before: fn(),
    after: fn(),
}

enum Peer {
    Client {
        /// What it would see on a connection of its own.
        direct: Server,
        answer: Vec<u8>,
    },
    Server(Server),
}

impl World {
    /// All clients logged in. `before` and `after` are called around what the shard does, event upon event.
    pub fn new(sizes: Sizes, before: fn(), after: fn()) -> World {
        let doorbells = [Doorbell::new().expect("a descriptor is to be had")];
        let (_, mailbox) = mailboxes(&doorbells);
        let mailbox = mailbox.into_iter().next().expect("one for each doorbell");
        let catalogue = Rc::new(OnePool { size: sizes.backends as u32, preserve: sizes.preserve });
        let shard =
            Shard::new(Pipes::new(sizes), settings(sizes), catalogue, mailbox, Arc::new(Population::new(1, 16)));
        let mut world = World { sizes, shard, peers: Vec::new(), first: 0, events: Vec::new(), before, after };
        let startup = written(|writer| {
            writer.startup_message(Version::V3_0, [(&b"user"[..], &b"alice"[..]), (b"database", b"shop")])
        });
        for _ in 0..sizes.clients {
            world.shard.io.open();
            let mut direct = Server::new();
            direct.answer(&startup);
            world.peers.push(Peer::Client { direct, answer: Vec::new() });
        }
        for index in 0..sizes.clients {
            world.events.push(Event::Accepted { connection: Pipes::connection(index), local: true });
            world.receive(index, &startup);
        }
        world.settle();
        for peer in &mut world.peers {
            if let Peer::Client { answer, .. } = peer {
                let ready = written(|writer| writer.ready_for_query(TransactionStatus::Idle));
                assert!(std::mem::take(answer).ends_with(&ready), "logged in");
            }
        }
        world
    }

    /// Connections to the server.
    pub fn backend_count(&self) -> usize {
        self.peers.iter().filter(|peer| matches!(peer, Peer::Server(_))).count()
    }

    /// All clients ask at once, then all are answered as on a direct connection.
    pub fn transact(&mut self, kind: Kind, part: Part) {
        let Sizes { clients, texts, .. } = self.sizes;
        for at in 0..clients {
            let index = (at + self.first) % clients;
            self.receive(index, &kind.request(part, index % texts));
        }
        self.first += 1;
        self.settle();
        for index in 0..clients {
            let Peer::Client { direct, answer } = &mut self.peers[index] else { unreachable!("clients come first") };
            let expected = direct.answer(&kind.request(part, index % texts));
            assert_eq!(std::mem::take(answer), expected, "client {index}, {kind:?}");
        }
        self.shard.io.now += Duration::from_millis(5);
        self.events.push(Event::Tick);
        self.happen();
    }

    /// Carries to everyone what was sent, until nobody says anything more.
    fn settle(&mut self) {
        loop {
            self.happen();
            // The shard has dialled.
            while self.peers.len() < self.shard.io.ends.len() {
                let connection = Pipes::connection(self.peers.len());
                self.peers.push(Peer::Server(Server::new()));
                self.events.push(Event::Connected { connection, error: None });
            }
            for index in 0..self.peers.len() {
                let sent = self.shard.io.take_sent(index);
                if sent.is_empty() {
                    continue;
                }
                match &mut self.peers[index] {
                    Peer::Client { answer, .. } => answer.extend(sent),
                    Peer::Server(server) => {
                        let replies = server.answer(&sent);
                        self.receive(index, &replies);
                    }
                }
            }
            self.shard.io.scratch.rest();
            if self.events.is_empty() {
                return;
            }
        }
    }

    fn receive(&mut self, index: usize, bytes: &[u8]) {
        if !bytes.is_empty() {
            let bytes = self.shard.io.scratch.copy(bytes).expect("the arena has room");
            self.events.push(Event::Received { connection: Pipes::connection(index), bytes });
        }
    }

    fn happen(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        (self.before)();
        step_shard(&mut self.shard, &mut events);
        (self.after)();
        self.events = events;
    }
}

/// What the relay costs is what happens in here; a profiler finds it by this name.
#[inline(never)]
fn step_shard(shard: &mut Shard<Pipes>, events: &mut Vec<Event>) {
    for event in events.drain(..) {
        shard.on_event(event);
    }
}

fn settings(sizes: Sizes) -> Settings {
    Settings {
        id: ShardId(0),
        shard_count: 1,
        clients_max: sizes.clients as u32,
        backends_max: sizes.backends,
        nodes_count: 8 * sizes.clients,
        login_timeout: Duration::from_secs(60),
        client_stall_timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(60),
        cancel_timeout: Duration::from_secs(10),
        dns_ttl: Duration::ZERO,
        role_check_interval: Duration::from_millis(250),
        backoff: (Duration::from_millis(100), Duration::from_secs(5)),
        auth: Arc::default(),
        salts: Salts::new([1; 32]),
        check_connections: 1,
        settings_bytes: 1 << 16,
        statement_bytes: 1 << 16,
        statements_max: sizes.statements_max,
        seed: 1,
        tls: Default::default(),
        memory_terms: Vec::new(),
    }
}

struct OnePool {
    size: u32,
    preserve: Option<Transparency>,
}

impl Catalogue for OnePool {
    fn pool(&self, database: &str, _user: &str) -> Option<PoolSettings> {
        Some(PoolSettings {
            servers: vec![ServerName::Tcp("127.0.0.1".to_owned(), 5432)],
            weights: vec![1],
            route: pool::Route::Any,
            server_database: database.to_owned(),
            mode: RelayMode::Smart,
            preserve: self.preserve,
            hold_prepared: false,
            dedicated: false,
            tls: vec![0],
            rules: Rules { method: Method::Trust, credentials: None },
            clients_max: ClientsMax::default(),
            timeouts: Default::default(),
            upkeep: Default::default(),
            pool: pool::Settings {
                size: self.size,
                min_size: 0,
                reserve_size: 0,
                reserve_timeout: Duration::ZERO,
                max_backends: 0,
                max_queue: 0,
                queue_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(600),
                lifetime: Duration::from_secs(3600),
                keepalive_interval: Duration::ZERO,
                keepalive_timeout: Duration::from_secs(10),
                schedule: Schedule::RoundRobin,
                placement: Schedule::LoadBalancing,
            },
        })
    }
}

/// Connections of which the far ends are [`World::peers`]; what is sent stays in the outbox until it is taken.
struct Pipes {
    arena: Arena,
    scratch: Scratch,
    nodes: Nodes,
    now: Instant,
    ends: Vec<End>,
}

#[derive(Default)]
struct End {
    owner: u64,
    outbox: Outbox,
}

impl Pipes {
    fn new(sizes: Sizes) -> Pipes {
        let arena = Arena::new(16 * 1024, 32 + sizes.clients).expect("memory is to be had");
        let scratch = Scratch::new(&arena);
        Pipes { arena, scratch, nodes: Nodes::new(32 * sizes.clients), now: Instant::now(), ends: Vec::new() }
    }

    /// Nothing here is ever closed, so that no index is used twice.
    fn connection(index: usize) -> ConnectionId {
        ConnectionId { index: index as u32, generation: 0 }
    }

    fn open(&mut self) -> ConnectionId {
        self.ends.push(End::default());
        Self::connection(self.ends.len() - 1)
    }

    fn end(&mut self, connection: ConnectionId) -> &mut End {
        &mut self.ends[connection.index as usize]
    }

    fn take_sent(&mut self, index: usize) -> Vec<u8> {
        let outbox = &mut self.ends[index].outbox;
        let sent = outbox.iter(&self.nodes).flat_map(|slice| slice.to_vec()).collect();
        outbox.clear(&mut self.nodes);
        sent
    }
}

impl Transport for Pipes {
    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn set_owner(&mut self, connection: ConnectionId, owner: u64) {
        self.end(connection).owner = owner;
    }

    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        Some(self.ends[connection.index as usize].owner)
    }

    fn send(&mut self, connection: ConnectionId, bytes: Slice) {
        let outbox = &mut self.ends[connection.index as usize].outbox;
        outbox.push(&mut self.nodes, bytes, false).expect("there are nodes for all that is under way");
    }

    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let outbox = &self.ends[connection.index as usize].outbox;
        (outbox.bytes(), outbox.pieces())
    }

    fn abort(&mut self, _connection: ConnectionId) {
        unreachable!("there is memory enough")
    }

    fn taken(&self, _connection: ConnectionId) -> u64 {
        0
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn notify_drained(&mut self, _connection: ConnectionId) {
        unreachable!("peers take what they are sent")
    }

    /// Clients are served in turn, and nobody says more before.
    fn receive(&mut self, _connection: ConnectionId, _on: bool) {}

    fn connect(&mut self, _address: &SocketAddress) -> Result<ConnectionId, Errno> {
        Ok(self.open())
    }

    fn close(&mut self, connection: ConnectionId, _how: Close) {
        panic!("{connection:?} is closed, and nobody has gone")
    }

    fn detach(&mut self, _connection: ConnectionId) {
        unreachable!("there is one shard")
    }

    fn adopt(&mut self, _parcel: Parcel, _group: Group) -> Option<ConnectionId> {
        unreachable!("there is one shard")
    }

    fn peer(&self, connection: ConnectionId) -> String {
        format!("{connection:?}")
    }

    fn address(&self, _connection: ConnectionId) -> Option<IpAddr> {
        None
    }

    fn peer_user(&self, _connection: ConnectionId) -> Option<String> {
        None
    }

    fn is_local(&self, _connection: ConnectionId) -> bool {
        true
    }

    fn stop_listening(&mut self) {}

    fn resolve(&mut self, host: &str, _port: u16, _ticket: u64) {
        unreachable!("{host} is an address")
    }
}
