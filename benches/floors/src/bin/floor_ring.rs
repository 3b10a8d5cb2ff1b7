//! The floor: a bare transaction pooler on io_uring, one thread.
//!
//! It looks at message headers and nothing else. No limits, no statements, no error handling: what it costs is what
//! moving the bytes costs. Each socket has one multishot receive and at most one send in flight; a received buffer is
//! sent from where it lies, and a client's request stays in its buffer while the client waits for a backend.

use floors::arguments::Arguments;
use floors::dial::{self, Server};
use floors::ring::{BufferId, Chain, Completion, Order, Received, Ring, Socket, Token};
use floors::switchboard::{Checkout, Replies, Requests, Switchboard};
use floors::wire::{self, Opening, tag};
use std::net::TcpListener;

const ACCEPT: u8 = 0;
const CLIENT_RECEIVE: u8 = 1;
const CLIENT_SEND: u8 = 2;
const BACKEND_RECEIVE: u8 = 3;
const BACKEND_SEND: u8 = 4;
const BACKEND_CLOSED: u8 = 5;
const IGNORED: u8 = 6;

fn main() {
    let arguments = Arguments::from_command_line();
    let server = Server::from_arguments(&arguments);
    // More than the clients there will be: each that waits keeps its request in one.
    let buffers_count = arguments.value("buffers", 16_384);
    let buffer_size = arguments.value("buffer-size", 65_536);
    let mut floor = Floor {
        ring: Ring::new(buffers_count, buffer_size),
        listener: dial::listen(arguments.required("listen")),
        switchboard: Switchboard::new(arguments.value("backends", 16)),
        server,
        greeting: None,
        clients: Vec::new(),
        clients_free: Vec::new(),
        backends: Vec::new(),
        backends_free: Vec::new(),
        disarmed: Vec::new(),
    };
    floor.run();
}

/// Buffers that may wait for one socket before its peer is no longer read, and with how few it is read again.
const WAITING_MAX: usize = 8;
const WAITING_LOW: usize = 2;

/// What waits to be sent to one socket, of which one buffer at a time is under way.
#[derive(Default)]
struct Outbox {
    sending: bool,
    waiting: Chain,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Armed,
    /// A cancel is under way.
    Stopping,
    Stopped,
}

enum Stage {
    Greeting,
    Unlinked,
    Waiting,
    Linked { backend: u32 },
}

struct Client {
    socket: Socket,
    stage: Stage,
    requests: Requests,
    outbox: Outbox,
    reading: Reading,
    /// Requests received while no backend is linked.
    held: Chain,
    ended: bool,
}

struct Backend {
    socket: Socket,
    client: Option<u32>,
    replies: Replies,
    outbox: Outbox,
    reading: Reading,
    ended: bool,
}

struct Floor {
    ring: Ring,
    listener: TcpListener,
    switchboard: Switchboard,
    server: Server,
    /// What answers a startup packet, learned at the first login.
    greeting: Option<&'static [u8]>,
    clients: Vec<Client>,
    clients_free: Vec<u32>,
    backends: Vec<Backend>,
    backends_free: Vec<u32>,
    /// Receives to be armed again at the end of the turn, when buffers have come back.
    disarmed: Vec<Token>,
}

impl Floor {
    fn run(&mut self) -> ! {
        let mut batch = Vec::new();
        self.ring.accept(&self.listener, Token::new(ACCEPT, 0));
        loop {
            self.ring.turn(&mut batch);
            for completion in &batch {
                self.on_completion(completion);
            }
            for token in std::mem::take(&mut self.disarmed) {
                self.arm_receive(token);
            }
        }
    }

    #[inline]
    fn on_completion(&mut self, completion: &Completion) {
        let slot = completion.token.slot;
        match completion.token.kind {
            CLIENT_RECEIVE => match self.ring.received(completion) {
                Received::Bytes(buffer) => {
                    self.on_client_bytes(slot, buffer);
                    if !completion.more() {
                        self.on_client_disarmed(slot);
                    }
                }
                Received::Starved => self.on_client_disarmed(slot),
                Received::Cancelled => self.on_client_stopped(slot),
                Received::End => self.on_client_end(slot),
            },
            BACKEND_RECEIVE => match self.ring.received(completion) {
                Received::Bytes(buffer) => {
                    self.on_backend_bytes(slot, buffer);
                    if !completion.more() {
                        self.on_backend_disarmed(slot);
                    }
                }
                Received::Starved => self.on_backend_disarmed(slot),
                Received::Cancelled => self.on_backend_stopped(slot),
                Received::End => self.on_backend_end(slot),
            },
            CLIENT_SEND => self.on_client_sent(slot, completion),
            BACKEND_SEND => self.on_backend_sent(slot, completion),
            ACCEPT => self.on_accept(completion),
            BACKEND_CLOSED => {
                self.ring.release(self.backends[slot as usize].socket);
                self.backends_free.push(slot);
            }
            _ => {}
        }
    }

