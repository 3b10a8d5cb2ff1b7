//! The other floor: the same bare transaction pooler on epoll, one thread, the way PgBouncer is built.
//!
//! Level-triggered epoll, one receive buffer for all sockets, each chunk sent on at once. Readiness is touched only when a
//! socket is full: the request of a client that waits for a backend is copied aside, a few bytes once.

use floors::arguments::Arguments;
use floors::dial::{self, Server};
use floors::epoll::{self, Epoll, Watch};
use floors::switchboard::{Checkout, Replies, Requests, Switchboard};
use floors::wire::{self, Opening, tag};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const EVENTS_MAX: usize = 1_024;
const LISTENER: u64 = u64::MAX;
/// Set in the token of a backend's socket.
const BACKEND: u64 = 1 << 32;

fn main() {
    let arguments = Arguments::from_command_line();
    let server = Server::from_arguments(&arguments);
    let mut floor = Floor {
        epoll: Epoll::create(),
        listener: dial::listen(arguments.required("listen")),
        switchboard: Switchboard::new(arguments.value("backends", 16)),
        server,
        greeting: None,
        clients: Vec::new(),
        clients_free: Vec::new(),
        backends: Vec::new(),
        backends_free: Vec::new(),
        clients_left: Vec::new(),
        backends_left: Vec::new(),
    };
    floor.run(arguments.value("buffer-size", 65_536));
}

/// A socket and the bytes that it was too full to take.
struct Link {
    socket: RawFd,
    /// Keeps `socket` open; taken to close it.
    owner: Option<OwnedFd>,
    token: u64,
    unsent: Vec<u8>,
    /// Not read from because its peer is full.
    stopped: bool,
}

impl Link {
    fn new(descriptor: OwnedFd, token: u64) -> Link {
        Link { socket: descriptor.as_raw_fd(), owner: Some(descriptor), token, unsent: Vec::new(), stopped: false }
    }

    /// Returns whether everything was taken.
    #[inline]
    fn send(&mut self, bytes: &[u8], epoll: &Epoll) -> bool {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return false;
        }
        let sent = epoll::send(self.socket, bytes);
        if sent == bytes.len() {
            return true;
        }
        self.unsent.extend_from_slice(&bytes[sent..]);
        self.watch(epoll);
        false
    }

    /// Returns whether nothing is left to send.
    #[cold]
    fn send_rest(&mut self, epoll: &Epoll) -> bool {
        let sent = epoll::send(self.socket, &self.unsent);
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.watch(epoll);
        }
        self.unsent.is_empty()
    }

    #[cold]
    fn stop(&mut self, stopped: bool, epoll: &Epoll) {
        self.stopped = stopped;
        self.watch(epoll);
    }

    fn watch(&self, epoll: &Epoll) {
        let watch = match (self.stopped, self.unsent.is_empty()) {
            (false, true) => Watch::Read,
            (false, false) => Watch::ReadWrite,
            (true, true) => Watch::Nothing,
            (true, false) => Watch::Write,
        };
        epoll.change(self.socket, watch, self.token);
    }
}

enum Stage {
    Greeting,
    Unlinked,
    Waiting,
    Linked { backend: u32 },
    Left,
}

struct Client {
    link: Link,
    stage: Stage,
    requests: Requests,
    /// Requests received while no backend is linked.
    held: Vec<u8>,
}

struct Backend {
    link: Link,
    client: Option<u32>,
    replies: Replies,
}

struct Floor {
    epoll: Epoll,
    listener: TcpListener,
    switchboard: Switchboard,
    server: Server,
    /// What answers a startup packet, learned at the first login.
    greeting: Option<Vec<u8>>,
    clients: Vec<Client>,
    clients_free: Vec<u32>,
    backends: Vec<Backend>,
    backends_free: Vec<u32>,
    /// Gone in this turn; free after it, because events of theirs may still be in the batch.
    clients_left: Vec<u32>,
    backends_left: Vec<u32>,
}

