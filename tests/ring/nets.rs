//! Two transports with the peers at their other ends: the ring over real sockets, and the simulation's pipes.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qcp::ids::{ConnectionId, DoorId};
use qcp::io::doorbell::Doorbell;
use qcp::io::ring::{Ring, Settings};
use qcp::io::{Errno, Event, Transport};
use qcp::memory::Arena;

use super::random::Random;
use super::transport::{Pipes, Wish};

pub const CHUNK_SIZE: usize = 4096;
pub const CHUNKS: usize = 512;
const RESERVE: usize = 8;

/// The number of a connection in the script; both sides know it.
pub type Serial = u32;

/// How a peer ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerEnd {
    /// It says that it sends no more, and still reads.
    Half,
    /// It is gone.
    Closed,
}

/// A transport and its peers.
pub trait Net {
    type Io: Transport;

    fn io(&mut self) -> &mut Self::Io;

    /// A peer begins to connect; the transport hears of it.
    fn connect_peer(&mut self, serial: Serial);

    /// Which peer a connection that was just accepted is.
    fn accepted(&mut self, connection: ConnectionId);

    fn peer_sends(&mut self, serial: Serial, bytes: &[u8]);

    fn peer_reads(&mut self, serial: Serial, on: bool);

    fn peer_ends(&mut self, serial: Serial, how: PeerEnd);

    /// What the peer has read, and whether it has seen the end.
    fn peer_got(&self, serial: Serial) -> (&[u8], bool);

    /// Lets things happen for a moment; the events of it.
    fn turn(&mut self, events: &mut Vec<Event>);

    /// Connections that are there, also closing ones.
    fn open(&self) -> usize;

    /// Forgets what is left of the peer.
    fn forget(&mut self, serial: Serial);
}

struct Peer {
    socket: Option<Socket>,
    unsent: Vec<u8>,
    reads: bool,
    got: Vec<u8>,
    ended: bool,
    half: bool,
}