    /// The receive ended for want of a buffer, or because the kernel had done enough for one arming.
    #[cold]
    fn on_client_disarmed(&mut self, slot: u32) {
        match self.clients[slot as usize].reading {
            Reading::Armed => self.disarmed.push(Token::new(CLIENT_RECEIVE, slot)),
            Reading::Stopping | Reading::Stopped => self.on_client_stopped(slot),
        }
    }

    #[cold]
    fn on_backend_disarmed(&mut self, slot: u32) {
        match self.backends[slot as usize].reading {
            Reading::Armed => self.disarmed.push(Token::new(BACKEND_RECEIVE, slot)),
            Reading::Stopping | Reading::Stopped => self.on_backend_stopped(slot),
        }
    }

    fn arm_receive(&mut self, token: Token) {
        let slot = token.slot as usize;
        let socket = match token.kind {
            CLIENT_RECEIVE => self.clients[slot].socket,
            _ => self.backends[slot].socket,
        };
        self.ring.receive(socket, token);
    }

    fn on_accept(&mut self, completion: &Completion) {
        let client = Client {
            socket: Socket::from_completion(completion),
            stage: Stage::Greeting,
            requests: Requests::default(),
            outbox: Outbox::default(),
            reading: Reading::Armed,
            held: Chain::default(),
            ended: false,
        };
        let slot = place(&mut self.clients, &mut self.clients_free, client);
        self.arm_receive(Token::new(CLIENT_RECEIVE, slot));
        if !completion.more() {
            self.ring.accept(&self.listener, completion.token);
        }
    }

    #[inline]
    fn on_client_bytes(&mut self, slot: u32, buffer: BufferId) {
        let client = &mut self.clients[slot as usize];
        let bytes = self.ring.bytes(buffer);
        match client.stage {
            Stage::Linked { backend } => {
                client.requests.on_frontend(bytes);
                self.send_to_backend(backend, buffer);
                if self.backends[backend as usize].outbox.waiting.count() > WAITING_MAX {
                    self.stop_client(slot);
                }
            }
            Stage::Unlinked if bytes[0] == tag::TERMINATE => self.ring.give(buffer),
            Stage::Unlinked => {
                client.requests.on_frontend(bytes);
                match self.switchboard.checkout(slot) {
                    Checkout::Ready(backend) => {
                        self.link(slot, backend);
                        self.send_to_backend(backend, buffer);
                    }
                    Checkout::Dial => {
                        let backend = self.dial();
                        self.link(slot, backend);
                        self.send_to_backend(backend, buffer);
                    }
                    Checkout::Wait => {
                        client.stage = Stage::Waiting;
                        self.ring.append(&mut client.held, buffer);
                    }
                }
            }
            Stage::Waiting => {
                client.requests.on_frontend(bytes);
                self.ring.append(&mut client.held, buffer);
            }
            Stage::Greeting => self.greet(slot, buffer),
        }
    }

    #[inline]
    fn on_backend_bytes(&mut self, slot: u32, buffer: BufferId) {
        let backend = &mut self.backends[slot as usize];
        let Some(client_slot) = backend.client else {
            self.ring.give(buffer);
            return;
        };
        let client = &mut self.clients[client_slot as usize];
        backend.replies.on_backend(self.ring.bytes(buffer), &mut client.requests);
        let released = backend.replies.releases(&client.requests);
        self.send_to_client(client_slot, buffer);
        if released {
            self.clients[client_slot as usize].stage = Stage::Unlinked;
            self.backends[slot as usize].client = None;
            self.resume_backend(slot);
            if let Some(waiter) = self.switchboard.checkin(slot) {
                self.hand_over(waiter, slot);
            }
        } else if self.clients[client_slot as usize].outbox.waiting.count() > WAITING_MAX {
            self.stop_backend(slot);
        }
    }