impl Floor {
    fn run(&mut self, buffer_size: usize) -> ! {
        let mut buffer = vec![0; buffer_size];
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        self.listener.set_nonblocking(true).expect("a listener that does not block");
        self.epoll.add(self.listener.as_raw_fd(), Watch::Read, LISTENER);
        loop {
            let count = self.epoll.wait(&mut events);
            for event in &events[..count] {
                self.on_event(event, &mut buffer);
            }
            self.free_those_who_left();
        }
    }

    #[inline]
    fn on_event(&mut self, event: &libc::epoll_event, buffer: &mut [u8]) {
        let slot = event.u64 as u32;
        if event.u64 == LISTENER {
            self.accept();
        } else if event.u64 & BACKEND == 0 {
            if epoll::is_writable(event) {
                self.on_client_writable(slot);
            }
            if epoll::is_readable(event) {
                self.on_client_readable(slot, buffer);
            }
        } else {
            if epoll::is_writable(event) {
                self.on_backend_writable(slot);
            }
            if epoll::is_readable(event) {
                self.on_backend_readable(slot, buffer);
            }
        }
    }

    fn accept(&mut self) {
        while let Some(descriptor) = epoll::accept(self.listener.as_raw_fd()) {
            let slot = self.clients_free.pop().unwrap_or(self.clients.len() as u32);
            let link = Link::new(descriptor, u64::from(slot));
            self.epoll.add(link.socket, Watch::Read, link.token);
            let client = Client { link, stage: Stage::Greeting, requests: Requests::default(), held: Vec::new() };
            put(&mut self.clients, slot, client);
        }
    }

    #[inline]
    fn on_client_readable(&mut self, slot: u32, buffer: &mut [u8]) {
        let client = &mut self.clients[slot as usize];
        if client.link.stopped || matches!(client.stage, Stage::Left) {
            return;
        }
        let bytes = match epoll::receive(client.link.socket, buffer) {
            None => return,
            Some(0) => return self.on_client_end(slot),
            Some(size) => &buffer[..size],
        };
        match client.stage {
            Stage::Linked { backend } => {
                client.requests.on_frontend(bytes);
                self.send_to_backend(slot, backend, bytes);
            }
            Stage::Unlinked if bytes[0] == tag::TERMINATE => {}
            Stage::Unlinked => {
                client.requests.on_frontend(bytes);
                match self.switchboard.checkout(slot) {
                    Checkout::Ready(backend) => {
                        self.link(slot, backend);
                        self.send_to_backend(slot, backend, bytes);
                    }
                    Checkout::Dial => {
                        let backend = self.dial();
                        self.link(slot, backend);
                        self.send_to_backend(slot, backend, bytes);
                    }
                    Checkout::Wait => {
                        client.stage = Stage::Waiting;
                        client.held.extend_from_slice(bytes);
                    }
                }
            }
            Stage::Waiting => {
                client.requests.on_frontend(bytes);
                client.held.extend_from_slice(bytes);
            }
            Stage::Greeting => self.greet(slot, bytes),
            Stage::Left => {}
        }
    }

    #[inline]
    fn on_backend_readable(&mut self, slot: u32, buffer: &mut [u8]) {
        let backend = &mut self.backends[slot as usize];
        if backend.link.stopped || backend.link.owner.is_none() {
            return;
        }
        let bytes = match epoll::receive(backend.link.socket, buffer) {
            None => return,
            Some(0) => return self.on_backend_end(slot),
            Some(size) => &buffer[..size],
        };
        let Some(client_slot) = backend.client else {
            return;
        };
        let client = &mut self.clients[client_slot as usize];
        backend.replies.on_backend(bytes, &mut client.requests);
        let released = backend.replies.releases(&client.requests);
        let taken = client.link.send(bytes, &self.epoll);
        if released {
            client.stage = Stage::Unlinked;
            backend.client = None;
            if let Some(waiter) = self.switchboard.checkin(slot) {
                self.hand_over(waiter, slot);
            }
        } else if !taken {
            backend.link.stop(true, &self.epoll);
        }
    }