impl Peer {
    fn new(socket: Option<Socket>) -> Self {
        Self { socket, unsent: Vec::new(), reads: true, got: Vec::new(), ended: false, half: false }
    }
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(bytes),
            Self::Unix(socket) => socket.read(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn shutdown(&self) {
        // Fails only where the other side is gone already.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }
}

/// The ring, with peers at the other ends of sockets of both families.
pub struct Sockets {
    pub ring: Ring,
    peers: HashMap<Serial, Peer>,
    /// Peers whose connections are not accepted yet, by family: in the order in which they connected.
    waiting: [std::collections::VecDeque<Serial>; 2],
    port: u16,
    path: PathBuf,
}

impl Sockets {
    pub fn new(ready_max: usize) -> Self {
        Self::with_arena(
            Arena::new(CHUNK_SIZE, CHUNKS).expect("memory"),
            ready_max,
            Doorbell::new().expect("descriptors"),
        )
    }

    pub fn with_arena(arena: Arena, ready_max: usize, doorbell: Doorbell) -> Self {
        let settings =
            Settings { arena, connections_max: 600, nodes_count: 16_384, backend_reserve: RESERVE, ready_max };
        let mut ring = Ring::new(settings, doorbell).expect("io_uring");
        let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = tcp.local_addr().expect("it is bound").port();
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qcp-ring-{}-{number}", std::process::id()));
        let unix = UnixListener::bind(&path).expect("a socket file");
        ring.listen(OwnedFd::from(tcp), false, DoorId(0));
        ring.listen(OwnedFd::from(unix), true, DoorId(1));
        Self { ring, peers: HashMap::new(), waiting: Default::default(), port, path }
    }

    pub fn connect(&self, serial: Serial) -> TcpOrUnix {
        if serial.is_multiple_of(2) {
            TcpOrUnix::Tcp(TcpStream::connect(("127.0.0.1", self.port)).expect("it listens"))
        } else {
            TcpOrUnix::Unix(UnixStream::connect(&self.path).expect("it listens"))
        }
    }

    /// Peers send what they have and read what has come.
    fn peers_turn(&mut self) {
        let mut piece = [0; 65536];
        for peer in self.peers.values_mut() {
            let Some(socket) = &mut peer.socket else { continue };
            while !peer.unsent.is_empty() {
                match socket.write(&peer.unsent) {
                    Ok(count) => {
                        peer.unsent.drain(..count);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => peer.unsent.clear(),
                }
            }
            if peer.half && peer.unsent.is_empty() {
                peer.half = false;
                socket.shutdown();
            }
            while peer.reads && !peer.ended {
                match socket.read(&mut piece) {
                    Ok(0) => peer.ended = true,
                    Ok(count) => peer.got.extend_from_slice(&piece[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => peer.ended = true,
                }
            }
        }
    }
}

pub enum TcpOrUnix {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Net for Sockets {
    type Io = Ring;

    fn io(&mut self) -> &mut Ring {
        &mut self.ring
    }

    fn connect_peer(&mut self, serial: Serial) {
        let socket = match self.connect(serial) {
            TcpOrUnix::Tcp(socket) => {
                socket.set_nonblocking(true).expect("our socket");
                socket.set_nodelay(true).expect("our socket");
                Socket::Tcp(socket)
            }
            TcpOrUnix::Unix(socket) => {
                socket.set_nonblocking(true).expect("our socket");
                Socket::Unix(socket)
            }
        };
        self.waiting[usize::from(matches!(socket, Socket::Unix(_)))].push_back(serial);
        self.peers.insert(serial, Peer::new(Some(socket)));
    }

    fn accepted(&mut self, connection: ConnectionId) {
        let local = self.ring.peer(connection) == "unix";
        let serial = self.waiting[usize::from(local)].pop_front().expect("a peer has connected");
        self.ring.set_owner(connection, u64::from(serial));
    }

    fn peer_sends(&mut self, serial: Serial, bytes: &[u8]) {
        let peer = self.peers.get_mut(&serial).expect("the script knows its peers");
        peer.unsent.extend_from_slice(bytes);
    }

    fn peer_reads(&mut self, serial: Serial, on: bool) {
        self.peers.get_mut(&serial).expect("the script knows its peers").reads = on;
    }

    fn peer_ends(&mut self, serial: Serial, how: PeerEnd) {
        let peer = self.peers.get_mut(&serial).expect("the script knows its peers");
        match how {
            PeerEnd::Half => peer.half = true,
            PeerEnd::Closed => peer.socket = None,
        }
    }

    fn peer_got(&self, serial: Serial) -> (&[u8], bool) {
        let peer = &self.peers[&serial];
        (&peer.got, peer.ended)
    }

    fn turn(&mut self, events: &mut Vec<Event>) {
        self.peers_turn();
        self.ring.wake();
        self.ring.arm_tick(Duration::from_millis(2));
        self.ring.submit().expect("io_uring works");
        while let Some(event) = self.ring.next_event() {
            events.push(event);
        }
    }

    fn open(&self) -> usize {
        self.ring.connection_count()
    }

    fn forget(&mut self, serial: Serial) {
        self.peers.remove(&serial);
    }
}

/// The simulation's pipes, carried out at once.
pub struct InMemory {
    pipes: Pipes,
    random: Random,
    peers: HashMap<Serial, Peer>,
    connections: HashMap<Serial, ConnectionId>,
    accepted: Vec<Event>,
    open: usize,
}

impl InMemory {
    pub fn new(seed: u64) -> Self {
        let arena = Arena::new(CHUNK_SIZE, CHUNKS).expect("memory");
        Self {
            pipes: Pipes::new(arena, Instant::now(), RESERVE, Default::default()),
            random: Random(seed),
            peers: HashMap::new(),
            connections: HashMap::new(),
            accepted: Vec::new(),
            open: 0,
        }
    }

    fn close_peer(&mut self, serial: Serial) {
        self.open -= 1;
        self.connections.remove(&serial);
        if let Some(peer) = self.peers.get_mut(&serial) {
            peer.ended = true;
        }
    }
}

impl Net for InMemory {
    type Io = Pipes;

    fn io(&mut self) -> &mut Pipes {
        &mut self.pipes
    }

    fn connect_peer(&mut self, serial: Serial) {
        let (connection, event) = self.pipes.accept(serial);
        self.open += 1;
        self.peers.insert(serial, Peer::new(None));
        self.connections.insert(serial, connection);
        self.accepted.push(event);
    }

    fn accepted(&mut self, connection: ConnectionId) {
        let serial = self.pipes.peer_of(connection).expect("just accepted");
        self.pipes.set_owner(connection, u64::from(serial));
    }

    fn peer_sends(&mut self, serial: Serial, bytes: &[u8]) {
        if let Some(&connection) = self.connections.get(&serial) {
            self.pipes.arrive(connection, bytes);
        }
    }

    fn peer_reads(&mut self, serial: Serial, on: bool) {
        self.peers.get_mut(&serial).expect("the script knows its peers").reads = on;
    }

    fn peer_ends(&mut self, serial: Serial, how: PeerEnd) {
        if let Some(&connection) = self.connections.get(&serial) {
            self.pipes.hang_up(connection, None);
        }
        if how == PeerEnd::Closed {
            self.peers.get_mut(&serial).expect("the script knows its peers").half = true;
        }
    }

    fn peer_got(&self, serial: Serial) -> (&[u8], bool) {
        let peer = &self.peers[&serial];
        (&peer.got, peer.ended)
    }

    fn turn(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.accepted);
        for wish in std::mem::take(&mut self.pipes.wishes) {
            match wish {
                Wish::Closed { peer } => self.close_peer(peer),
                Wish::Aborted { connection } => {
                    events.push(Event::Ended { connection, error: Some(Errno(libc::ENOBUFS)) });
                }
                Wish::Wrote { .. } | Wish::Receives { .. } | Wish::Closing { .. } => {}
                Wish::Connect { .. } | Wish::Resolve { .. } | Wish::Detaching { .. } | Wish::Adopted { .. } => {
                    unreachable!("the script does not ask for it")
                }
            }
        }
        let mut connections: Vec<_> = self.connections.iter().map(|(&serial, &id)| (serial, id)).collect();
        connections.sort_unstable_by_key(|&(serial, _)| serial);
        for (serial, connection) in connections {
            while let Ok(Some(event)) = self.pipes.deliver(connection, &mut self.random, false) {
                events.push(event);
            }
            let peer = self.peers.get_mut(&serial).expect("it is not forgotten while it is connected");
            // Who is gone is noticed by who sends.
            let gone = peer.half && self.pipes.queued(connection).0 > 0;
            if peer.reads || gone {
                let drained = self.pipes.drain(connection, usize::MAX, gone);
                peer.got.extend_from_slice(&drained.bytes);
                events.extend(drained.event);
                if let Some(serial) = drained.closed {
                    self.close_peer(serial);
                }
            }
        }
        self.pipes.end_turn();
    }

    fn open(&self) -> usize {
        self.open
    }

    fn forget(&mut self, serial: Serial) {
        self.peers.remove(&serial);
    }
}