    #[inline]
    fn hand_over(&mut self, client_slot: u32, backend_slot: u32) {
        self.link(client_slot, backend_slot);
        let mut held = std::mem::take(&mut self.clients[client_slot as usize].held);
        while let Some(buffer) = self.ring.take_first(&mut held) {
            self.send_to_backend(backend_slot, buffer);
        }
    }

    #[inline]
    fn link(&mut self, client_slot: u32, backend_slot: u32) {
        self.clients[client_slot as usize].stage = Stage::Linked { backend: backend_slot };
        self.backends[backend_slot as usize].client = Some(client_slot);
    }

    #[inline]
    fn send_to_backend(&mut self, slot: u32, buffer: BufferId) {
        let backend = &mut self.backends[slot as usize];
        send(&mut self.ring, backend.socket, &mut backend.outbox, buffer, Token::new(BACKEND_SEND, slot));
    }

    #[inline]
    fn send_to_client(&mut self, slot: u32, buffer: BufferId) {
        let client = &mut self.clients[slot as usize];
        send(&mut self.ring, client.socket, &mut client.outbox, buffer, Token::new(CLIENT_SEND, slot));
    }

    #[inline]
    fn on_client_sent(&mut self, slot: u32, completion: &Completion) {
        let client = &mut self.clients[slot as usize];
        send_next(&mut self.ring, client.socket, &mut client.outbox, completion);
        if client.ended {
            self.close_client_if_quiet(slot);
        } else if let (&Stage::Linked { backend }, ..=WAITING_LOW) = (&client.stage, client.outbox.waiting.count()) {
            self.resume_backend(backend);
        }
    }

    #[inline]
    fn on_backend_sent(&mut self, slot: u32, completion: &Completion) {
        let backend = &mut self.backends[slot as usize];
        send_next(&mut self.ring, backend.socket, &mut backend.outbox, completion);
        if backend.ended {
            self.close_backend_if_quiet(slot);
        } else if let (Some(client), ..=WAITING_LOW) = (backend.client, backend.outbox.waiting.count()) {
            self.resume_client(client);
        }
    }

    #[cold]
    fn stop_client(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if client.reading == Reading::Armed {
            client.reading = Reading::Stopping;
            self.ring.cancel_receive(Token::new(CLIENT_RECEIVE, slot), Token::new(IGNORED, 0));
        }
    }

    #[cold]
    fn stop_backend(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        if backend.reading == Reading::Armed {
            backend.reading = Reading::Stopping;
            self.ring.cancel_receive(Token::new(BACKEND_RECEIVE, slot), Token::new(IGNORED, 0));
        }
    }

    #[inline]
    fn resume_client(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if client.reading == Reading::Stopped {
            client.reading = Reading::Armed;
            self.arm_receive(Token::new(CLIENT_RECEIVE, slot));
        }
    }

    #[inline]
    fn resume_backend(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        if backend.reading == Reading::Stopped {
            backend.reading = Reading::Armed;
            self.arm_receive(Token::new(BACKEND_RECEIVE, slot));
        }
    }

    /// The peer may have caught up while the cancel was under way.
    #[cold]
    fn on_client_stopped(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        client.reading = Reading::Stopped;
        let is_full = match client.stage {
            Stage::Linked { backend } => self.backends[backend as usize].outbox.waiting.count() > WAITING_LOW,
            _ => false,
        };
        if !is_full {
            self.resume_client(slot);
        }
    }

    #[cold]
    fn on_backend_stopped(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        backend.reading = Reading::Stopped;
        let is_full =
            backend.client.is_some_and(|client| self.clients[client as usize].outbox.waiting.count() > WAITING_LOW);
        if !is_full {
            self.resume_backend(slot);
        }
    }

    fn greet(&mut self, slot: u32, buffer: BufferId) {
        let opening = wire::opening(self.ring.bytes(buffer));
        self.ring.give(buffer);
        let reply = match opening {
            Opening::Encryption => b"N",
            Opening::Startup => {
                let greeting = self.greeting();
                self.clients[slot as usize].stage = Stage::Unlinked;
                greeting
            }
            Opening::Other => {
                self.ring.shutdown(self.clients[slot as usize].socket, Token::new(IGNORED, 0));
                return;
            }
        };
        let client = &mut self.clients[slot as usize];
        client.outbox.sending = true;
        self.ring.send_greeting(client.socket, reply, Token::new(CLIENT_SEND, slot));
    }