    fn on_client_writable(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if !client.link.send_rest(&self.epoll) {
            return;
        }
        if let Stage::Linked { backend } = client.stage {
            self.backends[backend as usize].link.stop(false, &self.epoll);
        }
    }

    fn on_backend_writable(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        if !backend.link.send_rest(&self.epoll) {
            return;
        }
        if let Some(client) = backend.client {
            self.clients[client as usize].link.stop(false, &self.epoll);
        }
    }

    #[inline]
    fn hand_over(&mut self, client_slot: u32, backend_slot: u32) {
        self.link(client_slot, backend_slot);
        let mut held = std::mem::take(&mut self.clients[client_slot as usize].held);
        self.send_to_backend(client_slot, backend_slot, &held);
        held.clear();
        self.clients[client_slot as usize].held = held;
    }

    #[inline]
    fn link(&mut self, client_slot: u32, backend_slot: u32) {
        self.clients[client_slot as usize].stage = Stage::Linked { backend: backend_slot };
        self.backends[backend_slot as usize].client = Some(client_slot);
    }

    #[inline]
    fn send_to_backend(&mut self, client_slot: u32, backend_slot: u32, bytes: &[u8]) {
        let taken = self.backends[backend_slot as usize].link.send(bytes, &self.epoll);
        if !taken {
            self.clients[client_slot as usize].link.stop(true, &self.epoll);
        }
    }

    fn greet(&mut self, slot: u32, packet: &[u8]) {
        let client = &mut self.clients[slot as usize];
        match wire::opening(packet) {
            Opening::Encryption => {
                client.link.send(b"N", &self.epoll);
            }
            Opening::Startup => {
                // Learned once, from a connection opened for nothing else.
                let server = &self.server;
                let greeting = self.greeting.get_or_insert_with(|| wire::login_reply(&server.dial().parameters));
                client.link.send(greeting, &self.epoll);
                client.stage = Stage::Unlinked;
            }
            Opening::Other => self.on_client_end(slot),
        }
    }

    #[cold]
    fn dial(&mut self) -> u32 {
        let stream = self.server.dial().stream;
        let slot = self.backends_free.pop().unwrap_or(self.backends.len() as u32);
        let link = Link::new(stream.into(), BACKEND | u64::from(slot));
        self.epoll.add(link.socket, Watch::Read, link.token);
        put(&mut self.backends, slot, Backend { link, client: None, replies: Replies::default() });
        slot
    }

    /// A client that leaves amid its work takes its backend along.
    fn on_client_end(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        match client.stage {
            Stage::Linked { backend } => {
                let backend = &mut self.backends[backend as usize];
                backend.client = None;
                backend.link.stop(false, &self.epoll);
                epoll::shutdown(backend.link.socket);
            }
            Stage::Waiting => self.switchboard.forget_waiter(slot),
            Stage::Greeting | Stage::Unlinked | Stage::Left => {}
        }
        client.stage = Stage::Left;
        client.link.owner = None;
        self.clients_left.push(slot);
    }

    fn on_backend_end(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        backend.link.owner = None;
        let client = backend.client.take();
        self.backends_left.push(slot);
        if let Some(client) = client {
            self.clients[client as usize].stage = Stage::Unlinked;
            self.on_client_end(client);
        }
        if let Some(waiter) = self.switchboard.forget_backend(slot) {
            let backend = self.dial();
            self.hand_over(waiter, backend);
        }
    }

    #[inline]
    fn free_those_who_left(&mut self) {
        self.clients_free.append(&mut self.clients_left);
        self.backends_free.append(&mut self.backends_left);
    }
}

/// `slot` is free or the first after the table's end.
fn put<T>(table: &mut Vec<T>, slot: u32, value: T) {
    match table.get_mut(slot as usize) {
        Some(place) => *place = value,
        None => table.push(value),
    }
}