    /// The parameters that everybody is told are learned once, from a connection opened for nothing else.
    fn greeting(&mut self) -> &'static [u8] {
        if let Some(greeting) = self.greeting {
            return greeting;
        }
        let parameters = self.server.dial().parameters;
        let greeting = wire::login_reply(&parameters).leak();
        self.greeting = Some(greeting);
        greeting
    }

    #[cold]
    fn dial(&mut self) -> u32 {
        let stream = self.server.dial().stream;
        let socket = self.ring.adopt(stream.into());
        let backend = Backend {
            socket,
            client: None,
            replies: Replies::default(),
            outbox: Outbox::default(),
            reading: Reading::Armed,
            ended: false,
        };
        let slot = place(&mut self.backends, &mut self.backends_free, backend);
        self.arm_receive(Token::new(BACKEND_RECEIVE, slot));
        slot
    }

    /// A client that leaves amid its work takes its backend along.
    fn on_client_end(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        client.ended = true;
        match client.stage {
            Stage::Linked { backend } => {
                let backend = &mut self.backends[backend as usize];
                backend.client = None;
                self.ring.shutdown(backend.socket, Token::new(IGNORED, 0));
            }
            Stage::Waiting => self.switchboard.forget_waiter(slot),
            Stage::Greeting | Stage::Unlinked => {}
        }
        client.stage = Stage::Unlinked;
        let mut held = std::mem::take(&mut client.held);
        while let Some(buffer) = self.ring.take_first(&mut held) {
            self.ring.give(buffer);
        }
        self.close_client_if_quiet(slot);
    }

    fn on_backend_end(&mut self, slot: u32) {
        let backend = &mut self.backends[slot as usize];
        backend.ended = true;
        if let Some(client_slot) = backend.client.take() {
            let client = &mut self.clients[client_slot as usize];
            client.stage = Stage::Unlinked;
            self.ring.shutdown(client.socket, Token::new(IGNORED, 0));
        }
        self.close_backend_if_quiet(slot);
        if let Some(waiter) = self.switchboard.forget_backend(slot) {
            let backend = self.dial();
            self.hand_over(waiter, backend);
        }
    }

    fn close_client_if_quiet(&mut self, slot: u32) {
        let client = &self.clients[slot as usize];
        if !client.outbox.sending {
            self.ring.close(client.socket, Token::new(IGNORED, 0));
            self.clients_free.push(slot);
        }
    }

    fn close_backend_if_quiet(&mut self, slot: u32) {
        let backend = &self.backends[slot as usize];
        if !backend.outbox.sending {
            self.ring.close(backend.socket, Token::new(BACKEND_CLOSED, slot));
        }
    }
}

/// One send at a time keeps the order; what comes meanwhile waits its turn.
#[inline]
fn send(ring: &mut Ring, socket: Socket, outbox: &mut Outbox, buffer: BufferId, token: Token) {
    if outbox.sending {
        ring.append(&mut outbox.waiting, buffer);
        ring.wait_behind();
    } else {
        outbox.sending = true;
        ring.send_buffer(socket, buffer, token, order(token));
    }
}

#[inline]
fn send_next(ring: &mut Ring, socket: Socket, outbox: &mut Outbox, completion: &Completion) {
    if let Some(buffer) = Ring::sent(completion) {
        ring.give(buffer);
    }
    match ring.take_first(&mut outbox.waiting) {
        Some(next) => {
            let token = Token::new(completion.token.kind, completion.token.slot);
            ring.send_buffer(socket, next, token, order(token));
            if outbox.waiting.count() > 0 {
                ring.wait_behind();
            }
        }
        None => outbox.sending = false,
    }
}

fn order(token: Token) -> Order {
    if token.kind == BACKEND_SEND { Order::First } else { Order::Last }
}

fn place<T>(table: &mut Vec<T>, free: &mut Vec<u32>, value: T) -> u32 {
    match free.pop() {
        Some(slot) => {
            table[slot as usize] = value;
            slot
        }
        None => {
            table.push(value);
            table.len() as u32 - 1
        }
    }
}
